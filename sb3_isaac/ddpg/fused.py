"""The networks of :class:`~sb3_isaac.ddpg.fast_policy.FastTD3Policy` in Triton, where ``DDPG(precision=...)`` asks for it."""

from __future__ import annotations

from typing import Any, Dict, Optional, Sequence, Tuple

import torch as th

from sb3_isaac.device.cuda_graph import on_device
from sb3_isaac.device.fast_mlp import ACTIVATIONS, Layers
from sb3_isaac.device.flat_adam import FlatAdam
from sb3_isaac.device.fused import ROWS, Parts, block, layer_starts, n_blocks, starts_of, widths


class FusedActorCritics:
    """Actor, critics and their targets.

    :param actor: layers for which :func:`~sb3_isaac.device.fused.why_not_fused` has no reason, likewise ``critics``
    :param actor_adam: of the actor, into whose ``grad`` gradients are written, likewise ``critic_adam``
    :param targets: the target networks' parameters, flat and in the same order: the actor's and the critics'
    :param precision: of :data:`~sb3_isaac.settings.table.PRECISIONS`
    """

    def __init__(
        self,
        actor: Layers,
        critics: Sequence[Layers],
        actor_adam: FlatAdam,
        critic_adam: FlatAdam,
        targets: Tuple[th.Tensor, th.Tensor],
        precision: str,
    ) -> None:
        self._actor_adam, self._critic_adam, self._targets = actor_adam, critic_adam, targets
        self._n_critics, critic = len(critics), critics[0]
        n_inputs, n_actions = actor[0][0].in_features, actor[-1][0].out_features
        (a1, a2), (c1, c2) = widths(actor), widths(critic)
        self._actor_starts = layer_starts(actor, starts_of(actor_adam.parameters), "actor_")
        self._critic_starts = layer_starts(critic, starts_of(critic_adam.parameters), "critic_")
        self._critic_size = critic_adam.flat.numel() // self._n_critics
        blocks = {"BI": block(n_inputs), "BA": block(n_actions), "BC1": block(c1), "BC2": block(max(c2, 1))}
        self._shape: Dict[str, Any] = {"IN": n_inputs, "ACT": n_actions, "CH1": c1, "CH2": c2, **blocks}
        self._shape.update(KIND=ACTIVATIONS[critic[0][1]], PRECISION=precision, ROWS=ROWS[precision])
        actor_blocks = {"BA1": block(a1), "BA2": block(max(a2, 1))}
        self._actor_shape: Dict[str, Any] = {"AH1": a1, "AH2": a2, **actor_blocks, "OUT_KIND": ACTIVATIONS[actor[-1][1]]}
        self._actor_parts, self._critic_parts = Parts(actor_adam), Parts(critic_adam, self._n_critics)

    def next_values(self, next_obs: th.Tensor, noise: Optional[th.Tensor]) -> th.Tensor:
        """See :meth:`FastTD3Policy.next_values <sb3_isaac.ddpg.fast_policy.FastTD3Policy.next_values>`."""
        from sb3_isaac.ddpg import kernels

        next_obs, n_rows = next_obs.contiguous(), len(next_obs)
        values = next_obs.new_empty(n_rows, 1)
        with on_device(next_obs.device):  # Triton takes the current one
            kernels.next_values[(n_blocks(n_rows, self._shape["ROWS"]),)](
                next_obs,
                next_obs.stride(0),
                values if noise is None else noise.contiguous(),
                n_rows,
                *self._targets,
                values,
                **self._actor_starts,
                **self._critic_starts,
                critic_size=self._critic_size,
                **self._shape,
                **self._actor_shape,
                N_CRITICS=self._n_critics,
                NOISE=noise is not None,
            )
        return values

    def critic_gradients(self, obs: th.Tensor, actions: th.Tensor, targets: th.Tensor, loss_sum: th.Tensor) -> None:
        """Write the gradients of the critics' mean squared errors, which are added to ``loss_sum``.

        :param obs: (B, obs_dim)
        :param actions: (B, action_dim)
        :param targets: (B, 1)
        """
        from sb3_isaac.ddpg import kernels

        obs, n_rows, flat = obs.contiguous(), len(obs), self._critic_adam.flat
        blocks = n_blocks(n_rows, self._shape["ROWS"])
        parts = self._critic_parts.of(blocks)
        with on_device(obs.device):
            kernels.critic_gradients[(blocks, self._n_critics)](
                obs,
                obs.stride(0),
                actions.contiguous(),
                targets.contiguous(),
                n_rows,
                flat,
                parts,
                parts.stride(0),
                flat.numel(),
                **self._critic_starts,
                critic_size=self._critic_size,
                **self._shape,
            )
        self._critic_parts.add_up(blocks, loss_sum)

    def actor_gradients(self, obs: th.Tensor, loss_sum: th.Tensor) -> None:
        """Write the actor's gradients, up the first critic's slope, and add minus its mean value to ``loss_sum``.

        :param obs: (B, obs_dim)
        """
        from sb3_isaac.ddpg import kernels

        obs, n_rows, flat = obs.contiguous(), len(obs), self._actor_adam.flat
        blocks = n_blocks(n_rows, self._shape["ROWS"])
        parts = self._actor_parts.of(blocks)
        with on_device(obs.device):
            kernels.actor_gradients[(blocks,)](
                obs,
                obs.stride(0),
                n_rows,
                flat,
                self._critic_adam.flat,
                parts,
                parts.stride(0),
                flat.numel(),
                **self._actor_starts,
                **self._critic_starts,
                **self._shape,
                **self._actor_shape,
            )
        self._actor_parts.add_up(blocks, loss_sum)
