"""DQN's networks of plain layers, updated without autograd."""

from __future__ import annotations

from typing import Any, Optional

import torch as th
from stable_baselines3.common.torch_layers import FlattenExtractor
from torch.nn import functional as F

from sb3_isaac.device.fast_mlp import FastMLP, parse_layers
from sb3_isaac.device.flat_adam import FlatAdam, share_storage
from sb3_isaac.off_policy.algorithm import chunk_rows, pieces


class FastQNetworks:
    """Q-network and target network of plain layers, without autograd.

    :param model: a DQN for which :meth:`supports` is true
    """

    def __init__(self, model: Any) -> None:
        self.adam = FlatAdam(model.policy.optimizer)
        if model.compile:
            self.adam.compile()
        self.target_flat = share_storage(model.q_net_target.parameters())
        self.n_actions = int(model.action_space.n)
        self.chunk = chunk_rows(model)
        online, target = (parse_layers(net.q_net) for net in (model.q_net, model.q_net_target))
        assert online is not None and target is not None
        self.acting = FastMLP(online, model.n_envs)
        self.online = FastMLP(online, self.chunk)
        # The target network is done when the other begins: they use the same buffers, which stay in the cache
        self.target = FastMLP(target, self.chunk, self.online)
        self._grad = self.target_flat.new_zeros(self.chunk, self.n_actions)

    @staticmethod
    def supports(model: Any) -> bool:
        """The networks are Linear layers and known activations on flat observations, the optimizer is plain Adam."""
        flat = all(type(net.features_extractor) is FlattenExtractor for net in (model.q_net, model.q_net_target))
        return flat and parse_layers(model.q_net.q_net) is not None and FlatAdam.supports(model.policy.optimizer)

    def next_values(self, next_obs: th.Tensor, double_q: bool) -> th.Tensor:
        """(B,), what the target network thinks of the next observations, for the best action.

        :param double_q: best in the eyes of the online network (https://arxiv.org/abs/1509.06461)
        """
        values = next_obs.new_empty(len(next_obs))
        for rows in pieces(len(next_obs), self.chunk):
            q = self.target.forward(next_obs[rows])
            if double_q:
                best = self.online.forward(next_obs[rows]).argmax(1, keepdim=True)
                values[rows] = q.gather(1, best).squeeze(1)
            else:
                th.amax(q, 1, out=values[rows])
        return values

    @th.no_grad()
    def gradient_step(
        self,
        obs: th.Tensor,
        actions: th.Tensor,
        targets: th.Tensor,
        max_grad_norm: float,
        lr: Optional[th.Tensor],
        loss_sum: th.Tensor,
    ) -> None:
        """One step of Adam on the Huber loss, whose mean is added to ``loss_sum``.

        :param obs: (B, obs_dim)
        :param actions: (B, 1) int64
        :param targets: (B, 1)
        :param lr: on the device; None: the optimizer's
        """
        batch = len(obs)
        parts = zip(*(th.split(whole, self.chunk) for whole in (obs, actions, targets)))
        for i, (x, action, target) in enumerate(parts):
            q = self.online.forward(x)
            chosen = q.gather(1, action)
            loss_sum.add_(F.smooth_l1_loss(chosen, target, reduction="sum"), alpha=1.0 / batch)
            error = chosen.sub_(target).clamp_(-1.0, 1.0).mul_(1.0 / batch)  # the Huber loss's derivative
            grad = self._grad[: len(q)].zero_().scatter_(1, action, error)
            self.online.backward(grad, accumulate=i > 0)
        self.adam.clip_and_step(max_grad_norm, lr)

    def update_target(self, tau: float) -> None:
        """Polyak's average: the target network goes ``tau`` of the way to the online one."""
        self.target_flat.lerp_(self.adam.flat, tau)
