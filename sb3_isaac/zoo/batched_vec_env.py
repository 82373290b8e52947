"""One batch of our environments where rl_zoo3 and SB3 would make a VecEnv of single ones."""

from __future__ import annotations

import inspect
from typing import Any, Callable, Optional, Sequence, Type

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_isaac.envs.make import is_isaac_env_id
from sb3_isaac.envs.vec_env import IsaacVecEnv


def batched_vec_env(env_fns: Sequence[Callable[[], Any]], otherwise: Type[VecEnv] = DummyVecEnv, **kwargs: Any) -> VecEnv:
    """In the place of a VecEnv class: given SB3's list of functions that each make a single environment, one batch of them.

    :param env_fns: what SB3's ``make_vec_env`` hands to a VecEnv class
    :param otherwise: the class for the environments of others
    :param kwargs: arguments of that class
    :raises ValueError: our environments in a wrapper for single environments
    """
    spec = _spec_of(env_fns[0])
    if spec is None or not is_isaac_env_id(spec.id):
        return otherwise(env_fns, **kwargs)  # type: ignore[arg-type, call-arg]
    monitor = None
    wrapper = env_fns[0]()  # made for its wrappers and its monitor file: it never simulates
    while isinstance(wrapper, gym.Wrapper):
        if isinstance(wrapper, Monitor):
            monitor = wrapper
        elif type(wrapper).__module__.split(".")[0] != "gymnasium":
            raise ValueError(
                f"env_wrapper {type(wrapper).__name__} wraps single environments, and here {len(env_fns)} of them are one "
                "batch: use a VecEnvWrapper (key vec_env_wrapper) instead."
            )
        wrapper = wrapper.env
    env: IsaacVecEnv = wrapper.make_batched(len(env_fns))
    if monitor is not None and monitor.results_writer is not None:
        env.results_writer, env.t_start = monitor.results_writer, monitor.t_start
    return env


def _spec_of(env_fn: Callable[[], Any]) -> Optional[EnvSpec]:
    """The spec that a function made by SB3's ``make_vec_env`` on behalf of rl_zoo3 would build, without building it."""
    make_env = inspect.getclosurevars(env_fn).nonlocals.get("env_id")
    if isinstance(make_env, str):
        return gym.spec(make_env)
    spec = inspect.getclosurevars(make_env).nonlocals.get("spec") if inspect.isfunction(make_env) else None
    return spec if isinstance(spec, EnvSpec) else None
