import os
import sys

import pytest

from modeling.user_error import UserError
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
