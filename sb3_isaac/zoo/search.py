"""``-optimize`` with rl_zoo3 on our environments: what a trial is, and what a search leaves behind.

zoo's flags mean what they mean in zoo. Different here: the search spaces (:mod:`sb3_isaac.zoo.spaces`); evaluations on many
environments at once; one set of environments for all trials; a trial that runs out of memory, makes NaN or takes too long
is pruned, its reason kept as user attribute ``reason``, and the search goes on; several workers can share a study, come and
go (:mod:`sb3_isaac.zoo.studies`). There are three settings, given with ``-params``, as zoo has no flags for them:

``trial_timeout:60``
    Seconds that a trial may take. Checked at every step of the environments; an update is not interrupted.
``"write_yaml:'FILE'"``
    The best hyperparameters as an entry in FILE. Beside the report they are written in any case.
``"n_envs:[128,512,2048]"``
    A list: the search chooses among these.

``sb3-isaac optimize`` has the flags ``--trial-timeout 60`` and ``--write-yaml FILE`` for the first two.
"""

from __future__ import annotations

import copy
import functools
import gc
import math
import os
import time
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import gymnasium as gym
import optuna
import torch as th
from gymnasium import spaces
from optuna.exceptions import TrialPruned
from optuna.study import MaxTrialsCallback
from optuna.trial import TrialState
from stable_baselines3.common.vec_env import VecEnv

from sb3_isaac import backends
from sb3_isaac.evaluation.callbacks import BatchedEvalCallback
from sb3_isaac.settings import check
from sb3_isaac.zoo.report import new_text, report
from sb3_isaac.zoo.spaces import Regime, sample
from sb3_isaac.zoo.studies import SeededByTrial, explained, fail_dead_trials, open_study, this_worker

STEPS_PER_EVALUATION, MAX_EVALUATIONS = 10_000, 10
"""A trial is evaluated once in so many timesteps, at most so many times, if ``--n-evaluations`` is not given: pruners see more
than with zoo's once in 100,000 timesteps."""

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
"""What torch says of it, in a RuntimeError."""


