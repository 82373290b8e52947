"""DQN, see :mod:`sb3_isaac.dqn.dqn`."""

from __future__ import annotations

from sb3_isaac.dqn.dqn import DQN

__all__ = ["DQN"]
