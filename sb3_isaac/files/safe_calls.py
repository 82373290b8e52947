"""The functions that pickles of saved agents call, replaced by careful ones: of arrays, tensors and random generators."""

from __future__ import annotations

import collections
import enum
import re
from typing import Any, Callable, Dict, Tuple

import numpy as np
import torch as th

from sb3_isaac.files import safe_torch


class Call:
    """Stands for a function that a pickle calls. No function itself, so that it is of no use as a value."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function


class Ignored:
    """Stands for an object whose state does not matter."""


class Refused(Exception):
    """A pickle names what is not on the list."""


# -- what stands in for the functions that pickles call ---------------------------------------------------------------

_FROM_BUFFER: Any = np.zeros(1).__reduce_ex__(5)[0]
_SCALAR: Any = np.float64(0.0).__reduce__()[0]


def _dtype(name: Any, *_: Any) -> np.dtype:
    if not (isinstance(name, str) and re.fullmatch(r"[<>=|]?[biufcSUOV?]\d{0,9}", name)):
        raise Refused(f"numpy.dtype({name!r})")
    return np.dtype(name)


def _array(values: Any, dtype: Any) -> np.ndarray:
    if not isinstance(values, (list, tuple, int, float, bool, complex, str, bytes)) or not isinstance(dtype, np.dtype):
        raise Refused(f"numpy.array of a {type(values).__name__}")
    return np.array(values, dtype)


def _reconstruct(subtype: Any, *_: Any) -> np.ndarray:
    if subtype is not np.ndarray:
        raise Refused("a subclass of numpy.ndarray")
    return np.zeros(0, bool)  # gets its state later


def _scalar(dtype: np.dtype, value: Any = None) -> Any:
    return value if dtype.kind == "O" else _SCALAR(dtype, *([] if value is None else [value]))


def _from_buffer(buffer: Any, dtype: np.dtype, shape: Any, order: str, *_: Any) -> np.ndarray:
    if dtype.hasobject:
        raise Refused("a buffer of objects")
    array: np.ndarray = _FROM_BUFFER(buffer, dtype, shape, order)
    return array


def _generator(bits: Any = None, *_: Any) -> np.random.Generator:
    return np.random.Generator(bits if isinstance(bits, np.random.PCG64) else np.random.PCG64())


def _default_rng(seed: Any = None) -> np.random.Generator:
    return np.random.default_rng(seed if isinstance(seed, int) else None)


def _getattr(owner: Any, name: str) -> Any:
    """A member of an enumeration, or ``object.__new__``, with which VecNormalize is saved."""
    if owner is object and name == "__new__":
        return Call(object)
    if isinstance(owner, enum.EnumMeta):
        return owner[name]
    raise Refused(f"getattr({owner!r}, {name!r})")


def _encode(text: str, encoding: str = "latin1") -> bytes:
    return text.encode({"latin1": "latin1"}[encoding])


CALLS: Dict[Tuple[str, str], Callable[..., Any]] = {
    ("builtins", "getattr"): _getattr,
    ("builtins", "set"): lambda values=(): set(values),
    ("builtins", "frozenset"): lambda values=(): frozenset(values),
    ("builtins", "complex"): complex,
    ("builtins", "bytearray"): lambda *values: bytearray(*values[:1]) if isinstance(values[0], bytes) else bytearray(),
    ("builtins", "slice"): slice,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "deque"): collections.deque,
    ("numpy", "array"): _array,
    ("numpy", "dtype"): _dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,
    ("numpy.random", "default_rng"): _default_rng,
    ("numpy.random._generator", "default_rng"): _default_rng,
    ("numpy.random._pickle", "__generator_ctor"): _generator,
    ("numpy.random._pickle", "__bit_generator_ctor"): lambda *_: np.random.PCG64(),
    ("numpy.random.bit_generator", "__pyx_unpickle_SeedSequence"): lambda *_: Ignored(),
    ("torch", "device"): lambda name, *index: th.device(name, *index),
    ("torch._utils", "_rebuild_tensor_v2"): safe_torch.rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): safe_torch.rebuild_parameter,
}
UNUSED = {("numpy.random._pcg64", "PCG64"), ("numpy.random.bit_generator", "SeedSequence")}
"""Named by numpy's generators, which are made without them."""
OLD_MODULES = {"__builtin__": "builtins", "copy_reg": "copyreg"}
