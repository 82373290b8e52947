"""Counts tensor operations and refuses those that make the host wait for the device."""

from __future__ import annotations

import contextlib
from collections import Counter
from typing import Any, Iterator, Optional, Sequence

from torch.utils._python_dispatch import TorchDispatchMode

SYNCS = ("_local_scalar_dense", "item", "nonzero", "masked_select", "unique", "is_nonzero", "equal")
"""Operations whose result, or its size, the host must know."""
VIEWS = set("select slice unsqueeze squeeze view as_strided unbind alias detach t expand split transpose permute".split())
"""Operations that only make a new view: no kernel runs."""


class SyncGuard(TorchDispatchMode):
    """``with SyncGuard() as guard: ...``; afterwards ``guard.kernels`` counts operations by name, views excluded.

    :param allowed: names of host synchronisations that are not refused
    """

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        super().__init__()
        self.allowed = set(allowed)
        self.kernels: Counter[str] = Counter()
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Optional[dict] = None) -> Any:
        name = str(func).split(".")[1]
        if not self.paused:
            if name in SYNCS and name not in self.allowed:
                raise AssertionError(f"host synchronisation in a step: {func}")
            if name not in VIEWS:
                self.kernels[name] += 1
        return func(*args, **(kwargs or {}))

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Leave out what a simulator does by itself."""
        before, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = before


class QuietGym:
    """Isaac Gym's API object with the guard paused inside every call."""

    def __init__(self, gym: Any, guard: SyncGuard) -> None:
        self._gym, self._guard = gym, guard

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._gym, name)

        def call(*args: Any) -> Any:
            with self._guard.pause():
                return method(*args)

        return call
