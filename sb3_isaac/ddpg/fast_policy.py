"""SB3's TD3Policy of plain layers, as DDPG has it, without autograd: acting, targets, and the gradients of both losses."""

from __future__ import annotations

from typing import Any, List, Optional, Union

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.td3.policies import Actor, TD3Policy
from torch import nn

from sb3_isaac._torchscript import as_script
from sb3_isaac.ddpg.fused import FusedActorCritics
from sb3_isaac.ddpg.native import NativeActorCritics
from sb3_isaac.device import ranks
from sb3_isaac.device.eligibility import why_not_fast
from sb3_isaac.device.fast_mlp import FastMLP, Passes, backward_pass, forward_pass, n_lanes, parse_layers
from sb3_isaac.device.flat_adam import FlatAdam, bring_back, share_storage, views_of
from sb3_isaac.device.fused import why_not_fused
from sb3_isaac.device.fused_mlp import FusedMLP
from sb3_isaac.device.native_mlp import NativeMLP, parts, why_not_native
from sb3_isaac.off_policy.update import chunk_rows, chunks


def network_values(
    next_obs: th.Tensor, noise: Optional[th.Tensor], actor: Passes, critics: List[Passes], joined: th.Tensor
) -> th.Tensor:
    """:meth:`FastTD3Policy.next_values` of a small minibatch.

    :param joined: (B, obs_dim + action_dim), overwritten
    """
    forward_pass(next_obs, actor)
    actions = actor.outputs[-1]
    if noise is not None:
        actions = (actions + noise).clamp_(-1.0, 1.0)
    th.cat([next_obs, actions], 1, out=joined)
    forward_pass(joined, critics[0])
    values = critics[0].outputs[-1]
    for critic in critics[1:]:
        forward_pass(joined, critic)
        values = th.minimum(values, critic.outputs[-1])
    return values


def squared_error_gradient(values: th.Tensor, targets: th.Tensor, loss_sum: th.Tensor, batch: int) -> None:
    """Make the values (rows, 1) the gradient of the mean squared error, which is added to ``loss_sum``.

    :param batch: rows of the whole minibatch
    """
    error = values.sub_(targets)
    loss_sum.add_(th.linalg.vector_norm(error).square_(), alpha=1.0 / batch)
    error.mul_(2.0 / batch)


def critic_gradients(
    obs: th.Tensor, actions: th.Tensor, targets: th.Tensor, critics: List[Passes], joined: th.Tensor, loss_sum: th.Tensor
) -> None:
    """Forward pass, loss and backward pass of the critics for a small minibatch."""
    th.cat([obs, actions], 1, out=joined)
    for critic in critics:
        forward_pass(joined, critic)
        grad = critic.outputs[-1]
        squared_error_gradient(grad, targets, loss_sum, obs.shape[0])
        backward_pass(grad, joined, critic, False, False, critic.first_grad, 0)


def actor_gradients(
    obs: th.Tensor, actor: Passes, critic: Passes, joined: th.Tensor, grad_actions: th.Tensor, loss_sum: th.Tensor
) -> None:
    """Forward pass of the actor and of the first critic, and the way back, for a small minibatch.

    :param grad_actions: (B, action_dim), overwritten
    """
    forward_pass(obs, actor)
    th.cat([obs, actor.outputs[-1]], 1, out=joined)
    forward_pass(joined, critic)
    values = critic.outputs[-1]
    loss_sum.sub_(values.sum(), alpha=1.0 / obs.shape[0])
    values.fill_(-1.0 / obs.shape[0])
    backward_pass(values, joined, critic, False, True, grad_actions, obs.shape[1])
    backward_pass(grad_actions, obs, actor, False, False, actor.first_grad, 0)


