"""``sb3-isaac plot``: learning curves of several seeds from log folders, with confidence bands."""

from __future__ import annotations

import argparse
import csv
import os
import re
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
from stable_baselines3.common.monitor import LoadMonitorResultsError, load_results

from sb3_isaac.evaluation.callbacks import COLUMNS, FILE_NAME

N_POINTS = 200
"""Points of a drawn curve."""
REFERENCE_ENVS = 128
"""Environments of the public runs on real Isaac Gym whose curves can be laid over ours."""

Curve = Tuple[np.ndarray, np.ndarray]
"""x and y of one run, both (n,) float64, x ascending."""


@dataclass(frozen=True)
class Band:
    """Mean of several runs and a 95% bootstrap interval of that mean, on common points. All (N_POINTS,)."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    n_runs: int


def find_runs(folder: str, algo: str, env_id: str) -> List[str]:
    """The run folders of rl_zoo3 for an algorithm and an environment: ``<folder>/<algo>/<env_id>_1``, ``_2``, ...

    :raises FileNotFoundError: there is none
    """
    parent = os.path.join(folder, algo)
    pattern = re.compile(re.escape(env_id) + r"_(\d+)")
    matches = [pattern.fullmatch(name) for name in (os.listdir(parent) if os.path.isdir(parent) else [])]
    numbers = sorted(int(match.group(1)) for match in matches if match)
    if not numbers:
        raise FileNotFoundError(f"No run of {algo} on {env_id} in {parent}: train one first, or name another folder with -f.")
    return [os.path.join(parent, f"{env_id}_{number}") for number in numbers]


def evaluation_curve(run: str) -> Curve:
    """Timesteps and mean return of each evaluation, from ``evaluations.npz``.

    :raises FileNotFoundError: the run has no evaluations
    """
    path = os.path.join(run, "evaluations.npz")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{run} has no evaluations.npz: train with evaluation, or plot with --curve train.")
    with np.load(path) as log:
        return log["timesteps"].astype(float), log["results"].mean(axis=1)


def training_curve(run: str, x_axis: str, window: int) -> Curve:
    """Mean return of the last ``window`` training episodes, from the monitor files.

    :param x_axis: "steps" (of all environments together) or "seconds" (since the start of the run)
    :raises FileNotFoundError: the run has no monitor file, or no finished episode
    """
    episodes = _read_monitor(run)
    x = np.cumsum(episodes["l"]) if x_axis == "steps" else episodes["t"]
    width = min(window, len(x))
    mean = np.convolve(episodes["r"], np.full(width, 1.0 / width), mode="valid")
    return x[width - 1 :], mean


def reward_rate_curve(path: str) -> Curve:
    """Environment steps (of all environments) and mean reward per step, in windows.

    :param path: a file of :class:`~sb3_isaac.evaluation.RewardLog`, or a public curve of real Isaac Gym in tests/data, which
        has the same columns (and :data:`REFERENCE_ENVS` environments, and an empty first window)
    :raises FileNotFoundError: the run was trained without RewardLog
    :raises ValueError: the file has other columns
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"There is no {path}: train with RewardLog, as the Seed entries do, or plot another --curve.")
    with open(path, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("mean_reward") != ""]
    if not rows or not set(COLUMNS[:3]) <= set(rows[0]):
        raise ValueError(f"{path} is no curve of rewards: it needs the columns {', '.join(COLUMNS[:3])} and a row of numbers.")
    middle = [(float(row[COLUMNS[0]]) + float(row[COLUMNS[1]]) + 1.0) / 2.0 for row in rows]
    n_envs = int(rows[0].get("n_envs") or REFERENCE_ENVS)
    return np.array(middle) * n_envs, np.array([float(row["mean_reward"]) for row in rows])


def _read_monitor(run: str) -> Dict[str, np.ndarray]:
    try:
        frame = load_results(run)
    except LoadMonitorResultsError as error:
        raise FileNotFoundError(f"{run} has no monitor file: it is not the folder of a training run.") from error
    if len(frame) == 0:
        raise FileNotFoundError(f"The monitor file in {run} has no finished episode yet.")
    return {name: frame[name].to_numpy(dtype=float) for name in ("r", "l", "t")}


