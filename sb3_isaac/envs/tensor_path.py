"""The tensor path of VecEnvs: which wrappers have it, and what to do about the others."""

from __future__ import annotations

from typing import Any, List, Mapping, Optional, Tuple, Type

import torch as th
from stable_baselines3.common import vec_env as sb3

from sb3_isaac.device.host import same_device

TensorVecEnv = Any  # until the Protocol is here
FORWARDED = (
    "device", "tensor_env", "dones", "episode_returns", "episode_lengths",
    "make_infos", "log_episodes", "spread_time_limits",
)  # fmt: skip
"""What a wrapper on the tensor path offers unchanged from the environment inside, next to its own ``reset_tensor``,
``step_tensor`` and ``obs_tensor``."""

WAYS_OUT: List[Tuple[Type[sb3.VecEnvWrapper], str]] = [
    (sb3.VecNormalize, "use sb3_isaac.VecNormalize, which has the same arguments and the same files"),
    (sb3.VecFrameStack, "use sb3_isaac.VecFrameStack, which has the same arguments"),
    (
        sb3.VecMonitor,
        "leave it out: the environment reports its episodes itself and make_vec_env(..., monitor_dir=...) writes monitor.csv",
    ),
    (sb3.VecCheckNan, "leave it out: the algorithms of sb3_isaac stop at NaN by themselves"),
    (sb3.VecVideoRecorder, "record a separate environment after training, or one that is only used for evaluation"),
    (sb3.VecTransposeImage, "leave it out: the observations are no images"),
    (sb3.VecExtractDictObs, "leave it out: the observations are no dicts"),
]
"""What to do about SB3's wrappers."""

OWN_WRAPPER = (
    "leave it out, or give its class tensor_path = True and the methods reset_tensor and step_tensor "
    "(sb3_isaac.VecFrameStack is a short example)"
)


def supports_tensors(env: Any) -> bool:
    """Whether ``env``, with every wrapper on it, can be stepped in tensors (see :meth:`IsaacVecEnv.step_tensor`)."""
    # VecEnvWrapper passes unknown attributes on to the env inside: a wrapper must say for itself that it supports tensors.
    while isinstance(env, sb3.VecEnvWrapper):
        if not getattr(type(env), "tensor_path", False):
            return False
        env = env.venv
    return bool(getattr(env, "tensor_path", False))


def wrapper_without_tensors(env: Any) -> Optional[str]:
    """Which wrapper keeps an IsaacVecEnv inside ``env`` from being stepped in tensors, and what to do about it.

    :return: None if there is no IsaacVecEnv inside, or nothing is in the way
    """
    inner = env.unwrapped if isinstance(env, sb3.VecEnv) else env
    if supports_tensors(env) or not supports_tensors(inner):
        return None
    while getattr(type(env), "tensor_path", False):
        env = env.venv
    way_out = next((text for wrapper, text in WAYS_OUT if isinstance(env, wrapper)), OWN_WRAPPER)
    return (
        f"{type(env).__name__} has no tensor path and would slow training down many times: {way_out}. "
        "With the algorithms of stable_baselines3 itself it works as it is."
    )


def why_not_tensors(env: Any, device: th.device) -> Optional[str]:
    """What keeps an algorithm on ``device`` from training on ``env`` in tensors; None: nothing does.

    :param env: a VecEnv, wrapped or not, or None
    """
    if not supports_tensors(env):
        return wrapper_without_tensors(env) or "The environment is no IsaacVecEnv (sb3_isaac.make_vec_env)."
    if not same_device(env.device, device):
        return f"The environment is on {env.device} and the model on {device}: give both the same device."
    return None


def check_tensors(env: Any, why_not: Optional[str], options: Mapping[str, bool]) -> bool:
    """Whether an algorithm trains in tensors, asked before it starts, when what cannot work has to be said.

    :param why_not: from :func:`why_not_tensors`, or what else keeps the algorithm from it
    :param options: those that exist in tensors only, and whether they are in use
    :raises ValueError: if an IsaacVecEnv would be trained on in numpy, many times slower, or one of ``options`` be ignored
    """
    if why_not is None:
        return True
    if supports_tensors(env.unwrapped if isinstance(env, sb3.VecEnv) else env):
        raise ValueError(why_not)
    used = [name for name, in_use in options.items() if in_use]
    if used:
        raise ValueError(f"{', '.join(used)} needs an IsaacVecEnv (sb3_isaac.make_vec_env): leave it out elsewhere.")
    return False


def layers(env: Any) -> List[Any]:
    """The wrappers, the VecEnv and the simulator: what a step of ``env`` changes."""
    found = [env]
    while isinstance(found[-1], sb3.VecEnvWrapper):
        found.append(found[-1].venv)
    return [*found, env.tensor_env]


def generators(env: Any) -> List[th.Generator]:
    """The random generators that a step of ``env`` draws from, besides torch's default."""
    generator = getattr(env.tensor_env, "generator", None)
    return [] if generator is None else [generator]


def forward_tensor_path(wrapper: sb3.VecEnvWrapper) -> None:
    """Give ``wrapper`` the :data:`FORWARDED` attributes of the environment inside.

    Not left to ``VecEnvWrapper.__getattr__``, which takes some 20 microseconds per access. They can be attributes
    because an environment on the tensor path updates ``dones`` and the episode statistics in place.
    """
    for name in FORWARDED:
        setattr(wrapper, name, getattr(wrapper.venv, name))