class FastTD3Policy:
    """Actor, critics and their targets of a ``TD3Policy``, which DDPG's is, without autograd.

    :param policy: one for which :meth:`why_not` has no reason
    :param n_envs: the most observations to act on
    :param batch_size: of the minibatches
    :param compiled: compile the optimizers' steps on a GPU; on a CPU all in C, where it can be had (``device/native_mlp.py``)
    :param precision: of ``device/fused.py``: the passes in Triton's kernels, where they can be had
    """

    def __init__(self, policy: Any, n_envs: int, batch_size: int, compiled: bool, precision: Optional[str] = None) -> None:
        self._actor_adam = FlatAdam(policy.actor.optimizer, compiled, scripted=True)
        self._critic_adam = FlatAdam(policy.critic.optimizer, compiled, scripted=True)
        self.adams = [self._critic_adam, self._actor_adam]
        """What makes the steps, one for each of the algorithm's losses"""
        targets = [list(net.parameters()) for net in (policy.actor_target, policy.critic_target)]
        self._targets = share_storage(targets[0]), share_storage(targets[1])
        self._target_parameters = [*targets[0], *targets[1]]
        self._target_views = [view for flat, like in zip(self._targets, targets) for view in views_of(flat, like)]
        self._chunk = chunk_rows(batch_size, self._targets[0].device)

        gradients = {**self._actor_adam.gradients, **self._critic_adam.gradients}

        def mlp(module: Any, rows: int, share: Optional[FastMLP] = None, trained: bool = False) -> FastMLP:
            layers = parse_layers(module)
            assert layers is not None
            return FastMLP(layers, rows, share, gradients if trained else None)

        layers = [parse_layers(net) for net in (policy.actor.mu, policy.actor_target.mu)]
        critic_layers = [[parse_layers(net) for net in nets.q_networks] for nets in (policy.critic, policy.critic_target)]
        trained: Any = [layers[0], *critic_layers[0]]
        native = compiled and why_not_native(trained, self._targets[0].device) is None
        self.acting: Union[FastMLP, FusedMLP, NativeMLP] = NativeMLP(trained[0]) if native else mlp(policy.actor.mu, n_envs)
        self.fused: Union[FusedActorCritics, NativeActorCritics, None] = None
        """What does the update's passes in other kernels than PyTorch's"""
        adams = self._actor_adam, self._critic_adam
        if precision is not None and why_not_fused(trained, self._targets[0].device, squashed=True) is None:
            self.fused = FusedActorCritics(trained[0], trained[1:], *adams, self._targets, precision)
            self.acting = FusedMLP(trained[0])
        elif native:
            views = dict(zip(self._target_parameters, self._target_views))
            made: Any = NativeActorCritics
            self.fused = made(layers[0], critic_layers[0], layers[1], critic_layers[1], *adams, views)
        # A target network is done when the trained one begins: they use the same buffers, which stay in the cache
        self._actor = mlp(policy.actor.mu, self._chunk, trained=True)
        self._actor_target = mlp(policy.actor_target.mu, self._chunk, self._actor)
        self._critics = [mlp(net, self._chunk, trained=True) for net in policy.critic.q_networks]
        self._critic_targets = [mlp(net, self._chunk, self._critics[0]) for net in policy.critic_target.q_networks]
        self._obs_dim = self._actor.layers[0][0].in_features
        width = self._critics[0].layers[0][0].in_features
        self._input = self._targets[0].new_empty(self._chunk, width)
        self._next_input = self._targets[0].new_empty(self._chunk, width)
        if not self._input.is_cuda and self.fused is None:
            self._network_values = as_script(network_values)
            self._critic_gradients, self._actor_gradients = as_script(critic_gradients), as_script(actor_gradients)

    @staticmethod
    def _passes(nets: List[FastMLP], x: th.Tensor, parameters: bool) -> List[Passes]:
        """See :meth:`FastMLP.small`; [] where that is None."""
        passes = [net.small(x, parameters) for net in nets]
        return [one for one in passes if one is not None]

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

    def _join(self, obs: th.Tensor, actions: th.Tensor, out: th.Tensor) -> th.Tensor:
        return th.cat((obs, actions), 1, out=out[: len(obs)])

    def shares_out(self, batch_size: int) -> bool:
        """Whether a minibatch is more than one job for threads."""
        return len(parts(batch_size)) > 1 if isinstance(self.fused, NativeActorCritics) else n_lanes(batch_size) > 1

    def next_values(self, next_obs: th.Tensor, noise: Optional[th.Tensor]) -> th.Tensor:
        """(B, 1), what the target networks think of the next observations: the lowest of the critics.

        :param noise: (B, action_dim) to add to the target actor's actions, or None
        """
        if self.fused is not None:
            return self.fused.next_values(next_obs, noise)
        n_rows = len(next_obs)
        actor, critics = self._actor_target.small(next_obs, False), self._passes(self._critic_targets, next_obs, False)
        if actor is not None:
            values: th.Tensor = self._network_values(next_obs, noise, actor, critics, self._next_input[:n_rows])
            return values
        found = []
        for rows in chunks(n_rows, self._chunk):
            actions = self._actor_target.forward(next_obs[rows])
            if noise is not None:
                actions = (actions + noise[rows]).clamp_(-1.0, 1.0)
            x = self._join(next_obs[rows], actions, self._next_input)
            values = self._critic_targets[0].forward(x)
            for critic in self._critic_targets[1:]:
                values = th.minimum(values, critic.forward(x))
            found.append(values if len(next_obs) <= self._chunk else values.clone())
        return found[0] if len(found) == 1 else th.cat(found)

    def critic_step(
        self, obs: th.Tensor, actions: th.Tensor, targets: th.Tensor, lr: Optional[th.Tensor], loss_sum: th.Tensor
    ) -> None:
        """One step of Adam on the critics' squared errors, whose mean is added to ``loss_sum``."""
        batch, small = len(obs), self._passes(self._critics, obs, True)
        if self.fused is not None:
            self.fused.critic_gradients(obs, actions, targets, loss_sum)
        elif small:
            self._critic_gradients(obs, actions, targets, small, self._input[:batch], loss_sum)
        else:
            for rows in chunks(batch, self._chunk):
                x = self._join(obs[rows], actions[rows], self._input)
                for critic in self._critics:
                    grad = critic.forward(x)
                    squared_error_gradient(grad, targets[rows], loss_sum, batch)
                    critic.backward(grad, accumulate=rows.start > 0)
        ranks.mean_(self._critic_adam.grad)
        self._critic_adam.clip_and_step(None, lr)

    def actor_step(self, obs: th.Tensor, lr: Optional[th.Tensor], loss_sum: th.Tensor) -> None:
        """One step of Adam up the first critic's slope; minus its mean value is added to ``loss_sum``."""
        batch, actor, critic = len(obs), self._actor.small(obs, True), self._critics[0].small(obs, False)
        if self.fused is not None:
            self.fused.actor_gradients(obs, loss_sum)
        elif actor is not None:
            grad_actions = self._critics[0].input_gradient(batch, self._obs_dim)
            self._actor_gradients(obs, actor, critic, self._input[:batch], grad_actions, loss_sum)
        else:
            for rows in chunks(batch, self._chunk):
                # --8<-- [start:actor]
                actions = self._actor.forward(obs[rows])
                values = self._critics[0].forward(self._join(obs[rows], actions, self._input))
                loss_sum.sub_(values.sum(), alpha=1.0 / batch)
                values.fill_(-1.0 / batch)
                grad = self._critics[0].backward(values, parameters=False, inputs=True, first_column=self._obs_dim)
                assert grad is not None
                self._actor.backward(grad, accumulate=rows.start > 0)
                # --8<-- [end:actor]
        ranks.mean_(self._actor_adam.grad)
        self._actor_adam.clip_and_step(None, lr)

    def refresh(self) -> None:
        """Before a series of steps: bring back what somebody has moved."""
        for adam in self.adams:
            adam.refresh()
        bring_back(self._target_parameters, self._target_views)

    def update_targets(self, tau: float) -> None:
        """Polyak's average: the target networks go ``tau`` of the way to the trained ones."""
        self._targets[0].lerp_(self._actor_adam.flat, tau)
        self._targets[1].lerp_(self._critic_adam.flat, tau)
