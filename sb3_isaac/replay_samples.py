"""What a replay buffer's sample consists of."""

from __future__ import annotations

from typing import NamedTuple

import torch as th
from stable_baselines3.common.type_aliases import ReplayBufferSamples

SB3_HAS_DISCOUNTS = "discounts" in ReplayBufferSamples._fields  # from SB3 2.7 on


class ReplaySamples(NamedTuple):
    """SB3's ``ReplayBufferSamples`` with ``discounts`` on every SB3 version; B transitions on the buffer's device."""

    observations: th.Tensor
    """(B, *obs_shape)"""
    actions: th.Tensor
    """(B, action_dim), int64 for Discrete actions"""
    next_observations: th.Tensor
    """(B, *obs_shape), where to bootstrap from: the true final observation if the episode ended there"""
    dones: th.Tensor
    """(B, 1) float32, 1 where there is nothing to bootstrap"""
    rewards: th.Tensor
    """(B, 1) float32, the n-step return up to next_observations"""
    discounts: th.Tensor | None = None
    """(B, 1) float32, gamma ** (number of rewards summed); None for n_steps=1, where it is gamma itself"""


def as_sb3(samples: ReplaySamples) -> ReplayBufferSamples:
    """SB3's tuple.

    :raises RuntimeError: for n-step returns and SB3 before 2.7
    """
    if samples.discounts is not None and not SB3_HAS_DISCOUNTS:
        raise RuntimeError(
            "DeviceReplayBuffer: algorithms of SB3 before 2.7 would discount n-step returns by gamma, use n_steps=1, "
            "sb3_isaac's own algorithms or a newer SB3."
        )
    return ReplayBufferSamples(**{name: getattr(samples, name) for name in ReplayBufferSamples._fields})
