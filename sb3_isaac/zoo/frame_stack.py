"""rl_zoo3's key ``frame_stack``: our VecFrameStack, and VecNormalize where the replay buffer can do with it."""

from __future__ import annotations

from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from sb3_isaac.envs.portable_pickle import load_pickle
from sb3_isaac.envs.vec_frame_stack import VecFrameStack
from sb3_isaac.envs.vec_normalize import VecNormalize
from sb3_isaac.zoo.run_settings import statistics_files


class InnerFrameStack(VecFrameStack):
    """The frame stack within a VecNormalize.

    rl_zoo3 stacks what VecNormalize gives. A replay buffer keeps observations as they were before VecNormalize, and
    these have the model's shape only if VecNormalize is the outer wrapper.
    """


def stack_frames(env: VecEnv, n_stack: int, *args: Any, **kwargs: Any) -> VecEnv:
    """In the place of VecFrameStack in rl_zoo3: the observations may be stacked already, see :class:`InnerFrameStack`."""
    if isinstance(env, VecNormalize) and isinstance(env.venv, InnerFrameStack):
        return env
    return VecFrameStack(env, n_stack, *args, **kwargs)


class LoadedVecNormalize(VecNormalize):
    """VecNormalize for rl_zoo3's create_test_env: statistics of stacked observations bring their frame stack along."""

    @staticmethod
    def load(load_path: str, venv: VecEnv, trust: bool = False) -> VecNormalize:
        """See :meth:`VecNormalize.load`."""
        load_path = statistics_files.get(load_path, load_path)
        spaces = [getattr(env, "observation_space", None) for env in (load_pickle(load_path, trust), venv)]
        saved, given = (np.atleast_1d(getattr(space, "shape", None) or ()) for space in spaces)
        if len(saved) == len(given) == 1 and saved[0] > given[0] and saved[0] % given[0] == 0:
            venv = InnerFrameStack(venv, int(saved[0] // given[0]))
        return VecNormalize.load(load_path, venv, trust)
