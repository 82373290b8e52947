"""SB3's rollout buffer in tensors on a device."""

from __future__ import annotations

from typing import Any, Generator, NamedTuple, Union

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from sb3_isaac.buffers.storage import existing_device, float32_exact_dtype, restore_generator, save_generator
from sb3_isaac.settings.check import check
from sb3_isaac.settings.memory import check_memory, rollout_bytes

ArrayOrTensor = Union[np.ndarray, th.Tensor]


class RolloutTensors(NamedTuple):
    """Views of the storage of a :class:`DeviceRolloutBuffer`: float32, on its device, time first, written in place."""

    observations: th.Tensor
    """(n_steps, N, *obs_shape), what the agent acted on"""
    actions: th.Tensor
    """(n_steps, N, action_dim)"""
    rewards: th.Tensor
    """(n_steps, N), with the bootstrapped value of truncated episodes added"""
    episode_starts: th.Tensor
    """(n_steps, N), 1 where the observation is the first of an episode"""
    values: th.Tensor
    """(n_steps, N)"""
    log_probs: th.Tensor
    """(n_steps, N)"""
    advantages: th.Tensor
    """(n_steps, N), after compute_returns_and_advantage"""
    returns: th.Tensor
    """(n_steps, N), after compute_returns_and_advantage"""


class StepColumn:
    """Storage (n_steps, N, ...) that is written step by step, each a copy."""

    def __init__(self, storage: th.Tensor) -> None:
        self.storage = storage
        self._steps = storage.unbind(0)

    def put(self, step: int | th.Tensor, value: th.Tensor) -> None:
        """:param step: a number, or (1,) int64 on the device, which a graph can count"""
        if isinstance(step, int):
            self._steps[step].copy_(value)
        else:
            self.storage.index_copy_(0, step, value.unsqueeze(0).to(self.storage.dtype))


def _as_array(name: str) -> Any:
    """SB3's attribute ``name`` as the numpy array (n_steps, N, ...) that SB3's own code expects."""

    def get(buffer: DeviceRolloutBuffer) -> np.ndarray:
        array: np.ndarray = getattr(buffer.tensors, name).cpu().numpy()
        return array

    def set_(buffer: DeviceRolloutBuffer, value: ArrayOrTensor) -> None:
        getattr(buffer.tensors, name).copy_(th.as_tensor(value))

    return property(get, set_, doc=f"``tensors.{name}`` as numpy: a view of it on the CPU, elsewhere a copy that waits.")