def band(curves: Sequence[Curve], n_resamples: int = 1000) -> Band:
    """Average several runs at common points, from where the last one starts to where the first one ends.

    The interval says how much the mean would differ with other seeds: a bootstrap over the runs.
    """
    start, end = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    if start > end:
        raise ValueError("The runs have no timesteps in common, so they cannot be averaged: plot them from separate folders.")
    grid = np.linspace(start, end, N_POINTS)
    values = np.stack([np.interp(grid, x, y) for x, y in curves])
    chosen = np.random.default_rng(0).integers(len(curves), size=(n_resamples, len(curves)))
    low, high = np.quantile(values[chosen].mean(axis=1), [0.025, 0.975], axis=0)
    return Band(grid, values.mean(axis=0), low, high, len(curves))


def import_pyplot(show: bool = False) -> Any:
    """matplotlib.pyplot, without a display unless figures are to be shown.

    :raises ImportError: matplotlib is missing
    :raises RuntimeError: figures are to be shown and there is no display
    """
    try:
        import matplotlib

        if not show:
            matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("Plots need matplotlib, which comes with the extra 'plots': pip install matplotlib.") from error
    if show and matplotlib.get_backend().lower() == "agg":
        raise RuntimeError("There is no display to show the plot on: write it to a file with --output.")
    return pyplot


def draw(axes: Any, curves: Sequence[Curve], label: str, color: Any = None) -> None:
    """Draw runs as a mean with its band, and each of them as a thin line."""
    average = band(curves)
    seeds = f"{average.n_runs} seeds" if average.n_runs > 1 else "1 seed"
    (line,) = axes.plot(average.x, average.mean, label=f"{label} ({seeds})", color=color, linewidth=2)
    if average.n_runs > 1:
        axes.fill_between(average.x, average.low, average.high, color=line.get_color(), alpha=0.2, linewidth=0)
        for x, y in curves:
            axes.plot(x, y, color=line.get_color(), alpha=0.25, linewidth=0.7)


def style(axes: Any, x_label: str, y_label: str, title: str = "") -> None:
    """Labels, 200 k in place of 200000, a light grid, a legend, and no box around."""
    axes.xaxis.set_major_formatter("{x:g}" if x_label == "seconds" else _thousands)
    axes.set(xlabel=x_label, ylabel=y_label, title=title)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False)


def _thousands(value: float, position: Any = None) -> str:
    size, unit = (1e6, " M") if abs(value) >= 1e6 else (1e3, " k") if abs(value) >= 1e3 else (1.0, "")
    return f"{value / size:g}{unit}"


def save_figure(figure: Any, path: str, dpi: int = 110) -> None:
    """Write a figure; a file that is already there is replaced only by a complete new one."""
    root, suffix = os.path.splitext(path)
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    part = f"{root}.part{suffix or '.png'}"
    try:
        figure.savefig(part, dpi=dpi)
        os.replace(part, path)
    finally:
        if os.path.isfile(part):
            os.remove(part)


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

    pyplot = import_pyplot(show=args.output is None)
    figure, axes = pyplot.subplots(figsize=(6.4, 4.2), layout="constrained")
    for group, label in zip(groups, labels):
        curves = [_read_curve(run, kind, args.x_axis, args.window) for run in find_runs(*group)]
        draw(axes, curves, label)
    for path in args.reference:
        x, y = reward_rate_curve(path)
        name = os.path.splitext(os.path.basename(path))[0]
        axes.plot(x, y, label=f"Isaac Gym: {name}", linestyle="--", color="0.25", linewidth=1.5)
    if args.max_timesteps is not None:
        axes.set_xlim(right=args.max_timesteps)
    style(axes, "environment steps" if args.x_axis == "steps" else "seconds", Y_LABELS[kind])
    if args.output is None:
        pyplot.show()
    else:
        save_figure(figure, args.output)
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


def _read_curve(run: str, kind: str, x_axis: str, window: int) -> Curve:
    if kind == "eval":
        return evaluation_curve(run)
    if kind == "reward-rate":
        return reward_rate_curve(os.path.join(run, FILE_NAME))
    return training_curve(run, x_axis, window)
