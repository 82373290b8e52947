"""Environments of other people's simulators, whose ids are in :mod:`sb3_isaac.envs.ids`."""

from __future__ import annotations

from typing import Any, Callable, Dict, Optional, Tuple, Union

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_isaac.backends.base import TensorEnv
from sb3_isaac.envs.ids import SIMULATORS
from sb3_isaac.envs.task_env import load_entry
from sb3_isaac.envs.tensor_gym_env import TensorGymEnv, TensorGymVectorEnv, make_action_space

Dims = Tuple[int, int, Tuple[Any, Any]]
_dims: Dict[str, Dims] = {}
"""obs_dim, action_dim and action_bounds of tasks that have been made: a simulator takes seconds to make."""


class SimulatorTaskEnv(TensorGymEnv):
    """One environment of a simulator's task, see :class:`~sb3_isaac.envs.tensor_gym_env.TensorGymEnv`.

    What the spaces are is known once a simulator has been made. If somebody asks before, one is made for the question.

    :param simulator: a key of :data:`~sb3_isaac.envs.ids.SIMULATORS`
    :param task: the simulator's name of the task
    :param discrete: Discrete actions (a choice of ``n_bins`` values) in place of the one action of the task
    :param n_bins: number of evenly spaced values from the lowest to the highest action; 3 if ``discrete`` and not given
    :param task_kwargs: what the simulator's ``make`` takes: ``obs_groups``, ``action_bounds``, ...
    """

    def __init__(
        self,
        simulator: str,
        task: str,
        device: Union[th.device, str] = "auto",
        discrete: bool = False,
        n_bins: Optional[int] = None,
        render_mode: Optional[str] = None,
        **task_kwargs: Any,
    ) -> None:
        super().__init__(device, render_mode, task_kwargs)
        make_action_space(1, discrete, n_bins)  # a mistake is reported here, not when the simulator is made
        self.simulator, self.task = simulator, task
        self._discrete, self._n_bins = discrete, n_bins

    @property
    def observation_space(self) -> spaces.Space[Any]:  # type: ignore[override]
        """An unbounded Box of shape (obs_dim,)."""
        return spaces.Box(-np.inf, np.inf, (self._ask()[0],), np.float32)

    @property
    def action_space(self) -> spaces.Space[Any]:  # type: ignore[override]
        """A Box of shape (action_dim,) within the action bounds, or Discrete.

        :raises ValueError: discrete, and the task has more than one action
        """
        _, action_dim, bounds = self._ask()
        if self._discrete or self._n_bins is not None:
            if action_dim != 1:
                raise ValueError(f"Discrete actions need a task with one action, {self.task} has {action_dim}.")
            return make_action_space(1, self._discrete, self._n_bins)
        low, high = (np.broadcast_to(np.float32(bound), (action_dim,)) for bound in bounds)
        return spaces.Box(low, high, dtype=np.float32)

    def _key(self) -> str:
        kwargs = {name: value for name, value in self.task_kwargs.items() if name != "max_episode_length"}
        return repr((self.simulator, self.task, sorted(kwargs.items())))

    def _ask(self) -> Dims:
        if self._key() not in _dims:
            # As many as are wanted later, where the process can have one simulator only and somebody has said so
            self.make_tensor_env(1, 0, self.task_kwargs).close()
        return _dims[self._key()]

    def make_tensor_env(self, n_envs: int, seed: Optional[int], task_kwargs: Dict[str, Any]) -> TensorEnv:
        """:raises ImportError: the simulator is not installed; what else its ``make`` raises"""
        device, seed = self.asked_for(n_envs, seed)
        make: Callable[..., TensorEnv] = load_entry(SIMULATORS[self.simulator])
        drawn = {} if self.render_mode is None else {"render_mode": self.render_mode}
        env = make(self.task, n_envs=n_envs, device=device, seed=seed, **drawn, **task_kwargs)
        _dims[self._key()] = (env.obs_dim, env.action_dim, env.action_bounds)
        return env


class SimulatorTaskVectorEnv(TensorGymVectorEnv):
    """The batched environment behind ``gym.make_vec``, see :class:`~sb3_isaac.envs.tensor_gym_env.TensorGymVectorEnv`."""

    single_class = SimulatorTaskEnv
