"""The embedded simulator: Isaac Gym's cartpole in plain torch, batched, on any device.

The arithmetic is PhysX's, not a textbook's: measured against PhysX 5 itself and against a log of real Isaac Gym
(tests/data/README.md says how, tests/test_physics.py holds the numbers). Do not "improve" the integrator: where PhysX
differs from continuous time, that difference is part of the task.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from contextlib import nullcontext
from typing import Any, Dict, NamedTuple, Optional, Tuple

import torch as th

from sb3_isaac._native import library, why_not_library
from sb3_isaac._torchscript import call, made
from sb3_isaac.backends.base import StepResult
from sb3_isaac.backends.cartpole import (
    POLE_COM,
    CartpolePhysics,
    CartpoleTask,
    CartpoleTensorEnv,
    box_inertia,
    finish_randomized_step,
    finish_step,
)
from sb3_isaac.backends.randomize import Drawn, Draws, applied, own_values, push

DEFAULT_PHYSICS = CartpolePhysics()
BLOCK = 128
"""Cartpoles in a block of Triton's kernel"""


class Coefficients(NamedTuple):
    """What the equations of :func:`integrate` are made of. With b = m l cos(angle) and D = M J - b^2 they are

        f = F - m l sin(angle) w^2        torque = m l g sin(angle) - damping w
        dv = (J f + b torque) / D         dw = (b f + M torque) / D

    for a total mass M, a pole of mass m whose centre is at l, and its inertia J about the joint. The code divides torque by
    m l g, D by M J, and what dv and dw multiply it with by J and by m l: that takes half the operations."""

    h: float
    """Duration of a physics step, in seconds"""
    max_cart_speed: float
    max_pole_speed: float
    pole_moment: float
    """m l"""
    torque_damping: float
    determinant: float
    cart_gain: float
    pole_gain: float
    cart_step: float
    pole_step: float
    track_limit: float
    stopped_gain: float
    """Where the cart stops dead, the pole takes the reaction: J dw = h torque - b v"""
    stopped_velocity: float


def coefficients(physics: CartpolePhysics, dt: float, substeps: int) -> Coefficients:
    """Of control steps of ``dt`` seconds in so many physics steps."""
    h, gravity = dt / substeps, physics.gravity
    total_mass = physics.cart_mass + physics.pole_mass
    pole_moment = physics.pole_mass * physics.pole_com
    joint_inertia = physics.inertia + physics.pole_mass * physics.pole_com**2
    return Coefficients(
        h=h,
        max_cart_speed=physics.max_cart_speed,
        max_pole_speed=physics.max_pole_speed,
        pole_moment=pole_moment,
        torque_damping=physics.angular_damping * physics.inertia / (pole_moment * gravity),
        determinant=pole_moment**2 / (total_mass * joint_inertia),
        cart_gain=pole_moment**2 * gravity / joint_inertia,
        pole_gain=total_mass * gravity,
        cart_step=h / total_mass,
        pole_step=h * pole_moment / (total_mass * joint_inertia),
        track_limit=physics.track_limit,
        stopped_gain=h * pole_moment * gravity / joint_inertia,
        stopped_velocity=-pole_moment / joint_inertia,
    )


def integrate(
    dof_state: th.Tensor,
    force: th.Tensor,
    dt: float = 0.0166,
    substeps: int = 2,
    physics: CartpolePhysics = DEFAULT_PHYSICS,
) -> th.Tensor:
    """One control step of the cartpole, as PhysX computes it.

    :param dof_state: (N, 4) float32: cart position (m), cart velocity (m/s), pole angle (rad), pole velocity (rad/s)
    :param force: (N,) float32, on the cart, in newtons. A positive force pushes the cart to its positive side and raises
        both velocities.
    :param dt: duration of the control step, in seconds
    :param substeps: physics steps that it is divided into
    :param physics: masses, lengths and limits
    :return: (N, 4) float32, the next state
    """
    x, v, angle, w = dof_state.unbind(-1)
    one = dof_state.new_ones(())
    c = coefficients(physics, dt, substeps)
    for _ in range(substeps):
        # Both joints are slowed by one common factor: a fast pole slows the cart.
        excess = th.maximum(v.abs() / c.max_cart_speed, w.abs() / c.max_pole_speed).clamp(min=1.0)
        v, w = v / excess, w / excess
        sin, cos = th.sin(angle), th.cos(angle)
        f = th.addcmul(force, sin, w * w, value=-c.pole_moment)
        torque = th.sub(sin, w, alpha=c.torque_damping)
        det = th.addcmul(one, cos, cos, value=-c.determinant)
        new_v = th.addcdiv(v, th.addcmul(f, cos, torque, value=c.cart_gain), det, value=c.cart_step)
        new_w = th.addcdiv(w, th.add(cos * f, torque, alpha=c.pole_gain), det, value=c.pole_step)
        free_x = th.add(x, new_v, alpha=c.h)
        x = free_x.clamp(-c.track_limit, c.track_limit)
        stopped = x != free_x
        stopped_w = th.add(w, torque, alpha=c.stopped_gain)
        stopped_w = th.addcmul(stopped_w, cos, v, value=c.stopped_velocity)
        w = th.where(stopped, stopped_w, new_w)
        v = new_v.masked_fill(stopped, 0.0)
        angle = th.add(angle, w, alpha=c.h)
    return th.stack((x, v, angle, w), dim=-1)


