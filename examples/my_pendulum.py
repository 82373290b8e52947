"""An own task: Gymnasium's Pendulum-v1, as many at once as you like. Copy it, and change what is yours.

python -m rl_zoo3.train --algo ppo --env MyPendulum-v0 --gym-packages sb3_isaac.zoo my_pendulum
"""

import math

import torch as th

import sb3_isaac


class Pendulum(sb3_isaac.TensorEnv):
    obs_dim, action_dim, max_episode_length = 3, 1, 201

    def __init__(self, n_envs, device, seed, gravity=10.0):
        self.n_envs, self.device, self.gravity = n_envs, device, gravity
        self.generator = th.Generator(device)
        self.seed(seed)
        self.angle, self.speed = th.zeros(2, n_envs, device=device)
        self.progress = th.zeros(n_envs, dtype=th.int64, device=device)

    def seed(self, seed):
        self.generator.manual_seed(seed)

    def starts(self):
        angle, speed = 2 * th.rand(2, self.n_envs, generator=self.generator, device=self.device) - 1
        return math.pi * angle, speed

    def observe(self):
        return th.stack([self.angle.cos(), self.angle.sin(), self.speed], dim=-1)

    def reset(self):
        self.angle, self.speed = self.starts()
        self.progress.zero_()
        return self.observe()

    def step(self, actions):
        torque = 2.0 * actions[:, 0].clamp(-1.0, 1.0)
        angle = (self.angle + math.pi) % (2 * math.pi) - math.pi
        reward = -(angle**2 + 0.1 * self.speed**2 + 0.001 * torque**2)
        self.speed = (self.speed + 0.05 * (1.5 * self.gravity * angle.sin() + 3.0 * torque)).clamp(-8.0, 8.0)
        self.angle = angle + 0.05 * self.speed
        self.progress += 1
        terminated = th.zeros_like(self.progress, dtype=th.bool)  # a pendulum cannot fail
        truncated = self.progress >= self.max_episode_length - 1
        final_obs = self.observe()
        new_angle, new_speed = self.starts()
        self.angle = th.where(truncated, new_angle, self.angle)
        self.speed = th.where(truncated, new_speed, self.speed)
        self.progress.masked_fill_(truncated, 0)
        return sb3_isaac.StepResult(self.observe(), reward, terminated, truncated, final_obs)


sb3_isaac.register("MyPendulum-v0", Pendulum)
