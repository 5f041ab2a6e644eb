"""Bayesian search finds the minimum, and ends alike if it is stopped, killed, or shared by several processes."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from training.planners.tools.trials import PARAMETER, Trials, read_trials

ROOT = Path(__file__).parents[4]
ALLOWED, NUM_TRIALS = FloatDistribution(0.0, 1.0), 20


def objective(value: float) -> float:
    return (value - 0.3) ** 2


def search(path, objective=objective, seed=7, num_trials=NUM_TRIALS, initial=(0.9, 0.0)):
    return Trials(path).minimize("one", ALLOWED, objective, initial=initial, num_trials=num_trials, seed=seed)


def test_it_returns_the_best_trial_and_tries_initial_numbers_first(tmp_path):
    found = search(tmp_path / "trials")
    tried = read_trials(tmp_path / "trials")["one"]
    assert len(tried) == NUM_TRIALS and [value for value, _ in tried[:2]] == [0.9, 0.0]
    assert found == min(tried, key=lambda trial: trial[1])[0] == pytest.approx(0.3, abs=0.03)
    assert found == search(None) and found != search(None, seed=8)
    blind = [abs(value - 0.3) for value, _ in tried[:6]]
    learned = [abs(value - 0.3) for value, _ in tried[-6:]]
    assert sum(learned) < sum(blind) / 2, "later trials are drawn where earlier ones were good"


def test_a_finished_search_is_not_done_again(tmp_path):
    found = search(tmp_path / "trials")

    def never(value):
        raise AssertionError

    assert search(tmp_path / "trials", never) == found


class Stopped(Exception):
    pass


@pytest.mark.parametrize("after", [0, 1, 2, 7, NUM_TRIALS - 1])
def test_a_stopped_search_ends_as_it_would_have(tmp_path, after):
    asked = []

    def stops(value):
        if len(asked) == after:
            raise Stopped
        asked.append(value)
        return objective(value)

    with pytest.raises(Stopped):
        search(tmp_path / "trials", stops)
    done = len(asked)
    assert done == after
    search(tmp_path / "trials")
    search(tmp_path / "whole")
    assert read_trials(tmp_path / "trials") == read_trials(tmp_path / "whole")
    search(tmp_path / "other", seed=8)
    assert read_trials(tmp_path / "other") != read_trials(tmp_path / "whole")


def test_what_a_killed_process_leaves_of_a_lock_and_of_a_line_costs_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole, path = search(Path("whole")), Path("torn")
    search(path, num_trials=5)
    written = path.read_bytes()
    os.symlink(path, f"{path}.lock")  # Optuna's own
    for place in (1, written.rfind(b"\n", 0, -1) + 9):
        path.write_bytes(written[:place])
        assert search(path) == whole
        assert len(read_trials(path)["one"]) == NUM_TRIALS


def test_a_trial_that_ended_before_its_number_was_drawn_is_left_out(tmp_path):
    search(tmp_path / "whole")
    trials = Trials(tmp_path / "trials")
    study = optuna.create_study(storage=trials._storage, study_name="one")
    study.enqueue_trial({PARAMETER: 0.9})
    study.ask()
    assert study.trials[0].state == TrialState.RUNNING and not study.trials[0].params
    search(tmp_path / "trials")
    assert read_trials(tmp_path / "trials") == read_trials(tmp_path / "whole")


PROGRAM = f"""
import sys, time
sys.path.insert(0, {str(ROOT)!r})
from optuna.distributions import FloatDistribution
from pathlib import Path
from training.planners.tools.trials import Trials

def objective(value):
    time.sleep(0.1)
    return (value - 0.3) ** 2

allowed = FloatDistribution(0.0, 1.0)
trials = Trials(Path(sys.argv[1]))
print(trials.minimize("one", allowed, objective, initial=(0.9, 0.0), num_trials={NUM_TRIALS}, seed=7))
"""


def start(journal):
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(journal)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(journal, num_trials):
    for _ in range(600):
        if journal.exists() and journal.read_text().count('"state":1') >= num_trials:
            return
        time.sleep(0.1)
    raise AssertionError("no trials")


def test_a_killed_search_ends_as_it_would_have(tmp_path):
    search(tmp_path / "whole")
    journal = tmp_path / "trials"
    process = start(journal)
    wait_for(journal, 5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert 5 <= len(read_trials(journal)["one"]) < NUM_TRIALS
    search(journal)
    assert read_trials(journal) == read_trials(tmp_path / "whole")


@pytest.mark.slow  # several processes
def test_two_processes_share_the_trials_and_agree(tmp_path):
    journal = tmp_path / "trials"
    processes = [start(journal) for _ in range(2)]
    answers = [process.communicate(timeout=120) for process in processes]
    assert answers[0][0] == answers[1][0] != "", answers
    tried = [value for value, _ in read_trials(journal)["one"]]
    assert len(tried) == NUM_TRIALS and math.isclose(float(answers[0][0]), 0.3, abs_tol=0.1)


@pytest.mark.slow  # several processes
def test_a_trial_that_another_process_is_beginning_is_left_to_it(tmp_path):
    trials = Trials(tmp_path / "trials")
    with trials._lock:
        study = optuna.create_study(storage=trials._storage, study_name="one")
        begun = study.ask()
        process = start(tmp_path / "trials")
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=5)  # a search left alone takes about three seconds
        begun.suggest_float(PARAMETER, 0.0, 1.0)
    printed, error = process.communicate(timeout=120)
    assert printed, error
    assert study.trials[begun.number].state == TrialState.COMPLETE
    assert len(read_trials(tmp_path / "trials")["one"]) == NUM_TRIALS
