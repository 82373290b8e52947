"""Callbacks: evaluation in tensors, and a log of the mean reward per step, as public runs on real Isaac Gym had it."""

from __future__ import annotations

import csv
import io
import os
from typing import Any, Dict, List, Optional

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.vec_env import sync_envs_normalization

from sb3_isaac.device.finite import NotFiniteError, advice, is_finite
from sb3_isaac.envs.tensor_path import supports_tensors
from sb3_isaac.envs.vec_env import IsaacVecEnv
from sb3_isaac.evaluation.measure import evaluate
from sb3_isaac.files.atomic import staging, write
from sb3_isaac.files.full_disk import training_goes_on

FILE_NAME = "reward_rate.csv"
COLUMNS = ["window_first_step", "window_last_step", "mean_reward", "n_envs"]


class RewardLog(BaseCallback):
    """Writes ``reward_rate.csv`` beside the monitor file: the mean reward of all environments over windows of steps.

    Unlike the returns of finished episodes, it does not favour the short episodes at the start of training. In a
    hyperparameter file: ``callback: sb3_isaac.evaluation.RewardLog``. Without a monitor file nothing is written.

    :param window: steps of each environment that a row covers. The device is read once in a window.
    :param verbose: see SB3
    """

    no_state = ("path",)
    """What a checkpoint leaves out of this callback"""
    _env: IsaacVecEnv

    def __init__(self, window: int = 100, verbose: int = 0) -> None:
        super().__init__(verbose)
        self.window = window
        self.n_steps = 0
        self.path: Optional[str] = None
        self._total = self._running = th.zeros(())
        """Sums over all environments, () float64: of the window's rewards, and of the returns of unfinished episodes."""

    def _on_training_start(self) -> None:
        env = self.training_env.unwrapped
        if not isinstance(env, IsaacVecEnv):
            raise ValueError(f"RewardLog needs an IsaacVecEnv, not {type(env).__name__}: leave the callback out.")
        self._env = env
        if self.path is None and self._env.results_writer is not None:
            self.path = os.path.join(os.path.dirname(self._env.results_writer.file_handler.name), FILE_NAME)
            if self.num_timesteps == 0 or not os.path.isfile(self.path):  # else a run goes on
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

    @property
    def appends_to(self) -> Optional[str]:
        """The file, of which a checkpoint notes how long it is."""
        return self.path

    def _sum_of_running_returns(self) -> th.Tensor:
        return self._env.episode_returns.masked_fill(self._env.dones, 0.0).sum(dtype=th.float64)

    def _write(self, row: List[Any], mode: str) -> None:
        with training_goes_on("reward log"), open(str(self.path), mode, newline="") as file:
            csv.writer(file).writerow(row)


class StopWhenSolved(BaseCallback):
    """Ends training when two evaluations in a row reach a mean return, and says so: EvalCallback's ``callback_after_eval``.

    :param reward_threshold: the mean return
    """

    parent: EvalCallback

    def __init__(self, reward_threshold: float) -> None:
        super().__init__()
        self.reward_threshold = reward_threshold
        self.solved = False
        self._last_mean = -np.inf

    def _on_step(self) -> bool:
        mean = self.parent.last_mean_reward
        self.solved = min(mean, self._last_mean) >= self.reward_threshold
        if self.solved:
            print(
                f"Solved after {self.num_timesteps:,} steps: mean returns {self._last_mean:.1f} and {mean:.1f} in two "
                f"evaluations in a row, {self.reward_threshold:g} were asked for"
            )
        self._last_mean = mean
        return not self.solved


class BatchedEvalCallback(EvalCallback):
    """SB3's EvalCallback with :func:`evaluate`: the same files and the same logged keys, in a fraction of the time.

    Parameters are SB3's. An evaluation prints one line. With an evaluation environment that does not support tensors, or with
    ``render``, it is SB3's callback, success rates included. Files are replaced only when they are complete.
    """

    def _log_success_callback(self, locals_: Dict[str, Any], globals_: Dict[str, Any]) -> None:
        """SB3 calls it at each step of an evaluation in numpy."""
        if not np.isfinite(locals_["reward"]):
            raise NotFiniteError(f"A reward of the evaluation is {locals_['reward']}: {advice('reward')}")
        super()._log_success_callback(locals_, globals_)

    def _on_step(self) -> bool:
        if self.eval_freq <= 0 or self.n_calls % self.eval_freq != 0:
            return True
        if self.render or not supports_tensors(self.eval_env):
            return self._evaluate_as_sb3()
        if self.model.get_vec_normalize_env() is not None:
            sync_envs_normalization(self.training_env, self.eval_env)
        result = evaluate(self.model, self.eval_env, self.n_eval_episodes, deterministic=self.deterministic)
        if not is_finite(result.returns):
            raise NotFiniteError(f"An evaluation's return is not finite: {advice('reward')}")
        self.last_mean_reward = result.mean
        if self.log_path is not None:
            self.evaluations_timesteps.append(self.num_timesteps)
            self.evaluations_results.append(result.returns.tolist())
            self.evaluations_length.append(result.lengths.tolist())
            results, lengths = self.evaluations_results, self.evaluations_length
            file = io.BytesIO()
            np.savez(file, timesteps=self.evaluations_timesteps, results=results, ep_lengths=lengths)
            with training_goes_on("evaluations"):
                write(f"{self.log_path}.npz", file.getbuffer())
        if self.verbose >= 1:
            best = ", best so far" if result.mean > self.best_mean_reward else ""
            print(
                f"Evaluation after {self.num_timesteps:,} steps: mean return {result.mean:.1f} +/- {result.std:.1f}, "
                f"length {result.mean_length:.1f}{best}"
            )
        self.logger.record("eval/mean_reward", result.mean)
        self.logger.record("eval/mean_ep_length", result.mean_length)
        # Dumped here, so that the results appear at the right time step
        self.logger.record("time/total_timesteps", self.num_timesteps, exclude="tensorboard")
        self.logger.dump(self.num_timesteps)

        continue_training = True
        if result.mean > self.best_mean_reward:
            self.best_mean_reward = result.mean
            if self.best_model_save_path is not None:
                with training_goes_on("best model"):
                    self.model.save(os.path.join(self.best_model_save_path, "best_model"))
            if self.callback_on_new_best is not None:
                continue_training = self.callback_on_new_best.on_step()
        if self.callback is not None:
            continue_training = continue_training and self._on_event()
        return continue_training

    def _evaluate_as_sb3(self) -> bool:
        if self.log_path is None:
            return super()._on_step()
        log_path, (folder, name) = self.log_path, os.path.split(self.log_path)
        with training_goes_on("evaluations"), staging(folder) as inside:
            self.log_path = os.path.join(inside, name)
            try:
                continue_training = super()._on_step()
            finally:
                self.log_path = log_path
        return continue_training