class Search:
    """What one worker keeps during a search: its settings, and the environments that trials borrow.

    :param manager: an :class:`~sb3_isaac.zoo.manager.IsaacExperimentManager`
    :param entry: the hyperparameters that trials start from; the settings of a search are taken out of it
    :raises ValueError: a setting that makes no sense, or a YAML file that an entry cannot be added to
    """

    KEYS = ("trial_timeout", "write_yaml")
    """What ``-params`` may hold in a search, beside hyperparameters"""

    def __init__(self, manager: Any, entry: Dict[str, Any]) -> None:
        self.manager = manager
        self.trial_timeout = entry.pop("trial_timeout", None)
        check("entry", {"trial_timeout": self.trial_timeout})
        self.write_yaml = entry.pop("write_yaml", None)
        if self.write_yaml is not None:  # whether it can be written, asked before a search and not after it
            new_text(Path(self.write_yaml), manager.env_name.gym_id, {"n_envs": 1}, comment="")
        n_envs = entry.get("n_envs", 1)
        self.n_envs: Tuple[int, ...] = tuple(n_envs) if isinstance(n_envs, (list, tuple)) else (n_envs,)
        if not self.n_envs or not all(isinstance(n, int) and n >= 1 for n in self.n_envs):
            raise ValueError(f"n_envs must be a whole number of at least 1, or a list of such numbers, got {n_envs!r}.")
        entry["n_envs"] = max(self.n_envs)
        self.entry = copy.deepcopy(entry)
        if manager.n_evaluations is None:
            n_timesteps = manager.n_timesteps if manager.n_timesteps > 0 else int(entry.get("n_timesteps", 0))
            manager.n_evaluations = max(1, min(n_timesteps // STEPS_PER_EVALUATION, MAX_EVALUATIONS))
        # Isaac Gym's one simulator cannot grow.
        backends.reserve(max(*self.n_envs, manager.n_eval_envs))
        self._free: Dict[Tuple[str, int], List[VecEnv]] = {}

    @functools.cached_property
    def continuous(self) -> bool:
        """Whether actions are continuous."""
        # gym.make would take the "mjlab:" of an id for a module
        spec = gym.spec(self.manager.env_name.gym_id)
        return isinstance(gym.make(spec, **self.manager.with_device(self.manager.env_kwargs)).action_space, spaces.Box)

    def borrow(self, kind: str, env_fns: Sequence[Any], **kwargs: Any) -> VecEnv:
        """In the place of a VecEnv class: environments that an earlier trial gave back, or new ones."""
        free = self._free.setdefault((kind, len(env_fns)), [])
        env: VecEnv = free.pop() if free else self.manager.vec_env_class(env_fns, **kwargs)
        if self.manager.n_jobs != 1 and env.unwrapped.tensor_env.one_per_process:  # type: ignore[attr-defined]
            raise RuntimeError("One process has one simulator: start more workers on the study instead of --n-jobs.")
        return env

    def give_back(self, kind: str, env: VecEnv) -> None:
        """Keep the environments, without their wrappers, for the next trial."""
        self._free[kind, env.num_envs].append(env.unwrapped)  # type: ignore[arg-type]

    def close(self) -> None:
        for envs in self._free.values():
            while envs:
                envs.pop().close()


class TrialCallback(BatchedEvalCallback):
    """Evaluates between updates, at fractions of the trial, and ends it when it is pruned or its time is over.

    Trials with other horizons are compared at the same number of timesteps, not of updates.
    """

    def __init__(self, eval_env: VecEnv, trial: optuna.Trial, manager: Any, *, deadline: float) -> None:
        folder = manager.optimization_log_path
        folder = folder and os.path.join(folder, f"trial_{trial.number}")
        super().__init__(
            eval_env,
            n_eval_episodes=manager.n_eval_episodes,
            eval_freq=1,
            log_path=folder,
            best_model_save_path=folder,
            deterministic=manager.deterministic_eval,
            verbose=0,
        )
        self.trial, self.manager, self.deadline = trial, manager, deadline
        self.evaluated = 0
        self.reason: Optional[str] = None

    def _on_rollout_start(self) -> None:
        manager, done = self.manager, self.model.num_timesteps
        due = manager.n_evaluations * done // manager.n_timesteps
        if self.evaluated < due < manager.n_evaluations:
            score = self.evaluate(due)
            if self.trial.should_prune():
                self.reason = f"{manager.pruner} pruner: mean return {score:.1f} after {done} timesteps"

    def _on_step(self) -> bool:
        if time.perf_counter() > self.deadline:
            self.reason = f"trial_timeout: stopped after {self.model.num_timesteps} timesteps"
        return self.reason is None

    def evaluate(self, step: int) -> float:
        """Mean return of many episodes, reported to Optuna as the trial's value at ``step``."""
        super()._on_step()
        score = float(self.last_mean_reward)
        if not math.isfinite(score):
            raise FloatingPointError(f"the mean return is {score}")
        self.trial.report(score, step)
        self.trial.set_user_attr("seen", int(time.time()))
        self.evaluated = step
        return score


def run_trial(search: Search, trial: optuna.Trial) -> float:
    """Train with hyperparameters from the search space. Returns the mean return at the end.

    :raises optuna.TrialPruned: by the pruner; or the time is over, memory ran out, NaN came up, or the algorithm refused
        the hyperparameters. User attribute ``reason`` tells.
    """
    start = time.perf_counter()
    trial.set_user_attr("worker", this_worker())
    fail_dead_trials(trial.study)  # of workers that died since this one began
    manager = search.manager
    regime = Regime(search.n_envs, manager.n_timesteps, continuous=search.continuous)
    hyperparams = sample(manager.algo, trial, regime, entry=search.entry)
    trial.set_user_attr("hyperparams", hyperparams)
    try:
        score, reason = train(search, trial, hyperparams, deadline=start + (search.trial_timeout or math.inf))
    except (AssertionError, ValueError, ArithmeticError) as error:
        score, reason = math.nan, f"{type(error).__name__}: {error}"
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(text in str(error) for text in OUT_OF_MEMORY):
            raise
        score, reason = math.nan, "out of memory: " + " ".join(str(error).split())[:200]
    gc.collect()  # the model and its callbacks refer to each other; here the exception, which held them, is gone
    if th.cuda.is_available():
        th.cuda.empty_cache()
    trial.set_user_attr("seconds", round(time.perf_counter() - start, 2))
    if reason is not None:
        trial.set_user_attr("reason", reason)
        raise TrialPruned(reason)
    return score


def train(search: Search, trial: optuna.Trial, hyperparams: Dict[str, Any], *, deadline: float) -> Tuple[float, Optional[str]]:
    """Train and evaluate. Returns the score, and why the trial was stopped early (None if it was not)."""
    manager = copy.copy(search.manager)  # its settings become the trial's
    manager.verbose = manager.verbose if manager.verbose >= 2 else 0
    manager.normalize, manager.normalize_kwargs = False, {}
    arguments, manager.env_wrapper, callbacks, manager.vec_env_wrapper = manager._preprocess_hyperparams(hyperparams)
    manager.vec_env_class = functools.partial(search.borrow, "train")
    env = manager.create_envs(manager.n_envs, no_log=True)
    manager.vec_env_class = functools.partial(search.borrow, "eval")
    eval_env = manager.create_envs(manager.n_eval_envs, eval_env=True, no_log=True)
    arguments = manager._preprocess_action_noise(arguments, {}, env)
    # No seed, as in zoo: a score that one seed alone reaches is not worth finding
    model = manager.algorithm_class(env=env, verbose=manager.verbose, device=manager.device, **arguments)
    callback = TrialCallback(eval_env, trial, manager, deadline=deadline)
    model.learn(manager.n_timesteps, callback=[*callbacks, callback], log_interval=10**9)
    score = math.nan if callback.reason else callback.evaluate(manager.n_evaluations)
    search.give_back("train", env)
    search.give_back("eval", eval_env)
    return score, callback.reason


def optimize(search: Search, pruner: optuna.pruners.BasePruner) -> None:
    """Add trials to the study, then report: what rl_zoo3's ``hyperparameters_optimization`` does.

    :raises sb3_isaac.zoo.studies.StorageError: see there
    :raises ValueError: no trial was completed
    """
    manager = search.manager
    if manager.storage is not None and manager.study_name is None:
        print("No --study-name: Optuna chooses one, which other workers need to know.")
    sampler = manager.make_sampler(manager.seed)
    if manager.sampler in ("tpe", "random"):
        sampler = SeededByTrial(manager.make_sampler, manager.seed)
    study = open_study(manager.storage, manager.study_name, manager.purpose, sampler=sampler, pruner=pruner)
    if manager.verbose > 0:
        print(f"Optimizing hyperparameters: study {study.study_name}, {manager.sampler} sampler, {manager.pruner} pruner")
    total = manager.max_total_trials
    # Running trials count too, or each worker would add one too many.
    counted = [TrialState.COMPLETE, TrialState.RUNNING, TrialState.PRUNED]
    until = {"n_trials": manager.n_trials} if total is None else {"callbacks": [MaxTrialsCallback(total, states=counted)]}
    with explained(manager.storage):
        n_failed = fail_dead_trials(study)
        if n_failed:
            print(f"Gave up {n_failed} unfinished trials of workers that are gone.")
        gc.collect()
        gc.freeze()  # the collection after each trial skips what exists now, and so takes no time
        try:
            if total is None or len(study.get_trials(deepcopy=False, states=counted)) < total:
                study.optimize(manager.objective, n_jobs=manager.n_jobs, show_progress_bar=manager.show_progress, **until)
        except KeyboardInterrupt:
            print("Interrupted: the study keeps its finished trials.")
        finally:
            gc.unfreeze()
            search.close()
        fail_dead_trials(study)
        study.sampler = manager.make_sampler(manager.seed)  # the study is saved, and the search is not part of it
        report(manager, study, search.write_yaml)
