"""SB3's MLP actor-critic without autograd: acting, values, and the gradients of PPO's loss.

The formulas are those of ``stable_baselines3.PPO.train`` and ``ActorCriticPolicy``; the gradients are written out by hand.
"""

from __future__ import annotations

import functools
from typing import Any, List, Optional, Tuple, cast

import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution, DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor
from torch import nn

from sb3_isaac._torchscript import as_script
from sb3_isaac.device import fast_mlp
from sb3_isaac.device.eligibility import is_patched, why_not_fast
from sb3_isaac.device.fast_mlp import FastMLP, Gradients, Lane, Layers, Passes, backward_pass, forward_pass, parse_layers
from sb3_isaac.device.flat_adam import FlatAdam, views_of
from sb3_isaac.device.native_mlp import NativeMLP, parts, why_not_native
from sb3_isaac.device.threads import Together
from sb3_isaac.ppo.loss import (
    HALF_LOG_2PI,
    N_SUMS,
    Batch,
    LossSettings,
    categorical_gradients,
    gaussian_gradients,
    scaled_advantages,
    value_gradient,
)
from sb3_isaac.ppo.native import NativeGradients


def _layers(policy: ActorCriticPolicy) -> Tuple[Any, Any]:
    extractor = policy.mlp_extractor
    return (extractor.policy_net, policy.action_net), (extractor.value_net, policy.value_net)


def parsed_layers(policy: ActorCriticPolicy) -> Tuple[Layers, Layers]:
    """Actor and critic of a policy for which :meth:`FastActorCriticPolicy.why_not` has no reason."""
    actor, critic = (parse_layers(modules) for modules in _layers(policy))
    assert actor is not None and critic is not None
    return actor, critic


