"""The environment ids of this package, and make_vec_env."""

from __future__ import annotations

import copy
import importlib
import os
from typing import Any, Dict, Optional, Union

import gymnasium as gym
import torch as th
from stable_baselines3.common.monitor import ResultsWriter

from sb3_isaac.envs.cartpole_env import NO_TIME_LIMIT, CartpoleEnv
from sb3_isaac.envs.vec_env import IsaacVecEnv

ISAAC_GYM_DT = 1.0 / 60.0
"""Control step of the older public Isaac Gym cartpole repositories, in seconds (IsaacGymEnvs has 0.0166)."""


ENV_KWARGS: Dict[str, Dict[str, Any]] = {
    "IsaacGymCartpole-v0": {},
    "IsaacGymCartpoleDiscrete-v0": {"discrete": True},
    # The settings of public Isaac Gym runs, see hyperparams/*.yml.
    "IsaacGymCartpoleSeed-v0": {"dt": ISAAC_GYM_DT},
    "IsaacGymCartpoleSeedDiscrete-v0": {"dt": ISAAC_GYM_DT, "discrete": True},
    "IsaacGymCartpoleRlGames-v0": {},
}
"""The environment ids that this package registers, with what distinguishes them."""

REWARD_THRESHOLD = 475.0
"""The return from which on the task counts as solved, of at most 499 in as many steps: as Gymnasium has it for CartPole-v1."""


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


def register_envs() -> None:
    """Register the ids with Gymnasium. Done when :mod:`sb3_isaac` is imported."""
    for env_id, kwargs in ENV_KWARGS.items():
        if env_id not in gym.registry:
            gym.register(
                env_id,
                entry_point="sb3_isaac.envs:CartpoleEnv",
                vector_entry_point="sb3_isaac.envs:CartpoleVectorEnv",
                reward_threshold=REWARD_THRESHOLD,
                kwargs=kwargs,
            )


def is_isaac_env_id(env_id: str) -> bool:
    """Whether an id belongs to this package (also a user's own id that is registered with our entry point)."""
    spec = gym.registry.get(env_id)
    return spec is not None and spec.entry_point in ("sb3_isaac.envs:CartpoleEnv", CartpoleEnv)


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

    :param env_id: an id of this package, such as "IsaacGymCartpole-v0" or "IsaacGymCartpoleDiscrete-v0", or your own that is
        registered with ``entry_point="sb3_isaac.envs:CartpoleEnv"``, whose ``kwargs`` are the defaults of this function
    :param n_envs: number of environments
    :param backend: "torch", "isaacgym" or "auto"
    :param device: torch device of the simulation, or "auto"
    :param seed: seed of the reset states; None draws one
    :param render_mode: None, "rgb_array" or "human"
    :param monitor_dir: folder for ``0.monitor.csv``, as SB3's Monitor writes it; None: no file
    :param max_episode_steps: as in ``gym.make``: an episode is truncated after so many steps; None: as the id says,
        -1: not even then
    :param task_kwargs: task parameters (dt, max_effort, reset_dist, max_episode_length, ...) and n_bins
    :raises gymnasium.error.UnregisteredEnv: unknown id (the message names the closest one)
    :raises ValueError: not an id of this package, or one with wrappers for single environments; n_envs below 1, unknown
        backend or device, a parameter out of range; max_episode_length is above max_episode_steps
    :raises TypeError: unknown task parameter, or an argument that only SB3's make_vec_env has
    :raises OSError: the monitor folder cannot be written
    """
    for name in sorted(OF_SB3.keys() & task_kwargs.keys()):
        raise TypeError(f"{name} is an argument of SB3's make_vec_env only: {OF_SB3[name]}, or use SB3's.")
    module, _, env_id = env_id.rpartition(":")  # "module:id", as in gym.make
    if module:
        importlib.import_module(module)
    spec = copy.deepcopy(gym.spec(env_id))
    if not is_isaac_env_id(env_id):
        raise ValueError(
            f"{env_id} is not an Isaac Gym environment: use one of {', '.join(ENV_KWARGS)}, or SB3's make_vec_env."
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
    single = CartpoleEnv(**spec.kwargs)
    single.spec = spec
    env = single.make_batched(n_envs, seed, max_episode_steps=max_episode_steps)
    if monitor_dir is not None:
        header: Dict[str, Any] = {"t_start": env.t_start, "env_id": env_id}
        env.results_writer = ResultsWriter(os.path.join(monitor_dir, "0"), header=header)
    return env
