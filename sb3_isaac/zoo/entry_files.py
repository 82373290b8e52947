"""Where hyperparameter files are, and what is in their entries: names, keys, classes."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Dict, Set, Type

import yaml
from rl_zoo3.utils import get_class_by_name
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import nn

from sb3_isaac.envs.ids import split
from sb3_isaac.settings import defaults_of

# What an entry may hold beside the arguments of the algorithm.
ZOO_KEYS = (
    "n_envs n_timesteps normalize env_wrapper vec_env_wrapper env_kwargs frame_stack callback monitor_kwargs "
    "noise_type noise_std until_solved reward_threshold keep_checkpoints"
).split()

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU, "leaky_relu": nn.LeakyReLU, "silu": nn.SiLU, "gelu": nn.GELU}


def hyperparams_dir() -> Path:
    """The folder of ``ppo.yml``, ``dqn.yml`` and ``ddpg.yml``: within the package when installed, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    return next(p for p in (package / "hyperparams", package.parent / "hyperparams") if p.is_dir())


def _entries(config: str) -> Dict[str, Any]:
    """All entries of a file; {} where it is no YAML, or is none yet."""
    is_there = config.endswith((".yml", ".yaml")) and Path(config).is_file()
    found = yaml.safe_load(Path(config).read_text()) if is_there else None
    return found if isinstance(found, dict) else {}


def entry_name(config: str, env_id: str) -> str:
    """The name of the hyperparameters in a file: the id, or ``mjlab:default`` where a task of mjlab has none of its own."""
    found = split(env_id)
    if found is None:
        return env_id
    names, common = _entries(config), f"{found[0]}:default"
    return env_id if env_id in names or common not in names else common


def entry_of(config: str, env_id: str) -> Dict[str, Any]:
    """The hyperparameters of an id in a file; {} where there are none."""
    names = _entries(config)
    entry = names.get(entry_name(config, env_id), names.get("default"))
    return entry if isinstance(entry, dict) else {}


def start(algo: str) -> str:
    """The entry of the cartpole, which a new task may start with: YAML in one line.

    >>> start("sac")
    '{policy: MlpPolicy, n_timesteps: 300000}'
    """
    path = hyperparams_dir() / f"{algo}.yml"
    entry: Dict[str, Any] = {"policy": "MlpPolicy"}
    if path.is_file():
        entry = next(iter(yaml.safe_load(path.read_text()).values()))
    return str(
        yaml.safe_dump({**entry, "n_timesteps": 300_000}, sort_keys=False, default_flow_style=True, width=10**6)
    ).strip()


def known_keys(algorithm: Type[BaseAlgorithm]) -> Set[str]:
    """What an entry may hold: rl_zoo3's keys and the arguments of the algorithm, its parents' where it hands on the rest."""
    return {*ZOO_KEYS, *defaults_of(algorithm)} - {"env"}


def with_classes(entry: Dict[str, Any]) -> Dict[str, Any]:
    """A deep copy with classes in the place of their names, so that a file needs no code: ``activation_fn: elu`` is nn.ELU.

    :raises ValueError: unknown activation
    """
    entry = copy.deepcopy(entry)
    for key in ("rollout_buffer_class", "replay_buffer_class"):
        if isinstance(entry.get(key), str) and "." in entry[key]:
            entry[key] = get_class_by_name(entry[key])
    policy_kwargs = entry.get("policy_kwargs")
    if isinstance(policy_kwargs, dict) and isinstance(policy_kwargs.get("activation_fn"), str):
        name = policy_kwargs["activation_fn"]
        if name not in ACTIVATIONS:
            raise ValueError(f"Unknown activation_fn {name!r} in policy_kwargs: choose one of {', '.join(ACTIVATIONS)}.")
        policy_kwargs["activation_fn"] = ACTIVATIONS[name]
    return entry
