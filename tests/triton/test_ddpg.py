"""DDPG's update in Triton's kernels against the plain path, which other tests hold against SB3's."""

from __future__ import annotations

from typing import Any, Dict, List

import pytest
import torch as th
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from sb3_isaac.ddpg.fused import FusedActorCritics
from sb3_isaac.device.fast_mlp import parse_layers
from sb3_isaac.device.flat_adam import FlatAdam, share_storage
from sb3_isaac.device.fused import why_not_fused
from sb3_isaac.settings.table import PRECISIONS
from tests.conftest import CONTINUOUS, make_env
from tests.off_policy.conftest import make_model
from tests.triton.conftest import ACTIVATIONS, DEVICE, SMOOTH, check_training, mlp

TOLERANCE = {"fp32": 1e-5, "tf32": 1e-2, "bf16": 5e-2}
HIDDEN = st.lists(st.integers(1, 64), min_size=1, max_size=2)


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    n_obs=st.integers(1, 40),
    n_actions=st.integers(1, 20),
    hidden=HIDDEN,
    critic_hidden=HIDDEN,
    n_critics=st.integers(1, 3),
    activation=st.sampled_from(ACTIVATIONS),
    squashed=st.booleans(),
    noisy=st.booleans(),
    n_rows=st.integers(1, 150),
    precision=st.sampled_from(PRECISIONS),
)
def test_values_and_gradients_are_autograds(
    n_obs: int,
    n_actions: int,
    hidden: List[int],
    critic_hidden: List[int],
    n_critics: int,
    activation: Any,
    squashed: bool,
    noisy: bool,
    n_rows: int,
    precision: str,
) -> None:
    activation = activation if precision == "fp32" else SMOOTH.get(activation, activation)
    th.manual_seed(0)
    actors = [mlp(n_obs, hidden, n_actions, activation) for _ in range(2)]
    if squashed:
        actors = [nn.Sequential(*actor, nn.Tanh()) for actor in actors]
    every = [nn.ModuleList(mlp(n_obs + n_actions, critic_hidden, 1, activation) for _ in range(n_critics)) for _ in range(2)]
    (actor, actor_target), (critics, critic_targets) = actors, every
    adams = [FlatAdam(th.optim.Adam(net.parameters())) for net in (actor, critics)]
    targets = share_storage(actor_target.parameters()), share_storage(critic_targets.parameters())
    layers: Any = [parse_layers([net]) for net in (actor, *critics)]
    fused = FusedActorCritics(layers[0], layers[1:], adams[0], adams[1], targets, precision)
    obs, tolerance = th.randn(n_rows, n_obs, device=DEVICE), TOLERANCE[precision]
    actions = th.rand(n_rows, n_actions, device=DEVICE) * 2.0 - 1.0
    noise = 0.3 * th.randn(n_rows, n_actions, device=DEVICE) if noisy else None

    next_actions = actor_target(obs)
    if noise is not None:
        next_actions = (next_actions + noise).clamp(-1.0, 1.0)
    values = th.cat([net(th.cat((obs, next_actions), 1)) for net in critic_targets], 1).amin(1, keepdim=True)
    th.testing.assert_close(fused.next_values(obs, noise), values.detach(), atol=tolerance, rtol=tolerance)

    returns = 2.0 * th.randn(n_rows, 1, device=DEVICE)
    critic_loss = sum(nn.functional.mse_loss(net(th.cat((obs, actions), 1)), returns) for net in critics)
    actor_loss = -critics[0](th.cat((obs, actor(obs)), 1)).mean()
    sums = th.full((2,), 3.0, device=DEVICE)
    fused.critic_gradients(obs, actions, returns, sums[0])
    fused.actor_gradients(obs, sums[1])
    for loss, net, adam, found in ((critic_loss, critics, adams[1], sums[0]), (actor_loss, actor, adams[0], sums[1])):
        expected = th.cat([grad.flatten() for grad in th.autograd.grad(loss, list(net.parameters()))])
        assert float(found) == pytest.approx(3.0 + float(loss), abs=tolerance, rel=tolerance)
        assert float((adam.grad - expected).norm()) <= tolerance * float(expected.norm()) + 1e-7


@pytest.mark.parametrize(
    "options",
    [{"n_steps": 3, "reward_scale": 0.2}, {"batch_size": 50, "policy_kwargs": {"net_arch": {"pi": [20], "qf": [32, 24]}}}],
)
def test_training_equals_the_plain_path(options: Dict[str, Any]) -> None:
    check_training("ddpg", options, ["critic_loss", "actor_loss"])


def test_networks_that_the_kernels_do_not_know() -> None:
    """Only the actor's outputs go through tanh, and all critics are alike."""
    actor, critic, wider = ([(nn.Linear(5, n), nn.ReLU), (nn.Linear(n, 1), nn.Identity)] for n in (8, 8, 9))
    squashed: Any = [critic[0], (critic[1][0], nn.Tanh)]
    device = th.device(DEVICE)
    assert why_not_fused([squashed, critic, critic], device, squashed=True) is None
    assert why_not_fused([actor, critic, squashed], device, squashed=True) == "the layers have different activations"
    assert why_not_fused([squashed], device) == "the layers have different activations"
    assert why_not_fused([actor, critic, wider], device, squashed=True) == "the critics have different layers"


def test_what_the_kernels_do_not_know() -> None:
    """Stays on the plain path, which says so."""
    env = make_env(CONTINUOUS, 16, device=DEVICE)
    model = make_model("ddpg", env, device=DEVICE, precision="tf32", policy_kwargs={"net_arch": [200]})
    assert model.path.endswith("not in Triton: a layer has more than 64 inputs or units")
    model.learn(16 * 12)
    assert model._run.fast.fused is None
