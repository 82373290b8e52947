"""Environments: Gymnasium's ids, the VecEnv over a simulator, and the wrappers that work in tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sb3_isaac._lazy import lazy
from sb3_isaac.envs.ids import ENV_KWARGS, SIMULATORS, register_envs

if TYPE_CHECKING:
    from sb3_isaac.envs.cartpole_env import CartpoleEnv, CartpoleVectorEnv
    from sb3_isaac.envs.make import is_isaac_env_id, make_vec_env, register
    from sb3_isaac.envs.simulators import SimulatorTaskEnv, SimulatorTaskVectorEnv
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

__getattr__, __dir__ = lazy(
    "sb3_isaac.envs",
    cartpole_env=["CartpoleEnv", "CartpoleVectorEnv"],
    make=["is_isaac_env_id", "make_vec_env", "register"],
    simulators=["SimulatorTaskEnv", "SimulatorTaskVectorEnv"],
    task_env=["TaskEnv", "TaskVectorEnv"],
    vec_env=["IsaacVecEnv"],
    vec_frame_stack=["VecFrameStack"],
    vec_normalize=["VecNormalize"],
    vec_task=["wrap_vec_task"],
    wrap=["wrap_isaaclab", "wrap_mjlab"],
)
