"""What the updates in Triton's kernels share: for which networks they are, and what the kernels are told of them."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from typing import Dict, Iterable, Optional, Sequence

import torch as th
from torch import nn

from sb3_isaac._native import in_c
from sb3_isaac.device import ranks
from sb3_isaac.device.fast_mlp import Layers
from sb3_isaac.device.flat_adam import FlatAdam
from sb3_isaac.device.native_mlp import why_not_native

MOST_UNITS = 64
"""In a layer, and inputs: nearly all of a block is then in the registers of four warps, Triton's default. With 128 units
kilobytes of each thread are not (what ptxas says for compute capabilities 8.6 and 9.0), and compiling takes minutes."""
ROWS = {"fp32": 32, "tf32": 64, "bf16": 64}
"""Of a minibatch in one block, by precision: as many as the registers of four warps hold with layers of 64 units (what ptxas
says for compute capability 9.0). Of 8,192 that makes 128 blocks or more, about as many as a large GPU has multiprocessors."""


def in_triton(precision: Optional[str], device: th.device) -> bool:
    """Whether Triton's kernels are asked for, and can be had on a device."""
    return precision is not None and _why_not_triton(device.type, device.index) is None


@functools.lru_cache(maxsize=None)
def _why_not_triton(kind: str, index: Optional[int]) -> Optional[str]:
    """Why a device cannot have the kernels."""
    if importlib.util.find_spec("triton") is None:
        return "Triton, which comes with PyTorch for CUDA, is not installed"
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if kind != "cuda" and not interpreted:
        return f"Triton's kernels do not run on {kind}"
    if kind == "cuda" and th.version.hip is not None:
        return "the kernels were written for NVIDIA's GPUs"
    if kind == "cuda" and th.cuda.get_device_capability(index) < (8, 0):
        return "the GPU has a compute capability below 8.0"
    try:
        triton = importlib.import_module("triton")
        if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 3):  # what the kernels were compiled with
            return f"Triton 3.3 or newer is needed, which comes with torch 2.7, this is {triton.__version__}"
    except Exception as error:  # whatever is broken there: the plain path works
        return f"Triton cannot be imported: {error}"
    return None


def why_not_fused(nets: Sequence[Layers], device: th.device, squashed: bool = False) -> Optional[str]:
    """What keeps networks, which ``fast_mlp.parse_layers`` has found to be plain, out of the kernels; None: nothing.

    :param squashed: whether the first network's outputs may go through tanh, and all others must be alike, as in DDPG
    """
    why_not = _why_not_triton(device.type, device.index)
    if why_not is not None:
        return why_not
    if ranks.world_size() > 1:
        return "several processes train one model"
    if any(len(net) not in (2, 3) for net in nets):
        return "the networks have neither one nor two hidden layers"
    if max(max(linear.in_features, linear.out_features) for net in nets for linear, _ in net) > MOST_UNITS:
        return f"a layer has more than {MOST_UNITS} inputs or units"
    outputs = [net[-1][1] for net in nets]
    outputs = outputs[1:] if squashed and outputs[0] is nn.Tanh else outputs
    if len({kind for net in nets for _, kind in net[:-1]}) > 1 or any(kind is not nn.Identity for kind in outputs):
        return "the layers have different activations"
    if squashed and len({tuple((linear.in_features, linear.out_features) for linear, _ in net) for net in nets[1:]}) > 1:
        return "the critics have different layers"
    return None


def describe_kernels(
    nets: Sequence[Layers], device: th.device, precision: Optional[str], compiled: bool, squashed: bool = False
) -> str:
    """For ``path``: whether other kernels than PyTorch's are used, where they are asked for.

    :param precision: asks for those in Triton
    :param compiled: asks for those in C, on a CPU
    :param squashed: see :func:`why_not_fused`
    """
    words = ""
    if precision is not None:
        why_not = why_not_fused(nets, device, squashed)
        if why_not is None:
            return f", in Triton's kernels ({precision})"
        words = f"; not in Triton: {why_not}"
    if compiled and device.type == "cpu":
        why_not = why_not_native(nets, device)
        words = ", in C" + words if why_not is None else f"{words}; networks not in C: {why_not}"
    return words


def describe_none(device: th.device, compiled: bool) -> str:
    """The same for networks that go through autograd.

    :param compiled: whether C is asked for
    """
    return "; networks not in C" if in_c(compiled, device) else ""


def block(n: int) -> int:
    """The power of 2 that holds n: Triton's matrix products have at least 16 rows and columns."""
    return max(16, 1 << (n - 1).bit_length())


def n_blocks(n_rows: int, rows: int) -> int:
    """Into how many blocks of so many rows a minibatch is divided."""
    return -(-n_rows // rows)


class Parts:
    """Where each block of a minibatch writes its gradients, and behind them what it adds to the losses.

    :param adam: of the parameters, into whose ``grad`` the gradients of all blocks are summed
    :param n_losses: numbers behind them
    """

    def __init__(self, adam: FlatAdam, n_losses: int = 1) -> None:
        self._adam, self._n_losses = adam, n_losses
        self._parts: Dict[int, th.Tensor] = {}
        """By number of blocks: a graph goes on with what it has seen"""

    def of(self, n_blocks: int) -> th.Tensor:
        """(n_blocks, parameters + n_losses) to write to."""
        if n_blocks not in self._parts:
            flat = self._adam.flat
            self._parts[n_blocks] = flat.new_zeros(n_blocks, flat.numel() + self._n_losses)
        return self._parts[n_blocks]

    def add_up(self, n_blocks: int, loss_sum: th.Tensor) -> None:
        """Sum the gradients, and add the losses to ``loss_sum``."""
        parts, n_params = self._parts[n_blocks], self._adam.flat.numel()
        th.sum(parts[:, :n_params], 0, out=self._adam.grad)
        loss_sum.add_(parts[:, n_params:].sum())


def starts_of(parameters: Iterable[nn.Parameter]) -> Dict[int, int]:
    """Where each parameter begins in the flat tensor of all, by ``id``."""
    starts, start = {}, 0
    for parameter in parameters:
        starts[id(parameter)] = start
        start += parameter.numel()
    return starts


def layer_starts(net: Layers, starts: Dict[int, int], prefix: str = "") -> Dict[str, int]:
    """A kernel's arguments w1, b1 to w3, b3: of the hidden layers and the last one. Without a second hidden layer nobody reads
    where that is."""
    linears = [linear for linear, _ in net]
    found = {}
    for i, linear in ((1, linears[0]), (2, linears[-2]), (3, linears[-1])):
        found[f"{prefix}w{i}"], found[f"{prefix}b{i}"] = starts[id(linear.weight)], starts[id(linear.bias)]
    return found


def widths(net: Layers) -> Sequence[int]:
    """Of the first and the second hidden layer; 0: there is none."""
    return net[0][0].out_features, net[1][0].out_features if len(net) == 3 else 0
