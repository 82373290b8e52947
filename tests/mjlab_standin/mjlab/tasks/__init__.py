"""Registers the tasks, as mjlab's does."""

from mjlab.envs import Cfg
from mjlab.tasks.registry import TASKS

TASKS["Mjlab-Cartpole-Balance"] = Cfg()
TASKS["Mjlab-Cartpole-Swingup"] = Cfg(is_finite_horizon=True)
