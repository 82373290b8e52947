"""One step of all environments for DQN and DDPG: act, step, and what the replay buffer and the logs get of it."""

from __future__ import annotations

import time
import warnings
from typing import Any, Callable, List, NamedTuple, Optional, Sequence, Tuple, cast

import numpy as np
import torch as th
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_isaac.backends.base import StepResult
from sb3_isaac.buffers.replay_buffer import DeviceReplayBuffer
from sb3_isaac.device.host import to_host
from sb3_isaac.device.step_graph import StepGraph, layers, plain_settings
from sb3_isaac.off_policy.training_log import TrainingLog

MAX_REPLAY_RATIO = 1000.0
MAX_UPDATES_PER_STEP = 100.0
"""More gradient samples per transition, or more gradient steps per vectorised step, draw a warning."""


class Step(NamedTuple):
    """What happened in one step of all environments: tensors that the next step overwrites."""

    actions: th.Tensor
    result: StepResult
    row: th.Tensor
    """For the replay buffer, see :meth:`DeviceReplayBuffer.pack`"""
    episodes: th.Tensor
    """(2, N) float32, see :meth:`TrainingLog.note_episodes`"""


class TensorRun:
    """What training in tensors keeps besides SB3's attributes. Never saved.

    :param model: its env is on the tensor path, its replay buffer is a DeviceReplayBuffer
    :param act: from observations (N, obs_dim), and whether actions are to be random, to the actions for the env and those
        for the replay buffer
    :param after_step: called with ``dones`` (N,) after each step
    :param losses: names, see :class:`TrainingLog`
    :param captured: capture a step in a CUDA graph, if the simulator can be captured
    """

    def __init__(
        self,
        model: OffPolicyAlgorithm,
        act: Callable[[th.Tensor, bool], Tuple[th.Tensor, th.Tensor]],
        after_step: Optional[Callable[[th.Tensor], None]],
        losses: Sequence[str],
        captured: bool,
    ) -> None:
        self._model, self._act, self._after_step = model, act, after_step
        env: Any = model.env
        self.env = env
        self.log = TrainingLog(self.env, losses, model._episode_num)
        self._may_capture = captured and env.tensor_env.capturable
        self._warm = False
        self._graph: Optional[StepGraph] = None
        self._graph_for: Any = None
        self._env_obs: th.Tensor = self.env.obs_tensor
        self._inputs: List[Tuple[Any, th.Tensor]] = []
        self.warned = False

    def begin(self) -> None:
        """Before the steps of a rollout: see that a captured step still does what an uncaptured one would."""
        if not self._may_capture:
            return
        settings = plain_settings(self.env)
        if settings != self._graph_for:
            self._graph, self._graph_for, self._warm = None, settings, False

    def step(self, random: bool) -> Step:
        """Act, step the environments and store what happened."""
        buffer: Any = self._model.replay_buffer
        if self._graph is not None and not random:
            step = self._replay()
        elif self._may_capture and self._warm and not random:
            self._capture()
            step = self._replay()
        else:  # also once before a capture, which initialises CUDA's libraries
            step = self._step(random)
            self._warm = self._warm or not random
        buffer.add_row(step.row)
        self.log.note_episodes(step.episodes)
        return step

    def _step(self, random: bool) -> Step:
        env, vec_normalize = self.env, cast(Any, self._model._vec_normalize_env)
        # The buffer keeps what VecNormalize saw, the policy acts on what it made of it: its statistics change
        obs = (env.obs_tensor if vec_normalize is None else vec_normalize.get_original_obs_tensor()).clone()
        actions, buffer_actions = self._act(env.obs_tensor, random)
        before = time.perf_counter()
        result = env.step_tensor(actions)
        self.log.seconds["env"] += time.perf_counter() - before
        next_obs, reward = result.final_obs, result.reward
        if vec_normalize is not None:
            next_obs = vec_normalize.get_original_final_obs_tensor()
            reward = vec_normalize.get_original_reward_tensor()
        buffer = cast(DeviceReplayBuffer, self._model.replay_buffer)
        row = buffer.pack(obs, next_obs, buffer_actions, reward, result.terminated, result.truncated)
        # A length of 0 marks the environments whose episode goes on
        episodes = th.stack((env.episode_returns, env.episode_lengths * env.dones))
        if self._after_step is not None:
            self._after_step(env.dones)
        return Step(actions, result, row, episodes)

    def _capture(self) -> None:
        # What a layer holds at the start of a step must lie where it lay in the capture
        self._inputs = [(layer, layer.obs_tensor.clone()) for layer in layers(self.env) if hasattr(layer, "obs_tensor")]

        def step() -> Step:
            for layer, obs in self._inputs:
                layer.obs_tensor = obs
            taken = self._step(False)
            for layer, obs in self._inputs:
                obs.copy_(layer.obs_tensor)
            return taken

        self._graph = StepGraph(self.env, step)
        self._env_obs = self.env.obs_tensor

    def _replay(self) -> Step:
        assert self._graph is not None
        if self.env.obs_tensor is not self._env_obs:  # somebody else stepped or reset the environments
            for layer, obs in self._inputs:
                obs.copy_(layer.obs_tensor)
        step: Step = self._graph()
        self._env_obs = self.env.obs_tensor
        return step

    def last_obs(self) -> Optional[np.ndarray]:
        """(N, obs_dim): what the agent acts on next. None if the model got another env or will reset this one."""
        env: Any = self.env
        if self._model.env is not env or self._model._last_obs is None:
            return None
        last_obs: np.ndarray = to_host(self.env.obs_tensor).copy()
        return last_obs

    def note_update(self, model: OffPolicyAlgorithm, gradient_steps: int, batch_size: int) -> None:
        """Keep the replay ratio: gradient samples for each transition collected. Warns once where it makes no sense."""
        train_freq: Any = model.train_freq
        per_step = gradient_steps / train_freq.frequency
        ratio = self.log.replay_ratio = per_step * batch_size / model.n_envs
        if not self.warned and (ratio > MAX_REPLAY_RATIO or per_step > MAX_UPDATES_PER_STEP):
            self.warned = True
            why = " (gradient_steps=-1 means one per environment and step)" if model.gradient_steps < 0 else ""
            warnings.warn(
                f"{per_step:g} gradient steps for each step of {model.n_envs} environments{why}, a replay ratio of "
                f"{ratio:g}: training will be slow, set gradient_steps to a small number.",
                stacklevel=3,
            )
