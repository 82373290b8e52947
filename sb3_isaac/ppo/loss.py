"""PPO's loss and its gradients, written out: pure functions of tensors, with few operations.

The formulas are those of ``stable_baselines3.PPO.train``; the gradients are those that autograd would find.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Optional, Tuple

import torch as th

HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)

POLICY_LOSS, SQUARED_ERROR, APPROX_KL, CLIPPED, ENTROPY, KL = range(6)
"""Indices of a minibatch's statistics: the policy loss, and sums over the rows: squared error of the values, SB3's estimate of
the KL divergence, rows outside the clip range, entropy, exact KL divergence from the old policy."""
N_SUMS = 6


class LossSettings(NamedTuple):
    """What PPO minimises (https://arxiv.org/abs/1707.06347), with SB3's names."""

    clip_range: Any
    """A number, or a tensor () where later changes of its content must be seen; likewise the next"""
    clip_range_vf: Any
    ent_coef: float
    vf_coef: float
    normalize_advantage: bool


class Batch(NamedTuple):
    """Rows of a minibatch."""

    observations: th.Tensor
    """(rows, obs_dim)"""
    actions: th.Tensor
    """(rows, action_dim), or (rows, 1) of a Discrete action space"""
    old_values: th.Tensor
    """(rows,)"""
    old_log_prob: th.Tensor
    """(rows,)"""
    advantages: th.Tensor
    """(rows,), scaled by :func:`scaled_advantages` for the gradients"""
    returns: th.Tensor
    """(rows,)"""
    old_distribution: Optional[th.Tensor]
    """What the actions were drawn from, where the exact KL divergence is wanted: (rows, action_dim) means of a Gaussian, or
    (rows, n_actions) log-probabilities of a Categorical"""

    @classmethod
    def unpack(cls, rows: th.Tensor, obs_dim: int, action_dim: int) -> Batch:
        """Views of the columns of packed rows, in which the fields follow each other."""
        first = obs_dim + action_dim
        old = rows[:, first + 4 :] if rows.shape[1] > first + 4 else None
        return cls._make((rows[:, :obs_dim], rows[:, obs_dim:first], *rows[:, first : first + 4].unbind(1), old))


def scaled_advantages(advantages: th.Tensor, normalize: bool, moments: Optional[th.Tensor] = None) -> th.Tensor:
    """What each row's probability ratio adds to the policy loss: -advantage / rows.

    :param advantages: (rows,) of the whole minibatch
    :param normalize: bring them to mean 0 and standard deviation 1 first, with SB3's epsilon
    :param moments: (2,) mean and standard deviation, where the minibatch is shared out among several ranks
    """
    n_rows = len(advantages)
    if normalize and moments is not None:
        return (advantages - moments[0]).mul_((-1.0 / n_rows) / (moments[1] + 1e-8))
    if not normalize or n_rows < 2:
        return advantages * (-1.0 / n_rows)
    centered = advantages - advantages.mean()
    std = th.linalg.vector_norm(centered) * (1.0 / math.sqrt(n_rows - 1))
    return centered.mul_((-1.0 / n_rows) / (std + 1e-8))


def policy_gradient(
    log_ratio: th.Tensor, advantages: th.Tensor, clip_range: float
) -> Tuple[th.Tensor, th.Tensor, th.Tensor, th.Tensor]:
    """The clipped surrogate.

    :param log_ratio: (rows,), new minus old log-probability
    :param advantages: (rows,) from :func:`scaled_advantages`
    :return: the loss's gradient with respect to ``log_ratio``, and loss, approximate KL, clipped of each row
    """
    # --8<-- [start:clip]
    ratio = log_ratio.exp()
    clipped_ratio = ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
    loss, clipped_loss = advantages * ratio, advantages * clipped_ratio
    # Where the clipped one is larger the gradient is zero; d ratio / d log_ratio = ratio
    grad = loss * (loss >= clipped_loss)
    return grad, th.maximum(loss, clipped_loss), ratio - 1.0 - log_ratio, (ratio != clipped_ratio).to(ratio.dtype)
    # --8<-- [end:clip]


def value_gradient(
    values: th.Tensor,
    returns: th.Tensor,
    old_values: th.Tensor,
    clip_range_vf: Optional[float],
    vf_coef: float,
    n_rows: int,
) -> Tuple[th.Tensor, th.Tensor]:
    """The value loss of rows that are part of a minibatch of ``n_rows``.

    :param values: (rows, 1)
    :param returns: (rows,), likewise ``old_values``
    :return: the loss's gradient with respect to ``values`` (rows, 1), and the squared errors (rows,)
    """
    values = values.squeeze(1)
    if clip_range_vf is None:
        error = values - returns
        grad = error
    else:
        change = values - old_values
        error = old_values + change.clamp(-clip_range_vf, clip_range_vf) - returns
        grad = error * (change.abs() <= clip_range_vf)
    return (grad * (2.0 * vf_coef / n_rows)).unsqueeze(1), error.square()


def gaussian_gradients(
    mean: th.Tensor,
    log_std: th.Tensor,
    old_log_std: Optional[th.Tensor],
    squared_errors: th.Tensor,
    actions: th.Tensor,
    old_log_prob: th.Tensor,
    advantages: th.Tensor,
    old_mean: Optional[th.Tensor],
    clip_range: float,
) -> Tuple[th.Tensor, th.Tensor, th.Tensor]:
    """Gradients of the policy loss for a diagonal Gaussian.

    :param mean: (rows, action_dim)
    :param log_std: (action_dim,)
    :param old_log_std: (action_dim,) that goes with ``old_mean``
    :param squared_errors: (rows,) of the values, to be summed with the other statistics
    :param old_mean: (rows, action_dim) :attr:`Batch.old_distribution`, and so the other columns of :class:`Batch`
    :return: gradients with respect to mean and log_std (the latter without the entropy's), and the statistics (N_SUMS,)
    """
    half_log_2pi = 0.5 * math.log(2.0 * math.pi)  # TorchScript does not see HALF_LOG_2PI
    inv_std, total_log_std, dim = (-log_std).exp(), log_std.sum(), log_std.numel()
    z = (actions - mean) * inv_std
    z_square = z.square()
    distance = z_square.sum(1) if dim > 1 else z_square.squeeze(1)
    log_ratio = distance * -0.5 - (old_log_prob + (total_log_std + dim * half_log_2pi))
    grad, loss, approx_kl, clipped = policy_gradient(log_ratio, advantages, clip_range)
    entropy = (total_log_std + dim * (0.5 + half_log_2pi)).expand_as(loss)
    if old_mean is None or old_log_std is None:
        kl = approx_kl
    else:
        moved = ((old_mean - mean) * inv_std).square().sum(1) * 0.5
        kl = moved + (log_std - old_log_std + 0.5 * (2.0 * (old_log_std - log_std)).exp() - 0.5).sum()
    sums = th.stack([loss, squared_errors, approx_kl, clipped, entropy, kl]).sum(1)
    return grad.unsqueeze(1) * z * inv_std, grad @ (z_square - 1.0), sums


def categorical_gradients(
    logits: th.Tensor,
    squared_errors: th.Tensor,
    actions: th.Tensor,
    old_log_prob: th.Tensor,
    advantages: th.Tensor,
    old_log_p: Optional[th.Tensor],
    clip_range: float,
    ent_coef: float,
    n_rows: int,
) -> Tuple[th.Tensor, th.Tensor]:
    """As :func:`gaussian_gradients`, for (rows, n_actions) logits: the gradient with respect to them, and the statistics.

    The entropy's gradient is included; ``n_rows`` are those of the whole minibatch.
    """
    log_p = th.log_softmax(logits, 1)
    p = log_p.exp()
    chosen_actions = actions.long()
    log_ratio = log_p.gather(1, chosen_actions).squeeze(1) - old_log_prob
    grad, loss, approx_kl, clipped = policy_gradient(log_ratio, advantages, clip_range)
    entropy = -(p * log_p).sum(1)
    chosen = chosen_actions == th.arange(logits.shape[1], device=logits.device)
    grad_logits = (chosen.to(p.dtype) - p) * grad.unsqueeze(1)
    if ent_coef != 0.0:
        grad_logits = grad_logits + p * (log_p + entropy.unsqueeze(1)) * (ent_coef / n_rows)
    kl = approx_kl if old_log_p is None else (old_log_p.exp() * (old_log_p - log_p)).sum(1)
    return grad_logits, th.stack([loss, squared_errors, approx_kl, clipped, entropy, kl]).sum(1)
