"""What DQN and DDPG share: when they train in tensors, their replay buffer, the rollout, logs and saved files."""

from __future__ import annotations

import contextlib
import inspect
import time
import warnings
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import numpy as np
import stable_baselines3.common.buffers as sb3_buffers
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import RolloutReturn, TrainFreq, TrainFrequencyUnit

from sb3_isaac import wrappers
from sb3_isaac.buffers import DeviceReplayBuffer
from sb3_isaac.replay_buffer import RUNNING, TERMINATED, TRUNCATED
from sb3_isaac.vec_env import supports_tensors

SB3_HAS_N_STEPS = "n_steps" in inspect.signature(OffPolicyAlgorithm.__init__).parameters  # from SB3 2.7 on
NStepReplayBuffer = getattr(sb3_buffers, "NStepReplayBuffer", ReplayBuffer)
STANDARD_BUFFERS = (None, ReplayBuffer, NStepReplayBuffer)
DEVICE_ONLY_KWARGS = ("n_steps", "gamma", "storage_device", "generator")

STEPS_PER_READ = 100
"""The device is read once in so many vectorised steps: episode statistics and losses, all in one transfer."""
SAMPLE_ROWS = 4096
"""Small batches are drawn from the replay buffer together, up to so many transitions."""
MAX_REPLAY_RATIO = 1000.0
MAX_UPDATES_PER_STEP = 100.0
"""More gradient samples per transition, or more gradient steps per vectorised step, draw a warning."""


def same_device(a: Any, b: Any) -> bool:
    """Whether two torch devices are one ("cuda" is "cuda:0")."""
    a, b = th.device(a), th.device(b)
    return a.type == b.type and (a.index or 0) == (b.index or 0)


def on_tensor_path(model: OffPolicyAlgorithm) -> bool:
    """Whether ``model`` can train in tensors: its env supports them, on its device, with a standard replay buffer."""
    return model.env is not None and supports_tensors(model.env) and _obstacle(model) is None


def _obstacle(model: Any) -> Optional[str]:
    if not same_device(model.env.device, model.device):
        return f"the environment is on {model.env.device} and the model on {model.device}: give both the same device"
    if model.replay_buffer_class not in (*STANDARD_BUFFERS, DeviceReplayBuffer):
        name = model.replay_buffer_class.__name__
        return f"replay_buffer_class={name} works in numpy: leave it out, or use SB3's own algorithm"
    return None


def check_tensor_path(model: OffPolicyAlgorithm, extras: Dict[str, bool]) -> bool:
    """As :func:`on_tensor_path`, before training starts, when what cannot work has to be said.

    :param extras: options that exist on the tensor path only, and whether they are in use
    :raises ValueError: if an IsaacVecEnv would be trained on in numpy, many times slower, or one of ``extras`` be ignored
    """
    if wrappers.check_tensor_path(model.env):
        why = _obstacle(model)
        if why is not None:
            raise ValueError(f"Training cannot run in tensors, because {why}.")
        return True
    used = [name for name, in_use in extras.items() if in_use]
    if used:
        raise ValueError(f"{', '.join(used)} needs an IsaacVecEnv (sb3_isaac.make_vec_env): leave it out elsewhere.")
    return False


# -- the replay buffer -----------------------------------------------------------------------------------------------


def use_device_buffer(model: OffPolicyAlgorithm) -> None:
    """Give ``model`` a DeviceReplayBuffer, with what its present replay buffer holds.

    On the tensor path None, SB3's ReplayBuffer and its NStepReplayBuffer all mean this one: the same transitions and
    the same samples, elsewhere. The attribute ``replay_buffer_class`` stays SB3's, so that stock SB3 loads the model.
    """
    if model.replay_buffer_class in (*STANDARD_BUFFERS, DeviceReplayBuffer):
        model.replay_buffer_class = None  # SB3 fills in its standard class
    kwargs = model.replay_buffer_kwargs = dict(model.replay_buffer_kwargs)
    model.n_steps = int(kwargs.get("n_steps", model.n_steps))
    old = model.replay_buffer
    if isinstance(old, DeviceReplayBuffer):
        if old.n_envs != model.n_envs:
            raise ValueError(f"The replay buffer holds {old.n_envs} environments, the training has {model.n_envs}.")
        return
    model.replay_buffer = DeviceReplayBuffer(
        model.buffer_size,
        model.observation_space,
        model.action_space,
        device=model.device,
        n_envs=model.n_envs,
        optimize_memory_usage=model.optimize_memory_usage,
        **{"n_steps": model.n_steps, "gamma": model.gamma, **kwargs},
    )
    if old is not None and old.size() > 0:
        _copy_transitions(old, model.replay_buffer)


