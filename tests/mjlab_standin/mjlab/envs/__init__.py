"""mjlab's ManagerBasedRlEnv (mjlab/envs/manager_based_rl_env.py): its order of things, and what may surprise a caller.

The task: the action moves the position, beyond 1 it has failed. The group "actor" is (position, steps since the reset, noise),
"critic" the position alone, "camera" a picture.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import torch as th

START = 0.25
"""Positions after a reset are within +-this."""


@dataclass
class Cfg:
    episode_length_s: float = 0.5
    decimation: int = 5
    is_finite_horizon: bool = False
    auto_reset: bool = True
    seed: int | None = None
    n_actions: int = 1
    scene: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(num_envs=1))
    sim: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(mujoco=SimpleNamespace(timestep=0.02)))
    viewer: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(max_extra_envs=2, width=320, height=240))


class ManagerBasedRlEnv:
    def __init__(self, cfg, device, render_mode=None):
        print(f"| Number of environments | {cfg.scene.num_envs} |")
        if render_mode not in (None, "rgb_array"):
            raise NotImplementedError(render_mode)
        self.cfg, self.device, self.num_envs, self.render_mode = cfg, device, cfg.scene.num_envs, render_mode
        if cfg.seed is not None:
            self.seed(cfg.seed)
        self.action_manager = SimpleNamespace(total_action_dim=cfg.n_actions)
        self.step_dt = cfg.sim.mujoco.timestep * cfg.decimation
        n = self.num_envs
        self.position, self.episode_length_buf = th.zeros(n), th.zeros(n, dtype=th.long)
        # mjlab keeps buffers: the next step writes over what it has returned
        self.obs_buf = {"actor": th.zeros(n, 3), "critic": {"position": th.zeros(n, 1)}, "camera": th.zeros(n, 3, 8, 8)}
        self.reward_buf = th.zeros(n)
        self.terminated, self.time_outs = th.zeros(n, dtype=th.bool), th.zeros(n, dtype=th.bool)
        self.pending = th.zeros(n, dtype=th.bool)
        self.extras, self.closed, self.actions = {}, 0, None

    @property
    def max_episode_length(self):
        return math.ceil(self.cfg.episode_length_s / self.step_dt)

    @staticmethod
    def seed(seed=-1):
        print(f"Setting seed: {seed}")
        np.random.seed(seed)
        th.manual_seed(seed)
        assert seed < 2**31  # wp.int32
        return seed

    def _observe(self):
        noise = 0.01 * th.randn(self.num_envs)  # another one at every look
        self.obs_buf["actor"].copy_(th.stack([self.position, self.episode_length_buf.float(), noise], dim=-1))
        self.obs_buf["critic"]["position"].copy_(self.position.unsqueeze(-1))
        return self.obs_buf

    def reset(self, *, seed=None, env_ids=None, options=None):
        env_ids = th.arange(self.num_envs) if env_ids is None else env_ids
        assert env_ids.dtype == th.int64 and len(env_ids) > 0
        self.extras["log"] = {"Episode_Reward/alive": self.episode_length_buf[env_ids].float().mean(), "Metrics/told": 2.0}
        self.position[env_ids] = START * (2.0 * th.rand(len(env_ids)) - 1.0)
        self.episode_length_buf[env_ids] = 0
        self.pending[env_ids] = False
        return self._observe(), self.extras

    def step(self, action):
        if self.pending.any():
            raise RuntimeError("Environments must be reset via reset(env_ids=...) before calling step() again.")
        assert action.shape == (self.num_envs, self.cfg.n_actions) and not self.cfg.auto_reset
        self.extras["log"] = {}
        self.actions = action
        self.position += action[:, 0]
        self.episode_length_buf += 1
        self.terminated.copy_(self.position.abs() > 1.0)
        self.time_outs.copy_(self.episode_length_buf >= self.max_episode_length)
        self.reward_buf.copy_(1.0 - self.position.abs())
        self.pending |= self.terminated | self.time_outs
        return self._observe(), self.reward_buf, self.terminated, self.time_outs, self.extras

    def render(self):
        shape = (self.cfg.viewer.height, self.cfg.viewer.width, 3)
        return None if self.render_mode is None else np.zeros(shape, np.uint8)

    def close(self):
        self.closed += 1
