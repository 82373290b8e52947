"""What dqn.py, ddpg.py and ppo.py share: a flag for each setting, evaluations, and the learning curve that they print."""

from __future__ import annotations

import argparse
import inspect
import time
from typing import Any, Callable, List

import torch as th

import sb3_isaac

EVERY = 4096
"""Transitions between two evaluations"""
SOLVED = 475.0
"""Mean return at two evaluations in a row"""
Act = Callable[[th.Tensor], th.Tensor]
"""From observations (N, 4) to actions, without exploration"""


@th.no_grad()
def evaluate(env_id: str, act: Act, n_envs: int = 64, seed: int = 1000) -> float:
    """Mean return of the first episode of each environment."""
    env = sb3_isaac.make_vec_env(env_id, n_envs, seed=seed, device="cpu")
    obs, total, running = env.reset_tensor(), th.zeros(n_envs), th.ones(n_envs, dtype=th.bool)
    while running.any():
        result = env.step_tensor(act(obs))
        total += running * result.reward
        running &= ~(result.terminated | result.truncated)
        obs = result.obs
    env.close()
    return total.mean().item()


class Curve:
    """The mean returns of a training. It is called after each update, and says whether to go on."""

    def __init__(self, env_id: str, until_solved: bool = False) -> None:
        self.env_id, self.until_solved = env_id, until_solved
        self.returns: List[float] = []
        self.solved_at = float("inf")
        """Transitions at the first of the two evaluations"""
        self.seconds, self._since = 0.0, time.process_time()
        """CPU time of the training, without evaluations"""

    def __call__(self, num_timesteps: int, act: Act) -> bool:
        if num_timesteps < EVERY * (len(self.returns) + 1):
            return True
        self.seconds += time.process_time() - self._since
        self.returns.append(evaluate(self.env_id, act))
        if len(self.returns) > 1 and min(self.returns[-2:]) >= SOLVED:
            self.solved_at = min(self.solved_at, EVERY * (len(self.returns) - 1))
        self._since = time.process_time()
        return not (self.until_solved and self.solved_at < float("inf"))


def report(curves: List[Curve]) -> str:
    """A line for each evaluation, and when the task was solved."""
    lines = ["transitions  mean return (worst to best seed)"]
    for i, returns in enumerate(zip(*(curve.returns for curve in curves))):
        mean = sum(returns) / len(returns)
        bar = "#" * round(mean / 10)
        lines.append(f"{EVERY * (i + 1):11,}  {mean:4.0f} ({min(returns):4.0f} to {max(returns):4.0f})  {bar}".rstrip())
    times = sorted(curve.solved_at for curve in curves)
    n_solved, median = sum(each < float("inf") for each in times), times[len(times) // 2]
    when = f"; median {median:,} transitions" if median < float("inf") else ""
    seconds = sorted(curve.seconds for curve in curves)[len(curves) // 2]
    return "\n".join([*lines, f"solved by {n_solved} of {len(times)} seeds{when}; a training takes {seconds:.1f} s"])


def main(learn: Any, env_id: str, description: str) -> None:
    """Trains with the settings that the flags say, which are the arguments of ``learn``."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1, help="how many trainings")
    for name, setting in inspect.signature(learn).parameters.items():
        if name not in ("go_on", "seed"):
            flag, kind = f"--{name.replace('_', '-')}", type(setting.default)
            parser.add_argument(flag, type=kind, default=setting.default, help=f"default {setting.default}")
    args = vars(parser.parse_args())
    th.set_num_threads(1)  # the operations are too small to be shared out
    curves = []
    for seed in range(args.pop("seeds")):
        curves.append(Curve(env_id))
        learn(curves[-1], seed=seed, **args)
    print(report(curves))
