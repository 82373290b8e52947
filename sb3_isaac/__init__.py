"""Stable-Baselines3 for NVIDIA Isaac Gym, at tensor speed."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from sb3_isaac._lazy import lazy
from sb3_isaac._version import __version__

if TYPE_CHECKING:
    from sb3_isaac import backends, buffers, cli, ddpg, device, dqn, envs, evaluation, off_policy, ppo, zoo  # noqa: F401
    from sb3_isaac.backends.base import StepResult, TensorEnv
    from sb3_isaac.buffers import DeviceReplayBuffer, DeviceRolloutBuffer
    from sb3_isaac.ddpg import DDPG
    from sb3_isaac.dqn import DQN
    from sb3_isaac.envs import (
        IsaacVecEnv,
        VecFrameStack,
        VecNormalize,
        make_vec_env,
        register,
        wrap_isaaclab,
        wrap_mjlab,
        wrap_vec_task,
    )
    from sb3_isaac.evaluation import evaluate, export
    from sb3_isaac.evaluation.load import load  # from the package mypy may take the module of that name
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
    "export",
    "load",
    "make_vec_env",
    "register",
    "wrap_isaaclab",
    "wrap_mjlab",
    "wrap_vec_task",
]

__getattr__, __dir__ = lazy(
    "sb3_isaac",
    backends=["StepResult", "TensorEnv"],
    buffers=["DeviceReplayBuffer", "DeviceRolloutBuffer"],
    ddpg=["DDPG"],
    dqn=["DQN"],
    envs=[
        "IsaacVecEnv",
        "VecFrameStack",
        "VecNormalize",
        "make_vec_env",
        "register",
        "register_envs",
        "wrap_isaaclab",
        "wrap_mjlab",
        "wrap_vec_task",
    ],
    evaluation=["evaluate", "export", "load"],
    ppo=["PPO"],
    **dict.fromkeys(("cli", "device", "off_policy", "zoo"), ()),
)


def _only_help() -> bool:
    """Whether this is the console command with nothing to do but to say what it can do, which takes no simulator."""
    return os.path.basename(sys.argv[0]) == "sb3-isaac" and sys.argv[1:] in ([], ["-h"], ["--help"])


if not _only_help():
    from sb3_isaac import _isaacgym_first  # noqa: F401  # isort: skip  # Isaac Gym refuses to be imported after torch
    from sb3_isaac.envs import register_envs

    register_envs()