class FastActorCriticPolicy:
    """Stands in for an ``ActorCriticPolicy``, whose parameters it uses. Call under ``torch.no_grad()``.

    :param policy: one for which :meth:`why_not` has no reason
    :param max_rows: the most observations of one call
    :param adam: of the policy's optimizer, into which gradients are written; None: only to act
    :param compiled: in C, where ``device/native_mlp.py`` has no reason against it
    """

    def __init__(
        self, policy: ActorCriticPolicy, max_rows: int, adam: Optional[FlatAdam] = None, compiled: bool = False
    ) -> None:
        self.policy = policy
        self.max_rows = max_rows
        self.log_std: Optional[th.Tensor] = getattr(policy, "log_std", None)
        self._actor_layers, self._critic_layers = parsed_layers(policy)
        self._obs_dim = self._critic_layers[0][0].in_features
        self._action_dim = 1 if self.log_std is None else self.log_std.numel()
        self._lanes: List[_Lane] = []
        self._adam = adam
        self._gradients = None if adam is None else adam.gradients
        self._grads = th.zeros(0, 0)
        """(lanes, parameters)"""
        self._together = Together()
        nets, device = [self._actor_layers, self._critic_layers], self._critic_layers[0][0].weight.device
        self._in_c = compiled and why_not_native(nets, device) is None
        self._native: Optional[NativeGradients] = None
        if self._in_c and adam is not None:
            log_std = cast(Optional[nn.Parameter], self.log_std)
            self._native = NativeGradients(self._actor_layers, self._critic_layers, log_std, adam)
        self._scale: Any = scaled_advantages
        self._value_gradient: Any = value_gradient
        self._categorical_gradients: Any = categorical_gradients
        self._gaussian_gradients: Any = gaussian_gradients

    @staticmethod
    def why_not(policy: Any, trains: bool) -> Optional[str]:
        """What makes ``policy`` more than SB3's plain MLP actor-critic; None: this class can stand in for it.

        :param trains: also in the update, with its optimizer
        """
        if type(policy) is not ActorCriticPolicy:
            return f"the policy is a {type(policy).__name__}"
        if not isinstance(policy.observation_space, spaces.Box) or is_image_space(policy.observation_space):
            return f"the observations are {policy.observation_space}"
        if type(policy.action_dist) not in (DiagGaussianDistribution, CategoricalDistribution) or is_patched(
            policy.action_dist
        ):
            return f"actions come from another {type(policy.action_dist).__name__}"
        if policy.squash_output:
            return "its output is squashed"
        own = (ActorCriticPolicy, FlattenExtractor, MlpExtractor)
        if type(policy.mlp_extractor) is not MlpExtractor:
            return f"mlp_extractor is a {type(policy.mlp_extractor).__name__}"
        log_std = getattr(policy, "log_std", None)
        optimizers = [(policy.optimizer, policy)] if trains else []
        return why_not_fast(policy, own, _layers(policy), more=[] if log_std is None else [log_std], optimizers=optimizers)

    @functools.cached_property
    def critic(self) -> Any:
        """For many rows at once"""
        if self._in_c:
            return NativeMLP(self._critic_layers)
        return FastMLP(self._critic_layers, self.max_rows, gradients=self._gradients)

    @functools.cached_property
    def actor(self) -> Any:
        """Likewise. The critic is through when it starts"""
        if self._in_c:
            return NativeMLP(self._actor_layers)
        return FastMLP(self._actor_layers, self.max_rows, self.critic, self._gradients)

    @property
    def shares_out(self) -> bool:
        """Whether the update of a minibatch is more than one job for threads"""
        if self._native is not None:
            return len(parts(self.max_rows)) > 1
        return fast_mlp.n_lanes(self.max_rows) > 1

    @property
    def distribution_columns(self) -> int:
        """Numbers that tell what an action was drawn from, see :meth:`act`."""
        return self._actor_layers[-1][0].out_features

    def compile(self) -> None:
        """Compile the loss, which then takes a few kernels on a GPU. On a CPU it is TorchScript anyway."""
        self._scale = th.compile(scaled_advantages, dynamic=False)
        self._value_gradient = th.compile(value_gradient, dynamic=False)
        self._categorical_gradients = th.compile(categorical_gradients, dynamic=False)
        self._gaussian_gradients = th.compile(gaussian_gradients, dynamic=False)

    def act(self, obs: th.Tensor) -> Tuple[th.Tensor, th.Tensor, th.Tensor, th.Tensor]:
        """As the policy's ``forward``, with the same random numbers.

        :param obs: (N, *obs_shape)
        :return: actions (N, action_dim) or (N,) int64, values (N,), log-probabilities (N,), and what the actions were drawn
            from (see :attr:`Batch.old_distribution`)
        """
        obs = obs.reshape(obs.shape[0], -1)
        values = self.critic.forward(obs).squeeze(1)
        out = self.actor.forward(obs)
        if self.log_std is not None:
            noise = th.empty_like(out).normal_()
            actions = th.addcmul(out, noise, self.log_std.exp())
            log_prob = noise.square().sum(1) * -0.5 - (self.log_std.sum() + out.shape[1] * HALF_LOG_2PI)
            return actions, values, log_prob, out
        log_p = th.log_softmax(out, 1)
        p = log_p.exp()
        if hasattr(th, "compile"):
            # What th.multinomial does to draw one sample since torch 2, without its checks, which wait for the device
            actions = (p / th.empty_like(p).exponential_()).argmax(1)
        else:
            actions = th.multinomial(p, 1, replacement=True).squeeze(1)
        return actions, values, log_p.gather(1, actions.unsqueeze(1)).squeeze(1), log_p

    def values(self, obs: th.Tensor) -> th.Tensor:
        """V (n,) of observations (n, *obs_shape), any number of them."""
        chunks = th.split(obs.reshape(obs.shape[0], -1), self.max_rows)
        return th.cat([self.critic.forward(chunk).squeeze(1).clone() for chunk in chunks])

    def gradients(
        self,
        table: th.Tensor,
        rows: th.Tensor,
        loss_settings: LossSettings,
        old_log_std: Optional[th.Tensor] = None,
        moments: Optional[th.Tensor] = None,
    ) -> th.Tensor:
        """Write the gradients of PPO's loss on a minibatch into the parameters' ``grad``.

        :param table: packed rows, see :meth:`Batch.unpack`
        :param rows: (n,) int64, those of the minibatch
        :param old_log_std: (action_dim,) of the Gaussian in the rows, if there is one
        :param moments: (2,) of the advantages, see :func:`scaled_advantages`
        :return: (N_SUMS,) statistics; overwritten by the next call
        """
        gradients = self._in_lanes if table.device.type == "cpu" else self._at_once
        return gradients(table, rows, loss_settings, old_log_std, moments)

    def _at_once(
        self,
        table: th.Tensor,
        rows: th.Tensor,
        loss_settings: LossSettings,
        old_log_std: Optional[th.Tensor],
        moments: Optional[th.Tensor] = None,
    ) -> th.Tensor:
        """On a GPU: few kernels."""
        batch = Batch.unpack(table.index_select(0, rows), self._obs_dim, self._action_dim)
        advantages = self._scale(batch.advantages, loss_settings.normalize_advantage, moments)
        clip_range, clip_range_vf, ent_coef, vf_coef, _ = loss_settings
        values = self.critic.forward(batch.observations)
        grad_values, squared_errors = self._value_gradient(
            values, batch.returns, batch.old_values, clip_range_vf, vf_coef, len(rows)
        )
        self.critic.backward(grad_values)
        out = self.actor.forward(batch.observations)
        columns = (squared_errors, batch.actions, batch.old_log_prob, advantages, batch.old_distribution)
        sums: th.Tensor
        if self.log_std is None:
            grad, sums = self._categorical_gradients(out, *columns, clip_range, ent_coef, len(rows))
        else:
            grad, grad_log_std, sums = self._gaussian_gradients(out, self.log_std, old_log_std, *columns, clip_range)
            assert self.log_std.grad is not None
            th.sub(grad_log_std, ent_coef, out=self.log_std.grad)  # the entropy does not depend on the rows
        self.actor.backward(grad)
        return sums

    def _in_lanes(
        self,
        table: th.Tensor,
        rows: th.Tensor,
        loss_settings: LossSettings,
        old_log_std: Optional[th.Tensor],
        moments: Optional[th.Tensor] = None,
    ) -> th.Tensor:
        """On a CPU: threads share the minibatch out."""
        assert self._adam is not None
        if self._native is not None:
            sums = self._native(table, rows, loss_settings, old_log_std, moments)
            self._add_entropy(loss_settings.ent_coef)
            return sums
        n_lanes = fast_mlp.n_lanes(len(rows))
        if n_lanes > len(self._lanes):
            # One alone needs no gradients of its own
            n_grads = 0 if n_lanes == 1 else n_lanes
            self._grads = self._adam.grad.new_zeros(n_grads, self._adam.grad.numel())
            parameters = self._adam.parameters
            views = [dict(zip(parameters, views_of(grads, parameters))) for grads in self._grads] or [self._adam.gradients]
            max_rows = min(max(self.max_rows, len(rows)), 2 * fast_mlp.LANE_ROWS)
            self._lanes = [_Lane(self.policy, max_rows, gradients, scripted=n_lanes > 1) for gradients in views]
        rows_of = rows.chunk(n_lanes)
        n_lanes = len(rows_of)  # a few rows may make fewer
        lanes = self._lanes[:n_lanes]
        # The column of the advantages, see Batch
        advantages = table[:, self._obs_dim + self._action_dim + 2].index_select(0, rows)
        shares = scaled_advantages(advantages, loss_settings.normalize_advantage, moments).chunk(n_lanes)
        dims = (self._obs_dim, self._action_dim)

        def work(i: int) -> None:
            lanes[i].gradients(table, rows_of[i], shares[i], dims, old_log_std, loss_settings, len(rows))

        self._together.run(work, n_lanes)
        if len(self._grads) > 0:
            th.sum(self._grads[:n_lanes], 0, out=self._adam.grad)
        self._add_entropy(loss_settings.ent_coef)
        return lanes[0].sums if n_lanes == 1 else th.stack([lane.sums for lane in lanes]).sum(0)

    def _add_entropy(self, ent_coef: float) -> None:
        if self.log_std is not None and ent_coef != 0.0:
            assert self.log_std.grad is not None
            self.log_std.grad.sub_(ent_coef)  # the entropy does not depend on the rows


