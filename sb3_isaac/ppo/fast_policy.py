"""SB3's MLP actor-critic without autograd: acting, values, and the gradients of PPO's loss.

The formulas are those of ``stable_baselines3.PPO.train`` and ``ActorCriticPolicy``; the gradients are written out by hand.
"""

from __future__ import annotations

from typing import Any, Optional, Tuple

import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution, DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor

from sb3_isaac.device.eligibility import is_patched, why_not_fast
from sb3_isaac.device.fast_mlp import FastMLP, parse_layers
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

CPU_ROWS = 32_768
"""On a CPU a minibatch is worked on in chunks of at most so many rows, to save memory."""


def _layers(policy: ActorCriticPolicy) -> Tuple[Any, Any]:
    extractor = policy.mlp_extractor
    return (extractor.policy_net, policy.action_net), (extractor.value_net, policy.value_net)


class FastActorCriticPolicy:
    """Stands in for an ``ActorCriticPolicy``, whose parameters it uses. Call under ``torch.no_grad()``.

    :param policy: one for which :meth:`why_not` has no reason
    :param max_rows: the most observations of one call
    """

    def __init__(self, policy: ActorCriticPolicy, max_rows: int) -> None:
        self.policy = policy
        self.max_rows = max_rows
        actor, critic = (parse_layers(layers) for layers in _layers(policy))
        assert actor is not None and critic is not None
        self.critic = FastMLP(critic, max_rows)
        self.actor = FastMLP(actor, max_rows, share=self.critic)  # the critic is through when the actor starts
        self.log_std: Optional[th.Tensor] = getattr(policy, "log_std", None)
        self._action_dim = 1 if self.log_std is None else self.log_std.numel()
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

    @property
    def distribution_columns(self) -> int:
        """Numbers that tell what an action was drawn from, see :meth:`act`."""
        return self.actor.layers[-1][0].out_features

    def compile(self) -> None:
        """Compile the loss, which then takes one pass over its rows, or a few kernels."""
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

    def gradients(self, rows: th.Tensor, loss_settings: LossSettings, old_log_std: Optional[th.Tensor] = None) -> th.Tensor:
        """Write the gradients of PPO's loss on a minibatch into the parameters' ``grad``.

        :param rows: packed, see :meth:`Batch.unpack`
        :param old_log_std: (action_dim,) of the Gaussian in the rows, if there is one
        :return: (N_SUMS,) statistics
        """
        n_rows = rows.shape[0]
        batch = Batch.unpack(rows, self.critic.layers[0][0].in_features, self._action_dim)
        batch = batch._replace(advantages=self._scale(batch.advantages, loss_settings.normalize_advantage))
        if n_rows <= self.max_rows:
            return self._chunk(batch, loss_settings, n_rows, old_log_std, accumulate=False)
        total = th.zeros(N_SUMS, device=rows.device)
        for start in range(0, n_rows, self.max_rows):
            chunk = Batch._make(None if column is None else column[start : start + self.max_rows] for column in batch)
            total += self._chunk(chunk, loss_settings, n_rows, old_log_std, accumulate=start > 0)
        return total

    def _chunk(
        self, batch: Batch, loss_settings: LossSettings, n_rows: int, old_log_std: Optional[th.Tensor], accumulate: bool
    ) -> th.Tensor:
        """:param n_rows: of the whole minibatch"""
        # One network after the other: what one has in the cache, the other one uses
        values = self.critic.forward(batch.observations)
        grad_values, squared_errors = self._value_gradient(values, batch, loss_settings, n_rows)
        self.critic.backward(grad_values, accumulate)
        out = self.actor.forward(batch.observations)
        sums: th.Tensor
        if self.log_std is None:
            grad, sums = self._categorical_gradients(out, squared_errors, batch, loss_settings, n_rows)
        else:
            grad, grad_log_std, sums = self._gaussian_gradients(
                out, self.log_std, old_log_std, squared_errors, batch, loss_settings
            )
            assert self.log_std.grad is not None
            if accumulate:
                self.log_std.grad.add_(grad_log_std)
            else:  # the entropy does not depend on the rows
                th.sub(grad_log_std, loss_settings.ent_coef, out=self.log_std.grad)
        self.actor.backward(grad, accumulate)
        return sums
