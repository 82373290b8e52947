"""Small multi-layer perceptrons without autograd: preallocated buffers, in place, few passes over memory.

For networks of two layers of 64 units autograd spends more time on bookkeeping and on fresh temporaries than on
arithmetic. The formulas are those that autograd would use, so results differ from it by rounding only.
"""

from __future__ import annotations

import math
import os
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Type, cast

import torch as th
from torch import nn

from sb3_isaac._torchscript import as_script
from sb3_isaac.device.flat_adam import views_of
from sb3_isaac.device.threads import Together

LANE_ROWS = 2048
"""On a CPU, batches of more rows are divided among threads, see :func:`n_lanes`"""
_CORES = os.cpu_count() or 1


def n_lanes(n_rows: int) -> int:
    """Into how many lanes a batch on a CPU is divided: one for each of the machine's cores, as long as they have ``LANE_ROWS``
    to ``2 * LANE_ROWS`` rows. With fewer rows PyTorch's overhead for each operation counts, more leave the cache."""
    fewest, most = -(-n_rows // (2 * LANE_ROWS)), -(-n_rows // LANE_ROWS)
    return min(max(_CORES, fewest), most)


IDENTITY, TANH, RELU, ELU, LEAKY_RELU = range(5)
ACTIVATIONS: Dict[Type[nn.Module], int] = {
    nn.Identity: IDENTITY,
    nn.Tanh: TANH,
    nn.ReLU: RELU,
    nn.ELU: ELU,
    nn.LeakyReLU: LEAKY_RELU,
}
# exp2 on a CPU is vectorised since 2.1 or so; expm1, which elu is made of, takes four times as long.
_FAST_EXP2 = int(th.__version__.split(".")[0]) * 100 + int(th.__version__.split(".")[1]) >= 203


def _is_plain(activation: nn.Module) -> bool:
    """The activation has the parameters that the formulas below assume."""
    if type(activation) is nn.ELU:
        return activation.alpha == 1.0
    if type(activation) is nn.LeakyReLU:
        return activation.negative_slope == 0.01
    return type(activation) in ACTIVATIONS


Layers = List[Tuple[nn.Linear, Type[nn.Module]]]
"""Each with the activation that follows it"""


def parse_layers(modules: Iterable[nn.Module]) -> Optional[Layers]:
    """Pair each Linear with the activation that follows it; None if there is anything else among the modules.

    :param modules: modules in the order they are applied; Flatten, Identity and nested Sequential are looked through
    """
    layers: Layers = []
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


# -- the passes: of several lanes TorchScript runs them, without Python, so that several threads can ----------------------


Passes = NamedTuple(  # noqa: UP014  # TorchScript of torch 1.13 does not read the annotations of a class
    "Passes",
    [
        ("weights", List[th.Tensor]),  # (out, in) of each layer
        ("biases", List[th.Tensor]),
        ("kinds", List[int]),  # of activation, see ACTIVATIONS
        ("outputs", List[th.Tensor]),  # (rows, out) of each layer, written by the forward pass
        ("weight_grads", List[th.Tensor]),  # of each layer, written by the backward pass; none: no gradients of parameters
        ("bias_grads", List[th.Tensor]),
        ("temporaries", List[th.Tensor]),  # of each layer, as its outputs: for what the forward pass does not keep
        ("below_grads", List[th.Tensor]),  # of each layer but the first, as the outputs below: gradients on their way down
        ("minus_one", th.Tensor),  # on the device, as is the next: TorchScript's mul and add of a number know no ``out``,
        ("log2_e", th.Tensor),  # and take fresh memory each time, which costs ten times as much as the product
        ("first_grad", th.Tensor),  # (in, out) of the first layer, overwritten if transposed
        ("transposed", bool),  # compute that gradient the other way round: MKL is six times as fast with few inputs
        ("fast_exp2", bool),  # make elu of exp2
    ],
)
"""What the passes need to know about a network."""


def forward_pass(x: th.Tensor, net: Passes) -> None:
    """Write the layers' outputs for inputs x (batch, in) into ``net.outputs``."""
    h = x
    for i in range(len(net.weights)):
        out, kind = net.outputs[i], net.kinds[i]
        # On a CPU sigmoid takes a fifth of the time of tanh, and tanh(x) = 2 sigmoid(2 x) - 1
        by_sigmoid = kind == 1 and not out.is_cuda
        scale = 2.0 if by_sigmoid else 1.0
        th.addmm(net.biases[i], h, net.weights[i].t(), beta=scale, alpha=scale, out=out)
        if by_sigmoid:
            th.add(net.minus_one, out.sigmoid_(), alpha=2.0, out=out)
        elif kind == 1:
            out.tanh_()
        elif kind == 2:
            out.relu_()
        elif kind == 3 and net.fast_exp2:
            t = th.mul(out, net.log2_e, out=net.temporaries[i]).clamp_(max=0.0)
            th.maximum(t.exp2_().add_(net.minus_one), out, out=out)
        elif kind == 3:
            nn.functional.elu_(out)
        elif kind == 4:
            nn.functional.leaky_relu_(out)
        h = out


# In TorchScript the operation is found once, in Python it takes longer than the arithmetic: there it is looked up here.
_TANH_BACKWARD: Any = th.ops.aten.tanh_backward.grad_input
_THRESHOLD_BACKWARD: Any = th.ops.aten.threshold_backward.grad_input
_ELU_BACKWARD: Any = th.ops.aten.elu_backward.grad_input
_LEAKY_RELU_BACKWARD: Any = th.ops.aten.leaky_relu_backward.grad_input


def activation_backward_(grad: th.Tensor, out: th.Tensor, kind: int) -> None:
    """Make the gradient with respect to an activation's output ``out`` the one with respect to its input, in place.

    :param kind: see ACTIVATIONS
    """
    if th.jit.is_scripting():  # type: ignore[attr-defined]
        if kind == 1:
            th.ops.aten.tanh_backward(grad, out, grad_input=grad)
        elif kind == 2:
            th.ops.aten.threshold_backward(grad, out, 0.0, grad_input=grad)
        elif kind == 3:
            th.ops.aten.elu_backward(grad, 1.0, 1.0, 1.0, True, out, grad_input=grad)
        elif kind == 4:
            th.ops.aten.leaky_relu_backward(grad, out, 0.01, True, grad_input=grad)
    elif kind == TANH:
        _TANH_BACKWARD(grad, out, grad_input=grad)
    elif kind == RELU:
        _THRESHOLD_BACKWARD(grad, out, 0.0, grad_input=grad)
    elif kind == ELU:
        _ELU_BACKWARD(grad, 1.0, 1.0, 1.0, True, out, grad_input=grad)
    elif kind == LEAKY_RELU:
        _LEAKY_RELU_BACKWARD(grad, out, 0.01, True, grad_input=grad)


def backward_pass(
    grad: th.Tensor, x: th.Tensor, net: Passes, accumulate: bool, inputs: bool, grad_input: th.Tensor, first_column: int
) -> None:
    """Gradients after :func:`forward_pass` with the same x and net.

    :param grad: (batch, out) of the loss with respect to the last outputs, overwritten
    :param accumulate: add to the parameters' gradients in place of replacing them
    :param grad_input: (batch, columns), written if ``inputs``
    :param first_column: of the inputs, whose gradient is wanted
    """
    n_layers, g = len(net.weights), grad
    for k in range(n_layers):
        i = n_layers - 1 - k
        activation_backward_(g, net.outputs[i], net.kinds[i])
        below = net.outputs[i - 1] if i > 0 else x
        if len(net.weight_grads) > 0:
            if i == 0 and net.transposed:
                th.mm(below.t(), g, out=net.first_grad)
            else:
                th.addmm(net.weight_grads[i], g.t(), below, beta=1.0 if accumulate else 0.0, out=net.weight_grads[i])
            if accumulate:
                net.bias_grads[i].add_(g.sum([0]))
            else:
                th.sum(g, [0], out=net.bias_grads[i])
        if i > 0 or inputs:
            weight = net.weights[i] if i > 0 else net.weights[i][:, first_column:]
            g_below = net.below_grads[i] if i > 0 else grad_input
            if weight.shape[0] == 1:
                th.mul(g, weight, out=g_below)
            else:
                th.mm(g, weight, out=g_below)
            g = g_below
    if net.transposed and len(net.weight_grads) > 0:
        if accumulate:
            net.weight_grads[0].add_(net.first_grad.t())
        else:
            net.weight_grads[0].copy_(net.first_grad.t())


Gradients = Mapping[nn.Parameter, th.Tensor]


class Lane:
    """A network for batches that one thread works on, with buffers of its own.

    :param layers: from :func:`parse_layers`
    :param max_batch: rows of the buffers
    :param share: another network of the same widths whose buffers are used too
    :param gradients: where each parameter's gradient goes; None: it is not computed
    :param scripted: one of several on a CPU, which threads work on at once
    """

    def __init__(
        self,
        layers: Layers,
        max_batch: int,
        share: Optional[Lane] = None,
        gradients: Optional[Gradients] = None,
        scripted: bool = False,
    ) -> None:
        self._linears = [linear for linear, _ in layers]
        weight, widths = layers[0][0].weight, [linear.out_features for linear in self._linears]
        self.max_batch, self.widths = max_batch, widths
        outputs = [weight.new_empty(max_batch, width) for width in widths]
        self._scratch = [weight.new_empty(max_batch * max(widths)) for _ in range(2)]
        if share is not None and share.max_batch == max_batch and share.widths[:-1] == widths[:-1]:
            outputs[:-1] = share._passes.outputs[:-1]
            self._scratch = share._scratch if max(share.widths) >= max(widths) else self._scratch

        def scratch(k: int, width: int) -> th.Tensor:
            return self._scratch[k % 2][: max_batch * width].view(max_batch, width)

        self._passes: Passes = Passes(
            weights=[linear.weight for linear in self._linears],
            biases=[linear.bias for linear in self._linears],
            kinds=[ACTIVATIONS[kind] for _, kind in layers],
            outputs=outputs,
            weight_grads=[],
            bias_grads=[],
            temporaries=[scratch(0, width) for width in widths],
            # the gradient above is still needed while the one below is written: they take turns
            below_grads=[scratch(i, widths[max(i - 1, 0)]) for i in range(len(widths))],
            minus_one=weight.new_tensor(-1.0),
            log2_e=weight.new_tensor(math.log2(math.e)),
            first_grad=weight.new_empty(weight.shape[1], widths[0]),
            transposed=not weight.is_cuda and weight.shape[1] < 16,
            fast_exp2=_FAST_EXP2 and not weight.is_cuda,
        )
        self._gradients: Optional[Mapping[Any, th.Tensor]] = gradients
        self._prepared: Dict[Tuple[int, bool], Passes] = {}
        self._input = weight.new_empty(0)
        # One alone is faster in Python, where no call converts `passes`, and nothing has to be compiled first
        self._forward: Any = as_script(forward_pass) if scripted else forward_pass
        self._backward: Any = as_script(backward_pass) if scripted else backward_pass

    def passes(self, n_rows: int, parameters: bool) -> Passes:
        """For a batch of ``n_rows``: views, which are made once.

        :param parameters: with their gradients
        """
        key = n_rows, parameters
        if key not in self._prepared:
            if len(self._prepared) >= 8:
                self._prepared.clear()
            prepared = self._passes._replace(
                outputs=[output[:n_rows] for output in self._passes.outputs],
                temporaries=[temporary[:n_rows] for temporary in self._passes.temporaries],
                below_grads=[grad[:n_rows] for grad in self._passes.below_grads],
            )
            if parameters:
                assert self._gradients is not None
                prepared = prepared._replace(
                    weight_grads=[self._gradients[linear.weight] for linear in self._linears],
                    bias_grads=[self._gradients[linear.bias] for linear in self._linears],
                )
            self._prepared[key] = prepared
        return self._prepared[key]

    def forward(self, x: th.Tensor) -> th.Tensor:
        """See :meth:`FastMLP.forward`."""
        self._input, passes = x, self.passes(x.shape[0], False)
        self._forward(x, passes)
        return passes.outputs[-1]

    def backward(
        self, grad: th.Tensor, grad_input: Optional[th.Tensor], first_column: int, accumulate: bool, parameters: bool
    ) -> None:
        """See :meth:`FastMLP.backward`."""
        passes, inputs = self.passes(grad.shape[0], parameters), grad_input is not None
        below = passes.first_grad if grad_input is None else grad_input  # TorchScript takes no Optional for ``out``
        self._backward(grad, self._input, passes, accumulate, inputs, below, first_column)


class FastMLP:
    """Forward and backward passes of Linear layers and activations, on buffers that are allocated once.

    The parameters stay those of the modules. Call under ``torch.no_grad()``.

    Large batches on a CPU are divided into lanes of rows, which several threads work on, see ``device/threads.py``. How they
    are divided depends on the size of the batch and the machine: results are the same to the last bit there, however many
    threads there are.

    :param layers: from :func:`parse_layers`
    :param max_batch: rows of the buffers
    :param share: another network of the same widths whose buffers are used too, to stay in the cache: what it has
        computed is then overwritten
    :param gradients: where each parameter's gradient goes, see :class:`~sb3_isaac.device.flat_adam.FlatAdam`; None: it is not
        computed
    """

    def __init__(
        self,
        layers: Sequence[Tuple[nn.Linear, Type[nn.Module]]],
        max_batch: int,
        share: Optional[FastMLP] = None,
        gradients: Optional[Gradients] = None,
    ) -> None:
        self.layers = list(layers)
        weight, last = self.layers[0][0].weight, self.layers[-1][0]
        most = 1 if weight.is_cuda else n_lanes(max_batch)
        self._alone_rows = max_batch if most == 1 else LANE_ROWS
        self._alone: Lane = Lane(self.layers, self._alone_rows, None if share is None else share._alone, gradients)
        """Does smaller batches"""
        self._lanes: List[Lane] = []
        self._grad_input = weight.new_empty(max_batch, self.layers[0][0].in_features)
        if most == 1:
            return
        self._gradients = gradients
        self._parameters = [cast(nn.Parameter, p) for linear, _ in self.layers for p in (linear.weight, linear.bias)]
        self._grads = weight.new_zeros(most, sum(p.numel() for p in self._parameters))
        for i, grads in enumerate(self._grads):
            own = dict(zip(self._parameters, views_of(grads, self._parameters)))
            lane = share._lanes[i] if share is not None and i < len(share._lanes) else None
            self._lanes.append(Lane(self.layers, min(max_batch, 2 * LANE_ROWS), lane, own, scripted=True))
        self._output = weight.new_empty(max_batch, last.out_features)
        self._forward_together, self._backward_together = Together(), Together()

    def _rows(self, batch: int) -> List[slice]:
        """Of the lanes: as even as can be."""
        size = -(-batch // n_lanes(batch))
        return [slice(start, start + size) for start in range(0, batch, size)]

    def small(self, x: th.Tensor, parameters: bool) -> Optional[Passes]:
        """What functions in TorchScript need to do the passes for inputs x (batch, in) themselves, with more between them, in
        one call; None: batches on a GPU, and large ones, which are shared out, go through :meth:`forward`.

        :param parameters: with their gradients
        """
        return None if x.is_cuda or x.shape[0] > self._alone_rows else self._alone.passes(x.shape[0], parameters)

    def input_gradient(self, batch: int, first_column: int) -> th.Tensor:
        """(batch, in - first_column), where :meth:`backward` writes the gradient with respect to the inputs."""
        return self._grad_input[:batch, first_column:]

    def forward(self, x: th.Tensor) -> th.Tensor:
        """Outputs (batch, out) for inputs x (batch, in). They are overwritten by the next call; x must live until backward."""
        batch = x.shape[0]
        if batch <= self._alone_rows:
            return self._alone.forward(x)
        rows, output = self._rows(batch), self._output[:batch]

        def work(i: int) -> None:
            output[rows[i]].copy_(self._lanes[i].forward(x[rows[i]]))

        self._forward_together.run(work, len(rows))
        return output

    def backward(
        self,
        grad: th.Tensor,
        accumulate: bool = False,
        parameters: bool = True,
        inputs: bool = False,
        first_column: int = 0,
    ) -> Optional[th.Tensor]:
        """Gradients of the last forward pass.

        :param grad: (batch, out), the loss's gradient with respect to the outputs; it is overwritten
        :param accumulate: add to the parameters' gradients in place of replacing them
        :param parameters: compute the parameters' gradients
        :param inputs: compute the gradient with respect to the inputs
        :param first_column: of the inputs, which their gradient is wanted for
        :return: (batch, in - first_column), if ``inputs``; overwritten by the next call
        """
        batch = grad.shape[0]
        grad_input = self.input_gradient(batch, first_column) if inputs else None
        if batch <= self._alone_rows:
            self._alone.backward(grad, grad_input, first_column, accumulate, parameters)
            return grad_input
        rows = self._rows(batch)

        def work(i: int) -> None:
            below = None if grad_input is None else grad_input[rows[i]]
            self._lanes[i].backward(grad[rows[i]], below, first_column, False, parameters)

        self._backward_together.run(work, len(rows))
        if parameters:
            assert self._gradients is not None
            total = self._grads[: len(rows)].sum(0)
            for parameter, summed in zip(self._parameters, views_of(total, self._parameters)):
                grad = self._gradients[parameter]
                grad.add_(summed) if accumulate else grad.copy_(summed)
        return grad_input
