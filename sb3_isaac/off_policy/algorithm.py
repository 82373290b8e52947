"""The base class of DQN and DDPG: how they are set up, collect transitions, train and are saved, in tensors."""

from __future__ import annotations

import inspect
import time
import warnings
from contextlib import suppress
from typing import Any, ClassVar, Dict, Iterable, List, Optional, Sequence, Tuple, cast

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import VectorizedActionNoise
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import RolloutReturn, TrainFreq, TrainFrequencyUnit

from sb3_isaac._native import in_c
from sb3_isaac.buffers.replay_buffer import DeviceReplayBuffer, ReplaySamples
from sb3_isaac.buffers.sb3_buffer import (
    NOT_FOR_STOCK,
    SB3_HAS_N_STEPS,
    STANDARD_BUFFERS,
    NStepReplayBuffer,
    as_stock_buffer,
    from_stock_buffer,
)
from sb3_isaac.buffers.storage import existing_device
from sb3_isaac.device import ranks, threads
from sb3_isaac.device.cuda_graph import check_compile, has_graphs, on_device
from sb3_isaac.device.eligibility import Watch, is_patched, package_of
from sb3_isaac.device.fast_mlp import parse_layers
from sb3_isaac.device.finite import NotFiniteError, is_finite
from sb3_isaac.device.flat_adam import optimizer_settings
from sb3_isaac.device.fused import describe_kernels, describe_none, in_triton
from sb3_isaac.envs.callback_locals import KNOWN_PACKAGES, StepLocals, is_known, root_callback
from sb3_isaac.envs.checkpoints import Checkpoints, resume_model, write_checkpoint
from sb3_isaac.envs.data_parallel import DataParallel, callback_of_rank
from sb3_isaac.envs.last_finite import (
    LastFinite,
    check_buffer,
    check_given,
    check_obs,
    finite_training,
    look_first,
    said,
)
from sb3_isaac.envs.model_files import save_model, save_whole, warn_without_statistics
from sb3_isaac.envs.tensor_path import (
    TensorVecEnv,
    check_tensors,
    compile_step,
    describe_path,
    layers,
    log_metrics,
    note_episodes,
    overridden,
    patched_buffer,
    supports_tensors,
    why_not_tensors,
)
from sb3_isaac.files.full_disk import outlive_a_full_disk
from sb3_isaac.files.readable import check_model, naming
from sb3_isaac.files.safe_model import reading_safely
from sb3_isaac.off_policy.rollout import Rollout
from sb3_isaac.off_policy.training_log import STEPS_PER_READ, TrainingLog
from sb3_isaac.off_policy.update import Updates
from sb3_isaac.settings.check import check, check_learn, defaults_of

BYPASSED = ("_sample_action", "_store_transition", "_update_info_buffer")
"""Methods that SB3 calls at each step and the tensor path does not: where they are overridden, SB3's way is taken."""
BYPASSED_OF_POLICY = ("predict", "obs_to_tensor", "scale_action", "unscale_action")
"""Likewise the policy's"""
MAX_REPLAY_RATIO = 1000.0
MAX_UPDATES_PER_STEP = 100.0
"""More gradient samples per transition, or more gradient steps per vectorised step, draw a warning."""


class TensorRun:
    """What training in tensors keeps besides SB3's attributes. Never saved."""

    def __init__(self, rollout: Rollout, updates: Updates, log: TrainingLog, exploration: Any, watch: Watch) -> None:
        self.rollout = rollout
        self.updates = updates
        self.log = log
        self.exploration = exploration
        """What the algorithm explores with"""
        self.exploration_settings: Any = None
        self.watch = watch
        self.fast: Any = None
        """The networks without autograd, see the algorithm's fast_policy.py; None: they go through autograd"""
        self.lrs: Sequence[Optional[th.Tensor]] = (None, None)
        """Of each optimizer () on the device, where a captured graph reads the learning rate; None: the optimizer has it"""
        self.locals = StepLocals()
        self.acting = False
        """Whether a callback is called for a step, so that SB3's ``_last_obs`` is what was acted on"""
        self.warned = False
        self.undisturbed = False
        """Whether no code of the user's runs between two updates, so that there is no need to look again what has changed"""


