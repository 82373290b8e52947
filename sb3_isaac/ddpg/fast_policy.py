"""DDPG's networks of plain layers, updated without autograd."""

from __future__ import annotations

from typing import Any, List, Optional

import torch as th
from stable_baselines3.common.torch_layers import FlattenExtractor

from sb3_isaac.device.fast_mlp import FastMLP, parse_layers
from sb3_isaac.device.flat_adam import FlatAdam, share_storage
from sb3_isaac.off_policy.algorithm import chunk_rows, pieces


class FastActorCritic:
    """Actor, critics and their targets of plain layers, without autograd.

    :param model: a DDPG for which :meth:`supports` is true
    """

    def __init__(self, model: Any) -> None:
        self.actor_adam = FlatAdam(model.actor.optimizer)
        self.critic_adam = FlatAdam(model.critic.optimizer)
        if model.compile:
            self.actor_adam.compile()
            self.critic_adam.compile()
        self._targets = (share_storage(model.actor_target.parameters()), share_storage(model.critic_target.parameters()))

        self.chunk = chunk_rows(model)

        def mlp(module: Any, rows: int, share: Optional[FastMLP] = None) -> FastMLP:
            layers = parse_layers(module)
            assert layers is not None
            return FastMLP(layers, rows, share)

        self.acting = mlp(model.actor.mu, model.n_envs)
        # A target network is done when the trained one begins: they use the same buffers, which stay in the cache
        self.actor = mlp(model.actor.mu, self.chunk)
        self.actor_target = mlp(model.actor_target.mu, self.chunk, self.actor)
        self.critics = [mlp(net, self.chunk) for net in model.critic.q_networks]
        self.critic_targets = [mlp(net, self.chunk, self.critics[0]) for net in model.critic_target.q_networks]
        self._obs_dim = self.actor.layers[0][0].in_features
        width = self.critics[0].layers[0][0].in_features
        self._input = self._targets[0].new_empty(self.chunk, width)
        self._next_input = self._targets[0].new_empty(self.chunk, width)

    @staticmethod
    def supports(model: Any) -> bool:
        """The networks are Linear layers and known activations on flat observations, the optimizers are plain Adam."""
        nets = (model.actor, model.actor_target, model.critic, model.critic_target)
        flat = all(type(net.features_extractor) is FlattenExtractor for net in nets)
        layers: List[Any] = [model.actor.mu, *model.critic.q_networks]
        optimizers: List[Any] = [model.actor.optimizer, model.critic.optimizer]
        return flat and all(parse_layers(net) for net in layers) and all(FlatAdam.supports(one) for one in optimizers)

    def _join(self, obs: th.Tensor, actions: th.Tensor, out: th.Tensor) -> th.Tensor:
        return th.cat((obs, actions), 1, out=out[: len(obs)])

    def next_values(self, next_obs: th.Tensor, noise: Optional[th.Tensor]) -> th.Tensor:
        """(B, 1), what the target networks think of the next observations: the lowest of the critics.

        :param noise: (B, action_dim) to add to the target actor's actions, or None
        """
        parts = []
        for rows in pieces(len(next_obs), self.chunk):
            actions = self.actor_target.forward(next_obs[rows])
            if noise is not None:
                actions = (actions + noise[rows]).clamp_(-1.0, 1.0)
            x = self._join(next_obs[rows], actions, self._next_input)
            values = self.critic_targets[0].forward(x)
            for critic in self.critic_targets[1:]:
                values = th.minimum(values, critic.forward(x))
            parts.append(values if len(next_obs) <= self.chunk else values.clone())
        return parts[0] if len(parts) == 1 else th.cat(parts)

    def critic_step(
        self, obs: th.Tensor, actions: th.Tensor, targets: th.Tensor, lr: Optional[th.Tensor], loss_sum: th.Tensor
    ) -> None:
        """One step of Adam on the critics' squared errors, whose mean is added to ``loss_sum``."""
        batch = len(obs)
        for rows in pieces(batch, self.chunk):
            x = self._join(obs[rows], actions[rows], self._input)
            for critic in self.critics:
                error = critic.forward(x).sub_(targets[rows])
                loss_sum.add_(th.linalg.vector_norm(error).square_(), alpha=1.0 / batch)
                critic.backward(error.mul_(2.0 / batch), accumulate=rows.start > 0)
        self.critic_adam.clip_and_step(None, lr)

    def actor_step(self, obs: th.Tensor, lr: Optional[th.Tensor], loss_sum: th.Tensor) -> None:
        """One step of Adam up the first critic's slope; minus its mean value is added to ``loss_sum``."""
        batch = len(obs)
        for rows in pieces(batch, self.chunk):
            actions = self.actor.forward(obs[rows])
            values = self.critics[0].forward(self._join(obs[rows], actions, self._input))
            loss_sum.sub_(values.sum(), alpha=1.0 / batch)
            values.fill_(-1.0 / batch)
            grad = self.critics[0].backward(values, parameters=False, inputs=True, columns=slice(self._obs_dim, None))
            assert grad is not None
            self.actor.backward(grad, accumulate=rows.start > 0)
        self.actor_adam.clip_and_step(None, lr)

    def update_targets(self, tau: float) -> None:
        """Polyak's average: the target networks go ``tau`` of the way to the trained ones."""
        self._targets[0].lerp_(self.actor_adam.flat, tau)
        self._targets[1].lerp_(self.critic_adam.flat, tau)

    def refresh(self) -> None:
        """Bind anew what ``load_state_dict`` replaced."""
        self.actor_adam.refresh()
        self.critic_adam.refresh()

    def sync(self) -> None:
        """Give the optimizers the number of their steps."""
        self.actor_adam.sync()
        self.critic_adam.sync()
