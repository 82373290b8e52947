"""Transitions drawn from a replay buffer in one Triton kernel, where an algorithm's ``precision`` asks for it."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch as th

BLOCK = 64
"""Transitions in a block; fewer of wide observations"""
MOST_COLUMNS = 128
"""Of observations and actions: wider ones would not fit into registers"""


def replay_samples(
    table: th.Tensor,
    index: th.Tensor,
    newest: th.Tensor,
    powers: th.Tensor,
    gamma: float,
    time_limits: bool,
    factors: tuple[Any, ...],
    written: tuple[th.Tensor, ...],
) -> None:
    """What ``DeviceReplayBuffer.at`` returns. Of indices that are out of range the returns are NaN.

    :param table: (n_rows, n_envs, width)
    :param index: (B,) int64
    :param newest: () int64, row of the newest transitions
    :param powers: (n_steps + 1,) of gamma
    :param time_limits: whether to bootstrap behind them
    :param factors: as ``VecNormalize.factors`` says
    :param written: observations (B, *obs_shape), actions (B, action_dim), next observations, dones (B, 1), returns (B, 1) and
        discounts (B, 1)
    """
    from sb3_isaac.buffers import kernels

    n_rows, n_envs, width = table.shape
    obs, actions = written[:2]
    n, action_dim, obs_dim = len(index), actions.shape[1], obs.shape[1:].numel()
    scale, offset, clip_obs, reward_scale, clip_reward = factors
    columns = 1 << (obs_dim - 1).bit_length()
    rows = max(16, min(BLOCK, 2048 // columns))
    with th.cuda.device(table.device) if table.is_cuda else nullcontext():  # Triton takes the current one
        kernels.replay_samples[(-(-n // rows),)](
            *(table, width, n_rows, n_envs, n_rows * n_envs, index, newest, powers),
            *(powers if factor is None else factor for factor in (scale, offset, reward_scale)),
            *written,
            *(n, len(powers) - 1, gamma, clip_obs, clip_reward),
            OBS=obs_dim,
            ACT=action_dim,
            HAS_NEXT_OBS=width > obs_dim + action_dim + 2,
            TIME_LIMITS=time_limits,
            NORM_OBS=scale is not None,
            NORM_REWARD=reward_scale is not None,
            BI=columns,
            BA=1 << (action_dim - 1).bit_length(),
            BLOCK=rows,
        )
