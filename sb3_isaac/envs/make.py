"""Own tasks by ids, and make_vec_env."""

from __future__ import annotations

import copy
import importlib
import os
import sys
from pathlib import Path
from typing import Any, Dict, Optional, Type, Union

import gymnasium as gym
import torch as th
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.monitor import ResultsWriter

from sb3_isaac.backends.base import TensorEnv
from sb3_isaac.device import ranks
from sb3_isaac.envs.cartpole_env import CartpoleEnv
from sb3_isaac.envs.ids import ENTRY_POINT, ENV_KWARGS, SIMULATORS, register_named, split
from sb3_isaac.envs.simulators import SimulatorTaskEnv
from sb3_isaac.envs.task_env import Entry, TaskEnv, load_entry
from sb3_isaac.envs.tensor_gym_env import NO_TIME_LIMIT, TensorGymEnv
from sb3_isaac.envs.vec_env import IsaacVecEnv
from sb3_isaac.settings.check import check

OF_SB3 = {
    "start_index": "leave it out",
    "wrapper_class": "wrap what make_vec_env returns in a VecEnvWrapper",
    "wrapper_kwargs": "leave it out",
    "env_kwargs": "give what it holds as arguments of make_vec_env",
    "vec_env_cls": "leave it out, as all environments are one batch",
    "vec_env_kwargs": "leave it out, as all environments are one batch",
    "monitor_kwargs": "leave it out, as the batch reports its episodes itself",
}
"""Arguments of SB3's make_vec_env that are not arguments here, and what to do instead."""


ENV_CLASSES: Dict[Any, Type[TensorGymEnv]] = {
    "sb3_isaac.envs:CartpoleEnv": CartpoleEnv,
    CartpoleEnv: CartpoleEnv,
    "sb3_isaac.envs:TaskEnv": TaskEnv,
    TaskEnv: TaskEnv,
    ENTRY_POINT: SimulatorTaskEnv,
}
"""The classes of this package, by the entry points that ids may have."""

_hyperparams: Dict[str, Path] = {}
"""What :func:`register` was told, by id."""


def register(
    env_id: str,
    entry: Entry,
    *,
    observation_space: Optional[spaces.Space[Any]] = None,
    action_space: Optional[spaces.Space[Any]] = None,
    max_episode_steps: Optional[int] = None,
    hyperparams: Union[str, os.PathLike[str], None] = None,
    kwargs: Optional[Dict[str, Any]] = None,
) -> None:
    """Register your own task, so that everything that makes an environment by its id makes it, many at once.

    ::

        class Pendulum(sb3_isaac.TensorEnv): ...

        sb3_isaac.register("MyPendulum-v0", Pendulum)
        env = sb3_isaac.make_vec_env("MyPendulum-v0", n_envs=1024)

    Also ``gym.make``, ``gym.make_vec``, and rl_zoo3's commands with ``--gym-packages my_task``, if this is in ``my_task.py``.
    rl_zoo3 finds hyperparameters in ``my_task.ppo.yml`` or ``my_task.yml`` beside it, or in the file of ``-conf``.

    :param env_id: as Gymnasium wants it: "Name-v0"
    :param entry: a :class:`~sb3_isaac.backends.base.TensorEnv` class, a function that makes one, or "module:name"; called as
        ``entry(n_envs=..., device=..., seed=..., **task_kwargs)`` with an int, a torch.device, an int
    :param observation_space: default: an unbounded Box of shape (obs_dim,)
    :param action_space: default: Box(-1, 1) of shape (action_dim,). Discrete(n) is a choice of n evenly spaced values from -1
        to 1 of the one action of the task.
    :param max_episode_steps: an episode is truncated after so many steps; None: as the task's ``max_episode_length`` says. It
        is set on the task (``max_episode_length``, as argument if there is one), which has to look there in its step.
    :param hyperparams: a hyperparameter file of rl_zoo3's format, or a folder of ppo.yml, dqn.yml, ...; a relative path starts
        beside the task. None: see above
    :param kwargs: task parameters, also ``discrete=True``, ``n_bins=5``, ``device="cpu"``: the defaults of
        :func:`make_vec_env` and ``gym.make``
    :raises ValueError: no callable, or an id that Gymnasium does not take
    """
    if not isinstance(entry, str) and not callable(entry):
        raise ValueError(f"The entry of {env_id} must be a TensorEnv class, a function or 'module:name', got {entry!r}.")
    found: Dict[str, Any] = {"entry": entry, "observation_space": observation_space, "action_space": action_space}
    gym.register(
        env_id,
        entry_point="sb3_isaac.envs:TaskEnv",
        vector_entry_point="sb3_isaac.envs:TaskVectorEnv",
        max_episode_steps=max_episode_steps,
        kwargs={**{name: value for name, value in found.items() if value is not None}, **(kwargs or {})},
    )
    _hyperparams.pop(env_id, None)
    if hyperparams is not None:
        _hyperparams[env_id] = Path(hyperparams)


