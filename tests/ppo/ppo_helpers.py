"""What the tests of PPO share."""

from __future__ import annotations

from typing import Any

import torch as th

import sb3_isaac
from sb3_isaac.ppo.ppo import PPO

CONTINUOUS, DISCRETE = "IsaacGymCartpole-v0", "IsaacGymCartpoleDiscrete-v0"


def make_env(env_id: str = CONTINUOUS, n_envs: int = 8, **kwargs: Any) -> Any:
    return sb3_isaac.make_vec_env(env_id, n_envs, device="cpu", **{"seed": 1, **kwargs})


def make(cls: Any = PPO, env: Any = None, **kwargs: Any) -> Any:
    settings = {"n_steps": 16, "batch_size": 64, "n_epochs": 2, "seed": 3, "device": "cpu", **kwargs}
    return cls("MlpPolicy", make_env() if env is None else env, **settings)


def parameters(model: Any) -> th.Tensor:
    return th.cat([p.detach().flatten() for p in model.policy.parameters()])
