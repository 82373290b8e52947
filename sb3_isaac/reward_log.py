"""Where RewardLog was: the configuration files of older runs name it here."""

from __future__ import annotations

from sb3_isaac.evaluation.callbacks import RewardLog

__all__ = ["RewardLog"]
