"""One step of all environments for DQN and DDPG: act, step, and store what happened."""

from __future__ import annotations

import time
from functools import partial
from typing import Any, Callable, NamedTuple, Optional, Tuple

import numpy as np
import torch as th

from sb3_isaac.backends.base import StepResult
from sb3_isaac.buffers.replay_buffer import DeviceReplayBuffer
from sb3_isaac.device.cuda_graph import Graphed
from sb3_isaac.device.finite import Origin, first_not_finite
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


class Step(NamedTuple):
    """What happened in one step of all environments: tensors that the next step overwrites."""

    actions: th.Tensor
    """For the env"""
    buffer_actions: th.Tensor
    """For the replay buffer"""
    result: StepResult
    row: th.Tensor
    """For the replay buffer, see :meth:`DeviceReplayBuffer.pack`"""
    episodes: th.Tensor
    """(2, N) float32, see :meth:`TrainingLog.note_episodes`"""

    def dones(self) -> th.Tensor:
        """(N,) bool; those of the environment change when a callback steps or resets it."""
        return self.episodes[1] > 0.0


class Rollout:
    """Steps an environment and fills a replay buffer, all on the device.

    :param env: a VecEnv with a tensor path
    :param vec_normalize: the VecNormalize among its wrappers, if there is one
    :param buffer: where the transitions go
    :param act: from observations (N, *obs_shape), and whether actions are to be random, to the actions for the buffer:
        in [-1, 1] for a Box, which are scaled to it here
    :param after_step: called with ``dones`` (N,) after each step
    :param captures: capture a step in a CUDA graph, if the simulator can be captured
    """

    def __init__(
        self,
        env: TensorVecEnv,
        vec_normalize: Any,
        buffer: DeviceReplayBuffer,
        act: Callable[[th.Tensor, bool], th.Tensor],
        after_step: Callable[[th.Tensor], None],
        captures: bool,
    ) -> None:
        self.env = env
        self.env_seconds = 0.0
        """Time spent in the env (on a GPU: until all kernels were queued)"""
        self._vec_normalize, self.buffer = vec_normalize, buffer
        self._act, self._after_step = act, after_step
        self.stored = 0
        """Steps stored since the log was read"""
        self._obs = env.obs_tensor.clone()
        """(N, *obs_shape), what the agent acts on"""
        # The buffer keeps what VecNormalize saw, the policy acts on what it made of it: its statistics change
        self._stored_obs = self._obs if vec_normalize is None else vec_normalize.get_original_obs_tensor().clone()
        self._acted_on = self._obs
        """(N, *obs_shape), what the agent has acted on in the last step"""
        self._acted_on_original = self._stored_obs
        """The same before VecNormalize"""
        self._env_obs: Optional[th.Tensor] = None
        """The env's tensor that ``_obs`` is a copy of"""
        self._given = False
        """Whether ``_obs`` is from :meth:`act_on`"""
        self._shown: Optional[Tuple[th.Tensor, np.ndarray, np.ndarray]] = None
        """The env's observation, the array that was shown for it, and a copy: somebody may write into what he was shown"""
        space: Any = env.action_space
        self._bounds = bounds_of(space, env.device)
        if self._bounds is not None and (space.low == -1.0).all() and (space.high == 1.0).all():
            self._bounds = None  # which is no work
        self._may_capture = captures
        self._set_layers()

    def _set_layers(self) -> None:
        """Step the env's layers as they are now."""
        self._layers, self.captures = layers(self.env), self._may_capture and capturable(self.env)
        if self.captures:  # a replay leaves the next observations in _obs
            self._acted_on, self._acted_on_original = self._obs.clone(), self._stored_obs.clone()
        self.graphed_step = Graphed(self._step, self.captures, self._layers, partial(generators, self.env))

    def belongs_to(self, env: Any, vec_normalize: Any) -> bool:
        """Whether this object was made for these."""
        return env is self.env and vec_normalize is self._vec_normalize

    def begin(self, buffer: DeviceReplayBuffer, fast: Any, exploration: Any) -> None:
        """Before the steps of a rollout.

        :param fast: the networks that ``act`` uses, which a captured step keeps as they were; None: it must not be captured
        :param exploration: what it explores with, likewise
        """
        self.buffer = buffer
        if not has_layers(self.env, self._layers):
            self._set_layers()  # a callback has given a wrapper another env
        self.graphed_step.enabled = self.captures and fast is not None and getattr(exploration, "capturable", True)
        self.graphed_step.begin(buffer, fast, exploration)

    @th.no_grad()
    def step(self, random: bool) -> Step:
        """Act and step the environments."""
        captured = self.graphed_step.enabled
        self._take_what_was_shown()
        if self._given:
            self._given = False
        elif not captured or self.env.obs_tensor is not self._env_obs:  # somebody else stepped or reset the environments
            self._take_obs()
        step: Step = self.graphed_step(random)
        self._env_obs = self.env.obs_tensor
        return step

    @th.no_grad()
    def store(self, step: Step, rewards: Optional[np.ndarray] = None) -> None:
        """Put a step into the replay buffer.

        :param rewards: (N,), in the place of the env's; as in SB3, original rewards before VecNormalize stay
        """
        if rewards is not None and self._vec_normalize is None:
            self.buffer.rewards_of(step.row).copy_(th.from_numpy(rewards))
        self.buffer.add_row(step.row)
        self.stored += 1

    def health(self) -> th.Tensor:
        """() on the env's device: finite if what was stored since the log was read is, or a false alarm (huge numbers)."""
        older, newer = self.buffer.newest_rows(self.stored)
        return (older.sum() + newer.sum()).to(self.env.device)

    def first_not_finite(self) -> Optional[Origin]:
        """Where NaN or infinity began in what was stored since the log was read. Waits for the device."""
        buffer = self.buffer
        n = min(self.stored, buffer.size())
        steps = th.arange(buffer.pos - n, buffer.pos, device=buffer.storage_device) % buffer.buffer_size
        columns = [("observation", buffer.observations), ("action", buffer.actions)]
        if not buffer.optimize_memory_usage:
            columns.append(("next observation", buffer.next_observations))
        columns.append(("reward", buffer.rewards))
        return first_not_finite([(name, column[steps]) for name, column in columns] if n > 0 else [])

    def act_on(self, obs: np.ndarray, original_obs: Optional[np.ndarray]) -> None:
        """Act next on other observations (N, *obs_shape) than the env's.

        :param original_obs: before VecNormalize
        """
        self._shown = None
        self._obs.copy_(th.as_tensor(obs))
        if self._vec_normalize is not None and original_obs is not None:
            self._stored_obs.copy_(th.as_tensor(original_obs))
        self._given = True

    def shown_obs(self) -> np.ndarray:
        """What the agent acts on next (N, *obs_shape), until the next step one array, in which it may be changed."""
        if self._shown is None or self._shown[0] is not self.env.obs_tensor:
            obs = self.last_obs(acting=False)[0]
            self._shown = (self.env.obs_tensor, obs, obs.copy())
        return self._shown[1]

    def is_told(self) -> bool:
        """Whether somebody has said what to act on next: it is not the env's observation."""
        self._take_what_was_shown()
        return self._given

    def _take_what_was_shown(self) -> None:
        if self._shown is None:
            return
        (env_obs, shown, before), self._shown = self._shown, None
        if env_obs is self.env.obs_tensor and not np.array_equal(shown, before, equal_nan=True):
            if not self._given:
                self._take_obs()  # for what VecNormalize saw
            self.act_on(shown, None)

    def _take_obs(self) -> None:
        self._obs.copy_(self.env.obs_tensor)
        if self._vec_normalize is not None:
            self._stored_obs.copy_(self._vec_normalize.get_original_obs_tensor())

    def _step(self, random: bool) -> Step:
        env, vec_normalize = self.env, self._vec_normalize
        if self.captures:
            self._acted_on.copy_(self._obs)
            if vec_normalize is not None:
                self._acted_on_original.copy_(self._stored_obs)
        actions = self._act(self._obs, random)
        # a task may work in place on what it is given
        env_actions = actions.clone() if self._bounds is None else scale_actions(actions, self._bounds)
        before = time.perf_counter()
        result = env.step_tensor(env_actions)
        self.env_seconds += time.perf_counter() - before
        next_obs, reward = result.final_obs, result.reward
        if vec_normalize is not None:
            next_obs = vec_normalize.get_original_final_obs_tensor()
            reward = vec_normalize.get_original_reward_tensor()
        row = self.buffer.pack(self._stored_obs, next_obs, actions, reward, result.terminated, result.truncated)
        # A length of 0 marks the environments whose episode goes on
        episodes = th.stack((env.episode_returns, env.episode_lengths * env.dones))
        self._after_step(env.dones)
        if self.graphed_step.enabled:  # a replay has no other chance
            self._take_obs()
        return Step(env_actions, actions, result, row, episodes)

    def last_obs(self, acting: bool) -> Tuple[np.ndarray, Optional[np.ndarray]]:
        """What the agent acts on next (N, *obs_shape), and the same before VecNormalize, if there is one.

        :param acting: instead what it has acted on in the step at hand
        """
        normalize = self._vec_normalize
        if acting:
            obs, original = self._acted_on, self._acted_on_original
        elif self._given:
            obs, original = self._obs, self._stored_obs
        else:
            obs = self.env.obs_tensor
            original = obs if normalize is None else normalize.get_original_obs_tensor()
        return to_host(obs).copy(), None if normalize is None else to_host(original).copy()
