"""SB3's SAC on our environment, with a replay buffer that stays on the device."""

from __future__ import annotations

# --8<-- [start:sac]
import stable_baselines3

import sb3_isaac

env = sb3_isaac.make_vec_env("IsaacGymCartpole-v0", n_envs=16, seed=0)
buffer = sb3_isaac.buffers.DeviceReplayBuffer  # or leave it out
model = stable_baselines3.SAC("MlpPolicy", env, replay_buffer_class=buffer, learning_starts=64, seed=0)
model.learn(128)  # a test's length
# --8<-- [end:sac]
