"""rl_zoo3's ExperimentManager for the environments of this package."""

from __future__ import annotations

import contextlib
import copy
import difflib
import functools
import io
import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, Optional, Tuple, Type

import gymnasium as gym
import rl_zoo3.exp_manager
import rl_zoo3.utils
import torch as th
from gymnasium import spaces
from huggingface_sb3 import EnvironmentName
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.vec_env import VecEnv

import sb3_isaac
from sb3_isaac import backends
from sb3_isaac.device import ranks, threads
from sb3_isaac.envs.checkpoints import OLD_FILE
from sb3_isaac.envs.ids import split
from sb3_isaac.envs.make import task_file, task_hyperparams
from sb3_isaac.envs.tensor_path import supports_tensors
from sb3_isaac.evaluation.callbacks import StopWhenSolved
from sb3_isaac.files import checkpoint as files
from sb3_isaac.files.atomic import staging
from sb3_isaac.files.full_disk import output_goes_on, save_parts
from sb3_isaac.files.safe_model import reading_safely
from sb3_isaac.files.trust import trusted
from sb3_isaac.settings import check
from sb3_isaac.zoo import entries, resume
from sb3_isaac.zoo.batched_vec_env import batched_vec_env
from sb3_isaac.zoo.entry_files import entry_name, entry_of, hyperparams_dir, known_keys, start, with_classes
from sb3_isaac.zoo.frame_stack import InnerFrameStack
from sb3_isaac.zoo.run_folders import check_agent, hold, let_go, make_run_folder
from sb3_isaac.zoo.run_settings import check_hyperparams, saved_entry, without_texts
from sb3_isaac.zoo.signals import Signals
from sb3_isaac.zoo.stock_algorithms import saving_whole

if TYPE_CHECKING:  # Optuna's storages and SQLAlchemy take time to import, and only a search needs them
    from sb3_isaac.zoo.search import Search

ALGOS: Dict[str, Type[BaseAlgorithm]] = {"ppo": sb3_isaac.PPO, "dqn": sb3_isaac.DQN, "ddpg": sb3_isaac.DDPG}
"""The algorithms of this package, by rl_zoo3's names. The other algorithms of rl_zoo3 work on our environments as they are."""

DISCRETE_ALGOS = ("dqn", "qrdqn")
CONTINUOUS_ALGOS = ("ddpg", "td3", "sac", "tqc", "crossq")
OFF_POLICY_ALGOS = DISCRETE_ALGOS + CONTINUOUS_ALGOS

DEFAULT_EVAL_FREQ, DEFAULT_EVAL_EPISODES, DEFAULT_N_EVAL_ENVS = 25_000, 5, 1
"""rl_zoo3.train's defaults. Whether the user has chosen these very numbers, only the command line can tell."""
EXPLORATION = ["exploration_fraction", "exploration_initial_eps", "exploration_final_eps"]
EXCLUDED = {
    "batch_size": ["n_minibatches"],
    "n_minibatches": ["batch_size"],
    **dict.fromkeys(EXPLORATION, ["per_env_epsilon"]),
    "per_env_epsilon": EXPLORATION,
}
"""Hyperparameters that say the same thing: with -params, the one given there is in the place of the file's."""
N_EVALUATIONS, N_EVAL_EPISODES = 10, 64
"""What stands in for the defaults: evaluations of a whole run, and episodes of each (all at once, so they cost one)."""
N_EVALUATIONS_UNTIL_SOLVED = 20


