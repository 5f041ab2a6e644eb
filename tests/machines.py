"""Two machines for a test: two network namespaces with names and addresses of their own, joined by a cable.

Where a user may not make namespaces, both are this machine, and a warning says so.
"""

import subprocess
import sys
import warnings
from functools import cache
from pathlib import Path

# Runs $1 here and $2 in the other machine, and writes both exit codes to the file `codes`.
MACHINES = """
set -e
printf '127.0.0.1 localhost\\n10.77.0.1 machine0\\n10.77.0.2 machine1\\n' > hosts
mount --bind hosts /etc/hosts
hostname machine0
ip link set lo up
unshare -nu sh -c 'hostname machine1; echo up > ready; exec sleep infinity' & other=$!
trap 'kill $other' EXIT
until [ -s ready ]; do sleep 0.05; done
ip link add name squint0 type veth peer name squint1 netns $other
ip addr add 10.77.0.1/24 dev squint0
ip link set squint0 up
nsenter -t $other -n -u sh -c 'ip link set lo up; ip addr add 10.77.0.2/24 dev squint1; ip link set squint1 up'
"""
BOTH = """
second=0; first=0
nsenter -t $other -n -u sh -c "$2" & job=$!
sh -c "$1" || first=$?
wait $job || second=$?
echo $first $second > codes
"""
LOOPBACK = BOTH.replace("nsenter -t $other -n -u ", "")
BIN = Path(sys.executable).parent


@cache
def in_namespaces() -> bool:
    """Returns whether this user may make network namespaces. If not, it warns that tests run on loopback instead."""
    probe = "ip link add name squint0 type veth peer name squint1 && mount --bind /etc/hostname /etc/hostname"
    try:
        possible = subprocess.run(["unshare", "-Urnum", "sh", "-c", probe], capture_output=True).returncode == 0
    except OSError:
        possible = False
    if not possible:
        warnings.warn("no network namespaces here: two launchers on loopback stand for two machines", stacklevel=2)
    return possible


def first_machine() -> str:
    """Returns the name under which both machines reach the first one."""
    return "machine0" if in_namespaces() else "127.0.0.1"


def on_two_machines(folder: Path, first: str, second: str, environment: dict[str, str], timeout: int) -> list[int]:
    """Runs a shell command on each of two machines, and returns their exit codes. `folder` is for own files."""
    script, command = (
        (MACHINES + BOTH, ["unshare", "-Urnum", "--fork", "--kill-child"]) if in_namespaces() else (LOOPBACK, [])
    )
    done = subprocess.run(
        [*command, "bash", "-c", script, "bash", first, second],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    codes = folder / "codes"
    assert codes.exists(), done.stderr
    return [int(code) for code in codes.read_text().split()]
