"""What DQN and DDPG tell about a training, read from the device once in many steps."""

from __future__ import annotations

import time
from typing import Any, Optional, Sequence

import numpy as np
import torch as th
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_isaac.device.host import to_host

STEPS_PER_READ = 100
"""The device is read once in so many vectorised steps: episode statistics and losses, all in one transfer."""


class TrainingLog:
    """Episode statistics and losses, kept on the device until they are read.

    :param env: on the tensor path
    :param loss_names: e.g. ("critic_loss", "actor_loss"); logged as ``train/<name>``, mean over the gradient steps
    :param episodes: finished and logged before
    """

    loss_sums: th.Tensor
    """(number of losses,) on the device, for the updates to add to"""

    def __init__(self, env: Any, loss_names: Sequence[str], episodes: int = 0) -> None:
        self._env = env
        self._loss_names = list(loss_names)
        self.loss_sums = th.zeros(len(loss_names), device=env.device)
        self.loss_counts = [0] * len(loss_names)
        self.seconds = {"rollout": 0.0, "env": 0.0, "update": 0.0}
        """Since the last log (on a GPU: until it had all its orders)"""
        self.replay_ratio = 0.0
        self._rows = th.zeros((STEPS_PER_READ, 2, env.num_envs), device=env.device)
        self._n_rows = 0
        self._episodes_logged = episodes

    def note_episodes(self, episodes: th.Tensor) -> None:
        """Keep the returns and the lengths (2, N) of the episodes that ended in this step; length 0: it goes on."""
        self._rows[self._n_rows].copy_(episodes)
        self._n_rows += 1

    def read_if_due(self, model: OffPolicyAlgorithm, log_interval: Optional[int], force: bool = False) -> None:
        """Read the device, once in :data:`STEPS_PER_READ` steps or if forced. Training waits for it nowhere else.

        :param log_interval: as SB3, in episodes, but at most one log for each read; None: never
        :raises FloatingPointError: if a loss or a return is not finite
        """
        if self._n_rows < STEPS_PER_READ and not force:
            return
        host = to_host(th.cat((self.loss_sums, self._rows[: self._n_rows].reshape(-1))))
        n_losses = len(self._loss_names)
        self._record_losses(model, host[:n_losses])
        rows = host[n_losses:].reshape(self._n_rows, 2, self._env.num_envs)
        returns, lengths = rows[:, 0].ravel(), rows[:, 1].ravel()
        self._record_episodes(model, returns[lengths > 0], lengths[lengths > 0].astype(np.int64))
        self._n_rows = 0
        if log_interval is not None and model._episode_num - self._episodes_logged >= log_interval:
            self._episodes_logged = model._episode_num
            for name, seconds in self.seconds.items():
                model.logger.record(f"time/{name}", seconds)
                self.seconds[name] = 0.0
            # SB3 2.4 has the old name only, SB3 2.9 warns about it
            (getattr(model, "dump_logs", None) or model._dump_logs)()

    def _record_losses(self, model: OffPolicyAlgorithm, sums: np.ndarray) -> None:
        for name, total, count in zip(self._loss_names, sums, self.loss_counts):
            if not np.isfinite(total):
                raise FloatingPointError(
                    f"The {name.replace('_', ' ')} is {total}: training has diverged, lower the learning rate or the "
                    "scale of the rewards."
                )
            if count > 0:
                model.logger.record(f"train/{name}", float(total) / count)
        if any(self.loss_counts):
            model.logger.record("train/n_updates", model._n_updates, exclude="tensorboard")
            model.logger.record("train/replay_ratio", self.replay_ratio)
        self.loss_sums.zero_()
        self.loss_counts = [0] * len(self._loss_names)

    def _record_episodes(self, model: OffPolicyAlgorithm, returns: np.ndarray, lengths: np.ndarray) -> None:
        if not np.isfinite(returns).all():
            raise FloatingPointError("An episode's return is not finite: the actions or the simulation's state became NaN.")
        if len(returns) == 0:
            return
        assert model.ep_info_buffer is not None
        model._episode_num += len(returns)
        t = round(time.time() - getattr(self._env, "t_start", time.time()), 6)
        kept = model.ep_info_buffer.maxlen or len(returns)
        model.ep_info_buffer.extend(
            {"r": round(float(r), 6), "l": int(n), "t": t} for r, n in zip(returns[-kept:], lengths[-kept:])
        )
        self._env.log_episodes(returns, lengths)
