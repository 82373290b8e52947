"""One batch of our environments where rl_zoo3 and SB3 would make a VecEnv of single ones."""

from __future__ import annotations

import inspect
from typing import Any, Callable, Optional, Sequence, Type

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

from sb3_isaac.envs.make import is_isaac_env_id
from sb3_isaac.envs.vec_env import IsaacVecEnv


class BatchedVecEnv:
    """A stand-in for a VecEnv class: given SB3's list of functions that each make a single environment, it makes one batch
    of our environments, and what rl_zoo3 would have made of any others.
    """

    otherwise: Type[VecEnv] = SubprocVecEnv

    def __new__(cls, env_fns: Sequence[Callable[[], gym.Env]], **kwargs: Any) -> VecEnv:  # type: ignore[misc, type-arg]
        spec = _spec_of(env_fns[0])
        if spec is None or not is_isaac_env_id(spec.id):
            return cls.otherwise(env_fns, **kwargs)  # type: ignore[arg-type, call-arg]
        probe = env_fns[0]()  # made for its wrappers and its monitor file: it never simulates
        monitor = None
        wrapper: Any = probe
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


class BatchedDummyVecEnv(BatchedVecEnv):
    """As :class:`BatchedVecEnv`, in the place of DummyVecEnv."""

    otherwise = DummyVecEnv


def _spec_of(env_fn: Callable[[], gym.Env]) -> Optional[EnvSpec]:  # type: ignore[type-arg]
    """The spec that a function made by SB3's ``make_vec_env`` on behalf of rl_zoo3 would build, without building it."""
    make_env = inspect.getclosurevars(env_fn).nonlocals.get("env_id")
    if isinstance(make_env, str):
        return gym.spec(make_env)
    spec = inspect.getclosurevars(make_env).nonlocals.get("spec") if inspect.isfunction(make_env) else None
    return spec if isinstance(spec, EnvSpec) else None
