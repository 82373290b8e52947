"""What DQN and DDPG tell about a training, read from the device once in many steps."""

from __future__ import annotations

from typing import Dict, NamedTuple, Optional, Sequence

import numpy as np
import torch as th

from sb3_isaac.device.finite import NotFiniteError, advice
from sb3_isaac.device.host import to_host

STEPS_PER_READ = 100
"""The device is read once in so many vectorised steps: episode statistics and losses, all in one transfer."""


class Reading(NamedTuple):
    """What happened since the last reading."""

    losses: Dict[str, float]
    """Means over the gradient steps, without those that there were none of"""
    returns: np.ndarray
    """(episodes,) float32, of the episodes that ended"""
    lengths: np.ndarray
    """(episodes,) int64"""
    health: np.ndarray
    """(n,) float32, what was given to :meth:`TrainingLog.read`"""


class TrainingLog:
    """Episode statistics and losses, kept on the device until they are read.

    :param n_envs: N
    :param device: where they are
    :param loss_names: e.g. ("critic_loss", "actor_loss")
    :param episodes: finished and logged before
    """

    loss_sums: th.Tensor
    """(number of losses,) on the device, for the updates to add to"""

    def __init__(self, n_envs: int, device: th.device, loss_names: Sequence[str], episodes: int = 0) -> None:
        self._n_envs = n_envs
        self._loss_names = list(loss_names)
        self.loss_sums = th.zeros(len(loss_names), device=device)
        self._loss_counts = [0] * len(loss_names)
        self.seconds = {"rollout": 0.0, "env": 0.0, "update": 0.0}
        """Since the last log (on a GPU: until all kernels were queued)"""
        self.replay_ratio = 0.0
        self.episodes_logged = episodes
        self._steps = th.zeros((STEPS_PER_READ, 2, n_envs), device=device)
        self._n_steps = 0

    @property
    def is_full(self) -> bool:
        """Whether it has to be read before the next step."""
        return self._n_steps == STEPS_PER_READ

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to read."""
        return self._n_steps == 0 and not any(self._loss_counts)

    def note_episodes(self, episodes: th.Tensor) -> None:
        """Keep the returns and the lengths (2, N) of the episodes that ended in this step; length 0: it goes on."""
        self._steps[self._n_steps].copy_(episodes)
        self._n_steps += 1

    def count_losses(self, counts: Sequence[int]) -> None:
        """So often has each of the losses been added to ``loss_sums``."""
        self._loss_counts = [before + count for before, count in zip(self._loss_counts, counts)]

    def read(self, health: Optional[th.Tensor] = None) -> Reading:
        """Read everything in one transfer, and begin anew.

        :param health: (n,) what else the host is to read, see :attr:`Reading.health`
        :raises NotFiniteError: if a loss or a return is not finite
        """
        health = self.loss_sums[:0] if health is None else health
        host = to_host(th.cat((self.loss_sums, health, self._steps[: self._n_steps].reshape(-1))))
        sums, health_, steps = np.split(host, [len(self._loss_names), len(self._loss_names) + len(health)])
        for name, total in zip(self._loss_names, sums):
            if not np.isfinite(total):
                raise NotFiniteError(f"The {name.replace('_', ' ')} is {total}: {advice('loss')}")
        returns, lengths = steps.reshape(self._n_steps, 2, self._n_envs).swapaxes(0, 1).reshape(2, -1)
        ended = lengths > 0
        if not np.isfinite(returns[ended]).all():
            raise NotFiniteError(f"An episode's return is not finite: {advice('reward')}")
        counts = self._loss_counts
        losses = {name: float(total) / n for name, total, n in zip(self._loss_names, sums, counts) if n > 0}
        self.loss_sums.zero_()
        self._loss_counts = [0] * len(self._loss_names)
        self._n_steps = 0
        return Reading(losses, returns[ended], lengths[ended].astype(np.int64), health_)
