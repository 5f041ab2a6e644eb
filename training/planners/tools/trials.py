"""Search for one number by Bayesian optimisation: Optuna's tree-structured Parzen estimator (NeurIPS 2011), trials in a journal.

A search that was killed goes on at the trial where it stopped, and ends as it would have: what the estimator draws is decided
by the seed and the trials before. Processes that search with the same journal share the trials, and agree on the result.
"""

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
from tqdm.auto import tqdm

TRIALS = "trials.journal"
"""The journal's file in the folder of a search."""
PARAMETER = "value"
DRAWN_BLINDLY = 4
"""Trials before the estimator has a say."""
COUNTED = (TrialState.RUNNING, TrialState.COMPLETE)


class Trials:
    """Searches, one after the other.

    Args:
        path: the journal, made if absent, as is a lock beside it; None: trials are kept in memory.
    """

    def __init__(self, path: Path | None):
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        if path is None:
            self._storage = InMemoryStorage()
            self._lock = nullcontext()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._storage = JournalStorage(JournalFileBackend(str(path)))
            self._lock = FileLock(path.with_name(f"{path.name}.guard"))  # ".lock" is the journal's own

    def least(
        self,
        name: str,
        allowed: FloatDistribution,
        objective: Callable[[float], float],
        *,
        first: Sequence[float],
        count: int,
        seed: int,
    ) -> float:
        """The number at which the objective is least, of those tried.

        Args:
            name: of this search; one that the journal knows goes on.
            objective: decides alike whenever it is asked alike.
            first: tried before anything is drawn.
            count: how many are tried in all.
        """
        with self._lock:
            study = optuna.create_study(storage=self._storage, study_name=name, load_if_exists=True)
        self._finish_started(study, objective)
        with tqdm(desc=name, total=count, unit="trial") as progress:
            while (trial := self._next(study, allowed, first, count, seed)) is not None:
                self._tell(study, trial, objective)
                progress.update(len(_counted(study)) - progress.n)
            progress.update(count - progress.n)
        self._finish_started(study, objective)
        best = min(_counted(study), key=lambda trial: (trial.value, trial.number))
        return best.params[PARAMETER]

    def _next(
        self, study: optuna.Study, allowed: FloatDistribution, first: Sequence[float], count: int, seed: int
    ) -> Trial | None:
        """A trial begun; None where as many as asked for are begun or done."""
        with self._lock:  # else two processes begin one trial too many, or take a trial just begun for a dead one
            for trial in _counted(study):
                if PARAMETER not in trial.params:  # its process ended before the number was drawn
                    study.tell(trial.number, state=TrialState.FAIL)
            done = len(_counted(study))
            if done >= count:
                return None
            tried = [_asked(trial) for trial in study.get_trials(deepcopy=False) if trial.state != TrialState.FAIL]
            for value in first:
                if value not in tried:
                    study.enqueue_trial({PARAMETER: value})
            study.sampler = TPESampler(n_startup_trials=DRAWN_BLINDLY, seed=seed + done)
            return study.ask({PARAMETER: allowed})

    def _finish_started(self, study: optuna.Study, objective: Callable[[float], float]) -> None:
        """Does the trials that another process began and has not ended; where it still lives, both come to the same."""
        for trial in _counted(study):
            if trial.state == TrialState.RUNNING and PARAMETER in trial.params:
                self._tell(study, trial, objective)

    def _tell(self, study: optuna.Study, trial: Trial | FrozenTrial, objective: Callable[[float], float]) -> None:
        value = objective(trial.params[PARAMETER])
        with self._lock:  # else another process may end it between the look and the word
            study.tell(trial.number, value, skip_if_finished=True)


def read_trials(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Of each search in a journal, in their order: the numbers tried and what the objective was."""
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


def _counted(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=COUNTED)


def _asked(trial: FrozenTrial) -> float | None:
    """The number of a trial, also of one that waits."""
    return trial.system_attrs.get("fixed_params", trial.params).get(PARAMETER)
