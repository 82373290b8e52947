"""What a pickle is about, without making anything of it."""

from __future__ import annotations

import io
import pickle
from typing import Any, ClassVar, List


class Record:
    """What a pickle would call, and with what: nothing is imported, called or made."""

    def __init__(self, name: str, args: Any = ()) -> None:
        self.name, self.args, self.state = name, args, None

    def append(self, value: Any) -> None:
        """Containers are filled by these, and a record only looks like one."""

    extend = add = append

    def __setitem__(self, key: Any, value: Any) -> None:
        pass


class _Describer(pickle._Unpickler):
    """Python's own unpickler, with a :class:`Record` for every name, call and object."""

    stack: List[Any]
    append: Any

    def find_class(self, module: str, name: str) -> Any:
        return Record(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        return Record("persistent id")

    def get_extension(self, code: int) -> None:
        self.append(Record(f"extension {code}"))

    def _call(self) -> None:
        args = self.stack.pop()
        function = self.stack[-1]
        if getattr(function, "name", "").endswith("._function_setstate"):  # cloudpickle's: (function, state)
            args[0].state = args[1]
            self.stack[-1] = args[0]
        else:
            self.stack[-1] = Record(getattr(function, "name", ""), args)

    def _call_with_keywords(self) -> None:
        self.stack.pop()
        self._call()

    def _instantiate(self, klass: Any, args: Any) -> None:
        self.append(Record(getattr(klass, "name", ""), args))

    def _set_state(self) -> None:
        state = self.stack.pop()
        if isinstance(self.stack[-1], Record):
            self.stack[-1].state = state

    dispatch: ClassVar[Any] = {
        **pickle._Unpickler.dispatch,
        pickle.REDUCE[0]: _call,
        pickle.NEWOBJ[0]: _call,
        pickle.NEWOBJ_EX[0]: _call_with_keywords,
        pickle.BUILD[0]: _set_state,
    }


def describe(data: bytes) -> Any:
    """What a pickle holds, with a :class:`Record` in the place of everything but numbers, strings and containers.

    :raises Exception: of any kind, if it is no pickle
    """
    return _Describer(io.BytesIO(data)).load()
