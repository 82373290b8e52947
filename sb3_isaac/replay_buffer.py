"""SB3's replay buffer in packed rows on a torch device, with n-step returns. Import it from ``sb3_isaac.buffers``."""

from __future__ import annotations

from typing import Any, Dict, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecNormalize

# What the flag of a transition says. Kept apart, so that only failures cut the bootstrap, but one float for both.
RUNNING, TERMINATED, TRUNCATED = 0.0, 1.0, 2.0
SB3_HAS_DISCOUNTS = "discounts" in ReplayBufferSamples._fields  # from SB3 2.7 on


class ReplaySamples(NamedTuple):
    """SB3's ``ReplayBufferSamples`` with ``discounts`` on every SB3 version; B transitions on the buffer's device."""

    observations: th.Tensor
    """(B, *obs_shape)"""
    actions: th.Tensor
    """(B, action_dim), int64 for Discrete actions"""
    next_observations: th.Tensor
    """(B, *obs_shape), where to bootstrap from: the true final observation if the episode ended there"""
    dones: th.Tensor
    """(B, 1) float32, 1 where there is nothing to bootstrap"""
    rewards: th.Tensor
    """(B, 1) float32, the n-step return up to next_observations"""
    discounts: Optional[th.Tensor] = None
    """(B, 1) float32, gamma ** (number of summed rewards); None for n_steps=1, where it is gamma itself"""


def float32_exact_dtype(space: spaces.Space[Any], who: str) -> Optional[th.dtype]:
    """The dtype to which values of ``space`` are cast back after being stored as float32; None for float spaces.

    :param who: what is reported as the refuser, e.g. ``"DeviceReplayBuffer: observations"``
    :raises ValueError: if float32 cannot hold every value of ``space`` exactly
    """
    if isinstance(space, spaces.Box):
        if np.issubdtype(space.dtype, np.floating):
            return None
        largest = max(abs(float(space.low.min())), abs(float(space.high.max())))
    elif isinstance(space, spaces.Discrete):
        largest = max(abs(int(space.start)), abs(int(space.start) + int(space.n) - 1))
    elif isinstance(space, spaces.MultiDiscrete):
        largest = int(np.max(np.asarray(space.nvec) + np.asarray(getattr(space, "start", 0))))
    elif isinstance(space, spaces.MultiBinary):
        largest = 1
    else:
        raise ValueError(f"{who} of type {type(space).__name__} cannot be packed into rows, use SB3's own Dict buffers.")
    if largest > 2**24:
        raise ValueError(f"{who} go up to {largest:.0f}, and float32 is exact to 2**24 only, use SB3's own buffer class.")
    return th.from_numpy(np.zeros(1, dtype=space.dtype)).dtype


def free_memory(device: th.device) -> Optional[int]:
    """Bytes that can still be allocated on ``device``, or None where nobody knows."""
    if device.type == "cuda":
        # What torch's allocator holds and does not use is free for us, though not for the driver
        cached = th.cuda.memory_reserved(device) - th.cuda.memory_allocated(device)
        return int(th.cuda.mem_get_info(device)[0]) + cached
    try:
        with open("/proc/meminfo") as file:  # os.sysconf would count the page cache as used
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None


def existing_device(device: Union[th.device, str]) -> th.device:
    """``device``, or the nearest one that this machine has (CPU instead of CUDA, GPU 0 instead of GPU 3)."""
    device = get_device(device)
    if device.type == "cuda" and (device.index or 0) >= th.cuda.device_count():
        return th.device("cuda")
    return device


