"""The replay buffer of a model: made on the device, and saved models and buffers that stock SB3 loads."""

from __future__ import annotations

import contextlib
import inspect
from typing import Any, Dict, Iterator

import numpy as np
import stable_baselines3.common.buffers as sb3_buffers
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_isaac.buffers.n_step import RUNNING
from sb3_isaac.buffers.replay_buffer import TERMINATED, TRUNCATED, DeviceReplayBuffer

SB3_HAS_N_STEPS = "n_steps" in inspect.signature(OffPolicyAlgorithm.__init__).parameters  # from SB3 2.7 on
NStepReplayBuffer = getattr(sb3_buffers, "NStepReplayBuffer", ReplayBuffer)
STANDARD_BUFFERS = (None, ReplayBuffer, NStepReplayBuffer, DeviceReplayBuffer)
"""On the tensor path these classes all mean DeviceReplayBuffer: the same transitions and samples, elsewhere."""
NOT_FOR_STOCK = ("n_steps", "gamma", "storage_device", "generator")
"""Arguments of DeviceReplayBuffer that SB3's ReplayBuffer does not take."""


def use_device_buffer(model: OffPolicyAlgorithm) -> None:
    """Give ``model`` a DeviceReplayBuffer, with what its present replay buffer holds.

    The attribute ``replay_buffer_class`` stays SB3's, so that stock SB3 loads the model.

    :raises ValueError: if the present buffer has another size or number of environments
    """
    model.replay_buffer_class = None  # SB3 fills in its standard class
    kwargs = model.replay_buffer_kwargs = dict(model.replay_buffer_kwargs)
    model.n_steps = int(kwargs.get("n_steps", model.n_steps))
    old = model.replay_buffer
    if isinstance(old, DeviceReplayBuffer):
        if old.n_envs != model.n_envs:
            raise ValueError(f"The replay buffer holds {old.n_envs} environments, the training has {model.n_envs}.")
        return
    model.replay_buffer = DeviceReplayBuffer(
        model.buffer_size,
        model.observation_space,
        model.action_space,
        device=model.device,
        n_envs=model.n_envs,
        optimize_memory_usage=model.optimize_memory_usage,
        **{"n_steps": model.n_steps, "gamma": model.gamma, **kwargs},
    )
    if old is not None and old.size() > 0:
        _copy_transitions(old, model.replay_buffer)


def _columns(buffer: Any) -> Dict[str, Any]:
    """What SB3's buffer and ours store under the same names, but for the ends of episodes."""
    names = ["observations", "actions", "rewards"] + ([] if buffer.optimize_memory_usage else ["next_observations"])
    return {name: getattr(buffer, name) for name in names}


def _copy_transitions(old: ReplayBuffer, new: DeviceReplayBuffer) -> None:
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


@contextlib.contextmanager
def stock_buffer(model: OffPolicyAlgorithm) -> Iterator[None]:
    """For the time of a save: the replay buffer as SB3's own, if it is ours."""
    buffer = model.replay_buffer
    if isinstance(buffer, DeviceReplayBuffer):
        model.replay_buffer = as_stock_buffer(buffer)
    try:
        yield
    finally:
        model.replay_buffer = buffer


@contextlib.contextmanager
def portable(model: OffPolicyAlgorithm, last_obs: Any) -> Iterator[None]:
    """For the time of a save: only what stock SB3, of any version and without a GPU, can load.

    :param last_obs: (N, obs_dim) array to save as the observation to go on from, or None to save the model's own
    """
    swapped: Dict[str, Any] = {}
    if model.replay_buffer_class in STANDARD_BUFFERS:
        # Each SB3 version chooses its own class again, and its arguments
        kwargs = model.replay_buffer_kwargs
        swapped["replay_buffer_class"] = None
        swapped["replay_buffer_kwargs"] = {key: kwargs[key] for key in kwargs if key not in NOT_FOR_STOCK}
        swapped["n_steps"] = kwargs.get("n_steps", model.n_steps)
    if last_obs is not None:
        swapped["_last_obs"] = last_obs
    before = {name: getattr(model, name) for name in swapped}
    model.__dict__.update(swapped)
    try:
        yield
    finally:
        model.__dict__.update(before)
