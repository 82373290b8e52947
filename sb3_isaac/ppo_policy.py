"""SB3's MLP actor-critic without autograd: acting, values, and the gradients of PPO's loss.

The formulas are those of ``stable_baselines3.PPO.train`` and ``ActorCriticPolicy``; the gradients are written out by hand.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Optional, Tuple, Union

import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import CategoricalDistribution, DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor, MlpExtractor
from stable_baselines3.common.type_aliases import RolloutBufferSamples

from sb3_isaac.fast_mlp import FastMLP, parse_layers

HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
CPU_ROWS = 4096
"""On a CPU a minibatch is worked on in pieces of so many rows, which stay in the cache."""

SURROGATE, SQUARED_ERROR, APPROX_KL, CLIPPED, ENTROPY, KL = range(6)
"""Places of the statistics of a minibatch, all sums over its rows: surrogate objective, squared error of the values,
SB3's estimate of the KL divergence, rows outside the clip range, entropy, exact KL divergence from the old policy."""
N_SUMS = 6

Number = Union[float, th.Tensor]


class Objective(NamedTuple):
    """What PPO minimises (https://arxiv.org/abs/1707.06347), with SB3's names."""

    clip_range: Number
    clip_range_vf: Optional[Number]
    ent_coef: float
    vf_coef: float
    normalize_advantage: bool


class OldPolicy(NamedTuple):
    """The distribution that a minibatch's actions came from."""

    parameters: th.Tensor
    """(rows, action_dim) means of a Gaussian, or (rows, n_actions) log-probabilities of a Categorical"""
    log_std: Optional[th.Tensor]
    """(action_dim,) of a Gaussian"""


def policy_gradient(
    log_prob: th.Tensor, old_log_prob: th.Tensor, advantages: th.Tensor, clip_range: Number, n_rows: int
) -> Tuple[th.Tensor, Tuple[th.Tensor, ...]]:
    """The clipped surrogate of rows that are part of a minibatch of ``n_rows``.

    :return: the loss's gradient with respect to ``log_prob``, and (surrogate, approximate KL, clipped) of each row
    """
    log_ratio = log_prob - old_log_prob
    ratio = log_ratio.exp()
    surrogate = advantages * ratio
    clipped_surrogate = advantages * ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
    # Where the clipped one is smaller the gradient is zero; d ratio / d log_prob = ratio
    grad = th.where(surrogate <= clipped_surrogate, surrogate, surrogate.new_zeros(())) / -n_rows
    distance = ratio - 1.0
    rows = (th.minimum(surrogate, clipped_surrogate), distance - log_ratio, (distance.abs() > clip_range).to(ratio.dtype))
    return grad, rows


def value_gradient(
    values: th.Tensor, old_values: th.Tensor, returns: th.Tensor, objective: Objective, n_rows: int
) -> Tuple[th.Tensor, th.Tensor]:
    """The value loss of rows that are part of a minibatch: its gradient with respect to ``values``, and the squared errors."""
    clip = objective.clip_range_vf
    factor = 2.0 * objective.vf_coef / n_rows
    if clip is None:
        error = values - returns
        return error * factor, error.square()
    change = values - old_values
    error = old_values + change.clamp(-clip, clip) - returns
    return th.where(change.abs() <= clip, error, error.new_zeros(())) * factor, error.square()


def gaussian_gradients(
    mean: th.Tensor,
    log_std: th.Tensor,
    values: th.Tensor,
    samples: RolloutBufferSamples,
    objective: Objective,
    n_rows: int,
    old: Optional[OldPolicy],
) -> Tuple[th.Tensor, th.Tensor, th.Tensor, th.Tensor]:
    """Gradients of PPO's loss for a diagonal Gaussian.

    :param mean: (rows, action_dim)
    :param log_std: (action_dim,)
    :param values: (rows,)
    :param samples: the rows, with normalised advantages
    :param n_rows: rows of the whole minibatch
    :param old: where the exact KL divergence is wanted
    :return: gradients with respect to mean, values (rows, 1) and log_std (without the entropy's), and the sums
    """
    inv_std = (-log_std).exp()
    z = (samples.actions - mean) * inv_std
    z_square = z.square()
    total_log_std = log_std.sum()
    log_prob = z_square.sum(1) * -0.5 - (total_log_std + log_std.numel() * HALF_LOG_2PI)
    grad, (surrogate, approx_kl, clipped) = policy_gradient(
        log_prob, samples.old_log_prob, samples.advantages, objective.clip_range, n_rows
    )
    grad_values, squared_errors = value_gradient(values, samples.old_values, samples.returns, objective, n_rows)
    entropy = (total_log_std + log_std.numel() * (0.5 + HALF_LOG_2PI)).expand_as(log_prob)
    if old is None or old.log_std is None:
        kl = approx_kl
    else:
        moved = ((old.parameters - mean) * inv_std).square().sum(1) * 0.5
        spread = log_std - old.log_std + 0.5 * (2.0 * (old.log_std - log_std)).exp() - 0.5
        kl = moved + spread.sum()
    sums = th.stack((surrogate, squared_errors, approx_kl, clipped, entropy, kl)).sum(1)
    grad_log_std = grad @ (z_square - 1.0)
    return grad.unsqueeze(1) * z * inv_std, grad_values.unsqueeze(1), grad_log_std, sums


