"""The state of objects as tensors and plain data, which torch reads back without running what is in a file.

:func:`pack` turns what an object's attributes hold into what ``torch.load(weights_only=True)`` takes, :func:`unpack` puts
it back, in place where it can: tensors keep their address, so that views of them and CUDA graphs stay what they were.
"""

from __future__ import annotations

import json
import random
import types
from collections import deque
from pathlib import PurePath
from typing import IO, Any, Collection, Dict, List, Optional, Set, Tuple

import numpy as np
import torch as th

from sb3_isaac.files import safe_pickle, safe_torch

SOUND = tuple(int(part) for part in th.__version__.split(".")[:2]) >= (2, 6)
"""Whether ``weights_only`` cannot be got round (CVE-2025-32434)"""
PLAIN = (type(None), bool, int, float, str)
SEQUENCES = {"list": list, "tuple": tuple, "deque": deque, "set": set}
BIT_GENERATORS = ("MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64")
"""Of numpy.random. A file names one, and numpy.random has functions, too."""
NO_STATE = (
    *(type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.ModuleType),
    *(th.device, th.dtype, np.dtype, PurePath),
)
"""What says how an object works, and not where it stands"""


class Packer:
    """Packs objects, and knows what it could not.

    :param leave_out: classes of values that are not part of an object's state
    :param descend: whether attributes that are objects themselves are looked into
    """

    def __init__(self, leave_out: Tuple[type, ...] = (), descend: bool = True) -> None:
        self._descend = descend
        self.missing: List[str] = []
        """Attributes whose values are of kinds that cannot be packed"""
        self._leave_out = (*NO_STATE, *leave_out)
        self._seen: Set[int] = set()
        self._kept: List[Any] = []  # so that no id is given twice

    def attributes(
        self, owner: Any, names: Optional[Collection[str]] = None, but: Collection[str] = (), where: str = ""
    ) -> Any:
        """The attributes of an object: those named, or all but some."""
        where = where or type(owner).__name__
        packed: Dict[str, Any] = {}
        for name, value in vars(owner).items():
            if (names is None or name in names) and name not in but and not isinstance(value, self._leave_out):
                self._put(packed, name, value, f"{where}.{name}")
        return packed

    def _put(self, packed: Dict[str, Any], name: str, value: Any, where: str) -> None:
        try:
            packed[name] = self.pack(value, where)
        except TypeError:
            self.missing.append(f"{where} ({type(value).__name__})")

    def pack(self, value: Any, where: str = "") -> Any:
        """:raises TypeError: the value is of a kind that cannot be packed"""
        if isinstance(value, np.generic):
            if value.dtype.kind in "biuf":
                return {"kind": "scalar", "dtype": value.dtype.str, "value": value.item()}
        if type(value) in PLAIN:
            return value
        if isinstance(value, th.Tensor):
            return value.detach().cpu().clone()
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            wide = value.astype(np.int64) if value.dtype.kind == "u" and value.dtype != np.uint8 else value
            return {"kind": "array", "dtype": value.dtype.str, "value": th.from_numpy(np.array(wide, order="C"))}
        if isinstance(value, th.Generator):
            return {"kind": "generator", "device": value.device.type, "value": value.get_state()}
        if isinstance(value, np.random.Generator):
            return {"kind": "numpy generator", "value": self.pack(value.bit_generator.state)}
        if isinstance(value, np.random.RandomState):
            return {"kind": "random state", "value": self.pack(value.get_state(legacy=False))}
        if isinstance(value, random.Random):
            return {"kind": "random", "value": self.pack(value.getstate())}
        for kind, cls in SEQUENCES.items():
            if type(value) is cls:
                return {"kind": kind, "value": [self.pack(entry, f"{where}[{i}]") for i, entry in enumerate(value)]}
        if isinstance(value, dict) and all(type(key) in PLAIN for key in value):
            return {"kind": "dict", "value": [[key, self.pack(entry, f"{where}[{key!r}]")] for key, entry in value.items()]}
        if isinstance(value, th.nn.Module):
            return {"kind": "module", "value": {key: self.pack(entry) for key, entry in value.state_dict().items()}}
        if isinstance(value, self._leave_out):
            return {"kind": "left out"}
        if self._descend and hasattr(value, "__dict__") and not hasattr(value, "fileno"):
            if id(value) in self._seen:
                return {"kind": "left out"}
            self._seen.add(id(value))
            self._kept.append(value)
            return {"kind": "object", "value": self.attributes(value, where=where)}
        raise TypeError(f"{where} is a {type(value).__name__}")


