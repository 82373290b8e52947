"""Learning curves of several seeds: read from log folders, averaged with confidence bands, drawn."""

from __future__ import annotations

import csv
import glob
import os
import re
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

import gymnasium as gym
import numpy as np
from stable_baselines3.common.monitor import LoadMonitorResultsError, load_results

from sb3_isaac.evaluation.callbacks import COLUMNS
from sb3_isaac.files import safe_yaml
from sb3_isaac.files.atomic import replacing
from sb3_isaac.files.readable import naming

N_POINTS = 200
"""Points of a drawn curve."""
FIGURE_SIZE = (6.4, 4.8)
"""Inches of a picture of one pair of axes, with its legend above."""
NOT_COMPARED = ("keep_checkpoints", "until_solved")
"""Hyperparameters that change nothing of what is learned."""
REFERENCE_ENVS = 128
"""Environments of the public runs on real Isaac Gym whose curves can be laid over ours."""

Curve = Tuple[np.ndarray, np.ndarray]
"""x and y of one run, both (n,) float64, x ascending."""


class Band(NamedTuple):
    """Mean of several runs and a 95% interval of that mean, on common points. All (N_POINTS,)."""

    x: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def parse_pair(text: str) -> Tuple[str, str]:
    """``ALGO:ENV`` in its two parts, such as "ppo" and "IsaacGymCartpole-v0".

    :raises ValueError: not of this form
    """
    algo, _, env_id = text.partition(":")
    if not (algo and env_id):
        raise ValueError(f"A curve is named ALGO:ENV, such as ppo:IsaacGymCartpole-v0, not {text!r}.")
    return algo, env_id


def run_ids(folder: str, env_name: str) -> List[int]:
    """Numbers of the runs of an environment in ``folder`` (that of its algorithm), the latest first.

    :param env_name: without the prefix of an id
    """
    names = os.listdir(folder) if os.path.isdir(folder) else []
    found = (re.fullmatch(re.escape(env_name) + "_([0-9]+)", name) for name in names)
    return sorted((int(match.group(1)) for match in found if match), reverse=True)


def list_runs(folder: str, algo: str, env_id: str) -> List[str]:
    """The run folders of rl_zoo3 for an algorithm and an environment: ``<folder>/<algo>/<env_id>_1``, ``_2``, ..."""
    parent, env_name = os.path.join(folder, algo), env_id.rpartition(":")[2]  # rl_zoo3 takes a prefix for a module
    return [os.path.join(parent, f"{env_name}_{number}") for number in reversed(run_ids(parent, env_name))]


def find_runs(folder: str, algo: str, env_id: str) -> List[str]:
    """As :func:`list_runs`, at least one.

    :raises FileNotFoundError: there is none; the message says which runs there are
    """
    runs = list_runs(folder, algo, env_id)
    if not runs:
        there = set()
        for name in os.listdir(folder) if os.path.isdir(folder) else []:
            parent = os.path.join(folder, name)
            matches = [re.fullmatch(r"(.+)_\d+", run) for run in (os.listdir(parent) if os.path.isdir(parent) else [])]
            there |= {f"{name}:{match.group(1)}" for match in matches if match}
        raise FileNotFoundError(
            f"No run of {algo} on {env_id} in {os.path.join(folder, algo)}: train one first, or name another folder with -f "
            f"(runs in {folder}: {', '.join(sorted(there)) or 'none'})."
        )
    return runs


def settings_of(run: str, env_id: str) -> Tuple[Optional[int], Optional[Dict[str, str]]]:
    """The seed of a run, and the text of each setting that makes it another run than those of other seeds. None: not known.

    :raises ValueError: a file of them is damaged
    """
    found: List[Dict[str, Any]] = []
    for name in ("args.yml", "config.yml"):
        path = os.path.join(run, env_id.rpartition(":")[2], name)
        content = safe_yaml.load(path) if os.path.isfile(path) else None
        found.append(content if isinstance(content, dict) else {})
    args, config = found
    seed, n_timesteps = (number if isinstance(number, int) else None for number in map(args.get, ("seed", "n_timesteps")))
    if not config:
        return seed, None
    settings = {name: repr(value) for name, value in config.items() if name not in NOT_COMPARED}
    if n_timesteps is not None and n_timesteps > 0:  # in place of the entry's
        settings["n_timesteps"] = repr(n_timesteps)
    settings["env_kwargs"] = repr([of.get("env_kwargs") or {} for of in (config, args)])
    return seed, settings


def solved_return(env_id: str, runs: Sequence[str]) -> Optional[float]:
    """The return from which on an environment counts as solved: ``reward_threshold`` of its id.

    :return: None if the id has none, or runs had episodes of another length, which makes other returns possible
    """
    spec = gym.registry.get(env_id)
    for run in runs:
        for name in ("args.yml", "config.yml"):
            path = os.path.join(run, env_id.rpartition(":")[2], name)
            if os.path.isfile(path):
                with open(path, errors="replace") as file:
                    if re.search("max_episode_(length|steps)", file.read()):
                        return None
    return None if spec is None else spec.reward_threshold


def first_solved(curve: Curve, threshold: float) -> Optional[float]:
    """The first x at which a curve has reached the threshold; None if it has not."""
    x, y = curve
    reached = np.flatnonzero(y >= threshold)
    return float(x[reached[0]]) if len(reached) else None