def categorical_gradients(
    logits: th.Tensor,
    values: th.Tensor,
    samples: RolloutBufferSamples,
    objective: Objective,
    n_rows: int,
    old: Optional[OldPolicy],
) -> Tuple[th.Tensor, th.Tensor, th.Tensor]:
    """As :func:`gaussian_gradients` for (rows, n_actions) logits: gradients of logits and values (rows, 1), and the sums."""
    log_p = th.log_softmax(logits, 1)
    p = log_p.exp()
    actions = samples.actions.long()
    log_prob = log_p.gather(1, actions).squeeze(1)
    grad, (surrogate, approx_kl, clipped) = policy_gradient(
        log_prob, samples.old_log_prob, samples.advantages, objective.clip_range, n_rows
    )
    grad_values, squared_errors = value_gradient(values, samples.old_values, samples.returns, objective, n_rows)
    entropy = -(p * log_p).sum(1)
    chosen = actions == th.arange(logits.shape[1], device=logits.device)
    grad_logits = (chosen.to(p.dtype) - p) * grad.unsqueeze(1)
    if objective.ent_coef != 0.0:
        grad_logits = grad_logits + p * (log_p + entropy.unsqueeze(1)) * (objective.ent_coef / n_rows)
    kl = approx_kl if old is None else (old.parameters.exp() * (old.parameters - log_p)).sum(1)
    sums = th.stack((surrogate, squared_errors, approx_kl, clipped, entropy, kl)).sum(1)
    return grad_logits, grad_values.unsqueeze(1), sums


def why_not_fast(policy: Any) -> Optional[str]:
    """What makes ``policy`` more than SB3's plain MLP actor-critic, or None if :class:`FastActorCritic` can stand in for it."""
    if type(policy) is not ActorCriticPolicy:
        return f"the policy is a {type(policy).__name__}"
    if type(policy.features_extractor) is not FlattenExtractor or type(policy.mlp_extractor) is not MlpExtractor:
        return "it has its own features extractor"
    if not isinstance(policy.observation_space, spaces.Box) or is_image_space(policy.observation_space):
        return f"the observations are {policy.observation_space}"
    if type(policy.action_dist) not in (DiagGaussianDistribution, CategoricalDistribution):
        return f"actions come from a {type(policy.action_dist).__name__}"
    if policy.squash_output:
        return "its output is squashed"
    if any(parse_layers(layers) is None for layers in _layers(policy)):
        return "its networks are not Linear layers with tanh, ReLU, ELU or LeakyReLU"
    if not all(p.requires_grad and p.dtype == th.float32 and not p._backward_hooks for p in policy.parameters()):
        return "some parameters are frozen, hooked or not float32"
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    if any(getattr(module, name, None) for module in policy.modules() for name in hooks):
        return "its modules have hooks"
    if any(name in vars(policy) for name in ("forward", "evaluate_actions", "predict_values", "get_distribution")):
        return "its methods were replaced"
    return None


def _layers(policy: ActorCriticPolicy) -> Tuple[Any, Any]:
    extractor = policy.mlp_extractor
    return (extractor.policy_net, policy.action_net), (extractor.value_net, policy.value_net)


