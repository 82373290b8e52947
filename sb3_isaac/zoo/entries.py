"""Entries of hyperparameter files: where ours are, what an entry may hold, and how one is added to a file."""

from __future__ import annotations

import copy
import inspect
import os
import re
from pathlib import Path
from typing import Any, Dict, Set, Type

import yaml
from rl_zoo3.utils import get_class_by_name
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import nn

from sb3_isaac.evaluation.files import replacing

# What an entry may hold beside the arguments of the algorithm.
ZOO_KEYS = (
    "n_envs n_timesteps normalize env_wrapper vec_env_wrapper env_kwargs frame_stack callback monitor_kwargs "
    "noise_type noise_std"
).split()

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU, "leaky_relu": nn.LeakyReLU, "silu": nn.SiLU, "gelu": nn.GELU}


def hyperparams_dir() -> Path:
    """The folder of ``ppo.yml``, ``dqn.yml`` and ``ddpg.yml``: within the package when installed, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    return next(p for p in (package / "hyperparams", package.parent / "hyperparams") if p.is_dir())


def known_keys(algorithm: Type[BaseAlgorithm]) -> Set[str]:
    """What an entry may hold: rl_zoo3's keys and the arguments of the algorithm, its parents' where it hands on the rest."""
    names = set(ZOO_KEYS)
    for cls in algorithm.__mro__:
        if "__init__" in cls.__dict__:
            parameters = inspect.signature(cls.__dict__["__init__"]).parameters
            names |= set(parameters)
            if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
                break
    return names - {"self", "env"}


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


# -- adding an entry to a file ---------------------------------------------------------------------------------------


def compose(text: str, env_id: str, entry: Dict[str, Any], *, comment: str) -> str:
    """The text of a hyperparameter file with the entry of one environment added, or in the place of the one there was.

    :raises ValueError: other entries refer to the one that would be replaced
    """
    before = yaml.safe_load(text) or {}
    body = yaml.safe_dump({env_id: entry}, sort_keys=False, default_flow_style=None, width=120)
    block = f"# {comment}\n{body}"
    # What is replaced: the comments right above the key, and everything down to the next line that is not indented.
    comments, indented = r"(?:^#[^\n]*\n)*", r"(?:^(?:[ \t][^\n]*)?\n)*(?:^[ \t][^\n]*\Z)?"
    pattern = re.compile(rf"{comments}^{re.escape(env_id)}:[^\n]*\n?{indented}", re.MULTILINE)
    if env_id in before:
        new, count = pattern.subn(lambda match: block + "\n" * (match.end() < len(text)), text)
    else:
        new, count = (f"{text.rstrip()}\n\n" if text.strip() else "") + block, 1
    try:
        kept = count == 1 and yaml.safe_load(new) == {**before, env_id: entry}
    except yaml.YAMLError:
        kept = False
    if not kept:
        raise ValueError(f"its entry {env_id} cannot be replaced without changing others, which may refer to it")
    return new


def _new_text(path: Path, env_id: str, entry: Dict[str, Any], *, comment: str) -> str:
    try:
        text = path.read_text() if path.exists() else ""
        if text.strip() and not isinstance(yaml.safe_load(text), dict):
            raise ValueError("it is no hyperparameter file")
        return compose(text, env_id, entry, comment=comment)
    except (ValueError, yaml.YAMLError) as error:
        problem = " ".join(str(error).split())
        raise ValueError(f"Hyperparameters cannot be written to {path}: {problem}; choose another file.") from error


def check_file(path: Path, env_id: str) -> None:
    """Whether an entry can be written there, asked before a search and not after it.

    :raises ValueError, OSError: see :func:`write_entry`
    """
    folder = path.absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise OSError(f"Hyperparameters cannot be written to {path}: its folder does not exist or cannot be written to.")
    _new_text(path, env_id, {"n_envs": 1}, comment="")


def write_entry(path: Path, env_id: str, entry: Dict[str, Any], *, comment: str) -> None:
    """Write an entry into a hyperparameter file, whose other entries and comments stay. Made if it does not exist.

    :raises ValueError: the file is no hyperparameter file, or see :func:`compose`
    :raises OSError: the file cannot be written
    """
    new = _new_text(path, env_id, entry, comment=comment)
    with replacing(str(path)) as temporary:
        Path(temporary).write_text(new)
