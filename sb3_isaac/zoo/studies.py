"""Optuna studies that several processes and machines share: what they are about, workers that died, seeds."""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import sys
import warnings
from typing import Any, Callable, Dict, Optional

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import TrialState

from sb3_isaac.zoo.storages import GRACE, StorageError, explained, open_storage, shown


def load_study(storage: Optional[str], name: str) -> Any:
    """An existing study.

    :raises StorageError: there is none of that name, or its storage cannot be used
    """
    opened = open_storage(storage, must_exist=True)
    with explained(storage):
        try:
            return optuna.load_study(study_name=name, storage=opened)
        except KeyError as error:
            names = ", ".join(optuna.get_all_study_names(opened)) or "none"
            raise StorageError(f"There is no study {name!r} in {shown(storage)}; studies there: {names}.") from error


def load_trial(
    storage: str, study_name: str, number: Optional[int], *, purpose: Dict[str, str], convert: bool
) -> Dict[str, Any]:
    """Hyperparameters of a trial (None: the best), for ``--trial-id``.

    :param purpose: what the trial must be about
    :param convert: complete hyperparameters; otherwise what was drawn from the search space
    :raises StorageError: no such study, or its storage cannot be used
    :raises ValueError: no such trial, or it is not about this algorithm and environment
    """
    study = load_study(storage, study_name)
    with explained(storage):
        trials = study.get_trials(deepcopy=False)
        trial = study.best_trial if number is None else next((trial for trial in trials if trial.number == number), None)
    if trial is None:
        raise ValueError(f"Study {study_name!r} has no trial {number}: choose one from 0 to {len(trials) - 1}.")
    if study.user_attrs.get("purpose") != purpose or "hyperparams" not in trial.user_attrs:
        raise ValueError(f"Trial {trial.number} of study {study_name!r} is not about {purpose['algo']} on {purpose['env']}.")
    return dict(trial.user_attrs["hyperparams"] if convert else trial.params)


def open_study(
    storage: Optional[str], name: Optional[str], purpose: Dict[str, str], *, sampler: Any = None, pruner: Any = None
) -> Any:
    """A study to add trials to, made if it does not exist.

    :param purpose: what the trials are about (algorithm, environment); kept with the study
    :raises StorageError: the study holds other trials, which ours would spoil, or its storage cannot be used
    """
    opened = open_storage(storage)
    with explained(storage):
        study = optuna.create_study(
            storage=opened, study_name=name, sampler=sampler, pruner=pruner, direction="maximize", load_if_exists=True
        )
        # In this order: another worker that starts at the same time says its purpose before its first trial.
        has_trials = len(study.get_trials(deepcopy=False)) > 0
        found = study.user_attrs.get("purpose")
        if list(study.directions) != [StudyDirection.MAXIMIZE] or (has_trials or found is not None) and found != purpose:
            about = " ".join((found or {"": "trials of another program"}).values())
            where = f"Study {name!r} in {shown(storage)}"
            raise StorageError(f"{where} is about something else ({about}): choose another --study-name.")
        if found is None:
            study.set_user_attr("purpose", purpose)
            command = (shown(storage) if word == storage else word for word in sys.argv)
            study.set_user_attr("command", " ".join(command))
    return study


# -- workers ---------------------------------------------------------------------------------------------------------


def this_worker() -> Dict[str, Any]:
    """Which process runs a trial: its number, and the machine (or container) where that number means something."""
    namespace = ""
    with contextlib.suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    return {"host": f"{socket.gethostname()} {namespace}".strip(), "pid": os.getpid()}


def fail_dead_trials(study: Any) -> int:
    """Give up the trials whose worker was killed. Without this they would stay "running" for good.

    A worker of this machine is known by its process. Those of other machines are known by their heartbeats, which only
    databases have: Optuna looks at these itself before each trial.

    :return: how many
    """
    here, n_failed = this_worker(), 0
    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        worker = trial.user_attrs.get("worker")
        if worker is None:  # its worker was killed before it could say who it is, or is about to say it
            dead = trial.datetime_start < datetime.datetime.now() - datetime.timedelta(seconds=GRACE)
        else:
            dead = worker["host"] == here["host"] and worker["pid"] != here["pid"] and not _is_alive(worker["pid"])
        if dead:
            with contextlib.suppress(ValueError, RuntimeError):  # another worker was faster
                study.tell(trial.number, state=TrialState.FAIL)
                n_failed += 1
    return n_failed


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class SeededByTrial(BaseSampler):  # type: ignore[misc]
    """A sampler whose random numbers depend on the seed and the number of the trial, and not on the worker.

    With one sampler per worker, workers that were given the same seed would all try the same.

    :param make_sampler: makes a sampler that keeps nothing between trials (TPE, random), given a seed
    """

    def __init__(self, make_sampler: Callable[[int], BaseSampler], seed: int) -> None:
        self._make_sampler, self._seed = make_sampler, seed
        self._samplers: Dict[int, BaseSampler] = {}

    def before_trial(self, study: Any, trial: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # said once is enough
            sampler = self._make_sampler((self._seed + 1_000_003 * trial.number) % 2**32)
        self._samplers[trial.number] = sampler
        sampler.before_trial(study, trial)

    def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
        return self._samplers[trial.number].infer_relative_search_space(study, trial)

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> Any:
        return self._samplers[trial.number].sample_relative(study, trial, search_space)

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        return self._samplers[trial.number].sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
        sampler = self._samplers.pop(trial.number, None)
        if sampler is not None:  # as it is for another worker's trial, given up here
            sampler.after_trial(study, trial, state, values)
