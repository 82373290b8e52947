"""Collecting a rollout on the device: one function per step, one read of the device per rollout."""

from __future__ import annotations

import time
from functools import partial
from typing import Any, NamedTuple, Optional, Tuple, Union

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_isaac.backends.base import StepResult
from sb3_isaac.buffers.rollout_buffer import DeviceRolloutBuffer, StepColumn
from sb3_isaac.device.cuda_graph import Graphed, has_graphs
from sb3_isaac.device.eligibility import Watch
from sb3_isaac.device.finite import NotFiniteError, Origin, first_not_finite, is_finite
from sb3_isaac.device.host import to_host
from sb3_isaac.envs.tensor_path import (
    TensorVecEnv,
    bounds_of,
    capturable,
    generators,
    has_layers,
    layers,
    scale_actions,
)
from sb3_isaac.ppo.fast_policy import FastActorCriticPolicy
from sb3_isaac.ppo.fused import in_kernels
from sb3_isaac.ppo.fused_steps import FusedSteps
from sb3_isaac.ppo.update import unchecked_distributions

MOST_STEPS = 64
"""Of a rollout that is one graph: capturing takes time and memory for each"""


class PolicyStep(NamedTuple):
    """What happened in one step of all environments: tensors that the next step overwrites."""

    actions: th.Tensor
    clipped_actions: th.Tensor
    values: th.Tensor
    """(N, 1)"""
    log_probs: th.Tensor
    result: StepResult


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