class TensorOffPolicyAlgorithm(OffPolicyAlgorithm):
    """What DQN and DDPG do alike in tensors. To stand before SB3's class among the bases of an algorithm.

    With an environment that has no tensor path every method is SB3's. For the options see the algorithms.
    """

    only_in_tensors: ClassVar[Dict[str, Any]] = {"reward_scale": 1.0, "spread_time_limits": False, "compile": False}
    """Options that exist on the tensor path only, and what they are where they are not used"""
    algo: ClassVar[str]
    """rl_zoo3's name of the algorithm"""
    loss_names: Tuple[str, ...] = ()
    """Logged as ``train/<name>``; :meth:`_update` adds to ``TrainingLog.loss_sums`` in this order."""

    _trained = 0
    """Calls of :meth:`train` in numpy"""
    _own_buffer: Any = None
    """The replay buffer that the model has made or loaded"""

    def __init__(
        self,
        policy: Any,
        env: Any,
        *args: Any,
        n_steps: int = 1,
        reward_scale: float = 1.0,
        spread_time_limits: bool = False,
        compile: bool = False,
        precision: Optional[str] = None,
        **kwargs: Any,
    ) -> None:
        self.precision = precision
        self.n_steps = n_steps
        self.reward_scale = reward_scale
        self.spread_time_limits = spread_time_limits
        self.compile = compile
        self.observations_are_normalized = False
        """Whether the env was in a VecNormalize that normalises observations, when the model was last saved"""
        self.vec_normalize: Any = None
        """Statistics that :func:`sb3_isaac.load` found beside the model, if it was given no env"""
        self._run: Optional[TensorRun] = None  # not None: training runs in tensors
        self._last_finite: Optional[LastFinite] = None
        self._checkpoints = Checkpoints(logs_rollouts=False)
        self._parallel = DataParallel()
        ranks.choose_gpu()
        own = {"n_steps": n_steps, "reward_scale": reward_scale, "spread_time_limits": spread_time_limits, "compile": compile}
        given = inspect.signature(super().__init__).bind_partial(policy, env, *args, **kwargs).arguments
        check("algorithm", {**given, **own, **vars(self)}, defaults=defaults_of(type(self)))
        if SB3_HAS_N_STEPS:
            kwargs["n_steps"] = n_steps
        super().__init__(policy, env, *args, **kwargs)

    # -- what an algorithm has to say --------------------------------------------------------------------------------

    aliases: ClassVar[Tuple[str, ...]]
    """Attributes of the model that are, as long as nobody replaces them, the policy's"""

    def _why_not_fast(self) -> Optional[str]:
        """Why its networks must go through autograd; None: :meth:`_make_fast_policy` makes them without."""
        other = [name for name in self.aliases if getattr(self, name) is not getattr(self.policy, name)]
        return f"{other[0]} of the model is not the policy's" if other else self._why_not_fast_policy()

    def _why_not_fast_policy(self) -> Optional[str]:
        raise NotImplementedError

    def _make_fast_policy(self) -> Any:
        raise NotImplementedError

    def _trained_nets(self) -> List[Any]:
        """The modules that :meth:`_make_fast_policy` computes."""
        raise NotImplementedError

    def _make_exploration(self, captures: bool) -> Any:
        """What :meth:`_act` explores with. ``captures``: for a CUDA graph, which reads tensors only."""
        raise NotImplementedError

    def _look_again(self, run: TensorRun) -> None:
        """Choose the path, as callbacks may have changed the policy."""
        if run.watch.root is not self.policy:
            run.watch = Watch(self.policy)
        if run.watch.changed(self._optimizers(), more=[getattr(self, name) for name in self.aliases]):
            run.fast = self._make_fast_policy() if self._why_not_fast() is None else None
        elif run.fast is not None:
            run.fast.refresh()

    def _act(self, obs: th.Tensor, random: bool) -> th.Tensor:
        """Actions for observations (N, *obs_shape), as the replay buffer keeps them, and random ones on demand."""
        raise NotImplementedError

    def _after_step(self, dones: th.Tensor) -> None:
        """Called after each step of the environments with ``dones`` (N,) bool, within the captured graph."""

    def _optimizers(self) -> List[th.optim.Optimizer]:
        """Those whose learning rate follows the schedule."""
        raise NotImplementedError

    def _update(self, samples: ReplaySamples, gradient_steps: int) -> None:
        """Gradient steps on the minibatches that ``samples`` consists of, one after the other."""
        raise NotImplementedError

    def _constants(self) -> Tuple[Any, ...]:
        """The settings that :meth:`_update` reads, which a captured graph keeps as they were."""
        raise NotImplementedError

    def _may_capture_updates(self) -> bool:
        """Whether all gradient steps do the same work."""
        return True

    def _loss_counts(self, before: int, after: int) -> Sequence[int]:
        """How often each loss was added to when ``_n_updates`` went from ``before`` to ``after``."""
        return [after - before]

    # -- set-up ------------------------------------------------------------------------------------------------------

    @property
    def tensor_vec_env(self) -> TensorVecEnv:
        """The environment, which has a tensor path."""
        return cast(TensorVecEnv, self.env)

    @property
    def _last_obs(self) -> Any:
        """SB3's: what the agent acts on next, and while a callback is called for a step, what it has acted on."""
        run: Optional[TensorRun] = self.__dict__.get("_run")
        if run is None or self.__dict__.get("_last_obs") is None or run.rollout.env is not self.tensor_vec_env:
            return self.__dict__.get("_last_obs")
        return run.rollout.last_obs(True)[0] if run.acting else run.rollout.shown_obs()

    @_last_obs.setter
    def _last_obs(self, obs: Any) -> None:
        self.__dict__["_last_obs"] = obs
        run: Optional[TensorRun] = self.__dict__.get("_run")
        if run is not None and obs is not None and not run.acting:
            run.rollout.act_on(obs, None)

    def _setup_model(self) -> None:
        if self._why_not_tensors() is not None:
            super()._setup_model()
        else:
            self._use_device_buffer()
            kwargs = dict(self.replay_buffer_kwargs)
            super()._setup_model()
            self.replay_buffer_kwargs = kwargs  # SB3 writes the model's gamma over the buffer's
        self._own_buffer = self.replay_buffer

    def _why_not_tensors(self) -> Optional[str]:
        """What keeps training from running in tensors: the environment, its device, another buffer, overridden methods."""
        parents = type(self).__mro__
        sb3_class = parents[parents.index(TensorOffPolicyAlgorithm) + 1]
        why_not = why_not_tensors(self.env, self.device) or overridden(self, sb3_class, BYPASSED)
        why_not = why_not or overridden(self, TensorOffPolicyAlgorithm, ("predict",))
        if why_not is None:
            policy = getattr(self, "policy", None)
            why_not = overridden(policy, BasePolicy, BYPASSED_OF_POLICY, self.policy_class)
        if why_not is not None:
            return why_not
        name = None
        if self.replay_buffer_class not in STANDARD_BUFFERS:
            name = cast(type, self.replay_buffer_class).__name__
        elif self.replay_buffer is not None and type(self.replay_buffer) is not DeviceReplayBuffer:
            if type(self.replay_buffer) not in STANDARD_BUFFERS:  # a file or an assignment may have brought it
                name = type(self.replay_buffer).__name__
        if name is not None:
            return f"replay_buffer_class={name} works in numpy. Faster: leave it out, or use DeviceReplayBuffer itself."
        if self.replay_buffer is not None:
            return patched_buffer(self.replay_buffer)
        return None

    @property
    def path(self) -> str:
        """How training runs: in tensors or in numpy, with or without autograd, and why not in the fastest way."""
        why_not_tensors, why_not_fast = self._why_not_tensors(), self._why_not_fast()
        path = describe_path(why_not_tensors, why_not_fast)
        if why_not_tensors is not None or why_not_fast is not None:
            return path + describe_none(self.device, self.compile and why_not_tensors is None)
        nets: Any = [parse_layers([net]) for net in self._trained_nets()]
        return path + describe_kernels(
            nets, self.device, self.precision, self.compile, isinstance(self.action_space, spaces.Box)
        )

    def _trains_in_tensors(self, why_not: Optional[str] = None) -> bool:
        """Asked before training starts.

        :param why_not: what keeps it from that besides :meth:`_why_not_tensors`
        :raises ValueError: if an IsaacVecEnv would be trained on in numpy, many times slower, or an option be ignored
        :raises RuntimeError: if ``compile`` is asked for and torch is too old
        """
        options = {name: getattr(self, name) != default for name, default in self.only_in_tensors.items()}
        options["n_steps (before SB3 2.7)"] = self.n_steps > 1 and not SB3_HAS_N_STEPS
        tensors = check_tensors(self.env, self.device, why_not or self._why_not_tensors(), options)
        if tensors and self.compile:
            check_compile(self.device)
        normalize = self.get_vec_normalize_env()
        if tensors and normalize is not None and normalize.observation_space.shape != self.observation_space.shape:
            raise ValueError(
                "The replay buffer keeps observations as they are before VecNormalize: put VecNormalize outside the other "
                "wrapper."
            )
        return tensors

    def set_random_seed(self, seed: Optional[int] = None) -> None:
        """As SB3's. Of several processes that train one model (torchrun) each has its own seed: this one and its rank."""
        super().set_random_seed(ranks.own_seed(seed))

    def _use_device_buffer(self) -> None:
        """Have a DeviceReplayBuffer, with what the present replay buffer holds.

        The attribute ``replay_buffer_class`` stays SB3's, so that stock SB3 loads the model.

        :raises ValueError: if the present buffer has another number of environments
        """
        self.replay_buffer_class = None  # SB3 fills in its standard class
        kwargs = self.replay_buffer_kwargs = dict(self.replay_buffer_kwargs)
        if self.n_steps != 1 and kwargs.get("n_steps", self.n_steps) != self.n_steps:
            raise ValueError(
                f"n_steps is {self.n_steps}, and {kwargs['n_steps']} in replay_buffer_kwargs: leave one of them out."
            )
        self.n_steps = int(kwargs.get("n_steps", self.n_steps))
        # A file has it as an attribute, because stock SB3's buffer would not take it
        if kwargs.get("storage_device") is not None:
            self.storage_device = str(kwargs["storage_device"])
        elif self.__dict__.get("storage_device") is not None:
            kwargs["storage_device"] = existing_device(self.storage_device)
        old = self.replay_buffer
        if old is not None and old.n_envs != self.n_envs and (isinstance(old, DeviceReplayBuffer) or old.size() > 0):
            raise ValueError(f"The replay buffer holds {old.n_envs} environments, the training has {self.n_envs}.")
        if isinstance(old, DeviceReplayBuffer):
            return
        if old is not None and old is not self._own_buffer:
            warnings.warn(
                f"The {type(old).__name__} that was assigned is copied into a DeviceReplayBuffer, which trains faster and is "
                "model.replay_buffer now: the other one gets no transitions. Assign a DeviceReplayBuffer to keep your own.",
                stacklevel=6,
            )
        options = {"device": self.device, "n_steps": self.n_steps, "gamma": self.gamma, **kwargs}
        if old is not None and old.size() > 0:
            self.replay_buffer = from_stock_buffer(old, options)
            return
        self.replay_buffer = DeviceReplayBuffer(
            self.buffer_size,
            self.observation_space,
            self.action_space,
            n_envs=self.n_envs,
            optimize_memory_usage=self.optimize_memory_usage,
            **options,
        )

    def learn(self, *args: Any, **kwargs: Any) -> Any:
        """As SB3's, on as many threads as pay unless their number was chosen, see ``device/threads.py``.

        :raises ValueError: ``total_timesteps`` below 0 or not a number, ``log_interval`` below 1
        :raises NotFiniteError: an observation, reward, action or loss was NaN or infinite. The model is then as it was when it
            was last seen to be finite: at most 100 steps of all environments ago.
        :raises RankLost: of several processes that train one model (torchrun) another one has died
        """
        learn = super().learn
        n_threads = threads.choose(self.policy, max(self.n_envs, self.batch_size), self.device)
        with self._checkpoints.learning(learn, args, kwargs) as arguments:
            check_learn(learn, (), arguments)
            together = self._parallel.learning(self, arguments)
            with on_device(self.device), threads.torch_threads(n_threads), together, finite_training(self):
                result = learn(**arguments)
                run = self._run
                if run is not None and not run.log.is_empty:  # a callback has changed how long training takes
                    self._read_log(run.log, arguments.get("log_interval", 4))
                return result

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: Any = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> Tuple[int, BaseCallback]:
        if self._run is not None and not self._run.log.is_empty:  # of somebody's own loop
            with suppress(NotFiniteError):  # which ended the last training, and was said
                self._read_log(self._run.log, None)
        went_before, self._run = self._run, None
        args = (total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        if not self._trains_in_tensors():
            result = super()._setup_learn(*args)
            check_obs(self._last_obs, "after the reset")
            return result
        self._use_device_buffer()
        env, buffer = self._compiled()
        envs_are_reset = reset_num_timesteps or self._last_obs is None
        # SB3 would make an object of the noise for each environment
        noise, self.action_noise = self.action_noise, None
        try:
            result = super()._setup_learn(*args)
        finally:
            self.action_noise = noise
        if envs_are_reset:
            if self.n_steps > 1:
                buffer.end_trajectories()
            if self.spread_time_limits:
                env.spread_time_limits()
        last_obs: Any = self._last_obs
        self._run = self._make_run(env, buffer)
        ours = (package_of(part) == "sb3_isaac" for part in (self, *layers(env)))
        known = not callable(self.learning_rate) or package_of(self.learning_rate) in (*KNOWN_PACKAGES, "rl_zoo3")
        self._run.undisturbed = known and all(ours) and not is_patched(self) and is_known(result[1])
        if not envs_are_reset and went_before is None:  # a file said where to go on
            self._run.rollout.act_on(last_obs, cast(Optional[np.ndarray], self._last_original_obs))
        elif not envs_are_reset and went_before is not None and went_before.rollout.is_told():
            self._run.rollout.act_on(*went_before.rollout.last_obs(acting=False))
        if type(self).collect_rollouts is not TensorOffPolicyAlgorithm.collect_rollouts:
            # which may be a loop of its own, that asks for _last_obs when it has stepped the environments
            self._run.rollout.act_on(*self._run.rollout.last_obs(acting=False))
        if self.verbose >= 1:
            print(f"Training runs {self.path}, on {threads.describe()}")
        return result

    def _compiled(self) -> Tuple[TensorVecEnv, DeviceReplayBuffer]:
        """Environment and replay buffer, which do their work as ``compile`` and ``precision`` say."""
        env, buffer = self.tensor_vec_env, cast(DeviceReplayBuffer, self.replay_buffer)
        buffer.in_c = in_c(self.compile, buffer.storage_device)
        buffer.in_triton = in_triton(self.precision, buffer.storage_device)
        compile_step(env, self.compile, self.precision)
        return env, buffer

    def _make_rollout(self, env: TensorVecEnv, buffer: DeviceReplayBuffer) -> Tuple[Rollout, Updates]:
        captures = self.compile and has_graphs(self.device)
        vec_normalize = self.get_vec_normalize_env()
        rollout = Rollout(env, vec_normalize, buffer, act=self._act, after_step=self._after_step, captures=captures)
        return rollout, Updates(vec_normalize, self._update, captures=captures)

    def _make_run(self, env: TensorVecEnv, buffer: DeviceReplayBuffer) -> TensorRun:
        rollout, updates = self._make_rollout(env, buffer)
        captures = updates.captures
        run = TensorRun(
            rollout=rollout,
            updates=updates,
            log=TrainingLog(env.num_envs, self.device, self.loss_names, self._episode_num),
            exploration=self._make_exploration(captures),
            watch=Watch(self.policy),
        )
        if captures:
            run.lrs = [th.zeros((), device=self.device) for _ in self._optimizers()]
        self._look_again(run)
        return run

    def _follow(self, why_not: Optional[str] = None) -> Optional[TensorRun]:
        """What training goes on with, as callbacks may have given the model another environment or replay buffer, or replaced
        methods that are then to be called; None: SB3's way, in numpy.

        :param why_not: what else asks for numpy
        :raises AssertionError: another environment has not been reset, as in SB3
        :raises ValueError: training would have to go on in numpy, and something that is in use exists in tensors only
        """
        run = self._run
        if run is None or (run.undisturbed and why_not is None):
            return run
        why_not, rollout = why_not or self._why_not_tensors(), run.rollout
        same = rollout.belongs_to(self.tensor_vec_env, self.get_vec_normalize_env())
        if why_not is None and same and isinstance(self.replay_buffer, DeviceReplayBuffer):
            return run
        if ranks.world_size() > 1:
            raise ValueError(f"Of several ranks callbacks must leave environment, buffer and methods as they are: {self.path}")
        self._trains_in_tensors(why_not)  # says what cannot be
        if self.__dict__["_last_obs"] is None:
            raise AssertionError(
                "_last_obs was not set: in a callback reset the environment, and then set_env(env, force_reset=False)."
            )
        self._read_log(run.log, None)
        last_obs, original = rollout.last_obs(acting=False)
        if why_not is None:
            self._use_device_buffer()
            env, buffer = self._compiled()
            run.rollout, run.updates = self._make_rollout(env, buffer)
            run.rollout.act_on(last_obs, last_obs if original is None else original)
            if self.n_steps > 1 and env is not rollout.env:
                buffer.end_trajectories()
            return run
        self._run, self._last_obs, self._last_original_obs = None, last_obs, original
        noise = self.action_noise
        if noise is not None and self.n_envs > 1 and not isinstance(noise, VectorizedActionNoise):
            self.action_noise = VectorizedActionNoise(noise, self.n_envs)  # as SB3 does when training starts
        return None

    def _init_callback(self, callback: Any, progress_bar: bool = False) -> BaseCallback:
        made = outlive_a_full_disk(self, super()._init_callback(callback_of_rank(callback), progress_bar))
        if self._why_not_tensors() is not None:
            made = look_first(made)
        return root_callback(made) if supports_tensors(self.env) else made

    # -- the rollout -------------------------------------------------------------------------------------------------

    def collect_rollouts(
        self,
        env: Any,
        callback: BaseCallback,
        train_freq: TrainFreq,
        replay_buffer: Any,
        action_noise: Any = None,
        learning_starts: int = 0,
        log_interval: Optional[int] = None,
    ) -> RolloutReturn:
        """SB3's ``collect_rollouts`` in tensors. Callbacks find SB3's names in ``locals``, copied to the host if looked at."""
        self._checkpoints.at_boundary(self, callback)
        given = {"env": env, "action_noise": action_noise, "replay_buffer": replay_buffer}
        other = [name for name, value in given.items() if value is not getattr(self, name)]
        elsewhere = "replay_buffer" in other and type(replay_buffer) is DeviceReplayBuffer
        if elsewhere:
            other.remove("replay_buffer")  # which tensors can go into as well
        why_not = f"collect_rollouts was given another {' and '.join(other)} than the model's." if other else None
        before, run = self._run, self._follow(why_not)
        if run is None:
            noise = action_noise if before is None or "action_noise" in other else self.action_noise
            return super().collect_rollouts(env, callback, train_freq, replay_buffer, noise, learning_starts, log_interval)
        env, log = self.tensor_vec_env, run.log
        n_envs = env.num_envs * ranks.world_size()
        if n_envs > 1 and train_freq.unit == TrainFrequencyUnit.EPISODE:
            raise ValueError(f"train_freq in episodes needs a single environment, here are {n_envs}: count in steps.")
        num_collected_steps, num_collected_episodes = 0, 0
        progress, continue_training = 0, True
        start, env_seconds = time.perf_counter(), run.rollout.env_seconds
        callback.on_rollout_start()
        if not run.undisturbed:
            self._look_again(run)
        if run.fast is None:
            self.policy.set_training_mode(False)
        run.rollout.begin(cast(Any, replay_buffer if elsewhere else self.replay_buffer), run.fast, run.exploration)
        while progress < train_freq.frequency:
            run.locals.next_step()
            step = run.rollout.step(random=self.num_timesteps < learning_starts)
            log.note_episodes(step.episodes)
            run.acting = True
            self.num_timesteps += n_envs
            num_collected_steps += 1
            actions = run.locals.array("actions", step.actions)
            buffer_actions = run.locals.array("buffer_actions", step.buffer_actions)
            new_obs, rewards = (run.locals.array(*x) for x in (("new_obs", step.result.obs), ("rewards", step.result.reward)))
            dones = run.locals.array("dones", step.dones)
            infos = run.locals.infos(env.make_infos(step.result), *step.episodes)
            callback.update_locals(locals())
            continue_training = self._parallel.on_step(callback)
            if not continue_training:
                break
            changed = run.locals.changes("rewards")
            run.rollout.store(step, changed[0].look() if changed else None)
            self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
            self._on_step()
            if train_freq.unit == TrainFrequencyUnit.EPISODE:
                num_collected_episodes += int(step.dones())
            progress = num_collected_steps if train_freq.unit == TrainFrequencyUnit.STEP else num_collected_episodes
            if log.is_full:
                self._read_log(log, log_interval)
                if self._parallel.stops:
                    break
        run.acting = False
        log.seconds["rollout"] += time.perf_counter() - start
        log.seconds["env"] += run.rollout.env_seconds - env_seconds
        if log.is_full or not continue_training or self.num_timesteps >= self._total_timesteps:
            self._read_log(log, log_interval)
        continue_training = continue_training and not self._parallel.stops
        self._parallel.merge_statistics(self)
        if continue_training:
            callback.on_rollout_end()
        return RolloutReturn(num_collected_steps * env.num_envs, num_collected_episodes, continue_training)

    def _read_log(self, log: TrainingLog, log_interval: Optional[int]) -> None:
        """Read the device, which training waits for nowhere else, and tell SB3's logger.

        :param log_interval: as SB3, in episodes, but at most one log for each read; None: never
        :raises NotFiniteError: if anything since the last time was not finite
        """
        run, last_finite = cast(TensorRun, self._run), self._last_finite
        health = [run.rollout.health()] + ([] if last_finite is None else [last_finite.look()])
        losses, returns, lengths, healthy = log.read(th.stack([x.float() for x in health]))
        if not np.isfinite(healthy[0]) and run.rollout.first_not_finite() is not None:
            raise NotFiniteError("There is NaN or infinity in the replay buffer.")
        if last_finite is not None:
            last_finite.accept(healthy[1])
        run.rollout.stored = 0
        returns, lengths, losses = self._parallel.exchange(self, returns, lengths, losses)
        for name, loss in losses.items():
            self.logger.record(f"train/{name}", loss)
        if losses:
            self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
            self.logger.record("train/replay_ratio", log.replay_ratio)
        if len(returns) > 0:
            self._episode_num += len(returns)
            note_episodes(run.rollout.env, self.ep_info_buffer, returns, lengths)
        if log_interval is not None and self._episode_num - log.episodes_logged >= log_interval:
            log.episodes_logged = self._episode_num
            for name, seconds in log.seconds.items():
                self.logger.record(f"time/{name}", seconds)
                log.seconds[name] = 0.0
            log_metrics(run.rollout.env, self.logger)
            # SB3 2.4 has the old name only, SB3 2.9 warns about it
            (getattr(self, "dump_logs", None) or self._dump_logs)()

    # -- the update --------------------------------------------------------------------------------------------------

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        run = self._follow()
        if run is None:
            super().train(gradient_steps, batch_size)
            self._trained += 1
            if self._last_finite is not None and self._trained % STEPS_PER_READ == 0:
                self._last_finite.check()
            return
        start = time.perf_counter()
        optimizers = self._optimizers()
        self._update_learning_rate(optimizers)
        for lr, optimizer in zip(run.lrs, optimizers):
            if lr is not None:
                lr.fill_(optimizer.param_groups[0]["lr"])
        if not run.undisturbed:
            self._look_again(run)
        elif run.fast is not None:
            run.fast.refresh()
        if run.fast is None:
            self.policy.set_training_mode(True)
        before = self._n_updates
        settings = [optimizer_settings(optimizer) for optimizer in optimizers]
        constants = (run.fast, self.gamma, self.reward_scale, settings, *self._constants())
        run.updates.graphed_update.enabled = run.updates.captures and run.fast is not None and self._may_capture_updates()
        n_threads = th.get_num_threads()
        if run.fast is not None:
            n_threads = threads.for_chunks(self.device, run.fast.shares_out(batch_size))
        with threads.torch_threads(n_threads):
            run.updates.run(cast(DeviceReplayBuffer, self.replay_buffer), gradient_steps, batch_size, constants)
        self._n_updates = before + gradient_steps  # a captured update does not count
        counts = self._loss_counts(before, self._n_updates)
        run.log.count_losses(counts)
        if run.fast is not None:
            for adam, count in zip(run.fast.adams, counts):
                adam.sync(count)
        run.log.seconds["update"] += time.perf_counter() - start
        self._note_replay_ratio(run, gradient_steps, batch_size)
        if self.num_timesteps >= self._total_timesteps:  # no rollout follows that would read them
            self._read_log(run.log, None)

    def _not_finite_input(self) -> Optional[str]:
        """Where NaN or infinity began in the steps since the last look, which are dropped from there on, if there is any."""
        run = self._run
        if run is None:
            return None
        n, origin = min(run.rollout.stored, run.rollout.buffer.size()), run.rollout.first_not_finite()
        if origin is not None:
            run.rollout.buffer.drop_newest(n - origin.step)
        n_envs = self.n_envs * ranks.world_size()
        return said(origin, self.num_timesteps - n * n_envs, n_envs)

    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> Any:
        """As SB3's.

        :raises ValueError: an observation is NaN or infinite
        """
        check_given(observation)
        return super().predict(observation, *args, **kwargs)

    def _note_replay_ratio(self, run: TensorRun, gradient_steps: int, batch_size: int) -> None:
        """Keep the replay ratio: gradient samples for each transition collected. Warns once where it makes no sense."""
        per_step = gradient_steps / cast(TrainFreq, self.train_freq).frequency
        ratio = run.log.replay_ratio = per_step * batch_size / self.n_envs
        if not run.warned and (ratio > MAX_REPLAY_RATIO or per_step > MAX_UPDATES_PER_STEP):
            run.warned = True
            why = " (gradient_steps=-1 means one per environment and step)" if self.gradient_steps < 0 else ""
            warnings.warn(
                f"{per_step:g} gradient steps for each step of {self.n_envs} environments{why}, a replay ratio of "
                f"{ratio:g}: training will be slow, set gradient_steps to a small number.",
                stacklevel=3,
            )

    # -- files -------------------------------------------------------------------------------------------------------

    def save(self, path: Any, exclude: Optional[Iterable[str]] = None, include: Optional[Iterable[str]] = None) -> None:
        """Save what stock SB3, of any version and without a GPU, can load, and the statistics of VecNormalize beside it.

        :func:`sb3_isaac.load` reads both. A file takes the place of an older one only when it is complete.
        """
        swapped: Dict[str, Any] = {}
        if self.replay_buffer_class in STANDARD_BUFFERS:
            # Each SB3 version chooses its own class again, and its arguments
            kwargs = self.replay_buffer_kwargs
            swapped["replay_buffer_class"] = None
            swapped["replay_buffer_kwargs"] = {key: kwargs[key] for key in kwargs if key not in NOT_FOR_STOCK}
            swapped["n_steps"] = kwargs.get("n_steps", self.n_steps)
            if SB3_HAS_N_STEPS and swapped["n_steps"] > 1 and kwargs.get("gamma", self.gamma) != self.gamma:
                # SB3's choice would have the model's gamma
                swapped["replay_buffer_class"] = NStepReplayBuffer
                swapped["replay_buffer_kwargs"].update(n_steps=swapped["n_steps"], gamma=kwargs["gamma"])
                swapped["n_steps"] = 1  # SB3 warns that its class ignores it
        run = self._run
        if run is not None and self._last_obs is not None and run.rollout.env is self.tensor_vec_env:
            last_obs = run.rollout.last_obs(run.acting)
            # On a GPU nobody has looked yet. Without any, training goes on with a reset
            finite = all(obs is None or is_finite(obs) for obs in last_obs)
            swapped["_last_obs"], swapped["_last_original_obs"] = last_obs if finite else (None, None)
        before = {name: getattr(self, name) for name in swapped}
        self.__dict__.update(swapped)
        try:
            save_model(self, lambda file: super(TensorOffPolicyAlgorithm, self).save(file, exclude, include), path)
        finally:
            self.__dict__.update(before)

    @classmethod
    def load(cls, *args: Any, trust: bool = True, **kwargs: Any) -> Any:
        """As SB3's. Warns if the statistics of VecNormalize are missing that the model was trained with.

        :param trust: True: as SB3's, which runs what the file holds: lambdas and classes of your own, or whatever somebody put
            there. False: runs nothing
        :raises UntrustedFileError: without ``trust``, if the model cannot be had without running something
        :raises ValueError: the file is damaged, or a model of another algorithm
        """
        check("algorithm", kwargs, defaults=defaults_of(cls))
        path = args[0] if args else kwargs.get("path")
        check_model(path, cls.algo)
        with reading_safely(trust, kwargs):
            model: Any = super().load(*args, **kwargs)
        if model.env is not None:
            warn_without_statistics(model, model.env, path)
        return model

    def __getstate__(self) -> Dict[str, Any]:
        """Of a copy: it goes on where this model is, without what its training keeps, some of which cannot be copied."""
        state = {**vars(self), "_run": None}
        run = self._run
        if run is not None and state["_last_obs"] is not None and run.rollout.env is self.tensor_vec_env:
            state["_last_obs"], state["_last_original_obs"] = run.rollout.last_obs(run.acting)
        return state

    def _excluded_save_params(self) -> List[str]:
        return [
            *super()._excluded_save_params(),
            "_run",
            "_checkpoints",
            "_parallel",
            "_last_finite",
            "_trained",
            "_own_buffer",
            "vec_normalize",
        ]

    def save_checkpoint(self, path: Any, replay_buffer: bool = True) -> None:
        """Save all that training depends on, for :meth:`resume`. docs/resume.md says what that is.

        Beside ``path.zip``, which is what :meth:`save` writes, there will be ``path_state.pt``, ``path_replay_buffer.pt``, the
        statistics of VecNormalize, and ``path.json``, without which the others do not count: whoever kills the process leaves
        the last checkpoint whole. Called by a callback, it is done after the updates that follow this rollout.

        :param path: with or without ".zip"
        :param replay_buffer: save it too; without it, what is resumed is another training
        :raises OSError: a file cannot be written
        """
        self._checkpoints.ask(lambda: write_checkpoint(self, path, replay_buffer))

    resume = classmethod(resume_model)

    def _run_state(self, packer: Any) -> Dict[str, Any]:
        """What a checkpoint needs of what training keeps: the log, and where the exploration's noise is."""
        if self._run is None:
            return {"noise": packer.pack(self.action_noise, "action_noise")}
        return {"log": packer.attributes(self._run.log), "exploration": packer.pack(self._run.exploration, "exploration")}

    def _set_run_state(self, unpacker: Any, state: Dict[str, Any], same_learn: bool) -> None:
        run = self._run
        if run is None:
            unpacker.unpack(state.get("noise"), self.action_noise)
            return
        if same_learn and "log" in state:
            unpacker.attributes(run.log, state["log"])
            unpacker.unpack(state["exploration"], run.exploration)
        if self.__dict__["_last_obs"] is not None:
            run.rollout.act_on(self.__dict__["_last_obs"], cast(Optional[np.ndarray], self._last_original_obs))

    def save_replay_buffer(self, path: Any) -> None:
        """Save the replay buffer as SB3's own, which stock SB3 loads too. An older file is replaced by a complete one only.

        :param path: a path, to which ".pkl" is added if it has no suffix, or an open file
        :raises NotFiniteError: it holds NaN or infinity; a file that is there stays as it is
        """
        buffer = self.replay_buffer
        check_buffer(buffer)
        if isinstance(buffer, DeviceReplayBuffer):
            self.replay_buffer = as_stock_buffer(buffer)
        try:
            save_whole(super().save_replay_buffer, path, ".pkl")
        finally:
            self.replay_buffer = buffer

    def load_replay_buffer(self, path: Any, truncate_last_traj: bool = True, trust: bool = False) -> None:
        """As SB3's.

        :param trust: whether the file may hold objects of any class, whose code is run
        :raises UntrustedFileError: without ``trust``, if it holds some
        :raises ValueError: it is damaged or of another kind
        """
        with reading_safely(trust), naming(path, "a replay buffer", every_error=True):
            super().load_replay_buffer(path, truncate_last_traj)
        self._own_buffer = self.replay_buffer
        if self._why_not_tensors() is None:
            self._use_device_buffer()
