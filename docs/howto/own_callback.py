"""A callback that watches how far carts are from the middle."""

from __future__ import annotations

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

import sb3_isaac


# --8<-- [start:callback]
class Distance(BaseCallback):
    """Logs the mean distance from the middle, once per rollout."""

    def _on_step(self) -> bool:
        return True  # False ends the training

    def _on_rollout_end(self) -> None:
        obs = self.locals["new_obs"]  # (N, 4), a numpy array as in SB3
        distance = float(np.abs(obs[:, 0]).mean())
        self.logger.record("rollout/distance", distance)
        print(f"{self.num_timesteps} steps: {distance:.2f} m from the middle")


env = sb3_isaac.make_vec_env("IsaacGymCartpole-v0", n_envs=64, seed=0)
model = sb3_isaac.PPO("MlpPolicy", env, n_steps=16, batch_size=1024)
model.learn(4096, callback=Distance())
# --8<-- [end:callback]
