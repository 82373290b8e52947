"""A user's own task, any :class:`~sb3_isaac.backends.base.TensorEnv`, as Gymnasium has environments."""

from __future__ import annotations

import importlib
import inspect
from typing import Any, Callable, Dict, List, Optional, Tuple, Union

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_isaac.backends.base import TensorEnv
from sb3_isaac.envs.tensor_gym_env import TensorGymEnv, TensorGymVectorEnv, make_action_space

Entry = Union[str, Callable[..., TensorEnv]]
"""A TensorEnv class, or a function that makes one, or the name of either: "module:name"."""


def load_entry(entry: Entry) -> Callable[..., TensorEnv]:
    """What an entry stands for.

    :raises ImportError: there is no such module, or it has no such name
    :raises TypeError: it cannot be called
    """
    if isinstance(entry, str):
        module, _, name = entry.partition(":")
        if not (module and name):
            raise ImportError(f"The entry {entry!r} of a task must be 'module:name', such as 'my_task:Pendulum'.")
        loaded = importlib.import_module(module)
        if not hasattr(loaded, name):
            raise ImportError(f"The module {module} ({loaded.__file__}) has no {name!r}, which the entry {entry!r} names.")
        entry = getattr(loaded, name)
    if not callable(entry):
        raise TypeError(f"The entry of a task must be a TensorEnv class or a function that makes one, got {entry!r}.")
    return entry


class TaskEnv(TensorGymEnv):
    """One environment of a user's task, see :class:`~sb3_isaac.envs.tensor_gym_env.TensorGymEnv`.

    Made by ids of :func:`~sb3_isaac.envs.make.register`, which describes ``entry`` and the spaces.

    :param entry: called as ``entry(n_envs=..., device=..., seed=..., **task_kwargs)``
    :param observation_space: default: an unbounded Box of shape (obs_dim,)
    :param action_space: default: Box(-1, 1) of shape (action_dim,)
    :param discrete: Discrete actions (a choice of ``n_bins`` values) in place of the one action in [-1, 1]
    :param n_bins: number of evenly spaced values from -1 to 1, at least 2; 3 if ``discrete`` and not given
    :raises TypeError: the entry does not take these task parameters
    :raises ValueError: spaces that do not fit the task
    """

    def __init__(
        self,
        entry: Entry,
        device: Union[th.device, str] = "auto",
        observation_space: Optional[spaces.Space[Any]] = None,
        action_space: Optional[spaces.Space[Any]] = None,
        discrete: bool = False,
        n_bins: Optional[int] = None,
        render_mode: Optional[str] = None,
        **task_kwargs: Any,
    ) -> None:
        super().__init__(device, render_mode, task_kwargs)
        self.entry = load_entry(entry)
        self.name = str(getattr(self.entry, "__name__", self.entry))
        self._limit_is_parameter = self._check_parameters()
        obs_dim, action_dim = self._dims(observation_space, action_space)
        if discrete or n_bins is not None:
            if isinstance(action_space, spaces.Box):
                raise ValueError(
                    f"{self.name} is registered with the action space {action_space}: leave discrete and n_bins out."
                )
            discrete = discrete or isinstance(action_space, spaces.Discrete)
            if action_dim != 1:
                raise ValueError(f"Discrete actions need a task with one action, {self.name} has {action_dim}.")
            action_space = make_action_space(action_dim, discrete, n_bins)
        if isinstance(action_space, spaces.Discrete) and int(action_space.start) != 0:
            raise ValueError(f"A Discrete action space must start at 0, got {action_space}.")
        if observation_space is None:
            observation_space = spaces.Box(-np.inf, np.inf, (obs_dim,), np.float32)
        self.observation_space = observation_space
        self.action_space = make_action_space(action_dim, False, None) if action_space is None else action_space

    def _check_parameters(self) -> bool:
        """Whether the entry has a parameter ``max_episode_length``.

        :raises TypeError: it does not take these task parameters
        """
        try:
            signature = inspect.signature(self.entry)
        except ValueError:  # some builtins have none
            return False
        try:
            signature.bind(n_envs=1, device=th.device("cpu"), seed=0, **self.task_kwargs)
        except TypeError as error:
            raise TypeError(
                f"{self.name}{signature} cannot be called with n_envs=, device=, seed="
                f"{''.join(f', {name}=' for name in self.task_kwargs)}, as a task is: {error}."
            ) from error
        return "max_episode_length" in signature.parameters

    def _dims(
        self, observation_space: Optional[spaces.Space[Any]], action_space: Optional[spaces.Space[Any]]
    ) -> Tuple[int, int]:
        """obs_dim and action_dim, of the spaces or the class if they tell, else of a simulator made for the question."""
        found: List[Any] = []
        for space, name in ((observation_space, "obs_dim"), (action_space, "action_dim")):
            value = space.shape[0] if space is not None and space.shape else getattr(self.entry, name, None)
            found.append(1 if isinstance(space, spaces.Discrete) else value)
        if not all(isinstance(value, int) for value in found):
            probe = self.make_tensor_env(1, 0, self.task_kwargs)
            found = [probe.obs_dim, probe.action_dim]
            probe.close()
        return int(found[0]), int(found[1])

    def make_tensor_env(self, n_envs: int, seed: Optional[int], task_kwargs: Dict[str, Any]) -> TensorEnv:
        """:raises ValueError: n_envs below 1, or what the entry made is no TensorEnv, or not as asked for"""
        device, seed = self.asked_for(n_envs, seed)
        arguments = dict(task_kwargs)
        limit = None
        if not self._limit_is_parameter and "max_episode_length" not in self.task_kwargs:
            limit = arguments.pop("max_episode_length", None)
        env = self.entry(n_envs=n_envs, device=device, seed=seed, **arguments)
        if not isinstance(env, TensorEnv):
            raise ValueError(f"{self.name} made a {type(env).__name__}: a task is a subclass of sb3_isaac.TensorEnv.")
        needed = ("n_envs", "device", "obs_dim", "action_dim", "max_episode_length", "progress")
        missing = [name for name in needed if not hasattr(env, name)]
        if missing:
            raise ValueError(
                f"{self.name} has no attribute {', '.join(missing)}: set {'it' if len(missing) == 1 else 'them'} in __init__."
            )
        for name, asked in (("n_envs", n_envs), ("device", device)):
            if getattr(env, name) != asked:
                raise ValueError(
                    f"{self.name} was asked for {name}={asked!s} and has {getattr(env, name)!s}: take the argument {name}."
                )
        if limit is not None:
            try:
                env.max_episode_length = limit
            except AttributeError as error:
                raise ValueError(
                    f"The time limit of {self.name} cannot be set: make max_episode_length an attribute."
                ) from error
        return env


class TaskVectorEnv(TensorGymVectorEnv):
    """The batched environment behind ``gym.make_vec``, see :class:`~sb3_isaac.envs.tensor_gym_env.TensorGymVectorEnv`."""

    single_class = TaskEnv
