"""The hand-written network passes and the flat Adam against autograd and torch.optim.Adam."""

from __future__ import annotations

import copy

import pytest
import torch as th
from torch import nn
from torch.profiler import ProfilerActivity, profile

from sb3_isaac.device.fast_mlp import FastMLP, parse_layers
from sb3_isaac.device.flat_adam import FlatAdam, clip_and_step_

ACTIVATIONS = [nn.Tanh, nn.ReLU, nn.ELU, nn.LeakyReLU]


def make_net(activation: type, last: type = nn.Identity) -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 16), activation(), nn.Linear(16, 8), activation(), nn.Linear(8, 2), last())


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("last", [nn.Identity, nn.Tanh])
def test_passes_equal_autograd(activation: type, last: type) -> None:
    th.manual_seed(0)
    net = make_net(activation, last)
    layers = parse_layers(net)
    assert layers is not None and len(layers) == 3
    x = th.randn(33, 4, requires_grad=True)
    weight = th.randn(33, 2)
    out = net(x)
    (out * weight).sum().backward()
    expected = [p.grad.clone() for p in net.parameters()]
    for p in net.parameters():
        p.grad = th.full_like(p, 7.0)  # must be replaced, not added to
    fast = FastMLP(layers, max_batch=50, gradients={p: p.grad for p in net.parameters()})
    with th.no_grad():
        assert th.allclose(fast.forward(x.detach()), out, atol=1e-6)
        grad_x = fast.backward(weight.clone(), inputs=True)
    assert grad_x is not None and th.allclose(grad_x, x.grad, atol=1e-5)
    with th.no_grad():
        fast.forward(x.detach())
        some = fast.backward(weight.clone(), parameters=False, inputs=True, first_column=3)
    assert some is not None and some.shape == (33, 1) and th.allclose(some, x.grad[:, 3:], atol=1e-5)
    for p, e in zip(net.parameters(), expected):
        assert th.allclose(p.grad, e, atol=1e-5)


def test_gradients_accumulate_over_chunks() -> None:
    th.manual_seed(0)
    net = make_net(nn.ELU)
    x, weight = th.randn(64, 4), th.randn(64, 2)
    for p in net.parameters():
        p.grad = th.zeros_like(p)
    fast = FastMLP(parse_layers(net), max_batch=64, gradients={p: p.grad for p in net.parameters()})
    with th.no_grad():
        fast.forward(x)
        fast.backward(weight.clone())
        whole = [p.grad.clone() for p in net.parameters()]
        for k, part in enumerate((slice(0, 40), slice(40, 64))):
            fast.forward(x[part])
            fast.backward(weight[part].clone(), accumulate=k > 0)
    for p, e in zip(net.parameters(), whole):
        assert th.allclose(p.grad, e, atol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_passes_take_no_fresh_memory(activation: type) -> None:
    """A product that did took ten times as long as the arithmetic, and a quarter of PPO's time with ELU."""
    net, n = make_net(activation), 1000
    for p in net.parameters():
        p.grad = th.zeros_like(p)
    fast = FastMLP(parse_layers(net), max_batch=n, gradients={p: p.grad for p in net.parameters()})
    x, grads = th.randn(n, 4), [th.randn(n, 2) for _ in range(3)]
    with th.no_grad():
        for grad in grads[:2]:
            fast.forward(x)
            fast.backward(grad)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            fast.forward(x)
            fast.backward(grads[2])
    events = profiler.events()
    assert any(event.name == "aten::addmm" for event in events)
    assert [event.name for event in events if getattr(event, "cpu_memory_usage", 0) >= 4 * n] == []


def test_unknown_layers_are_refused() -> None:
    assert parse_layers([nn.Linear(2, 2), nn.LayerNorm(2)]) is None
    assert parse_layers([nn.Linear(2, 2), nn.ELU(alpha=0.5)]) is None
    assert parse_layers([nn.Linear(2, 2, bias=False)]) is None
    assert parse_layers([]) is None


@pytest.mark.parametrize("scripted", [False, True])
def test_flat_adam_equals_torch_adam_and_survives_load_state_dict(scripted: bool) -> None:
    th.manual_seed(0)
    net = make_net(nn.Tanh)
    reference = copy.deepcopy(net)
    optimizer = th.optim.Adam(net.parameters(), lr=1e-2, eps=1e-5)
    reference_optimizer = th.optim.Adam(reference.parameters(), lr=1e-2, eps=1e-5)
    assert FlatAdam.supports(optimizer)
    flat = FlatAdam(optimizer, scripted=scripted)
    for k in range(12):
        if k == 5:  # as SB3's set_parameters does: everything is replaced by copies
            flat.sync(5)
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        x = th.randn(32, 4)
        for model, opt in ((net, None), (reference, reference_optimizer)):
            loss = model(x).pow(2).mean() * 100
            if opt is None:
                assert flat.refresh() == (k == 5)
                flat.grad.zero_()
                loss.backward()
                with th.no_grad():
                    flat.clip_and_step(0.5)
            else:
                opt.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                opt.step()
    for p, e in zip(net.parameters(), reference.parameters()):
        assert th.allclose(p, e, atol=1e-6)
    flat.sync(7)
    ours, theirs = optimizer.state_dict()["state"], reference_optimizer.state_dict()["state"]
    for key in theirs:
        assert float(ours[key]["step"]) == float(theirs[key]["step"]) == 12
        assert th.allclose(ours[key]["exp_avg_sq"], theirs[key]["exp_avg_sq"], rtol=1e-4, atol=1e-9)


def test_flat_adam_refuses_variants() -> None:
    p = [nn.Parameter(th.zeros(3))]
    assert not FlatAdam.supports(th.optim.AdamW(p))
    assert not FlatAdam.supports(th.optim.Adam(p, weight_decay=0.1))
    assert not FlatAdam.supports(th.optim.Adam(p, amsgrad=True))


def test_flat_adam_refuses_memory_that_is_shared() -> None:
    """Parameters that it moved would come loose from those who share it."""
    tied = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    assert FlatAdam.supports(th.optim.Adam(tied.parameters()))
    tied[1].weight.data = tied[0].weight.data
    assert not FlatAdam.supports(th.optim.Adam(tied.parameters()))
    with_others = nn.Linear(3, 3).share_memory()
    assert not FlatAdam.supports(th.optim.Adam(with_others.parameters()))


def test_the_step_that_graphs_replay_is_adams() -> None:
    th.manual_seed(0)
    ours, theirs = (nn.Parameter(th.linspace(-1.0, 1.0, 20)) for _ in range(2))
    optimizer = th.optim.Adam([theirs], lr=3e-3, eps=1e-5)
    exp_avg, exp_avg_sq, steps, lr = th.zeros(20), th.zeros(20), th.zeros(()), th.tensor(3e-3)
    for k in range(5):
        grad = th.randn(20) * (10.0 if k % 2 else 0.01)
        theirs.grad = grad.clone()
        nn.utils.clip_grad_norm_([theirs], 0.5)
        optimizer.step()
        with th.no_grad():
            steps += 1
            clip_and_step_(ours, grad, exp_avg, exp_avg_sq, steps, lr, (0.9, 0.999), 1e-5, 0.5)
    assert float(steps) == 5.0 and th.allclose(ours, theirs, atol=1e-6)