def _copy_transitions(old: ReplayBuffer, new: DeviceReplayBuffer) -> None:
    """From SB3's buffer to ours."""
    if (old.buffer_size, old.n_envs, old.optimize_memory_usage) != (new.buffer_size, new.n_envs, new.optimize_memory_usage):
        raise ValueError(
            f"The loaded replay buffer ({old.buffer_size} rows x {old.n_envs} envs, optimize_memory_usage="
            f"{old.optimize_memory_usage}) does not fit the model's ({new.buffer_size} x {new.n_envs}, "
            f"{new.optimize_memory_usage})."
        )
    names = ["observations", "actions", "rewards"] + ([] if new.optimize_memory_usage else ["next_observations"])
    for name in names:
        column = getattr(new, name)
        column.copy_(th.from_numpy(getattr(old, name)).view(column.shape))
    flags = np.where(old.dones > 0, np.where(old.timeouts > 0, TRUNCATED, TERMINATED), RUNNING)
    new.dones.copy_(th.from_numpy(flags))
    new.pos, new.full = old.pos, old.full


def as_stock_buffer(buffer: DeviceReplayBuffer) -> ReplayBuffer:
    """SB3's own ReplayBuffer, or NStepReplayBuffer, with the same content: what is saved, so that stock SB3 can load it."""
    several = {"n_steps": buffer.n_steps, "gamma": buffer.gamma} if buffer.n_steps > 1 and SB3_HAS_N_STEPS else {}
    stock = (NStepReplayBuffer if several else ReplayBuffer)(
        buffer.buffer_size * buffer.n_envs,
        buffer.observation_space,
        buffer.action_space,
        device="cpu",
        n_envs=buffer.n_envs,
        optimize_memory_usage=buffer.optimize_memory_usage,
        handle_timeout_termination=buffer.handle_timeout_termination,
        **several,
    )
    names = ["observations", "actions", "rewards"] + ([] if buffer.optimize_memory_usage else ["next_observations"])
    for name in names:
        column = getattr(stock, name)
        column[...] = getattr(buffer, name).cpu().numpy().reshape(column.shape)
    flags = buffer.dones.cpu().numpy()
    stock.dones[...], stock.timeouts[...] = flags != RUNNING, flags == TRUNCATED
    stock.pos, stock.full = buffer.pos, buffer.full
    return stock


# -- logs ------------------------------------------------------------------------------------------------------------


