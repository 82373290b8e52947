"""Collecting a rollout on the device: one function per step, one read of the device per rollout."""

from __future__ import annotations

import time
from typing import Any, NamedTuple, Optional, Union

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_isaac.backends.base import StepResult
from sb3_isaac.buffers.rollout_buffer import DeviceRolloutBuffer
from sb3_isaac.device.host import to_host
from sb3_isaac.device.step_graph import StepGraph, plain_settings
from sb3_isaac.ppo.fast_policy import FastActorCritic, why_not_fast
from sb3_isaac.ppo.update import unchecked_distributions


class PolicyStep(NamedTuple):
    """What happened in one step of all environments: tensors that the next step overwrites."""

    actions: th.Tensor
    clipped_actions: th.Tensor
    values: th.Tensor
    log_probs: th.Tensor
    result: StepResult
    dones: th.Tensor


class RolloutEnd(NamedTuple):
    """What the host learns of a rollout."""

    last_obs: np.ndarray
    """(N, *obs_shape), what the agent acts on next"""
    last_dones: np.ndarray
    """(N,) bool"""
    returns: np.ndarray
    """Returns of the finished episodes, in the order in which they ended"""
    lengths: np.ndarray
    """Their lengths"""
    values: Optional[th.Tensor]
    """(N, 1) on the device, V(last_obs); None if the rollout ended early"""


class _Column:
    """Storage (n_steps, N, ...) that is written row by row, each row a copy."""

    def __init__(self, storage: th.Tensor) -> None:
        self.storage = storage
        self._rows = storage.unbind(0)

    def put(self, step: Union[int, th.Tensor], value: th.Tensor) -> None:
        """:param step: a number, or (1,) int64 on the device, which a graph can count"""
        if isinstance(step, int):
            self._rows[step].copy_(value)
        else:
            self.storage.index_copy_(0, step, value.unsqueeze(0).to(self.storage.dtype))


