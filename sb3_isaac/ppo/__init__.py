"""PPO, see :mod:`sb3_isaac.ppo.ppo`."""

from __future__ import annotations

from sb3_isaac.ppo.ppo import PPO

__all__ = ["PPO"]
