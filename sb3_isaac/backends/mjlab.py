"""mjlab's tasks behind the tensor contract. The only file that uses mjlab, which it imports when somebody asks for a task.

mjlab is MuJoCo on the GPU (MuJoCo-Warp) behind Isaac Lab's manager interface: https://github.com/mujocolab/mjlab. Made with
``auto_reset=False`` it resets nothing by itself: a step ends in the true last observation, and the reset is ours.
"""

from __future__ import annotations

from typing import Any

import torch as th

from sb3_isaac.backends.base import StepResult
from sb3_isaac.backends.simulator_env import ActionBounds, Groups, SimulatorEnv


class MjlabEnv(SimulatorEnv):
    """The tensor contract over a ``ManagerBasedRlEnv``. See :func:`sb3_isaac.wrap_mjlab` for the arguments.

    A step waits once for the device, to know which environments are reset.
    """

    def __init__(self, env: Any, obs_groups: Groups = "actor", action_bounds: ActionBounds = 1.0) -> None:
        if getattr(env.cfg, "auto_reset", True):
            raise ValueError(
                "This mjlab environment resets itself within its step, which loses the last observation of each episode: make it "
                "with cfg.auto_reset = False."
            )
        self.env = env
        obs, extras = env.reset()
        self.setup(env.num_envs, env.device, obs, obs_groups, env.action_manager.total_action_dim, action_bounds)
        self.note_metrics(extras)

    @property
    def progress(self) -> th.Tensor:  # type: ignore[override]
        """(N,) int64, mjlab's own counter of steps."""
        return self.env.episode_length_buf  # type: ignore[no-any-return]

    @property
    def max_episode_length(self) -> int:  # type: ignore[override]
        """One more than mjlab's own, which is the number of steps."""
        return int(self.env.max_episode_length) + 1

    def reset(self) -> th.Tensor:
        obs, extras = self.env.reset()
        self.note_metrics(extras)
        return self.observe(obs)

    def step(self, actions: th.Tensor) -> StepResult:
        last, reward, terminated, truncated, extras = self.env.step(self.clip(actions))
        final_obs = self.observe(last)
        self.note_metrics(extras)
        done = terminated | truncated
        result = self.result(final_obs, reward, terminated, truncated, final_obs)
        env_ids = done.nonzero().flatten()
        if len(env_ids) == 0:
            return result
        fresh, extras = self.env.reset(env_ids=env_ids)
        self.note_metrics(extras)
        return result._replace(obs=th.where(done.unsqueeze(-1), self.observe(fresh), final_obs))

    def seed(self, seed: int) -> None:
        self.env.seed(seed)

    def close(self) -> None:
        self.env.close()
