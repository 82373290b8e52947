"""Spaces and devices of the buffers' tests; episodes for the replay buffer, and what a slow loop makes of them."""

from __future__ import annotations

import numpy as np
import stable_baselines3.common.buffers as sb3_buffers
import torch as th
from gymnasium import spaces

from sb3_isaac import DeviceReplayBuffer

DEVICES = ["cpu"] + (["cuda"] if th.cuda.is_available() else [])
OBS = spaces.Box(-np.inf, np.inf, (2,), np.float32)
BOX = spaces.Box(-1, 1, (1,), np.float32)
NStepReplayBuffer = getattr(sb3_buffers, "NStepReplayBuffer", None)  # from SB3 2.7 on
LOSSY = dict(optimize_memory_usage=True, handle_timeout_termination=False)


class History:
    """What happened, step by step. Every observation is different, final ones from those after the reset too."""

    def __init__(self, ends, seed=0):
        """:param ends: (T, N) of 0 (goes on), 1 (terminated), 2 (truncated)"""
        rng = np.random.default_rng(seed)
        self.steps, self.n_envs = ends.shape
        self.terminated, self.truncated = ends == 1, ends == 2
        self.done = ends > 0
        self.obs = rng.permutation(ends.size).reshape(*ends.shape, 1) + np.array([0.0, 0.5])
        final = -1.0 - self.obs
        following = np.concatenate((self.obs[1:], 1000.0 + self.obs[:1]))
        self.next_obs = np.where(self.done[..., None], final, following).astype(np.float32)
        self.obs = self.obs.astype(np.float32)
        self.actions = rng.uniform(-1, 1, (*ends.shape, 1)).astype(np.float32)
        self.rewards = rng.normal(size=ends.shape).astype(np.float32)

    def infos(self, t):
        return [
            {"TimeLimit.truncated": bool(truncated), "terminal_observation": 0} if done else {}
            for done, truncated in zip(self.done[t], self.truncated[t])
        ]

    def step(self, t):
        """Arguments of SB3's add."""
        return self.obs[t], self.next_obs[t], self.actions[t], self.rewards[t], self.done[t], self.infos(t)

    def tensors(self, t, device="cpu"):
        """Arguments of add_tensors."""
        names = ("obs", "next_obs", "actions", "rewards", "terminated", "truncated")
        return [th.tensor(getattr(self, name)[t], device=device) for name in names]

    def fill(self, buffer):
        for t in range(self.steps):
            buffer.add(*self.step(t))
        return buffer

    def expected(self, t, env, n_steps, gamma, handle_timeout_termination=True):
        """The sample that starts at step t, by a loop: obs, action, next_obs, done, reward, discount."""
        total, last = 0.0, t
        for last in range(t, min(t + n_steps, self.steps)):
            total += gamma ** (last - t) * float(self.rewards[last, env])
            if self.done[last, env]:
                break
        done = self.terminated[last, env] or (self.truncated[last, env] and not handle_timeout_termination)
        at = self.obs[t, env], self.actions[t, env], self.next_obs[last, env]
        return (*at, float(done), total, gamma ** (last - t + 1))


def make_buffer(history, rows, cls=DeviceReplayBuffer, in_c=False, **kwargs):
    kwargs.setdefault("device", "cpu")
    buffer = cls(rows * history.n_envs, OBS, BOX, n_envs=history.n_envs, **kwargs)
    buffer.in_c = in_c
    return history.fill(buffer)


def ends(*columns):
    """One string per env: r goes on, e terminates, t is truncated."""
    return np.array([["ret".index(letter) for letter in column] for column in columns]).T
