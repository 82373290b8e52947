"""What every setting may be, asked before anything is made of it. Knows no other folder."""

from __future__ import annotations

from sb3_isaac.settings.check import check, check_learn, check_one, defaults_of
from sb3_isaac.settings.memory import check_memory, free_memory
from sb3_isaac.settings.table import SETTINGS, Setting

__all__ = ["SETTINGS", "Setting", "check", "check_learn", "check_memory", "check_one", "defaults_of", "free_memory"]