class DeviceRolloutBuffer(RolloutBuffer):
    """SB3's ``RolloutBuffer`` in packed rows on a torch device, filled in place.

    What a minibatch needs of a transition is one row ``[obs, action, value, log_prob, advantage, return]``, so that one
    gather serves a minibatch; ``tensors`` are views of it. The attributes with SB3's names (``values``, ``returns``, ...)
    give numpy arrays for SB3's own code. Unlike SB3's they stay (n_steps, N, ...) after :meth:`get`, and all are float32.

    :param buffer_size: n_steps, transitions per env
    :param device: where the storage is and where minibatches are drawn
    :param gae_lambda: factor of GAE (https://arxiv.org/abs/1506.02438)
    :param gamma: discount
    :param n_envs: N
    :raises ValueError: for Dict and Tuple observations and integers that float32 cannot hold exactly, for numbers out of range
    :raises MemoryError: before anything is allocated, if ``device`` has not enough free memory
    """

    tensors: RolloutTensors
    generator: th.Generator | None
    """Draws the minibatches; None: torch's default generator of the device, which SB3 seeds."""

    observations = _as_array("observations")
    actions = _as_array("actions")
    rewards = _as_array("rewards")
    episode_starts = _as_array("episode_starts")
    values = _as_array("values")
    log_probs = _as_array("log_probs")
    advantages = _as_array("advantages")
    returns = _as_array("returns")

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: th.device | str = "auto",
        gae_lambda: float = 1,
        gamma: float = 0.99,
        n_envs: int = 1,
    ) -> None:
        given = {"n_steps": buffer_size, "n_envs": n_envs, "gamma": gamma, "gae_lambda": gae_lambda}
        check("entry", given, where="DeviceRolloutBuffer's arguments")
        float32_exact_dtype(observation_space, "DeviceRolloutBuffer: observations")
        float32_exact_dtype(action_space, "DeviceRolloutBuffer: actions")
        super().__init__(buffer_size, observation_space, action_space, device, gae_lambda, gamma, n_envs)
        self.generator = None
        self.obs_dim = int(np.prod(self.obs_shape))
        self._allocate(0)

    def _allocate(self, n_columns: int) -> None:
        """:param n_columns: of the distributions"""
        n_steps, n = self.buffer_size, self.n_envs
        widths = [self.obs_dim, self.action_dim, 1, 1, 1, 1, n_columns]
        needs = {
            f"rollouts of {n_steps} steps of {n} environments": rollout_bytes(
                n_steps, n, self.obs_dim, self.action_dim, n_columns
            )
        }
        check_memory(needs, self.device, "lower n_steps or n_envs")
        table = th.zeros(n_steps, n, sum(widths), device=self.device)
        self.rows = table.flatten(0, 1)
        """(n_steps * N, columns): the packed rows, of env e at step t in row t * N + e"""
        obs, actions, *scalars, distributions = th.split(table, widths, 2)
        values, log_probs, advantages, returns = (scalar.squeeze(2) for scalar in scalars)
        rewards, episode_starts = th.zeros(2, n_steps, n, device=self.device)
        obs = obs.view(n_steps, n, *self.obs_shape)
        self.tensors = RolloutTensors(obs, actions, rewards, episode_starts, values, log_probs, advantages, returns)
        self.distributions = distributions
        """(n_steps, N, columns), see :meth:`keep_distributions`"""
        # SB3 counts transitions env by env, the rows are step by step: row of SB3's i-th transition
        self._row_of = th.arange(n_steps * n, device=self.device).view(n_steps, n).t().reshape(-1)
        columns = [obs, actions, rewards, values, log_probs] + [distributions] * (n_columns > 0)
        self._columns = [StepColumn(column) for column in columns]

    def __getstate__(self) -> dict[str, Any]:
        """Numpy arrays and the name of the device, so that it loads without a GPU."""
        state = {**self.__dict__, "device": str(self.device), "generator": save_generator(self.generator)}
        for name in ("rows", "distributions", "_columns", "_row_of"):
            del state[name]
        state["tensors"] = {name: tensor.cpu().numpy() for name, tensor in self.tensors._asdict().items()}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Back to the device it came from, or to the nearest one that this machine has. Old pickles hold tensors."""
        state = {name: value for name, value in state.items() if name not in ("_scalars", "_place")}
        saved = state.pop("tensors")
        saved = saved if isinstance(saved, dict) else saved._asdict()
        state["device"] = existing_device(state["device"])
        if not isinstance(state["generator"], th.Generator):
            state["generator"] = restore_generator(state["generator"], state["device"])
        self.__dict__.update(state)
        self.obs_dim = int(np.prod(self.obs_shape))
        self._allocate(0)
        for name, value in saved.items():
            getattr(self.tensors, name).copy_(th.as_tensor(value))

    def keep_distributions(self, n_columns: int) -> None:
        """Keep for each transition also what its action was drawn from. What is stored is lost if that was not so before.

        :param n_columns: numbers for each transition, 0 for none
        """
        if n_columns != self.distributions.shape[2]:
            self._allocate(n_columns)

    def reset(self) -> None:
        """Start a new rollout; the storage is overwritten as it comes, and made anew for another ``buffer_size``."""
        # RolloutBuffer.__init__ calls this, too
        if "rows" in vars(self) and len(self.rows) != self.buffer_size * self.n_envs:
            self._allocate(self.distributions.shape[2])
        self.pos = 0
        self.full = False

    def add_tensors(
        self,
        obs: th.Tensor,
        actions: th.Tensor,
        rewards: th.Tensor,
        episode_starts: th.Tensor,
        values: th.Tensor,
        log_probs: th.Tensor,
    ) -> None:
        """Add one step of all envs. Copies, and does not wait for the device if the arguments are on it.

        :param obs: (N, *obs_shape), what the agent acted on
        :param actions: (N, action_dim) or (N,), as the policy gave them (not clipped)
        :param rewards: (N,), where truncated plus ``gamma * V(final_obs)``
        :param episode_starts: (N,) bool or float, whether ``obs`` is the first of an episode
        :param values: (N,) or (N, 1), V(obs)
        :param log_probs: (N,)
        :raises RuntimeError: if the buffer is full
        """
        if self.full:
            raise RuntimeError(
                f"DeviceRolloutBuffer is full after n_steps={self.buffer_size} steps, call reset() before adding more."
            )
        self.tensors.episode_starts[self.pos].copy_(episode_starts.reshape(self.n_envs))
        self.put(self.pos, obs, actions, rewards, values, log_probs)
        self.pos += 1
        self.full = self.pos == self.buffer_size

    def put(
        self,
        step: int | th.Tensor,
        obs: th.Tensor,
        actions: th.Tensor,
        rewards: th.Tensor,
        values: th.Tensor,
        log_probs: th.Tensor,
        distributions: th.Tensor | None = None,
    ) -> None:
        """Write one step of all envs, without counting it. For the arguments see :meth:`add_tensors`.

        :param step: a number, or (1,) int64 on the device, which a graph can count
        :param distributions: (N, columns), not looked at unless they are kept, see :meth:`keep_distributions`
        """
        n = self.n_envs
        shaped = (obs.reshape(n, *self.obs_shape), actions.reshape(n, self.action_dim), rewards.reshape(n))
        given = (*shaped, values.reshape(n), log_probs.reshape(n), distributions)
        for column, value in zip(self._columns, given):
            if value is not None:
                column.put(step, value)

    def add(
        self,
        obs: ArrayOrTensor,
        action: ArrayOrTensor,
        reward: ArrayOrTensor,
        episode_start: ArrayOrTensor,
        value: th.Tensor,
        log_prob: th.Tensor,
    ) -> None:
        """Add one step of all envs as SB3 does, from numpy arrays or tensors.

        :raises RuntimeError: if the buffer is full
        :raises ValueError: if an argument is not for N envs
        """
        names = ("obs", "action", "reward", "episode_start", "value", "log_prob")
        sizes = (int(np.prod(self.obs_shape)), self.action_dim, 1, 1, 1, 1)
        tensors = [th.as_tensor(x) for x in (obs, action, reward, episode_start, value, log_prob)]
        for name, size, tensor in zip(names, sizes, tensors):
            if tensor.numel() != self.n_envs * size:
                raise ValueError(
                    f"DeviceRolloutBuffer.add: {name} has shape {tuple(tensor.shape)}, expected {self.n_envs} x {size}."
                )
        self.add_tensors(*tensors)

    def compute_returns_and_advantage(self, last_values: ArrayOrTensor, dones: ArrayOrTensor) -> None:
        """GAE(lambda) advantages (https://arxiv.org/abs/1506.02438) and the returns ``advantages + values``.

        :param last_values: (N,) or (N, 1), V of the observations after the last step
        :param dones: (N,) bool or float, whether the episode ended at the last step
        """
        tensors = self.tensors
        last_values = th.as_tensor(last_values, dtype=th.float32, device=self.device).reshape(1, self.n_envs)
        dones = th.as_tensor(dones, dtype=th.float32, device=self.device).reshape(1, self.n_envs)
        # --8<-- [start:gae]
        next_values = th.cat((tensors.values[1:], last_values))
        not_done = 1.0 - th.cat((tensors.episode_starts[1:], dones))  # the next observation is of the same episode
        # delta = r + gamma V(next) - V, in SB3's order of operations, so that the rounding is SB3's
        advantages = next_values.mul_(self.gamma).mul_(not_done).add_(tensors.rewards).sub_(tensors.values)
        decay = not_done.mul_(self.gamma * self.gae_lambda).unbind(0)
        steps = advantages.unbind(0)
        for step in reversed(range(self.buffer_size - 1)):
            steps[step].addcmul_(decay[step], steps[step + 1])
        tensors.advantages.copy_(advantages)
        th.add(advantages, tensors.values, out=tensors.returns)
        # --8<-- [end:gae]

    def get(self, batch_size: int | None = None) -> Generator[RolloutBufferSamples, None, None]:
        """All transitions once, in random order, in minibatches.

        :param batch_size: transitions in a minibatch (the last one may be smaller); None: all in one
        :raises RuntimeError: if the rollout is not complete
        """
        if not self.full:
            raise RuntimeError(
                f"DeviceRolloutBuffer has {self.pos} of n_steps={self.buffer_size} steps, fill it before calling get()."
            )
        for rows in self.shuffled(batch_size):
            yield self._samples(rows)

    def shuffled(self, batch_size: int | None = None) -> tuple[th.Tensor, ...]:
        """The rows that the minibatches of :meth:`get` consist of, in a new random order."""
        total = self.buffer_size * self.n_envs
        order = th.randperm(total, device=self.device, generator=self.generator)
        return tuple(th.split(self._row_of.index_select(0, order), int(batch_size or total)))

    def _get_samples(self, batch_inds: ArrayOrTensor, env: VecNormalize | None = None) -> RolloutBufferSamples:
        """The transitions at ``env * n_steps + step``: SB3's count, as after its ``swap_and_flatten``."""
        return self._samples(self._row_of.index_select(0, th.as_tensor(batch_inds, device=self.device)))

    def _samples(self, rows: th.Tensor) -> RolloutBufferSamples:
        batch, first = self.rows.index_select(0, rows), self.obs_dim + self.action_dim
        values, log_probs, advantages, returns = batch[:, first : first + 4].unbind(1)
        return RolloutBufferSamples(
            observations=batch[:, : self.obs_dim].reshape(-1, *self.obs_shape),
            actions=batch[:, self.obs_dim : first],
            old_values=values,
            old_log_prob=log_probs,
            advantages=advantages,
            returns=returns,
        )
