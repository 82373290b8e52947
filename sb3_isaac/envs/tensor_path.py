"""The tensor path of VecEnvs: which wrappers have it, and what to do about the others."""

from __future__ import annotations

from typing import Any, List, Tuple, Type

from stable_baselines3.common import vec_env as sb3

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


def check_tensor_path(env: Any) -> bool:
    """Whether an algorithm should train on ``env`` in tensors. It should call this before it starts.

    :param env: a VecEnv, wrapped or not
    :return: True: use ``reset_tensor`` and ``step_tensor``. False: no IsaacVecEnv inside, behave as SB3.
    :raises ValueError: if a wrapper would force an IsaacVecEnv onto SB3's slow path; the message says what to do
    """
    inner = env.unwrapped if isinstance(env, sb3.VecEnv) else env
    if supports_tensors(env) or not supports_tensors(inner):
        return supports_tensors(env)
    while getattr(type(env), "tensor_path", False):
        env = env.venv
    way_out = next((text for wrapper, text in WAYS_OUT if isinstance(env, wrapper)), OWN_WRAPPER)
    raise ValueError(
        f"{type(env).__name__} has no tensor path and would slow training down many times: {way_out}. "
        "With the algorithms of stable_baselines3 itself it works as it is."
    )


def forward_tensor_path(wrapper: sb3.VecEnvWrapper) -> None:
    """Give ``wrapper`` the :data:`FORWARDED` attributes of the environment inside.

    Not left to ``VecEnvWrapper.__getattr__``, which takes some 20 microseconds per access. They can be attributes
    because an environment on the tensor path updates ``dones`` and the episode statistics in place.
    """
    for name in FORWARDED:
        setattr(wrapper, name, getattr(wrapper.venv, name))