class _Lane:
    """What a thread needs to work on a part of a minibatch.

    :param max_rows: the most of a part
    :param gradients: where each parameter's gradient goes
    :param scripted: one of several
    """

    def __init__(self, policy: ActorCriticPolicy, max_rows: int, gradients: Gradients, scripted: bool) -> None:
        actor, critic = parsed_layers(policy)
        self._critic = Lane(critic, max_rows, None, gradients)
        self._actor = Lane(actor, max_rows, self._critic, gradients)
        self._log_std: Optional[nn.Parameter] = getattr(policy, "log_std", None)
        self._grad_log_std = None if self._log_std is None else gradients[self._log_std]
        self.sums = critic[0][0].weight.new_zeros(N_SUMS)
        self._run: Any = as_script(lane_gradients) if scripted else lane_gradients

    def gradients(
        self,
        table: th.Tensor,
        rows: th.Tensor,
        advantages: th.Tensor,
        dims: Tuple[int, int],
        old_log_std: Optional[th.Tensor],
        loss_settings: LossSettings,
        n_rows: int,
    ) -> None:
        """Write the gradients of the lane's rows, and their statistics into ``sums``. See :func:`lane_gradients`."""
        nets = (self._critic.passes(len(rows), True), self._actor.passes(len(rows), True))
        gaussian = (self._log_std, old_log_std, self._grad_log_std)
        self._run(table, rows, advantages, *dims, *nets, *gaussian, self.sums, *loss_settings[:4], n_rows)


