"""Seconds and environment steps until the cartpole is solved, over several seeds.

*Solved*: mean undiscounted return of at least 475 (of at most 499) over 64 environments, one full episode each,
deterministic policy; and again at the next evaluation. Training seconds are environment and update; imports and evaluation
are not in them. A run gets the timesteps that its entry has, as with ``sb3-isaac train``; schedules refer to these. Total
seconds are everything, from the start of the process.

    python scripts/solve.py --algo ppo --seeds 5            our algorithms with the entries of hyperparams/
    python scripts/solve.py --algo dqn --seeds 5 --stock    SB3's own algorithms with scripts/stock_sb3.yml
    python scripts/solve.py --algo ppo --seeds 5 --stay 3   trains three times longer and counts evaluations that stay solved

Each seed runs in a process of its own, one after the other. Prints a line of JSON for each, then a table.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

SOLVED_RETURN, N_EVAL_ENVS = 475.0, 64
ENV_IDS = {"ppo": "IsaacGymCartpole-v0", "dqn": "IsaacGymCartpoleDiscrete-v0", "ddpg": "IsaacGymCartpole-v0"}
STOCK_FILE = Path(__file__).with_name("stock_sb3.yml")


def solve_once(
    args: argparse.Namespace,
    seed: int,
    algorithm: Optional[type] = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Dict[str, Any]:
    """Train with one seed. Returns training seconds, total seconds and environment steps (None where not solved).

    :param algorithm: a class to take in place of the algorithm's
    :param clock: what training seconds are measured with
    """
    start = time.perf_counter()
    import torch as th
    from rl_zoo3.exp_manager import ExperimentManager
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.vec_env import VecNormalize, sync_envs_normalization

    import sb3_isaac.zoo  # noqa: F401  # first of all: Isaac Gym, where it is installed, must be imported before torch
    from sb3_isaac.evaluation.measure import evaluate

    th.set_num_threads(args.threads)

    class UntilSolved(BaseCallback):
        """Evaluates between rollouts, with the clock stopped."""

        def __init__(self) -> None:
            super().__init__()
            self.clock = self.seconds = 0.0
            self.steps: Optional[int] = None
            self.solved_seconds: Optional[float] = None
            self.total_seconds: Optional[float] = None
            self.next_eval, self.first, self.previous = 0, (0.0, 0), False
            self.later: List[bool] = []

        def _on_training_start(self) -> None:
            self.clock = clock()

        def _on_step(self) -> bool:
            return self.solved_seconds is None or self.num_timesteps < args.stay * (self.steps or 0)

        def _on_rollout_start(self) -> None:
            if self.num_timesteps < self.next_eval:
                return
            every = args.eval_every if self.solved_seconds is None else args.stay_every or args.eval_every
            self.next_eval = self.num_timesteps + every * self.training_env.num_envs
            self.seconds += clock() - self.clock
            if isinstance(self.training_env, VecNormalize):
                sync_envs_normalization(self.training_env, eval_env)
            mean = evaluate(self.model, eval_env, n_episodes=N_EVAL_ENVS).mean
            if args.verbose:
                print(f"{self.num_timesteps} steps, {self.seconds:.2f} s: {mean:.1f}", file=sys.stderr)
            good = bool(mean >= SOLVED_RETURN)
            if self.solved_seconds is not None:
                self.later.append(good)
            elif good and self.previous:
                self.solved_seconds, self.steps = self.first
                self.total_seconds = time.perf_counter() - start
            elif good:
                self.first = self.seconds, self.num_timesteps
            self.previous = good
            self.clock = clock()

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        manager = ExperimentManager(
            argparse.Namespace(),
            args.algo,
            args.env or ENV_IDS[args.algo],
            folder,
            n_timesteps=args.max_steps or -1,
            eval_freq=-1,
            seed=seed,
            verbose=0,
            device=args.device,
            config=str(args.conf_file) if args.conf_file else None,
            hyperparams=args.hyperparams,
            env_kwargs=args.env_kwargs,
        )
        if args.stock:
            manager.algorithms = {}
        if algorithm is not None:
            manager.algorithms = {**manager.algorithms, args.algo: algorithm}
        th.manual_seed(seed)
        model, _ = manager.setup_experiment()
        eval_env = manager.create_envs(N_EVAL_ENVS, eval_env=True, no_log=True)
        eval_env.seed(seed + 1_000_003)
        callback = UntilSolved()
        model.learn(manager.n_timesteps, callback=callback, log_interval=None if sys.version_info >= (3, 9) else 10**9)
        model.env.close()
    return {
        "seed": seed,
        "seconds": callback.solved_seconds,
        "total_seconds": callback.total_seconds,
        "steps": callback.steps,
        "stayed": sum(callback.later),
        "evaluations": len(callback.later),
    }


def summarise(results: List[Dict[str, Any]]) -> str:
    """One line: how many seeds solved, median and worst seconds, steps, evaluations that stayed solved."""
    solved = [r for r in results if r["seconds"] is not None]
    if not solved:
        return f"solved 0/{len(results)}"
    seconds = [r["seconds"] for r in solved]
    totals = [r["total_seconds"] for r in solved]
    text = (
        f"solved {len(solved)}/{len(results)}, training s median {statistics.median(seconds):.2f} worst {max(seconds):.2f}, "
        f"total s median {statistics.median(totals):.1f} worst {max(totals):.1f}, "
        f"env steps median {statistics.median(r['steps'] for r in solved):,.0f}"
    )
    evaluations = sum(r["evaluations"] for r in solved)
    if evaluations:
        text += f", stayed {sum(r['stayed'] for r in solved)}/{evaluations}"
    return text


def parse_args(argv: Optional[List[str]] = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--algo", choices=list(ENV_IDS), default="ppo")
    parser.add_argument("--env", default=None, help="environment id (default: the algorithm's)")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--stock", action="store_true", help="SB3's own algorithms and scripts/stock_sb3.yml")
    parser.add_argument("--conf-file", default=None, help="hyperparameter file (default: the shipped one)")
    parser.add_argument("-params", "--hyperparams", type=json.loads, default=None, help="JSON that overwrites hyperparameters")
    parser.add_argument("--env-kwargs", type=json.loads, default=None, help="JSON of keyword arguments of the environment")
    parser.add_argument("--max-steps", type=int, default=None, help="give up after (default: n_timesteps of the entry)")
    parser.add_argument("--eval-every", type=int, default=16, help="steps of the batch between two evaluations")
    parser.add_argument("--stay", type=float, default=1.0, help="train this many times longer than it took, up to n_timesteps")
    parser.add_argument("--stay-every", type=int, default=None, help="once solved: the same (default: --eval-every)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--child", type=int, default=None, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.stock and args.conf_file is None:
        import yaml

        args.conf_file = STOCK_FILE
        args.hyperparams = {**yaml.safe_load(STOCK_FILE.read_text())[args.algo], **(args.hyperparams or {})}
    return args


def main() -> None:
    args = parse_args()
    if args.child is not None:
        print(json.dumps(solve_once(args, args.child)))
        return
    results = []
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        command = [sys.executable, __file__, *sys.argv[1:], "--child", str(seed)]
        line = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip().splitlines()[-1]
        results.append(json.loads(line))
        print(line, flush=True)
    print(f"{args.algo}{' (stock SB3)' if args.stock else ''}: {summarise(results)}")


if __name__ == "__main__":
    main()
