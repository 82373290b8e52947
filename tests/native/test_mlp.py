"""Outputs of networks in C, and how a batch is divided."""

from __future__ import annotations

from typing import Any

import pytest
import torch as th
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from sb3_isaac.device.fast_mlp import parse_layers
from sb3_isaac.device.flat_adam import FlatAdam
from sb3_isaac.device.native_mlp import MAX_LAYERS, MOST_UNITS, NativeMLP, parts, why_not_native
from tests.native.conftest import needs_a_compiler

ACTIVATIONS = (nn.Tanh, nn.ReLU, nn.ELU, nn.LeakyReLU)
CPU = th.device("cpu")


def network(n_inputs: int, hidden: Any, n_outputs: int, activation: Any, last: Any = None) -> nn.Sequential:
    layers, width = [], n_inputs
    for units in hidden:
        layers += [nn.Linear(width, units), activation()]
        width = units
    return nn.Sequential(*layers, nn.Linear(width, n_outputs), *([] if last is None else [last()]))


any_network = {
    "n_inputs": st.integers(1, 40),
    "hidden": st.lists(st.integers(1, 70), min_size=0, max_size=3),
    "n_outputs": st.integers(1, 20),
    "activation": st.sampled_from(ACTIVATIONS),
    "n_rows": st.integers(1, 150),
}
quickly = settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@needs_a_compiler
@quickly
@given(last=st.sampled_from([None, nn.Tanh]), **any_network)
def test_outputs(n_inputs: int, hidden: Any, n_outputs: int, activation: Any, n_rows: int, last: Any) -> None:
    th.manual_seed(0)
    net = network(n_inputs, hidden, n_outputs, activation, last)
    layers = parse_layers([net])
    assert layers is not None and why_not_native([layers], CPU) is None
    native = NativeMLP(layers)
    wide = th.randn(n_rows, n_inputs + 3) * 3.0
    with th.no_grad():
        for x in (wide[:, :n_inputs], wide[:, :n_inputs].contiguous(), wide.t().contiguous().t()[:, :n_inputs]):
            assert th.allclose(native.forward(x), net(x), atol=1e-5, rtol=1e-5)


@needs_a_compiler
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_extreme_numbers(activation: Any) -> None:
    """From -1e4 to 1e4 and around zero; NaN comes out as NaN."""
    net = nn.Sequential(nn.Linear(1, 1), activation(), nn.Linear(1, 1))
    with th.no_grad():
        for linear in (net[0], net[2]):
            linear.weight.fill_(1.0)
            linear.bias.zero_()
    layers = parse_layers([net])
    assert layers is not None
    x = th.cat((th.linspace(-100.0, 100.0, 2001), th.linspace(-1e-3, 1e-3, 99), th.tensor([-1e4, 1e4, 0.0]))).unsqueeze(1)
    with th.no_grad():
        expected, found = net(x), NativeMLP(layers).forward(x)
        assert th.allclose(found, expected, atol=2e-7, rtol=1e-6)
        assert float((found - expected).abs().max() / (1.0 + expected.abs().max())) < 1e-6
        if activation is nn.Tanh:
            assert float(found.abs().max()) <= 1.0
        assert NativeMLP(layers).forward(th.full((3, 1), th.nan)).isnan().all()


@needs_a_compiler
def test_parameters_that_move() -> None:
    """By load_state_dict, by ``.data``, to a transposed tensor and back, and when they become an optimizer's flat ones."""
    net = network(8, [8], 8, nn.Tanh)
    layers = parse_layers([net])
    assert layers is not None
    native, x = NativeMLP(layers), th.randn(3, 8)

    def check() -> None:
        with th.no_grad():
            assert th.allclose(native.forward(x), net(x), atol=1e-6)

    check()
    net.load_state_dict(network(8, [8], 8, nn.Tanh).state_dict())
    check()
    weight: Any = net[0].weight
    weight.data = th.randn(8, 8)
    check()
    weight.data = weight.data.t()  # the same memory
    check()
    with th.no_grad():
        weight.mul_(2.0)
    check()
    adam = FlatAdam(th.optim.Adam(net.parameters()), compiled=True)
    check()
    adam.grad.normal_()
    adam.clip_and_step(None)
    check()


@needs_a_compiler
def test_large_batches_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_isaac.device.native_mlp._MOST_PARTS", 3)
    layers = parse_layers([network(4, [64, 64], 2, nn.Tanh)])
    assert layers is not None
    native = NativeMLP(layers)
    for n_rows in (511, 5000, 1024, 1):
        x = th.randn(n_rows, 4)
        assert len(parts(n_rows)) == {511: 1, 5000: 3, 1024: 2, 1: 1}[n_rows]
        whole = native.forward(x).clone()
        rows = th.cat([native.forward(x[i : i + 500]).clone() for i in range(0, n_rows, 500)])
        assert th.allclose(whole, rows, atol=1e-6)


def test_parts() -> None:
    for n_rows in (1, 511, 512, 1023, 1024, 5001, 100_000):
        shares = parts(n_rows)
        assert [i for share in shares for i in (share.start, share.stop)] == sorted(
            i for share in shares for i in (share.start, share.stop)
        )
        assert sum(share.stop - share.start for share in shares) == n_rows
        assert max(s.stop - s.start for s in shares) - min(s.stop - s.start for s in shares) <= len(shares)


def test_networks_that_stay_in_pytorch() -> None:
    def why_not(net: Any, device: str = "cpu") -> Any:
        layers = parse_layers([net])
        assert layers is not None
        return why_not_native([layers], th.device(device))

    assert "is for CPUs" in why_not(network(4, [8], 1, nn.Tanh), "cuda")
    assert f"more than {MAX_LAYERS - 1} hidden" in why_not(network(4, [8] * MAX_LAYERS, 1, nn.Tanh))
    assert f"more than {MOST_UNITS} inputs or units" in why_not(network(4, [MOST_UNITS + 1], 1, nn.Tanh))


@needs_a_compiler
@pytest.mark.parametrize("max_norm", [None, 0.1, 1e9])
def test_adam(max_norm: Any) -> None:
    """Ten steps, against the plain ones and torch's own."""
    th.manual_seed(0)
    nets = [network(5, [7], 3, nn.Tanh) for _ in range(3)]
    for net in nets[1:]:
        net.load_state_dict(nets[0].state_dict())
    optimizers = [th.optim.Adam(net.parameters(), lr=1e-2, betas=(0.8, 0.99), eps=1e-5) for net in nets]
    flat = [FlatAdam(optimizer, compiled) for optimizer, compiled in zip(optimizers, (False, True))]
    for step in range(10):
        given = th.randn(flat[0].grad.numel())
        for one in flat:
            one.refresh()
            one.grad.copy_(given)
            one.clip_and_step(max_norm, th.tensor(1e-2) if step % 2 else None)
        start = 0
        for p in nets[2].parameters():
            p.grad = given[start : start + p.numel()].view_as(p).clone()
            start += p.numel()
        if max_norm is not None:
            th.nn.utils.clip_grad_norm_(nets[2].parameters(), max_norm)
        optimizers[2].step()
        assert th.allclose(flat[0].grad, flat[1].grad, rtol=1e-5, atol=1e-9)
    own = th.cat([p.detach().flatten() for p in nets[2].parameters()])
    for one in flat:
        assert th.allclose(one.flat, own, atol=1e-6)
    with th.no_grad():
        flat[1].grad.fill_(th.nan)
        flat[1].clip_and_step(max_norm)
    assert flat[1].flat.isnan().all()
