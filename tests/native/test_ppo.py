"""PPO with ``compile=True`` on a CPU against the plain path, which other tests hold against SB3's."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict

import cloudpickle
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import sync_envs_normalization
from torch import nn

from sb3_isaac import PPO, VecNormalize, evaluate
from sb3_isaac.device.finite import NotFiniteError
from tests.conftest import CONTINUOUS, DISCRETE, difference, make_env, parameters
from tests.native.conftest import needs_a_compiler
from tests.native.test_mlp import ACTIVATIONS, quickly
from tests.ppo.conftest import OwnExtractor, learn, make_model
from tests.ppo.same_update import CASES, NETWORKS, SPACES, check_same, filled, update

pytestmark = needs_a_compiler


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("case, network", [*((case, "tanh") for case in CASES), *(("clips", one) for one in NETWORKS)])
def test_updates_equal_the_plain_path(case: str, network: str, space: str) -> None:
    th.manual_seed(0)
    observation_space, action_space = SPACES[space]
    policy = ActorCriticPolicy(observation_space, action_space, lambda _: 3e-3, **NETWORKS[network])
    buffer = filled(policy, action_space, keep_distributions=case == "adaptive")
    plain, in_c = (update(None, policy, buffer, CASES[case], compiled) for compiled in (False, True))
    if "target_kl" in CASES[case]:
        assert plain[0].stopped_at is not None
        assert in_c[0].stopped_at == pytest.approx(plain[0].stopped_at, rel=1e-3)
    check_same(plain, in_c, policy)


@quickly
@given(
    n_obs=st.integers(1, 40),
    n_outputs=st.integers(1, 20),
    discrete=st.booleans(),
    pi=st.lists(st.integers(1, 70), max_size=3),
    vf=st.lists(st.integers(1, 70), max_size=3),
    activation=st.sampled_from(ACTIVATIONS),
    batch_size=st.integers(2, 130),
    keep=st.booleans(),
    n_parts=st.integers(1, 3),
)
def test_any_shape(
    n_obs: int, n_outputs: int, discrete: bool, pi: Any, vf: Any, activation: Any, batch_size: int, keep: bool, n_parts: int
) -> None:
    th.manual_seed(0)
    action_space: Any = spaces.Discrete(n_outputs) if discrete else spaces.Box(-1, 1, (n_outputs,))
    kwargs: Dict[str, Any] = {"net_arch": {"pi": pi, "vf": vf}, "activation_fn": activation}
    policy = ActorCriticPolicy(spaces.Box(-10, 10, (n_obs,)), action_space, lambda _: 3e-3, **kwargs)
    buffer = filled(policy, action_space, keep)
    changes = {"n_epochs": 1, "batch_size": batch_size}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sb3_isaac.device.native_mlp._MOST_PARTS", n_parts)
        patch.setattr("sb3_isaac.device.native_mlp.PART_ROWS", 7)
        check_same(*(update(None, policy, buffer, changes, compiled) for compiled in (False, True)), policy)  # type: ignore[misc]


@pytest.mark.parametrize("env_id", [CONTINUOUS, DISCRETE])
def test_training_stays_near_the_plain_path(env_id: str) -> None:
    """A few rollouts, in which rounding has had no time to grow."""
    models = [make_model(env=make_env(env_id), compile=compiled, max_grad_norm=0.3) for compiled in (False, True)]
    before = parameters(models[0])
    for model in models:
        learn(model, 3)
    assert models[1].path == "in tensors, without autograd, in C"
    assert float((parameters(models[0]) - before).abs().max()) > 1e-3
    assert difference(*models) < 1e-4
    obs = models[0].env.reset()
    actions = [model.predict(obs, deterministic=True)[0] for model in models]
    assert actions[0] == pytest.approx(actions[1], abs=1e-4)


@pytest.mark.parametrize("n_threads", [1, 2])
def test_runs_repeat_to_the_last_bit(n_threads: int) -> None:
    """Whoever works on a part: parts follow from the size of the minibatch and the machine."""
    before, results = th.get_num_threads(), []
    for _ in range(2):
        th.set_num_threads(n_threads)
        try:
            model = make_model(env=make_env(n_envs=256), compile=True, n_steps=8, batch_size=2048)
            results.append(parameters(learn(model, 3)))
        finally:
            th.set_num_threads(before)
    assert th.equal(*results)


def test_it_goes_on_from_a_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    whole = make_model(compile=True)
    learn(whole, 2)
    whole.save_checkpoint(tmp_path / "saved")
    whole.learn(2 * whole.n_steps * whole.n_envs, reset_num_timesteps=False)
    resumed = PPO.resume(tmp_path / "saved", make_env())
    assert resumed.compile
    resumed.learn(2 * resumed.n_steps * resumed.n_envs, reset_num_timesteps=False)
    assert th.equal(parameters(whole), parameters(resumed))


def test_a_stranger_in_the_policy_is_seen() -> None:
    """Another network in the middle of training, and parameters that were moved."""
    model = learn(make_model(compile=True), 1)
    for parameter in model.policy.parameters():
        parameter.data = parameter.data.clone()
    learn(model, 1)
    twin = learn(make_model(compile=False), 1)
    learn(twin, 1)
    assert difference(model, twin) < 1e-4
    model.policy.mlp_extractor.policy_net[1] = nn.Softplus()
    assert model.path.endswith("Softplus; networks not in C")
    learn(model, 1)
    own = make_model(compile=True, policy_kwargs={"features_extractor_class": OwnExtractor})
    assert own.path.endswith("networks not in C")
    learn(own, 1)


def test_nan_is_found() -> None:
    model = learn(make_model(compile=True), 1)
    with th.no_grad():
        model.policy.value_net.bias.fill_(th.nan)
    with pytest.raises(NotFiniteError):
        learn(model, 1)


def test_it_learns() -> None:
    env = VecNormalize(make_env(n_envs=128, seed=1))
    policy: Dict[str, Any] = {"net_arch": {"pi": [32], "vf": [64, 64]}, "activation_fn": nn.Tanh}
    options: Dict[str, Any] = {"n_steps": 16, "n_minibatches": 1, "n_epochs": 8, "learning_rate": 0.0036, "vf_coef": 1.0}
    options.update(adaptive_lr_kl=0.01, max_grad_norm=1.0, policy_kwargs=policy, seed=1, device="cpu", compile=True)
    model = PPO("MlpPolicy", env, **options).learn(61_440)
    tests = VecNormalize(make_env(n_envs=64, seed=2), training=False, norm_reward=False)
    sync_envs_normalization(env, tests)
    assert evaluate(model, tests, 64).mean > 450.0


def test_very_improbable_rows_that_are_not_there() -> None:
    """A block that is not full is filled with zeros, which a narrow Gaussian of many dimensions finds impossible."""
    th.manual_seed(0)
    space = spaces.Box(-1, 1, (48,))
    policy = ActorCriticPolicy(spaces.Box(-10, 10, (6,)), space, lambda _: 3e-3, log_std_init=-3.0)
    buffer = filled(policy, space, keep_distributions=False)
    with th.no_grad():
        distribution = policy.get_distribution(buffer.tensors.observations.view(-1, 6))
        actions = distribution.sample()
        buffer.tensors.actions.copy_(actions.view(buffer.tensors.actions.shape))
        buffer.tensors.log_probs.copy_(distribution.log_prob(actions).view(buffer.tensors.log_probs.shape))
    plain, in_c = (update(None, policy, buffer, {"batch_size": 30, "n_epochs": 1}, compiled) for compiled in (False, True))
    assert in_c[0].losses["train/approx_kl"] == pytest.approx(plain[0].losses["train/approx_kl"], rel=1e-2)


def test_a_model_that_has_trained_can_be_copied() -> None:
    model = learn(make_model(compile=True), 1)
    model.env, env = None, model.env
    copied = cloudpickle.loads(cloudpickle.dumps(model))
    for one in (model, copied):
        one.set_env(env if one is model else make_env())
        learn(one, 1)
    assert difference(model, copied) < 1e-1 and copied.compile
