"""PPO's update in Triton's kernels against the plain path, which other tests hold against SB3's."""

from __future__ import annotations

import copy
from typing import Any, Dict, Optional, Tuple

import pytest
import torch as th
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import sync_envs_normalization
from torch import nn

from sb3_isaac import PPO, DeviceRolloutBuffer, VecNormalize, evaluate
from sb3_isaac.device.fused import ROWS
from sb3_isaac.ppo.fused import FusedUpdate
from sb3_isaac.ppo.update import AdaptiveLR, PPOUpdate, Settings, UpdateLog
from sb3_isaac.settings.table import PRECISIONS
from tests.conftest import CONTINUOUS, DISCRETE, difference, make_env, run_python, stand_in_for_graphs
from tests.ppo.conftest import learn, make_model
from tests.triton.conftest import DEVICE

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
    buffer = DeviceRolloutBuffer(N_STEPS, policy.observation_space, action_space, device=DEVICE, n_envs=N_ENVS)
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
) -> Tuple[UpdateLog, Any]:
    """Two updates of a copy of the policy: what the last one logged, and the copy. With target_kl one, as the plain path draws
    no minibatches for the epochs that it leaves out."""
    policy = copy.deepcopy(policy)
    th.manual_seed(1)  # of the minibatches
    worker = PPOUpdate(policy, buffer, precision=precision)
    for _ in range(1 if "target_kl" in changes else 2):
        log = worker.run(DEFAULT._replace(**changes), lr=3e-3)
    assert (worker.fused is not None) == (precision is not None)
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
    "elu": {"net_arch": [20, 70], "activation_fn": nn.ELU},
    "leaky_relu": {"net_arch": [16], "activation_fn": nn.LeakyReLU},
}
SPACES = {
    "box": (spaces.Box(-10, 10, (4,)), spaces.Box(-1, 1, (1,))),
    "boxes": (spaces.Box(-10, 10, (3, 7)), spaces.Box(-1, 1, (3,))),
    "discrete": (spaces.Box(-10, 10, (6,)), spaces.Discrete(3)),
}


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("case, network", [*((case, "tanh") for case in CASES), *(("clips", one) for one in NETWORKS)])
def test_updates_equal_the_plain_path(case: str, network: str, space: str) -> None:
    th.manual_seed(0)
    observation_space, action_space = SPACES[space]
    policy = ActorCriticPolicy(observation_space, action_space, lambda _: 3e-3, **NETWORKS[network]).to(DEVICE)
    buffer = filled(policy, action_space, keep_distributions=case == "adaptive")
    plain, kernels = (update(precision, policy, buffer, CASES[case]) for precision in (None, "fp32"))
    if case == "target_kl":
        assert 1 < plain[0].epochs < 8
    if "target_kl" in CASES[case]:
        assert plain[0].stopped_at is not None
        assert kernels[0].stopped_at == pytest.approx(plain[0].stopped_at, rel=1e-3)
    check_same(plain, kernels, policy)


@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    n_obs=st.integers(1, 40),
    n_outputs=st.integers(1, 20),
    discrete=st.booleans(),
    pi=st.lists(st.integers(1, 40), min_size=1, max_size=2),
    vf=st.lists(st.integers(1, 40), min_size=1, max_size=2),
    batch_size=st.integers(2, 130),
    keep=st.booleans(),
)
def test_any_shape(n_obs: int, n_outputs: int, discrete: bool, pi: Any, vf: Any, batch_size: int, keep: bool) -> None:
    th.manual_seed(0)
    action_space: Any = spaces.Discrete(n_outputs) if discrete else spaces.Box(-1, 1, (n_outputs,))
    kwargs: Dict[str, Any] = {"net_arch": {"pi": pi, "vf": vf}, "activation_fn": nn.ELU}
    policy = ActorCriticPolicy(spaces.Box(-10, 10, (n_obs,)), action_space, lambda _: 3e-3, **kwargs).to(DEVICE)
    buffer = filled(policy, action_space, keep)
    changes = {"n_epochs": 1, "batch_size": batch_size}
    check_same(*(update(precision, policy, buffer, changes) for precision in (None, "fp32")), policy)  # type: ignore[misc]


@pytest.mark.parametrize("precision, tolerance", [("tf32", 1e-3), ("bf16", 1e-2)])
def test_lower_precision_is_near(precision: str, tolerance: float) -> None:
    """One step of Adam is as large whatever the gradient: directions are compared."""
    th.manual_seed(0)
    observation_space, action_space = SPACES["box"]
    policy = ActorCriticPolicy(observation_space, action_space, lambda _: 3e-3, **NETWORKS["tanh"]).to(DEVICE)
    buffer = filled(policy, action_space, keep_distributions=True)
    averages = []
    for one in (None, precision):
        _, updated = update(one, policy, buffer, {"n_epochs": 1, "batch_size": 120})
        averages.append(th.cat([state["exp_avg"].flatten() for state in updated.optimizer.state.values()]))
    assert float((averages[1] - averages[0]).norm() / averages[0].norm()) < tolerance