def lane_gradients(
    table: th.Tensor,
    rows: th.Tensor,
    advantages: th.Tensor,
    obs_dim: int,
    action_dim: int,
    critic: Passes,
    actor: Passes,
    log_std: Optional[th.Tensor],
    old_log_std: Optional[th.Tensor],
    grad_log_std: Optional[th.Tensor],
    sums: th.Tensor,
    clip_range: float,
    clip_range_vf: Optional[float],
    ent_coef: float,
    vf_coef: float,
    n_rows: int,
) -> None:
    """Gradients of PPO's loss, and statistics, of a part of a minibatch.

    :param table: packed, see :meth:`Batch.unpack`
    :param rows: (n,) int64, rows of the table
    :param advantages: (n,) scaled, of these rows
    :param grad_log_std: (action_dim,), written without the entropy's
    :param sums: (N_SUMS,), written
    :param n_rows: of the whole minibatch
    """
    packed, first = table.index_select(0, rows), obs_dim + action_dim
    obs, actions = packed[:, :obs_dim], packed[:, obs_dim:first]
    columns = packed[:, first : first + 4].t().contiguous()
    old_values, old_log_prob, returns = columns[0], columns[1], columns[3]
    old: Optional[th.Tensor] = None
    if packed.shape[1] > first + 4:
        old = packed[:, first + 4 :]
    # One network after the other: what one has in the cache, the other one uses
    forward_pass(obs, critic)
    values = critic.outputs[-1]
    grad_values, squared_errors = value_gradient(values, returns, old_values, clip_range_vf, vf_coef, n_rows)
    backward_pass(grad_values, obs, critic, False, False, critic.first_grad, 0)
    forward_pass(obs, actor)
    out = actor.outputs[-1]
    if log_std is None:
        grad, lane_sums = categorical_gradients(
            out, squared_errors, actions, old_log_prob, advantages, old, clip_range, ent_coef, n_rows
        )
    else:
        grad, grad_std, lane_sums = gaussian_gradients(
            out, log_std, old_log_std, squared_errors, actions, old_log_prob, advantages, old, clip_range
        )
        if grad_log_std is not None:
            grad_log_std.copy_(grad_std)
    backward_pass(grad, obs, actor, False, False, actor.first_grad, 0)
    sums.copy_(lane_sums)