def integrate_each(
    dof_state: th.Tensor,
    force: th.Tensor,
    own: Dict[str, th.Tensor],
    dt: float = 0.0166,
    substeps: int = 2,
    physics: CartpolePhysics = DEFAULT_PHYSICS,
) -> th.Tensor:
    """:func:`integrate` of cartpoles that differ. The same equations; more operations, as constants are tensors.

    :param own: (N,) float32 each: "cart_mass" (kg), "pole_mass" (kg), "pole_length" (m), "angular_damping" (1/s); what is not
        there is as ``physics`` says
    """
    x, v, angle, w = dof_state.unbind(-1)
    h = dt / substeps
    cart_mass: Any = own.get("cart_mass", physics.cart_mass)
    pole_mass: Any = own.get("pole_mass", physics.pole_mass)
    pole_length: Any = own.get("pole_length", physics.pole_length)
    angular_damping: Any = own.get("angular_damping", physics.angular_damping)
    pole_inertia: Any = box_inertia(pole_length) if physics.pole_inertia is None else physics.pole_inertia
    pole_com = POLE_COM * pole_length
    total_mass = cart_mass + pole_mass
    pole_moment = pole_mass * pole_com
    joint_inertia = pole_inertia + pole_moment * pole_com
    damping = angular_damping * pole_inertia
    weight_moment = pole_moment * physics.gravity
    determinant = total_mass * joint_inertia
    for _ in range(substeps):
        excess = th.maximum(v.abs() / physics.max_cart_speed, w.abs() / physics.max_pole_speed).clamp(min=1.0)
        v, w = v / excess, w / excess
        sin, cos = th.sin(angle), th.cos(angle)
        b = pole_moment * cos
        f = force - pole_moment * sin * w * w
        torque = weight_moment * sin - damping * w
        h_per_det = h / (determinant - b * b)
        new_v = v + h_per_det * (joint_inertia * f + b * torque)
        new_w = w + h_per_det * (b * f + total_mass * torque)
        free_x = th.add(x, new_v, alpha=h)
        x = free_x.clamp(-physics.track_limit, physics.track_limit)
        stopped = x != free_x
        w = th.where(stopped, w + (h * torque - b * v) / joint_inertia, new_w)
        v = new_v.masked_fill(stopped, 0.0)
        angle = th.add(angle, w, alpha=h)
    return th.stack((x, v, angle, w), dim=-1)


def advance(
    dof_state: th.Tensor,
    progress: th.Tensor,
    actions: th.Tensor,
    uniform: th.Tensor,
    reset_width: th.Tensor,
    task: CartpoleTask,
) -> Tuple[StepResult, th.Tensor]:
    """One step of the task with its resets. Updates ``dof_state`` and ``progress`` in place; otherwise pure.

    :param actions: (N, 1) float32, clipped to [-1, 1]; the others as for :func:`~sb3_isaac.backends.cartpole.finish_step`
    :return: the step's result and the forces applied, (N,) in newtons
    """
    actions = actions.clamp(-1.0, 1.0)
    force = actions[:, 0] * task.max_effort
    final_obs = integrate(dof_state, force, task.dt, task.substeps, task)
    return finish_step(dof_state, progress, final_obs, uniform, reset_width, actions, task), force


def _spare_calls(graph: Any) -> None:
    """Take out of a traced graph what costs as much as arithmetic and does none; results are the same to the last bit.

    Numbers that PyTorch would make into a tensor at each call become tensors once, and ``x[:, i]`` needs no ``x[:]``.
    """
    for node in list(graph.nodes()):
        inputs = list(node.inputs())
        values = [value.toIValue() if value.node().kind() == "prim::Constant" else None for value in inputs]
        if node.kind() == "aten::slice" and values[2:] == [0, sys.maxsize, 1]:
            node.output().replaceAllUsesWith(inputs[0])
            node.destroy()
            continue
        for i, number in enumerate(values):
            compared = i == 1 and node.kind() in ("aten::gt", "aten::ge")  # what else wants a tensor has type Tensor
            if isinstance(number, (int, float)) and (compared or str(inputs[i].type()) == "Tensor"):
                constant = graph.insertConstant(th.tensor(number))
                constant.node().moveBefore(node)
                node.replaceInput(i, constant)
    graph.lint()


