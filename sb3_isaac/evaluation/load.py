"""Trained agents from files: with the right class, and with the statistics that belong to the model."""

from __future__ import annotations

import os
from typing import Any, Dict, Optional, Type, Union

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_isaac.ddpg import DDPG
from sb3_isaac.dqn import DQN
from sb3_isaac.envs.model_files import statistics_path
from sb3_isaac.envs.portable_pickle import load_pickle
from sb3_isaac.envs.vec_normalize import VecNormalize
from sb3_isaac.files.readable import algorithm_of, read_settings
from sb3_isaac.ppo import PPO


def load(
    path: Any, env: Optional[VecEnv] = None, device: Union[th.device, str] = "auto", trust: bool = False, **kwargs: Any
) -> Any:
    """Load a model that PPO, DQN or DDPG saved, of this package or of SB3, with the statistics that belong to it.

    Where it was trained in a VecNormalize, ``env`` is wrapped in one with the statistics saved beside the model, set for using
    it: they stand still, and rewards stay as they are. ``model.get_env()`` is that environment. Without ``env`` they are in
    ``model.vec_normalize``: act with ``model.predict(model.vec_normalize.normalize_obs(obs))``.

    :param path: of the model, with or without ".zip"
    :param env: a VecEnv that the model is to act or train in
    :param device: torch device
    :param trust: whether the files may run code, as those of models with classes or functions of your own do
    :param kwargs: more arguments of SB3's ``load``
    :raises FileNotFoundError: no such file, or no statistics beside it
    :raises UntrustedFileError: without ``trust``, if the model cannot be had without running code
    :raises ValueError: if the file holds no model of these algorithms
    """
    name = os.fspath(path)
    name = name if os.path.isfile(name) else f"{name}.zip"
    if not os.path.isfile(name):
        raise FileNotFoundError(f"There is no model at {path}: give the path that it was saved to.")
    settings = read_settings(name)
    cls = _algorithm(settings, name)
    normalized = bool(settings.get("observations_are_normalized", statistics_path(name).is_file()))
    if env is not None and normalized and unwrap_vec_normalize(env) is None:
        env = _in_statistics(name, env, trust)
    model: Any = cls.load(name, env=env, device=device, trust=trust, **kwargs)
    if env is None and normalized:
        model.vec_normalize = load_pickle(str(statistics_path(name)), trust)
    return model


def _in_statistics(path: str, env: VecEnv, trust: bool = False) -> VecNormalize:
    """Wrap an environment in the VecNormalize that belongs to the model saved at ``path``.

    It is set for using the model: the statistics stand still, and rewards stay as they are.

    :param path: of the model
    :param env: a VecEnv
    :raises FileNotFoundError: if there are no statistics beside the model
    """
    statistics = statistics_path(path)
    if not statistics.is_file():
        raise FileNotFoundError(
            f"{path} was trained on observations normalised by VecNormalize, and its statistics are not at {statistics}: "
            "copy them there, or wrap the environment yourself with VecNormalize.load(file, env)."
        )
    normalize = VecNormalize.load(str(statistics), env, trust)
    normalize.training = normalize.norm_reward = False
    return normalize


def _algorithm(settings: Dict[str, Any], name: str) -> Type[BaseAlgorithm]:
    """:raises ValueError: if it is none of ours"""
    algo = algorithm_of(settings)
    if algo is not None:
        classes: Dict[str, Type[BaseAlgorithm]] = {"ppo": PPO, "dqn": DQN, "ddpg": DDPG}
        return classes[algo]
    raise ValueError(
        f"{name} is no model of PPO, DQN or DDPG: load it with the class that saved it, such as stable_baselines3.SAC.load."
    )