class Unpacker:
    """Puts back what :class:`Packer` has packed."""

    def __init__(self) -> None:
        self._written: Dict[Tuple[int, Any], th.Tensor] = {}

    def attributes(self, owner: Any, packed: Dict[str, Any]) -> None:
        """Give an object the attributes that it had."""
        for name, value in packed.items():
            before = vars(owner).get(name)
            after = self.unpack(value, before)
            if after is not before and not _same_number(after, before):
                setattr(owner, name, after)

    def unpack(self, packed: Any, present: Any = None) -> Any:
        """The value, which is ``present`` itself where it can take it over."""
        if isinstance(packed, th.Tensor):
            return self._tensor(packed, present)
        if not isinstance(packed, dict):
            return packed
        kind: str = packed["kind"]
        value: Any = packed.get("value")
        if kind == "left out":
            return present
        if kind == "scalar":
            return np.dtype(packed["dtype"]).type(value)
        if kind == "array":
            array = value.numpy().astype(packed["dtype"])
            if isinstance(present, np.ndarray) and present.shape == array.shape and present.flags.writeable:
                if present.dtype == array.dtype:
                    present[...] = array
                    return present
            return array
        if kind == "generator":
            present = th.Generator() if present is None else present
            if present.device.type == packed["device"]:
                present.set_state(value)
            return present
        if kind == "numpy generator":
            state = self.unpack(value)
            if state["bit_generator"] not in BIT_GENERATORS:
                raise ValueError(f"A checkpoint holds an unknown random generator: {state['bit_generator']!r}.")
            if present is None or type(present.bit_generator).__name__ != state["bit_generator"]:
                present = np.random.Generator(getattr(np.random, state["bit_generator"])())
            present.bit_generator.state = state
            return present
        if kind == "random state":
            present = np.random.RandomState() if present is None else present
            present.set_state(self.unpack(value))
            return present
        if kind == "random":
            present = random.Random() if present is None else present
            present.setstate(self.unpack(value))
            return present
        if kind in SEQUENCES:
            return self._sequence(kind, value, present)
        if kind == "dict":
            before = present if isinstance(present, dict) else {}
            entries = {key: self.unpack(entry, before.get(key)) for key, entry in value}
            if not isinstance(present, dict):
                return entries
            present.clear()
            present.update(entries)
            return present
        if kind == "module":
            present.load_state_dict({key: self.unpack(entry) for key, entry in value.items()})
            return present
        if kind == "object":
            if present is not None:
                self.attributes(present, value)
            return present
        raise ValueError(f"A checkpoint holds something unknown: {kind!r}.")

    def _tensor(self, packed: th.Tensor, present: Any) -> th.Tensor:
        if not isinstance(present, th.Tensor):
            return packed.clone()
        if present.shape != packed.shape or present.dtype != packed.dtype:
            return packed.to(present.device)
        key = (present.data_ptr(), present.shape)
        if key in self._written and present.numel() > 0 and not th.equal(self._written[key], packed):
            return packed.to(present.device, copy=True)  # two attributes that were not the same tensor then
        self._written[key] = packed
        with th.no_grad():
            present.copy_(packed)
        return present

    def _sequence(self, kind: str, value: List[Any], present: Any) -> Any:
        same = isinstance(present, (list, tuple)) and len(present) == len(value)
        entries = [self.unpack(entry, present[i] if same else None) for i, entry in enumerate(value)]
        if kind == "list" and isinstance(present, list):
            present[:] = entries
            return present
        if kind == "deque" and isinstance(present, deque):
            present.clear()
            present.extend(entries)
            return present
        return SEQUENCES[kind](entries)


def _same_number(one: Any, other: Any) -> bool:
    return type(one) is type(other) and type(one) in PLAIN and one == other


def save(state: Dict[str, Any], file: IO[bytes]) -> None:
    """Write what was packed: tensors as torch does, the rest as JSON, because torch 1.13 reads no floats."""
    tensors: List[th.Tensor] = []
    rest = json.dumps(_without_tensors(state, tensors))
    th.save({"tensors": tensors, "rest": rest}, file)


def load(path: str) -> Dict[str, Any]:
    """Read what :func:`save` wrote, on the CPU. No code of the file is run.

    :raises ValueError: the file holds something else
    """
    try:
        if SOUND:
            saved = th.load(path, map_location="cpu", weights_only=True)
        else:
            with open(path, "rb") as file:
                saved = safe_torch.load(file.read(), safe_pickle.load, path)
        state: Dict[str, Any] = _with_tensors(json.loads(saved["rest"]), saved["tensors"])
        return state
    except Exception as error:
        raise ValueError(f"{path} is not the state of a checkpoint ({type(error).__name__}).") from error


def _without_tensors(value: Any, tensors: List[th.Tensor]) -> Any:
    if isinstance(value, th.Tensor):
        tensors.append(value)
        return {"kind": "tensor", "value": len(tensors) - 1}
    if isinstance(value, dict):
        return {key: _without_tensors(entry, tensors) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_tensors(entry, tensors) for entry in value]
    return value.item() if isinstance(value, np.generic) else value


def _with_tensors(value: Any, tensors: List[th.Tensor]) -> Any:
    if isinstance(value, dict):
        if value.get("kind") == "tensor":
            return tensors[value["value"]]
        return {key: _with_tensors(entry, tensors) for key, entry in value.items()}
    return [_with_tensors(entry, tensors) for entry in value] if isinstance(value, list) else value