class FastActorCritic:
    """Stands in for an ``ActorCriticPolicy``, whose parameters it uses. Call under ``torch.no_grad()``.

    :param policy: one for which :func:`why_not_fast` has no reason
    :param max_rows: the most observations of one call
    """

    def __init__(self, policy: ActorCriticPolicy, max_rows: int) -> None:
        self.policy = policy
        self.max_rows = max_rows
        actor, critic = (parse_layers(layers) for layers in _layers(policy))
        assert actor is not None and critic is not None
        self.actor, self.critic = FastMLP(actor, max_rows), FastMLP(critic, max_rows)
        self.log_std: Optional[th.Tensor] = getattr(policy, "log_std", None)
        self._categorical: Any = categorical_gradients
        self._gaussian: Any = gaussian_gradients

    def compile(self) -> None:
        """Compile the loss, for a CPU, where it then takes one pass over its rows."""
        self._categorical = th.compile(categorical_gradients, dynamic=False)
        self._gaussian = th.compile(gaussian_gradients, dynamic=False)

    def act(self, obs: th.Tensor) -> Tuple[th.Tensor, th.Tensor, th.Tensor]:
        """As the policy's ``forward``, with the same random numbers.

        :param obs: (N, *obs_shape)
        :return: actions (N, action_dim) or (N,) int64, values (N,), log-probabilities (N,)
        """
        obs = obs.reshape(obs.shape[0], -1)
        values = self.critic.forward(obs).squeeze(1)
        out = self.actor.forward(obs)
        if self.log_std is not None:
            noise = th.empty_like(out).normal_()
            actions = th.addcmul(out, noise, self.log_std.exp())
            log_prob = noise.square().sum(1) * -0.5 - (self.log_std.sum() + out.shape[1] * HALF_LOG_2PI)
            return actions, values, log_prob
        log_p = th.log_softmax(out, 1)
        p = log_p.exp()
        if hasattr(th, "compile"):
            # What th.multinomial does to draw one sample since torch 2, without its checks, which wait for the device
            actions = (p / th.empty_like(p).exponential_()).argmax(1)
        else:
            actions = th.multinomial(p, 1, replacement=True).squeeze(1)
        return actions, values, log_p.gather(1, actions.unsqueeze(1)).squeeze(1)

    def values(self, obs: th.Tensor) -> th.Tensor:
        """V (n,) of observations (n, *obs_shape), any number of them."""
        pieces = obs.reshape(obs.shape[0], -1).split(self.max_rows)
        return th.cat([self.critic.forward(piece).squeeze(1).clone() for piece in pieces])

    def distribution(self, obs: th.Tensor) -> OldPolicy:
        """The present policy's distributions at observations (n, *obs_shape), to compare later ones with."""
        pieces = obs.reshape(obs.shape[0], -1).split(self.max_rows)
        out = th.cat([self.actor.forward(piece).clone() for piece in pieces])
        if self.log_std is None:
            return OldPolicy(th.log_softmax(out, 1), None)
        return OldPolicy(out, self.log_std.detach().clone())

    def gradients(self, samples: RolloutBufferSamples, objective: Objective, old: Optional[OldPolicy]) -> th.Tensor:
        """Write the gradients of PPO's loss on a minibatch into the parameters' ``grad``.

        :param old: where the exact KL divergence is wanted, else its sum is the approximate one
        :return: (N_SUMS,) statistics
        """
        n_rows = samples.observations.shape[0]
        if objective.normalize_advantage and n_rows > 1:
            std, mean = th.std_mean(samples.advantages)
            samples = samples._replace(advantages=(samples.advantages - mean) / (std + 1e-8))
        samples = samples._replace(observations=samples.observations.reshape(n_rows, -1))
        if n_rows <= self.max_rows:
            return self._piece(samples, objective, n_rows, old, accumulate=False)
        total = None
        for start in range(0, n_rows, self.max_rows):
            part = slice(start, start + self.max_rows)
            piece_old = None if old is None else OldPolicy(old.parameters[part], old.log_std)
            piece = RolloutBufferSamples(*(tensor[part] for tensor in samples))
            sums = self._piece(piece, objective, n_rows, piece_old, accumulate=start > 0)
            total = sums if total is None else total + sums
        assert total is not None
        return total

    def _piece(
        self, samples: RolloutBufferSamples, objective: Objective, n_rows: int, old: Optional[OldPolicy], accumulate: bool
    ) -> th.Tensor:
        values = self.critic.forward(samples.observations).squeeze(1)
        out = self.actor.forward(samples.observations)
        if self.log_std is None:
            grad, grad_values, sums = self._categorical(out, values, samples, objective, n_rows, old)
        else:
            grad, grad_values, grad_log_std, sums = self._gaussian(out, self.log_std, values, samples, objective, n_rows, old)
            assert self.log_std.grad is not None
            if accumulate:
                self.log_std.grad.add_(grad_log_std)
            else:  # the entropy does not depend on the rows
                th.sub(grad_log_std, objective.ent_coef, out=self.log_std.grad)
        self.actor.backward(grad, accumulate)
        self.critic.backward(grad_values, accumulate)
        result: th.Tensor = sums
        return result