class Rollout:
    """Steps an environment with a policy and fills a DeviceRolloutBuffer, all on the device.

    :param env: a VecEnv with a tensor path
    :param policy: an ActorCriticPolicy on the env's device
    :param buffer: where the transitions go
    :param compiled: on a CPU act in C, on a GPU capture a whole step in a CUDA graph, and all steps in one where nobody looks
        at them
    :param precision: not None: act in Triton's kernels where ``device/fused.py`` has no reason against it
    """

    def __init__(
        self,
        env: TensorVecEnv,
        policy: ActorCriticPolicy,
        buffer: DeviceRolloutBuffer,
        compiled: bool = False,
        precision: Optional[str] = None,
    ) -> None:
        self.env, self.policy, self.buffer, self._compiled, self._precision = env, policy, buffer, compiled, precision
        self.env_seconds = 0.0
        """Time spent in the env since :meth:`begin` (on a GPU: until all kernels were queued)"""
        n_steps, n, device = buffer.buffer_size, buffer.n_envs, buffer.device
        self.obs = th.zeros((n, *buffer.obs_shape), device=device)
        """(N, *obs_shape), what the agent acts on next"""
        # All that the host is to read in one tensor: three numbers for each step and env, the last observations, the health
        self._log = th.zeros(3 * n_steps * n + self.obs.numel() + 1, device=device)
        self._logs = self._log[: 3 * n_steps * n].view(3, n_steps, n)
        truncated, returns, lengths = self._logs.unbind(0)
        self._log_obs = self._log[3 * n_steps * n : -1].view(self.obs.shape)
        self._log_health = self._log[-1]
        """() finite if all of the rollout is, or a false alarm (huge numbers)"""
        self._truncated, self._returns = StepColumn(truncated), StepColumn(returns)
        self._lengths = StepColumn(lengths)  # 0 where no episode ended
        self._final_obs = StepColumn(th.zeros((n_steps, n, *buffer.obs_shape), device=device))
        self._bounds = bounds_of(env.action_space, env.device)
        self._watch = Watch(policy)
        self._fast: Optional[FastActorCriticPolicy] = None
        self.fused: Optional[FusedSteps] = None
        """What acts and stores in Triton, on the fast path"""
        self._host_obs: Optional[np.ndarray] = None
        self._host_dones: Optional[np.ndarray] = None
        self._before: Tuple[Any, Any] = None, None
        """What both were when they were handed out"""
        self.n_steps = 0
        """Steps taken since :meth:`begin`"""
        self._step_on_device = th.zeros(1, dtype=th.int64, device=device)
        self._numbers = th.split(th.arange(n_steps, device=device), 1)
        """(1,) each"""
        self._may_capture = compiled and has_graphs(device) and capturable(env)
        self._layers = layers(env)
        draw_from = partial(generators, env)
        self.graphed_step = Graphed(self._step_for_graphs, False, self._layers, draw_from)
        self.graphed_steps = Graphed(self._all_steps, False, self._layers, draw_from)

    def belongs_to(self, env: Any, policy: Any, buffer: Any, compiled: bool, precision: Optional[str]) -> bool:
        """Whether this object was made for these."""
        same = env is self.env and policy is self.policy and buffer is self.buffer
        same = same and compiled == self._compiled and precision == self._precision
        same = same and len(self._numbers) == buffer.buffer_size
        return same and has_layers(env, self._layers)

    def begin(self, last_obs: np.ndarray, last_dones: np.ndarray, keep_distributions: bool) -> None:
        """Start a rollout where the last one ended, or elsewhere.

        :param last_obs: (N, *obs_shape), what to act on; the array from the last :class:`RolloutEnd` is copied only if
            somebody has written into it
        :param last_dones: (N,) bool, whether an episode begins there, likewise
        :param keep_distributions: fill the buffer's ``distributions`` too, where the policy allows it
        """
        self.n_steps, self.env_seconds = 0, 0.0
        self._step_on_device.zero_()
        if self._watch.changed(more=[self.policy.action_dist]):
            plain = FastActorCriticPolicy.why_not(self.policy, trains=False) is None
            fused = plain and in_kernels(self.policy, self._precision)
            self.fused = FusedSteps(self.policy, self.buffer, self._bounds) if fused else None
            self._fast = FastActorCriticPolicy(self.policy, self.buffer.n_envs, None, self._compiled) if plain else None
        keep = keep_distributions and self._fast is not None
        self.buffer.keep_distributions(self._fast.distribution_columns if self._fast is not None and keep else 0)
        starts = self.buffer.tensors.episode_starts[0]
        obs_before, dones_before = self._before
        if last_dones is self._host_dones and np.array_equal(last_dones, dones_before):
            th.gt(self._lengths.storage[-1], 0.0, out=starts)
        else:
            starts.copy_(th.as_tensor(last_dones), non_blocking=True)
        if last_obs is not self._host_obs or not np.array_equal(last_obs, obs_before):
            self.obs.copy_(th.as_tensor(last_obs), non_blocking=True)
        if self.fused is not None:
            self.fused.find()
        captures = self._may_capture and self._fast is not None
        # The update moves the parameters when it makes them flat: a graph from before would go on with those of then
        addresses = [parameter.data_ptr() for parameter in self.policy.parameters()] if captures else []
        for graphed in (self.graphed_step, self.graphed_steps):
            graphed.enabled = captures and (graphed is self.graphed_step or self.buffer.buffer_size <= MOST_STEPS)
            graphed.begin(self._fast, self.buffer.rows.data_ptr(), addresses)

    def step(self) -> PolicyStep:
        """One step of all environments."""
        step: PolicyStep
        if self.graphed_step.enabled:
            step = self.graphed_step()
        else:
            if self.fused is not None:
                self.fused.find()  # a callback may have moved the parameters
            step = self._step(self.n_steps)
        self.n_steps += 1
        return step

    def all_steps(self) -> bool:
        """All steps of the rollout in one graph, if that can be. Returns whether they were taken."""
        if not self.graphed_steps.enabled:
            return False
        self.graphed_steps()
        self.n_steps = self.buffer.buffer_size
        return True

    def obs_of_step(self, step: int) -> th.Tensor:
        """(N, *obs_shape), what the agent acted on in a step of this rollout."""
        return self.buffer.tensors.observations[step]

    def episodes_of_step(self, step: int) -> Tuple[th.Tensor, th.Tensor]:
        """Returns and lengths (N,) float32 of the episodes in a step of this rollout, lengths of 0 where none ended. Those of
        the environment change when a callback steps or resets it."""
        return self._returns.storage[step], self._lengths.storage[step]

    def _step_for_graphs(self) -> PolicyStep:
        step = self._step(self._step_on_device)
        self._step_on_device.add_(1)
        return step

    def _all_steps(self) -> None:
        for step in range(self.buffer.buffer_size):
            self._step(step)

    def _step(self, step: Union[int, th.Tensor]) -> PolicyStep:
        """:param step: index of the step, see :meth:`StepColumn.put`"""
        distributions = None
        with th.no_grad():
            if self.fused is not None:
                return self._step_in_kernels(self.fused, self._numbers[step] if isinstance(step, int) else step)
            if self._fast is not None:
                actions, values, log_probs, distributions = self._fast.act(self.obs)
            else:
                with unchecked_distributions():
                    actions, values, log_probs = self.policy(self.obs)
                    values = values.squeeze(1)
            env_actions = self._for_env(actions)
            result = self._step_env(env_actions)
            self.buffer.put(step, self.obs, actions, result.reward, values, log_probs, distributions)
            self._final_obs.put(step, result.final_obs)
            self._truncated.put(step, result.truncated)
            self._returns.put(step, self.env.episode_returns)
            self._lengths.put(step, self.env.episode_lengths * self.env.dones)
            self.obs.copy_(result.obs)
        return PolicyStep(actions, env_actions, values.unsqueeze(1), log_probs, result)

    def _step_in_kernels(self, fused: FusedSteps, step: th.Tensor) -> PolicyStep:
        """The same in Triton.

        :param step: (1,) int64
        """
        env = self.env
        actions, env_actions, values, log_probs = fused.act(self.obs, step)
        result = self._step_env(env_actions)
        episodes = env.dones, env.episode_returns, env.episode_lengths
        fused.store(step, result, *episodes, self.obs, self._final_obs.storage, self._logs)
        return PolicyStep(actions, env_actions, values.unsqueeze(1), log_probs, result)

    def _step_env(self, env_actions: th.Tensor) -> StepResult:
        before = time.perf_counter()
        result = self.env.step_tensor(env_actions)
        self.env_seconds += time.perf_counter() - before
        return result

    def _for_env(self, actions: th.Tensor) -> th.Tensor:
        if self._bounds is None:
            return actions
        return scale_actions(actions, self._bounds) if self.policy.squash_output else actions.clamp(*self._bounds)

    def finish(self, gamma: float) -> RolloutEnd:
        """End a rollout: bootstrap truncated episodes, compute returns and advantages, read the device once.

        Time limits are no failures: the value of the true last observation is added to the reward
        (https://arxiv.org/abs/1712.00378), of all truncated episodes in one forward pass.

        :param gamma: discount factor
        :raises NotFiniteError: if there is NaN or infinity in the rollout, see :meth:`first_not_finite`
        """
        n_steps, buffer = self.n_steps, self.buffer
        self._log_obs.copy_(self.obs)
        th.add(buffer.rows.sum(), buffer.tensors.rewards.sum() + self._final_obs.storage.sum(), out=self._log_health)
        host = to_host(self._log)
        if not is_finite(host) and self.first_not_finite() is not None:
            raise NotFiniteError("There is NaN or infinity in the rollout.")
        n_log = host.size - self._log_obs.numel() - 1
        truncated, returns, lengths = host[:n_log].reshape(3, buffer.buffer_size, -1)[:, :n_steps]
        ended = lengths > 0.0
        self._before = obs, dones = host[n_log:-1].reshape(self.obs.shape), ended[-1]
        last_obs, last_dones = obs.copy(), dones.copy()
        complete = n_steps == buffer.buffer_size
        self._host_obs, self._host_dones = last_obs, last_dones if complete else None
        values = self._end_on_device(np.flatnonzero(truncated), gamma) if complete else None
        return RolloutEnd(last_obs, last_dones, returns[ended], lengths[ended].astype(np.int64), values)

    def first_not_finite(self) -> Optional[Origin]:
        """Where NaN or infinity began in the steps of this rollout. Waits for the device."""
        n, tensors = self.n_steps, self.buffer.tensors
        columns = [
            ("observation", tensors.observations),
            ("action", tensors.actions),
            ("value", tensors.values),
            ("final observation", self._final_obs.storage),
            ("reward", tensors.rewards),
        ]
        found = first_not_finite([(name, column[:n]) for name, column in columns] if n > 0 else [])
        newest = first_not_finite([("observation", self.obs.unsqueeze(0))])
        return found or (newest and newest._replace(step=max(n - 1, 0)))  # what the last step has led to

    def _end_on_device(self, truncated: np.ndarray, gamma: float) -> th.Tensor:
        tensors = self.buffer.tensors
        dones = self._lengths.storage > 0.0
        with th.no_grad():
            # --8<-- [start:time_limits]
            if len(truncated) > 0:
                rows = th.from_numpy(truncated).to(self.buffer.device, non_blocking=True)
                final_values = self._predict_values(self._final_obs.storage.flatten(0, 1).index_select(0, rows))
                tensors.rewards.view(-1).index_add_(0, rows, final_values * gamma)
            # --8<-- [end:time_limits]
            values = self._predict_values(self.obs)
            tensors.episode_starts[1:].copy_(dones[:-1])
            if self.fused is not None and "compute_returns_and_advantage" not in vars(self.buffer):
                self.fused.advantages(values, self._lengths.storage)
            else:
                self.buffer.compute_returns_and_advantage(values, dones[-1])
        self.buffer.pos, self.buffer.full = self.buffer.buffer_size, True
        return values.unsqueeze(1)

    def _predict_values(self, obs: th.Tensor) -> th.Tensor:
        return self._fast.values(obs) if self._fast is not None else self.policy.predict_values(obs).flatten()
