"""Run folders, ``LOGS/ALGO/ENV_N``: one for each run, and the latest with a model, whose files are looked at first."""

from __future__ import annotations

import errno
import os
import re
import time
from pathlib import Path
from typing import Any, Callable, Dict, Optional, Tuple

import rl_zoo3.utils

from sb3_isaac.device import ranks
from sb3_isaac.envs.make import is_isaac_env_id
from sb3_isaac.envs.model_files import statistics_path
from sb3_isaac.evaluation.curves import run_ids
from sb3_isaac.files.readable import check_mapping, check_model, check_pickle

CHECKPOINT = re.compile(r"rl_model_([0-9]+)_steps\.zip")
"""rl_zoo3 looks for them by a pattern, for which a folder called [1] is none of that name."""
TRAIN_FIRST = ": train one first, or name another with --algo, --env, -f or --exp-id."


def make_run_folder(path: str) -> str:
    """Make the folder of a new run, as nobody's but this run's.

    :param path: ``FOLDER/ENV_N`` or ``FOLDER/ENV_N_UUID``
    :return: the same, with a greater N if somebody was faster
    """
    match = re.fullmatch(r"(.*_)([0-9]+)(_[^_]*)?", path)
    if match is None:
        raise ValueError(f"{path} is no folder of a run, ENV_1 for example.")
    start, number, end = match.group(1), int(match.group(2)), match.group(3) or ""
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    while True:
        try:
            os.mkdir(f"{start}{number}{end}")
            return f"{start}{number}{end}"
        except FileExistsError:
            number += 1


_held: Dict[str, int] = {}
"""Open descriptors of the folders that this process trains in"""
PATIENCE = 1.0
"""Seconds for which another process may hold a folder that only looks at it"""


def hold(folder: str) -> None:
    """Keep other processes from training in a run's folder, until :func:`let_go` or until this process ends, however it does.

    Nothing is kept where the system or the disk has no locks. Of several ranks the first one holds the folder for all.

    :raises RuntimeError: another process trains in it
    """
    if ranks.rank() > 0:
        return
    try:
        import fcntl
    except ImportError:
        return
    path = os.path.realpath(folder)
    if path in _held:
        return
    descriptor, end = os.open(path, os.O_RDONLY), time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _held[path] = descriptor
            return
        except OSError as error:
            taken = error.errno in (errno.EWOULDBLOCK, errno.EACCES)
            if not taken or time.monotonic() > end:
                os.close(descriptor)
                if taken:
                    raise RuntimeError(
                        f"Another process is training in {folder}: wait until it has ended, or stop it."
                    ) from error
                return
        time.sleep(0.05)


def let_go() -> None:
    """Let others have what this process has held."""
    while _held:
        os.close(_held.popitem()[1])


class _UnfinishedError(ValueError):
    """A run has no model of its end; the message says what it has."""


def _what_is_there(run: str) -> str:
    """What to do with a run that has not come to its end; nothing if it has left no model at all."""
    names = os.listdir(run) if os.path.isdir(run) else []
    checkpoint = any(map(CHECKPOINT.fullmatch, names))
    flags = ["--load-best"] * ("best_model.zip" in names) + ["--load-last-checkpoint"] * checkpoint
    if not flags:
        return ""
    go_on = ", or go on with sb3-isaac train --resume" if checkpoint else ""
    return f": this run was not finished, take {' or '.join(flags)}{go_on}."


