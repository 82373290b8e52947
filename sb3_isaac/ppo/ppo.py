"""PPO whose rollouts and updates stay on the device of the environment."""

from __future__ import annotations

import inspect
import time
from functools import partial
from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple, cast

import stable_baselines3
import torch as th
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import update_learning_rate
from stable_baselines3.common.vec_env import VecEnv

from sb3_isaac.buffers.rollout_buffer import DeviceRolloutBuffer
from sb3_isaac.device import ranks, threads
from sb3_isaac.device.cuda_graph import check_compile, on_device
from sb3_isaac.device.flat_adam import FlatAdam, share_storage
from sb3_isaac.device.fused import describe_kernels, describe_none
from sb3_isaac.device.host import to_host
from sb3_isaac.envs.callback_locals import StepLocals, looks_at_no_step, root_callback
from sb3_isaac.envs.checkpoints import Checkpoints, resume_model, write_checkpoint
from sb3_isaac.envs.data_parallel import DataParallel, callback_of_rank
from sb3_isaac.envs.last_finite import LastFinite, check_given, check_obs, finite_training, look_first, said
from sb3_isaac.envs.model_files import save_model, warn_without_statistics
from sb3_isaac.envs.tensor_path import (
    TensorVecEnv,
    check_tensors,
    compile_step,
    describe_path,
    log_metrics,
    note_episodes,
    overridden,
    patched_buffer,
    supports_tensors,
    why_not_tensors,
)
from sb3_isaac.files.full_disk import outlive_a_full_disk
from sb3_isaac.files.readable import check_model
from sb3_isaac.files.safe_model import reading_safely
from sb3_isaac.ppo.fast_policy import FastActorCriticPolicy, parsed_layers
from sb3_isaac.ppo.rollout import Rollout
from sb3_isaac.ppo.update import AdaptiveLR, PPOUpdate, Settings, unchecked_distributions
from sb3_isaac.settings.check import check, check_learn, defaults_of

SB3_PPO = stable_baselines3.PPO
"""Looked up once: a program may put our class into its place."""


class _Run:
    """What training in tensors keeps besides SB3's attributes. Never saved."""

    def __init__(self) -> None:
        self.rollout: Optional[Rollout] = None
        self.update: Optional[PPOUpdate] = None
        self.locals = StepLocals()
        self.acted_on: Optional[Callable[[], th.Tensor]] = None
        """During a rollout: the observations (N, *obs_shape) of the last step's actions"""

    def __reduce__(self) -> Any:
        """A copy of the model begins with none of it: some of it cannot be copied."""
        return _Run, ()


