"""The files of a run, looked at before they are loaded: rl_zoo3's commands would show a traceback that names none of them."""

from __future__ import annotations

import os
from typing import Any, Tuple

import rl_zoo3.utils

from sb3_isaac.envs.make import is_isaac_env_id
from sb3_isaac.files.readable import check_mapping, check_model, check_pickle
from sb3_isaac.zoo.run_folders import find_latest

TRAIN_FIRST = ": train one first, or name another with --algo, --env, -f or --exp-id."
find_model = find_latest(rl_zoo3.utils.get_model_path)


def check_agent(path: str, algo: str) -> None:
    """Whether a file is a whole model of an algorithm. Nothing of it is unpickled.

    :param algo: rl_zoo3's name
    :raises FileNotFoundError: there is none
    :raises ValueError: it is damaged, of another kind, or a model of another algorithm
    """
    if not os.path.isfile(path) or not path.endswith(".zip"):
        raise FileNotFoundError(f"There is no model {path}: -i takes a valid path to a .zip file that a training has saved.")
    check_model(path, algo)


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
        raise FileNotFoundError(str(error) + TRAIN_FIRST) from error
    if is_isaac_env_id(getattr(env_name, "gym_id", env_name)):
        check_agent(path, algo)
        settings = os.path.join(run, env_name)
        for file in ("config.yml", "args.yml"):
            if os.path.exists(os.path.join(settings, file)):
                check_mapping(os.path.join(settings, file))
        statistics = os.path.join(settings, "vecnormalize.pkl")
        if os.path.exists(statistics):
            check_pickle(statistics, "the statistics of VecNormalize")
    return name, path, run
