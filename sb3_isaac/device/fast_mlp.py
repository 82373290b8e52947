"""Small multi-layer perceptrons without autograd: preallocated buffers, in place, few passes over memory.

For networks of two layers of 64 units autograd spends more time on bookkeeping and on fresh temporaries than on
arithmetic. The formulas are those that autograd would use, so results differ from it by rounding only.
"""

from __future__ import annotations

import math
from typing import Callable, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Type, cast

import torch as th
from torch import nn

_aten = th.ops.aten
_LOG2_E = math.log2(math.e)
_MINUS_ONE = th.tensor(-1.0)
# exp2 on a CPU is vectorised since 2.1 or so; expm1, which elu is made of, takes four times as long.
_FAST_EXP2 = int(th.__version__.split(".")[0]) * 100 + int(th.__version__.split(".")[1]) >= 203


def _elu_(h: th.Tensor, scratch: th.Tensor) -> None:
    if h.is_cuda or not _FAST_EXP2 or scratch.shape != h.shape:
        th.nn.functional.elu_(h)
        return
    th.mul(h, _LOG2_E, out=scratch).clamp_(max=0.0)
    th.maximum(scratch.exp2_().sub_(1.0), h, out=h)


def _tanh_(h: th.Tensor, scratch: th.Tensor) -> None:
    """On a CPU tanh(h / 2): sigmoid takes a fifth of the time of tanh there, and tanh(x) = 2 sigmoid(2 x) - 1."""
    if h.is_cuda:
        h.tanh_()
    else:
        th.add(_MINUS_ONE, h.sigmoid_(), alpha=2.0, out=h)


def _tanh_backward(grad: th.Tensor, out: th.Tensor) -> None:
    _aten.tanh_backward.grad_input(grad, out, grad_input=grad)


def _relu_backward(grad: th.Tensor, out: th.Tensor) -> None:
    _aten.threshold_backward.grad_input(grad, out, 0.0, grad_input=grad)


def _elu_backward(grad: th.Tensor, out: th.Tensor) -> None:
    _aten.elu_backward.grad_input(grad, 1.0, 1.0, 1.0, True, out, grad_input=grad)


def _leaky_relu_backward(grad: th.Tensor, out: th.Tensor) -> None:
    _aten.leaky_relu_backward.grad_input(grad, out, 0.01, True, grad_input=grad)


class _Activation(NamedTuple):
    forward: Callable[[th.Tensor, th.Tensor], object]
    """In place on (scale * inputs, a scratch tensor of the same shape)."""
    backward: Callable[[th.Tensor, th.Tensor], object]
    """In place on (gradient, outputs)."""
    scale: float = 1.0
    """Factor that the matrix product puts on the inputs, at no cost, on a CPU."""


ACTIVATIONS: Dict[Type[nn.Module], _Activation] = {
    nn.Identity: _Activation(lambda h, scratch: None, lambda grad, out: None),
    nn.Tanh: _Activation(_tanh_, _tanh_backward, scale=2.0),
    nn.ReLU: _Activation(lambda h, scratch: h.relu_(), _relu_backward),
    nn.ELU: _Activation(_elu_, _elu_backward),
    nn.LeakyReLU: _Activation(lambda h, scratch: th.nn.functional.leaky_relu_(h), _leaky_relu_backward),
}