def task_file(env_id: str) -> Optional[Path]:
    """The Python file of a user's own task; None: the id is of no such task, or it was typed into an interpreter."""
    if not is_isaac_env_id(env_id) or "entry" not in gym.spec(env_id).kwargs:
        return None
    module = sys.modules.get(str(getattr(load_entry(gym.spec(env_id).kwargs["entry"]), "__module__", "")))
    file = getattr(module, "__file__", None)
    return None if file is None else Path(file).absolute()


def task_hyperparams(env_id: str, algo: str) -> Optional[Path]:
    """The hyperparameter file of a user's own task, if there is one.

    :param algo: rl_zoo3's name of the algorithm
    :raises FileNotFoundError: :func:`register` was told of a file or folder that does not exist
    """
    file = task_file(env_id)
    if env_id in _hyperparams:
        path = (file.parent if file else Path.cwd()) / _hyperparams[env_id]
        if not path.exists():
            raise FileNotFoundError(f"The hyperparameters of {env_id} are registered to be in {path}, which does not exist.")
        return path / f"{algo}.yml" if path.is_dir() else path
    if file is None:
        return None
    names = [f"{file.stem}{middle}{end}" for middle in (f".{algo}", "") for end in (".yml", ".yaml")]
    return next((file.parent / name for name in names if (file.parent / name).is_file()), None)


def is_isaac_env_id(env_id: str) -> bool:
    """Whether an id belongs to this package.

    It may be a user's own, with an entry point of ours, or one that is a TensorEnv class, which becomes as :func:`register`
    makes it, or a task of a simulator (:mod:`sb3_isaac.envs.simulators`), which is registered at its first use.
    """
    register_named([env_id])
    spec = gym.registry.get(env_id)
    return spec is not None and (spec.entry_point in ENV_CLASSES or _adopt(spec))


def _adopt(spec: EnvSpec) -> bool:
    """Change an id whose entry point is a TensorEnv class into one of :func:`register`. Returns whether it was one."""
    entry: Any = spec.entry_point
    if isinstance(entry, str) and not entry.startswith("gymnasium."):
        try:
            entry = load_entry(entry)
        except Exception:  # whoever makes the environment hears of it
            return False
    if not (isinstance(entry, type) and issubclass(entry, TensorEnv)):
        return False
    spec.kwargs = {"entry": spec.entry_point, **spec.kwargs}
    spec.entry_point = "sb3_isaac.envs:TaskEnv"
    spec.vector_entry_point = spec.vector_entry_point or "sb3_isaac.envs:TaskVectorEnv"
    return True


