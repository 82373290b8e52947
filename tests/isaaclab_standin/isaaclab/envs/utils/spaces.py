"""As isaaclab/envs/utils/spaces.py, for what the stand-in's task has."""

import gymnasium as gym
import numpy as np


def spec_to_gym_space(spec):
    return gym.spaces.Box(-np.inf, np.inf, (spec,), np.float32)