class IsaacExperimentManager(ExperimentManager):  # type: ignore[misc]
    """rl_zoo3's ExperimentManager for the environments of this package.

    :raises ValueError: the algorithm does not fit the action space, a device that does not exist, an unknown key in the
        hyperparameter file
    """

    algorithms = ALGOS
    """Algorithms that stand in for rl_zoo3's of the same names; ``{}`` trains with stock SB3."""
    # Attributes of rl_zoo3, which has no types
    env_name: Any
    env_kwargs: Dict[str, Any]
    eval_env_kwargs: Dict[str, Any]
    eval_freq: int
    save_freq: int
    log_interval: int
    n_envs: int
    seed: int
    monitor_kwargs: Dict[str, Any]
    n_eval_episodes: int
    n_eval_envs: int
    trial_id: Any
    save_path: str
    params_path: str
    has_made_folder = False

    def __init__(self, args: Any, algo: str, env_id: str, log_folder: str, *more: Any, **kwargs: Any) -> None:
        check("sb3-isaac train", {**vars(args), **kwargs}, flags=True)
        super().__init__(args, algo, env_id, log_folder, *more, **kwargs)
        if ranks.world_size() > 1:
            if self.optimize_hyperparameters or algo not in self.algorithms:
                what = "A search is" if self.optimize_hyperparameters else f"{algo}, which is SB3's own, trains in"
                raise ValueError(
                    f"{what} one process, and torchrun has started {ranks.world_size()}: start it without torchrun."
                )
            ranks.join()
            self.seed = args.seed = ranks.from_first(self.seed)  # rl_zoo3 draws one where none is given
        self.resumes = bool((self.custom_hyperparams or {}).pop("resume", False))
        """Whether the run of the checkpoint goes on in its own folder (--resume)"""
        if self.resumes:
            self.save_path = os.path.dirname(self.trained_agent)
            self.params_path = os.path.join(self.save_path, self.env_name)
        self.signals = Signals()
        self.torch_device = backends.resolve_device(self.device)
        entries.check_writable(log_folder, "-f")
        for name, flag in (("tensorboard_log", "-tb"), ("optimization_log_path", "--optimization-log-path")):
            if getattr(self, name):
                entries.check_writable(getattr(self, name), flag)
        if self.trained_agent:
            check_agent(self.trained_agent, algo)
        if getattr(args, "num_threads", -1) > 0:
            threads.ask_for(args.num_threads)
        if self.verbose > 0 and kwargs.get("vec_env_type") == "subproc":
            print("--vec-env subproc is for an env_wrapper: without one, all environments are one batch in this process")
        self.vec_env_class: Any = functools.partial(batched_vec_env, otherwise=self.vec_env_class)
        self.task_file = task_file(env_id)
        """Of a user's own task; None: it is the cartpole, or a task typed into an interpreter."""
        self.is_own_task = "entry" in gym.spec(env_id).kwargs
        own_file = hyperparams_dir() / f"{algo}.yml"
        self.config_given = kwargs.get("config") is not None
        if not self.config_given and self.is_own_task:
            self.config = str(task_hyperparams(env_id, algo) or self._suggested_file())
        elif not self.config_given and own_file.is_file():
            self.config = str(own_file)
        self.batched_defaults = self.eval_freq == DEFAULT_EVAL_FREQ and not _on_command_line("--eval-freq")
        if self.n_eval_episodes == DEFAULT_EVAL_EPISODES and not _on_command_line("--eval-episodes"):
            self.n_eval_episodes = N_EVAL_EPISODES
        if self.n_eval_envs == DEFAULT_N_EVAL_ENVS and not _on_command_line("--n-eval-envs"):
            self.n_eval_envs = self.n_eval_episodes
        self.steps_per_update = 1
        self.stop_when_solved: Optional[StopWhenSolved] = None
        """Set by --until-solved."""
        self.search: Optional[Search] = None
        """Set by -optimize, for the algorithms of this package."""
        self.trial_hyperparams: Optional[Dict[str, Any]] = None
        """Set by --trial-id."""
        if kwargs.get("trial_id") is not None:
            if not (self.storage and self.study_name):
                raise ValueError(f"--trial-id {self.trial_id} needs --storage and --study-name.")
            self.trial_id = str(self.trial_id)  # rl_zoo3 takes the number 0 for none

    # -- hyperparameters ---------------------------------------------------------------------------------------------

    def read_hyperparameters(self) -> Tuple[Dict[str, Any], Dict[str, Any]]:
        if self.is_own_task and not self.config_given and not Path(self.config).is_file():
            raise ValueError(self._no_entry())
        name = str(self.env_name.gym_id)
        if not self.resumes:
            name = entry_name(self.config, name)
            entries.check_file(self.config, name)
        try:
            # rl_zoo3 prints them at every level
            silent = contextlib.redirect_stdout(io.StringIO()) if self.verbose <= 0 else contextlib.nullcontext()
            with silent:
                hyperparams, saved = self._saved_hyperparameters() if self.resumes else self._read_entry(name)
        except ValueError as error:  # no entry: the wrong algorithm?
            _check_action_space(self.algo, self.env_name.gym_id, self.env_kwargs)
            if self.is_own_task and str(error).startswith("Hyperparameters not found"):
                raise ValueError(self._no_entry()) from None
            raise
        given = {key: value for key, value in (self.custom_hyperparams or {}).items() if value is not None}
        for other in {other for key in given for other in EXCLUDED.get(key, ())} - set(given):
            if hyperparams.pop(other, None) is not None:
                print(f"Without {other} of {self.config}, as -params say otherwise")
            saved.pop(other, None)
        if self.trial_hyperparams is not None:  # drop what the file has and the trial did not have
            for key in set(hyperparams) - set(self.trial_hyperparams) - set(self.custom_hyperparams or {}):
                del hyperparams[key], saved[key]
        if self.optimize_hyperparameters and self.algo in self.algorithms:
            from sb3_isaac.zoo.search import Search

            self.search = Search(self, hyperparams)
        known = known_keys(self.algorithm_class) | set(self.search.KEYS if self.search else ())
        for key in hyperparams:
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {close[0]!r}?" if close else "remove it."
                if self.is_own_task and not self.config_given:
                    hint += f" Entries for {self.algo} alone belong in {self._suggested_file()}."
                raise ValueError(f"Unknown hyperparameter {key!r} for {self.algo} in {self.config} or -params: {hint}")
        if "n_timesteps" not in hyperparams and self.n_timesteps <= 0:
            raise ValueError(f"n_timesteps is missing for {self.env_name.gym_id} in {self.config}: add it, or pass -n.")
        where = f"{self.config} or -params"
        entries.check_entry(hyperparams, self.algo, self.algorithm_class, where, sampled=self.search is not None)
        if not hyperparams.get("env_wrapper") and not isinstance(hyperparams.get("env_kwargs"), str):
            # A wrapper may change the actions and the observations
            n_eval_envs = self.n_eval_envs if self.eval_freq > 0 else 0
            env_kwargs = {**(hyperparams.get("env_kwargs") or {}), **self.env_kwargs}
            if split(self.env_name.gym_id):
                # A process may have one simulator, which is made now, to ask for the spaces, and used later.
                backends.reserve(max(hyperparams.get("n_envs", 1), n_eval_envs))
                env_kwargs = self.with_device(env_kwargs)
            env = _check_action_space(self.algo, self.env_name.gym_id, env_kwargs)
            found = (self.algorithm_class, env.observation_space, env.action_space)
            if self.eval_env_kwargs is not self.env_kwargs:
                gym.make(gym.spec(self.env_name.gym_id), **(self.eval_env_kwargs or {}))
            entries.check_room(hyperparams, *found, self.torch_device, where, n_eval_envs)
            if self.algo in ALGOS and not hyperparams.get("vec_env_wrapper") and not hyperparams.get("frame_stack"):
                entries.check_networks(with_classes(hyperparams), *found, where)
        return hyperparams, saved

    def _read_entry(self, name: str) -> Tuple[Dict[str, Any], Dict[str, Any]]:
        """rl_zoo3's, of the entry of that name."""
        env_name = self.env_name
        if name == env_name.gym_id:
            return super().read_hyperparameters()  # type: ignore[no-any-return]
        print(f"{self.config} has no entry {env_name.gym_id}: training starts from {name}")
        self.env_name = EnvironmentName(name)
        try:
            return super().read_hyperparameters()  # type: ignore[no-any-return]
        finally:
            self.env_name = env_name

    def _saved_hyperparameters(self) -> Tuple[Dict[str, Any], Dict[str, Any]]:
        """Those of the run that goes on, and what -params say otherwise."""
        self.config = os.path.join(self.params_path, "config.yml")
        saved = saved_entry(self.config)
        given: Dict[str, Any] = self.custom_hyperparams or {}
        # What the run began with is said again; the checkpoint has it, or what another --resume has made of it
        for name in [name for name, value in given.items() if name in saved and saved[name] == value]:
            del given[name]
        saved.update(given)
        return dict(saved), saved

    def _suggested_file(self) -> Path:
        """Where hyperparameters of an own task are looked for."""
        name = f"{self.task_file.stem if self.task_file else 'my_task'}.{self.algo}.yml"
        return self.task_file.with_name(name) if self.task_file else Path(name)

    def _no_entry(self) -> str:
        """Hyperparameters of an own task are missing: where they may be, and some to start with."""
        env_id = self.env_name.gym_id
        where = self.config if Path(self.config).is_file() else f"{self.config}, or in any file and add -conf FILE"
        return (
            f"Hyperparameters not found for {self.algo}-{env_id}: put an entry in {where}. A start: "
            f"{env_id}: {start(self.algo)}"
        )

    @property
    def algorithm_class(self) -> Type[BaseAlgorithm]:
        """Ours where there is one, else rl_zoo3's."""
        return self.algorithms.get(self.algo) or rl_zoo3.utils.ALGOS[self.algo]

    def _preprocess_hyperparams(self, hyperparams: Dict[str, Any]) -> Any:
        with entries.explained_entry(f"{self.config} or -params"):
            plain = without_texts(hyperparams, f"{self.config} or -params")
            return self._make_objects(with_classes(plain))  # a copy: config.yml keeps the plain values

    def _make_objects(self, hyperparams: Dict[str, Any]) -> Any:
        if hyperparams.get("noise_type") is None:  # rl_zoo3 would hand it on to the algorithm
            hyperparams.pop("noise_type", None)
        hyperparams.setdefault("n_timesteps", self.n_timesteps)  # with -n the entry need not say it
        self.keep_checkpoints = hyperparams.pop("keep_checkpoints", None)
        threshold = hyperparams.pop("reward_threshold", None)
        threshold = gym.spec(self.env_name.gym_id).reward_threshold if threshold is None else threshold
        if hyperparams.pop("until_solved", False) and not self.optimize_hyperparameters:
            if threshold is None or self.eval_freq <= 0:
                raise ValueError(
                    f"--until-solved needs evaluations (leave out --eval-freq {self.eval_freq})"
                    if self.eval_freq <= 0
                    else f"--until-solved needs to know when {self.env_name.gym_id} is solved: add reward_threshold to its "
                    f"entry in {self.config}, or -params reward_threshold:475."
                )
            self.stop_when_solved = StopWhenSolved(float(threshold))
        if "env_kwargs" in hyperparams:  # rl_zoo3 < 2.6 does not know the key
            from_file = hyperparams.pop("env_kwargs") or {}
            same_for_evaluation = self.eval_env_kwargs is self.env_kwargs
            self.env_kwargs = {**from_file, **self.env_kwargs}
            if same_for_evaluation:
                self.eval_env_kwargs = self.env_kwargs
        # PPO changes its parameters once in n_steps, DQN and DDPG once in train_freq: nothing new to see in between.
        frequency = hyperparams.get("n_steps" if self.algo not in OFF_POLICY_ALGOS else "train_freq", 1)
        self.steps_per_update = frequency if isinstance(frequency, int) else 1
        return super()._preprocess_hyperparams(hyperparams)

    def _preprocess_action_noise(
        self, hyperparams: Dict[str, Any], saved_hyperparams: Dict[str, Any], env: VecEnv
    ) -> Dict[str, Any]:
        if self.algo in self.algorithms and not supports_tensors(env):
            only_in_tensors = getattr(self.algorithm_class, "only_in_tensors", {})
            if only_in_tensors and self.search is not None:
                raise ValueError(
                    f"The search space of {self.algo} is for a batch of environments: leave out env_wrapper, or the "
                    "vec_env_wrapper that has no tensor path."
                )
            used = {key: value for key, value in only_in_tensors.items() if hyperparams.get(key, value) != value}
            if used:
                raise ValueError(
                    f"{', '.join(used)} cannot be used with single environments, or a wrapper that has no tensor path: add "
                    f"-params {' '.join(f'{key}:{value}' for key, value in used.items())}, or leave the wrapper out."
                )
        arguments: Dict[str, Any] = super()._preprocess_action_noise(hyperparams, saved_hyperparams, env)
        return arguments

    # -- environments ------------------------------------------------------------------------------------------------

    def with_device(self, env_kwargs: Optional[Dict[str, Any]]) -> Dict[str, Any]:
        """The simulation runs where the model does, unless told otherwise."""
        default = {} if "device" in gym.spec(self.env_name.gym_id).kwargs else {"device": self.device}
        return {**default, **(env_kwargs or {})}

    def create_envs(self, n_envs: int, eval_env: bool = False, no_log: bool = False) -> Any:
        given = self.env_kwargs, self.eval_env_kwargs
        no_log = no_log or ranks.rank() > 0  # the first has the episodes of all
        if self.resumes and os.path.isfile(os.path.join(self.save_path, "0.monitor.csv")):
            self.monitor_kwargs = {**self.monitor_kwargs, "override_existing": False}
        self.env_kwargs, self.eval_env_kwargs = (self.with_device(kwargs) for kwargs in given)
        try:
            return super().create_envs(n_envs, eval_env, no_log)
        finally:
            self.env_kwargs, self.eval_env_kwargs = given

    def _maybe_normalize(self, env: VecEnv, eval_env: bool) -> VecEnv:
        if self.frame_stack is not None and self.algo in OFF_POLICY_ALGOS:
            inside = InnerFrameStack(env, self.frame_stack)
            normalized: VecEnv = super()._maybe_normalize(inside, eval_env)
            return env if normalized is inside else normalized
        return super()._maybe_normalize(env, eval_env)  # type: ignore[no-any-return]

    def create_callbacks(self) -> None:
        """rl_zoo3 divides its frequencies by n_envs: with 4096 environments the default would evaluate every 6 steps.

        Here nothing happens more often than the parameters change, and the default is ten evaluations in a run.
        """
        own_envs, self.n_envs = self.n_envs, self.n_envs * ranks.world_size()  # timesteps are counted of all ranks
        try:
            self._create_callbacks()
        finally:
            self.n_envs = own_envs

    def _create_callbacks(self) -> None:
        n_calls = -(-self.n_timesteps // self.n_envs)  # environment steps of the run
        if self.eval_freq > 0 and self.batched_defaults:
            n_evaluations = N_EVALUATIONS if self.stop_when_solved is None else N_EVALUATIONS_UNTIL_SOLVED
            self.eval_freq = max(n_calls // n_evaluations, 1) * self.n_envs
        per_update = self.steps_per_update * self.n_envs
        # Rounded up; those that are off (0 or less) stay so.
        self.eval_freq, self.save_freq = (-(-freq // per_update) * per_update for freq in (self.eval_freq, self.save_freq))
        if self.verbose > 0 and self.eval_freq > 0 and not self.optimize_hyperparameters:
            print(f"Evaluating {self.n_eval_episodes} episodes every {self.eval_freq} timesteps")
        if ranks.rank() > 0:  # the first evaluates
            self.eval_freq, self.stop_when_solved = -1, None
        super().create_callbacks()
        if self.stop_when_solved is not None:
            evaluation = next(callback for callback in self.callbacks if isinstance(callback, EvalCallback))
            evaluation.callback, self.stop_when_solved.parent = self.stop_when_solved, evaluation

    # -- the run -----------------------------------------------------------------------------------------------------

    def setup_experiment(self) -> Any:
        if self.resumes:
            hold(self.save_path)
        if self.resumes and ranks.rank() == 0:
            resume.cut_logs(self.trained_agent)
        zoo_algos = rl_zoo3.exp_manager.ALGOS
        stock = {name: saving_whole(algorithm) for name, algorithm in zoo_algos.items()}
        rl_zoo3.exp_manager.ALGOS = {**stock, **self.algorithms}  # for a while: runs on other environments keep rl_zoo3's
        experiment = None
        try:
            experiment = super().setup_experiment()
            return experiment
        finally:
            rl_zoo3.exp_manager.ALGOS = zoo_algos
            if experiment is None:  # it failed, or it is a search, whose results are elsewhere
                self.remove_run_folder()

    def create_log_folder(self) -> None:
        """Make the run's folder, ``ALGO/ENV_N`` with the first N that nobody else has, also if others start at this moment."""
        first = ranks.rank() == 0
        if not self.resumes:
            self.save_path = ranks.from_first(make_run_folder(self.save_path) if first else None)
            self.params_path = os.path.join(self.save_path, str(self.env_name))
            self.has_made_folder = first
        hold(self.save_path)
        if first:
            super().create_log_folder()
        resume.note_agents(self.save_path)

    def remove_run_folder(self) -> None:
        """Remove the folder that this run has made, if there is no model in it: nothing came of it."""
        if self.has_made_folder and not list(Path(self.save_path).glob("*.zip")):
            shutil.rmtree(self.save_path, ignore_errors=True)
            let_go()

    def _load_pretrained_agent(self, hyperparams: Dict[str, Any], env: VecEnv) -> BaseAlgorithm:
        """For -i: a checkpoint of ours goes on exactly, with what -params say otherwise; another file as rl_zoo3 has it."""
        with reading_safely(given=hyperparams):
            if self.algo not in self.algorithms or files.read(self.trained_agent) is None:
                if self.algo in self.algorithms:
                    warnings.warn(OLD_FILE.format(path=self.trained_agent), stacklevel=2)
                return super()._load_pretrained_agent(hyperparams, env)  # type: ignore[no-any-return]
            changed = {name: hyperparams[name] for name in self.custom_hyperparams or () if name in hyperparams}
            changed.update(tensorboard_log=self.tensorboard_log, verbose=self.verbose)
            algorithm: Any = self.algorithm_class
            resumed: BaseAlgorithm = algorithm.resume(self.trained_agent, env, self.device, **changed)
        if ranks.rank() == 0:
            resume.take_along_best(self.trained_agent, self.save_path)
        return resumed

    def _save_config(self, saved_hyperparams: Dict[str, Any]) -> None:
        if self.resumes or ranks.rank() > 0:  # they stay as they were
            print(f"Log path: {self.save_path}")
            return
        folder = self.params_path
        with staging(folder) as inside:
            self.params_path = inside
            try:
                super()._save_config(saved_hyperparams)
            finally:
                self.params_path = folder

    def learn(self, model: BaseAlgorithm) -> None:
        written = [callback for callback in self.callbacks if isinstance(callback, resume.CheckpointCallback)]
        checkpoint = written[0] if written else resume.CheckpointCallback(1, self.save_path, resume.PREFIX)
        checkpoint.model, checkpoint.keep, checkpoint.whole_buffer = model, self.keep_checkpoints, self.save_replay_buffer
        self.signals.install(model, checkpoint.write)
        try:
            self._learn(model)
        except BaseException:
            self.signals.restore()
            raise
        finally:
            checkpoint.wait()

    def save_trained_model(self, model: BaseAlgorithm) -> None:
        """As rl_zoo3's, but what is small comes first, and what cannot be saved does not keep the rest from it.

        :raises OSError: something was not saved; the message says what
        :raises SystemExit: after a signal, with the status that tells of it
        """
        with output_goes_on():
            print(f"Saving to {self.save_path}", flush=True)
        folder, statistics = Path(self.save_path), model.get_vec_normalize_env() if self.normalize else None
        parts: Dict[str, Callable[[], Any]] = {"model": lambda: model.save(folder / str(self.env_name))}
        if statistics is not None:
            parts["statistics of VecNormalize"] = lambda: statistics.save(str(Path(self.params_path, "vecnormalize.pkl")))
        if self.save_replay_buffer and hasattr(model, "save_replay_buffer"):
            parts["replay buffer"] = lambda: model.save_replay_buffer(folder / "replay_buffer.pkl")
        try:
            save_parts(parts if ranks.rank() == 0 else {})
            ended = self.signals.received is not None or getattr(getattr(model, "_checkpoints", None), "ends", False)
            if not ended and ranks.rank() == 0:
                resume.note_end(self.save_path)
        finally:
            self.signals.restore()
        if self.signals.status is not None:
            raise SystemExit(self.signals.status)

    def _learn(self, model: BaseAlgorithm) -> None:
        if self.log_interval == -1 and self.algo in OFF_POLICY_ALGOS:
            self.log_interval = max(4, self.n_envs)  # SB3 counts episodes: every 4 is many times a step here
        n_threads = th.get_num_threads()
        if self.algo not in self.algorithms:  # which see to their threads themselves
            n_threads = threads.choose(model.policy, getattr(model, "batch_size", 0) or self.n_envs, model.device)
        try:
            with threads.torch_threads(n_threads), output_goes_on():
                super().learn(model)
        except Exception as error:
            if getattr(model, "_n_updates", 1) == 0:
                self.remove_run_folder()
            elif isinstance(error, FloatingPointError) and self.algo in self.algorithms:
                self.save_trained_model(model)  # as it was when it was last seen to be finite
            raise
        stop = self.stop_when_solved
        if stop is not None and not stop.solved and self.signals.received is None:
            print(
                f"Not solved in {model.num_timesteps:,} steps: no two evaluations in a row reached {stop.reward_threshold:g}. "
                "Train longer with -n, or try another --seed"
            )

    # -- hyperparameter search: see search ---------------------------------------------------------------------------

    @property
    def purpose(self) -> Dict[str, str]:
        """What the trials of a study are about, and trials of other studies are not."""
        return {"algo": self.algo, "env": self.env_name.gym_id}

    def make_sampler(self, seed: int) -> Any:
        """The sampler of ``--sampler`` with a seed of its own."""
        manager = copy.copy(self)
        manager.seed = seed
        return manager._create_sampler(self.sampler)

    def objective(self, trial: Any) -> float:
        if self.search is None:
            return float(super().objective(trial))
        from sb3_isaac.zoo.search import run_trial

        return run_trial(self.search, trial)

    def hyperparameters_optimization(self) -> None:
        if self.search is None:
            super().hyperparameters_optimization()
        else:
            from sb3_isaac.zoo.search import optimize

            optimize(self.search, pruner=self._create_pruner(self.pruner))

    def load_trial(self, storage: str, study_name: str, trial_id: Any = None, convert: bool = True) -> Dict[str, Any]:
        """Hyperparameters of a trial (None: the best), for ``--trial-id``.

        :param convert: complete hyperparameters; otherwise what was drawn from the search space
        :raises StorageError: no such study, or its storage cannot be used
        :raises ValueError: no such trial, or it is not about this algorithm and environment
        """
        number = None if trial_id is None else int(trial_id)
        if self.algo not in self.algorithms:
            return dict(super().load_trial(storage, study_name, number, convert))
        from sb3_isaac.zoo.studies import explained, load_study

        study = load_study(storage, study_name)
        with explained(storage):
            trials = study.get_trials(deepcopy=False)
            trial = study.best_trial if number is None else next((trial for trial in trials if trial.number == number), None)
        if trial is None:
            raise ValueError(f"Study {study_name!r} has no trial {number}: choose one from 0 to {len(trials) - 1}.")
        if study.user_attrs.get("purpose") != self.purpose or "hyperparams" not in trial.user_attrs:
            about = f"{self.algo} on {self.env_name.gym_id}"
            raise ValueError(f"Trial {trial.number} of study {study_name!r} is not about {about}.")
        if not trusted():
            what = f"Trial {trial.number} of study {study_name!r}"
            check_hyperparams(trial.user_attrs["hyperparams"], what, own=entry_of(self.config, self.env_name.gym_id))
        if convert:
            self.trial_hyperparams = trial.user_attrs["hyperparams"]
        return dict(trial.user_attrs["hyperparams"] if convert else trial.params)


def _on_command_line(flag: str) -> bool:
    """Whether this program was given a flag, which argparse takes abbreviated too: ``--eval-ep 5``, ``--eval-episodes=5``."""
    names = (argument.partition("=")[0] for argument in sys.argv[1:])
    return any(len(name) > 2 and flag.startswith(name) for name in names)


def _check_action_space(algo: str, env_id: str, env_kwargs: Dict[str, Any]) -> Any:
    """One of the environments, which has no simulator before its first reset.

    :raises ValueError: an algorithm for the other kind of actions
    """
    env = gym.make(gym.spec(env_id), **env_kwargs)
    discrete = isinstance(env.action_space, spaces.Discrete)
    needs_discrete = algo in DISCRETE_ALGOS
    if algo in OFF_POLICY_ALGOS and discrete != needs_discrete:
        kind, name = ("discrete", "Discrete-") if needs_discrete else ("continuous", "-")
        if split(env_id):
            way_out = "add --env-kwargs discrete:True n_bins:5" if needs_discrete else "leave out discrete and n_bins"
        elif "entry" not in gym.spec(env_id).kwargs:
            way_out = f"use --env {env_id.replace('Discrete', '').replace('-', name)}"
        elif needs_discrete:
            way_out = "if it has one action, add --env-kwargs discrete:True n_bins:5"
        else:
            way_out = "register it without discrete and without a Discrete action_space"
        raise ValueError(f"{algo} needs {kind} actions, which {env_id} has not: {way_out}.")
    return env
