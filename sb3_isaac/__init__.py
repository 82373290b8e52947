"""Stable-Baselines3 for NVIDIA Isaac Gym, at tensor speed."""

from __future__ import annotations

from sb3_isaac.envs import make_vec_env, register_envs
from sb3_isaac.vec_env import IsaacVecEnv

__version__ = "0.1.0"
__all__ = ["IsaacVecEnv", "__version__", "make_vec_env"]

register_envs()
