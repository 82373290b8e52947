"""What rl_zoo3's commands read from a run's folder, read without running what is in it.

rl_zoo3 reads ``config.yml`` and ``args.yml`` with YAML's UnsafeLoader, evaluates texts in them as Python, imports the wrappers
that they name, and has SB3 unpickle the model. docs/threat_model.md says what is kept from whom.
"""

from __future__ import annotations

import functools
import importlib
import os
import reprlib
import sys
import tempfile
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Set, Tuple

import gymnasium as gym
import rl_zoo3.utils
import yaml
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnvWrapper

from sb3_isaac.envs.make import is_isaac_env_id
from sb3_isaac.envs.model_files import statistics_path
from sb3_isaac.files import safe_yaml
from sb3_isaac.files.safe_model import NOT_FOR_ACTING, reading_safely
from sb3_isaac.files.safe_names import listed
from sb3_isaac.files.safe_text import evaluate
from sb3_isaac.files.trust import UntrustedFileError, trusted
from sb3_isaac.zoo.run_folders import statistics_of

TEXTS = ("normalize", "policy_kwargs", "replay_buffer_class", "replay_buffer_kwargs", "monitor_kwargs")
"""Hyperparameters that rl_zoo3 evaluates as Python if they are texts."""
WRAPPERS = ("env_wrapper", "vec_env_wrapper")
NAMED = (*WRAPPERS, "callback", "policy", "replay_buffer_class", "rollout_buffer_class")
"""Hyperparameters that name what is imported."""
FUNCTIONS = ("reward", "termination", "entry")
"""Arguments of environments that may be "module:function"."""

named_packages: Set[str] = set()
"""Modules of ``--gym-packages``: whoever names them there wants them imported."""


def _is_own(module: str) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in named_packages)


def _check_class(name: Any, what: str) -> None:
    """:raises UntrustedFileError: unless it is a listed class, or a wrapper or callback of a module of ``--gym-packages``"""
    if not isinstance(name, str) or "." not in name or listed(name):
        return
    module, _, attribute = name.rpartition(".")
    if _is_own(module):
        found = getattr(importlib.import_module(module), attribute, None)
        if isinstance(found, type) and issubclass(found, (gym.Wrapper, VecEnvWrapper, BaseCallback)):
            return
    raise UntrustedFileError(what, name)


def check_hyperparams(entry: Any, what: str, keys: Tuple[str, ...] = NAMED, own: Optional[Dict[str, Any]] = None) -> None:
    """Whether the hyperparameters of a file name only what may be imported.

    :param own: hyperparameters from the user's own file, which may name the same
    :raises UntrustedFileError: they name something else
    """
    own = own or {}
    for key in [key for key in keys if entry.get(key) != own.get(key)]:
        for item in _listed(entry.get(key)):
            for name in item if isinstance(item, dict) else [item]:
                _check_class(name, f"{what} (in its entry {key!r})")
    if entry.get("env_kwargs") != own.get("env_kwargs"):
        check_env_kwargs(entry.get("env_kwargs"), what)


def _listed(value: Any) -> List[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]


def check_env_kwargs(env_kwargs: Any, what: str) -> None:
    """
    :raises UntrustedFileError: they name a function of a module that ``--gym-packages`` does not name
    :raises ValueError: they are no names and values
    """
    env_kwargs = {} if env_kwargs is None else env_kwargs
    if not isinstance(env_kwargs, dict) or not all(isinstance(key, str) and key.isidentifier() for key in env_kwargs):
        raise ValueError(
            f"{what} cannot be read: its env_kwargs must be names of arguments and values, got {reprlib.repr(env_kwargs)}."
        )
    for key in FUNCTIONS:
        value = env_kwargs.get(key)
        if isinstance(value, str) and not _is_own(value.partition(":")[0]):
            raise UntrustedFileError(f"{what} (in its entry 'env_kwargs')", value)


def without_texts(entry: Dict[str, Any], what: str) -> Dict[str, Any]:
    """Hyperparameters with the values of those texts that rl_zoo3 would evaluate as any Python."""
    if trusted():
        return entry
    texts = {key: entry[key] for key in TEXTS if isinstance(entry.get(key), str)}
    # A dotted name of a class is looked up, not evaluated, see with_classes
    texts = {key: text for key, text in texts.items() if key != "replay_buffer_class" or "." not in text}
    return {**entry, **{key: evaluate(text, f"{what} (in its entry {key!r})") for key, text in texts.items()}}


def _mapping(path: str) -> Dict[str, Any]:
    content = safe_yaml.load(path)
    if isinstance(content, safe_yaml.Unread):
        raise UntrustedFileError(path, content.wish)
    if not isinstance(content, dict):
        raise ValueError(f"{path} cannot be read: it must hold names and values, as rl_zoo3 writes it.")
    return content


def saved_entry(path: str) -> Dict[str, Any]:
    """All hyperparameters of a run, of its config.yml, to train on with.

    :raises UntrustedFileError: they want to run something
    :raises ValueError: it is no YAML
    """
    entry = _mapping(path)
    if not trusted():
        safe_yaml.check_read(entry, path)
        check_hyperparams(entry, path)
    return entry


