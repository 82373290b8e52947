"""Networks for the C functions: which ones can be had, what they are told of them, and who of several threads does what."""

from __future__ import annotations

import ctypes
import os
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence

import torch as th

from sb3_isaac._for_c import pointer, rows_apart
from sb3_isaac._native import library, why_not_library
from sb3_isaac.device.fast_mlp import ACTIVATIONS, Layers
from sb3_isaac.device.flat_adam import FlatAdam, views_of
from sb3_isaac.device.threads import MAX_THREADS, Together

MAX_LAYERS = 8
"""As in mlp.h"""
MOST_UNITS = 400
"""In a layer. With 512 they leave the cache, and PyTorch's products are as fast"""
PART_ROWS = 512
"""A batch is shared out among threads in parts of at least so many rows"""
_MOST_PARTS = min(os.cpu_count() or 1, MAX_THREADS)


def why_not_native(nets: Sequence[Layers], device: th.device) -> Optional[str]:
    """What keeps networks, which ``fast_mlp.parse_layers`` has found to be plain, out of the C functions; None: nothing."""
    if device.type != "cpu":
        return f"it is for CPUs, and this is {device.type}"
    if any(len(net) > MAX_LAYERS for net in nets):
        return f"a network has more than {MAX_LAYERS - 1} hidden layers"
    if max(max(linear.in_features, linear.out_features) for net in nets for linear, _ in net) > MOST_UNITS:
        return f"a layer has more than {MOST_UNITS} inputs or units"
    return why_not_library()


