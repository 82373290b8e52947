"""SB3's rollout and replay buffers with their storage in torch tensors on a device.

They are SB3's own extension points: ``PPO(..., rollout_buffer_class=DeviceRolloutBuffer)`` and
``DQN(..., replay_buffer_class=DeviceReplayBuffer)`` work in stock SB3 too, with numpy arrays coming in.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sb3_isaac._lazy import lazy

if TYPE_CHECKING:
    from sb3_isaac.buffers.replay_buffer import DeviceReplayBuffer, ReplaySamples
    from sb3_isaac.buffers.rollout_buffer import DeviceRolloutBuffer, RolloutTensors

__all__ = ["DeviceReplayBuffer", "DeviceRolloutBuffer", "ReplaySamples", "RolloutTensors"]

__getattr__, __dir__ = lazy(
    "sb3_isaac.buffers",
    replay_buffer=["DeviceReplayBuffer", "ReplaySamples"],
    rollout_buffer=["DeviceRolloutBuffer", "RolloutTensors"],
)