def saved_hyperparams(
    stats_path: str, norm_reward: bool = False, test_mode: bool = False
) -> Tuple[Dict[str, Any], Optional[str]]:
    """rl_zoo3's ``get_saved_hyperparams``.

    :raises UntrustedFileError: what is needed to make the environment wants to run something
    :raises ValueError: config.yml is no YAML
    """
    path = os.path.join(stats_path, "config.yml")
    if trusted() or not os.path.isfile(path):
        return rl_zoo3.utils.get_saved_hyperparams(stats_path, norm_reward, test_mode)  # type: ignore[no-any-return]
    entry = _mapping(path)
    for key in [key for key in entry if key not in ("env_kwargs", "normalize", "frame_stack", *WRAPPERS)]:
        if isinstance(entry[key], safe_yaml.Unread):
            del entry[key]  # of training
    for key in ("env_kwargs", "normalize", "frame_stack", *WRAPPERS):
        safe_yaml.check_read(entry.get(key), f"{path} (in its entry {key!r})")
    check_hyperparams(entry, path, WRAPPERS)
    normalize = entry.setdefault("normalize", False)
    if isinstance(normalize, str):
        normalize = {**evaluate(normalize, f"{path} (in its entry 'normalize')")}
        if test_mode:
            normalize["norm_reward"] = norm_reward
    if normalize:
        kwargs = normalize if isinstance(normalize, dict) else {"norm_obs": normalize, "norm_reward": norm_reward}
        entry["normalize_kwargs"] = kwargs
    return entry, stats_path


def saved_args(path: str) -> Dict[str, Any]:
    """The command line of a training run, of its args.yml.

    :raises UntrustedFileError: the arguments of the environment want to run something
    :raises ValueError: it is no YAML
    """
    args = {"env_kwargs": None, **_mapping(path)}
    if not trusted():
        for key in ("env_kwargs", "eval_env_kwargs"):
            safe_yaml.check_read(args.get(key), f"{path} (in its entry {key!r})")
            check_env_kwargs(args.get(key), path)
    return args


_stand_ins: List[Any] = []
"""Removed when the process ends"""
statistics_files: Dict[str, str] = {}
"""What ``vecnormalize.pkl`` of a stand-in's folder stands for"""


def statistics_folder(model_file: str, settings: Optional[str]) -> Optional[str]:
    """The folder whose ``vecnormalize.pkl`` rl_zoo3 is to load.

    :param model_file: of the agent
    :param settings: the run's folder of settings; None: there is none
    """
    if settings is None:
        return None
    statistics = statistics_of(model_file, settings)
    if statistics.parent == Path(settings):
        return settings
    # rl_zoo3 knows no other name. The file itself stays where it is, so that what is wrong with it names it.
    folder = tempfile.TemporaryDirectory()
    _stand_ins.append(folder)
    stand_in = Path(folder.name, "vecnormalize.pkl")
    stand_in.touch()
    statistics_files[str(stand_in)] = str(statistics)
    return folder.name


def settings_of(
    model_file: str, stats_path: str, norm_reward: bool = False, test_mode: bool = False
) -> Tuple[Dict[str, Any], Optional[str]]:
    """:func:`saved_hyperparams`, and the :func:`statistics_folder` of an agent. What a run has lost is said; statistics beside
    the model tell that it wants them.

    :param model_file: of the agent
    """
    entry, settings = saved_hyperparams(stats_path, norm_reward, test_mode)
    if not os.path.isfile(os.path.join(stats_path, "config.yml")):
        normalize = statistics_path(model_file).is_file()
        if normalize:
            kwargs = {"norm_obs": True, "norm_reward": norm_reward}
            entry, settings = {**entry, "normalize": True, "normalize_kwargs": kwargs}, stats_path
        and_what = ", with the statistics beside the model" if normalize else ""
        print(f"There is no {stats_path}/config.yml: the environment is made as by default{and_what}.")
    return entry, statistics_folder(model_file, settings)


# -- rl_zoo3's own scripts --------------------------------------------------------------------------------------------


class _Yaml:
    """What the scripts use of yaml."""

    UnsafeLoader = yaml.UnsafeLoader

    @staticmethod
    def load(stream: Any, Loader: Any) -> Dict[str, Any]:
        return saved_args(stream.name)


class _ToAct:
    """An algorithm whose models are loaded to act."""

    def __init__(self, algorithm: Any) -> None:
        self.algorithm = algorithm

    def load(self, path: str, custom_objects: Optional[Dict[str, Any]] = None, **kwargs: Any) -> Any:
        with reading_safely():
            return self.algorithm.load(path, custom_objects={**NOT_FOR_ACTING, **(custom_objects or {})}, **kwargs)


def opening_safely(get_model_path: Callable[..., Any]) -> Callable[..., Any]:
    """rl_zoo3's ``get_model_path``, the first that ``enjoy`` and ``record_video`` call about a run: from then on the script
    that calls it for one of our environments reads the run's folder with the functions above."""

    def call(exp_id: int, folder: str, algo: str, env_name: Any, *args: Any, **kwargs: Any) -> Any:
        caller = sys._getframe(1)
        script = caller.f_globals
        is_ours = script.get("__package__") == "rl_zoo3" and is_isaac_env_id(getattr(env_name, "gym_id", env_name))
        if is_ours and not trusted():
            named_packages.update(getattr(caller.f_locals.get("args"), "gym_packages", []))
            if "yaml" in script:
                script["yaml"] = _Yaml
            if "ALGOS" in script:
                script["ALGOS"] = {name: _ToAct(algorithm) for name, algorithm in rl_zoo3.utils.ALGOS.items()}
        found = get_model_path(exp_id, folder, algo, env_name, *args, **kwargs)
        if is_ours and "get_saved_hyperparams" in script:
            script["get_saved_hyperparams"] = functools.partial(settings_of, found[1])
        return found

    return call
