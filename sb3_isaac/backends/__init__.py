"""Simulators behind one small tensor contract (:mod:`sb3_isaac.backends.base`).

A backend is one class and one entry in :data:`BACKENDS`.
"""

from __future__ import annotations

import functools
import logging
import os
from typing import Any, Callable, Dict, Optional, Union

import torch as th

from sb3_isaac.backends import probe
from sb3_isaac.backends.base import StepResult, TensorEnv
from sb3_isaac.backends.torch_cartpole import TorchCartpole
from sb3_isaac.settings.check import check
from sb3_isaac.settings.memory import check_envs

__all__ = ["BACKENDS", "StepResult", "TensorEnv", "TorchCartpole", "check_name", "make", "reserve", "resolve_device"]

logger = logging.getLogger(__name__)


def _make_isaacgym(n_envs: int, device: th.device, seed: Optional[int] = None, **kwargs: Any) -> TensorEnv:
    problem = probe.why_not(device)
    if problem is not None:
        raise RuntimeError(probe.CANNOT + problem)
    try:
        from sb3_isaac.backends.isaacgym_cartpole import IsaacGymCartpole
    except Exception as error:  # gymtorch is compiled here
        raise RuntimeError(probe.CANNOT + probe.explain(str(error))) from error
    return IsaacGymCartpole(n_envs, device, seed, **kwargs)


BACKENDS: Dict[str, Callable[..., TensorEnv]] = {"torch": TorchCartpole, "isaacgym": _make_isaacgym}


def check_name(name: str) -> None:
    """:raises ValueError: if there is no backend of this name, and it is not "auto" """
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"Unknown backend {name!r}: choose one of {', '.join(sorted(BACKENDS))} or auto.")


def resolve_device(device: Union[th.device, str] = "auto") -> th.device:
    """The torch device that ``device`` names; "auto" is CUDA where it works, else the CPU, as in SB3.

    :raises ValueError: if the name is not a device, or this machine has no such device
    """
    if device == "auto":
        return th.device("cuda" if th.cuda.is_available() else "cpu")
    try:
        resolved = th.device(device)
        th.empty(0, device=resolved)
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as error:
        n_cuda = th.cuda.device_count() if th.cuda.is_available() else 0
        found = ", ".join(["cpu"] + [f"cuda:{i}" for i in range(n_cuda)])
        raise ValueError(f"Device {str(device)!r} cannot be used; devices found here: {found}.") from error
    return resolved


def make(
    name: str = "auto",
    n_envs: int = 1,
    device: Union[th.device, str] = "auto",
    seed: Optional[int] = None,
    **task_kwargs: Any,
) -> TensorEnv:
    """Make N cartpoles on the simulator called ``name``.

    :param name: "torch" (embedded, runs everywhere), "isaacgym" (NVIDIA Isaac Gym Preview 4) or "auto": Isaac Gym where it
        was imported before torch and the device is CUDA, else torch; the log says which and why
    :param n_envs: number of environments, at least 1
    :param device: torch device, or "auto"
    :param seed: seed of the reset states; None draws one
    :param task_kwargs: parameters of the task, see :class:`~sb3_isaac.backends.cartpole.CartpoleTask`
    :raises ValueError: unknown backend or device, n_envs below 1, a task parameter out of range
    :raises TypeError: unknown task parameter
    :raises MemoryError: more environments than there is memory for; the message has the numbers
    :raises RuntimeError: Isaac Gym cannot be used; the message says why and what to do
    """
    check("env", {"n_envs": n_envs})
    check_name(name)
    resolved = resolve_device(device)
    check_envs(n_envs, resolved)
    if name == "auto":
        name, why = probe.choose(resolved)
        _log_once(f"backend='auto' is {name!r} here: {why}")
    return BACKENDS[name](n_envs=n_envs, device=resolved, seed=seed, **task_kwargs)


@functools.lru_cache(maxsize=None)
def _log_once(message: str) -> None:
    """Every environment of a run asks the same question."""
    logger.info(message)


def reserve(n_envs: int) -> None:
    """Say how many environments this process will need at most in one batch, before the first step.

    Isaac Gym's simulator cannot grow, and PhysX allows one per process: a run whose later environments are larger than its
    first ones (a hyperparameter search, for instance) says so here. Costs nothing with other backends.
    """
    os.environ[probe.SIM_ENVS_VARIABLE] = str(max(n_envs, probe.reserved_envs()))
