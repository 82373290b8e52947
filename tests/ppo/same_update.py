"""PPO's update by other kernels than PyTorch's, in Triton or in C, against the plain path: what is compared, and how."""

from __future__ import annotations

import copy
from typing import Any, Dict, Optional, Tuple

import pytest
import torch as th
from gymnasium import spaces
from torch import nn

from sb3_isaac import DeviceRolloutBuffer
from sb3_isaac.ppo.update import AdaptiveLR, PPOUpdate, Settings, UpdateLog

DEFAULT = Settings(
    n_epochs=2,
    batch_size=50,
    clip_range=0.2,
    clip_range_vf=None,
    ent_coef=0.0,
    vf_coef=0.5,
    max_grad_norm=0.5,
    normalize_advantage=True,
    target_kl=None,
    adaptive_lr=None,
)
N_STEPS, N_ENVS = 8, 15
"""120 rows: minibatches of 50, 50 and 20"""


def filled(policy: Any, action_space: Any, keep_distributions: bool) -> DeviceRolloutBuffer:
    """A buffer of random rows, from a policy that differs somewhat from this one."""
    buffer = DeviceRolloutBuffer(N_STEPS, policy.observation_space, action_space, device=policy.device, n_envs=N_ENVS)
    discrete = isinstance(action_space, spaces.Discrete)
    n_outputs = int(action_space.n) if discrete else action_space.shape[0]
    if keep_distributions:
        buffer.keep_distributions(n_outputs)
    rows, tensors = N_STEPS * N_ENVS, buffer.tensors
    with th.no_grad():
        buffer.rows.copy_(th.randn(buffer.rows.shape))
        obs = tensors.observations.view(rows, -1)
        if discrete:
            tensors.actions.copy_(th.randint(n_outputs, tensors.actions.shape))
        distribution = policy.get_distribution(obs)
        actions = tensors.actions.view(rows, -1)
        log_prob = distribution.log_prob(actions.squeeze(1) if discrete else actions)
        tensors.log_probs.mul_(0.1).add_(log_prob.view(N_STEPS, N_ENVS))
        if keep_distributions:
            moved = buffer.distributions.view(rows, -1) * 0.3
            if discrete:
                moved = th.log_softmax(distribution.distribution.logits + moved, 1)
            else:
                moved = moved + distribution.distribution.mean
            buffer.distributions.copy_(moved.view(N_STEPS, N_ENVS, -1))
    buffer.full = True
    return buffer


def update(
    precision: Optional[str],
    policy: Any,
    buffer: Any,
    changes: Dict[str, Any],
    compiled: bool = False,
) -> Tuple[UpdateLog, Any]:
    """Two updates of a copy of the policy: what the last one logged, and the copy. With target_kl one, as the plain path draws
    no minibatches for the epochs that it leaves out."""
    policy = copy.deepcopy(policy)
    th.manual_seed(1)  # of the minibatches
    worker = PPOUpdate(policy, buffer, compiled, precision)
    for _ in range(1 if "target_kl" in changes else 2):
        log = worker.run(DEFAULT._replace(**changes), lr=3e-3)
    assert (worker.fused is not None) == (precision is not None)
    assert worker.fast is not None and (worker.fast._native is not None) == compiled
    return log, policy


def check_same(plain: Tuple[UpdateLog, Any], kernels: Tuple[UpdateLog, Any], start: Any, tolerance: float = 1e-5) -> None:
    parameters_of = [th.cat([p.detach().flatten() for p in policy.parameters()]) for policy in (start, plain[1], kernels[1])]
    stopped_at_once = plain[0].stopped_at is not None and plain[0].epochs == 1
    assert (float((parameters_of[1] - parameters_of[0]).abs().max()) > 1e-4) != stopped_at_once
    assert float((parameters_of[2] - parameters_of[1]).abs().max()) < tolerance
    assert kernels[0].epochs == plain[0].epochs
    assert kernels[0].learning_rate == pytest.approx(plain[0].learning_rate)
    assert (kernels[0].stopped_at is None) == (plain[0].stopped_at is None)
    for key, value in plain[0].losses.items():
        assert kernels[0].losses[key] == pytest.approx(value, rel=1e-3, abs=1e-5), key
    if plain[0].stopped_at is None:
        assert th.allclose(*(th.cat([p.grad.flatten() for p in one[1].parameters()]) for one in (plain, kernels)), atol=1e-6)
    states = [policy.optimizer.state_dict()["state"] for policy in (plain[1], kernels[1])]
    for key, state in states[0].items():
        assert float(states[1][key]["step"]) == float(state["step"])
        assert th.allclose(states[1][key]["exp_avg_sq"], state["exp_avg_sq"], rtol=1e-3, atol=1e-7)


CASES: Dict[str, Dict[str, Any]] = {
    "plain": {},
    "clips": {"clip_range_vf": 0.1, "ent_coef": 0.02, "clip_range": 0.05, "max_grad_norm": 0.01},
    "raw_advantages": {"normalize_advantage": False, "max_grad_norm": float("inf"), "vf_coef": 2.0},
    "target_kl": {"target_kl": 0.006, "n_epochs": 8, "batch_size": 120},
    "target_kl_at_once": {"target_kl": 1e-3},
    "adaptive": {"adaptive_lr": AdaptiveLR(0.01, 1.5, 1e-4, 1e-2)},
    "one_minibatch": {"batch_size": 120, "adaptive_lr": AdaptiveLR(0.1, 1.5, 1e-4, 1e-2), "ent_coef": -0.01},
}
NETWORKS: Dict[str, Dict[str, Any]] = {
    "tanh": {"net_arch": {"pi": [32], "vf": [64, 64]}, "activation_fn": nn.Tanh},
    "relu": {"net_arch": {"pi": [24, 8], "vf": [5]}, "activation_fn": nn.ReLU},
    "elu": {"net_arch": [20, 50], "activation_fn": nn.ELU},
    "leaky_relu": {"net_arch": [16], "activation_fn": nn.LeakyReLU},
}
SPACES = {
    "box": (spaces.Box(-10, 10, (4,)), spaces.Box(-1, 1, (1,))),
    "boxes": (spaces.Box(-10, 10, (3, 7)), spaces.Box(-1, 1, (3,))),
    "discrete": (spaces.Box(-10, 10, (6,)), spaces.Discrete(3)),
}
