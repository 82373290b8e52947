"""PPO's loss and its gradients, written out: pure functions of tensors.

The formulas are those of ``stable_baselines3.PPO.train``; the gradients are those that autograd would find.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Optional, Tuple

import torch as th
from stable_baselines3.common.type_aliases import RolloutBufferSamples

HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
SURROGATE, SQUARED_ERROR, APPROX_KL, CLIPPED, ENTROPY, KL = range(6)
"""Places of the statistics of a minibatch, all sums over its rows: surrogate objective, squared error of the values,
SB3's estimate of the KL divergence, rows outside the clip range, entropy, exact KL divergence from the old policy."""
N_SUMS = 6

class Objective(NamedTuple):
    """What PPO minimises (https://arxiv.org/abs/1707.06347), with SB3's names."""

    clip_range: Any
    """A number, or a tensor () where later changes of its content must be seen; likewise the next"""
    clip_range_vf: Any
    ent_coef: float
    vf_coef: float
    normalize_advantage: bool


class OldPolicy(NamedTuple):
    """The distribution that a minibatch's actions came from."""

    parameters: th.Tensor
    """(rows, action_dim) means of a Gaussian, or (rows, n_actions) log-probabilities of a Categorical"""
    log_std: Optional[th.Tensor]
    """(action_dim,) of a Gaussian"""


def normalized(advantages: th.Tensor) -> th.Tensor:
    """Mean 0 and standard deviation 1 over the minibatch, with SB3's epsilon."""
    centered = advantages - advantages.mean()
    std = th.linalg.vector_norm(centered) / math.sqrt(len(advantages) - 1)
    return centered.div_(std + 1e-8)


def policy_gradient(
    log_prob: th.Tensor, old_log_prob: th.Tensor, advantages: th.Tensor, clip_range: Any, n_rows: int
) -> Tuple[th.Tensor, Tuple[th.Tensor, ...]]:
    """The clipped surrogate of rows that are part of a minibatch of ``n_rows``.

    :return: the loss's gradient with respect to ``log_prob``, and (surrogate, approximate KL, clipped) of each row
    """
    log_ratio = log_prob - old_log_prob
    ratio = log_ratio.exp()
    surrogate = advantages * ratio
    clipped_surrogate = advantages * ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
    # Where the clipped one is smaller the gradient is zero; d ratio / d log_prob = ratio
    grad = th.where(surrogate <= clipped_surrogate, surrogate, surrogate.new_zeros(())) / -n_rows
    distance = ratio - 1.0
    rows = (th.minimum(surrogate, clipped_surrogate), distance - log_ratio, (distance.abs() > clip_range).to(ratio.dtype))
    return grad, rows


def value_gradient(
    values: th.Tensor, samples: RolloutBufferSamples, objective: Objective, n_rows: int
) -> Tuple[th.Tensor, th.Tensor]:
    """The value loss of rows that are part of a minibatch.

    :param values: (rows, 1)
    :return: the loss's gradient with respect to ``values`` (rows, 1), and the squared errors (rows,)
    """
    values, clip = values.squeeze(1), objective.clip_range_vf
    if clip is None:
        error = grad = values - samples.returns
    else:
        change = values - samples.old_values
        error = samples.old_values + change.clamp(-clip, clip) - samples.returns
        grad = th.where(change.abs() <= clip, error, error.new_zeros(()))
    return (grad * (2.0 * objective.vf_coef / n_rows)).unsqueeze(1), error.square()


def gaussian_gradients(
    mean: th.Tensor,
    log_std: th.Tensor,
    squared_errors: th.Tensor,
    samples: RolloutBufferSamples,
    objective: Objective,
    n_rows: int,
    old: Optional[OldPolicy],
) -> Tuple[th.Tensor, th.Tensor, th.Tensor]:
    """Gradients of PPO's loss for a diagonal Gaussian.

    :param mean: (rows, action_dim)
    :param log_std: (action_dim,)
    :param squared_errors: (rows,) of the values, to be summed with the other statistics
    :param samples: the rows, with normalised advantages
    :param n_rows: rows of the whole minibatch
    :param old: where the exact KL divergence is wanted
    :return: gradients with respect to mean and log_std (the latter without the entropy's), and the sums
    """
    inv_std = (-log_std).exp()
    z = (samples.actions - mean) * inv_std
    z_square = z.square()
    total_log_std = log_std.sum()
    log_prob = z_square.sum(1) * -0.5 - (total_log_std + log_std.numel() * HALF_LOG_2PI)
    grad, (surrogate, approx_kl, clipped) = policy_gradient(
        log_prob, samples.old_log_prob, samples.advantages, objective.clip_range, n_rows
    )
    entropy = (total_log_std + log_std.numel() * (0.5 + HALF_LOG_2PI)).expand_as(log_prob)
    if old is None or old.log_std is None:
        kl = approx_kl
    else:
        moved = ((old.parameters - mean) * inv_std).square().sum(1) * 0.5
        spread = log_std - old.log_std + 0.5 * (2.0 * (old.log_std - log_std)).exp() - 0.5
        kl = moved + spread.sum()
    sums = th.stack((surrogate, squared_errors, approx_kl, clipped, entropy, kl)).sum(1)
    return grad.unsqueeze(1) * z * inv_std, grad @ (z_square - 1.0), sums


def categorical_gradients(
    logits: th.Tensor,
    squared_errors: th.Tensor,
    samples: RolloutBufferSamples,
    objective: Objective,
    n_rows: int,
    old: Optional[OldPolicy],
) -> Tuple[th.Tensor, th.Tensor]:
    """As :func:`gaussian_gradients`, for (rows, n_actions) logits: the gradient with respect to them, and the sums."""
    log_p = th.log_softmax(logits, 1)
    p = log_p.exp()
    actions = samples.actions.long()
    log_prob = log_p.gather(1, actions).squeeze(1)
    grad, (surrogate, approx_kl, clipped) = policy_gradient(
        log_prob, samples.old_log_prob, samples.advantages, objective.clip_range, n_rows
    )
    entropy = -(p * log_p).sum(1)
    chosen = actions == th.arange(logits.shape[1], device=logits.device)
    grad_logits = (chosen.to(p.dtype) - p) * grad.unsqueeze(1)
    if objective.ent_coef != 0.0:
        grad_logits = grad_logits + p * (log_p + entropy.unsqueeze(1)) * (objective.ent_coef / n_rows)
    kl = approx_kl if old is None else (old.parameters.exp() * (old.parameters - log_p)).sum(1)
    return grad_logits, th.stack((surrogate, squared_errors, approx_kl, clipped, entropy, kl)).sum(1)
