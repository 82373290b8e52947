"""Imports Isaac Gym before torch, where it is installed: it refuses to be imported after torch.

This must be the first import of the package. It is quick and silent where Isaac Gym is absent, and never raises: what
went wrong is remembered for :mod:`sb3_isaac.backends.probe`, which explains it to whoever asks for Isaac Gym.

Set the environment variable ``SB3_ISAAC_SKIP_ISAACGYM=1`` to leave Isaac Gym alone (where importing it crashes Python).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from typing import Optional

SKIP_VARIABLE = "SB3_ISAAC_SKIP_ISAACGYM"

installed: bool = False
"""A package called isaacgym can be found."""
skipped: bool = os.environ.get(SKIP_VARIABLE, "") not in ("", "0")
"""The user asked us not to touch it."""
too_late: bool = False
"""torch was imported before sb3_isaac, so Isaac Gym cannot be used in this process."""
error: Optional[BaseException] = None
"""What importing it raised."""


def _import_isaacgym() -> None:
    global installed, too_late, error
    if "isaacgym.gymapi" in sys.modules:  # the user was faster
        installed = True
        return
    try:
        installed = importlib.util.find_spec("isaacgym") is not None
    except (ImportError, ValueError) as broken:
        error = broken
        return
    if not installed or skipped:
        return
    if "torch" in sys.modules:
        too_late = True
        return
    try:
        # gymapi alone is enough to be first; gymtorch, which compiles an extension, waits until it is needed.
        importlib.import_module("isaacgym.gymapi")
    except Exception as broken:
        error = broken


_import_isaacgym()
