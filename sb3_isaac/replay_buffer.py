"""Where DeviceReplayBuffer was: pickles and models of stock SB3 from older runs name it here."""

from __future__ import annotations

from sb3_isaac.buffers.replay_buffer import DeviceReplayBuffer

__all__ = ["DeviceReplayBuffer"]