class TensorRun:
    """What training in tensors keeps besides SB3's attributes. Never saved.

    :param model: an algorithm on the tensor path
    :param losses: names of the losses whose sums over gradient steps are kept in :attr:`loss_sums`
    """

    def __init__(self, model: OffPolicyAlgorithm, losses: Tuple[str, ...]) -> None:
        env: Any = model.env
        self.env = env
        self.obs = env.obs_tensor.clone()
        """(N, obs_dim), the observation that the step in progress acts on: the env may overwrite its own."""
        rows = th.zeros((2, STEPS_PER_READ, env.num_envs), device=env.device)
        self._rows = rows
        self._returns, self._lengths = rows[0].unbind(0), rows[1].unbind(0)
        self._n_rows = 0
        self.loss_names = losses
        self.loss_sums = th.zeros(len(losses), device=env.device)
        self.loss_counts = [0] * len(losses)
        self.replay_ratio = 0.0
        self.warned = False
        self._episodes_logged = 0
        self._seconds = {"rollout": 0.0, "env": 0.0, "update": 0.0}

    @contextlib.contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the time that the block takes to ``time/<name>`` (on a GPU: that the host takes to ask for it)."""
        start = time.perf_counter()
        yield
        self._seconds[name] += time.perf_counter() - start

    def note_episodes(self, returns: th.Tensor, lengths: th.Tensor, dones: th.Tensor) -> None:
        """Keep the statistics of the episodes that ended in this step; a length of 0 marks those that did not."""
        self._returns[self._n_rows].copy_(returns)
        th.mul(lengths, dones, out=self._lengths[self._n_rows])
        self._n_rows += 1

    def read_if_due(self, model: OffPolicyAlgorithm, log_interval: Optional[int], force: bool = False) -> None:
        """Read statistics and losses from the device (the only host synchronisation of a training) and log them.

        :param log_interval: as SB3, in episodes, but at most one log per read
        :raises FloatingPointError: if a loss or a return is not finite
        """
        if self._n_rows < STEPS_PER_READ and not force:
            return
        host = th.cat((self.loss_sums, self._rows[:, : self._n_rows].reshape(-1))).cpu().numpy()
        sums, rows = host[: len(self.loss_names)], host[len(self.loss_names) :].reshape(2, -1)
        for name, total, count in zip(self.loss_names, sums, self.loss_counts):
            if not np.isfinite(total):
                raise FloatingPointError(
                    f"The {name.replace('_', ' ')} is {total}: training has diverged, lower the learning rate or the "
                    "scale of the rewards."
                )
            if count > 0:
                model.logger.record(f"train/{name}", float(total) / count)
        if any(self.loss_counts):
            model.logger.record("train/n_updates", model._n_updates, exclude="tensorboard")
            model.logger.record("train/replay_ratio", self.replay_ratio)
        self.loss_sums.zero_()
        self.loss_counts = [0] * len(self.loss_names)
        self._n_rows = 0
        ended = rows[1] > 0
        returns, lengths = rows[0][ended], rows[1][ended].astype(np.int64)
        if not np.isfinite(returns).all():
            raise FloatingPointError("An episode's return is not finite: the actions or the simulation's state became NaN.")
        self._log_episodes(model, returns, lengths)
        if log_interval is not None and model._episode_num - self._episodes_logged >= log_interval:
            self._episodes_logged = model._episode_num
            for name, seconds in self._seconds.items():
                model.logger.record(f"time/{name}", seconds)
                self._seconds[name] = 0.0
            # SB3 2.4 has the old name only, SB3 2.9 warns about it
            (getattr(model, "dump_logs", None) or model._dump_logs)()

    def _log_episodes(self, model: OffPolicyAlgorithm, returns: np.ndarray, lengths: np.ndarray) -> None:
        if len(returns) == 0:
            return
        assert model.ep_info_buffer is not None
        model._episode_num += len(returns)
        t = round(time.time_ns() / 1e9 - model.start_time / 1e9, 6)
        kept = model.ep_info_buffer.maxlen or len(returns)
        model.ep_info_buffer.extend(
            {"r": round(float(r), 6), "l": int(n), "t": t} for r, n in zip(returns[-kept:], lengths[-kept:])
        )
        self.env.log_episodes(returns, lengths)

    def note_update(self, model: OffPolicyAlgorithm, gradient_steps: int, batch_size: int, train_freq: TrainFreq) -> None:
        """Keep the replay ratio: gradient samples for each transition collected. Warns once where it makes no sense."""
        collected = train_freq.frequency * model.n_envs
        self.replay_ratio = gradient_steps * batch_size / collected
        per_step = gradient_steps / train_freq.frequency
        if not self.warned and (self.replay_ratio > MAX_REPLAY_RATIO or per_step > MAX_UPDATES_PER_STEP):
            self.warned = True
            why = " (gradient_steps=-1 means one per environment and step)" if model.gradient_steps < 0 else ""
            warnings.warn(
                f"{per_step:g} gradient steps for each step of {model.n_envs} environments{why}, a replay ratio of "
                f"{self.replay_ratio:g}: training will be slow, set gradient_steps to a small number.",
                stacklevel=3,
            )


@contextlib.contextmanager
def starting(model: Any, reset_num_timesteps: bool) -> Iterator[None]:
    """Around SB3's ``_setup_learn`` on the tensor path."""
    use_device_buffer(model)
    envs_are_reset = reset_num_timesteps or model._last_obs is None
    # SB3 would make an object per environment of the noise
    noise, model.action_noise = model.action_noise, None
    try:
        yield
    finally:
        model.action_noise = noise
    if envs_are_reset:
        if model.n_steps > 1:
            model.replay_buffer.end_trajectories()
        if model.spread_time_limits:
            model.env.spread_time_limits()


# -- the rollout -----------------------------------------------------------------------------------------------------

Act = Callable[[th.Tensor, bool], Tuple[th.Tensor, th.Tensor]]


