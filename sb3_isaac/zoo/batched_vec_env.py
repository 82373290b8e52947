"""One batch of our environments where rl_zoo3 and SB3 would make a VecEnv of single ones."""

from __future__ import annotations

import inspect
import warnings
from typing import Any, Callable, List, Optional, Sequence, Type

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker
from rl_zoo3.gym_patches import PatchedTimeLimit
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_isaac.envs.make import is_isaac_env_id
from sb3_isaac.envs.vec_env import IsaacVecEnv

TIME_LIMITS = PatchedTimeLimit.__mro__[:2]
"""rl_zoo3's, which it puts into Gymnasium's place, and Gymnasium's."""


def batched_vec_env(env_fns: Sequence[Callable[[], Any]], otherwise: Type[VecEnv] = DummyVecEnv, **kwargs: Any) -> VecEnv:
    """In the place of a VecEnv class: given SB3's list of functions that each make a single environment, one batch of them.

    Wrappers that do something to single environments cannot wrap a batch: with them, the environments stay single.

    :param env_fns: what SB3's ``make_vec_env`` hands to a VecEnv class
    :param otherwise: the class for the environments of others, and for ours in such a wrapper
    :param kwargs: arguments of that class
    :raises ValueError: the monitor is told to report what the environment does not have
    """
    spec = _spec_of(env_fns[0])
    if spec is None or not is_isaac_env_id(spec.id):
        return otherwise(env_fns, **kwargs)  # type: ignore[arg-type, call-arg]
    first = env_fns[0]()  # made for its wrappers and its monitor file: it never simulates
    wrappers: List[Any] = []
    single = first
    while isinstance(single, gym.Wrapper):
        wrappers.append(single)
        single = single.env
    names = [name for name in map(_single_only, reversed(wrappers)) if name is not None]
    if names:
        first.close()
        warnings.warn(
            f"{', '.join(names)} can only wrap single environments, which are stepped one by one: many times slower than a "
            "batch. A VecEnvWrapper (key vec_env_wrapper) keeps the batch.",
            stacklevel=2,
        )
        return otherwise(env_fns, **kwargs)  # type: ignore[arg-type, call-arg]
    limits = [wrapper._max_episode_steps for wrapper in wrappers if type(wrapper) in TIME_LIMITS]
    env: IsaacVecEnv = single.make_batched(len(env_fns), max_episode_steps=min(limits, default=None))
    for wrapper in wrappers:
        if isinstance(wrapper, Monitor):
            _check_keywords(wrapper)
            if wrapper.results_writer is not None:
                env.results_writer, env.t_start = wrapper.results_writer, wrapper.t_start
    return env


def _single_only(wrapper: Any) -> Optional[str]:
    """The name of a wrapper that a batch cannot do the work of; None: it is one of gym.make's, or SB3's Monitor."""
    if type(wrapper) is Monitor:
        return None if wrapper.allow_early_resets else "Monitor(allow_early_resets=False)"
    return None if type(wrapper) in (OrderEnforcing, PassiveEnvChecker, *TIME_LIMITS) else type(wrapper).__name__


def _check_keywords(monitor: Monitor) -> None:
    """:raises ValueError: the monitor is told to report what the environment does not have"""
    for name in ("info_keywords", "reset_keywords"):
        keywords = getattr(monitor, name)
        if keywords:
            raise ValueError(
                f"monitor_kwargs has {name}={keywords!r}, which the environment knows nothing of: leave {name} out."
            )


def _spec_of(env_fn: Callable[[], Any]) -> Optional[EnvSpec]:
    """The spec that a function made by SB3's ``make_vec_env`` on behalf of rl_zoo3 would build, without building it."""
    make_env = inspect.getclosurevars(env_fn).nonlocals.get("env_id")
    if isinstance(make_env, str):
        return gym.spec(make_env)
    spec = inspect.getclosurevars(make_env).nonlocals.get("spec") if inspect.isfunction(make_env) else None
    return spec if isinstance(spec, EnvSpec) else None
