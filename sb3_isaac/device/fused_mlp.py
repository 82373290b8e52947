"""A forward pass of a small multi-layer perceptron in one Triton kernel."""

from __future__ import annotations

from typing import Any, Dict

import torch as th

from sb3_isaac.device.cuda_graph import on_device
from sb3_isaac.device.fast_mlp import ACTIVATIONS, Layers
from sb3_isaac.device.fused import block, n_blocks, widths

ROWS = 64
"""In a block. With layers of 64 units all is in registers, and of fewer rows some is not, because other matrix units are taken
(what ptxas says for compute capability 9.0)."""


class FusedMLP:
    """Outputs of a network whose parameters may be anywhere, in the place of :class:`~sb3_isaac.device.fast_mlp.FastMLP`.

    :param layers: for which :func:`~sb3_isaac.device.fused.why_not_fused` has no reason
    """

    def __init__(self, layers: Layers) -> None:
        self._linears = [layers[i][0] for i in (0, -2, -1)]
        (h1, h2), n_inputs, self._n_outputs = widths(layers), layers[0][0].in_features, layers[-1][0].out_features
        blocks = {"BI": block(n_inputs), "BO": block(self._n_outputs), "B1": block(h1), "B2": block(max(h2, 1))}
        self._shape: Dict[str, Any] = {"IN": n_inputs, "OUT": self._n_outputs, "H1": h1, "H2": h2, "ROWS": ROWS, **blocks}
        self._shape.update(KIND=ACTIVATIONS[layers[0][1]], OUT_KIND=ACTIVATIONS[layers[-1][1]])

    def forward(self, x: th.Tensor) -> th.Tensor:
        """Outputs (batch, out) for inputs x (batch, in)."""
        from sb3_isaac.device import mlp_kernels

        x, n_rows = x.to(th.float32).contiguous(), len(x)
        out = x.new_empty(n_rows, self._n_outputs)
        parameters = [p.detach().contiguous() for linear in self._linears for p in (linear.weight, linear.bias)]
        with on_device(x.device):  # Triton takes the current one
            mlp_kernels.outputs[(n_blocks(n_rows, ROWS),)](x, x.stride(0), n_rows, *parameters, out, **self._shape)
        return out
