"""Environments and actions for the tests of IsaacVecEnv."""

from __future__ import annotations

from typing import Any, List

import numpy as np
from gymnasium import spaces

from sb3_isaac import IsaacVecEnv, make_vec_env

N_ENVS = 6
CONTINUOUS, DISCRETE = "IsaacGymCartpole-v0", "IsaacGymCartpoleDiscrete-v0"


def make(env_id: str = CONTINUOUS, **kwargs: Any) -> IsaacVecEnv:
    return make_vec_env(env_id, **{"n_envs": N_ENVS, "backend": "torch", "device": "cpu", "seed": 5, **kwargs})


def some_actions(env: Any, n_steps: int, n_envs: int = N_ENVS) -> List[np.ndarray]:
    generator = np.random.default_rng(0)
    if isinstance(env.action_space, spaces.Discrete):
        return list(generator.integers(0, int(env.action_space.n), (n_steps, n_envs)))
    return list(generator.uniform(-1.0, 1.0, (n_steps, n_envs, 1)).astype(np.float32))