def test_captured_in_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the work on the minibatches depends on what a graph would not see; all of them are one graph."""
    if DEVICE == "cpu":
        stand_in_for_graphs(monkeypatch)
    monkeypatch.setitem(ROWS, "fp32", 128)
    models = []
    for precision in (None, "fp32"):
        env = VecNormalize(make_env(CONTINUOUS, 16, device=DEVICE, max_episode_length=12))
        options = {"adaptive_lr_kl": 0.01, "clip_range": lambda p: 0.1 + 0.1 * p, "precision": precision}
        models.append(make_model(PPO, env, device=DEVICE, compile=precision is not None and DEVICE == "cuda", **options))
    if DEVICE == "cpu":
        captures = FusedUpdate.__init__
        monkeypatch.setattr(FusedUpdate, "__init__", lambda self, *args: captures(self, *args[:-1], True))
    for model in models:
        learn(model, 4)
    assert len(models[1]._run.update.fused._work.graphs) == 1
    assert difference(*models) < (1e-5 if DEVICE == "cpu" else 1e-3)


@pytest.mark.parametrize("precision, env_id", [("fp32", CONTINUOUS), ("tf32", CONTINUOUS), ("bf16", DISCRETE)])
def test_learning(precision: str, env_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pole stands, whatever the precision: with the settings of hyperparams/ppo.yml."""
    if DEVICE == "cpu":
        monkeypatch.setitem(ROWS, precision, 1024)  # the interpreter takes as long for few rows
    rates = {"learning_rate": 0.0036, "adaptive_lr_kl": 0.01, "vf_coef": 1.0, "max_grad_norm": 1.0}
    options = {"n_minibatches": 1, "n_epochs": 8, "policy_kwargs": NETWORKS["tanh"], "seed": 0, **rates}
    model = make_model(PPO, VecNormalize(make_env(env_id, 128, device=DEVICE)), device=DEVICE, precision=precision, **options)
    learn(model, 20)
    assert model._run.update.fused is not None
    env = VecNormalize(make_env(env_id, 64, device=DEVICE), training=False, norm_reward=False)
    sync_envs_normalization(model.env, env)
    assert evaluate(model, env, 64).mean > 400.0


@pytest.mark.parametrize("capability", ["80", "90"])
def test_the_compiler_takes_the_kernels(capability: str) -> None:
    out = run_python("-m", "tests.triton.compile_kernels", capability, TRITON_INTERPRET="0", TRITON_ALWAYS_COMPILE="1")
    assert out.returncode == 0 and out.stdout.count(f"compiled for {capability}") == 6, out.stdout


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_policy_that_has_not_moved_is_seen_to_have_not(precision: str) -> None:
    """What the rollout had from it is float32: with another precision the KL divergence would be made of rounding."""
    th.manual_seed(0)
    observation_space, action_space = SPACES["box"]
    policy: Any = ActorCriticPolicy(observation_space, action_space, lambda _: 3e-3, log_std_init=-3.0).to(DEVICE)
    buffer = filled(policy, action_space, keep_distributions=True)
    with th.no_grad():
        obs = buffer.tensors.observations.view(N_STEPS * N_ENVS, -1)
        distribution = policy.get_distribution(obs)
        mean = distribution.distribution.mean
        buffer.distributions.copy_(mean.view(N_STEPS, N_ENVS, -1))
        actions = buffer.tensors.actions.view(N_STEPS * N_ENVS, -1).mul_(0.05).add_(mean)
        buffer.tensors.log_probs.copy_(distribution.log_prob(actions).view(N_STEPS, N_ENVS))
    adaptive = AdaptiveLR(0.01, 1.5, 1e-4, 1e-2)
    log, _ = update(precision, policy, buffer, {"n_epochs": 1, "batch_size": 120, "adaptive_lr": adaptive, "target_kl": 1e-6})
    assert log.stopped_at is None and log.learning_rate == pytest.approx(3e-3) and log.losses["train/clip_fraction"] == 0.0


def test_bad_precision() -> None:
    with pytest.raises(ValueError, match="precision must be 'fp32' or 'tf32' or 'bf16' or None .*, got 'fp16'"):
        make_model(PPO, make_env(device=DEVICE), device=DEVICE, precision="fp16")


def test_networks_that_do_not_fit_take_the_plain_path() -> None:
    for net_arch, reason in (([16, 16, 16], "hidden layers"), ([256], "more than 128"), ([], "hidden layers")):
        model = make_model(PPO, make_env(device=DEVICE), device=DEVICE, precision="tf32", policy_kwargs={"net_arch": net_arch})
        assert "not in Triton: " in model.path and reason in model.path
        learn(model, 1)
        assert model._run.update.fused is None
    model = make_model(PPO, make_env(device=DEVICE), device=DEVICE, precision="tf32")
    assert model.path.endswith("in Triton's kernels (tf32)")
