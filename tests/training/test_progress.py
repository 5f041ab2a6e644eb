"""Progress where there is no terminal: whole lines, not many, and only from rank 0."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from training import ranks
from training.progress import Progress

ROOT = Path(__file__).parents[2]


class Clock:
    def __init__(self):
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("tqdm.std.time", clock)
    return clock


def lines_of(capsys) -> list[str]:
    text = capsys.readouterr().err
    assert "\r" not in text and text.endswith("\n")
    return text.splitlines()


@pytest.mark.parametrize(
    ("count", "seconds", "most"),
    [(10_000, 1.0, 103), (100, 1.0, 5), (100, 0.001, 2), (10, 3600.0, 11)],
    ids=["a share of the work", "half a minute", "short work", "slow work"],
)
def test_lines_are_few(capsys, clock, count, seconds, most):
    for _ in Progress(range(count), desc="counting", unit="sample"):
        clock.seconds += seconds
    lines = lines_of(capsys)
    assert 2 <= len(lines) <= most and (most < 3 or len(lines) > most / 2)
    assert lines[0].startswith(f"counting: 0 of {count} (0 %)")
    assert lines[-1].startswith(f"counting: {count} of {count} (100 %)") and "00:00 left" in lines[-1]


def test_a_line_has_rate_time_left_and_what_was_logged(capsys, clock):
    with Progress(desc="student", unit="step", total=100, initial=40) as training:
        for step in range(41, 61):
            clock.seconds += 2
            training.update(step - training.n)
            training.set_postfix_str(f"loss {step}")
    middle = lines_of(capsys)[1]
    assert re.fullmatch(r"student: 55 of 100 \(55 %\), +2.00s/step, 00:30 gone, 01:30 left, loss 54", middle), middle


def test_work_without_a_total(capsys, clock):
    with Progress(desc="searching", unit="plan") as search:
        for _ in range(100):
            clock.seconds += 1
            search.update()
    lines = lines_of(capsys)
    assert 3 <= len(lines) <= 6 and re.match(r"searching: 100, +1.00plan/s", lines[-1])


def test_only_rank_0_prints(capsys, monkeypatch):
    monkeypatch.setattr(ranks, "rank", lambda: 1)
    assert list(Progress(range(3), desc="counting", unit="sample")) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_all_bars_are_of_this_kind():
    sources = {path: path.read_text(encoding="utf-8") for top in ("data", "checkpoints", "training", "scripts")
               for path in (ROOT / top).rglob("*.py")}  # fmt: skip
    assert [path for path, text in sources.items() if re.search("import tqdm|from tqdm|rich.progress", text)] == [
        ROOT / "checkpoints" / "lmms_eval" / "model.py",  # it is lmms-eval that draws this one
        ROOT / "training" / "progress.py",
    ]


def test_lines_in_a_pipe():
    code = "from training.progress import Progress; list(Progress(range(1000), desc='counting', unit='sample'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert done.returncode == 0 and done.stdout == b""
    assert done.stderr.count(b"\n") == 2 and b"\r" not in done.stderr
