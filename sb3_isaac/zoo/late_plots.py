"""Optuna's plots, imported when one is drawn.

rl_zoo3.exp_manager imports them, and with them matplotlib: a sixth of what a command needs to start, for pictures that only a
search draws.
"""

from __future__ import annotations

import importlib
import sys
import types
from typing import Any, Callable

PLOTS = "optuna.visualization"
MANAGER = "rl_zoo3.exp_manager"


def _later(name: str) -> Callable[..., Any]:
    if name.startswith("__"):  # what Python asks a module for
        raise AttributeError(name)

    def plot(*args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module(PLOTS), name)(*args, **kwargs)

    return plot


def import_manager() -> None:
    """Import rl_zoo3.exp_manager, with functions that import Optuna's plots when they are called."""
    importlib.import_module("optuna")
    if PLOTS in sys.modules or MANAGER in sys.modules:
        return
    stand_in: Any = types.ModuleType(PLOTS)
    stand_in.__getattr__ = _later
    sys.modules[PLOTS] = stand_in
    try:
        importlib.import_module(MANAGER)
    finally:
        del sys.modules[PLOTS]