@functools.lru_cache(maxsize=32)
def traced(task: CartpoleTask) -> Optional[Any]:
    """:func:`advance` for a CPU, in TorchScript: the same operations with the same results to the last bit, without Python
    between them, which at a few hundred environments takes nearly half of the time. ``task`` has become a constant.

    :return: a function of the other arguments; None: there are functions of the user, or there is no TorchScript, or this
        torch's makes new kernels, which round in another way (1.13's does)
    """
    if task.reward is not None or task.termination is not None or th._C._jit_can_fuse_on_cpu():
        return None

    def step(
        dof_state: th.Tensor, progress: th.Tensor, actions: th.Tensor, uniform: th.Tensor, reset_width: th.Tensor
    ) -> Tuple[th.Tensor, ...]:
        result, force = advance(dof_state, progress, actions, uniform, reset_width, task)
        return (*result, force)

    n = 2  # any number will do
    example = (th.zeros(n, 4), th.zeros(n, dtype=th.int64), th.zeros(n, 1), th.zeros(n, 4), th.zeros(4))

    def make() -> Any:
        script = th.jit.trace(step, example, check_trace=False)  # type: ignore[no-untyped-call]
        _spare_calls(script.graph)
        return script

    return made(make)


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


def _has_its_own(task: CartpoleTask) -> bool:
    """Whether a task has what no kernel knows."""
    return task.reward is not None or task.termination is not None or task.randomize is not None


def why_not_in_c(task: CartpoleTask) -> Optional[str]:
    """What keeps a step from :func:`advance_in_c`; None: nothing."""
    if _has_its_own(task):
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


def advance_randomized(
    dof_state: th.Tensor,
    progress: th.Tensor,
    actions: th.Tensor,
    draws: Draws,
    reset_width: th.Tensor,
    task: CartpoleTask,
    drawn: Drawn,
) -> Tuple[StepResult, th.Tensor]:
    """:func:`advance` of environments that differ. Updates ``drawn`` in place, too.

    :param draws: the random numbers of this step
    :param drawn: what the environments have of their own
    """
    spec: Any = task.randomize
    actions = actions.clamp(-1.0, 1.0)
    pushed = push(dof_state, draws, drawn, spec)
    force = applied(actions, drawn, spec) * task.max_effort
    own: Any = {name: own_values(drawn, spec, name) for name in spec.of_machine}
    if own:
        final_obs = integrate_each(dof_state, force, own, task.dt, task.substeps, task)
    else:
        final_obs = integrate(dof_state, force, task.dt, task.substeps, task)
    result = finish_randomized_step(dof_state, progress, final_obs, draws, reset_width, actions, task, drawn, pushed)
    return result, force


class TorchCartpole(CartpoleTensorEnv):
    """Isaac Gym's cartpole on any torch device. :class:`CartpoleTensorEnv` has the arguments."""

    capturable = True
    in_triton = False
    """Step in Triton's kernel, which is there, unless the task has functions or a randomisation of its own"""
    _in_c = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._advance: Any
        self.uncompile()

    def __setstate__(self, state: Dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._in_c = self._in_c and why_not_in_c(self.task) is None  # this machine may have no compiler
        self.in_triton = False  # nor Triton

    def compile(self) -> None:
        if self.device.type == "cpu":  # torch.compile gains nothing there, and takes its time
            self._in_c = why_not_in_c(self.task) is None
            return
        if self._in_kernel:
            return  # spares the minute that torch.compile takes
        # a user's reward may hold what the compiler leaves to Python
        all_ours = self.task.reward is None and self.task.termination is None
        function = advance if self.drawn is None else advance_randomized
        self._advance = th.compile(function, dynamic=False, fullgraph=all_ours)

    def uncompile(self) -> None:
        """Back to the plain step."""
        self._advance, self._in_c = advance if self.drawn is None else advance_randomized, False

    @property
    def _in_kernel(self) -> bool:
        return self.in_triton and not _has_its_own(self.task)

    def step(self, actions: th.Tensor) -> StepResult:
        given = (self.dof_state, self.progress, actions)
        if self.drawn is not None:
            result, self.force = self._advance(*given, self._draws(), self.reset_width, self.task, self.drawn)
            return result  # type: ignore[no-any-return]
        tensors = (*given, self._uniform(), self.reset_width)
        if self._in_kernel:
            result, self.force = advance_in_triton(*tensors, self.task)
            return result
        if self._in_c:
            result, self.force = advance_in_c(*tensors, self.task)
            return result
        script = traced(self.task) if self.device.type == "cpu" and self._advance is advance else None
        if script is not None:
            *columns, self.force = call(script, *tensors)
            return StepResult(*columns)
        result, self.force = self._advance(*tensors, self.task)
        return result  # type: ignore[no-any-return]
