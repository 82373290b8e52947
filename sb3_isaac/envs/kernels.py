# mypy: ignore-errors
"""Triton kernels of what the layers around a simulator make of its step: the episodes' statistics, VecNormalize.

Imported by :mod:`sb3_isaac.envs.fused` only, where there is Triton. The plain path, which tests compare them with, is in
``IsaacVecEnv.step_tensor``, ``VecNormalize.step_tensor`` and ``running_mean_std.py``.
"""

from __future__ import annotations

import triton
import triton.language as tl

from sb3_isaac.device.mlp_kernels import clamped


@triton.jit
def note_step(
    reward,  # (n,)
    terminated,  # (n,) bool
    truncated,  # (n,) bool
    dones,  # (n,) bool, updated
    returns,  # (n,) updated
    lengths,  # (n,) int64, updated
    n,
    BLOCK: tl.constexpr,
):
    """What :class:`~sb3_isaac.IsaacVecEnv` keeps of a step."""
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = e < n
    ended = tl.load(dones + e, mask=inside, other=0) != 0
    so_far = tl.where(ended, 0.0, tl.load(returns + e, mask=inside, other=0.0))
    steps = tl.load(lengths + e, mask=inside, other=0)
    tl.store(returns + e, so_far + tl.load(reward + e, mask=inside, other=0.0), mask=inside)
    tl.store(lengths + e, tl.where(ended, 0, steps) + 1, mask=inside)
    failed = tl.load(terminated + e, mask=inside, other=0) != 0
    timed_out = tl.load(truncated + e, mask=inside, other=0) != 0
    tl.store(dones + e, failed | timed_out, mask=inside)


@triton.jit
def _column(obs, returns, e, k, n, COLUMNS: tl.constexpr):
    """Some numbers of a column, in float64: of the observations, or the new discounted returns behind those, which lie there
    already."""
    inside = e < n
    if k == COLUMNS:
        x = tl.load(returns + e, mask=inside, other=0.0)
    else:
        x = tl.load(obs + e.to(tl.int64) * COLUMNS + k, mask=inside, other=0.0).to(tl.float64)
    return x


@triton.jit
def update_moments(
    obs,  # (n, COLUMNS)
    reward,  # (n,)
    returns,  # (n,) float64, updated
    gamma,  # () float64
    mean,  # (COLUMNS + 1,) float64, updated, likewise the next four; the last is of the returns
    var,
    count,
    scale,  # (COLUMNS + 1,) float32
    offset,  # (COLUMNS + 1,) float32
    epsilon,  # (COLUMNS + 1,) float64
    n,
    first,  # column of the first program
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The running statistics take in a step: one program for each column, which passes over it twice. See
    :meth:`~sb3_isaac.envs.running_mean_std.RunningMoments.update`."""
    k = tl.program_id(0) + first
    if k == COLUMNS:
        discount = tl.load(gamma)
        for start in range(0, n, BLOCK):
            e = start + tl.arange(0, BLOCK)
            inside = e < n
            so_far = tl.load(returns + e, mask=inside, other=0.0)
            tl.store(returns + e, so_far * discount + tl.load(reward + e, mask=inside, other=0.0).to(tl.float64), mask=inside)
        tl.debug_barrier()  # other threads may read what these have written
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, n, BLOCK):
        total += _column(obs, returns, start + tl.arange(0, BLOCK), k, n, COLUMNS)
    batch_mean = tl.sum(total, 0) / n
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, n, BLOCK):
        e = start + tl.arange(0, BLOCK)
        difference = _column(obs, returns, e, k, n, COLUMNS) - batch_mean
        total += tl.where(e < n, difference * difference, 0.0)
    batch_var = tl.sum(total, 0) / n
    old_mean, old_var, new_count = tl.load(mean + k), tl.load(var + k), tl.load(count + k) + n
    tl.debug_barrier()  # the thread that changes these waits for those that have yet to read them
    finite = batch_var < float("inf")  # else there is NaN or infinity in the column
    batch_mean, batch_var = tl.where(finite, batch_mean, old_mean), tl.where(finite, batch_var, old_var)
    weight = n / new_count
    delta = batch_mean - old_mean
    new_mean = old_mean + delta * weight
    new_var = old_var + weight * (batch_var + delta * (batch_mean - new_mean) - old_var)
    factor = 1.0 / tl.sqrt(new_var + tl.load(epsilon + k))
    tl.store(mean + k, new_mean)
    tl.store(var + k, new_var)
    tl.store(count + k, new_count)
    tl.store(scale + k, factor.to(tl.float32))
    tl.store(offset + k, (-new_mean * factor).to(tl.float32))


@triton.jit
def normalize_step(
    obs,  # (n, COLUMNS)
    final_obs,  # (n, COLUMNS)
    reward,  # (n,)
    dones,  # (n,) bool
    returns,  # (n,) float64: 0 from now on where an episode has ended
    scale,  # (COLUMNS + 1,)
    offset,  # (COLUMNS + 1,)
    clip_obs,
    clip_reward,
    new_obs,  # (n, COLUMNS) written, if NORM_OBS
    new_final_obs,
    new_reward,  # (n,) written, if NORM_REWARD
    n,
    NORM_OBS: tl.constexpr,
    NORM_REWARD: tl.constexpr,
    COLUMNS: tl.constexpr,
    BI: tl.constexpr,  # a power of 2 that holds them
    BLOCK: tl.constexpr,
):
    """What :class:`~sb3_isaac.VecNormalize` makes of a step."""
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = e < n
    ended = tl.load(dones + e, mask=inside, other=0) != 0
    tl.store(returns + e, tl.zeros((BLOCK,), tl.float64), mask=inside & ended)
    if NORM_REWARD:
        scaled = tl.load(reward + e, mask=inside, other=0.0) * tl.load(scale + COLUMNS)
        tl.store(new_reward + e, clamped(scaled, -clip_reward, clip_reward), mask=inside)
    if NORM_OBS:
        i = tl.arange(0, BI)
        factor = tl.load(scale + i, mask=i < COLUMNS, other=0.0)
        shift = tl.load(offset + i, mask=i < COLUMNS, other=0.0)
        at = e[:, None].to(tl.int64) * COLUMNS + i[None, :]
        used = inside[:, None] & (i[None, :] < COLUMNS)
        x = tl.load(obs + at, mask=used, other=0.0)
        tl.store(new_obs + at, clamped(shift[None, :] + x * factor[None, :], -clip_obs, clip_obs), mask=used)
        x = tl.load(final_obs + at, mask=used, other=0.0)
        tl.store(new_final_obs + at, clamped(shift[None, :] + x * factor[None, :], -clip_obs, clip_obs), mask=used)
