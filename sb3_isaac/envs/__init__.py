"""Environments: Gymnasium's ids, the VecEnv over a simulator, and the wrappers that work in tensors."""

from __future__ import annotations

from sb3_isaac.envs.cartpole_env import CartpoleEnv, CartpoleVectorEnv
from sb3_isaac.envs.make import ENV_KWARGS, is_isaac_env_id, make_vec_env, register, register_envs
from sb3_isaac.envs.simulators import SIMULATORS, SimulatorTaskEnv, SimulatorTaskVectorEnv
from sb3_isaac.envs.task_env import TaskEnv, TaskVectorEnv
from sb3_isaac.envs.vec_env import IsaacVecEnv
from sb3_isaac.envs.vec_frame_stack import VecFrameStack
from sb3_isaac.envs.vec_normalize import VecNormalize
from sb3_isaac.envs.vec_task import wrap_vec_task
from sb3_isaac.envs.wrap import wrap_isaaclab, wrap_mjlab

__all__ = [
    "ENV_KWARGS",
    "SIMULATORS",
    "CartpoleEnv",
    "CartpoleVectorEnv",
    "IsaacVecEnv",
    "SimulatorTaskEnv",
    "SimulatorTaskVectorEnv",
    "TaskEnv",
    "TaskVectorEnv",
    "VecFrameStack",
    "VecNormalize",
    "is_isaac_env_id",
    "make_vec_env",
    "register",
    "register_envs",
    "wrap_isaaclab",
    "wrap_mjlab",
    "wrap_vec_task",
]
