"""Adam on one flat tensor: a network of a dozen small parameters is updated in six operations in place of a hundred."""

from __future__ import annotations

import math
from typing import Any, Iterable, List, Optional, Tuple, Union

import torch as th
from torch import nn

from sb3_isaac._native import in_c, library
from sb3_isaac._torchscript import as_script
from sb3_isaac.device.cuda_graph import has_graphs


def flatten_tensors(tensors: Iterable[th.Tensor]) -> th.Tensor:
    """One flat copy of all tensors, in order."""
    return th.cat([tensor.detach().reshape(-1) for tensor in tensors])


def views_of(flat: th.Tensor, like: Iterable[th.Tensor]) -> List[th.Tensor]:
    """Views of consecutive parts of ``flat`` with the shapes of the tensors ``like``."""
    views, start = [], 0
    for tensor in like:
        views.append(flat[start : start + tensor.numel()].view(tensor.shape))
        start += tensor.numel()
    return views


def share_storage(parameters: Iterable[nn.Parameter]) -> th.Tensor:
    """Move the parameters into one flat tensor, of which they become views. Their values and identity stay."""
    parameters = list(parameters)
    flat = flatten_tensors(parameters)
    for parameter, view in zip(parameters, views_of(flat, parameters)):
        parameter.data = view
    return flat


def bring_back(parameters: Iterable[nn.Parameter], views: Iterable[th.Tensor]) -> None:
    """Move parameters that somebody has moved (``policy.to(...)``) back into the views that they were, as they are now."""
    for parameter, view in zip(parameters, views):
        if parameter.data_ptr() != view.data_ptr():
            view.copy_(parameter.data)
            parameter.data = view


def _expose(parameter: nn.Parameter, grad: th.Tensor) -> None:
    """Make ``parameter.grad`` another tensor with the memory of ``grad``: ``policy.to(...)`` moves the one that it finds."""
    if parameter.grad is None or parameter.grad.data_ptr() != grad.data_ptr():
        parameter.grad = grad.detach()


def optimizer_settings(optimizer: th.optim.Optimizer) -> List[Any]:
    """Everything but the learning rate and the parameters, which a graph of a step keeps as it was."""
    return [value for group in optimizer.param_groups for key, value in group.items() if key not in ("params", "lr")]


def clip_and_average_(
    grad: th.Tensor, exp_avg: th.Tensor, exp_avg_sq: th.Tensor, beta1: float, beta2: float, max_norm: float
) -> None:
    """Clip the gradient to a norm as :func:`torch.nn.utils.clip_grad_norm_` and take it into Adam's averages, all in place.

    :param max_norm: the largest norm of the gradient, which is scaled down to it; infinity: any
    """
    if math.isfinite(max_norm):
        grad.mul_((max_norm / (th.linalg.vector_norm(grad) + 1e-6)).clamp_(max=1.0))
    exp_avg.lerp_(grad, 1.0 - beta1)
    exp_avg_sq.mul_(beta2).addcmul_(grad, grad, value=1.0 - beta2)


def clip_and_step_(
    flat: th.Tensor,
    grad: th.Tensor,
    exp_avg: th.Tensor,
    exp_avg_sq: th.Tensor,
    steps: th.Tensor,
    lr: Union[float, th.Tensor],
    betas: Tuple[float, float],
    eps: float,
    max_norm: float,
) -> None:
    """:func:`clip_and_average_` and a step of Adam, with its step count on the device, where a graph can count.

    :param steps: () how many steps this makes
    :param lr: learning rate, a number or ()
    """
    clip_and_average_(grad, exp_avg, exp_avg_sq, betas[0], betas[1], max_norm)
    denominator = exp_avg_sq.sqrt().div_((1.0 - betas[1] ** steps) ** 0.5).add_(eps)
    flat.sub_(exp_avg.div(denominator).mul_(lr / (1.0 - betas[0] ** steps)))


def clip_and_step_counted_(
    flat: th.Tensor,
    grad: th.Tensor,
    exp_avg: th.Tensor,
    exp_avg_sq: th.Tensor,
    steps: float,
    lr: float,
    lr_tensor: Optional[th.Tensor],
    beta1: float,
    beta2: float,
    eps: float,
    max_norm: float,
) -> None:
    """:func:`clip_and_step_` where the host counts: faster on a CPU, and fit for TorchScript.

    :param lr_tensor: () in the place of ``lr``, or None
    """
    clip_and_average_(grad, exp_avg, exp_avg_sq, beta1, beta2, max_norm)
    denominator = exp_avg_sq.sqrt().div_((1.0 - beta2**steps) ** 0.5).add_(eps)
    if lr_tensor is None:
        flat.addcdiv_(exp_avg, denominator, value=-(lr / (1.0 - beta1**steps)))
    else:
        flat.sub_(exp_avg.div(denominator).mul_(lr_tensor / (1.0 - beta1**steps)))


