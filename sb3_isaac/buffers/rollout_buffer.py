"""SB3's rollout buffer in tensors on a device."""

from __future__ import annotations

from typing import Any, Generator, NamedTuple, Union

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from sb3_isaac.buffers.storage import float32_exact_dtype

ArrayOrTensor = Union[np.ndarray, th.Tensor]


class RolloutTensors(NamedTuple):
    """The storage of a :class:`DeviceRolloutBuffer`: float32, on its device, time first, written in place."""

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


def _as_array(name: str) -> Any:
    """SB3's attribute ``name`` as the numpy array (n_steps, N, ...) that SB3's own code expects."""

    def get(buffer: DeviceRolloutBuffer) -> np.ndarray:
        array: np.ndarray = getattr(buffer.tensors, name).cpu().numpy()
        return array

    return property(get, doc=f"``tensors.{name}`` as numpy: a view of it on the CPU, elsewhere a copy that waits.")


class DeviceRolloutBuffer(RolloutBuffer):
    """SB3's ``RolloutBuffer`` whose storage is preallocated on a torch device and filled in place.

    ``tensors`` holds the data. The attributes with SB3's names (``values``, ``returns``, ...) give numpy arrays for
    SB3's own code. Unlike SB3's they stay (n_steps, N, ...) after :meth:`get`, and all are float32.

    :param buffer_size: n_steps, transitions per env
    :param device: where the storage is and where minibatches are drawn
    :param gae_lambda: factor of GAE (https://arxiv.org/abs/1506.02438)
    :param gamma: discount
    :param n_envs: N
    :raises ValueError: for Dict and Tuple observations and for integers that float32 cannot hold exactly
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
        float32_exact_dtype(observation_space, "DeviceRolloutBuffer: observations")
        float32_exact_dtype(action_space, "DeviceRolloutBuffer: actions")
        super().__init__(buffer_size, observation_space, action_space, device, gae_lambda, gamma, n_envs)
        self.generator = None
        shape = (buffer_size, n_envs)
        # One tensor for all that a minibatch needs of one number per transition: one gather instead of four
        self._scalars = th.zeros((4, *shape), device=self.device)
        values, log_probs, advantages, returns = self._scalars.unbind(0)
        self.tensors = RolloutTensors(
            observations=th.zeros((*shape, *self.obs_shape), device=self.device),
            actions=th.zeros((*shape, self.action_dim), device=self.device),
            rewards=th.zeros(shape, device=self.device),
            episode_starts=th.zeros(shape, device=self.device),
            values=values,
            log_probs=log_probs,
            advantages=advantages,
            returns=returns,
        )
        # SB3 counts transitions env by env, the storage is step by step: place of SB3's i-th transition
        self._place = th.arange(buffer_size * n_envs, device=self.device).view(shape).t().reshape(-1)

    def reset(self) -> None:
        """Start a new rollout; the storage is overwritten as it comes."""
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
        tensors, n, step = self.tensors, self.n_envs, self.pos
        tensors.observations[step].copy_(obs.reshape(n, *self.obs_shape))
        tensors.actions[step].copy_(actions.reshape(n, self.action_dim))
        tensors.rewards[step].copy_(rewards.reshape(n))
        tensors.episode_starts[step].copy_(episode_starts.reshape(n))
        tensors.values[step].copy_(values.reshape(n))
        tensors.log_probs[step].copy_(log_probs.reshape(n))
        self.pos += 1
        self.full = self.pos == self.buffer_size

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
        next_values = th.cat((tensors.values[1:], last_values))
        going_on = 1.0 - th.cat((tensors.episode_starts[1:], dones))  # the next observation is of the same episode
        # delta = r + gamma V(next) - V, in SB3's order of operations, so that the rounding is SB3's
        advantages = tensors.advantages
        th.mul(next_values, self.gamma, out=advantages)
        advantages.mul_(going_on).add_(tensors.rewards).sub_(tensors.values)
        decay = going_on.mul_(self.gamma * self.gae_lambda).unbind(0)
        rows = advantages.unbind(0)
        for step in reversed(range(self.buffer_size - 1)):
            rows[step].addcmul_(decay[step], rows[step + 1])
        th.add(advantages, tensors.values, out=tensors.returns)

    def leave_out(self, valid: th.Tensor) -> None:
        """Put the transition before it (in the first row: after it) in the place of each that did not happen.

        Call it after :meth:`compute_returns_and_advantage`. What surrounds such a transition is not touched by it: the one
        before has ended its episode.

        :param valid: (n_steps, N) bool, see :attr:`~sb3_isaac.envs.vec_env.IsaacVecEnv.valid`
        """
        rows = th.arange(self.buffer_size, device=self.device).unsqueeze(1) - (~valid).long()
        rows = rows.abs().clamp(max=self.buffer_size - 1)  # -1, before the first row, becomes 1
        for tensor in self.tensors:
            index = rows.view(*rows.shape, *[1] * (tensor.dim() - 2)).expand_as(tensor)
            tensor.copy_(tensor.gather(0, index))

    def get(self, batch_size: int | None = None) -> Generator[RolloutBufferSamples, None, None]:
        """All transitions once, in random order, in minibatches.

        :param batch_size: transitions in a minibatch (the last one may be smaller); None: all in one
        :raises RuntimeError: if the rollout is not complete
        """
        if not self.full:
            raise RuntimeError(
                f"DeviceRolloutBuffer has {self.pos} of n_steps={self.buffer_size} steps, fill it before calling get()."
            )
        for indices in self.shuffled(batch_size):
            yield self._get_samples(indices)

    def shuffled(self, batch_size: int | None = None) -> tuple[th.Tensor, ...]:
        """Which transitions the minibatches of :meth:`get` consist of: ``env * n_steps + step``, in a new random order."""
        total = self.buffer_size * self.n_envs
        order = th.randperm(total, device=self.device, generator=self.generator)
        return tuple(th.split(order, batch_size or total))

    def _get_samples(self, batch_inds: ArrayOrTensor, env: VecNormalize | None = None) -> RolloutBufferSamples:
        """The transitions at ``env * n_steps + step``: SB3's count, as after its ``swap_and_flatten``."""
        tensors = self.tensors
        place = self._place.index_select(0, th.as_tensor(batch_inds, device=self.device))
        values, log_probs, advantages, returns = self._scalars.flatten(1).index_select(1, place).unbind(0)
        return RolloutBufferSamples(
            observations=tensors.observations.flatten(0, 1).index_select(0, place),
            actions=tensors.actions.flatten(0, 1).index_select(0, place),
            old_values=values,
            old_log_prob=log_probs,
            advantages=advantages,
            returns=returns,
        )
