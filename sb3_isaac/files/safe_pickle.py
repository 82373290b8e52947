"""Pickles of saved agents, read without running what is in them.

``pickle.load`` calls whatever a file names. Here a file may name what :mod:`sb3_isaac.files.safe_names` lists and no more; the
few functions that arrays, tensors and random generators are made with are those of :mod:`sb3_isaac.files.safe_calls`.
"""

from __future__ import annotations

import collections
import contextlib
import enum
import importlib
import io
import pickle
from typing import Any, BinaryIO, Callable, ClassVar, List, Optional, Set

import numpy as np
import torch as th

from sb3_isaac.files import safe_torch
from sb3_isaac.files.safe_calls import CALLS, OLD_MODULES, UNUSED, Call, Ignored, Refused
from sb3_isaac.files.safe_names import ENUMS, INSTANCES, STORAGES, VALUES
from sb3_isaac.files.trust import UntrustedFileError


class MissingClassError(ValueError):
    """A pickle names a class that is on the list, and not installed: of another version, or of a package that is not there."""


class _Unpickler(pickle._Unpickler):
    """Python's own, which can be told what to do with each call; pickle's C class cannot.

    :param what: where the pickle comes from, for messages
    :param storage: gives the storage of a persistent id, in torch's files
    """

    stack: List[Any]

    def __init__(self, file: Any, what: str, storage: Optional[Callable[[Any], Any]] = None) -> None:
        super().__init__(file)
        self.what = what
        self.storage = storage
        self.makeable: Set[type] = set()

    def find_class(self, module: str, name: str) -> Any:
        module = OLD_MODULES.get(module, module).replace("numpy._core", "numpy.core", 1)
        key = (module, name)
        if key in CALLS:
            return Call(CALLS[key])
        if key == ("torch.storage", "_load_from_bytes"):
            return Call(lambda data: safe_torch.load(data, load, f"a tensor in {self.what}"))
        if key in UNUSED:
            return Ignored
        if module == "torch" and name in STORAGES:
            return getattr(th, STORAGES[name])
        if module == "copyreg" and name == "_reconstructor":
            return Call(lambda cls, *_: self.make(cls, ()))
        if key in ENUMS:
            return getattr(importlib.import_module(module), name)
        if key not in VALUES and key not in INSTANCES:
            raise Refused(f"a function in it ({module}.{name})" if module.startswith("cloudpickle") else f"{module}.{name}")
        try:
            found = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            package = module.partition(".")[0]
            raise MissingClassError(
                f"{self.what} needs {module}.{name}, which the installed {package} does not have."
            ) from None
        if key in INSTANCES:
            self.makeable.add(found)
        return found

    def persistent_load(self, pid: Any) -> Any:
        if self.storage is None:
            raise Refused("a persistent id")
        return self.storage(pid)

    def make(self, cls: Any, args: Any) -> Any:
        """An instance, without calling ``__init__``."""
        if not isinstance(cls, type) or cls not in self.makeable or (args and not issubclass(cls, tuple)):
            raise Refused(f"a new {_name(cls)}")
        return cls.__new__(cls, *args)

    def load_reduce(self) -> None:
        args = self.stack.pop()
        function = self.stack[-1]
        if isinstance(function, Call):
            if function.function is object:
                self.stack[-1] = self.make(args[0], args[1:])
            else:
                self.stack[-1] = function.function(*args)
        elif isinstance(function, type) and issubclass(function, np.generic) and isinstance(args[0], (int, float)):
            self.stack[-1] = function(args[0])
        elif isinstance(function, enum.EnumMeta) and len(args) == 1:  # more make a new class
            self.stack[-1] = function(*args)
        else:
            raise Refused(_name(function))

    def load_newobj(self) -> None:
        args = self.stack.pop()
        self.stack[-1] = self.make(self.stack[-1], args)

    def load_newobj_ex(self) -> None:
        raise Refused("a new object with keyword arguments")

    def _instantiate(self, klass: Any, args: Any) -> None:
        raise Refused(_name(klass))

    def get_extension(self, code: int) -> None:
        raise Refused(f"extension {code}")

    def load_build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        kind = type(target)
        if isinstance(target, np.dtype):
            if tuple(state[1:5]) != target.__reduce__()[2][1:5]:  # whoever changes its flags makes pointers of numbers
                raise Refused("an unusual numpy.dtype")
        elif kind is np.ndarray:
            if target.size or not isinstance(state[2], np.dtype):
                raise Refused("a state of numpy.ndarray")
            target.__setstate__(state)
        elif isinstance(target, (np.random.Generator, np.random.PCG64)):
            bits = target.bit_generator if isinstance(target, np.random.Generator) else target
            with contextlib.suppress(TypeError, ValueError, KeyError):  # of another numpy: starts anew
                bits.state = state[0] if isinstance(state, tuple) else state
        elif kind is collections.OrderedDict:
            vars(target).update({key: value for key, value in state.items() if key == "_metadata"})  # of a state_dict
        elif kind in self.makeable:
            if isinstance(state, tuple) and len(state) == 2 and state[1] is None:
                state = state[0]
            if not isinstance(state, dict) or any(not isinstance(key, str) or key.startswith("__") for key in state):
                raise Refused(f"a state of {_name(kind)}")
            if hasattr(kind, "__setstate__"):
                target.__setstate__(state)
            else:
                vars(target).update(state)
        elif kind is not Ignored:
            raise Refused(f"a state of {_name(kind)}")

    dispatch: ClassVar[Any] = {
        **pickle._Unpickler.dispatch,
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.NEWOBJ_EX[0]: load_newobj_ex,
        pickle.BUILD[0]: load_build,
    }


def _name(thing: Any) -> str:
    return f"{getattr(thing, '__module__', type(thing).__module__)}.{getattr(thing, '__qualname__', type(thing).__name__)}"


def load(file: BinaryIO, what: str, storage: Optional[Callable[[Any], Any]] = None) -> Any:
    """Unpickle what saved agents are made of: numbers, arrays, tensors, spaces, and SB3's and our own classes.

    :param file: at the beginning of a pickle, whatever follows it
    :param what: where it comes from, for messages: "best_model.zip" or "best_model.zip (in its entry policy_class)"
    :param storage: gives the storage of a persistent id
    :raises UntrustedFileError: the pickle wants something else
    :raises MissingClassError: what it needs is not installed
    :raises ValueError: it is no pickle, or incomplete
    """
    try:
        return _Unpickler(file, what, storage).load()
    except Refused as refused:
        raise UntrustedFileError(what, str(refused)) from None
    except (UntrustedFileError, MissingClassError, MemoryError):
        raise
    except RecursionError:
        raise ValueError(f"{what} cannot be read: its pickle is nested too deeply.") from None
    except Exception as error:  # of garbage: anything
        reason = f"{type(error).__name__}: {error}".rstrip(": ")
        raise ValueError(f"{what} cannot be read: it is no complete pickle of saved agents ({reason}).") from error


def loads(data: bytes, what: str = "a tensor's file", storage: Optional[Callable[[Any], Any]] = None) -> Any:
    """:func:`load` of bytes."""
    return load(io.BytesIO(data), what, storage)
