"""Packages of the test bed: fetched by their registry's client, the right file or none, read without being unpacked."""

import hashlib
import io
import os
import tarfile
import zipfile

import pytest

import data.pasted.archive
from data.pasted.archive import members
from data.pasted.packages import PACKAGES, Package, PackageUnavailable, fetch
from modeling.user_error import UserError

CONTENT = b"a tarball"


def package(**changed) -> Package:
    fields = {"name": "@a/b", "version": "1.0", "kind": "npm", "licence": "MIT", "content": "things"}
    return Package(**fields | {"size": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest()} | changed)


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """A client of that name, and what it was asked for."""
    program, log = tmp_path / "bin" / "npm", tmp_path / "asked"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho \"$@\" >> {log}\nprintf '{CONTENT.decode()}' > some-file.tgz\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    return log


def test_a_package_is_fetched_once(npm, tmp_path):
    path = fetch(package(), tmp_path / "cache")
    assert path.read_bytes() == CONTENT and [file.name for file in path.parent.iterdir()] == ["a-b-1.0.tgz"]
    assert fetch(package(), tmp_path / "cache") == path
    assert npm.read_text().splitlines() == ["pack --silent --ignore-scripts @a/b@1.0"]


def test_what_a_killed_start_left_is_removed(npm, tmp_path):
    cache = tmp_path / "cache"
    for name in (".fetch-old", ".fetch-of-another-process"):
        (cache / name).mkdir(parents=True)
    os.utime(cache / ".fetch-old", (0, 0))
    fetch(package(), cache)
    assert sorted(file.name for file in cache.iterdir()) == [".fetch-of-another-process", "a-b-1.0.tgz"]


@pytest.mark.parametrize(
    "changed, message",
    [({"sha256": "0" * 64}, "has sha256 .*, allowed is 0000"), ({"size": 10}, "has 9 bytes, allowed are 10")],
)
def test_another_file_is_refused_whether_it_comes_or_is_there(npm, tmp_path, changed, message):
    with pytest.raises(UserError, match=message) as refused:
        fetch(package(**changed), tmp_path / "cache")
    assert not isinstance(refused.value, PackageUnavailable)  # which a smaller world would pass over
    assert list((tmp_path / "cache").iterdir()) == []
    (tmp_path / "cache" / package().file_name).write_bytes(CONTENT)
    with pytest.raises(UserError, match=message):
        fetch(package(**changed), tmp_path / "cache")


def test_a_client_that_is_missing_or_fails_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PackageUnavailable, match="^@a/b 1.0: `npm` is not installed"):
        fetch(package(), tmp_path)
    (tmp_path / "npm").write_text("#!/bin/sh\necho no such version >&2\nexit 1\n")
    (tmp_path / "npm").chmod(0o755)
    with pytest.raises(PackageUnavailable, match="did not fetch it: no such version"):
        fetch(package(), tmp_path)


def test_the_table_says_all_of_a_package():
    for name, found in PACKAGES.items():
        assert found.name == name and len(found.sha256) == 64 and found.size > 0 and found.licence and found.content
    assert len({found.file_name for found in PACKAGES.values()}) == len(PACKAGES)


def test_members_are_regular_files_that_fit_a_pattern(tmp_path, monkeypatch):
    tarball, wheel = tmp_path / "a.tgz", tmp_path / "a.whl"
    with tarfile.open(tarball, "w:gz") as tar:
        for name, kind in [("./p/a.png", tarfile.REGTYPE), ("p/b.png", tarfile.SYMTYPE), ("p/c.txt", tarfile.REGTYPE)]:
            info = tarfile.TarInfo(name)
            info.type, info.size, info.linkname = kind, 3 * (kind == tarfile.REGTYPE), "/etc/passwd"
            tar.addfile(info, io.BytesIO(b"abc"))
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in ("p/a.png", "p/c.txt"):
            archive.writestr(name, "abc")
    for path in (tarball, wheel):
        assert list(members(path, r"p/.*\.png")) == [("p/a.png", b"abc")]
    monkeypatch.setattr(data.pasted.archive, "MOST_BYTES", 2)
    for path in (tarball, wheel):
        with pytest.raises(UserError, match="p/a.png has 3 bytes, at most 2 are allowed"):
            list(members(path, ".*"))


@pytest.mark.parametrize("name", ["a.tgz", "a.whl"])
def test_a_damaged_package_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x1f\x8bnonsense")
    with pytest.raises(UserError, match=f"{name}: is damaged, or cannot be read"):
        list(members(tmp_path / name, ".*"))
