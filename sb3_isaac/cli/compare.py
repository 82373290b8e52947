"""``sb3-isaac compare``: train algorithms with several seeds, draw their learning curves in one picture, print a table."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import List, Optional, Tuple

import gymnasium as gym
import numpy as np

from sb3_isaac.cli.commands import Y_LABELS
from sb3_isaac.cli.flags import check_flags, check_output
from sb3_isaac.envs.make import is_isaac_env_id
from sb3_isaac.evaluation import curves

Pair = Tuple[str, str]
"""Algorithm and environment id."""
DEFAULT_CURVES = ["ppo:IsaacGymCartpole-v0", "dqn:IsaacGymCartpoleDiscrete-v0", "ddpg:IsaacGymCartpole-v0"]


def compare(argv: List[str]) -> int:
    """Train every curve with every seed, print, draw. Returns 1 if a training failed, which the others survive.

    :raises ValueError: numbers that make no sense, an unknown algorithm, a picture of no known format, no evaluations to draw
    :raises OSError: the picture cannot be written
    :raises gymnasium.error.UnregisteredEnv: an unknown environment
    :raises RuntimeError: all trainings failed
    """
    parser = argparse.ArgumentParser(
        prog="sb3-isaac compare",
        description="Train with several seeds, with the entries of the hyperparameter files as sb3-isaac train does; draw the "
        "learning curves in one picture, and print when each was solved.",
    )
    parser.add_argument("curves", nargs="*", metavar="ALGO:ENV", help=f"what to train (default: {' '.join(DEFAULT_CURVES)})")
    parser.add_argument("-s", "--seeds", type=int, default=5, help="number of seeds: 1, 2, ... (default: 5)")
    parser.add_argument("-n", "--n-timesteps", type=int, default=-1, help="timesteps of each training (default: the entry's)")
    parser.add_argument("-f", "--folder", default="logs", help="log folder (default: logs)")
    parser.add_argument("-o", "--output", help="picture to write: .png, .svg, .pdf (default: compare.png in the log folder)")
    parser.add_argument("-j", "--jobs", type=int, default=1, help="curves that are trained at the same time (default: 1)")
    parser.add_argument("--device", default="auto", help="torch device: cpu, cuda, auto")
    parser.add_argument("--gym-packages", nargs="+", default=[], help="modules to import, which register environments")
    args = parser.parse_intermixed_args(argv)
    check_flags("compare", args)
    pairs = list(dict.fromkeys(curves.parse_pair(text) for text in args.curves or DEFAULT_CURVES))
    _check(pairs, args)
    pyplot = curves.import_pyplot()
    output = args.output or os.path.join(args.folder, "compare.png")
    figure, axes = pyplot.subplots(figsize=curves.FIGURE_SIZE, layout="constrained")
    curves.picture_kind(figure, output)
    check_output(output)

    # Seeds of one curve follow each other, as rl_zoo3 numbers their folders: other curves have folders of their own.
    stop = threading.Event()
    with ThreadPoolExecutor(args.jobs) as pool:
        try:
            results = list(pool.map(lambda pair: _train_seeds(pair, args, stop), pairs))
        finally:
            stop.set()  # after Ctrl-C no new training begins
    found = {pair: [run for run in runs if _has_evaluations(run)] for pair, runs in zip(pairs, results)}
    trained = {pair: runs for pair, runs in found.items() if runs}
    if not trained and any(results):
        raise ValueError("There is no curve to draw: choose a larger -n.")
    if not trained:
        raise RuntimeError("No training succeeded: what each said last stands above.")
    evaluations = {pair: [curves.evaluation_curve(run) for run in runs] for pair, runs in trained.items()}
    thresholds = {pair: curves.solved_return(pair[1], runs) for pair, runs in trained.items()}
    env_ids = {env_id for _, env_id in trained}

    _print_table([(f"{algo}:{env_id}", evaluations[algo, env_id], thresholds[algo, env_id]) for algo, env_id in trained])
    for (algo, env_id), of_seeds in evaluations.items():
        curves.draw(axes, of_seeds, algo.upper() + (f" {env_id}" if len(env_ids) > 1 else ""))
    curves.draw_solved(axes, thresholds.values())
    curves.style(axes, "environment steps", Y_LABELS["eval"])
    curves.save_figure(figure, output)
    pyplot.close(figure)
    print(f"Wrote {output}")
    return 0 if sum(map(len, trained.values())) == len(pairs) * args.seeds else 1


def _check(pairs: List[Pair], args: argparse.Namespace) -> None:
    """What each training would say of a wrong name, said before the first."""
    from sb3_isaac.zoo.agents import ALGO_NAMES, import_packages

    import_packages(args)
    for algo, env_id in pairs:
        if algo not in ALGO_NAMES:
            raise ValueError(f"Unknown algorithm {algo!r} in {algo}:{env_id}: choose one of {', '.join(ALGO_NAMES)}.")
        if not is_isaac_env_id(env_id):
            gym.spec(env_id)


def _train_seeds(pair: Pair, args: argparse.Namespace, stop: threading.Event) -> List[str]:
    """The run folders of all seeds of a curve, but for those whose training failed."""
    runs = [_train(pair, seed, args) for seed in range(1, args.seeds + 1) if not stop.is_set()]
    return [run for run in runs if run is not None]


def _train(pair: Pair, seed: int, args: argparse.Namespace) -> Optional[str]:
    """Train in a child process, as one would by hand. Returns the folder of the run; None if it failed, which is said."""
    algo, env_id = pair
    flags = ["train", "--algo", algo, "--env", env_id, "--seed", str(seed), "-f", args.folder, "--device", args.device]
    if args.n_timesteps > 0:
        flags += ["-n", str(args.n_timesteps)]
    if args.gym_packages:
        flags += ["--gym-packages", *args.gym_packages]
    if args.jobs > 1:  # or each would take all cores
        flags += ["--num-threads", str(max((os.cpu_count() or 1) // args.jobs, 1))]
    print("sb3-isaac " + " ".join(map(shlex.quote, flags)), flush=True)
    before = set(curves.list_runs(args.folder, algo, env_id))
    command = [sys.executable, "-m", "sb3_isaac.cli", *flags, "--verbose", "0"]
    child = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    new = [run for run in curves.list_runs(args.folder, algo, env_id) if run not in before]
    if child.returncode == 0 and new:
        if not _has_evaluations(new[-1]):
            said = "was trained, but no evaluation fell into so few steps: choose a larger -n"
            print(f"{algo}:{env_id} with seed {seed} {said}", file=sys.stderr, flush=True)
        return new[-1]
    lines = [line for line in child.stdout.splitlines() if line.strip()] or ["it said nothing"]
    problem = f"exit status {child.returncode}" if child.returncode else "it left no run"
    print(f"{algo}:{env_id} with seed {seed} failed ({problem}): {lines[-1]}", file=sys.stderr, flush=True)
    return None


def _has_evaluations(run: str) -> bool:
    return os.path.isfile(os.path.join(run, "evaluations.npz"))


def _print_table(rows: List[Tuple[str, List[curves.Curve], Optional[float]]]) -> None:
    """When each curve was solved (median and latest of the seeds, at the evaluations), and its last evaluations."""
    width = max(len(name) for name, _, _ in rows) + 2
    print(f"{'':{width}s}{'solved':10s}{'at step, median / latest':28s}{'final mean return, lowest seed'}")
    for name, of_seeds, threshold in rows:
        final = [y[-1] for _, y in of_seeds]
        steps = [] if threshold is None else [curves.first_solved(curve, threshold) for curve in of_seeds]
        reached = [step for step in steps if step is not None]
        solved = "-" if threshold is None else f"{len(reached)}/{len(steps)}"
        at = f"{np.median(reached):,.0f} / {max(reached):,.0f}" if reached else "-"
        print(f"{name:{width}s}{solved:10s}{at:28s}{np.mean(final):.1f}, {min(final):.1f}")