def collect_rollouts(
    model: OffPolicyAlgorithm,
    run: TensorRun,
    act: Act,
    callback: BaseCallback,
    train_freq: TrainFreq,
    learning_starts: int,
    log_interval: Optional[int],
    after_step: Optional[Callable[[th.Tensor], None]] = None,
) -> RolloutReturn:
    """SB3's ``collect_rollouts`` in tensors. Callbacks see tensors in ``locals`` (infos: a lazy sequence of dicts).

    :param act: from (N, obs_dim) observations, and whether actions are to be random (before ``learning_starts``),
        to the actions for the env and those for the replay buffer
    :param after_step: called with ``dones`` (N,) after each step
    """
    env = run.env
    replay_buffer: Any = model.replay_buffer
    if env.num_envs > 1 and train_freq.unit == TrainFrequencyUnit.EPISODE:
        raise ValueError(f"train_freq in episodes needs a single environment, here are {env.num_envs}: count in steps.")
    vec_normalize: Any = model._vec_normalize_env
    episode_returns, episode_lengths, env_dones = env.episode_returns, env.episode_lengths, env.dones
    num_collected_steps, num_collected_episodes = 0, 0
    progress, continue_training = 0, True
    callback.on_rollout_start()
    with th.no_grad(), run.timed("rollout"):
        while progress < train_freq.frequency:
            # The buffer gets what VecNormalize saw, the policy what it made of it: statistics change, transitions stay
            run.obs.copy_(env.obs_tensor if vec_normalize is None else vec_normalize.get_original_obs_tensor())
            actions, buffer_actions = act(env.obs_tensor, model.num_timesteps < learning_starts)
            with run.timed("env"):
                result = env.step_tensor(actions)
            next_obs, reward = result.final_obs, result.reward
            if vec_normalize is not None:
                next_obs = vec_normalize.get_original_final_obs_tensor()
                reward = vec_normalize.get_original_reward_tensor()
            replay_buffer.add_tensors(run.obs, next_obs, buffer_actions, reward, result.terminated, result.truncated)
            run.note_episodes(episode_returns, episode_lengths, env_dones)
            model.num_timesteps += env.num_envs
            num_collected_steps += 1
            # For the callback's locals, with SB3's names
            new_obs, rewards, dones, infos = result.obs, result.reward, env_dones, env.make_infos(result)
            callback.update_locals(locals())
            continue_training = callback.on_step()
            if not continue_training:
                break
            model._update_current_progress_remaining(model.num_timesteps, model._total_timesteps)
            model._on_step()
            if after_step is not None:
                after_step(env_dones)
            if train_freq.unit == TrainFrequencyUnit.STEP:
                progress += 1
            else:
                num_collected_episodes += int(dones)
                progress = num_collected_episodes
            run.read_if_due(model, log_interval)
    last = not continue_training or model.num_timesteps >= model._total_timesteps
    run.read_if_due(model, log_interval, force=last)
    if continue_training:
        callback.on_rollout_end()
    return RolloutReturn(num_collected_steps * env.num_envs, num_collected_episodes, continue_training)


# -- saved files -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def portable(model: OffPolicyAlgorithm, run: Optional[TensorRun]) -> Iterator[None]:
    """For the time of a save: only what stock SB3, of any version and without a GPU, can load."""
    swapped: Dict[str, Any] = {}
    if model.replay_buffer_class in (*STANDARD_BUFFERS, DeviceReplayBuffer):
        # Each SB3 version chooses its own class again, and its arguments
        kwargs = model.replay_buffer_kwargs
        swapped["replay_buffer_class"] = None
        swapped["replay_buffer_kwargs"] = {key: kwargs[key] for key in kwargs if key not in DEVICE_ONLY_KWARGS}
        swapped["n_steps"] = kwargs.get("n_steps", model.n_steps)
    if run is not None:
        swapped["_last_obs"] = run.env.obs_tensor.cpu().numpy().copy()
    before = {name: getattr(model, name) for name in swapped}
    model.__dict__.update(swapped)
    try:
        yield
    finally:
        model.__dict__.update(before)


@contextlib.contextmanager
def stock_buffer(model: OffPolicyAlgorithm) -> Iterator[None]:
    """For the time of a save: the replay buffer as SB3's own, if it is ours."""
    buffer = model.replay_buffer
    if isinstance(buffer, DeviceReplayBuffer):
        model.replay_buffer = as_stock_buffer(buffer)
    try:
        yield
    finally:
        model.replay_buffer = buffer


def pieces(n: int, size: int) -> List[slice]:
    """Slices of at most ``size`` rows that cover ``n`` rows: large batches are worked through in parts that fit the cache."""
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]
