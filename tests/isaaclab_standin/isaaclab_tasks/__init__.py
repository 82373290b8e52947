"""Registers the stand-in's task under the name of Isaac Lab's cartpole."""

import gymnasium as gym

for name in ("Isaac-Cartpole-Direct", "Isaac-Reach"):
    if name not in gym.registry:
        gym.register(name, entry_point="isaaclab.envs:DirectRLEnv", disable_env_checker=True, kwargs={})