class Rollout:
    """Steps an environment with a policy and fills a DeviceRolloutBuffer, all on the device.

    :param env: a VecEnv with a tensor path
    :param policy: an ActorCriticPolicy on the env's device
    :param buffer: where the transitions go
    :param compiled: compile the simulator's step, if it can be; on a GPU, capture the whole step in a CUDA graph
    """

    def __init__(self, env: Any, policy: ActorCriticPolicy, buffer: DeviceRolloutBuffer, compiled: bool = False) -> None:
        self.env, self.policy, self.buffer = env, policy, buffer
        if compiled:
            env.tensor_env.compile()
        self._may_capture = compiled and buffer.device.type == "cuda" and env.tensor_env.capturable
        self.env_seconds = 0.0
        """Time spent in the env since :meth:`begin` (on a GPU: until it had all its orders)"""
        n_steps, n, device = buffer.buffer_size, buffer.n_envs, buffer.device
        self.obs = th.zeros((n, *buffer.obs_shape), device=device)
        """(N, *obs_shape), what the agent acts on next"""
        # All that the host is to read in one piece: three numbers for each step and env, and the last observations
        self._log = th.zeros(3 * n_steps * n + self.obs.numel(), device=device)
        truncated, returns, lengths = self._log[: 3 * n_steps * n].view(3, n_steps, n).unbind(0)
        self._log_obs = self._log[3 * n_steps * n :].view(self.obs.shape)
        self._truncated, self._returns = _Column(truncated), _Column(returns)
        self._lengths = _Column(lengths)  # 0 where no episode ended
        self._final_obs = _Column(th.zeros((n_steps, n, *buffer.obs_shape), device=device))
        tensors = buffer.tensors
        self._obs, self._actions = _Column(tensors.observations), _Column(tensors.actions)
        self._rewards = _Column(tensors.rewards)
        self._values, self._log_probs = _Column(tensors.values), _Column(tensors.log_probs)
        space = policy.action_space
        self._low = self._high = None
        if isinstance(space, spaces.Box):
            self._low, self._high = (th.as_tensor(bound, device=device) for bound in (space.low, space.high))
        self._fast: Optional[FastActorCritic] = None
        self._host_obs: Optional[np.ndarray] = None
        self._host_dones: Optional[np.ndarray] = None
        self._next_step = 0
        self._step_on_device = th.zeros(1, dtype=th.int64, device=device)
        self._graph: Optional[StepGraph] = None
        self._graph_for: Any = None

    def belongs_to(self, env: Any, policy: Any, buffer: Any) -> bool:
        """Whether this object was made for these."""
        return env is self.env and policy is self.policy and buffer is self.buffer

    def begin(self, last_obs: np.ndarray, last_dones: np.ndarray) -> None:
        """Start a rollout where the last one ended, or elsewhere.

        :param last_obs: (N, *obs_shape), what to act on; the array from the last :class:`RolloutEnd` is not copied
        :param last_dones: (N,) bool, whether an episode begins there, likewise
        """
        self.buffer.reset()
        self._next_step, self.env_seconds = 0, 0.0
        self._step_on_device.zero_()
        starts = self.buffer.tensors.episode_starts[0]
        if last_dones is self._host_dones:
            th.gt(self._lengths.storage[-1], 0.0, out=starts)
        else:
            starts.copy_(th.as_tensor(last_dones), non_blocking=True)
        if last_obs is not self._host_obs:
            self.obs.copy_(th.as_tensor(last_obs), non_blocking=True)
        if why_not_fast(self.policy) is not None:
            self._fast = None
        elif self._fast is None:
            self._fast = FastActorCritic(self.policy, self.buffer.n_envs)
        if not self._may_capture or self._fast is None:
            self._graph = self._graph_for = None
            return
        settings = plain_settings(self.env)
        if settings != self._graph_for:  # this rollout runs without a graph, which initialises CUDA's libraries
            self._graph, self._graph_for = None, settings
        elif self._graph is None:
            self._graph = StepGraph(self.env, lambda: self._step(self._step_on_device))

    def step(self) -> PolicyStep:
        """One step of all environments."""
        step: PolicyStep = self._step(self._next_step) if self._graph is None else self._graph()
        self._next_step += 1
        return step

    def _step(self, step: Union[int, th.Tensor]) -> PolicyStep:
        """:param step: index of the step, see :class:`_Column`"""
        self._obs.put(step, self.obs)
        with th.no_grad():
            if self._fast is not None:
                actions, values, log_probs = self._fast.act(self.obs)
            else:
                with unchecked_distributions():
                    actions, values, log_probs = self.policy(self.obs)
                    values = values.squeeze(1)
            env_actions = self._for_env(actions)
            before = time.perf_counter()
            result = self.env.step_tensor(env_actions)
            self.env_seconds += time.perf_counter() - before
            self._actions.put(step, actions.reshape(self.buffer.n_envs, -1))
            self._values.put(step, values)
            self._log_probs.put(step, log_probs)
            self._rewards.put(step, result.reward)
            self._final_obs.put(step, result.final_obs)
            self._truncated.put(step, result.truncated)
            self._returns.put(step, self.env.episode_returns)
            self._lengths.put(step, self.env.episode_lengths * self.env.dones)
            self.obs.copy_(result.obs)
            if isinstance(step, th.Tensor):
                step.add_(1)
        return PolicyStep(actions, env_actions, values, log_probs, result, self.env.dones)

    def _for_env(self, actions: th.Tensor) -> th.Tensor:
        if self._low is None or self._high is None:
            return actions
        if self.policy.squash_output:
            return self._low + 0.5 * (actions + 1.0) * (self._high - self._low)
        return actions.clamp(self._low, self._high)

    def finish(self, gamma: float) -> RolloutEnd:
        """End a rollout: bootstrap truncated episodes, compute returns and advantages, read the device once.

        Time limits are no failures: the value of the true last observation is added to the reward
        (https://arxiv.org/abs/1712.00378), of all truncated episodes in one forward pass.

        :param gamma: discount factor
        :raises FloatingPointError: if observations or rewards became NaN
        """
        n_steps, buffer = self._next_step, self.buffer
        self._log_obs.copy_(self.obs)
        host = to_host(self._log)
        if np.isnan(host).any():
            raise FloatingPointError("Observations or rewards became NaN: the policy has diverged, or the simulation.")
        n_log = host.size - self._log_obs.numel()
        truncated, returns, lengths = host[:n_log].reshape(3, buffer.buffer_size, -1)[:, :n_steps]
        ended = lengths > 0.0
        last_obs, last_dones = host[n_log:].reshape(self.obs.shape).copy(), ended[-1].copy()
        complete = n_steps == buffer.buffer_size
        self._host_obs, self._host_dones = last_obs, last_dones if complete else None
        values = self._end_on_device(np.flatnonzero(truncated), gamma) if complete else None
        return RolloutEnd(last_obs, last_dones, returns[ended], lengths[ended].astype(np.int64), values)

    def _end_on_device(self, truncated: np.ndarray, gamma: float) -> th.Tensor:
        tensors = self.buffer.tensors
        dones = self._lengths.storage > 0.0
        with th.no_grad():
            if len(truncated) > 0:
                places = th.from_numpy(truncated).to(self.buffer.device, non_blocking=True)
                final_values = self._predict_values(self._final_obs.storage.flatten(0, 1).index_select(0, places))
                tensors.rewards.view(-1).index_add_(0, places, final_values * gamma)
            values = self._predict_values(self.obs)
            tensors.episode_starts[1:].copy_(dones[:-1])
            self.buffer.compute_returns_and_advantage(values, dones[-1])
        self.buffer.pos, self.buffer.full = self.buffer.buffer_size, True
        return values.unsqueeze(1)

    def _predict_values(self, obs: th.Tensor) -> th.Tensor:
        return self._fast.values(obs) if self._fast is not None else self.policy.predict_values(obs).flatten()
