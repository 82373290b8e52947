"""``sb3-isaac plot``: learning curves of several seeds from log folders, with confidence bands."""

from __future__ import annotations

import argparse
import os
from typing import List, Optional, Tuple

from sb3_isaac.evaluation import curves
from sb3_isaac.evaluation.callbacks import FILE_NAME

Y_LABELS = {
    "eval": "return (evaluation)",
    "train": "return (training)",
    "reward-rate": "mean reward per step (training)",
}


def main(argv: Optional[List[str]] = None) -> int:
    """Draw learning curves. Errors are raised: FileNotFoundError for missing logs, ValueError, ImportError, RuntimeError."""
    parser = argparse.ArgumentParser(
        prog="sb3-isaac plot", description="Learning curves of all seeds in log folders: mean and 95%% confidence band."
    )
    parser.add_argument("-a", "--algo", "--algos", nargs="+", default=["ppo"], help="algorithms (default: ppo)")
    parser.add_argument("-e", "--env", nargs="+", required=True, help="environment ids")
    parser.add_argument("-f", "--folder", "--exp-folders", nargs="+", default=["logs"], help="log folders (default: logs)")
    parser.add_argument("-l", "--labels", nargs="+", help="one label per curve (default: algorithm and environment)")
    parser.add_argument("-x", "--x-axis", choices=["steps", "seconds"], default="steps", help="default: steps")
    parser.add_argument(
        "--curve",
        choices=list(Y_LABELS),
        help="eval: mean returns of the evaluations; train: returns of the training episodes; reward-rate: mean reward per "
        "training step (default: eval by steps, train by seconds, reward-rate with --reference)",
    )
    parser.add_argument("-w", "--window", type=int, help="training episodes to average (default: 100)", default=100)
    parser.add_argument("--reference", nargs="+", default=[], metavar="CSV", help="curves of real Isaac Gym to lay over")
    parser.add_argument("-max", "--max-timesteps", type=float, help="end of the x axis")
    parser.add_argument("-o", "--output", help="file to write (.png, .svg, .pdf); without it, a window is opened")
    args = parser.parse_args(argv)

    kind = args.curve or ("reward-rate" if args.reference else "train" if args.x_axis == "seconds" else "eval")
    if args.x_axis == "seconds" and kind != "train":
        raise ValueError(f"The curve {kind!r} has no times: use --curve train with --x-axis seconds.")
    if args.reference and kind != "reward-rate":
        raise ValueError("Reference curves are rewards per step: use --curve reward-rate with --reference.")
    if args.window < 1:
        raise ValueError(f"--window must be at least 1, got {args.window}.")
    groups = [(folder, algo, env_id) for folder in args.folder for algo in args.algo for env_id in args.env]
    labels = args.labels or [_label(group, args) for group in groups]
    if len(labels) != len(groups):
        raise ValueError(f"{len(groups)} curves need as many --labels, got {len(labels)}.")

    pyplot = curves.import_pyplot(show=args.output is None)
    figure, axes = pyplot.subplots(figsize=(6.4, 4.2), layout="constrained")
    for group, label in zip(groups, labels):
        curves.draw(axes, [_read_curve(run, kind, args) for run in curves.find_runs(*group)], label)
    for path in args.reference:
        x, y = curves.reward_rate_curve(path)
        name = os.path.splitext(os.path.basename(path))[0]
        axes.plot(x, y, label=f"Isaac Gym: {name}", linestyle="--", color="0.25", linewidth=1.5)
    if args.max_timesteps is not None:
        axes.set_xlim(right=args.max_timesteps)
    curves.style(axes, "environment steps" if args.x_axis == "steps" else "seconds", Y_LABELS[kind])
    if args.output is None:
        pyplot.show()
    else:
        curves.save_figure(figure, args.output)
        print(f"Wrote {args.output}")
    pyplot.close(figure)
    return 0


def _label(group: Tuple[str, str, str], args: argparse.Namespace) -> str:
    folder, algo, env_id = group
    parts = [algo.upper()]
    if len(args.env) > 1:
        parts.append(env_id)
    if len(args.folder) > 1:
        parts.append(os.path.basename(os.path.normpath(folder)))
    return " ".join(parts)


def _read_curve(run: str, kind: str, args: argparse.Namespace) -> curves.Curve:
    if kind == "eval":
        return curves.evaluation_curve(run)
    if kind == "reward-rate":
        return curves.reward_rate_curve(os.path.join(run, FILE_NAME))
    return curves.training_curve(run, args.x_axis, args.window)