class FlatAdam:
    """The arithmetic of :class:`torch.optim.Adam` on flat tensors that back the optimizer's own parameters and state.

    The torch optimizer remains the owner: its ``state_dict`` (after :meth:`sync`), parameters and gradients are views of
    the flat tensors, so saving, loading and SB3's ``set_parameters`` work as ever.

    Source: Kingma and Ba, https://arxiv.org/abs/1412.6980

    :param optimizer: an optimizer for which :meth:`supports` is true
    :param compiled: make one or two kernels of a step on a GPU; C on a CPU, if it can be had
    :param scripted: on a CPU a step is TorchScript, which pays off after some hundred of them
    """

    def __init__(self, optimizer: th.optim.Optimizer, compiled: bool = False, scripted: bool = False) -> None:
        self.optimizer = optimizer
        self.parameters: List[nn.Parameter] = list(optimizer.param_groups[0]["params"])
        self.flat = share_storage(self.parameters)
        self.grad, self.exp_avg, self.exp_avg_sq = (th.zeros_like(self.flat) for _ in range(3))
        # The step count is a tensor on a GPU, so that a captured CUDA graph counts on; a number is faster elsewhere.
        self.steps: Union[float, th.Tensor] = th.zeros((), device=self.flat.device) if has_graphs(self.flat.device) else 0.0
        self._steps_at_sync, self._version = 0.0, 0
        tensors = (self.flat, self.grad, self.exp_avg, self.exp_avg_sq)
        self._views = list(zip(self.parameters, *(views_of(tensor, self.parameters) for tensor in tensors)))
        on_gpu = compiled and self.flat.is_cuda
        self._clip_and_step: Any = th.compile(clip_and_step_, dynamic=False) if on_gpu else clip_and_step_
        self._native: Any = None
        if in_c(compiled, self.flat.device):
            self._native = library().adam_step
        scripted = scripted and not self.flat.is_cuda and self._native is None
        self._clip_and_step_counted: Any = as_script(clip_and_step_counted_) if scripted else clip_and_step_counted_
        self.gradients = {parameter: grad for parameter, _, grad, _, _ in self._views}
        """The memory of ``parameter.grad`` of each after :meth:`refresh`"""
        self.values = {parameter: flat for parameter, flat, _, _, _ in self._views}
        """Where each parameter is after :meth:`refresh`"""
        self._bind()

    @staticmethod
    def supports(optimizer: th.optim.Optimizer) -> bool:
        """Plain Adam with one group of float32 parameters on one device, all stepped equally often, without variants."""
        if type(optimizer) is not th.optim.Adam or len(optimizer.param_groups) != 1:
            return False
        if any(callable(value) and hasattr(th.optim.Adam, name) for name, value in vars(optimizer).items()):
            return False  # patched methods
        group = optimizer.param_groups[0]
        if group["weight_decay"] or group["amsgrad"] or group.get("maximize") or group.get("capturable"):
            return False
        parameters = group["params"]
        shared = len({p.data_ptr() for p in parameters}) < len(parameters)
        if shared or any(not p.is_cuda and p.is_shared() for p in parameters):
            return False  # moved, they would come loose from those who share their memory
        hooks = [value for name, value in vars(optimizer).items() if name.startswith("_optimizer_step_")]
        states = [optimizer.state.get(p) for p in parameters]
        kinds = {(p.dtype, p.device, float(state["step"]) if state else 0.0) for p, state in zip(parameters, states)}
        return len(kinds) == 1 and next(iter(kinds))[0] == th.float32 and not any(hooks)

    def _bind(self) -> None:
        state, steps = self.optimizer.state, 0.0
        for parameter, flat, grad, average, square in self._views:
            if parameter.data_ptr() != flat.data_ptr():
                flat.copy_(parameter.data)
                parameter.data = flat
            _expose(parameter, grad)
            old = state.get(parameter)
            if old:
                average.copy_(old["exp_avg"])
                square.copy_(old["exp_avg_sq"])
                steps = float(old["step"])
            else:
                average.zero_()
                square.zero_()
            state[parameter] = {"step": th.tensor(steps), "exp_avg": average, "exp_avg_sq": square}
        self._steps_at_sync, self._version = steps, 0
        if isinstance(self.steps, th.Tensor):
            self.steps.fill_(steps)
        else:
            self.steps = steps

    def refresh(self) -> bool:
        """Bind anew if somebody replaced the tensors (``load_state_dict``, ``zero_grad(set_to_none=True)``).

        To be called before a series of updates. The flat tensors stay where they are: a captured CUDA graph goes on with the
        new values. Returns whether anything had changed.
        """
        state: Any = None
        for parameter, flat, grad, average, square in self._views:
            state = self.optimizer.state.get(parameter)
            same = state and state["exp_avg"] is average and state["exp_avg_sq"] is square
            if not same or parameter.data_ptr() != flat.data_ptr():
                self._bind()
                return True
            _expose(parameter, grad)
        if state["step"]._version != self._version:  # somebody else wrote it
            self._bind()
            return True
        return False

    def clip_and_step(self, max_norm: Optional[float], lr: Union[float, th.Tensor, None] = None) -> None:
        """One update of all parameters from their gradients, see :func:`clip_and_step_`.

        :param lr: learning rate; default: the optimizer's
        """
        group = self.optimizer.param_groups[0]
        lr = group["lr"] if lr is None else lr
        max_norm = math.inf if max_norm is None else float(max_norm)
        self.steps += 1
        tensors = self.flat, self.grad, self.exp_avg, self.exp_avg_sq
        if isinstance(self.steps, th.Tensor):
            self._clip_and_step(*tensors, self.steps, lr, tuple(group["betas"]), group["eps"], max_norm)
            return
        if self._native is not None:
            addresses = [tensor.data_ptr() for tensor in tensors]
            settings = [float(value) for value in (self.steps, lr, *group["betas"], group["eps"], max_norm)]
            self._native(*addresses, self.flat.numel(), *settings)
            return
        rates = (0.0, lr) if isinstance(lr, th.Tensor) else (float(lr), None)
        betas = [float(beta) for beta in group["betas"]]
        self._clip_and_step_counted(*tensors, self.steps, *rates, *betas, float(group["eps"]), max_norm)

    def sync(self, n_steps: int) -> None:
        """Write the step count into the torch optimizer's state. To be called after a series of updates.

        :param n_steps: steps since the last time; the host knows without asking the device
        """
        self._steps_at_sync += n_steps
        self._version += 1
        for parameter, *_ in self._views:
            self.optimizer.state[parameter]["step"].fill_(self._steps_at_sync)