def parts(n_rows: int) -> List[slice]:
    """Into which the rows of a batch are divided, one for each thread: as even as can be."""
    n_parts = min(_MOST_PARTS, n_rows // PART_ROWS)
    if n_parts <= 1:
        return [slice(0, n_rows)]
    size = -(-n_rows // n_parts)
    return [slice(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]


_Pointers = ctypes.c_void_p * MAX_LAYERS


class Net(ctypes.Structure):
    """A network, as mlp.h has it."""

    _fields_ = [  # as ctypes wants it
        ("n_layers", ctypes.c_int32),
        ("widths", ctypes.c_int32 * (MAX_LAYERS + 1)),
        ("kinds", ctypes.c_int32 * MAX_LAYERS),
        ("weights", _Pointers),
        ("biases", _Pointers),
        ("weight_grads", _Pointers),
        ("bias_grads", _Pointers),
    ]


class Nets:
    """Networks one after the other, with memory to work in.

    :param layers: of each
    :param more_memory: floats besides
    """

    def __init__(self, layers: Sequence[Layers], more_memory: int = 0) -> None:
        self._layers = layers
        self._nets = (Net * len(layers))()
        for net, of_net in zip(self._nets, layers):
            net.n_layers, net.widths[0] = len(of_net), of_net[0][0].in_features
            for i, (linear, kind) in enumerate(of_net):
                net.widths[i + 1], net.kinds[i] = linear.out_features, ACTIVATIONS[kind]
        self._memory = th.empty(library().net_memory(self._nets, len(layers)) + more_memory, dtype=th.float32, device="cpu")
        self.memory = self._memory.data_ptr()
        """Where there is memory"""
        self.gradients: Mapping[Any, th.Tensor] = {}
        """Where they go, by parameter"""

    def __getitem__(self, i: int) -> Any:
        """A pointer to one."""
        return ctypes.byref(self._nets, i * ctypes.sizeof(Net))

    def point(self, weights: Mapping[Any, th.Tensor], gradients: Optional[Mapping[Any, th.Tensor]] = None) -> None:
        """Write where the parameters are.

        :param weights: by parameter, the contiguous tensor that it is now, which must live as long as the networks are used
        :param gradients: likewise, where gradients go; those of other parameters are not computed
        """
        self.gradients = gradients or {}
        for net, layers in zip(self._nets, self._layers):
            for i, (linear, _) in enumerate(layers):
                net.weights[i], net.biases[i] = weights[linear.weight].data_ptr(), weights[linear.bias].data_ptr()
                if linear.weight in self.gradients:
                    net.weight_grads[i] = self.gradients[linear.weight].data_ptr()
                    net.bias_grads[i] = self.gradients[linear.bias].data_ptr()


class Trained:
    """Networks whose parameters an optimizer keeps, for several threads, each with gradients of its own.

    :param layers: of each network
    :param adam: of the parameters whose gradients are wanted
    :param others: by parameter, where those of other networks are, which stay there
    :param more_memory: floats besides
    """

    def __init__(
        self, layers: Sequence[Layers], adam: FlatAdam, others: Mapping[Any, th.Tensor], more_memory: int = 0
    ) -> None:
        self._layers, self._adam, self._more_memory = layers, adam, more_memory
        self._weights = {**adam.values, **others}
        self._nets: Dict[int, List[Nets]] = {}
        self._grads: Dict[int, th.Tensor] = {}
        self._where: Dict[int, List[int]] = {}
        self._together = Together()

    def _for(self, n_parts: int) -> List[Nets]:
        """For each of so many parts."""
        if n_parts not in self._nets:
            self._grads[n_parts] = self._adam.grad.new_zeros(n_parts if n_parts > 1 else 0, self._adam.grad.numel())
            self._nets[n_parts] = [Nets(self._layers, self._more_memory) for _ in range(n_parts)]
        # share_memory_() moves what lies in a tensor, and all its views with it
        where = [tensor.data_ptr() for tensor in (self._adam.grad, self._grads[n_parts], *self._weights.values())]
        if where != self._where.get(n_parts):
            self._where[n_parts], parameters = where, self._adam.parameters
            own = [dict(zip(parameters, views_of(grads, parameters))) for grads in self._grads[n_parts]]
            for nets, gradients in zip(self._nets[n_parts], own or [self._adam.gradients]):  # one alone needs none of its own
                nets.point(self._weights, gradients)
        return self._nets[n_parts]

    def run(self, n_rows: int, work: Callable[[Nets, slice], None]) -> None:
        """Let threads do the work for parts of a batch."""
        shares = parts(n_rows)
        nets = self._for(len(shares))
        if len(shares) == 1:
            work(nets[0], shares[0])
        else:
            self._together.run(lambda i: work(nets[i], shares[i]), len(shares))

    def run_gradients(self, n_rows: int, work: Callable[[Nets, slice, int], None], sums: th.Tensor) -> None:
        """The same for gradients, which come together in the optimizer's ``grad``.

        :param work: of nets, rows, and where a part's sums go, to which it adds
        :param sums: (k,) what all parts' are added to
        """
        shares = parts(n_rows)
        nets = self._for(len(shares))
        if len(shares) == 1:
            work(nets[0], shares[0], sums.data_ptr())
            return
        parts_of_sums = sums.new_zeros(len(shares), sums.numel())
        self._together.run(lambda i: work(nets[i], shares[i], parts_of_sums[i].data_ptr()), len(shares))
        th.sum(self._grads[len(shares)], 0, out=self._adam.grad)
        sums.add_(parts_of_sums.sum(0).view_as(sums))


class NativeMLP:
    """Outputs of a network whose parameters may be anywhere, in the place of :class:`~sb3_isaac.device.fast_mlp.FastMLP`.

    :param layers: for which :func:`why_not_native` has no reason
    """

    def __init__(self, layers: Layers) -> None:
        self._layers, self._outputs = layers, library().net_outputs
        self._parameters = [parameter for linear, _ in layers for parameter in (linear.weight, linear.bias)]
        self._nets: List[Nets] = []
        self._where: List[int] = []
        """The parameters' addresses that the nets know"""
        self._together = Together()
        self._output = th.empty(0, layers[-1][0].out_features, dtype=th.float32, device="cpu")

    def forward(self, x: th.Tensor) -> th.Tensor:
        """Outputs (batch, out) for inputs x (batch, in). They are overwritten by the next call."""
        x, n_rows = rows_apart(x), len(x)
        if n_rows > len(self._output):
            self._output = self._output.new_empty(n_rows, self._output.shape[1])
        shares = parts(n_rows)
        while len(self._nets) < len(shares):
            self._nets.append(Nets([self._layers]))
            self._where = []
        where = [*map(th.Tensor.data_ptr, self._parameters)]
        plain = all(map(th.Tensor.is_contiguous, self._parameters))
        copies: Dict[Any, th.Tensor] = {}  # alive until the end
        if not plain or where != self._where:
            copies = {p: p.detach().contiguous() for p in self._parameters}
            self._where = where if plain else []
            for nets in self._nets:
                nets.point(copies)
        if len(shares) == 1:
            self._part(x, shares[0], self._nets[0])
        else:
            self._together.run(lambda i: self._part(x, shares[i], self._nets[i]), len(shares))
        return self._output[:n_rows]

    def _part(self, x: th.Tensor, share: slice, nets: Nets) -> None:
        first, n_rows = share.start, share.stop - share.start
        self._outputs(nets[0], pointer(x, first), x.stride(0), n_rows, pointer(self._output, first), nets.memory)
