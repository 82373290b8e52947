"""What the layers around a simulator make of its step, in Triton, where an algorithm's ``precision`` asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch as th

from sb3_isaac._for_c import dense
from sb3_isaac.backends.base import StepResult
from sb3_isaac.device.cuda_graph import on_device
from sb3_isaac.device.fused import block, n_blocks

if TYPE_CHECKING:
    from sb3_isaac.envs.running_mean_std import RunningMoments

BLOCK = 128
"""Environments in a block, where each is for itself"""
COLUMN_BLOCK = 1024
"""Environments that a program takes at once, where it goes over all of them"""


def note_step(result: StepResult, dones: th.Tensor, returns: th.Tensor, lengths: th.Tensor) -> None:
    """What ``IsaacVecEnv.step_tensor`` keeps of a step, in one kernel.

    :param dones: (N,) bool, of the last step, updated, likewise the next two
    :param returns: (N,) float32
    :param lengths: (N,) int64
    """
    from sb3_isaac.envs import kernels

    n = len(dones)
    ends = [dense(column, n, dtype=th.bool) for column in (result.terminated, result.truncated)]
    with on_device(dones.device):  # Triton takes the current one
        kernels.note_step[(n_blocks(n, BLOCK),)](dense(result.reward, n), *ends, dones, returns, lengths, n, BLOCK=BLOCK)


def normalize_step(
    result: StepResult,
    dones: th.Tensor,
    returns: th.Tensor,
    moments: RunningMoments,
    gamma: th.Tensor,
    training: bool,
    norm_obs: bool,
    norm_reward: bool,
    clip_obs: float,
    clip_reward: float,
) -> StepResult:
    """What ``VecNormalize.step_tensor`` makes of a step, in two kernels.

    :param dones: (N,) bool, of this step
    :param returns: (N,) float64, discounted returns of the running episodes, updated
    :param moments: (obs_dim + 1 columns), updated if it is ``training``; the last is of the returns
    :param gamma: () float64
    """
    from sb3_isaac.envs import kernels

    n, columns = len(dones), len(moments.mean) - 1
    obs, final_obs = (dense(x, n * columns) for x in (result.obs, result.final_obs))
    reward = dense(result.reward, n)
    finished = result
    if norm_obs:
        finished = finished._replace(obs=th.empty_like(obs), final_obs=th.empty_like(final_obs))
    if norm_reward:
        finished = finished._replace(reward=th.empty_like(reward))
    with on_device(dones.device):
        if training:
            first = 0 if norm_obs else columns
            statistics = (moments.mean, moments.var, moments.count, moments.scale, moments.offset, moments.epsilon)
            kernels.update_moments[(columns + 1 - first,)](
                obs, reward, returns, gamma, *statistics, n, first, COLUMNS=columns, BLOCK=COLUMN_BLOCK, num_warps=8
            )
        rows = max(16, 16 * BLOCK // block(columns))  # of wide observations fewer at once
        kernels.normalize_step[(n_blocks(n, rows),)](
            *(obs, final_obs, reward, dones, returns, moments.scale, moments.offset, clip_obs, clip_reward),
            *(finished.obs, finished.final_obs, finished.reward, n),
            NORM_OBS=norm_obs,
            NORM_REWARD=norm_reward,
            COLUMNS=columns,
            BI=block(columns),
            BLOCK=rows,
        )
    return finished
