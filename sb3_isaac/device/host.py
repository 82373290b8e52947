"""The way from the device to the host: one counted read, and arrays that are copied only when somebody looks."""

from __future__ import annotations

from typing import Any, Dict, Iterator, List

import numpy as np
import torch as th
from numpy.lib.mixins import NDArrayOperatorsMixin


def to_host(tensor: th.Tensor) -> np.ndarray:
    """A tensor as a numpy array. Waits for the device: the only place where training on a tensor path does."""
    array: np.ndarray = tensor.detach().cpu().numpy()
    return array


def same_device(a: Any, b: Any) -> bool:
    """Whether two torch devices are one ("cuda" is the present one, "cuda:0" unless somebody has chosen another)."""
    a, b = th.device(a), th.device(b)
    if a.type != b.type or a.index == b.index:
        return bool(a.type == b.type)
    present = th.cuda.current_device() if a.type == "cuda" and th.cuda.is_available() else 0
    return bool((present if a.index is None else a.index) == (present if b.index is None else b.index))


class Views:
    """The views on what one step has left on the device. The next step overwrites that, and so ends them."""

    def __init__(self) -> None:
        self.ended = False
        self.looked_at: List[HostView] = []


class HostView(NDArrayOperatorsMixin):
    """A device tensor that is copied when it is first looked at, and that nobody pays for who does not look.

    Callbacks find a real array (or tensor) in its place, see :class:`LazyLocals`; who gets hold of the view itself, by
    copying the whole dict, has something that behaves as a numpy array.

    :param name: in ``locals``
    :param tensor: any shape, on any device, or a function that finds it
    :param views: the other views on the same step
    :param as_tensor: SB3 has a torch tensor here, not a numpy array
    """

    __slots__ = ("name", "_tensor", "_views", "_as_tensor", "_copy", "_original")

    def __init__(self, name: str, tensor: Any, views: Views, as_tensor: bool = False) -> None:
        self.name, self._tensor, self._views, self._as_tensor = name, tensor, views, as_tensor
        self._copy: Any = None

    def look(self) -> Any:
        """The copy: a numpy array, or a tensor. The same at every call.

        :raises RuntimeError: if the step is over and nobody has looked during it
        """
        if self._copy is None:
            if self._views.ended:
                raise RuntimeError(
                    f"locals[{self.name!r}] was kept from an earlier step without being looked at, and is gone: copy it in "
                    "the callback, np.array(self.locals[...])."
                )
            tensor = self._tensor() if callable(self._tensor) else self._tensor
            array = to_host(tensor)
            self._original = array.tobytes()
            self._copy = tensor.detach().clone() if self._as_tensor else array.copy()
            self._views.looked_at.append(self)
        return self._copy

    def changed(self) -> bool:
        """Whether somebody has written into the copy."""
        if self._copy is None:
            return False
        now = to_host(self._copy) if self._as_tensor else self._copy
        return bool(now.tobytes() != self._original)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        array: np.ndarray = np.asarray(self.look())
        return array if dtype is None else array.astype(dtype)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        inputs = tuple(np.asarray(x) if isinstance(x, HostView) else x for x in inputs)
        if "out" not in kwargs:
            return getattr(ufunc, method)(*inputs, **kwargs)
        kwargs["out"] = tuple(np.asarray(x) if isinstance(x, HostView) else x for x in kwargs["out"])
        getattr(ufunc, method)(*inputs, **kwargs)
        return self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # not yet initialised, as while unpickling
            raise AttributeError(name)
        return getattr(np.asarray(self), name)

    def __reduce__(self) -> Any:
        """Pickled or copied it is what SB3 has in its place."""
        return _itself, (self.look(),)

    def __bool__(self) -> bool:
        return bool(np.asarray(self))

    def __len__(self) -> int:
        return len(self.look())

    def __getitem__(self, index: Any) -> Any:
        return np.asarray(self)[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        np.asarray(self)[index] = value

    def __iter__(self) -> Iterator[Any]:
        return iter(np.asarray(self))

    def __repr__(self) -> str:
        return f"HostView({np.asarray(self)!r})"


def _itself(value: Any) -> Any:
    return value


class LazyLocals(Dict[str, Any]):
    """A callback's ``locals``: a dict that copies what is on the device when it is asked for."""

    def __getitem__(self, name: str) -> Any:
        value = super().__getitem__(name)
        if isinstance(value, HostView):
            value = value.look()
            self[name] = value
        elif name == "infos":  # what they need of this step is copied now
            getattr(value, "filled", None)
        return value

    def get(self, name: str, default: Any = None) -> Any:
        return self[name] if name in self else default

    def pop(self, name: str, *default: Any) -> Any:
        if name in self:
            self[name]  # puts the copy in the place of the view
        return super().pop(name, *default)

    def values(self) -> Any:
        return [self[name] for name in self]

    def items(self) -> Any:
        return [(name, self[name]) for name in self]

    def copy(self) -> Dict[str, Any]:
        return dict(self.items())
