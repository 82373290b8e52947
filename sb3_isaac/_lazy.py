"""Packages that hand on names from their modules, which are imported when somebody asks for them (PEP 562)."""

from __future__ import annotations

import importlib
import sys
from typing import Any, Callable, List, Mapping, Tuple


def lazy(package: str, names: Mapping[str, str]) -> Tuple[Callable[[str], Any], Callable[[], List[str]]]:
    """``__getattr__`` and ``__dir__`` for ``package``, so that ``import sb3_isaac.ppo`` does not load what DQN and DDPG need.

    :param names: module of each name; an empty one means that the name is a module of the package itself
    """

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        if not names[name]:
            return importlib.import_module(f"{package}.{name}")
        return getattr(importlib.import_module(f"{package}.{names[name]}"), name)

    return get, lambda: sorted({*vars(sys.modules[package]), *names})
