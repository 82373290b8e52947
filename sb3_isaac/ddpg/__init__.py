"""DDPG, see :mod:`sb3_isaac.ddpg.ddpg`."""

from __future__ import annotations

from sb3_isaac.ddpg.ddpg import DDPG

__all__ = ["DDPG"]
