"""The ops that DeepSpeed compiles, and what a killed compilation leaves behind.

DeepSpeed compiles an op when it is first used, in a folder of torch's extension cache. A file `lock` there makes every
other process wait. A process that is killed meanwhile leaves the lock. Every later run on that machine would then wait
for ever, without a word. If the lock were removed alone, the next run could load a half-written library.
"""

import os
import shutil
import time
from pathlib import Path

from torch.utils.cpp_extension import get_default_build_root

OLD_SECONDS = 600
"""A build that nobody has touched for so long is dead even if its process could be on another machine."""


def compile_no_inference_op() -> None:
    """Keeps DeepSpeed from compiling, whenever it starts on a CPU, an op that adds up over processes in inference.

    No training calls it. It would take a minute, and need a C++ compiler.
    """
    import deepspeed  # slow, and only ever needed where a recipe asks for it

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def clear_killed_builds(several_machines: bool) -> list[Path]:
    """Removes the build folders that a killed process left locked, or their locks alone, and returns them.

    A process that builds holds its lock open, which /proc shows.

    Args:
        several_machines: whether the cache may be shared with processes that /proc does not show. A build that was
            touched in the last ten minutes is then taken for alive.
    """
    root = Path(os.environ.get("TORCH_EXTENSIONS_DIR") or get_default_build_root())
    held = _open_files()
    killed = [lock.parent for lock in (*root.glob("*/lock"), *root.glob("*/*/lock")) if str(lock) not in held]
    if several_machines:
        killed = [folder for folder in killed if _seconds_untouched(folder) > OLD_SECONDS]
    for folder in killed:
        if _was_whole(folder):
            (folder / "lock").unlink(missing_ok=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)
    return killed


def _was_whole(folder: Path) -> bool:
    """Returns whether a build was whole when it was locked. Its process was then killed as it loaded the library.

    Such a library stays, as another process may be about to load it.
    """
    libraries, lock = list(folder.glob("*.so")), folder / "lock"
    return bool(libraries) and lock.exists() and all(one.stat().st_mtime < lock.stat().st_mtime for one in libraries)


def on_several_machines() -> bool:
    """Returns whether the processes of this run are on several machines.

    How many of them are on this one, torchrun says as LOCAL_WORLD_SIZE and deepspeed as LOCAL_SIZE.
    """
    here = os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or "1"
    return int(os.environ.get("WORLD_SIZE", "1")) > int(here)


def _seconds_untouched(folder: Path) -> float:
    newest = max((path.stat().st_mtime for path in (folder, *folder.iterdir())), default=0.0)
    return time.time() - newest


def _open_files() -> set[str]:
    """Returns the paths of all files that processes of this machine hold open, as far as this user may see them."""
    found = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        try:
            found.add(os.readlink(link))
        except OSError:  # the process has ended, or is another user's
            continue
    return found
