"""The networks of :class:`~sb3_isaac.ddpg.fast_policy.FastTD3Policy` in C, where ``DDPG(compile=True)`` asks for it."""

from __future__ import annotations

from typing import Any, Mapping, Optional, Sequence

import torch as th

from sb3_isaac._for_c import pointer, rows_apart
from sb3_isaac._native import library
from sb3_isaac.device.fast_mlp import Layers
from sb3_isaac.device.flat_adam import FlatAdam
from sb3_isaac.device.native_mlp import Nets, Trained


class NativeActorCritics:
    """Actor, critics and their targets: layers for which :func:`~sb3_isaac.device.native_mlp.why_not_native` has no reason.

    :param actor_adam: of the actor, into whose ``grad`` gradients are written, likewise ``critic_adam``
    :param target_views: the targets' parameters, by parameter, where they stay
    """

    def __init__(
        self,
        actor: Layers,
        critics: Sequence[Layers],
        actor_target: Layers,
        critic_targets: Sequence[Layers],
        actor_adam: FlatAdam,
        critic_adam: FlatAdam,
        target_views: Mapping[Any, th.Tensor],
    ) -> None:
        self._library, self._n_critics, self._action_dim = library(), len(critics), actor[-1][0].out_features
        self._critics = Trained(critics, critic_adam, {})
        self._actor = Trained([actor, critics[0]], actor_adam, critic_adam.values)
        self._targets = Trained([actor_target, *critic_targets], actor_adam, target_views)

    def next_values(self, next_obs: th.Tensor, noise: Optional[th.Tensor]) -> th.Tensor:
        """See :meth:`FastTD3Policy.next_values <sb3_isaac.ddpg.fast_policy.FastTD3Policy.next_values>`."""
        x, noise = rows_apart(next_obs), None if noise is None else rows_apart(noise).contiguous()
        values = x.new_empty(len(x), 1)

        def work(nets: Nets, share: slice) -> None:
            first, rows = share.start, share.stop - share.start
            given = pointer(x, first), x.stride(0), pointer(noise, first), rows
            self._library.td3_values(nets[0], nets[1], self._n_critics, *given, pointer(values, first), nets.memory)

        self._targets.run(len(x), work)
        return values

    def critic_gradients(self, obs: th.Tensor, actions: th.Tensor, targets: th.Tensor, loss_sum: th.Tensor) -> None:
        """Write the gradients of the critics' mean squared errors, which are added to ``loss_sum``.

        :param obs: (B, obs_dim)
        :param actions: (B, action_dim)
        :param targets: (B, 1)
        """
        x, a, targets = rows_apart(obs), rows_apart(actions), rows_apart(targets)

        def work(nets: Nets, share: slice, loss: int) -> None:
            first, rows = share.start, share.stop - share.start
            given = pointer(x, first), x.stride(0), pointer(a, first), a.stride(0), self._action_dim, pointer(targets, first)
            self._library.critic_gradients(nets[0], self._n_critics, *given, rows, len(x), loss, nets.memory)

        self._critics.run_gradients(len(x), work, loss_sum)

    def actor_gradients(self, obs: th.Tensor, loss_sum: th.Tensor) -> None:
        """Write the actor's gradients up the first critic's slope; minus its mean value is added to ``loss_sum``."""
        x = rows_apart(obs)

        def work(nets: Nets, share: slice, loss: int) -> None:
            rows = share.stop - share.start
            given = pointer(x, share.start), x.stride(0), rows, len(x)
            self._library.actor_gradients(nets[0], nets[1], *given, loss, nets.memory)

        self._actor.run_gradients(len(x), work, loss_sum)