class PPO(SB3_PPO):
    """SB3's PPO: the same arguments, files, callbacks, logs and results, with everything on one device.

    With an :class:`~sb3_isaac.IsaacVecEnv` nothing crosses to the host in a rollout or an update except one read per
    rollout and one per update. Plain MLP policies (``MlpPolicy`` with tanh, ReLU, ELU or LeakyReLU) are updated without
    autograd. With any other environment it is SB3's class.

    What differs on the tensor path: ``target_kl``, and ``adaptive_lr_kl`` of policies that go through autograd, have to wait
    for the device at every minibatch; callbacks find arrays in ``locals`` that are copied to the host when they are looked at
    (``device/host.py``) and are valid until the next step; ``ep_info_buffer`` and ``monitor.csv`` are filled once per rollout.

    All arguments of ``stable_baselines3.PPO`` are handed to it unchanged. These are added, by keyword only:

    :param n_minibatches: minibatches per epoch; sets ``batch_size``
    :param adaptive_lr_kl: the KL divergence of old and new policy that the learning rate is adapted to, before each
        step; 0.008 to 0.02 are usual. ``learning_rate`` is then the first one. For Gaussian and Categorical MLP policies
        the divergence is exact, for others SB3's estimate from the samples. Needs Adam.
    :param adaptive_lr_factor: the learning rate is divided by this above twice ``adaptive_lr_kl`` and multiplied below half
    :param adaptive_lr_min: lowest learning rate
    :param adaptive_lr_max: highest learning rate
    :param spread_time_limits: give the first episodes random ages, so that time-outs do not come all at once
    :param compile: on a GPU, capture the rollout, or each step of it where a callback looks at steps, and a minibatch of the
        update in CUDA graphs and compile the simulator's step with torch.compile (needs torch 2.4). On a CPU do it in C, which
        the machine's C compiler makes at the first use, in a few seconds; networks that are no small MLPs stay in PyTorch, and
        so does all where there is no compiler: :attr:`path` says why. The results are the same to rounding.
    :param precision: "fp32", "tf32" or "bf16": act with and update MLP policies of one or two hidden layers of at most 64
        units in Triton's kernels, where an update's matrix products have factors of this precision; with ``compile`` all
        minibatches of an update are one CUDA graph. None, and where there is no Triton, no GPU, or another network: the plain
        path. Experimental: checked in Triton's interpreter against the plain path, and compiled, but not yet run on a GPU.
    :raises ValueError: if an option is out of range
    """

    def __init__(
        self,
        policy: Any,
        env: Any,
        *args: Any,
        n_minibatches: Optional[int] = None,
        adaptive_lr_kl: Optional[float] = None,
        adaptive_lr_factor: float = 1.5,
        adaptive_lr_min: float = 1e-4,
        adaptive_lr_max: float = 1e-2,
        spread_time_limits: bool = False,
        compile: bool = False,
        precision: Optional[str] = None,
        **kwargs: Any,
    ) -> None:
        self.n_minibatches = n_minibatches
        self.adaptive_lr_kl = adaptive_lr_kl
        self.adaptive_lr_factor = adaptive_lr_factor
        self.adaptive_lr_min = adaptive_lr_min
        self.adaptive_lr_max = adaptive_lr_max
        self.adapted_lr: Optional[float] = None
        """The learning rate that ``adaptive_lr_kl`` has come to; None before the first update."""
        self.spread_time_limits = spread_time_limits
        self.compile = compile
        self.precision = precision
        self.observations_are_normalized = False
        """Whether the env was in a VecNormalize that normalises observations, when the model was last saved"""
        self.vec_normalize: Any = None
        """Statistics that :func:`sb3_isaac.load` found beside the model, if it was given no env"""
        self._run = _Run()
        self._last_finite: Optional[LastFinite] = None
        self._checkpoints = Checkpoints(logs_rollouts=True)
        self._parallel = DataParallel()
        ranks.choose_gpu()
        arguments = inspect.signature(SB3_PPO).bind(policy, env, *args, **kwargs)
        own = {
            "n_minibatches": n_minibatches,
            "adaptive_lr_kl": adaptive_lr_kl,
            "adaptive_lr_factor": adaptive_lr_factor,
            "adaptive_lr_min": adaptive_lr_min,
            "adaptive_lr_max": adaptive_lr_max,
            "spread_time_limits": spread_time_limits,
            "compile": compile,
            "precision": precision,
        }
        check("algorithm", {**arguments.arguments, **own}, algo="ppo", defaults=defaults_of(PPO))
        if adaptive_lr_min > adaptive_lr_max:
            raise ValueError(f"adaptive_lr_min={adaptive_lr_min} is greater than adaptive_lr_max={adaptive_lr_max}.")
        if n_minibatches is not None:
            # For SB3, which wants to warn of a batch_size that does not divide the rollout
            asked_for = arguments.arguments.get("batch_size")
            arguments.apply_defaults()
            batch_size = _batch_size(n_minibatches, arguments.arguments["n_steps"], getattr(env, "num_envs", 1))
            if asked_for not in (None, batch_size):
                raise ValueError(
                    f"n_minibatches={n_minibatches} makes minibatches of {batch_size} transitions, and batch_size={asked_for} "
                    "was given too: leave one of them out."
                )
            arguments.arguments["batch_size"] = batch_size
        super().__init__(**arguments.arguments)

    @classmethod
    def load(cls, *args: Any, trust: bool = True, **kwargs: Any) -> Any:
        """As SB3's. What is given here wins over what the file says the same with: ``batch_size`` over its ``n_minibatches``,
        ``learning_rate`` over the rate that ``adaptive_lr_kl`` had come to.

        :param trust: True: as SB3's, which runs what the file holds: lambdas and classes of your own, or whatever somebody put
            there. False: runs nothing
        :raises UntrustedFileError: without ``trust``, if the model cannot be had without running something
        """
        if "batch_size" in kwargs:
            kwargs.setdefault("n_minibatches", None)
        if "learning_rate" in kwargs:
            kwargs.setdefault("adapted_lr", None)
        check("algorithm", kwargs, algo="ppo", defaults=defaults_of(PPO))
        path = args[0] if args else kwargs.get("path")
        check_model(path, "ppo")
        with reading_safely(trust, kwargs):
            model = super().load(*args, **kwargs)
        if model.env is not None:
            warn_without_statistics(model, model.env, path)
        return model

    def save(self, path: Any, exclude: Optional[Iterable[str]] = None, include: Optional[Iterable[str]] = None) -> None:
        """As SB3's, and the statistics of VecNormalize beside the file, which :func:`sb3_isaac.load` reads. It takes the place
        of an older file only when it is complete."""
        save_model(self, lambda file: super(PPO, self).save(file, exclude, include), path)

    def save_checkpoint(self, path: Any) -> None:
        """Save all that training depends on, for :meth:`resume`. docs/resume.md says what that is.

        Beside ``path.zip``, which is what :meth:`save` writes, there will be ``path_state.pt``, the statistics of
        VecNormalize, and ``path.json``, without which the others do not count: whoever kills the process leaves the last
        checkpoint whole. Called by a callback, it is done after the update that follows this rollout.

        :param path: with or without ".zip"
        :raises OSError: a file cannot be written
        """
        self._checkpoints.ask(lambda: write_checkpoint(self, path))

    resume = classmethod(resume_model)

    def _run_state(self, packer: Any) -> Dict[str, Any]:
        """What a checkpoint needs of the tensors that training keeps."""
        # MKL rounds by where its operands lie: an optimizer that is flat has moved the parameters
        return {"flat": self._run.update is not None and self._run.update.adam is not None}

    def _set_run_state(self, unpacker: Any, state: Dict[str, Any], same_learn: bool) -> None:
        if state["flat"] and FlatAdam.supports(self.policy.optimizer):
            share_storage(self.policy.optimizer.param_groups[0]["params"])

    def _setup_model(self) -> None:
        asked_for = self.rollout_buffer_class
        if why_not_tensors(self.env, self.device) is None and asked_for in (None, RolloutBuffer):
            self.rollout_buffer_class = DeviceRolloutBuffer
        if self.n_minibatches is not None:
            self.batch_size = _batch_size(self.n_minibatches, self.n_steps, self.n_envs)
        super()._setup_model()
        self._run = _Run()
        # What is saved is SB3's own, so that stock SB3 loads it
        if self.rollout_buffer_class is DeviceRolloutBuffer:
            self.rollout_buffer_class = RolloutBuffer

    @property
    def _last_obs(self) -> Any:
        """SB3's: what the agent acts on next, and while a callback is called for a step, what it has acted on."""
        acted_on = self._run.acted_on if "_run" in self.__dict__ else None
        return self.__dict__.get("_last_obs") if acted_on is None else to_host(acted_on()).copy()

    @_last_obs.setter
    def _last_obs(self, obs: Any) -> None:
        self.__dict__["_last_obs"] = obs
        if "_run" in self.__dict__:
            self._run.acted_on = None

    def set_random_seed(self, seed: Optional[int] = None) -> None:
        """As SB3's. Of several processes that train one model (torchrun) each has its own seed: this one and its rank."""
        super().set_random_seed(ranks.own_seed(seed))

    def set_env(self, env: Any, force_reset: bool = True) -> None:
        """As SB3's; the rollout buffer is replaced if the new env needs another kind."""
        super().set_env(env, force_reset)
        if why_not_tensors(self.env, self.device) is None and type(self.rollout_buffer) is RolloutBuffer:
            self.rollout_buffer = DeviceRolloutBuffer(
                self.n_steps,
                self.observation_space,
                self.action_space,
                device=self.device,
                gamma=self.gamma,
                gae_lambda=self.gae_lambda,
                n_envs=self.n_envs,
                **self.rollout_buffer_kwargs,
            )

    def _why_not_tensors(self) -> Optional[str]:
        """What keeps training from running in tensors: the environment, its device, another buffer, overridden methods."""
        why_not = why_not_tensors(self.env, self.device) or overridden(self, stable_baselines3.PPO, ("_update_info_buffer",))
        if why_not is None and type(self.rollout_buffer) is not DeviceRolloutBuffer:
            name = type(self.rollout_buffer).__name__
            why_not = f"rollout_buffer_class={name} works in numpy. Faster: leave it out, or use DeviceRolloutBuffer itself."
        return why_not or patched_buffer(self.rollout_buffer)

    @property
    def path(self) -> str:
        """How training runs: in tensors or in numpy, with or without autograd, and why not in the fastest way."""
        why_not_tensors, why_not_fast = self._why_not_tensors(), FastActorCriticPolicy.why_not(self.policy, trains=True)
        path = describe_path(why_not_tensors, why_not_fast)
        if why_not_tensors is not None or why_not_fast is not None:
            return path + describe_none(self.device, self.compile and why_not_tensors is None)
        return path + describe_kernels(parsed_layers(self.policy), self.device, self.precision, self.compile)

    def _trains_in_tensors(self) -> bool:
        """:raises ValueError: if an option would be ignored, or the devices differ"""
        options = {"spread_time_limits": self.spread_time_limits, "compile": self.compile}
        tensors = check_tensors(self.env, self.device, self._why_not_tensors(), options)
        if tensors and self.compile:
            check_compile(self.device)
        return tensors

    def learn(self, *args: Any, **kwargs: Any) -> Any:
        """As SB3's, on as many threads as pay unless their number was chosen, see ``device/threads.py``.

        :raises ValueError: ``total_timesteps`` below 0 or not a number, ``log_interval`` below 1
        :raises NotFiniteError: an observation, reward, action or loss was NaN or infinite. The model is then as it was when it
            was last seen to be finite: after an update.
        :raises RankLost: of several processes that train one model (torchrun) another one has died
        """
        learn = super().learn
        n_threads = threads.choose(self.policy, max(self.n_envs, self.batch_size), self.device)
        with self._checkpoints.learning(learn, args, kwargs) as arguments:
            check_learn(learn, (), arguments)
            together = self._parallel.learning(self, arguments)
            with on_device(self.device), threads.torch_threads(n_threads), together, finite_training(self):
                return learn(**arguments)

    def dump_logs(self, iteration: int = 0) -> None:
        """As SB3's, which counts rollouts from 0 again where training was resumed."""
        rollouts = self._checkpoints.logs_now(iteration)
        if rollouts is not None:
            super().dump_logs(rollouts)

    def _dump_logs(self, iteration: int = 0) -> None:
        """Its name before SB3 2.6."""
        rollouts, parent = self._checkpoints.logs_now(iteration), super()
        if rollouts is not None:
            parent._dump_logs(rollouts)  # type: ignore[attr-defined]

    def _setup_learn(self, *args: Any, **kwargs: Any) -> Tuple[int, BaseCallback]:
        tensors = self._trains_in_tensors()
        if tensors:  # another model may have had it otherwise
            compile_step(cast(TensorVecEnv, self.env), self.compile, self.precision)
        before = self._last_obs
        result = super()._setup_learn(*args, **kwargs)
        check_obs(self._last_obs, "after the reset")
        if tensors and self.verbose >= 1:
            print(f"Training runs {self.path}, on {threads.describe()}")
        if tensors and self.spread_time_limits and self._last_obs is not before:  # SB3 has reset the environments
            self.env.spread_time_limits()  # type: ignore[union-attr]
        return result

    def _init_callback(self, callback: Any, progress_bar: bool = False) -> BaseCallback:
        made = outlive_a_full_disk(self, super()._init_callback(callback_of_rank(callback), progress_bar))
        if self._why_not_tensors() is not None:
            made = look_first(made)
        return root_callback(made) if supports_tensors(self.env) else made

    def collect_rollouts(
        self, env: VecEnv, callback: BaseCallback, rollout_buffer: RolloutBuffer, n_rollout_steps: int
    ) -> bool:
        """As SB3's, in tensors if ``env`` supports them."""
        self._checkpoints.at_boundary(self, callback)
        if self._why_not_tensors() is not None or rollout_buffer is not self.rollout_buffer or env is not self.env:
            if ranks.world_size() > 1:  # a callback has changed something since training began
                raise ValueError(f"Several ranks train in tensors only, start one process: {self.path}")
            return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        tensor_env, buffer = cast(TensorVecEnv, env), cast(DeviceRolloutBuffer, rollout_buffer)
        assert self._last_obs is not None and self._last_episode_starts is not None, "No previous observation was provided"
        start = time.perf_counter()
        self.policy.set_training_mode(False)
        buffer.reset()
        if self.use_sde:
            self._reset_noise()
        callback.on_rollout_start()
        policy: Any = self.policy
        rollout = self._run.rollout
        made_for = (env, policy, rollout_buffer, self.compile, self.precision)
        if rollout is None or not rollout.belongs_to(*made_for):
            compile_step(tensor_env, self.compile, self.precision)
            rollout = self._run.rollout = Rollout(tensor_env, policy, buffer, self.compile, self.precision)
        keep_distributions = self.adaptive_lr_kl is not None
        rollout.begin(self._last_obs, self._last_episode_starts, keep_distributions)  # type: ignore[arg-type]
        n_steps, n_envs = 0, env.num_envs * ranks.world_size()
        step_locals = self._run.locals
        if n_rollout_steps == buffer.buffer_size and looks_at_no_step(callback) and rollout.all_steps():
            n_steps = n_rollout_steps
            for _ in range(n_steps):
                self.num_timesteps += n_envs
                self._parallel.on_step(callback)
        while n_steps < n_rollout_steps:
            if self.use_sde and self.sde_sample_freq > 0 and n_steps % self.sde_sample_freq == 0:
                self._reset_noise()
            step_locals.next_step()
            step = rollout.step()
            self.num_timesteps += n_envs
            # Callbacks look for these names in locals
            self._run.acted_on = partial(rollout.obs_of_step, n_steps)
            obs_tensor = step_locals.tensor("obs_tensor", self._run.acted_on)
            actions = step_locals.array("actions", step.actions)
            clipped_actions = step_locals.array("clipped_actions", step.clipped_actions)
            values: Any = step_locals.tensor("values", step.values)
            log_probs = step_locals.tensor("log_probs", step.log_probs)
            new_obs = step_locals.array("new_obs", step.result.obs)
            rewards = step_locals.array("rewards", step.result.reward)
            episodes = rollout.episodes_of_step(n_steps)
            dones = step_locals.array("dones", partial(th.gt, episodes[1], 0.0))
            infos = step_locals.infos(tensor_env.make_infos(step.result), *episodes)
            callback.update_locals(locals())
            if not self._parallel.on_step(callback):
                self._end_rollout(rollout)
                return False
            for changed in step_locals.changes("rewards"):
                buffer.tensors.rewards[n_steps].copy_(th.from_numpy(changed.look()))
            n_steps += 1
            buffer.pos = n_steps
        values = self._end_rollout(rollout)
        if self._parallel.stops:
            return False
        self.logger.record("time/rollout", time.perf_counter() - start)
        if rollout.env_seconds > 0.0:  # not within a graph
            self.logger.record("time/env", rollout.env_seconds)
        log_metrics(tensor_env, self.logger)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _reset_noise(self) -> None:
        """Draw gSDE's noise anew, without waiting for the device."""
        policy: Any = self.policy
        with unchecked_distributions():
            policy.reset_noise(self.n_envs)

    def _end_rollout(self, rollout: Rollout) -> Optional[th.Tensor]:
        """Take over what the host learns of a rollout. Returns V (N, 1) of the last observations."""
        end = rollout.finish(self.gamma)
        self._run.acted_on = None
        self._last_obs, self._last_episode_starts = end.last_obs, end.last_dones
        returns, lengths, _ = self._parallel.exchange(self, end.returns, end.lengths, {})
        self._parallel.merge_statistics(self)
        note_episodes(rollout.env, self.ep_info_buffer, returns, lengths)
        return end.values

    def _not_finite_input(self) -> Optional[str]:
        """Where NaN or infinity began in the present rollout, if it is in tensors."""
        rollout = self._run.rollout
        if rollout is None or rollout.buffer is not self.rollout_buffer or self.n_envs != rollout.env.num_envs:
            return None
        n_envs = self.n_envs * ranks.world_size()
        return said(rollout.first_not_finite(), self.num_timesteps - rollout.n_steps * n_envs, n_envs)

    def predict(self, observation: Any, *args: Any, **kwargs: Any) -> Any:
        """As SB3's.

        :raises ValueError: an observation is NaN or infinite
        """
        check_given(observation)
        return super().predict(observation, *args, **kwargs)

    def train(self) -> None:
        """As SB3's, on the device."""
        if not isinstance(self.rollout_buffer, DeviceRolloutBuffer) and self.adaptive_lr_kl is None:
            super().train()
            if self._last_finite is not None:
                self._last_finite.check()
            return
        start = time.perf_counter()
        policy: Any = self.policy
        policy.set_training_mode(True)
        self._update_learning_rate(policy.optimizer)
        lr = float(policy.optimizer.param_groups[0]["lr"])
        adaptive_lr = None
        if self.adaptive_lr_kl is not None:
            adaptive_lr = AdaptiveLR(
                target=self.adaptive_lr_kl,
                factor=self.adaptive_lr_factor,
                lowest=self.adaptive_lr_min,
                highest=self.adaptive_lr_max,
            )
            lr = lr if self.adapted_lr is None else self.adapted_lr
        clip_range = self.clip_range(self._current_progress_remaining)  # type: ignore[operator]
        clip_range_vf: Any = self.clip_range_vf
        if clip_range_vf is not None:
            clip_range_vf = clip_range_vf(self._current_progress_remaining)
        update = self._run.update
        if update is None or not update.belongs_to(policy, self.rollout_buffer, self.compile, self.precision):
            update = self._run.update = PPOUpdate(policy, self.rollout_buffer, self.compile, self.precision)
        settings = Settings(
            n_epochs=self.n_epochs,
            batch_size=int(self.batch_size),  # torch.split takes no integers of numpy
            clip_range=clip_range,
            clip_range_vf=clip_range_vf,
            ent_coef=float(self.ent_coef),  # or tensors
            vf_coef=float(self.vf_coef),
            max_grad_norm=self.max_grad_norm,
            normalize_advantage=self.normalize_advantage,
            target_kl=self.target_kl,
            adaptive_lr=adaptive_lr,
        )
        log = update.run(settings, lr, self._last_finite)
        self._n_updates += log.epochs
        if log.stopped_at is not None and self.verbose >= 1:
            print(f"Early stopping at step {log.epochs - 1} due to reaching max kl: {log.stopped_at:.2f}")
        if adaptive_lr is not None:
            self.adapted_lr = log.learning_rate
            update_learning_rate(policy.optimizer, log.learning_rate)
            self.logger.record("train/learning_rate", log.learning_rate)
        for key, value in log.losses.items():
            self.logger.record(key, value)
        self.logger.record("train/n_updates", self._n_updates, exclude="tensorboard")
        self.logger.record("train/clip_range", clip_range)
        if clip_range_vf is not None:
            self.logger.record("train/clip_range_vf", clip_range_vf)
        self.logger.record("time/update", time.perf_counter() - start)

    def _excluded_save_params(self) -> List[str]:
        return [*super()._excluded_save_params(), "_run", "_checkpoints", "_parallel", "_last_finite", "vec_normalize"]


def _batch_size(n_minibatches: int, n_steps: int, n_envs: int) -> int:
    """Rows of a minibatch.

    :raises ValueError: if the rollout cannot be divided into so many equal minibatches
    """
    if n_minibatches < 1 or (n_steps * n_envs) % n_minibatches != 0:
        raise ValueError(
            f"n_minibatches={n_minibatches} does not divide the rollout of n_steps * n_envs = {n_steps} * {n_envs} "
            "transitions."
        )
    return n_steps * n_envs // n_minibatches
