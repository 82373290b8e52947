"""Transitions from SB3's replay buffers to ours and back, for files that stock SB3 loads."""

from __future__ import annotations

import inspect
from typing import Any, Dict

import numpy as np
import stable_baselines3.common.buffers as sb3_buffers
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_isaac.buffers.replay_buffer import RUNNING, TERMINATED, TRUNCATED, DeviceReplayBuffer

SB3_HAS_N_STEPS = "n_steps" in inspect.signature(OffPolicyAlgorithm.__init__).parameters  # from SB3 2.7 on
NStepReplayBuffer = getattr(sb3_buffers, "NStepReplayBuffer", ReplayBuffer)
STANDARD_BUFFERS = (None, ReplayBuffer, NStepReplayBuffer, DeviceReplayBuffer)
"""On the tensor path these classes all mean DeviceReplayBuffer: the same transitions and samples, elsewhere."""
NOT_FOR_STOCK = ("n_steps", "gamma", "storage_device", "generator")
"""Arguments of DeviceReplayBuffer that SB3's ReplayBuffer does not take."""


def _columns(buffer: Any) -> Dict[str, Any]:
    """What SB3's buffer and ours store under the same names, but for the ends of episodes."""
    names = ["observations", "actions", "rewards"] + ([] if buffer.optimize_memory_usage else ["next_observations"])
    return {name: getattr(buffer, name) for name in names}


def copy_transitions(old: ReplayBuffer, new: DeviceReplayBuffer) -> None:
    """From SB3's buffer to ours."""
    sizes = [(buffer.buffer_size, buffer.n_envs, buffer.optimize_memory_usage) for buffer in (old, new)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"The loaded replay buffer (rows, environments, optimize_memory_usage: {sizes[0]}) does not fit the model's "
            f"{sizes[1]}."
        )
    for name, column in _columns(new).items():
        column.copy_(th.from_numpy(getattr(old, name)).view(column.shape))
    flags = np.where(old.dones > 0, np.where(old.timeouts > 0, TRUNCATED, TERMINATED), RUNNING)
    new.dones.copy_(th.from_numpy(flags))
    new.pos, new.full = old.pos, old.full


def as_stock_buffer(buffer: DeviceReplayBuffer) -> ReplayBuffer:
    """SB3's own ReplayBuffer, or NStepReplayBuffer, with the same content."""
    several = {"n_steps": buffer.n_steps, "gamma": buffer.gamma} if buffer.n_steps > 1 and SB3_HAS_N_STEPS else {}
    stock = (NStepReplayBuffer if several else ReplayBuffer)(
        buffer.buffer_size * buffer.n_envs,
        buffer.observation_space,
        buffer.action_space,
        device="cpu",
        n_envs=buffer.n_envs,
        optimize_memory_usage=buffer.optimize_memory_usage,
        handle_timeout_termination=buffer.handle_timeout_termination,
        **several,
    )
    for name, column in _columns(stock).items():
        column[...] = getattr(buffer, name).cpu().numpy().reshape(column.shape)
    flags = buffer.dones.cpu().numpy()
    stock.dones[...], stock.timeouts[...] = flags != RUNNING, flags == TRUNCATED
    stock.pos, stock.full = buffer.pos, buffer.full
    return stock
