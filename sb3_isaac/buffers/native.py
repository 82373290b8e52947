"""Transitions are packed for a replay buffer, and drawn from it, in C (``replay.c``), where ``compile=True`` asks for it."""

from __future__ import annotations

from typing import Any

import torch as th

from sb3_isaac._for_c import dense, pointer
from sb3_isaac._native import library


def replay_pack(
    obs: th.Tensor,
    next_obs: th.Tensor,
    actions: th.Tensor,
    rewards: th.Tensor,
    terminated: th.Tensor,
    truncated: th.Tensor,
    row: th.Tensor,
    action_dim: int,
) -> None:
    """What ``DeviceReplayBuffer.pack`` returns, written into ``row`` (N, columns)."""
    n = len(row)
    obs_dim = (row.shape[1] - action_dim - 2) // 2
    given = dense(obs, n * obs_dim), dense(actions, n * action_dim), dense(rewards, n)
    ends = dense(terminated, n, th.bool), dense(truncated, n, th.bool)
    tensors = (*given, *ends, dense(next_obs, n * obs_dim), row)
    library().replay_pack(n, obs_dim, action_dim, *(x.data_ptr() for x in tensors))


def replay_samples(
    table: th.Tensor,
    index: th.Tensor,
    newest: int,
    n_steps: int,
    gamma: float,
    time_limits: bool,
    factors: tuple[Any, ...],
    written: tuple[th.Tensor, ...],
) -> None:
    """What ``DeviceReplayBuffer.at`` returns: arguments as in :func:`sb3_isaac.buffers.fused.replay_samples`.

    :raises IndexError: an index is out of range
    """
    n_rows, n_envs, width = table.shape
    obs, actions = written[:2]
    scale, offset, clip_obs, reward_scale, clip_reward = factors
    missing = library().replay_samples(
        *(table.data_ptr(), obs.shape[1:].numel(), actions.shape[1], width, n_rows, n_envs),
        *(index.data_ptr(), len(index), n_steps, gamma, newest),
        *(time_limits, pointer(scale), pointer(offset), clip_obs),
        *(pointer(reward_scale), clip_reward, *map(pointer, written)),
    )
    if missing != 0:
        raise IndexError(f"DeviceReplayBuffer: {missing} of {len(index)} indices are out of range.")
