"""The way from the device to the host: one counted read, and arrays that are read only when somebody looks."""

from __future__ import annotations

from typing import Any, Iterator

import numpy as np
import torch as th
from numpy.lib.mixins import NDArrayOperatorsMixin


def to_host(tensor: th.Tensor) -> np.ndarray:
    """A tensor as a numpy array. Waits for the device: the only place where training on a tensor path does."""
    array: np.ndarray = tensor.detach().cpu().numpy()
    return array


def same_device(a: Any, b: Any) -> bool:
    """Whether two torch devices are one ("cuda" is "cuda:0")."""
    a, b = th.device(a), th.device(b)
    return bool(a.type == b.type and (a.index or 0) == (b.index or 0))


class HostView(NDArrayOperatorsMixin):
    """A device tensor that behaves as a numpy array, and is copied to the host when it is first used as one.

    What callbacks find in ``locals``: SB3's own callbacks and users' work on numpy arrays, and the ones that do not look
    cost nothing. Valid until the next step of the environment; ``tensor`` is the tensor itself.

    :param tensor: any shape, on any device
    """

    def __init__(self, tensor: th.Tensor) -> None:
        self.tensor = tensor

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        array = self.tensor.detach().cpu().numpy()
        return array.copy() if dtype is None else array.astype(dtype)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        inputs = tuple(np.asarray(x) if isinstance(x, HostView) else x for x in inputs)
        return getattr(ufunc, method)(*inputs, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "tensor":  # not yet initialised, as while unpickling
            raise AttributeError(name)
        return getattr(np.asarray(self), name)

    def __len__(self) -> int:
        return int(self.tensor.shape[0])

    def __getitem__(self, index: Any) -> Any:
        return np.asarray(self)[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(np.asarray(self))

    def __repr__(self) -> str:
        return f"HostView({np.asarray(self)!r})"
