"""Transitions from SB3's replay buffers to ours and back, for files that stock SB3 loads."""

from __future__ import annotations

import inspect
import warnings
from typing import Any, Dict

import numpy as np
import stable_baselines3.common.buffers as sb3_buffers
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_isaac.buffers.replay_buffer import CUT, RUNNING, TERMINATED, TRUNCATED, DeviceReplayBuffer

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


def from_stock_buffer(old: ReplayBuffer, options: Dict[str, Any]) -> DeviceReplayBuffer:
    """Our buffer with the content and the options of SB3's, as SB3 goes on with what it has loaded.

    :param options: of :class:`DeviceReplayBuffer`, for what SB3's buffer does not say: its device, and of a ReplayBuffer the
        n-step returns
    """
    options = dict(options)
    for name in ("handle_timeout_termination", "n_steps", "gamma"):
        if hasattr(old, name):
            options[name] = getattr(old, name)
    if SB3_HAS_N_STEPS and not hasattr(old, "n_steps") and options.get("n_steps", 1) > 1:
        warnings.warn(
            f"The loaded replay buffer is a ReplayBuffer, without n_steps: n_steps={options['n_steps']} of the model is used. "
            "Stock SB3 would learn from one-step returns.",
            stacklevel=4,
        )
    new = DeviceReplayBuffer(
        old.buffer_size * old.n_envs,
        old.observation_space,
        old.action_space,
        n_envs=old.n_envs,
        optimize_memory_usage=old.optimize_memory_usage,
        **options,
    )
    for name, column in _columns(new).items():
        column.copy_(th.from_numpy(getattr(old, name)).view(column.shape))
    flags = np.where(
        old.dones > 0, np.where(old.timeouts > 0, TRUNCATED, TERMINATED), np.where(old.timeouts > 0, CUT, RUNNING)
    )
    new.dones.copy_(th.from_numpy(flags))
    new.pos, new.full = old.pos, old.full
    return new


def as_stock_buffer(buffer: DeviceReplayBuffer) -> ReplayBuffer:
    """SB3's own ReplayBuffer, or NStepReplayBuffer, with the same content.

    Where SB3 has no such buffer it is a ReplayBuffer on which ``n_steps`` and ``gamma`` are noted, for us: a warning says so.
    """
    several = {"n_steps": buffer.n_steps, "gamma": buffer.gamma} if buffer.n_steps > 1 else {}
    stock_has = SB3_HAS_N_STEPS and not buffer.optimize_memory_usage
    stock = (NStepReplayBuffer if several and stock_has else ReplayBuffer)(
        buffer.buffer_size * buffer.n_envs,
        buffer.observation_space,
        buffer.action_space,
        device="cpu",
        n_envs=buffer.n_envs,
        optimize_memory_usage=buffer.optimize_memory_usage,
        handle_timeout_termination=buffer.handle_timeout_termination,
        **(several if stock_has else {}),
    )
    if several and not stock_has:
        warnings.warn(
            f"Stock SB3 has no replay buffer for n_steps={buffer.n_steps} with observations stored once (nor, before 2.7, for "
            "n_steps at all): from this file it would learn one-step returns. sb3_isaac reads all of it.",
            stacklevel=3,
        )
        stock.__dict__.update(several)
    for name, column in _columns(stock).items():
        column[...] = getattr(buffer, name).cpu().numpy().reshape(column.shape)
    flags = buffer.dones.cpu().numpy()
    if buffer.handle_timeout_termination:
        stock.dones[...], stock.timeouts[...] = flags > RUNNING, (flags == TRUNCATED) | (flags == CUT)
    else:
        # SB3 never writes over these timeouts: they must stay 0. A cut that n-step returns must not cross is then an end
        stock.dones[...] = (flags != RUNNING) if several else (flags > RUNNING)
    stock.pos, stock.full = buffer.pos, buffer.full
    return stock
