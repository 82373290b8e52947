"""The console command ``sb3-isaac``, also ``python -m sb3_isaac.cli``."""

from __future__ import annotations

from sb3_isaac.cli.dispatch import main

__all__ = ["main"]
