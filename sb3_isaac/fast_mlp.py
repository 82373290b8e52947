"""Small multi-layer perceptrons without autograd: preallocated buffers, in place, few passes over memory.

For networks of two layers of 64 units autograd spends more time on bookkeeping and on fresh temporaries than on
arithmetic. The formulas are the ones autograd would use (the very same ATen kernels for the activations), so results
differ from it by rounding only.
"""

from __future__ import annotations

from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple, Type

import torch as th
from torch import nn

_aten = th.ops.aten


def _linear_(h: th.Tensor) -> None:
    """No activation."""


def _elu_(h: th.Tensor) -> None:
    th.nn.functional.elu_(h)


def _leaky_relu_(h: th.Tensor) -> None:
    th.nn.functional.leaky_relu_(h)


def _tanh_backward(grad: th.Tensor, out: th.Tensor) -> None:
    _aten.tanh_backward.grad_input(grad, out, grad_input=grad)


def _relu_backward(grad: th.Tensor, out: th.Tensor) -> None:
    _aten.threshold_backward.grad_input(grad, out, 0.0, grad_input=grad)


def _elu_backward(grad: th.Tensor, out: th.Tensor) -> None:
    _aten.elu_backward.grad_input(grad, 1.0, 1.0, 1.0, True, out, grad_input=grad)


def _leaky_relu_backward(grad: th.Tensor, out: th.Tensor) -> None:
    _aten.leaky_relu_backward.grad_input(grad, out, 0.01, True, grad_input=grad)


def _linear_backward(grad: th.Tensor, out: th.Tensor) -> None:
    """No activation."""


# Activation: in-place forward, and in-place backward from the layer's output.
_ACTIVATIONS: Dict[Type[nn.Module], Tuple[Any, Any]] = {
    nn.Identity: (_linear_, _linear_backward),
    nn.Tanh: (th.tanh_, _tanh_backward),
    nn.ReLU: (th.relu_, _relu_backward),
    nn.ELU: (_elu_, _elu_backward),
    nn.LeakyReLU: (_leaky_relu_, _leaky_relu_backward),
}


def _is_plain(activation: nn.Module) -> bool:
    """The activation has the parameters that the formulas above assume."""
    if type(activation) is nn.ELU:
        return activation.alpha == 1.0
    if type(activation) is nn.LeakyReLU:
        return activation.negative_slope == 0.01
    return type(activation) in _ACTIVATIONS


def parse_layers(modules: Iterable[nn.Module]) -> Optional[List[Tuple[nn.Linear, Type[nn.Module]]]]:
    """Pair each Linear with the activation that follows it; None if there is anything else among the modules.

    :param modules: modules in the order they are applied; Flatten, Identity and nested Sequential are looked through
    """
    layers: List[Tuple[nn.Linear, Type[nn.Module]]] = []
    stack = list(modules)
    while stack:
        module = stack.pop(0)
        if isinstance(module, nn.Sequential):
            stack = [*module, *stack]
        elif isinstance(module, nn.Linear) and module.bias is not None:
            layers.append((module, nn.Identity))
        elif isinstance(module, (nn.Flatten, nn.Identity)):
            continue
        elif layers and layers[-1][1] is nn.Identity and _is_plain(module):
            layers[-1] = (layers[-1][0], type(module))
        else:
            return None
    return layers or None


class FastMLP:
    """Forward and backward passes of Linear layers and activations, on buffers that are allocated once.

    The parameters stay those of the modules. Gradients are written into ``parameter.grad``, which must exist (see
    :class:`~sb3_isaac.flat_adam.FlatAdam`). Call under ``torch.no_grad()``.

    :param layers: from :func:`parse_layers`
    :param max_batch: rows of the buffers
    """

    def __init__(self, layers: Sequence[Tuple[nn.Linear, Type[nn.Module]]], max_batch: int) -> None:
        self.layers = list(layers)
        self.max_batch = max_batch
        weight = self.layers[0][0].weight
        widths = [linear.out_features for linear, _ in self.layers]
        self._outputs = [weight.new_empty(max_batch, width) for width in widths]
        self._grads = [weight.new_empty(max_batch, width) for width in widths[:-1]]
        self._grad_input = weight.new_empty(max_batch, self.layers[0][0].in_features)
        self._ones = weight.new_ones(max_batch)
        self._input = weight.new_empty(0)

    def forward(self, x: th.Tensor) -> th.Tensor:
        """Outputs (batch, out) for inputs x (batch, in). They are overwritten by the next call; x must live until backward."""
        batch = x.shape[0]
        self._input = x
        for (linear, activation), output in zip(self.layers, self._outputs):
            h = output[:batch]
            th.addmm(linear.bias, x, linear.weight.t(), out=h)
            _ACTIVATIONS[activation][0](h)
            x = h
        return x

    def backward(
        self, grad: th.Tensor, accumulate: bool = False, parameters: bool = True, inputs: bool = False
    ) -> Optional[th.Tensor]:
        """Gradients of the last forward pass.

        :param grad: (batch, out), the loss's gradient with respect to the outputs; it is overwritten
        :param accumulate: add to the parameters' gradients in place of replacing them
        :param parameters: compute the parameters' gradients
        :param inputs: compute the gradient with respect to the inputs
        :return: (batch, in) if ``inputs``; overwritten by the next call
        """
        batch = grad.shape[0]
        beta = 1.0 if accumulate else 0.0
        for i in range(len(self.layers) - 1, -1, -1):
            linear, activation = self.layers[i]
            _ACTIVATIONS[activation][1](grad, self._outputs[i][:batch])
            x = self._outputs[i - 1][:batch] if i > 0 else self._input
            if parameters:
                assert linear.weight.grad is not None and linear.bias.grad is not None
                grad_t = grad.t()
                th.addmm(linear.weight.grad, grad_t, x, beta=beta, out=linear.weight.grad)
                th.addmv(linear.bias.grad, grad_t, self._ones[:batch], beta=beta, out=linear.bias.grad)
            if i > 0:
                grad = th.mm(grad, linear.weight, out=self._grads[i - 1][:batch])
            elif inputs:
                return th.mm(grad, linear.weight, out=self._grad_input[:batch])
        return None
