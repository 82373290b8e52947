# mypy: ignore-errors
"""Triton kernel that draws transitions from a replay buffer.

Imported by :mod:`sb3_isaac.buffers.fused` only, where there is Triton. The plain path, which tests compare it with, is
:meth:`~sb3_isaac.DeviceReplayBuffer.at`.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _clipped(x, clip):
    """Within +-clip; not a number stays one, as in torch."""
    x = tl.maximum(x, -clip, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(x, clip, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _copy_obs(
    table, at, there, scale, offset, clip, out, i, used, n_columns, NORM: tl.constexpr, COLUMNS: tl.constexpr, BC: tl.constexpr
):
    """Observations that begin at these places of the table, to rows ``i`` of ``out``, normalised or not."""
    c = tl.arange(0, BC)
    inside = used[:, None] & (c[None, :] < COLUMNS)
    x = tl.load(table + at[:, None] + c[None, :], mask=inside & there[:, None], other=0.0)
    if NORM:
        factor = tl.load(scale + c, mask=c < COLUMNS, other=0.0)
        shift = tl.load(offset + c, mask=c < COLUMNS, other=0.0)
        x = _clipped(shift[None, :] + x * factor[None, :], clip)
    tl.store(out + i[:, None].to(tl.int64) * n_columns + c[None, :], x, mask=inside)


@triton.jit
def replay_samples(
    table,  # (n_rows * n_envs, width)
    width,
    n_rows,
    n_envs,
    total,  # n_rows * n_envs
    index,  # (n,) int64
    newest,  # () int64, row of the newest transitions
    powers,  # (n_steps + 1,) of gamma
    scale,  # (OBS,) of the observations, likewise the next, if NORM_OBS
    offset,
    reward_scale,  # (1,) if NORM_REWARD
    obs,  # (n, OBS) written, likewise the others
    actions,  # (n, ACT)
    next_obs,  # (n, OBS)
    dones,  # (n,)
    returns,  # (n,) of n_steps rewards
    discounts,  # (n,)
    n,
    n_steps,
    gamma,
    clip_obs,
    clip_reward,
    OBS: tl.constexpr,
    ACT: tl.constexpr,
    HAS_NEXT_OBS: tl.constexpr,  # else it is in the next row
    TIME_LIMITS: tl.constexpr,  # whether to bootstrap behind them
    NORM_OBS: tl.constexpr,
    NORM_REWARD: tl.constexpr,
    BI: tl.constexpr,  # powers of 2 that hold OBS and ACT
    BA: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Transitions with their n-step returns."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    used = i < n
    first = tl.load(index + i, mask=used, other=0)
    there = used & (first >= 0) & (first < total)
    REWARD: tl.constexpr = OBS + ACT
    left = tl.load(newest) - first // n_envs  # behind the newest come the oldest, or nothing
    left = tl.where(left < 0, left + n_rows, left)
    at, last, going = first, first, there
    summed = tl.zeros((BLOCK,), tl.float32)
    weight = tl.full((BLOCK,), 1.0, tl.float32)
    steps = tl.zeros((BLOCK,), tl.int32)
    flag = tl.zeros((BLOCK,), tl.float32)
    for k in range(n_steps):
        place = table + at * width + REWARD
        reward = tl.load(place, mask=going, other=0.0)
        if NORM_REWARD:
            reward = _clipped(reward * tl.load(reward_scale), clip_reward)
        summed += tl.where(going, weight * reward, 0.0)
        flag = tl.where(going, tl.load(place + 1, mask=going, other=0.0), flag)
        last = tl.where(going, at, last)
        steps += tl.where(going, 1, 0)
        weight *= gamma
        going = going & (flag == 0.0) & (k < left) & (weight > 0.0)
        at += n_envs
        at = tl.where(at < total, at, at - total)
    tl.store(returns + i, tl.where(there, summed, float("nan")), mask=used)  # what is not there must be seen to be wrong
    tl.store(discounts + i, tl.load(powers + steps, mask=used, other=0.0), mask=used)
    if TIME_LIMITS:
        ended = flag == 1.0
    else:
        ended = flag > 0.0
    tl.store(dones + i, tl.where(ended, 1.0, 0.0), mask=used)
    _copy_obs(table, first * width, there, scale, offset, clip_obs, obs, i, used, OBS, NORM_OBS, OBS, BI)
    _copy_obs(table, first * width + OBS, there, scale, offset, clip_obs, actions, i, used, ACT, False, ACT, BA)
    if HAS_NEXT_OBS:
        behind = last * width + REWARD + 2
    else:
        behind = last + n_envs
        behind = tl.where(behind < total, behind, behind - total) * width
    _copy_obs(table, behind, there, scale, offset, clip_obs, next_obs, i, used, OBS, NORM_OBS, OBS, BI)
