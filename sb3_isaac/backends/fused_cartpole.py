"""A whole step of the cartpole in one call: in C on a CPU (``cartpole.c``), in one Triton kernel on a GPU (``kernels.py``).

The plain path that does the same is ``advance`` in ``torch_cartpole.py``; results differ from its by rounding.
"""

from __future__ import annotations

import ctypes
import functools
from contextlib import nullcontext
from typing import Any, Dict, Optional, Tuple

import torch as th

from sb3_isaac._native import library, why_not_library
from sb3_isaac.backends.base import StepResult
from sb3_isaac.backends.cartpole import CartpoleTask
from sb3_isaac.backends.physics import Coefficients, coefficients

BLOCK = 128
"""Cartpoles in a block of Triton's kernel"""
LIMITS = ("max_effort", "reset_dist", "reset_angle")


class _Task(ctypes.Structure):
    """cartpole_task of cartpole.c: what follows from the task's parameters."""

    _fields_ = [  # as ctypes wants it
        *((name, ctypes.c_float) for name in (*Coefficients._fields, *LIMITS)),
        ("substeps", ctypes.c_int32),
        ("max_episode_length", ctypes.c_int64),
    ]


@functools.lru_cache(maxsize=32)
def numbers(task: CartpoleTask) -> Dict[str, Any]:
    """Of a task, for the kernels of a whole step."""
    found = {**coefficients(task, task.dt, task.substeps)._asdict(), **{name: getattr(task, name) for name in LIMITS}}
    found = {name: float(value) for name, value in found.items()}  # to Triton 8 is another type than 8.0
    return {**found, "substeps": task.substeps, "max_episode_length": task.max_episode_length}


@functools.lru_cache(maxsize=32)
def _task_for_c(task: CartpoleTask) -> _Task:
    return _Task(**numbers(task))


def has_its_own(task: CartpoleTask) -> bool:
    """Whether a task has what no kernel knows."""
    return task.reward is not None or task.termination is not None or task.randomize is not None


def why_not_in_c(task: CartpoleTask) -> Optional[str]:
    """What keeps a step from :func:`advance_in_c`; None: nothing."""
    if has_its_own(task):
        return "the task has a reward, a termination or a randomisation of its own"
    return why_not_library()


def advance_in_c(
    dof_state: th.Tensor,
    progress: th.Tensor,
    actions: th.Tensor,
    uniform: th.Tensor,
    reset_width: th.Tensor,
    task: CartpoleTask,
) -> Tuple[StepResult, th.Tensor]:
    """:func:`advance` on a CPU in one call, see ``cartpole.c``. Results differ by rounding."""
    n, tensors, result, force = _arguments(dof_state, progress, actions, uniform, reset_width)
    library().cartpole_step(ctypes.byref(_task_for_c(task)), n, *(tensor.data_ptr() for tensor in tensors))
    return result, force


def advance_in_triton(
    dof_state: th.Tensor,
    progress: th.Tensor,
    actions: th.Tensor,
    uniform: th.Tensor,
    reset_width: th.Tensor,
    task: CartpoleTask,
) -> Tuple[StepResult, th.Tensor]:
    """:func:`advance` in one kernel, see ``kernels.py``. Results differ by rounding."""
    from sb3_isaac.backends import kernels

    n, tensors, result, force = _arguments(dof_state, progress, actions, uniform, reset_width)
    # Triton takes the current GPU
    with th.cuda.device(dof_state.device) if dof_state.is_cuda else nullcontext():
        kernels.cartpole_step[(-(-n // BLOCK),)](*tensors, n, **numbers(task), BLOCK=BLOCK)
    return result, force


def _arguments(
    dof_state: th.Tensor, progress: th.Tensor, actions: th.Tensor, uniform: th.Tensor, reset_width: th.Tensor
) -> Tuple[int, Tuple[th.Tensor, ...], StepResult, th.Tensor]:
    """Of the step in C and in Triton: how many cartpoles, all tensors in order, and those of them that are results."""
    n = len(dof_state)
    actions = actions[:, 0].to(th.float32).expand(n).contiguous()
    final_obs, obs = dof_state.new_empty(2, n, 4).unbind(0)
    reward, force = dof_state.new_empty(2, n).unbind(0)
    terminated, truncated = th.empty(2, n, dtype=th.bool, device=dof_state.device).unbind(0)
    tensors = (dof_state, progress, actions, uniform, reset_width, final_obs, obs, reward, force, terminated, truncated)
    return n, tensors, StepResult(obs, reward, terminated, truncated, final_obs), force