class DeviceReplayBuffer(ReplayBuffer):
    """SB3's ``ReplayBuffer`` (and its ``NStepReplayBuffer``) as one float32 tensor on a torch device.

    A transition is one row ``[obs, action, reward, flag, next_obs]``, so that one gather serves a sample; the flag keeps
    ``terminated`` and ``truncated`` apart. It takes exactly ``4 * (2 * obs_dim + action_dim + 2)`` bytes
    (:attr:`bytes_per_transition`): 44 for Cartpole, 40 MiB for a million. With ``optimize_memory_usage`` it is
    ``4 * (obs_dim + action_dim + 2)``: next_obs is read from the next row.

    It works in stock SB3, ``DQN(..., replay_buffer_class=DeviceReplayBuffer)``. The samples are views into one batch
    tensor, float32 (float64 observations are rounded) except for integer spaces, which come back as SB3 gives them.
    With everything on one device, neither adding (:meth:`add_tensors`) nor sampling waits for the device.

    ``n_steps > 1`` sums rewards at sample time like SB3's ``NStepReplayBuffer``: it stops at a termination, at a
    truncation (and bootstraps from the true final observation) and at the newest transition, and ``discounts`` has the
    power of gamma that belongs to it. See Sutton and Barto, Reinforcement Learning (2018), chapter 7.

    :param buffer_size: transitions of all envs together; ``max(buffer_size // n_envs, 1)`` rows are kept, as by SB3
    :param device: where samples land
    :param optimize_memory_usage: store each observation once. The final observation of a truncated episode is then lost,
        so, as in SB3, it needs ``handle_timeout_termination=False``. Works with ``n_steps``.
    :param handle_timeout_termination: bootstrap at time limits; otherwise they count as terminations
    :param n_steps: number of rewards to sum
    :param gamma: discount of the n-step return; give the algorithm's own
    :param storage_device: where the rows are, for a buffer larger than the GPU; None: on ``device``
    :param generator: random generator on ``storage_device`` for sampling; None: torch's default one, which SB3 seeds
    :raises ValueError: for Dict, Tuple and uint8 observations and integers that float32 cannot hold, for
        ``optimize_memory_usage`` with ``handle_timeout_termination`` or with a single row, and for ``n_steps < 1``
    :raises MemoryError: before anything is allocated, if ``storage_device`` has not enough free memory
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: Union[th.device, str] = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        *,
        n_steps: int = 1,
        gamma: float = 0.99,
        storage_device: Union[th.device, str, None] = None,
        generator: Optional[th.Generator] = None,
    ) -> None:
        if getattr(observation_space, "dtype", None) == np.uint8 and isinstance(observation_space, spaces.Box):
            raise ValueError(
                "DeviceReplayBuffer stores float32, which takes four times the memory of uint8 observations, "
                "use SB3's own ReplayBuffer for images."
            )
        self._obs_dtype = float32_exact_dtype(observation_space, "DeviceReplayBuffer: observations")
        self._action_dtype = float32_exact_dtype(action_space, "DeviceReplayBuffer: actions")
        # Not ReplayBuffer's own, which allocates numpy arrays
        super(ReplayBuffer, self).__init__(buffer_size, observation_space, action_space, device, n_envs=n_envs)
        self.buffer_size = max(buffer_size // n_envs, 1)
        if optimize_memory_usage and handle_timeout_termination:
            raise ValueError(
                "DeviceReplayBuffer: optimize_memory_usage loses the final observations from which time limits bootstrap, "
                "pass handle_timeout_termination=False in replay_buffer_kwargs or leave optimize_memory_usage off."
            )
        if optimize_memory_usage and self.buffer_size < 2:
            raise ValueError(
                f"DeviceReplayBuffer: optimize_memory_usage needs two rows, buffer_size={buffer_size} for {n_envs} envs "
                "gives one."
            )
        if n_steps < 1:
            raise ValueError(f"DeviceReplayBuffer: n_steps must be at least 1, not {n_steps}.")
        self.optimize_memory_usage = optimize_memory_usage
        self.handle_timeout_termination = handle_timeout_termination
        self.n_steps = n_steps
        self.gamma = gamma
        self._obs_dim = int(np.prod(self.obs_shape))
        self._reward_at = self._obs_dim + self.action_dim  # the flag follows, then next_obs
        self._width = self._reward_at + 2 + (0 if optimize_memory_usage else self._obs_dim)
        self._storage_follows_device = storage_device is None
        where = self.device if storage_device is None else get_device(storage_device)
        if generator is not None and generator.device.type != where.type:
            raise ValueError(f"DeviceReplayBuffer: the generator is on {generator.device}, the storage on {where}.")
        self.generator = generator
        self._storage = self._allocate(where)

    def _allocate(self, device: th.device) -> th.Tensor:
        """(buffer_size, n_envs, width) zeros; a MemoryError instead, before the machine swaps or kills us."""
        free = free_memory(device)
        if free is not None and self.nbytes > free:
            raise MemoryError(
                f"DeviceReplayBuffer needs {self.nbytes / 1e9:.2f} GB on {device} ({self.buffer_size} x {self.n_envs} "
                f"transitions of {self.bytes_per_transition} bytes) but {free / 1e9:.2f} GB are free: lower buffer_size "
                "or put the storage elsewhere with storage_device (e.g. 'cpu')."
            )
        return th.zeros((self.buffer_size, self.n_envs, self._width), device=device)

    @property
    def bytes_per_transition(self) -> int:
        """Bytes that one transition of one env takes."""
        return 4 * self._width

    @property
    def nbytes(self) -> int:
        """Bytes that the whole storage takes."""
        return self.buffer_size * self.n_envs * self.bytes_per_transition

    @property
    def storage_device(self) -> th.device:
        """Where the rows are."""
        return self._storage.device

    @property  # type: ignore[override]
    def device(self) -> th.device:
        """Where samples land. SB3 sets it after loading a buffer; the storage follows unless ``storage_device`` was given."""
        return self._device

    @device.setter
    def device(self, device: Union[th.device, str]) -> None:
        self._device = th.device(device)
        if "_storage" in self.__dict__ and self._storage_follows_device and self._storage.device.type != self._device.type:
            self._storage = self._allocate(self._device).copy_(self._storage)
            self.generator = None if self.generator is None else _restore_generator(_save_generator(self.generator), self._device)

    def _view(self, start: int, shape: Tuple[int, ...]) -> th.Tensor:
        size = int(np.prod(shape))
        return self._storage[..., start : start + size].view(self.buffer_size, self.n_envs, *shape)

    @property
    def observations(self) -> th.Tensor:  # type: ignore[override]
        """(buffer_size, n_envs, *obs_shape) view of the storage."""
        return self._view(0, self.obs_shape)

    @property
    def next_observations(self) -> th.Tensor:  # type: ignore[override]
        """(buffer_size, n_envs, *obs_shape) view of the storage, without ``optimize_memory_usage``."""
        if self.optimize_memory_usage:
            raise AttributeError("DeviceReplayBuffer has no next_observations with optimize_memory_usage=True.")
        return self._view(self._reward_at + 2, self.obs_shape)

    @property
    def actions(self) -> th.Tensor:  # type: ignore[override]
        """(buffer_size, n_envs, action_dim) view of the storage, float32."""
        return self._view(self._obs_dim, (self.action_dim,))

    @property
    def rewards(self) -> th.Tensor:  # type: ignore[override]
        """(buffer_size, n_envs) view of the storage."""
        return self._storage[..., self._reward_at]

    @property
    def dones(self) -> th.Tensor:  # type: ignore[override]
        """(buffer_size, n_envs) view of the flags: 0 goes on, 1 terminated, 2 truncated. SB3 writes here (True: 1)."""
        return self._storage[..., self._reward_at + 1]

    def add_tensors(
        self,
        obs: th.Tensor,
        next_obs: th.Tensor,
        actions: th.Tensor,
        rewards: th.Tensor,
        terminated: th.Tensor,
        truncated: th.Tensor,
    ) -> None:
        """Add one step of all envs. Copies, and does not wait for the device if the storage is on the same one.

        :param obs: (N, *obs_shape), what the agent acted on
        :param next_obs: (N, *obs_shape), the true next observation: ``StepResult.final_obs``, not ``obs``
        :param actions: (N, action_dim) or (N,)
        :param rewards: (N,)
        :param terminated: (N,) bool, wins over truncated
        :param truncated: (N,) bool
        """
        n = self.n_envs
        flags = (truncated * TRUNCATED).masked_fill_(terminated, TERMINATED)
        columns = [
            obs.reshape(n, self._obs_dim).to(th.float32),
            actions.reshape(n, self.action_dim).to(th.float32),
            rewards.reshape(n, 1).to(th.float32),
            flags.reshape(n, 1),
        ]
        next_obs = next_obs.reshape(n, self._obs_dim).to(th.float32)
        if not self.optimize_memory_usage:
            columns.append(next_obs)
        row = self._storage[self.pos]
        if obs.device == row.device:
            th.cat(columns, dim=1, out=row)
        else:
            row.copy_(th.cat(columns, dim=1))  # one transfer instead of five
        self.pos += 1
        if self.pos == self.buffer_size:
            self.full, self.pos = True, 0
        if self.optimize_memory_usage:
            self._storage[self.pos, :, : self._obs_dim] = next_obs

    def add(
        self,
        obs: np.ndarray,
        next_obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: Sequence[Dict[str, Any]],
    ) -> None:
        """Add one step of all envs as SB3 does. An ``infos.truncated`` array (N,) saves the look into N dicts."""
        done = np.asarray(done, dtype=bool).reshape(self.n_envs)
        truncated = np.zeros_like(done)
        if self.handle_timeout_termination:
            found = getattr(infos, "truncated", None)
            if found is not None:
                truncated = done & np.asarray(found)
            else:
                truncated[:] = [d and bool(infos[i].get("TimeLimit.truncated", False)) for i, d in enumerate(done)]
        values = {"obs": obs, "next_obs": next_obs, "action": action, "reward": reward}
        sizes = {"obs": self._obs_dim, "next_obs": self._obs_dim, "action": self.action_dim, "reward": 1}
        tensors = [th.as_tensor(value, dtype=th.float32) for value in values.values()]
        for (name, size), tensor in zip(sizes.items(), tensors):
            if tensor.numel() != self.n_envs * size:
                raise ValueError(
                    f"DeviceReplayBuffer.add: {name} has shape {tuple(tensor.shape)}, expected {self.n_envs} envs x {size}."
                )
        self.add_tensors(*tensors, th.from_numpy(done & ~truncated), th.from_numpy(truncated))

    def end_trajectories(self) -> None:
        """Call it when the envs are reset from outside: n-step returns must not run over the cut.

        Running episodes count as truncated at their newest transition, so they bootstrap from its next observation.
        """
        if self.full or self.pos > 0:
            newest = self.dones[self.pos - 1]
            newest.masked_fill_(newest == RUNNING, TRUNCATED)

    def sample(self, batch_size: int, env: Optional[VecNormalize] = None) -> ReplayBufferSamples:
        """Transitions at random, with replacement, as SB3's type.

        :param env: normalise observations and rewards with its statistics
        :raises ValueError: if the buffer is empty
        :raises RuntimeError: if ``n_steps > 1`` and SB3 is older than 2.7: its algorithms would discount by gamma
        """
        if self.n_steps > 1 and not SB3_HAS_DISCOUNTS:
            raise RuntimeError(
                f"DeviceReplayBuffer: algorithms of SB3 before 2.7 discount by gamma where n_steps={self.n_steps} needs "
                "gamma**n_steps, use n_steps=1, sb3_isaac's algorithms or a newer SB3."
            )
        return ReplayBufferSamples(*self.sample_tensors(batch_size, env)[: len(ReplayBufferSamples._fields)])

    def sample_tensors(self, batch_size: int, env: Optional[VecNormalize] = None) -> ReplaySamples:
        """As :meth:`sample`, but on every SB3 version with ``discounts``."""
        return self.at(self._draw(batch_size), env)

    def _draw(self, batch_size: int) -> th.Tensor:
        """(batch_size,) random flat indices ``row * n_envs + env``."""
        if not self.full and self.pos == 0:
            raise ValueError("DeviceReplayBuffer is empty, add transitions before sampling.")
        # Where observations are stored once, a new next_obs has overwritten the oldest row's obs: leave that row out
        skip = self.optimize_memory_usage and self.full
        low, high = self.n_envs if skip else 0, self.size() * self.n_envs
        index = th.randint(low, high, (batch_size,), device=self.storage_device, generator=self.generator)
        return self._wrap(index + self.pos * self.n_envs) if skip else index

    def _get_samples(self, batch_inds: np.ndarray, env: Optional[VecNormalize] = None) -> ReplayBufferSamples:
        """SB3's hook: rows are given, envs are drawn."""
        rows = th.as_tensor(batch_inds, device=self.storage_device)
        envs = th.randint(0, self.n_envs, rows.shape, device=rows.device, generator=self.generator)
        return ReplayBufferSamples(*self.at(rows * self.n_envs + envs, env)[: len(ReplayBufferSamples._fields)])

    def at(self, index: th.Tensor, env: Optional[VecNormalize] = None) -> ReplaySamples:
        """The transitions at given places.

        :param index: (B,) int64 ``row * n_envs + env``, on the storage's device
        """
        first = self._gather(index)
        last, discounts = first, None
        rewards = first[:, self._reward_at : self._reward_at + 1]
        if self.n_steps == 1:
            rewards = _normalize(env, "reward", rewards)
        else:
            rewards, discounts, index = self._n_step_returns(index, env)
            last = self._gather(index)
        if self.optimize_memory_usage:
            next_obs = self._gather(self._wrap(index + self.n_envs))[:, : self._obs_dim]
        else:
            next_obs = last[:, self._reward_at + 2 :]
        flags = last[:, self._reward_at + 1 : self._reward_at + 2]
        dones = flags == TERMINATED if self.handle_timeout_termination else flags != RUNNING
        return ReplaySamples(
            self._observations(first[:, : self._obs_dim], env),
            first[:, self._obs_dim : self._reward_at].to(self._action_dtype or th.float32),
            self._observations(next_obs, env),
            dones.to(th.float32),
            rewards,
            discounts,
        )

    def _wrap(self, index: th.Tensor) -> th.Tensor:
        """Flat indices less than one round too far back into the ring."""
        total = self.buffer_size * self.n_envs
        return th.where(index >= total, index - total, index)

    def _gather(self, index: th.Tensor) -> th.Tensor:
        """(B, width) rows on ``device``."""
        rows = self._storage.view(-1, self._width)
        if self._device.type == "cuda" and rows.device.type == "cpu":
            # Page-locked memory travels without the host waiting for it
            batch = th.empty((len(index), self._width), pin_memory=True)
            return th.index_select(rows, 0, index, out=batch).to(self._device, non_blocking=True)
        return rows.index_select(0, index).to(self._device)

    def _observations(self, obs: th.Tensor, env: Optional[VecNormalize]) -> th.Tensor:
        obs = obs.reshape(-1, *self.obs_shape)
        return _normalize(env, "obs", obs) if self._obs_dtype is None else obs.to(self._obs_dtype)

    def _n_step_returns(self, index: th.Tensor, env: Optional[VecNormalize]) -> Tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Returns (B, 1), discounts (B, 1), both on ``device``, and the flat index (B,) of the last transition summed."""
        n, newest = self.n_envs, (self.pos - 1) % self.buffer_size
        steps = th.arange(self.n_steps, device=index.device).view(-1, 1)
        window = (index + steps * n) % (self.buffer_size * n)  # (n_steps, B)
        columns = self._storage.view(-1, self._width)[:, self._reward_at : self._reward_at + 2]
        rewards, flags = columns.index_select(0, window.view(-1)).view(*window.shape, 2).unbind(-1)
        # Behind the newest transition come the oldest ones, or nothing
        stop = (flags != RUNNING) | ((window >= newest * n) & (window < (newest + 1) * n))
        stopped_before = stop.cumsum(0) - stop.long()
        length = (stopped_before == 0).sum(0)  # (B,), at least 1
        weights = (self.gamma ** steps.to(th.float32)).masked_fill(stopped_before > 0, 0.0)
        returns = (_normalize(env, "reward", rewards) * weights).sum(0).view(-1, 1)
        discounts = (self.gamma ** length.to(th.float32)).view(-1, 1)
        return returns.to(self._device), discounts.to(self._device), window.gather(0, (length - 1).view(1, -1)).view(-1)

    def __getstate__(self) -> Dict[str, Any]:
        """Numpy arrays and names of devices only, and only the rows in use, so that it loads without a GPU."""
        state = self.__dict__.copy()
        rows = self.buffer_size if self.full else min(self.pos + self.optimize_memory_usage, self.buffer_size)
        state["_storage"] = self._storage[:rows].cpu().numpy()
        state["_storage_device"] = str(self._storage.device)
        state["_device"] = str(self._device)
        state["generator"] = None if self.generator is None else _save_generator(self.generator)
        return state

    def __setstate__(self, state: Dict[str, Any]) -> None:
        """Back to the devices it came from, or to the nearest ones that exist here."""
        state = state.copy()
        rows, where, generator = state.pop("_storage"), existing_device(state.pop("_storage_device")), state.pop("generator")
        state["_device"] = existing_device(state["_device"])
        self.__dict__.update(state)
        self._storage = self._allocate(where)
        self._storage[: len(rows)] = th.as_tensor(rows, device=where)
        self.generator = None if generator is None else _restore_generator(generator, where)


def _save_generator(generator: th.Generator) -> Dict[str, Any]:
    return {"device": generator.device.type, "state": generator.get_state().numpy(), "seed": generator.initial_seed()}


def _restore_generator(saved: Dict[str, Any], device: th.device) -> th.Generator:
    """A generator on ``device`` that goes on where the saved one was; on another kind of device it starts from its seed."""
    generator = th.Generator(device=device)
    if saved["device"] == device.type:
        generator.set_state(th.from_numpy(saved["state"].copy()))
    else:
        generator.manual_seed(saved["seed"])
    return generator


def _normalize(env: Optional[VecNormalize], what: str, values: th.Tensor) -> th.Tensor:
    """``env.normalize_obs`` or ``env.normalize_reward`` of a tensor: the same numbers, on its own device.

    A VecNormalize with statistics in tensors offers ``normalize_obs_tensor`` and ``normalize_reward_tensor``, which are
    used if present. SB3's own has numpy statistics in float64 that have to be moved to the device.
    """
    if env is None:
        return values
    own = getattr(env, f"normalize_{what}_tensor", None)
    if own is not None:
        return own(values)  # type: ignore[no-any-return]
    if what == "obs":
        if not env.norm_obs:
            return values
        mean = th.as_tensor(env.obs_rms.mean, device=values.device)  # type: ignore[union-attr]
        std = th.as_tensor(np.sqrt(env.obs_rms.var + env.epsilon), device=values.device)  # type: ignore[union-attr]
        return ((values - mean) / std).clamp(-env.clip_obs, env.clip_obs).to(th.float32)
    if not env.norm_reward:
        return values
    std = th.as_tensor(np.sqrt(env.ret_rms.var + env.epsilon), device=values.device)
    return (values / std).clamp(-env.clip_reward, env.clip_reward).to(th.float32)