def evaluation_curve(run: str) -> Curve:
    """Timesteps and mean return of each evaluation, from ``evaluations.npz``.

    :raises FileNotFoundError: the run has no evaluations
    :raises ValueError: the file is damaged, or no such log
    """
    path = os.path.join(run, "evaluations.npz")
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{run} has no evaluations.npz: train with evaluation, or plot with --curve train.")
    with naming(path, "a log of evaluations", every_error=True), np.load(path) as log:
        steps, means = log["timesteps"].astype(float), log["results"].mean(axis=1)
        if steps.shape != means.shape or len(steps) == 0:
            raise ValueError(f"it has {len(steps)} timesteps and {len(means)} results")
        return steps, means


def training_curve(run: str, x_axis: str, window: int) -> Curve:
    """Mean return of the last ``window`` training episodes, from the monitor files.

    :param x_axis: "steps" (of all environments together) or "seconds" (since the start of the run)
    :raises FileNotFoundError: the run has no monitor file, or no finished episode
    :raises ValueError: a monitor file is damaged
    """
    try:
        with naming(run, "the monitor files of a run", every_error=True):
            episodes = load_results(glob.escape(run))[["l", "r", "t"]]  # SB3 takes the path for a pattern
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
    with naming(path, "a curve of rewards", every_error=True), open(path, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("mean_reward") != ""]
    if not rows or not set(COLUMNS[:3]) <= set(rows[0]):
        raise ValueError(f"{path} is no curve of rewards: it needs the columns {', '.join(COLUMNS[:3])} and a row of numbers.")
    with naming(path, "a curve of rewards", every_error=True):
        middle = [(float(row[COLUMNS[0]]) + float(row[COLUMNS[1]]) + 1.0) / 2.0 for row in rows]
        n_envs = int(rows[0].get("n_envs") or REFERENCE_ENVS)
        return np.array(middle) * n_envs, np.array([float(row["mean_reward"]) for row in rows])


def band(curves: Sequence[Curve]) -> Band:
    """Average several runs at common points, from where the last one starts to where the first one ends.

    The interval says how much the mean would differ with other seeds: Student's t, which is right for few runs too, where a
    bootstrap is much too narrow.
    """
    from scipy.special import stdtrit  # the plots alone need scipy

    start, end = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    if start > end:
        raise ValueError("The runs have no timesteps in common, so they cannot be averaged: plot them from separate folders.")
    grid = np.linspace(start, end, N_POINTS)
    values = np.stack([np.interp(grid, x, y) for x, y in curves])
    mean, n_runs = values.mean(axis=0), len(values)
    half = stdtrit(n_runs - 1, 0.975) * values.std(axis=0, ddof=1) / n_runs**0.5 if n_runs > 1 else 0.0
    return Band(grid, mean, mean - half, mean + half)


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


def draw(axes: Any, curves: Sequence[Curve], label: str, color: Any = None, noun: str = "seed") -> None:
    """Draw runs as a mean with its band, and each of them as a thin line. :func:`style` makes a legend that says so.

    :param noun: "run" where they are not of one seed each
    """
    average = band(curves)
    runs = f"{len(curves)} {noun}" + ("s" if len(curves) > 1 else "")
    (line,) = axes.plot(average.x, average.mean, label=f"{label} ({runs})", color=color, linewidth=2)
    if len(curves) > 1:
        seen = axes.dataLim.frozen()
        axes.fill_between(average.x, average.low, average.high, color=line.get_color(), alpha=0.2, linewidth=0)
        axes.dataLim.set(seen)  # the band of few runs may be many times as high as the curves, which are to be seen
        for x, y in curves:
            axes.plot(x, y, color=line.get_color(), alpha=0.25, linewidth=0.7)


def draw_solved(axes: Any, thresholds: Iterable[Optional[float]]) -> None:
    """A dashed line, named in the legend, where the curves count as solved, if that is the same return for all of them.

    :param thresholds: of each curve, see :func:`solved_return`
    """
    different = set(thresholds)
    threshold = different.pop() if len(different) == 1 else None
    if threshold is not None:
        axes.axhline(threshold, label=f"solved: {threshold:g}", color="0.35", linestyle=(0, (4, 3)), linewidth=1.2, zorder=1)


def style(axes: Any, x_label: str, y_label: str, title: str = "", legend_columns: int = 2) -> None:
    """Labels, 200 k in place of 200000, a light grid, no box around, and above the axes, off the curves, the legend.

    Bands and thin lines, which all curves have, are explained once and without a colour.
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.ticker import EngFormatter

    axes.xaxis.set_major_formatter("{x:g}" if x_label == "seconds" else EngFormatter())
    axes.set(xlabel=x_label, ylabel=y_label)
    axes.grid(alpha=0.25)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    handles, _ = axes.get_legend_handles_labels()
    if axes.collections:
        handles.append(Patch(color="0.5", alpha=0.3, linewidth=0, label="95% interval of the mean"))
        handles.append(Line2D([], [], color="0.5", alpha=0.6, linewidth=0.7, label="each run"))
    # Columns are filled from the top: the curves on the left, what they have in common on the right.
    place = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "ncol": legend_columns}
    axes.legend(handles=handles, title=title or None, frameon=False, fontsize=9, **place)


def picture_kind(figure: Any, path: str) -> str:
    """The format that the ending of a picture's name says (default: png).

    :raises ValueError: no such format
    """
    kind, known = os.path.splitext(path)[1][1:] or "png", figure.canvas.get_supported_filetypes()
    if kind.lower() not in known:
        raise ValueError(f"Cannot write a picture to {path}: the name must end in .{', .'.join(sorted(known))}.")
    return kind


def save_figure(figure: Any, path: str, dpi: int = 110) -> None:
    """Write a figure, see :func:`picture_kind`."""
    kind = picture_kind(figure, path)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=dpi, format=kind)
