"""Hyperparameter files and their entries, looked at before a folder is made or a simulator is built."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import os
from pathlib import Path
from typing import Any, Dict, Hashable, Iterator, Mapping, Type, Union

import numpy as np
import torch as th
import yaml
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.policies import BasePolicy

from sb3_isaac.settings import SETTINGS, check, check_memory, defaults_of
from sb3_isaac.settings.memory import BYTES_PER_ENV, replay_bytes, rollout_bytes

NOISES = ("normal", "ornstein-uhlenbeck")
FLAGS_INSTEAD = {
    "seed": "--seed",
    "device": "--device",
    "verbose": "--verbose",
    "tensorboard_log": "-tb",
    "_init_setup_model": "nothing of the kind",
}
"""Arguments of the algorithms that rl_zoo3 gives by itself, and where they come from."""
MAX_LAYER = 10**6
"""Units of a layer: more is a typing error."""


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a key stands once: of two, PyYAML takes the last one without a word."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if (key.tag, key.value) in seen:
                    problem = f"the key {key.value!r} stands there twice: remove one"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def check_file(config: str, env_id: str) -> None:
    """Whether a hyperparameter file can be read, and holds entries by environment ids.

    :param config: of rl_zoo3's ``-conf``: a YAML file, a Python file, or a module
    :param env_id: whose entry is looked at, or the entry "default"
    :raises FileNotFoundError: there is no such file
    :raises ValueError: anything else; the message names the file and, where it is known, the line
    """
    is_yaml = config.endswith((".yml", ".yaml"))
    if is_yaml or config.endswith(".py"):
        if not os.path.exists(config):
            raise FileNotFoundError(f"Hyperparameter file {config} does not exist.")
        if not os.path.isfile(config):
            raise ValueError(f"Hyperparameter file {config} is a folder: name a file in it.")
    entries: Any
    try:
        if is_yaml:
            entries = yaml.load(Path(config).read_text(encoding="utf-8"), Loader=_StrictLoader)
        elif config.endswith(".py"):
            names: Dict[str, Any] = {}
            exec(compile(Path(config).read_text(), config, "exec"), names)  # as rl_zoo3 does
            entries = names.get("hyperparams")
        else:
            entries = getattr(importlib.import_module(config), "hyperparams", None)
    except (yaml.YAMLError, RecursionError, UnicodeError) as error:
        raise ValueError(f"Hyperparameter file {config} is no YAML: {_yaml_problem(error)}.") from error
    except OSError:
        raise
    except Exception as error:
        if is_yaml:  # a date that is none, and the like
            raise ValueError(f"Hyperparameter file {config} is no YAML: {error}.") from error
        raise ValueError(
            f"Hyperparameters cannot be read from {config} ({type(error).__name__}: {error}): -conf takes a file NAME.yml or "
            "NAME.py, or a module, that defines hyperparams."
        ) from error
    if not isinstance(entries, Mapping) or not entries:
        found = "nothing" if not entries else f"a {type(entries).__name__}"
        raise ValueError(
            f"Hyperparameter file {config} must hold entries by environment id (ID: {{n_timesteps: 100000, ...}}), and holds "
            f"{found}."
        )
    name = env_id if env_id in entries else "default"
    entry = entries.get(name, {})
    if not isinstance(entry, Mapping) or not all(isinstance(key, str) for key in entry):
        wanted = "a mapping of names to values (are its lines indented?)"
        raise ValueError(f"The entry {name} of hyperparameter file {config} must be {wanted}, got {str(entry)[:60]!r}.")


def _yaml_problem(error: Exception) -> str:
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None) or str(error)
    context = getattr(error, "context", None)
    text = " ".join(f"{context + ', ' if context else ''}{problem}".split())
    if "'\\t'" in text:
        text += " (a tab: YAML is indented by spaces)"
    return text[:200] + (f", line {mark.line + 1}, column {mark.column + 1}" if mark is not None else "")


@contextlib.contextmanager
def explained_entry(where: str) -> Iterator[None]:
    """What rl_zoo3 raises while it makes objects of an entry (it evaluates texts, imports names) becomes a sentence.

    :raises ValueError: in the place of it
    """
    try:
        yield
    except (AttributeError, LookupError, NameError, SyntaxError, TypeError, ImportError) as error:
        text = " ".join(str(error).split())[:200]
        raise ValueError(f"The entry in {where} cannot be used ({type(error).__name__}: {text}).") from error


def check_entry(
    entry: Mapping[str, Any], algo: str, algorithm: Type[BaseAlgorithm], where: str, sampled: bool = False
) -> None:
    """Hold an entry against the table of settings, value by value and against each other.

    :param algo: rl_zoo3's name of ``algorithm``
    :param where: for the sentences: file and -params
    :param sampled: a search replaces part of it
    :raises ValueError: a value that makes no sense, or that does not go with another
    """
    given_elsewhere = sorted(set(entry) & set(FLAGS_INSTEAD))
    if given_elsewhere:
        raise ValueError(f"{given_elsewhere[0]} in {where} is no hyperparameter: use {FLAGS_INSTEAD[given_elsewhere[0]]}.")
    check("entry", entry, where=where, algo=algo, defaults={**defaults_of(algorithm), "n_envs": 1})
    _check_policy(entry, algorithm, where)
    for key in ("normalize", "replay_buffer_kwargs", "rollout_buffer_kwargs"):
        inner = entry.get(key)
        own_class = algorithm.__module__.split(".")[0] != "sb3_isaac" or entry.get(key.replace("kwargs", "class"))
        if not isinstance(inner, Mapping) or (key != "normalize" and own_class):
            continue
        unknown = [name for name in inner if name not in SETTINGS[key]]
        if unknown:
            known = ", ".join(SETTINGS[key]) or "nothing, as the algorithm gives all that there is"
            raise ValueError(f"{key} in {where} has the key {str(unknown[0])[:60]!r}: it may have {known}.")
        check(key, inner, where=f"{key} of {where}")
        inner_steps = inner.get("n_steps")
        if inner_steps is not None and entry.get("n_steps", 1) not in (1, inner_steps):
            raise ValueError(f"n_steps is {entry['n_steps']}, and {inner_steps} in replay_buffer_kwargs of {where}.")
    check_noise(entry, algorithm, where)
    n_envs = entry.get("n_envs", 1)
    train_freq = entry.get("train_freq")
    if isinstance(train_freq, (list, tuple)) and train_freq[1] == "episode" and isinstance(n_envs, int) and n_envs > 1:
        raise ValueError(f"train_freq in episodes needs n_envs: 1, and n_envs is {n_envs} in {where}: count in steps.")
    if algo == "ppo" and not sampled:
        _check_rollout(entry, algorithm, where)
    if entry.get("optimize_memory_usage") and issubclass(algorithm, OffPolicyAlgorithm):
        kwargs = entry.get("replay_buffer_kwargs")
        if not isinstance(kwargs, str) and (kwargs or {}).get("handle_timeout_termination", True):
            raise ValueError(
                f"optimize_memory_usage in {where} loses the final observations from which time limits bootstrap: add "
                "replay_buffer_kwargs: {handle_timeout_termination: false}, or leave it out."
            )


def _check_policy(entry: Mapping[str, Any], algorithm: Type[BaseAlgorithm], where: str) -> None:
    policy, aliases = entry.get("policy"), sorted(algorithm.policy_aliases)
    known = inspect.isclass(policy) or (isinstance(policy, str) and (policy in aliases or "." in policy))
    if not known:
        if policy is None:
            raise ValueError(f"policy is missing in {where}: add policy: MlpPolicy.")
        close = difflib.get_close_matches(str(policy), aliases, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(aliases)}, or give module.Class."
        raise ValueError(f"policy {policy!r} in {where} is unknown: {hint}")


def check_noise(entry: Mapping[str, Any], algorithm: Type[BaseAlgorithm], where: str) -> None:
    """:raises ValueError: a noise that rl_zoo3 does not know, or half of it"""
    kind, std = entry.get("noise_type"), entry.get("noise_std")
    if kind is None and std is None:
        return
    if "action_noise" not in defaults_of(algorithm):
        raise ValueError(f"noise_type and noise_std in {where} are for DDPG and its like: remove them.")
    if kind is None or std is None:
        missing = "noise_type" if kind is None else "noise_std"
        raise ValueError(f"noise_type and noise_std in {where} need each other: {missing} is missing.")
    if not any(name in kind for name in NOISES):
        raise ValueError(f"noise_type in {where} must be one of {', '.join(NOISES)}, got {kind!r}.")


def _check_rollout(entry: Mapping[str, Any], algorithm: Type[BaseAlgorithm], where: str) -> None:
    """PPO: what n_steps, n_envs, batch_size and n_minibatches say together, and the bounds of the learning rate."""
    lowest, highest = entry.get("adaptive_lr_min", 1e-4), entry.get("adaptive_lr_max", 1e-2)
    if lowest > highest:
        raise ValueError(f"adaptive_lr_min ({lowest}) is greater than adaptive_lr_max ({highest}) in {where}.")
    n_steps, n_envs = entry.get("n_steps", defaults_of(algorithm)["n_steps"]), entry.get("n_envs", 1)
    if not isinstance(n_envs, int):
        return
    n_minibatches, batch_size = entry.get("n_minibatches"), entry.get("batch_size")
    total = n_steps * n_envs
    if n_minibatches is not None:
        if total % n_minibatches:
            raise ValueError(
                f"n_minibatches={n_minibatches} does not divide the rollout of n_steps * n_envs = {n_steps} * {n_envs} "
                f"transitions in {where}."
            )
        if batch_size not in (None, total // n_minibatches):
            raise ValueError(f"n_minibatches={n_minibatches} and batch_size={batch_size} contradict each other in {where}.")
        batch_size = total // n_minibatches
    if entry.get("normalize_advantage", True) and 1 in (total, batch_size):
        raise ValueError(
            f"A single advantage cannot be normalised: n_steps * n_envs is {total} and batch_size {batch_size} in {where}: "
            "make them larger, or set normalize_advantage: false."
        )


def check_networks(
    entry: Mapping[str, Any], algorithm: Type[BaseAlgorithm], observation_space: Any, action_space: Any, where: str
) -> None:
    """Make the policy once, of one of SB3's classes, on the CPU: what is wrong in ``policy_kwargs`` shows.

    :raises ValueError: it cannot be made
    :raises MemoryError: it is too large
    """
    policy: Any = algorithm.policy_aliases.get(entry.get("policy", ""), None)
    kwargs = entry.get("policy_kwargs") or {}
    if policy is None or isinstance(kwargs, str):
        return
    check_net_arch(kwargs.get("net_arch"), observation_space, where)
    kwargs = {**kwargs, "use_sde": True} if entry.get("use_sde") else kwargs  # as the algorithm does
    try:
        with th.random.fork_rng(devices=[]):  # training draws what it would have drawn
            built: BasePolicy = policy(observation_space, action_space, lambda _: 1e-3, **kwargs)
            del built
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        raise ValueError(f"policy_kwargs in {where} make no policy ({type(error).__name__}: {text}).") from error


def check_net_arch(net_arch: Any, observation_space: spaces.Space[Any], where: str) -> None:
    """:raises ValueError: other than whole numbers, in a list or a mapping of lists"""
    lists = list(net_arch.values()) if isinstance(net_arch, Mapping) else [net_arch]
    n_parameters = 0
    for sizes in lists:
        if sizes is None:
            continue
        whole = isinstance(sizes, (list, tuple)) and all(type(n) is int or isinstance(n, np.integer) for n in sizes)
        if not whole or not all(1 <= n <= MAX_LAYER for n in sizes):
            wanted = f"a list of whole numbers from 1 to {MAX_LAYER} ([64, 64]), or such lists by network"
            word = ", which is a word: write it without quotes" if isinstance(sizes, str) and "[" in sizes else ""
            raise ValueError(f"net_arch of policy_kwargs must be {wanted}, got {repr(net_arch)[:60]} in {where}{word}.")
        widths = [int(np.prod(observation_space.shape or (1,))), *sizes]
        n_parameters += sum(int(one) * int(other) for one, other in zip(widths, widths[1:]))
    # Twice, for actor and critic or target; each with its gradient and Adam's two means
    check_memory({"networks": 2 * 4 * 4 * n_parameters}, th.device("cpu"), "make net_arch smaller", where)


def check_room(
    entry: Mapping[str, Any],
    algorithm: Type[BaseAlgorithm],
    observation_space: spaces.Space[Any],
    action_space: spaces.Space[Any],
    device: th.device,
    where: str,
    n_eval_envs: int = 0,
) -> None:
    """Whether there is memory for environments, rollouts and the replay buffer.

    :raises MemoryError: there is not; the message has the numbers
    """
    n_envs = entry.get("n_envs", 1)
    frames = entry.get("frame_stack") or 1
    obs_dim = int(np.prod(observation_space.shape or (1,))) * frames
    action_dim = int(np.prod(action_space.shape or (1,)))
    needs: Dict[str, float] = {f"{n_envs} environments": n_envs * BYTES_PER_ENV}
    if n_eval_envs:
        needs[f"{n_eval_envs} of evaluation"] = n_eval_envs * BYTES_PER_ENV
    lower = "n_envs"
    defaults = defaults_of(algorithm)
    if issubclass(algorithm, OffPolicyAlgorithm):
        size = max(int(entry.get("buffer_size", defaults.get("buffer_size", 1))), n_envs)
        needs[f"a replay buffer of {size} transitions"] = replay_bytes(size, obs_dim, action_dim)
        lower = "buffer_size or n_envs"
    elif "n_steps" in defaults:
        n_steps = entry.get("n_steps", defaults["n_steps"])
        needs[f"rollouts of {n_steps} steps"] = rollout_bytes(n_steps, n_envs, obs_dim, action_dim)
        lower = "n_steps or n_envs"
    check_memory(needs, device, f"lower {lower}", where)


def check_writable(folder: Union[str, Path], flag: str) -> None:
    """Whether files can be written into a folder, which need not exist.

    :raises NotADirectoryError: a file is in its place, or in that of a folder above it
    :raises PermissionError: it may not be written to
    """
    there = Path(folder).absolute()
    while not there.exists():
        there = there.parent
    if not there.is_dir():
        raise NotADirectoryError(f"{flag} {folder} cannot be used: {there} is a file. Choose another folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"{flag} {folder} cannot be used: {there} may not be written to. Choose another folder.")
