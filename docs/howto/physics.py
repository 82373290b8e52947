"""A heavier pole, a narrower rail, and a reward of one's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th

import sb3_isaac


# --8<-- [start:reward]
def reward(obs: th.Tensor, actions: th.Tensor, terminated: th.Tensor, task: Any) -> th.Tensor:
    """(N,): upright is good, force costs, failing costs more. obs (N, 4) is after the step, before any reset."""
    return th.cos(obs[:, 2]) - 0.01 * actions[:, 0] ** 2 - 2.0 * terminated


env = sb3_isaac.make_vec_env("IsaacGymCartpole-v0", n_envs=64, seed=0, reward=reward, pole_mass=2.0, reset_dist=2.0)
model = sb3_isaac.PPO("MlpPolicy", env, n_steps=16, batch_size=1024)
model.learn(4096)
print("mean length of the last episodes:", np.mean([episode["l"] for episode in model.ep_info_buffer]))
# --8<-- [end:reward]