def make_vec_env(
    env_id: str,
    n_envs: int = 1,
    backend: str = "auto",
    device: Union[th.device, str] = "auto",
    seed: Optional[int] = None,
    render_mode: Optional[str] = None,
    monitor_dir: Optional[str] = None,
    max_episode_steps: Optional[int] = None,
    **task_kwargs: Any,
) -> IsaacVecEnv:
    """N environments in one :class:`~sb3_isaac.envs.vec_env.IsaacVecEnv`, for SB3 and for our algorithms.

    :param env_id: an id of this package, such as "IsaacGymCartpole-v0" or "IsaacGymCartpoleDiscrete-v0", or your own from
        :func:`register`, or one that is registered with ``entry_point="sb3_isaac.envs:CartpoleEnv"``; its ``kwargs`` are the
        defaults of this function. Or a task of another simulator: "mjlab:Mjlab-Cartpole-Balance"
    :param n_envs: number of environments
    :param backend: of the cartpole: "torch", "isaacgym" or "auto"
    :param device: torch device of the simulation, or "auto"
    :param seed: seed of the reset states, to which each of several processes (torchrun) adds its rank; None draws one
    :param render_mode: None, "rgb_array" or "human"
    :param monitor_dir: folder for ``0.monitor.csv``, as SB3's Monitor writes it, by the first of several processes; None: no
        file
    :param max_episode_steps: as in ``gym.make``: an episode is truncated after so many steps; None: as the id says,
        -1: not even then
    :param task_kwargs: parameters of the task and n_bins. The cartpole's are those of
        :class:`~sb3_isaac.backends.cartpole.CartpoleTask`: dt, max_effort, reset_dist, pole_length, gravity, reward,
        termination, ...
    :raises gymnasium.error.UnregisteredEnv: unknown id (the message names the closest one)
    :raises ValueError: not an id of this package, or one with wrappers for single environments; n_envs below 1, unknown
        backend or device, a parameter out of range; max_episode_length is above max_episode_steps
    :raises ImportError: the module of a task's entry cannot be imported
    :raises TypeError: no id, unknown task parameter, or an argument that only SB3's make_vec_env has
    :raises MemoryError: more environments than there is memory for; the message has the numbers
    :raises OSError: the monitor folder cannot be written
    """
    if not isinstance(env_id, str):
        raise TypeError(
            f"make_vec_env takes the id of an environment, such as {next(iter(ENV_KWARGS))!r}, got {env_id!r}: "
            "sb3_isaac.register gives your own task one."
        )
    check("env", {"n_envs": n_envs, "seed": seed, "max_episode_steps": max_episode_steps}, defaults={"n_envs": 1})
    for name in sorted(OF_SB3.keys() & task_kwargs.keys()):
        raise TypeError(f"{name} is an argument of SB3's make_vec_env only: {OF_SB3[name]}, or use SB3's.")
    if split(env_id) is None:
        module, _, env_id = env_id.rpartition(":")  # "module:id", as in gym.make
        if module:
            importlib.import_module(module)
    ours = is_isaac_env_id(env_id)
    spec = copy.deepcopy(gym.spec(env_id))  # an unknown id is an error that names the closest one
    if not ours:
        raise ValueError(
            f"{env_id} is not an Isaac Gym environment: use one of {', '.join(ENV_KWARGS)}, your own task from "
            f"sb3_isaac.register, a task of {' or '.join(f'{name}:' for name in SIMULATORS)}, or SB3's make_vec_env."
        )
    if spec.additional_wrappers:
        names = ", ".join(wrapper.name for wrapper in spec.additional_wrappers)
        raise ValueError(
            f"{env_id} is registered with additional_wrappers ({names}), which wrap single environments: register it without "
            "them, or use SB3's make_vec_env, which is many times slower."
        )
    if max_episode_steps == -1:  # as in gym.make: what the id says does not count
        max_episode_steps = None if spec.max_episode_steps is None else NO_TIME_LIMIT - 1
    elif max_episode_steps is None:
        max_episode_steps = spec.max_episode_steps
    spec.max_episode_steps = max_episode_steps
    # Where nothing is asked for here, the id decides.
    defaults = {"backend": "auto", "device": "auto", "render_mode": None}
    given = {"backend": backend, "device": device, "render_mode": render_mode}
    given = {name: value for name, value in given.items() if value != defaults[name]}
    spec.kwargs = {**spec.kwargs, **given, **task_kwargs}
    ranks.choose_gpu()
    single = ENV_CLASSES[spec.entry_point](**spec.kwargs)
    single.spec = spec
    env = single.make_batched(n_envs, ranks.own_seed(seed), max_episode_steps=max_episode_steps)
    if monitor_dir is not None and ranks.rank() == 0:
        header: Dict[str, Any] = {"t_start": env.t_start, "env_id": env_id}
        env.results_writer = ResultsWriter(os.path.join(monitor_dir, "0"), header=header)
    return env
