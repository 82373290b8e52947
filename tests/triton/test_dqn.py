"""DQN's update in Triton's kernels against the plain path, which other tests hold against SB3's."""

from __future__ import annotations

from typing import Any, Dict

import pytest
import torch as th
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from sb3_isaac.device.fast_mlp import parse_layers
from sb3_isaac.device.flat_adam import FlatAdam, share_storage
from sb3_isaac.dqn.fused import FusedQNetworks
from sb3_isaac.settings.table import PRECISIONS
from tests.triton.conftest import ACTIVATIONS, DEVICE, SMOOTH, check_training, mlp


@settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    n_obs=st.integers(1, 40),
    n_actions=st.integers(1, 20),
    hidden=st.lists(st.integers(1, 64), min_size=1, max_size=2),
    activation=st.sampled_from(ACTIVATIONS),
    n_rows=st.integers(1, 150),
    double_q=st.booleans(),
    precision=st.sampled_from(PRECISIONS),
)
def test_values_and_gradients_are_autograds(
    n_obs: int, n_actions: int, hidden: Any, activation: Any, n_rows: int, double_q: bool, precision: str
) -> None:
    activation = activation if precision == "fp32" else SMOOTH.get(activation, activation)
    th.manual_seed(0)
    online, target = (mlp(n_obs, hidden, n_actions, activation) for _ in range(2))
    adam, target_flat = FlatAdam(th.optim.Adam(online.parameters())), share_storage(target.parameters())
    layers = parse_layers([online])
    assert layers is not None
    fused = FusedQNetworks(layers, adam, target_flat, precision)
    obs = th.randn(n_rows, n_obs, device=DEVICE)
    tolerance = {"fp32": 1e-5, "tf32": 1e-2, "bf16": 5e-2}[precision]

    q = target(obs)
    best = (online(obs) if double_q else q).argmax(1, keepdim=True)
    values = fused.next_values(obs, double_q)
    # Where two actions are as good as each other, another precision may choose the other one
    same = th.isclose(values, q.gather(1, best), atol=tolerance, rtol=tolerance)
    assert same.all() if precision == "fp32" else same.float().mean() > 0.8

    actions, targets = th.randint(n_actions, (n_rows, 1), device=DEVICE), 2.0 * th.randn(n_rows, 1, device=DEVICE)
    loss = nn.functional.smooth_l1_loss(online(obs).gather(1, actions), targets)
    expected = th.cat([grad.flatten() for grad in th.autograd.grad(loss, list(online.parameters()))])
    loss_sum = th.full((), 3.0, device=DEVICE)
    fused.gradients(obs, actions, targets, loss_sum)
    assert float(loss_sum) == pytest.approx(3.0 + float(loss), abs=tolerance)
    assert float((adam.grad - expected).norm()) <= tolerance * float(expected.norm()) + 1e-7


@pytest.mark.parametrize("options", [{"double_q": True, "n_steps": 3, "reward_scale": 0.2}, {"batch_size": 50}])
def test_training_equals_the_plain_path(options: Dict[str, Any]) -> None:
    check_training("dqn", options, ["loss"])
