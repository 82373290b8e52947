"""Triton's kernels: ``make test-triton`` runs them in its interpreter on a CPU, ``pytest tests/triton`` on a GPU.

Elsewhere there is nothing here to collect.
"""

import importlib.util
import os

import torch as th

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"

_runs = importlib.util.find_spec("triton") is not None and (INTERPRETED or th.cuda.is_available())
collect_ignore_glob = [] if _runs else ["test_*.py"]


if INTERPRETED and _runs:
    # Triton 3.9's interpreter takes the bits of bfloat16 for whole numbers in a matrix product, and knows no TensorFloat-32.
    import numpy as np
    from triton.language import bfloat16
    from triton.runtime import interpreter

    _float32_dot = interpreter.InterpreterBuilder.create_dot

    def _rounded(handle, kept_bits):
        """The numbers with so many bits of their fraction, rounded to nearest."""
        cut = 23 - kept_bits
        if handle.dtype.scalar == bfloat16:
            bits = handle.data.astype(np.uint32) << 16
        else:
            bits = handle.data.astype(np.float32).view(np.uint32) + (1 << (cut - 1)) & ~np.uint32((1 << cut) - 1)
        return interpreter.TensorHandle(bits.view(np.float32), interpreter.tl.float32)

    def _dot(self, a, b, d, input_precision, *rest):
        if a.dtype.scalar == bfloat16:
            a, b = _rounded(a, 7), _rounded(b, 7)
        elif input_precision.name == "TF32":
            a, b = _rounded(a, 10), _rounded(b, 10)
        return _float32_dot(self, a, b, d, input_precision, *rest)

    interpreter.InterpreterBuilder.create_dot = _dot
