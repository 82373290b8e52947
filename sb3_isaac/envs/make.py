"""The environment ids of this package, and make_vec_env."""

from __future__ import annotations

import os
from typing import Any, Dict, Optional, Union

import gymnasium as gym
import torch as th
from stable_baselines3.common.monitor import ResultsWriter

from sb3_isaac.envs.cartpole_env import CartpoleEnv
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


def register_envs() -> None:
    """Register the ids with Gymnasium. Done when :mod:`sb3_isaac` is imported."""
    for env_id, kwargs in ENV_KWARGS.items():
        if env_id not in gym.registry:
            gym.register(
                env_id,
                entry_point="sb3_isaac.envs:CartpoleEnv",
                vector_entry_point="sb3_isaac.envs:CartpoleVectorEnv",
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
    **task_kwargs: Any,
) -> IsaacVecEnv:
    """N environments in one :class:`~sb3_isaac.envs.vec_env.IsaacVecEnv`, for SB3 and for our algorithms.

    :param env_id: an id of this package, such as "IsaacGymCartpole-v0" or "IsaacGymCartpoleDiscrete-v0"
    :param n_envs: number of environments
    :param backend: "torch", "isaacgym" or "auto"
    :param device: torch device of the simulation, or "auto"
    :param seed: seed of the reset states; None draws one
    :param render_mode: None, "rgb_array" or "human"
    :param monitor_dir: folder for ``0.monitor.csv``, as SB3's Monitor writes it; None: no file
    :param task_kwargs: task parameters (dt, max_effort, reset_dist, max_episode_length, ...) and n_bins
    :raises gymnasium.error.UnregisteredEnv: unknown id (the message names the closest one)
    :raises ValueError: not an id of this package, n_envs below 1, unknown backend or device, a parameter out of range
    :raises TypeError: unknown task parameter
    :raises OSError: the monitor folder cannot be written
    """
    spec = gym.spec(env_id)
    if not is_isaac_env_id(env_id):
        raise ValueError(
            f"{env_id} is not an Isaac Gym environment: use one of {', '.join(ENV_KWARGS)}, or SB3's make_vec_env."
        )
    single = CartpoleEnv(**{**spec.kwargs, "backend": backend, "device": device, "render_mode": render_mode, **task_kwargs})
    single.spec = spec
    env = single.make_batched(n_envs, seed)
    if monitor_dir is not None:
        header: Dict[str, Any] = {"t_start": env.t_start, "env_id": env_id}
        env.results_writer = ResultsWriter(os.path.join(monitor_dir, "0"), header=header)
    return env
