"""SB3's replay buffer in packed rows on a torch device, with n-step returns. Import it from ``sb3_isaac.buffers``."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, Sequence

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecNormalize

from sb3_isaac.buffers import fused, native, storage
from sb3_isaac.settings.check import check

# The flag of a transition: the ends of an episode kept apart in one float. A termination has nothing to bootstrap from,
# a truncation has if time limits are handled. Behind a cut the episode would go on, but its next transition is not known.
RUNNING, TERMINATED, TRUNCATED, CUT = 0.0, 1.0, 2.0, -1.0

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
    discounts: th.Tensor | None = None
    """(B, 1) float32, gamma ** (number of rewards summed); None for n_steps=1, where it is gamma itself"""


def _as_float32(value: Any) -> th.Tensor:
    """An array, list or tensor as a float32 tensor, on its own device."""
    if isinstance(value, th.Tensor):
        return value.to(th.float32)
    # torch takes neither negative strides nor all of numpy's integers
    return th.from_numpy(np.array(value, dtype=np.float32, order="C"))


def as_sb3(samples: ReplaySamples) -> ReplayBufferSamples:
    """SB3's tuple.

    :raises RuntimeError: for n-step returns and SB3 before 2.7
    """
    if samples.discounts is not None and not SB3_HAS_DISCOUNTS:
        raise RuntimeError(
            "DeviceReplayBuffer: algorithms of SB3 before 2.7 would discount n-step returns by gamma, use n_steps=1, "
            "sb3_isaac's own algorithms or a newer SB3."
        )
    return ReplayBufferSamples(**{name: getattr(samples, name) for name in ReplayBufferSamples._fields})


@functools.lru_cache(maxsize=None)  # CUDA graphs read them where they are
def steps_and_powers(n_steps: int, gamma: float, device: th.device) -> tuple[th.Tensor, th.Tensor]:
    """0 to n_steps - 1 as (n_steps, 1) int64, and gamma to the powers 0 to n_steps as (n_steps + 1,) float32."""
    steps = th.arange(n_steps, device=device).view(-1, 1)
    return steps, gamma ** th.arange(n_steps + 1, dtype=th.float32, device=device)


class DeviceReplayBuffer(ReplayBuffer):
    """SB3's ``ReplayBuffer`` and ``NStepReplayBuffer`` as one float32 tensor on a torch device.

    A transition is a row ``[obs, action, reward, flag, next_obs]``, so that one gather serves a sample, in exactly
    ``4 * (2 * obs_dim + action_dim + 2)`` bytes: 44 for Cartpole, 44 MB for a million. With ``optimize_memory_usage``
    next_obs is read from the next row, and it is ``4 * (obs_dim + action_dim + 2)``.

    It works in stock SB3, ``DQN(..., replay_buffer_class=DeviceReplayBuffer)``. Samples are views into one batch,
    float32 (float64 observations are rounded) except for integer spaces, which come back as SB3 gives them. With
    everything on one device neither adding (:meth:`add_tensors`) nor sampling waits for the device.

    ``n_steps > 1`` sums rewards at sample time (Sutton and Barto 2018, chapter 7; SB3's ``NStepReplayBuffer``): up to
    a termination, up to a truncation, bootstrapping from the true final observation, or up to the newest transition;
    ``discounts`` has the power of gamma that belongs to it.

    :param buffer_size: transitions of all envs together; ``max(buffer_size // n_envs, 1)`` rows, as in SB3
    :param device: where samples land
    :param optimize_memory_usage: store each observation once. This loses the final observations from which time limits
        bootstrap, so, as in SB3, it needs ``handle_timeout_termination=False``. Works with ``n_steps``.
    :param handle_timeout_termination: bootstrap at time limits; if False they count as terminations
    :param n_steps: number of rewards to sum
    :param gamma: discount of the n-step return, the same as the algorithm's
    :param storage_device: where the rows are, for buffers larger than the GPU; None: on ``device``
    :param generator: draws the samples, on ``storage_device``; None: torch's default generator, which SB3 seeds
    :raises ValueError: for Dict, Tuple and uint8 observations and integers that float32 cannot hold, for
        ``optimize_memory_usage`` with ``handle_timeout_termination`` or a single row, and for numbers out of range
    :raises MemoryError: before anything is allocated, if ``storage_device`` has not enough free memory
    """

    in_c = False
    """Whether rows are packed and drawn in C, where all is on a CPU, see ``replay.c``"""
    in_triton = False
    """Whether rows are drawn in Triton, where all is on a device that has it, see ``fused.py``"""

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        *,
        n_steps: int = 1,
        gamma: float = 0.99,
        storage_device: th.device | str | None = None,
        generator: th.Generator | None = None,
    ) -> None:
        who = "DeviceReplayBuffer"
        given = {"buffer_size": buffer_size, "n_envs": n_envs, "n_steps": n_steps, "gamma": gamma}
        check("entry", given, where=f"{who}'s arguments")
        # numpy's numbers are not torch's everywhere
        buffer_size, n_envs, n_steps, gamma = int(buffer_size), int(n_envs), int(n_steps), float(gamma)
        if isinstance(observation_space, spaces.Box) and observation_space.dtype == np.uint8:
            raise ValueError(f"{who} would take four times the memory of uint8 images, use SB3's own ReplayBuffer.")
        if optimize_memory_usage and handle_timeout_termination:
            raise ValueError(
                f"{who}: optimize_memory_usage loses the final observations from which time limits bootstrap, pass "
                "handle_timeout_termination=False in replay_buffer_kwargs or leave optimize_memory_usage off."
            )
        if optimize_memory_usage and buffer_size // n_envs < 2:
            raise ValueError(f"{who}: optimize_memory_usage needs buffer_size >= 2 * n_envs, got {buffer_size}.")
        self._obs_dtype = storage.float32_exact_dtype(observation_space, f"{who}: observations")
        self._action_dtype = storage.float32_exact_dtype(action_space, f"{who}: actions") or th.float32
        # BaseBuffer's, because ReplayBuffer's would allocate numpy arrays
        super(ReplayBuffer, self).__init__(buffer_size, observation_space, action_space, device, n_envs=n_envs)
        self.buffer_size = max(buffer_size // n_envs, 1)
        self.optimize_memory_usage = optimize_memory_usage
        self.handle_timeout_termination = handle_timeout_termination
        self.n_steps = n_steps
        self.gamma = gamma
        self._obs_dim = int(np.prod(self.obs_shape))
        self._reward_at = self._obs_dim + self.action_dim  # then the flag, then next_obs
        self._width = self._reward_at + 2 + (0 if optimize_memory_usage else self._obs_dim)
        self._storage_follows_device = storage_device is None
        where = self.device if storage_device is None else get_device(storage_device)
        if generator is not None and generator.device.type != where.type:
            raise ValueError(f"{who}: the generator is on {generator.device} but the storage on {where}.")
        self.generator = generator
        self._storage = self._allocate(where)

    def _allocate(self, device: th.device) -> th.Tensor:
        """(buffer_size, n_envs, width) zeros."""
        free = storage.free_memory(device)
        if free is not None and self.nbytes > free:
            raise MemoryError(
                f"DeviceReplayBuffer needs {self.nbytes / 1e9:.2f} GB on {device} ({self.buffer_size} rows x "
                f"{self.n_envs} envs x {self.bytes_per_transition} bytes) and {free / 1e9:.2f} GB are free: lower "
                "buffer_size, or set storage_device to where there is more memory."
            )
        return storage.zeros((self.buffer_size, self.n_envs, self._width), device)

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

    @property
    def device(self) -> th.device:
        """Where samples land. SB3 sets it after loading; the storage follows if ``storage_device`` was not given."""
        return self._device

    @device.setter
    def device(self, device: th.device | str) -> None:
        self._device = th.device(device)
        loaded = "_storage" in self.__dict__  # not yet while BaseBuffer.__init__ sets the device
        if loaded and self._storage_follows_device and self._storage.device.type != self._device.type:
            self._storage = self._allocate(self._device).copy_(self._storage)
            self.generator = storage.restore_generator(storage.save_generator(self.generator), self._device)

    def _view(self, start: int, shape: tuple[int, ...]) -> th.Tensor:
        columns = self._storage[..., start : start + int(np.prod(shape))]
        return columns.view(self.buffer_size, self.n_envs, *shape)

    # SB3's names for the columns: (buffer_size, n_envs, ...) views into the storage, so that writing works too

    @property
    def observations(self) -> th.Tensor:  # type: ignore[override]
        """(buffer_size, n_envs, *obs_shape)"""
        return self._view(0, self.obs_shape)

    @property
    def next_observations(self) -> th.Tensor:  # type: ignore[override]
        """(buffer_size, n_envs, *obs_shape)"""
        if self.optimize_memory_usage:
            raise AttributeError("DeviceReplayBuffer: with optimize_memory_usage, observations has the next ones too.")
        return self._view(self._reward_at + 2, self.obs_shape)

    @property
    def actions(self) -> th.Tensor:  # type: ignore[override]
        """(buffer_size, n_envs, action_dim), as float32"""
        return self._view(self._obs_dim, (self.action_dim,))

    @property
    def rewards(self) -> th.Tensor:  # type: ignore[override]
        """(buffer_size, n_envs)"""
        return self._storage[..., self._reward_at]

    @property
    def dones(self) -> th.Tensor:  # type: ignore[override]
        """(buffer_size, n_envs): 0 goes on, 1 terminated, 2 truncated, -1 cut. SB3 writes True (1) to end an episode."""
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
        """Add a step of all N envs. Copies; does not wait for the device if the storage is on it.

        :param obs: (N, *obs_shape), what the agent acted on
        :param next_obs: (N, *obs_shape), the true next observation: ``StepResult.final_obs``, not ``obs``
        :param actions: (N, action_dim) or (N,)
        :param rewards: (N,)
        :param terminated: (N,) bool, wins over truncated
        :param truncated: (N,) bool
        """
        stored = self._storage[self.pos]
        in_place = obs.device == stored.device and not self.optimize_memory_usage
        self.add_row(self.pack(obs, next_obs, actions, rewards, terminated, truncated, out=stored if in_place else None))

    def pack(
        self,
        obs: th.Tensor,
        next_obs: th.Tensor,
        actions: th.Tensor,
        rewards: th.Tensor,
        terminated: th.Tensor,
        truncated: th.Tensor,
        out: th.Tensor | None = None,
    ) -> th.Tensor:
        """A step of all N envs as one tensor for :meth:`add_row`; changes nothing, so a CUDA graph may capture it."""
        n = self.n_envs
        if self._all_in_c:
            row = self._storage.new_empty(n, self._reward_at + 2 + self._obs_dim) if out is None else out
            native.replay_pack(obs, next_obs, actions, rewards, terminated, truncated, row, self.action_dim)
            return row
        columns = (
            obs.reshape(n, self._obs_dim).to(th.float32),
            actions.reshape(n, self.action_dim).to(th.float32),
            rewards.reshape(n, 1).to(th.float32),
            (truncated * TRUNCATED).masked_fill_(terminated, TERMINATED).reshape(n, 1),
            next_obs.reshape(n, self._obs_dim).to(th.float32),
        )
        return th.cat(columns, dim=1) if out is None else th.cat(columns, dim=1, out=out)

    def rewards_of(self, row: th.Tensor) -> th.Tensor:
        """The rewards (N,) in what :meth:`pack` gave, a view."""
        return row[:, self._obs_dim + self.action_dim]

    def add_row(self, row: th.Tensor) -> None:
        """Add what :meth:`pack` gave."""
        stored = self._storage[self.pos]
        if row.data_ptr() != stored.data_ptr():  # else it was packed in place
            row = row.to(stored.device)
            stored.copy_(row[:, : self._width])
        self.pos += 1
        if self.pos == self.buffer_size:
            self.full, self.pos = True, 0
        if self.optimize_memory_usage:
            self._storage[self.pos, :, : self._obs_dim] = row[:, self._width :]

    def add(
        self,
        obs: np.ndarray,
        next_obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: Sequence[dict[str, Any]],
    ) -> None:
        """Add a step of all N envs, as SB3 does. Infos with a ``truncated`` array (N,) are not looked into.

        As in SB3, n-step returns stop at ``TimeLimit.truncated`` also where ``done`` is False.

        :raises ValueError: if an argument is not for N envs
        """
        expected = {"obs": self._obs_dim, "next_obs": self._obs_dim, "action": self.action_dim, "reward": 1}
        tensors = [_as_float32(value) for value in (obs, next_obs, action, reward)]
        for (name, size), tensor in zip(expected.items(), tensors):
            if tensor.numel() != self.n_envs * size:
                raise ValueError(
                    f"DeviceReplayBuffer.add: {name} has shape {tuple(tensor.shape)}, expected {self.n_envs} x {size}."
                )
        done = np.broadcast_to(np.asarray(done, dtype=bool).reshape(-1), self.n_envs)
        truncated = np.zeros_like(done)
        if self.handle_timeout_termination:
            known = getattr(infos, "truncated", None)
            if known is None:
                known = [info.get("TimeLimit.truncated", False) for info in infos]
            truncated[:] = known
        self.add_tensors(
            tensors[0], tensors[1], tensors[2], tensors[3], th.from_numpy(done & ~truncated), th.from_numpy(truncated)
        )
        cut = truncated & ~done
        if cut.any():
            self.dones[self.newest, th.from_numpy(cut).to(self.storage_device)] = CUT

    def end_trajectories(self) -> None:
        """Call it when the envs were reset from outside, so that no n-step return runs over the cut.

        Episodes still running are cut at their newest transition: they bootstrap from its next_obs. Where that is lost
        (``optimize_memory_usage``), they count as terminated, as in SB3.
        """
        if self.full or self.pos > 0:
            newest = self.dones[self.newest]
            newest.masked_fill_(newest == RUNNING, TRUNCATED if self.optimize_memory_usage else CUT)

    def newest_rows(self, n: int) -> list[th.Tensor]:
        """Views (steps, n_envs, width) of the ``n`` newest steps, those at the end of the storage first."""
        n = min(n, self.buffer_size if self.full else self.pos)
        return [self._storage[self.buffer_size - max(n - self.pos, 0) :], self._storage[max(self.pos - n, 0) : self.pos]]

    def drop_newest(self, n: int) -> None:
        """Forget the ``n`` newest steps. What they have overwritten is gone: a full buffer is no longer full."""
        n = min(n, self.buffer_size if self.full else self.pos)
        if self.full and n > 0:
            order = th.arange(self.pos, self.pos + self.buffer_size, device=self.storage_device) % self.buffer_size
            for column in self._storage.unbind(2):  # one by one, to save memory
                column.copy_(column[order])
            self.full, self.pos = False, self.buffer_size
        self.pos -= n
        self._storage[self.pos : self.pos + n].zero_()
        self.end_trajectories()

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """Draw transitions with replacement, as SB3's tuple.

        :param env: normalise observations and rewards with its statistics
        :raises ValueError: if the buffer is empty
        :raises RuntimeError: if ``n_steps > 1`` and SB3 is older than 2.7
        """
        return as_sb3(self.sample_tensors(batch_size, env))

    def sample_tensors(self, batch_size: int, env: VecNormalize | None = None) -> ReplaySamples:
        """As :meth:`sample`, but with ``discounts`` on every SB3 version."""
        return self.at(self.draw(batch_size), env)

    def draw(self, batch_size: int) -> th.Tensor:
        """(batch_size,) random flat indices ``row * n_envs + env``."""
        if not self.full and self.pos == 0:
            raise ValueError("DeviceReplayBuffer is empty, add transitions before sampling.")
        total = self.size() * self.n_envs
        # Leave out the oldest row if its observation was overwritten by the newest transition's next one
        first = self.n_envs if self.optimize_memory_usage and self.full else 0
        index = th.randint(first, total, (batch_size,), device=self.storage_device, generator=self.generator)
        return (index + self.pos * self.n_envs) % total if first else index

    def _get_samples(self, batch_inds: np.ndarray | th.Tensor, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """SB3's hook: the rows are given, the envs are drawn."""
        rows = th.as_tensor(batch_inds, device=self.storage_device)
        envs = th.randint(self.n_envs, rows.shape, device=self.storage_device, generator=self.generator)
        return as_sb3(self.at(rows * self.n_envs + envs, env))

    @property
    def newest(self) -> int:
        """The row of the newest transitions."""
        return (self.pos - 1) % self.buffer_size

    def at(self, index: th.Tensor, env: VecNormalize | None = None, newest: int | th.Tensor | None = None) -> ReplaySamples:
        """The transitions at the given indices.

        :param index: (B,) int64, ``row * n_envs + env``, on the storage's device
        :param newest: :attr:`newest`, for CUDA graphs as a tensor () on the storage's device
        """
        factors = self._factors(index, env) if self._all_in_c or self._all_in_triton else None
        if factors is not None:
            return self._at_in_kernels(index, factors, self.newest if newest is None else newest)
        first = last = self._gather(index)
        if self.n_steps == 1:
            rewards, discounts = storage.normalize(env, "reward", first[:, self._reward_at, None]), None
        else:
            rewards, discounts, index = self._n_step_returns(index, env, self.newest if newest is None else newest)
            last = self._gather(index)
        if self.optimize_memory_usage:
            next_obs = self._gather((index + self.n_envs) % (self.buffer_size * self.n_envs))[:, : self._obs_dim]
        else:
            next_obs = last[:, self._reward_at + 2 :]
        flags = last[:, self._reward_at + 1, None]
        dones = flags == TERMINATED if self.handle_timeout_termination else flags > RUNNING
        return ReplaySamples(
            observations=self._observations(first[:, : self._obs_dim], env),
            actions=first[:, self._obs_dim : self._reward_at].to(self._action_dtype),
            next_observations=self._observations(next_obs, env),
            dones=dones.to(th.float32),
            rewards=rewards,
            discounts=discounts,
        )

    def _gather(self, index: th.Tensor) -> th.Tensor:
        """(B, width) rows on ``device``."""
        rows = self._storage.view(-1, self._width)
        if rows.device.type != "cpu" or (len(index) < 8192 and self._device.type == "cpu"):
            return rows.index_select(0, index).to(self._device)
        # A sum of one row each: the same numbers as index_select, but its CPU kernel prefetches. It starts more slowly.
        batch = th.nn.functional.embedding_bag(index.view(-1, 1), rows, mode="sum")
        if self._device.type == "cuda":
            # From page-locked memory the copy runs without the host waiting for it
            return batch.pin_memory().to(self._device, non_blocking=True)
        return batch.to(self._device)

    def _observations(self, obs: th.Tensor, env: VecNormalize | None) -> th.Tensor:
        obs = storage.normalize(env, "obs", obs.view(-1, *self.obs_shape))
        return obs if self._obs_dtype is None else obs.to(self._obs_dtype)

    def _n_step_returns(
        self, index: th.Tensor, env: VecNormalize | None, newest: int | th.Tensor
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Rewards summed up to n_steps, the end of the episode, or the newest transition, whichever comes first.

        :return: returns (B, 1) and discounts (B, 1) on ``device``, and the index (B,) of the last transition summed
        """
        n, rows = self.n_envs, self.buffer_size
        steps, powers = steps_and_powers(self.n_steps, self.gamma, index.device)
        window = (index + steps * n) % (rows * n)  # (n_steps, B)
        table, at = self._storage.view(-1, self._width), window.view(-1)
        rewards, flags = (
            table[:, column].index_select(0, at).view(window.shape) for column in (self._reward_at, self._reward_at + 1)
        )
        # Behind the newest transition come the oldest ones, or nothing
        until_newest = (newest - th.div(index, n, rounding_mode="floor")) % rows
        # --8<-- [start:n_step]
        goes_on = (flags[:-1] == RUNNING) & (steps[1:] <= until_newest)
        weights = (goes_on * self.gamma).cumprod(0)  # (n_steps - 1, B), of the steps after the first
        rewards = storage.normalize(env, "reward", rewards)
        returns = (weights * rewards[1:]).sum(0).add_(rewards[0])
        extra = (weights > 0.0).sum(0)
        discounts = powers.index_select(0, extra + 1)
        # --8<-- [end:n_step]
        last = (index + extra * n) % (rows * n)
        return returns.view(-1, 1).to(self._device), discounts.view(-1, 1).to(self._device), last

    # -- transitions in C, see native.py, and in Triton, see fused.py --------------------------------------------------

    @property
    def _all_in_c(self) -> bool:
        on_cpu = self._storage.device.type == "cpu" and self._device.type == "cpu"
        return self.in_c and on_cpu and type(self) is DeviceReplayBuffer  # others may do something else

    @property
    def _all_in_triton(self) -> bool:
        there, here = self._storage.device, self._device
        on_one = there.type == here.type and here.index in (None, there.index)
        narrow = max(self._obs_dim, self.action_dim) <= fused.MOST_COLUMNS
        return self.in_triton and on_one and narrow and type(self) is DeviceReplayBuffer

    def _factors(self, index: Any, env: VecNormalize | None) -> tuple[Any, ...] | None:
        """What normalises observations and rewards, as ``VecNormalize.factors`` says; None: C and Triton cannot do it, or not
        with such indices."""
        if not isinstance(index, th.Tensor) or index.dim() != 1 or index.dtype not in (th.int64, th.int32):
            return None
        if index.device != self._storage.device:
            return None
        if env is None:
            return (None, None, 0.0, None, 0.0)
        factors = env.factors() if hasattr(type(env), "factors") else None
        if factors is None or any(isinstance(x, th.Tensor) and x.device != index.device for x in factors):
            return None
        return factors if factors[0] is None or factors[0].numel() == self._obs_dim else None

    def _at_in_kernels(self, index: th.Tensor, factors: tuple[Any, ...], newest: int | th.Tensor) -> ReplaySamples:
        """:meth:`at`

        :param factors: from :meth:`_factors`
        """
        index = index.to(th.int64).contiguous()
        n, action_dim = len(index), self.action_dim
        new = self._storage.new_empty
        obs, next_obs = new(2, n, *self.obs_shape).unbind(0)
        actions = new(n, action_dim)
        dones, returns = new(2, n, 1).unbind(0)
        discounts = new(n, 1)
        written = (obs, actions, next_obs, dones, returns, discounts)
        settings = float(self.gamma), bool(self.handle_timeout_termination), factors, written
        if self._all_in_triton:
            if not isinstance(newest, th.Tensor):
                newest = th.full((), newest, device=index.device)
            powers = steps_and_powers(self.n_steps, self.gamma, index.device)[1]
            fused.replay_samples(self._storage, index, newest, powers, *settings)
        else:
            native.replay_samples(self._storage, index, int(newest), int(self.n_steps), *settings)
        return ReplaySamples(
            observations=obs if self._obs_dtype is None else obs.to(self._obs_dtype),
            actions=actions.to(self._action_dtype),
            next_observations=next_obs if self._obs_dtype is None else next_obs.to(self._obs_dtype),
            dones=dones,
            rewards=returns,
            discounts=discounts if self.n_steps > 1 else None,
        )

    def state_dict(self) -> dict[str, Any]:
        """What is in it, as tensors and numbers: the rows in use are a copy if the buffer is not full."""
        rows = self.pos + self.optimize_memory_usage  # the newest transition's next_obs is in the row after it
        used = self._storage if self.full else self._storage[:rows].clone()
        generator = None if self.generator is None else self.generator.get_state()
        return {"rows": used, "pos": self.pos, "full": self.full, "generator": generator}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned.

        :raises ValueError: the rows do not fit
        """
        rows = state["rows"]
        if rows.shape[1:] != self._storage.shape[1:] or len(rows) > self.buffer_size:
            raise ValueError(
                f"The saved replay buffer has rows {tuple(rows.shape)}, and this one holds {tuple(self._storage.shape)}: make "
                "it with the same buffer_size, environments and spaces."
            )
        self._storage[: len(rows)].copy_(rows)
        self.pos, self.full = state["pos"], state["full"]
        if self.generator is not None and state["generator"] is not None:
            self.generator.set_state(state["generator"])

    def __getstate__(self) -> dict[str, Any]:
        """Numpy arrays and names of devices, so that it loads without a GPU, and only the rows in use."""
        state = self.__dict__.copy()
        for name in ("in_c", "in_triton"):  # another machine may have no compiler
            state.pop(name, None)
        rows = self.pos + self.optimize_memory_usage  # the newest transition's next_obs is in the row after it
        state["_storage"] = self._storage[: self.buffer_size if self.full else rows].cpu().numpy()
        state["_storage_device"] = str(self._storage.device)
        state["_device"] = str(self._device)
        state["generator"] = storage.save_generator(self.generator)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Back to the devices it came from, or to the nearest ones that this machine has."""
        state = state.copy()
        where = storage.existing_device(state.pop("_storage_device"))
        rows = th.from_numpy(state.pop("_storage"))
        state["_device"] = storage.existing_device(state["_device"])
        state["generator"] = storage.restore_generator(state["generator"], where)
        self.__dict__.update(state)
        self._storage = self._allocate(where)
        self._storage[: len(rows)] = rows.to(where)
