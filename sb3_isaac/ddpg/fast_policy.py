"""SB3's TD3Policy of plain layers, as DDPG has it, without autograd: acting, targets, and the gradients of both losses."""

from __future__ import annotations

from typing import Any, List, Optional

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.td3.policies import Actor, TD3Policy
from torch import nn

from sb3_isaac.device.eligibility import why_not_fast
from sb3_isaac.device.fast_mlp import FastMLP, parse_layers
from sb3_isaac.device.flat_adam import FlatAdam, share_storage
from sb3_isaac.device.threads import Gradients, Lanes
from sb3_isaac.off_policy.update import chunk_rows


class _Networks:
    """Actor, critics and their targets on buffers of their own.

    :param max_rows: the most observations of one call
    :param gradients: where the gradients of actor and critics go, in the place of ``parameter.grad``
    """

    def __init__(self, policy: TD3Policy, max_rows: int, gradients: Optional[Gradients] = None) -> None:
        def mlp(module: Any, share: Optional[FastMLP] = None) -> FastMLP:
            layers = parse_layers(module)
            assert layers is not None
            return FastMLP(layers, max_rows, share=share, gradients=gradients)

        # A target network is done when the trained one begins: they use the same buffers, which stay in the cache
        self.actor = mlp(policy.actor.mu)
        self.actor_target = mlp(policy.actor_target.mu, self.actor)
        self.critics = [mlp(net) for net in policy.critic.q_networks]
        self.critic_targets = [mlp(net, self.critics[0]) for net in policy.critic_target.q_networks]
        weight = self.critics[0].layers[0][0].weight
        self._input = weight.new_empty(max_rows, weight.shape[1])

    def join(self, obs: th.Tensor, actions: th.Tensor) -> th.Tensor:
        """The critics' input (rows, obs_dim + action_dim), overwritten by the next call."""
        return th.cat((obs, actions), 1, out=self._input[: len(obs)])


class FastTD3Policy:
    """Actor, critics and their targets of a ``TD3Policy``, which DDPG's is, without autograd.

    :param policy: one for which :meth:`why_not` has no reason
    :param n_envs: the most observations to act on
    :param batch_size: of the minibatches
    :param compiled: compile the optimizers' steps on a GPU
    """

    def __init__(self, policy: Any, n_envs: int, batch_size: int, compiled: bool) -> None:
        self._actor_adam = FlatAdam(policy.actor.optimizer, compiled)
        self._critic_adam = FlatAdam(policy.critic.optimizer, compiled)
        self.adams = [self._critic_adam, self._actor_adam]
        """What makes the steps, one for each of the algorithm's losses"""
        self._targets = tuple(share_storage(net.parameters()) for net in (policy.actor_target, policy.critic_target))
        self._actor_parameters, self._critic_parameters = (list(net.parameters()) for net in (policy.actor, policy.critic))
        chunk = chunk_rows(batch_size, self._targets[0].device)
        parameters = self._actor_parameters + self._critic_parameters
        self._lanes = Lanes(lambda gradients: _Networks(policy, chunk, gradients), parameters, chunk)
        self.acting = FastMLP(self._lanes.main.actor.layers, n_envs)
        self._obs_dim = self.acting.layers[0][0].in_features

    @staticmethod
    def why_not(policy: Any) -> Optional[str]:
        """What makes ``policy`` more than SB3's plain MLP actor and critics; None: this class can stand in for it."""
        if not isinstance(policy.observation_space, spaces.Box) or is_image_space(policy.observation_space):
            return f"the observations are {policy.observation_space}"
        nets: List[nn.Module] = [net.mu for net in (policy.actor, policy.actor_target) if type(net) is Actor]
        nets += [net for c in (policy.critic, policy.critic_target) if type(c) is ContinuousCritic for net in c.q_networks]
        optimizers = [(net.optimizer, net) for net in (policy.actor, policy.critic)]
        own = (TD3Policy, Actor, ContinuousCritic, FlattenExtractor)
        return why_not_fast(policy, own, [[net] for net in nets], optimizers=optimizers)

    def next_values(self, next_obs: th.Tensor, noise: Optional[th.Tensor]) -> th.Tensor:
        """(B, 1), what the target networks think of the next observations: the lowest of the critics.

        :param noise: (B, action_dim) to add to the target actor's actions, or None
        """
        values: th.Tensor = next_obs.new_empty(len(next_obs), 1)

        def work(networks: _Networks, rows: slice, accumulate: bool) -> None:
            actions = networks.actor_target.forward(next_obs[rows])
            if noise is not None:
                actions = (actions + noise[rows]).clamp_(-1.0, 1.0)
            x = networks.join(next_obs[rows], actions)
            lowest = values[rows].copy_(networks.critic_targets[0].forward(x))
            for critic in networks.critic_targets[1:]:
                th.minimum(lowest, critic.forward(x), out=lowest)

        self._lanes.run(work, len(next_obs))
        return values

    def critic_step(
        self, obs: th.Tensor, actions: th.Tensor, targets: th.Tensor, lr: Optional[th.Tensor], loss_sum: th.Tensor
    ) -> None:
        """One step of Adam on the critics' squared errors, whose mean is added to ``loss_sum``."""
        batch = len(obs)

        def work(networks: _Networks, rows: slice, accumulate: bool) -> th.Tensor:
            x, target = networks.join(obs[rows], actions[rows]), targets[rows]
            loss = None
            for critic in networks.critics:
                error = critic.forward(x).sub_(target)
                square = th.linalg.vector_norm(error).square_()
                loss = square if loss is None else loss + square
                critic.backward(error.mul_(2.0 / batch), accumulate)
            total: th.Tensor = loss  # type: ignore[assignment]
            return total

        self._add_loss(loss_sum, self._lanes.run(work, batch, self._critic_parameters), 1.0 / batch)
        self._critic_adam.clip_and_step(None, lr)

    def actor_step(self, obs: th.Tensor, lr: Optional[th.Tensor], loss_sum: th.Tensor) -> None:
        """One step of Adam up the first critic's slope; minus its mean value is added to ``loss_sum``."""
        batch = len(obs)

        def work(networks: _Networks, rows: slice, accumulate: bool) -> th.Tensor:
            critic, actions = networks.critics[0], networks.actor.forward(obs[rows])
            values = critic.forward(networks.join(obs[rows], actions))
            total = values.sum()
            grad = critic.backward(
                values.fill_(-1.0 / batch), parameters=False, inputs=True, columns=slice(self._obs_dim, None)
            )
            assert grad is not None
            networks.actor.backward(grad, accumulate)
            return total

        self._add_loss(loss_sum, self._lanes.run(work, batch, self._actor_parameters), -1.0 / batch)
        self._actor_adam.clip_and_step(None, lr)

    @staticmethod
    def _add_loss(loss_sum: th.Tensor, loss: Optional[th.Tensor], factor: float) -> None:
        assert loss is not None
        loss_sum.add_(loss, alpha=factor)

    def update_targets(self, tau: float) -> None:
        """Polyak's average: the target networks go ``tau`` of the way to the trained ones."""
        self._targets[0].lerp_(self._actor_adam.flat, tau)
        self._targets[1].lerp_(self._critic_adam.flat, tau)
