"""The embedded simulator: Isaac Gym's cartpole in plain torch, batched, on any device. Its physics is ``physics.py``."""

from __future__ import annotations

import functools
import sys
from typing import Any, Dict, Optional, Tuple

import torch as th

from sb3_isaac._torchscript import call, made
from sb3_isaac.backends.base import StepResult
from sb3_isaac.backends.cartpole import CartpoleTask, CartpoleTensorEnv, finish_randomized_step, finish_step
from sb3_isaac.backends.fused_cartpole import advance_in_c, advance_in_triton, has_its_own, why_not_in_c
from sb3_isaac.backends.physics import integrate, integrate_each
from sb3_isaac.backends.randomize import Drawn, Draws, applied, own_values, push


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
                constant = graph.insertConstant(th.tensor(number, device="cpu"))
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
    shapes = ((n, 4), (n,), (n, 1), (n, 4), (4,))
    kinds = (th.float32, th.int64, th.float32, th.float32, th.float32)
    example = tuple(th.zeros(shape, dtype=kind, device="cpu") for shape, kind in zip(shapes, kinds))

    def make() -> Any:
        script = th.jit.trace(step, example, check_trace=False)  # type: ignore[no-untyped-call]
        _spare_calls(script.graph)
        return script

    return made(make)


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
        return self.in_triton and not has_its_own(self.task)

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
