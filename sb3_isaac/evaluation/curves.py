"""Learning curves of several seeds: read from log folders, averaged with confidence bands, drawn."""

from __future__ import annotations

import csv
import os
import re
from typing import Any, List, NamedTuple, Sequence, Tuple

import numpy as np
from stable_baselines3.common.monitor import LoadMonitorResultsError, load_results

from sb3_isaac._files import replacing
from sb3_isaac.evaluation.callbacks import COLUMNS
from sb3_isaac.evaluation.measure import bootstrap_interval

N_POINTS = 200
"""Points of a drawn curve."""
REFERENCE_ENVS = 128
"""Environments of the public runs on real Isaac Gym whose curves can be laid over ours."""

Curve = Tuple[np.ndarray, np.ndarray]
"""x and y of one run, both (n,) float64, x ascending."""


class Band(NamedTuple):
    """Mean of several runs and a 95% bootstrap interval of that mean, on common points. All (N_POINTS,)."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


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
    try:
        episodes = load_results(run)
    except LoadMonitorResultsError as error:
        raise FileNotFoundError(f"{run} has no monitor file: it is not the folder of a training run.") from error
    if len(episodes) == 0:
        raise FileNotFoundError(f"The monitor file in {run} has no finished episode yet.")
    x = episodes["l"].cumsum() if x_axis == "steps" else episodes["t"]
    width = min(window, len(x))
    mean = episodes["r"].rolling(width).mean()
    return x.to_numpy(dtype=float)[width - 1 :], mean.to_numpy(dtype=float)[width - 1 :]


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


def band(curves: Sequence[Curve]) -> Band:
    """Average several runs at common points, from where the last one starts to where the first one ends.

    The interval says how much the mean would differ with other seeds: a bootstrap over the runs.
    """
    start, end = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    if start > end:
        raise ValueError("The runs have no timesteps in common, so they cannot be averaged: plot them from separate folders.")
    grid = np.linspace(start, end, N_POINTS)
    values = np.stack([np.interp(grid, x, y) for x, y in curves])
    return Band(grid, values.mean(axis=0), *bootstrap_interval(values))


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
    seeds = f"{len(curves)} seeds" if len(curves) > 1 else "1 seed"
    (line,) = axes.plot(average.x, average.mean, label=f"{label} ({seeds})", color=color, linewidth=2)
    if len(curves) > 1:
        axes.fill_between(average.x, average.low, average.high, color=line.get_color(), alpha=0.2, linewidth=0)
        for x, y in curves:
            axes.plot(x, y, color=line.get_color(), alpha=0.25, linewidth=0.7)


def style(axes: Any, x_label: str, y_label: str, title: str = "") -> None:
    """Labels, 200 k in place of 200000, a light grid, a legend, and no box around."""
    from matplotlib.ticker import EngFormatter

    axes.xaxis.set_major_formatter("{x:g}" if x_label == "seconds" else EngFormatter())
    axes.set(xlabel=x_label, ylabel=y_label, title=title)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(frameon=False)


def save_figure(figure: Any, path: str, dpi: int = 110) -> None:
    """Write a figure, in the format that the file's ending says (default: png)."""
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format=os.path.splitext(path)[1][1:] or "png")
