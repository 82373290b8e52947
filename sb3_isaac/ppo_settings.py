"""What PPO's update is told, and what it tells."""

from __future__ import annotations

from typing import Dict, NamedTuple, Optional

import torch as th


class AdaptiveLR(NamedTuple):
    """Learning rate that keeps the KL divergence between the old and the new policy near a target.

    Source: rsl_rl (https://github.com/leggedrobotics/rsl_rl) and rl_games; the idea is in section 4 of
    https://arxiv.org/abs/1707.06347.
    """

    target: float
    """At more than twice the target the rate is divided by ``factor``, at less than half multiplied."""
    factor: float
    lowest: float
    highest: float

    def adapt_(self, lr: th.Tensor, kl: th.Tensor) -> None:
        """Change ``lr`` () in place, given the KL divergence () of the minibatch at hand."""
        slower, faster = (lr / self.factor).clamp_(min=self.lowest), (lr * self.factor).clamp_(max=self.highest)
        # Before the first step the policy has not moved (but for rounding): nothing can be learned from that
        too_small = (kl < 0.5 * self.target) & (kl > 1e-6)
        lr.copy_(th.where(kl > 2.0 * self.target, slower, th.where(too_small, faster, lr)))


class Settings(NamedTuple):
    """What one update needs to know, with SB3's names."""

    n_epochs: int
    batch_size: int
    clip_range: float
    clip_range_vf: Optional[float]
    ent_coef: float
    vf_coef: float
    max_grad_norm: float
    normalize_advantage: bool
    target_kl: Optional[float]
    adaptive_lr: Optional[AdaptiveLR]


class UpdateLog(NamedTuple):
    """What an update has to tell, on the host."""

    losses: Dict[str, float]
    """By SB3's logger keys"""
    learning_rate: float
    """The last one"""
    epochs: int
    """Epochs done, the one that target_kl ended included"""
    stopped_at: Optional[float]
    """The KL divergence at which target_kl ended the update"""
