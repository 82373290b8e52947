"""A callback that logs the mean reward per step, as public runs on real Isaac Gym did."""

from __future__ import annotations

import csv
import os
from typing import Any, List, Optional

import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_isaac.vec_env import supports_tensors

FILE_NAME = "reward_rate.csv"
COLUMNS = ["window_first_step", "window_last_step", "mean_reward", "n_envs"]


class RewardLog(BaseCallback):
    """Writes ``reward_rate.csv`` beside the monitor file: the mean reward of all environments over windows of steps.

    Unlike the returns of finished episodes, it does not favour the short episodes at the start of training. In a
    hyperparameter file: ``callback: sb3_isaac.reward_log.RewardLog``. Without a monitor file nothing is written.

    :param window: steps of each environment that a row covers. The device is read once in a window.
    :param verbose: see SB3
    """

    _env: Any
    _total: th.Tensor
    _running: th.Tensor

    def __init__(self, window: int = 100, verbose: int = 0) -> None:
        super().__init__(verbose)
        self.window = window
        self.n_steps = 0
        self.path: Optional[str] = None

    def _on_training_start(self) -> None:
        self._env = self.training_env.unwrapped
        if not supports_tensors(self._env):
            raise ValueError(f"RewardLog needs an IsaacVecEnv, not {type(self._env).__name__}: leave the callback out.")
        if self.path is None and self._env.results_writer is not None:
            self.path = os.path.join(os.path.dirname(self._env.results_writer.file_handler.name), FILE_NAME)
            self._write(COLUMNS, "w")
        self._total = th.zeros((), dtype=th.float64, device=self._env.device)
        self._running = self._sum_of_running_returns()

    def _on_step(self) -> bool:
        # What the returns have grown by in this step, the episodes that ended with it included
        self._total += self._env.episode_returns.sum(dtype=th.float64) - self._running
        self._running = self._sum_of_running_returns()
        self.n_steps += 1
        if self.path is not None and self.n_steps % self.window == 0:
            mean = float(self._total) / (self.window * self._env.num_envs)
            self._total.zero_()
            self._write([self.n_steps - self.window, self.n_steps - 1, round(mean, 6), self._env.num_envs], "a")
        return True

    def _sum_of_running_returns(self) -> th.Tensor:
        running: th.Tensor = self._env.episode_returns.masked_fill(self._env.dones, 0.0).sum(dtype=th.float64)
        return running

    def _write(self, row: List[Any], mode: str) -> None:
        with open(str(self.path), mode, newline="") as file:
            csv.writer(file).writerow(row)
