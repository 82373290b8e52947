"""Stable-Baselines3 for NVIDIA Isaac Gym, at tensor speed."""

from __future__ import annotations

from sb3_isaac import _isaacgym_first  # noqa: F401  # isort: skip  # Isaac Gym refuses to be imported after torch
from sb3_isaac._version import __version__
from sb3_isaac.buffers import DeviceReplayBuffer, DeviceRolloutBuffer
from sb3_isaac.ddpg import DDPG
from sb3_isaac.dqn import DQN
from sb3_isaac.envs import make_vec_env, register_envs
from sb3_isaac.evaluation import evaluate
from sb3_isaac.normalize import VecNormalize
from sb3_isaac.ppo import PPO
from sb3_isaac.vec_env import IsaacVecEnv
from sb3_isaac.vec_task import wrap_vec_task
from sb3_isaac.wrappers import VecFrameStack

__all__ = [
    "DDPG",
    "DQN",
    "PPO",
    "DeviceReplayBuffer",
    "DeviceRolloutBuffer",
    "IsaacVecEnv",
    "VecFrameStack",
    "VecNormalize",
    "__version__",
    "evaluate",
    "make_vec_env",
    "wrap_vec_task",
]

register_envs()
