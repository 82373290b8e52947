"""The Q-networks of :class:`~sb3_isaac.dqn.fast_policy.FastDQNPolicy` in Triton, where ``DQN(precision=...)`` asks for it."""

from __future__ import annotations

from typing import Any, Dict

import torch as th

from sb3_isaac.device.cuda_graph import on_device
from sb3_isaac.device.fast_mlp import ACTIVATIONS, Layers
from sb3_isaac.device.flat_adam import FlatAdam
from sb3_isaac.device.fused import ROWS, Parts, block, layer_starts, n_blocks, starts_of, widths


class FusedQNetworks:
    """Online and target network.

    :param online: layers for which :func:`~sb3_isaac.device.fused.why_not_fused` has no reason
    :param adam: of the online network, into whose ``grad`` gradients are written
    :param target_flat: the target network's parameters, in the same order
    :param precision: of :data:`~sb3_isaac.settings.table.PRECISIONS`
    """

    def __init__(self, online: Layers, adam: FlatAdam, target_flat: th.Tensor, precision: str) -> None:
        self._adam, self._target_flat = adam, target_flat
        self._starts = layer_starts(online, starts_of(adam.parameters))
        h1, h2 = widths(online)
        n_inputs, n_actions = online[0][0].in_features, online[-1][0].out_features
        blocks = {"BI": block(n_inputs), "BO": block(n_actions), "B1": block(h1), "B2": block(max(h2, 1))}
        self._shape: Dict[str, Any] = {"IN": n_inputs, "OUT": n_actions, "H1": h1, "H2": h2, **blocks}
        self._shape.update(KIND=ACTIVATIONS[online[0][1]], PRECISION=precision, ROWS=ROWS[precision])
        self._parts = Parts(adam)

    def next_values(self, next_obs: th.Tensor, double_q: bool) -> th.Tensor:
        """See :meth:`FastDQNPolicy.next_values <sb3_isaac.dqn.fast_policy.FastDQNPolicy.next_values>`."""
        from sb3_isaac.dqn import kernels

        next_obs, n_rows = next_obs.contiguous(), len(next_obs)
        values = next_obs.new_empty(n_rows, 1)
        nets = self._adam.flat, self._target_flat
        with on_device(next_obs.device):  # Triton takes the current one
            kernels.next_values[(n_blocks(n_rows, self._shape["ROWS"]),)](
                next_obs,
                next_obs.stride(0),
                n_rows,
                *nets,
                values,
                **self._starts,
                **self._shape,
                DOUBLE=double_q,
            )
        return values

    def gradients(self, obs: th.Tensor, actions: th.Tensor, targets: th.Tensor, loss_sum: th.Tensor) -> None:
        """Write the gradients of the mean Huber loss, which is added to ``loss_sum``.

        :param obs: (B, obs_dim)
        :param actions: (B, 1) int64
        :param targets: (B, 1)
        """
        from sb3_isaac.dqn import kernels

        obs, n_rows = obs.contiguous(), len(obs)
        blocks = n_blocks(n_rows, self._shape["ROWS"])
        parts = self._parts.of(blocks)
        with on_device(obs.device):
            kernels.huber_gradients[(blocks,)](
                obs,
                obs.stride(0),
                n_rows,
                actions.contiguous(),
                targets.contiguous(),
                self._adam.flat,
                parts,
                parts.stride(0),
                self._adam.flat.numel(),
                **self._starts,
                **self._shape,
            )
        self._parts.add_up(blocks, loss_sum)
