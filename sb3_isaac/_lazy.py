"""Packages that hand on names from their modules, which are imported when somebody asks for them (PEP 562)."""

from __future__ import annotations

import importlib
import sys
from typing import Any, Callable, List, Sequence, Tuple


def lazy(package: str, **modules: Sequence[str]) -> Tuple[Callable[[str], Any], Callable[[], List[str]]]:
    """``__getattr__`` and ``__dir__`` for ``package``, so that ``import sb3_isaac.ppo`` does not load what DQN and DDPG need.

    :param modules: modules of the package, with the names that it hands on from each
    """
    origin = {name: module for module, names in modules.items() for name in names}

    def get(name: str) -> Any:
        if name not in origin and name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = importlib.import_module(f"{package}.{origin.get(name, name)}")
        return getattr(module, name) if name in origin else module

    return get, lambda: sorted({*vars(sys.modules[package]), *modules, *origin})
