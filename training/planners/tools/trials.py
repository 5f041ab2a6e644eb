"""Searches for one number by Bayesian optimisation, with its trials in a journal file.

The optimiser is Optuna's tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011). A search that was killed
continues at the trial where it stopped, and ends as it would have ended. This holds because the seed and the trials
so far decide what the estimator draws. Processes that search with the same journal share the trials, and agree on the
result.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import optuna
from filelock import FileLock
from optuna.distributions import FloatDistribution
from optuna.samplers import TPESampler
from optuna.storages import InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from training.progress import Progress

TRIALS = "trials.journal"
"""Name of the journal file in the folder of a search."""
PARAMETER = "value"
"""Name, in the journal, of the number that is searched."""
NUM_RANDOM_TRIALS = 4
"""Number of first trials that are drawn at random, before the estimator draws."""
VALID_STATES = (TrialState.RUNNING, TrialState.COMPLETE)
"""States of trials that count. Trials that wait have not begun, and failed ones are left out."""


class NoLock:
    """Stands for Optuna's own lock, which stays when its process is killed, and is waited for then without end.

    All that writes to the journal is within the lock of `Trials`, which ends with its process.
    """

    def acquire(self) -> bool:
        """Does nothing."""
        return True

    def release(self) -> None:
        """Does nothing."""


class Trials:
    """Runs searches one after the other, with one journal for all.

    Args:
        path: the journal file. It is made if it is missing, and so is a lock file beside it. None keeps the trials in
            memory.
    """

    def __init__(self, path: Path | None):
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        if path is None:
            self._storage = InMemoryStorage()
            self._lock = nullcontext()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(path.with_name(f"{path.name}.guard"))
            with self._lock:
                _cut_torn_line(path)
            self._storage = JournalStorage(JournalFileBackend(str(path), NoLock()))

    def minimize(
        self,
        name: str,
        distribution: FloatDistribution,
        objective: Callable[[float], float],
        *,
        initial: Sequence[float],
        num_trials: int,
        seed: int,
    ) -> float:
        """Returns the number with the smallest objective among those tried.

        Args:
            name: name of this search. A search that the journal knows is continued.
            distribution: the numbers that may be tried.
            objective: must give the same value whenever it is called with the same number.
            initial: numbers that are tried before any are drawn.
            num_trials: how many numbers are tried in all.
            seed: decides, together with the trials so far, which numbers are drawn.
        """
        with self._lock:
            study = optuna.create_study(storage=self._storage, study_name=name, load_if_exists=True)
        self._finish_started(study, objective)
        with Progress(desc=name, total=num_trials, unit="trial") as progress:
            while (trial := self._next_trial(study, distribution, initial, num_trials, seed)) is not None:
                self._evaluate(study, trial, objective)
                progress.update(len(_valid_trials(study)) - progress.n)
            progress.update(num_trials - progress.n)
        self._finish_started(study, objective)
        best = min(_valid_trials(study), key=lambda trial: (trial.value, trial.number))
        return best.params[PARAMETER]

    def _next_trial(
        self,
        study: optuna.Study,
        distribution: FloatDistribution,
        initial: Sequence[float],
        num_trials: int,
        seed: int,
    ) -> Trial | None:
        """Returns a new trial, or None if `num_trials` have been started."""
        # Without the lock, two processes could start one trial too many, or take a new trial for a dead one.
        with self._lock:
            for trial in _valid_trials(study):
                if PARAMETER not in trial.params:  # its process ended before the number was drawn
                    study.tell(trial.number, state=TrialState.FAIL)
            num_started = len(_valid_trials(study))
            if num_started >= num_trials:
                return None
            tried = [_number_of(trial) for trial in study.get_trials(deepcopy=False) if trial.state != TrialState.FAIL]
            for value in initial:
                if value not in tried:
                    study.enqueue_trial({PARAMETER: value})
            study.sampler = TPESampler(n_startup_trials=NUM_RANDOM_TRIALS, seed=(seed + num_started) % 2**32)
            return study.ask({PARAMETER: distribution})

    def _finish_started(self, study: optuna.Study, objective: Callable[[float], float]) -> None:
        """Finishes the trials that another process started and has not ended.

        If that process is still alive, both find the same value.
        """
        for trial in _valid_trials(study):
            if trial.state == TrialState.RUNNING and PARAMETER in trial.params:
                self._evaluate(study, trial, objective)

    def _evaluate(self, study: optuna.Study, trial: Trial | FrozenTrial, objective: Callable[[float], float]) -> None:
        """Writes the objective of a trial into the journal, unless another process has done so."""
        value = objective(trial.params[PARAMETER])
        with self._lock:  # else another process may finish the trial between the check and the write
            study.tell(trial.number, value, skip_if_finished=True)


def _cut_torn_line(path: Path) -> None:
    """Removes the part of a line that a killed process has left at a journal's end. Optuna would append to it."""
    content = path.read_bytes() if path.exists() else b""
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def read_trials(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Returns the complete trials in a journal: name of the search -> (number, objective) pairs, in their order."""
    storage = JournalStorage(JournalFileBackend(str(path)))
    studies = [
        optuna.load_study(study_name=name, storage=storage) for name in optuna.study.get_all_study_names(storage)
    ]
    return {
        study.study_name: [
            (trial.params[PARAMETER], trial.value) for trial in study.get_trials(states=(TrialState.COMPLETE,))
        ]
        for study in studies
    }


def _valid_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Returns the trials that are running or complete."""
    return study.get_trials(deepcopy=False, states=VALID_STATES)


def _number_of(trial: FrozenTrial) -> float | None:
    """Returns the number that a trial tries, also if the trial waits. None if it is not drawn yet."""
    return trial.system_attrs.get("fixed_params", trial.params).get(PARAMETER)
