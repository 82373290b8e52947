"""What the buffers need to know about spaces, memory, devices, random generators and normalisation."""

from __future__ import annotations

import math
import mmap
from typing import Any, cast

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.utils import get_device
from stable_baselines3.common.vec_env import VecNormalize

from sb3_isaac.settings.memory import free_memory as free_memory


def float32_exact_dtype(space: spaces.Space[Any], who: str) -> th.dtype | None:
    """The dtype to which values of ``space`` are cast back after being stored as float32; None for float spaces.

    :param who: who refuses, for the error message, e.g. ``"DeviceReplayBuffer: observations"``
    :raises ValueError: if float32 cannot hold every value of ``space`` exactly
    """
    if isinstance(space, spaces.Box):
        if np.issubdtype(space.dtype, np.floating):
            return None
        largest = int(max(-int(space.low.min()), int(space.high.max())))
    elif isinstance(space, spaces.Discrete):
        largest = max(-int(space.start), int(space.start) + int(space.n) - 1)
    elif isinstance(space, spaces.MultiDiscrete):
        largest = int(np.max(np.asarray(space.nvec) + np.asarray(getattr(space, "start", 0))))
    elif isinstance(space, spaces.MultiBinary):
        largest = 1
    else:
        raise ValueError(f"{who} of type {type(space).__name__} are not supported, use SB3's own Dict buffers.")
    if largest > 2**24:
        raise ValueError(f"{who} go up to {largest}, float32 is exact only to 2**24, use SB3's own buffers.")
    return th.from_numpy(np.zeros(1, dtype=space.dtype)).dtype


def existing_device(device: th.device | str) -> th.device:
    """``device``, or the nearest one that this machine has (CPU instead of CUDA, GPU 0 instead of GPU 3)."""
    device = get_device(device)
    if device.type == "cuda" and (device.index or 0) >= th.cuda.device_count():
        return th.device("cuda")
    return device


HUGE_PAGE = 2 << 20
"""Bytes of memory that a processor's table of pages then knows by one entry in the place of 512"""


def zeros(shape: tuple[int, ...], device: th.device) -> th.Tensor:
    """As :func:`torch.zeros`, float32. On Linux large ones are in huge pages, as numpy's are: drawing from a million rows
    is a tenth faster, from ten million a fifth. As there, no memory is taken before it is written to."""
    n_bytes = 4 * math.prod(shape)
    if device.type != "cpu" or n_bytes < HUGE_PAGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return th.zeros(shape, dtype=th.float32, device=device)
    try:
        memory = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
    except OSError:  # a kernel without them; or there is no memory, which torch says better
        return th.zeros(shape, dtype=th.float32, device=device)
    return th.frombuffer(memory, dtype=th.float32).view(shape)


def save_generator(generator: th.Generator | None) -> dict[str, Any] | None:
    """What :func:`restore_generator` needs, on the CPU."""
    if generator is None:
        return None
    return {
        "device": generator.device.type,
        "state": generator.get_state().numpy(),
        "seed": generator.initial_seed(),
    }


def restore_generator(saved: dict[str, Any] | None, device: th.device) -> th.Generator | None:
    """A generator on ``device`` that goes on where the saved one was; on another kind of device it starts anew."""
    if saved is None:
        return None
    generator = th.Generator(device=device).manual_seed(saved["seed"])
    if saved["device"] == device.type:
        generator.set_state(th.from_numpy(saved["state"].copy()))
    return generator


def normalize(env: VecNormalize | None, kind: str, values: th.Tensor) -> th.Tensor:
    """``env.normalize_obs`` or ``env.normalize_reward`` for a tensor: the same numbers, on the tensor's device.

    A VecNormalize whose statistics are tensors offers ``normalize_obs_tensor`` and ``normalize_reward_tensor``, which are
    used if present. SB3's own keeps numpy statistics in float64, which have to be moved to the device.

    :param kind: "obs" or "reward"
    :param values: float32, observations (..., *obs_shape) or rewards of any shape
    """
    own = getattr(env, f"normalize_{kind}_tensor", None)
    if own is not None:
        return cast(th.Tensor, own(values))
    if env is None or not getattr(env, f"norm_{kind}"):
        return values
    if kind == "reward":
        clip = env.clip_reward
        normalized = values.double() / float(np.sqrt(env.ret_rms.var + env.epsilon))
    else:
        rms, clip = cast(Any, env.obs_rms), env.clip_obs
        mean, std = (th.as_tensor(x, device=values.device) for x in (rms.mean, np.sqrt(rms.var + env.epsilon)))
        normalized = (values - mean) / std
    return normalized.clamp(-clip, clip).to(th.float32)