def find_latest(get_model_path: Callable[..., Tuple[str, str, str]]) -> Callable[..., Tuple[str, str, str]]:
    """rl_zoo3's ``get_model_path``, for which the latest run of our environments is the latest that has the model asked for.

    One that was stopped early, or an old search, has none.
    """

    def of_run(number: int, folder: str, algo: str, env_name: Any, **which: Any) -> Tuple[str, str, str]:
        run = os.path.join(folder, algo, *([f"{env_name}_{number}"] if number > 0 else []))
        if which.get("load_last_checkpoint") and not which.get("load_best") and which.get("load_checkpoint") is None:
            matches = map(CHECKPOINT.fullmatch, os.listdir(run) if os.path.isdir(run) else [])
            steps = max((int(match.group(1)) for match in matches if match), default=None)
            which = which if steps is None else {"load_checkpoint": steps}
        try:
            return get_model_path(number, folder, algo, env_name, **which)
        except ValueError as error:
            asked = which.get("load_best") or which.get("load_last_checkpoint") or which.get("load_checkpoint") is not None
            advice = "" if asked else _what_is_there(run)
            raise (_UnfinishedError(f"{error}{advice}") if advice else error) from None

    def call(exp_id: int, folder: str, algo: str, env_name: Any, *given: Any, **more: Any) -> Tuple[str, str, str]:
        if not is_isaac_env_id(getattr(env_name, "gym_id", env_name)):
            return get_model_path(exp_id, folder, algo, env_name, *given, **more)
        which = {**dict(zip(("load_best", "load_checkpoint", "load_last_checkpoint"), given)), **more}
        if exp_id != 0:
            return of_run(exp_id, folder, algo, env_name, **which)
        first_error: Optional[Exception] = None
        for number in run_ids(os.path.join(folder, algo), env_name):
            try:
                found = of_run(number, folder, algo, env_name, **which)
            except (AssertionError, ValueError) as error:
                first_error = first_error or error
                continue
            skipped = f" (later ones have no such model: {str(first_error).rstrip('.')})" if first_error else ""
            print(f"Loading latest experiment, id={number}{skipped}")
            return found
        if first_error is not None:
            raise first_error
        return get_model_path(exp_id, folder, algo, env_name, **which)

    return call


find_model = find_latest(rl_zoo3.utils.get_model_path)
"""rl_zoo3's function as it is without our hooks, but for the latest run."""


def check_agent(path: str, algo: str) -> None:
    """Whether a file is a whole model of an algorithm. Nothing of it is unpickled.

    :param algo: rl_zoo3's name
    :raises FileNotFoundError: there is none
    :raises ValueError: it is damaged, of another kind, or a model of another algorithm
    """
    if not os.path.isfile(path) or not path.endswith(".zip"):
        raise FileNotFoundError(f"There is no model {path}: -i takes a valid path to a .zip file that a training has saved.")
    check_model(path, algo)


def statistics_of(model_file: str, settings: str) -> Path:
    """The statistics of VecNormalize that belong to a model, which may be missing.

    :param model_file: of the agent. What was saved with it is right: the run's are as of the last best model or the end, and a
        run that was killed may have none
    :param settings: the run's folder of settings
    """
    beside = statistics_path(model_file)
    return beside if beside.is_file() else Path(settings, "vecnormalize.pkl")


def model_path(exp_id: int, folder: str, algo: str, env_name: Any, *which: Any, **more: Any) -> Tuple[str, str, str]:
    """rl_zoo3's ``get_model_path``; of the environments of this package the files that it leads to are looked at.

    :raises FileNotFoundError: no such model or log folder
    :raises ValueError: a file of the run is empty, cut off, damaged or of another kind
    """
    try:
        name, path, run = find_model(exp_id, folder, algo, env_name, *which, **more)
    except (AssertionError, ValueError) as error:
        if not is_isaac_env_id(getattr(env_name, "gym_id", env_name)):  # of these rl_zoo3 has models to download
            raise
        advice = "" if isinstance(error, _UnfinishedError) else TRAIN_FIRST
        raise FileNotFoundError(str(error) + advice) from None  # which says it with the same words
    if is_isaac_env_id(getattr(env_name, "gym_id", env_name)):
        check_agent(path, algo)
        settings = os.path.join(run, env_name)
        for file in ("config.yml", "args.yml"):
            if os.path.exists(os.path.join(settings, file)):
                check_mapping(os.path.join(settings, file))
        statistics = statistics_of(path, settings)
        if statistics.exists():
            check_pickle(str(statistics), "the statistics of VecNormalize")
    return name, path, run