def _is_plain(activation: nn.Module) -> bool:
    """The activation has the parameters that the formulas above assume."""
    if type(activation) is nn.ELU:
        return activation.alpha == 1.0
    if type(activation) is nn.LeakyReLU:
        return activation.negative_slope == 0.01
    return type(activation) in ACTIVATIONS


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
        elif type(module) is nn.Linear and module.bias is not None:
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
    :class:`~sb3_isaac.device.flat_adam.FlatAdam`). Call under ``torch.no_grad()``.

    :param layers: from :func:`parse_layers`
    :param max_batch: rows of the buffers
    :param share: another network of the same widths whose buffers are used too, to stay in the cache: what it has
        computed is then overwritten
    :param gradients: where each parameter's gradient goes, in the place of ``parameter.grad``
    """

    def __init__(
        self,
        layers: Sequence[Tuple[nn.Linear, Type[nn.Module]]],
        max_batch: int,
        share: Optional[FastMLP] = None,
        gradients: Optional[Mapping[nn.Parameter, th.Tensor]] = None,
    ) -> None:
        self.layers = list(layers)
        self._gradients = gradients
        self.max_batch = max_batch
        weight = self.layers[0][0].weight
        widths = [linear.out_features for linear, _ in self.layers]
        self._outputs = [weight.new_empty(max_batch, width) for width in widths]
        self._grads = [weight.new_empty(max_batch, width) for width in widths[:-1]]
        if share is not None and share.max_batch == max_batch and [x.shape[1] for x in share._grads] == widths[:-1]:
            self._outputs[:-1], self._grads = share._outputs[:-1], share._grads
        self._grad_input = weight.new_empty(max_batch, self.layers[0][0].in_features)
        # MKL is six times as fast with the few inputs as rows of the result than as columns
        self._first_grad = weight.new_empty(self.layers[0][0].in_features, widths[0])
        self._transposed = not weight.is_cuda and self.layers[0][0].in_features < 16
        self._input = weight.new_empty(0)
        self._no_scratch = weight.new_empty(0)
        self._batch = -1  # for which the views below are
        self._views: Tuple[List[th.Tensor], List[th.Tensor], th.Tensor] = ([], [], self._input)

    def _first_rows(self, batch: int) -> Tuple[List[th.Tensor], List[th.Tensor], th.Tensor]:
        """The first rows of the outputs', the gradients' and the input gradient's buffers."""
        if batch != self._batch:
            self._batch = batch
            outputs, grads = ([buffer[:batch] for buffer in buffers] for buffers in (self._outputs, self._grads))
            self._views = outputs, grads, self._grad_input[:batch]
        return self._views

    def forward(self, x: th.Tensor) -> th.Tensor:
        """Outputs (batch, out) for inputs x (batch, in). They are overwritten by the next call; x must live until backward."""
        self._input = x
        outputs, grads, _ = self._first_rows(x.shape[0])
        for i, (linear, kind) in enumerate(self.layers):
            activation, h = ACTIVATIONS[kind], outputs[i]
            scale = 1.0 if h.is_cuda else activation.scale
            th.addmm(linear.bias, x, linear.weight.t(), beta=scale, alpha=scale, out=h)
            # The gradients' buffers are free during the forward pass
            activation.forward(h, grads[i] if i < len(grads) else self._no_scratch)
            x = h
        return x

    def backward(
        self,
        grad: th.Tensor,
        accumulate: bool = False,
        parameters: bool = True,
        inputs: bool = False,
        columns: slice = slice(None),
    ) -> Optional[th.Tensor]:
        """Gradients of the last forward pass.

        :param grad: (batch, out), the loss's gradient with respect to the outputs; it is overwritten
        :param accumulate: add to the parameters' gradients in place of replacing them
        :param parameters: compute the parameters' gradients
        :param inputs: compute the gradient with respect to the inputs
        :param columns: of the inputs, which their gradient is wanted for
        :return: (batch, in) or these columns of it, if ``inputs``; overwritten by the next call
        """
        outputs, grads, grad_input = self._first_rows(grad.shape[0])
        for i in range(len(self.layers) - 1, -1, -1):
            linear, kind = self.layers[i]
            ACTIVATIONS[kind].backward(grad, outputs[i])
            if parameters:
                self._parameter_gradients(i, grad, accumulate)
            if i > 0 or inputs:
                weight = linear.weight if i > 0 else linear.weight[:, columns]
                grad_below = grads[i - 1] if i > 0 else grad_input[:, columns]
                if linear.out_features == 1:
                    th.mul(grad, weight, out=grad_below)
                else:
                    th.mm(grad, weight, out=grad_below)
                grad = grad_below
        return grad if inputs else None

    def _parameter_gradients(self, i: int, grad: th.Tensor, accumulate: bool) -> None:
        """Gradients of layer i from ``grad`` (batch, out), the gradient with respect to its product with the weights."""
        linear = self.layers[i][0]
        x = self._first_rows(grad.shape[0])[0][i - 1] if i > 0 else self._input
        weight_grad, bias_grad = linear.weight.grad, linear.bias.grad
        if self._gradients is not None:
            weight_grad, bias_grad = (self._gradients[cast(nn.Parameter, p)] for p in (linear.weight, linear.bias))
        assert weight_grad is not None and bias_grad is not None
        if i == 0 and self._transposed:
            th.mm(x.t(), grad, out=self._first_grad)
            weight_grad.add_(self._first_grad.t()) if accumulate else weight_grad.copy_(self._first_grad.t())
        else:
            th.addmm(weight_grad, grad.t(), x, beta=1.0 if accumulate else 0.0, out=weight_grad)
        if accumulate:
            bias_grad.add_(grad.sum(0))
        else:
            th.sum(grad, 0, out=bias_grad)
