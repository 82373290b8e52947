"""The cartpole as Gymnasium has environments: a single one, and the batched one behind gym.make_vec."""

from __future__ import annotations

from typing import Any, Dict, Optional, Union

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_isaac import backends
from sb3_isaac.backends.base import TensorEnv
from sb3_isaac.backends.cartpole import OBS_DIM, CartpoleTask
from sb3_isaac.envs.tensor_gym_env import TensorGymEnv, TensorGymVectorEnv, make_action_space


class CartpoleEnv(TensorGymEnv):
    """One Isaac Gym cartpole as a Gymnasium environment, see :class:`~sb3_isaac.envs.tensor_gym_env.TensorGymEnv`.

    :func:`~sb3_isaac.envs.make.make_vec_env` describes the arguments that are not listed here.

    :param discrete: Discrete actions (a choice of ``n_bins`` forces) in place of one force in [-1, 1]
    :param n_bins: number of evenly spaced forces from -max_effort to +max_effort, at least 2, odd or even; 3 if ``discrete``
        and not given
    """

    def __init__(
        self,
        backend: str = "auto",
        device: Union[th.device, str] = "auto",
        discrete: bool = False,
        n_bins: Optional[int] = None,
        render_mode: Optional[str] = None,
        **task_kwargs: Any,
    ) -> None:
        CartpoleTask.parse(**task_kwargs)  # a mistake is reported here, not at the first reset
        backends.check_name(backend)
        super().__init__(device, render_mode, task_kwargs)
        self.backend = backend
        self.observation_space = spaces.Box(-np.inf, np.inf, (OBS_DIM,), np.float32)
        self.action_space = make_action_space(1, discrete, n_bins)

    def make_tensor_env(self, n_envs: int, seed: Optional[int], task_kwargs: Dict[str, Any]) -> TensorEnv:
        return backends.make(self.backend, n_envs, self.device, seed, **task_kwargs)


class CartpoleVectorEnv(TensorGymVectorEnv):
    """The batched environment behind ``gym.make_vec``, see :class:`~sb3_isaac.envs.tensor_gym_env.TensorGymVectorEnv`."""

    single_class = CartpoleEnv
