"""PPO's update in Triton's kernels against the plain path, which other tests hold against SB3's."""

from __future__ import annotations

from typing import Any, Dict

import pytest
import torch as th
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import sync_envs_normalization
from torch import nn

from sb3_isaac import PPO, VecNormalize, evaluate
from sb3_isaac.device.fused import ROWS, _why_not_triton
from sb3_isaac.envs import tensor_path, vec_env, vec_normalize
from sb3_isaac.ppo import rollout
from sb3_isaac.ppo.fused import FusedUpdate
from sb3_isaac.ppo.update import AdaptiveLR
from sb3_isaac.settings.table import PRECISIONS
from tests.conftest import CONTINUOUS, DISCRETE, difference, make_env, run_python, stand_in_for_graphs
from tests.ppo.conftest import learn, make_model
from tests.ppo.same_update import CASES, N_ENVS, N_STEPS, NETWORKS, SPACES, check_same, filled, update
from tests.triton.conftest import DEVICE


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
    batch_size=st.integers(20, 130),  # what is left of a rollout is smaller
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


@pytest.mark.parametrize(
    "precision, env_id",
    [("tf32", CONTINUOUS), ("bf16", DISCRETE)] + [("fp32", CONTINUOUS)] * (DEVICE == "cuda"),  # elsewhere it is the plain path
)
def test_learning(precision: str, env_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pole stands, whatever the precision: with the settings of hyperparams/ppo.yml."""
    if DEVICE == "cpu":
        monkeypatch.setitem(ROWS, precision, 2048)  # the interpreter takes as long for few rows
        # and as long again for rollouts, whose precision is another matter: test_steps.py
        monkeypatch.setattr(rollout, "in_kernels", lambda *args: False)
        for module in (tensor_path, vec_env, vec_normalize):
            monkeypatch.setattr(module, "in_triton", lambda *args: False)
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
    assert out.returncode == 0 and out.stdout.count(f"compiled for {capability}") == 20, out.stdout


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


def test_a_triton_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    for version, reason in (("3.2.0", "Triton 3.3 or newer is needed"), ("3.3.1+git", None), ("4.0.0", None)):
        monkeypatch.setattr("triton.__version__", version)
        found = _why_not_triton.__wrapped__(DEVICE, None)
        assert found is None if reason is None else reason in str(found)


def test_networks_that_do_not_fit_take_the_plain_path() -> None:
    for net_arch, reason in (([16, 16, 16], "hidden layers"), ([256], "more than 64"), ([], "hidden layers")):
        model = make_model(PPO, make_env(device=DEVICE), device=DEVICE, precision="tf32", policy_kwargs={"net_arch": net_arch})
        assert "not in Triton: " in model.path and reason in model.path
        learn(model, 1)
        assert model._run.update.fused is None
    model = make_model(PPO, make_env(device=DEVICE), device=DEVICE, precision="tf32")
    assert model.path.endswith("in Triton's kernels (tf32)")
