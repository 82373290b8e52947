"""Tensors as the C functions of ``_native.py`` and Triton's kernels take them: where they begin, what they must be like."""

from __future__ import annotations

from typing import Optional

import torch as th


def pointer(tensor: Optional[th.Tensor], row: int = 0) -> Optional[int]:
    """Where a row of a tensor begins; None is NULL."""
    return None if tensor is None else tensor.data_ptr() + row * tensor.stride(0) * tensor.element_size()


def rows_apart(x: th.Tensor) -> th.Tensor:
    """(n, columns) float32 whose rows' numbers follow each other, however far apart the rows are; a copy, if it is not so."""
    return x if x.stride(1) == 1 and x.dtype is th.float32 else x.to(th.float32).contiguous()


def is_dense(x: th.Tensor, n: int, dtype: th.dtype) -> bool:
    """Whether a tensor is ``n`` numbers of this dtype in a piece."""
    return x.dtype is dtype and x.numel() == n and x.is_contiguous()


def dense(x: th.Tensor, n: int, dtype: th.dtype = th.float32) -> th.Tensor:
    """``x`` in a piece and of this dtype; a copy, if it is not so.

    :raises ValueError: it has not ``n`` numbers, and more would be read than belongs to it
    """
    if is_dense(x, n, dtype):
        return x
    if x.numel() != n:
        raise ValueError(f"A tensor has shape {tuple(x.shape)}, and {n} numbers are needed.")
    return x.to(dtype).contiguous()
