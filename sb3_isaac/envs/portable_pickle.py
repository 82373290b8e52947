"""Pickles of numpy objects that numpy 1 and numpy 2 read from each other."""

from __future__ import annotations

import pickle
from copy import deepcopy
from typing import Any

import numpy as np

from sb3_isaac.files import safe_pickle
from sb3_isaac.files.readable import naming
from sb3_isaac.files.trust import trusted


class PortablePickler(pickle.Pickler):
    """Writes numpy objects by numpy's public names: numpy 2 pickles by module names that numpy 1 does not have."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, np.ndarray):
            return np.array, (obj.tolist(), obj.dtype)
        if isinstance(obj, np.generic):
            return type(obj), (obj.item(),)
        if isinstance(obj, np.random.Generator):
            # Of a space that was seeded, as algorithms do. Its state differs between versions; a seed from it does not.
            return np.random.default_rng, (int(deepcopy(obj).integers(2**31)),)
        return NotImplemented


class _AnyState:
    """Stands in for a bit generator whose state this numpy cannot read."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _new_generator(*args: Any) -> np.random.Generator:
    return np.random.default_rng()


class _Unpickler(pickle.Unpickler):
    """Reads stock files of numpy 2 with numpy 1, except the random state of seeded spaces."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "numpy.random._pickle":
            return _new_generator if name == "__generator_ctor" else _AnyState
        if module.startswith("numpy._core") and not hasattr(np, "_core"):
            module = module.replace("numpy._core", "numpy.core", 1)
        return super().find_class(module, name)


def load_pickle(path: str, trust: bool = False) -> Any:
    """Load a pickle, also one that stock SB3 wrote with another numpy.

    :param trust: let it run what it names: classes of your own, or whatever somebody has put there
    :raises UntrustedFileError: without ``trust``, if it is more than arrays, spaces, and SB3's and our classes
    :raises ValueError: it is damaged or of another kind
    """
    with open(path, "rb") as file, naming(path, "a pickle", every_error=True):
        if not trusted(trust):
            return safe_pickle.load(file, path)
        try:
            return pickle.load(file)
        except (ImportError, TypeError, ValueError):
            file.seek(0)
            return _Unpickler(file).load()
