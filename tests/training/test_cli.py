import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from modeling.user_error import UserError
from modeling.whole_file import whole_file
from training import cli


def test_success_exits_with_0(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.run(lambda: print("done"))
    assert exit_.value.code == 0
    assert capsys.readouterr().out == "done\n"


def test_bad_input_is_one_line_and_exit_code_2(capsys):
    def refuse():
        raise UserError("recipe.yaml: steps: got -1,\n  allowed: > 0")

    with pytest.raises(SystemExit) as exit_:
        cli.run(refuse)
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "error: recipe.yaml: steps: got -1, allowed: > 0\n"


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # the system names no file of a disk that is full


def refused_by_files(folder: Path) -> dict[str, Callable[[], object]]:
    """What a user can have a file system refuse, and the file that the line names."""
    (folder / "file").write_text("")
    (folder / "folder").mkdir()

    def full():
        with whole_file(folder / "full"):
            raise FULL

    def wrapped():
        try:
            full()
        except OSError as error:
            raise RuntimeError("a library failed") from error

    return {
        f"{folder}/full: No space left on device": full,
        f"{folder}/full: No space left on device ": wrapped,
        f"{folder}/file/x: Not a directory": lambda: (folder / "file" / "x").write_text(""),
        f"{folder}/folder: Is a directory": lambda: (folder / "folder").read_text(),
        f"{folder}/{'x' * 300}: File name too long": lambda: (folder / ("x" * 300)).write_text(""),
        f"{folder}/none: No such file or directory": lambda: (folder / "none").read_text(),
        f"{folder}/file -> {folder}/folder: Is a directory": lambda: (folder / "file").replace(folder / "folder"),
        "/proc/version: Permission denied": lambda: os.open("/proc/version", os.O_WRONLY | os.O_TRUNC),
    }


def test_what_a_file_system_refuses_is_one_line_that_names_the_file(tmp_path, capsys):
    for said, do in refused_by_files(tmp_path).items():
        if said.startswith("/proc") and os.access("/proc/version", os.W_OK):
            continue
        with pytest.raises(SystemExit) as exit_:
            cli.run(do)
        assert exit_.value.code == 2
        assert capsys.readouterr().err == f"error: {said.strip()}\n"


@pytest.mark.parametrize("error", [OSError("no connection"), ConnectionRefusedError(errno.ECONNREFUSED, "refused")])
def test_an_error_of_a_network_keeps_its_traceback(error):
    with pytest.raises(OSError, match=str(error.args[-1])):
        cli.run(lambda: (_ for _ in ()).throw(error))


def test_our_own_bugs_keep_their_traceback():
    with pytest.raises(KeyError):
        cli.run(lambda: {}["missing"])
    with pytest.raises(ValueError, match="invalid literal"):
        cli.run(lambda: int("a library's own complaint"))


def test_a_reader_that_has_gone_ends_it_without_a_word(monkeypatch, capsys):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        with pytest.raises(SystemExit) as exit_:
            cli.run(lambda: print("done"))
    assert exit_.value.code == 141 and capsys.readouterr().err == ""


def test_another_pipe_that_breaks_keeps_its_traceback():
    def write():
        raise BrokenPipeError("a worker has died")

    with pytest.raises(BrokenPipeError, match="a worker has died"):
        cli.run(write)
