"""Stable-Baselines3 for NVIDIA Isaac Gym, at tensor speed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sb3_isaac import _isaacgym_first  # noqa: F401  # isort: skip  # Isaac Gym refuses to be imported after torch
from sb3_isaac._lazy import lazy
from sb3_isaac._version import __version__
from sb3_isaac.backends.base import StepResult, TensorEnv
from sb3_isaac.envs import IsaacVecEnv, VecFrameStack, VecNormalize, make_vec_env, register, register_envs, wrap_vec_task

if TYPE_CHECKING:
    from sb3_isaac import backends, buffers, cli, ddpg, device, dqn, envs, evaluation, off_policy, ppo, zoo  # noqa: F401
    from sb3_isaac.buffers import DeviceReplayBuffer, DeviceRolloutBuffer
    from sb3_isaac.ddpg import DDPG
    from sb3_isaac.dqn import DQN
    from sb3_isaac.evaluation import evaluate, load
    from sb3_isaac.ppo import PPO

__all__ = [
    "DDPG",
    "DQN",
    "PPO",
    "DeviceReplayBuffer",
    "DeviceRolloutBuffer",
    "IsaacVecEnv",
    "StepResult",
    "TensorEnv",
    "VecFrameStack",
    "VecNormalize",
    "__version__",
    "evaluate",
    "load",
    "make_vec_env",
    "register",
    "wrap_vec_task",
]

__getattr__, __dir__ = lazy(
    "sb3_isaac",
    buffers=["DeviceReplayBuffer", "DeviceRolloutBuffer"],
    ddpg=["DDPG"],
    dqn=["DQN"],
    evaluation=["evaluate", "load"],
    ppo=["PPO"],
    **dict.fromkeys(("backends", "cli", "device", "envs", "off_policy", "zoo"), ()),
)

register_envs()
