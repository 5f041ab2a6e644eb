"""Search for one number by Bayesian optimisation: Optuna's tree-structured Parzen estimator (NeurIPS 2011), trials in a journal.

A search that was killed goes on at the trial where it stopped, and ends as it would have: what the estimator draws is decided
by the seed and the trials before. Processes that search with the same journal share the trials, and agree on the result.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import optuna
from optuna.distributions import FloatDistribution
from optuna.samplers import TPESampler
from optuna.storages import InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from tqdm.auto import tqdm

PARAMETER = "value"
DRAWN_BLINDLY = 4
"""Trials before the estimator has a say."""
COUNTED = (TrialState.RUNNING, TrialState.COMPLETE)


class Trials:
    """Searches, one after the other.

    Args:
        path: the journal, made if absent; None: trials are kept in memory.
    """

    def __init__(self, path: Path | None):
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        if path is None:
            self._storage = InMemoryStorage()
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._storage = JournalStorage(JournalFileBackend(str(path)))

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
        study = optuna.create_study(storage=self._storage, study_name=name, load_if_exists=True)
        _finish_started(study, objective, count)
        tried = [_asked(trial) for trial in study.get_trials(deepcopy=False) if trial.state != TrialState.FAIL]
        for value in first:
            if value not in tried:
                study.enqueue_trial({PARAMETER: value})
        with tqdm(desc=name, total=count, unit="trial") as progress:
            while (done := len(_counted(study))) < count:
                progress.update(done - progress.n)
                study.sampler = TPESampler(n_startup_trials=DRAWN_BLINDLY, seed=seed + done)
                trial = study.ask({PARAMETER: allowed})
                study.tell(trial, objective(trial.params[PARAMETER]), skip_if_finished=True)
            progress.update(count - progress.n)
        _finish_started(study, objective, count)
        # Where several processes searched, each may have begun one too many: these do not count.
        best = min(_counted(study)[:count], key=lambda trial: (trial.value, trial.number))
        return best.params[PARAMETER]


def read_trials(path: Path) -> dict[str, list[tuple[float, float]]]:
    """Of each search in a journal, in their order: the numbers tried and what the objective was."""
    storage = JournalStorage(JournalFileBackend(str(path)))
    studies = [optuna.load_study(study_name=name, storage=storage) for name in optuna.study.get_all_study_names(storage)]
    return {
        study.study_name: [(trial.params[PARAMETER], trial.value) for trial in study.get_trials(states=(TrialState.COMPLETE,))]
        for study in studies
    }


def _counted(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=COUNTED)


def _finish_started(study: optuna.Study, objective: Callable[[float], float], count: int) -> None:
    """Does the trials that another process began and has not ended; where it still lives, both come to the same."""
    for trial in _counted(study)[:count]:
        if trial.state == TrialState.RUNNING and PARAMETER in trial.params:
            study.tell(trial.number, objective(trial.params[PARAMETER]), skip_if_finished=True)
        elif trial.state == TrialState.RUNNING:  # ended before its number was drawn
            study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def _asked(trial: FrozenTrial) -> float | None:
    """The number of a trial, also of one that waits."""
    return trial.system_attrs.get("fixed_params", trial.params).get(PARAMETER)
