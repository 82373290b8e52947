"""The Q-networks of :class:`~sb3_isaac.dqn.fast_policy.FastDQNPolicy` in C, where ``DQN(compile=True)`` asks for it."""

from __future__ import annotations

from typing import Any, Mapping

import torch as th

from sb3_isaac._for_c import pointer, rows_apart
from sb3_isaac._native import library
from sb3_isaac.device.fast_mlp import Layers
from sb3_isaac.device.flat_adam import FlatAdam
from sb3_isaac.device.native_mlp import Nets, Trained


class NativeQNetworks:
    """Online and target network.

    :param online: layers for which :func:`~sb3_isaac.device.native_mlp.why_not_native` has no reason
    :param target: likewise
    :param adam: of the online network, into whose ``grad`` gradients are written
    :param target_views: the target network's parameters, by parameter, where they stay
    """

    def __init__(self, online: Layers, target: Layers, adam: FlatAdam, target_views: Mapping[Any, th.Tensor]) -> None:
        self._library, self._nets = library(), Trained([online, target], adam, target_views)

    def next_values(self, next_obs: th.Tensor, double_q: bool) -> th.Tensor:
        """See :meth:`FastDQNPolicy.next_values <sb3_isaac.dqn.fast_policy.FastDQNPolicy.next_values>`."""
        x = rows_apart(next_obs)
        values = x.new_empty(len(x), 1)

        def work(nets: Nets, share: slice) -> None:
            online, rows = nets[0] if double_q else None, share.stop - share.start
            given = pointer(x, share.start), x.stride(0), rows
            self._library.q_values(nets[1], online, *given, pointer(values, share.start), nets.memory)

        self._nets.run(len(x), work)
        return values

    def gradients(self, obs: th.Tensor, actions: th.Tensor, targets: th.Tensor, loss_sum: th.Tensor) -> None:
        """Write the gradients of the mean Huber loss, which is added to ``loss_sum``.

        :param obs: (B, obs_dim)
        :param actions: (B, 1) int64
        :param targets: (B, 1)
        :raises IndexError: there is no such action
        """
        x, actions, targets = rows_apart(obs), actions.to(th.int64).contiguous(), rows_apart(targets)

        def work(nets: Nets, share: slice, loss: int) -> None:
            first, rows = share.start, share.stop - share.start
            given = pointer(x, first), x.stride(0), pointer(actions, first), pointer(targets, first)
            if self._library.q_gradients(nets[0], *given, rows, len(x), loss, nets.memory) != 0:
                raise IndexError("A transition in the replay buffer has an action that is none of the environment's.")

        self._nets.run_gradients(len(x), work, loss_sum)
