"""Stock SB3 on our environment, and a model of ours in stock SB3."""

from __future__ import annotations

import stable_baselines3
from stable_baselines3.common.vec_env import VecNormalize

import sb3_isaac

# --8<-- [start:stock]
env = sb3_isaac.make_vec_env("IsaacGymCartpole-v0", n_envs=16, seed=0)
stable_baselines3.PPO("MlpPolicy", env, n_steps=32, batch_size=128).learn(512)  # any algorithm of SB3

ours = sb3_isaac.PPO("MlpPolicy", sb3_isaac.VecNormalize(env), n_steps=32, batch_size=128)
ours.learn(512)
ours.save("cartpole")

model = stable_baselines3.PPO.load("cartpole")  # needs SB3 alone
env = VecNormalize.load("cartpole_vecnormalize.pkl", env)  # around any SB3 VecEnv with such observations
env.training = False
action, _ = model.predict(env.reset(), deterministic=True)
print(action.shape)
# --8<-- [end:stock]
