"""Triton's kernels: ``make test-triton`` runs them in its interpreter on a CPU, ``pytest tests/triton`` on a GPU.

Elsewhere there is nothing here to collect.
"""

import importlib.util
import os

import torch as th
from torch import nn

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
ACTIVATIONS = (nn.Tanh, nn.ReLU, nn.ELU, nn.LeakyReLU)

_runs = importlib.util.find_spec("triton") is not None and (INTERPRETED or th.cuda.is_available())
collect_ignore_glob = [] if _runs else ["test_*.py"]


if INTERPRETED and _runs:
    # Triton 3.9's interpreter takes the bits of bfloat16 for whole numbers in a matrix product.
    import numpy as np
    from triton.language import bfloat16, float32
    from triton.runtime import interpreter

    _dot_of_float32 = interpreter.InterpreterBuilder.create_dot

    def _dot(self, a, b, *rest):
        if a.dtype.scalar == bfloat16:
            a, b = (interpreter.TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), float32) for x in (a, b))
        return _dot_of_float32(self, a, b, *rest)

    interpreter.InterpreterBuilder.create_dot = _dot


def mlp(n_inputs, hidden, n_outputs, activation):
    """A network on :data:`DEVICE`."""
    layers, width = [], n_inputs
    for units in hidden:
        layers += [nn.Linear(width, units), activation()]
        width = units
    return nn.Sequential(*layers, nn.Linear(width, n_outputs)).to(DEVICE)
