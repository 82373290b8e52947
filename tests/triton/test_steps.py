"""Steps of a rollout in Triton's kernels against the plain path, which other tests hold against SB3's."""

from __future__ import annotations

from typing import Any, Dict, List

import pytest
import torch as th
from gymnasium import spaces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_isaac import PPO, DeviceReplayBuffer, DeviceRolloutBuffer, VecNormalize
from sb3_isaac.backends.base import StepResult
from sb3_isaac.buffers.rollout_buffer import StepColumn
from sb3_isaac.device.fast_mlp import parse_layers
from sb3_isaac.device.fused_mlp import FusedMLP
from sb3_isaac.envs import fused
from sb3_isaac.envs.running_mean_std import RunningMoments
from sb3_isaac.ppo.fast_policy import FastActorCriticPolicy
from sb3_isaac.ppo.fused_steps import FusedSteps
from tests.conftest import CONTINUOUS, DISCRETE, ENV_IDS, difference, make_env
from tests.envs.same_step import NORMALIZE, both, check_steps
from tests.off_policy.conftest import make_model as make_off_policy
from tests.ppo.conftest import Looks, learn, make_model
from tests.triton.conftest import ACTIVATIONS, DEVICE, mlp

ANY = settings(max_examples=20, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("n_envs, options", [*((13, options) for options in NORMALIZE), (1, {}), (300, {})], ids=str)
def test_a_step(n_envs: int, options: Dict[str, Any]) -> None:
    def make() -> Any:
        return VecNormalize(make_env(n_envs=n_envs, device=DEVICE, max_episode_length=9), **options)

    plain, in_triton = both(make, compiled=False, precision="fp32")
    assert in_triton._state.in_triton and in_triton.unwrapped._in_triton
    check_steps(plain, in_triton, 12)


def test_columns_that_are_not_finite_change_nothing_but_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many environments, which a program takes in several turns."""
    monkeypatch.setattr(fused, "COLUMN_BLOCK", 16)
    n, columns = 37, 3
    plain, found = (RunningMoments(columns + 1, th.device(DEVICE), 1e-8) for _ in range(2))
    returns = th.zeros(2, n, dtype=th.float64, device=DEVICE)
    gamma = th.tensor(0.99, dtype=th.float64, device=DEVICE)
    factors = th.tensor([1.0, 1e-3, 1e6], device=DEVICE)
    none = th.zeros(n, dtype=th.bool, device=DEVICE)
    th.manual_seed(0)
    for step in range(9):
        obs, reward = th.randn(n, columns, device=DEVICE) * factors + factors, th.randn(n, device=DEVICE)
        if step % 3 == 1:
            obs[20, 1] = th.nan if step % 2 else th.inf
        returns[0].mul_(gamma).add_(reward)
        plain.update(th.cat((obs.t().double(), returns[:1])))
        result = StepResult(obs, reward, none, none, obs)
        step_of = fused.normalize_step(result, none, returns[1], found, gamma, True, True, True, 10.0, 10.0)
        for name in ("mean", "var", "count", "scale", "offset"):
            th.testing.assert_close(getattr(found, name), getattr(plain, name), rtol=1e-6, atol=1e-9)
        assert th.equal(step_of.obs.isnan(), obs.isnan())
        th.testing.assert_close(step_of.obs, step_of.final_obs, rtol=0.0, atol=0.0, equal_nan=True)


@ANY
@given(
    n_obs=st.integers(1, 40),
    n_outputs=st.integers(1, 20),
    discrete=st.booleans(),
    pi=st.lists(st.integers(1, 64), min_size=1, max_size=2),
    vf=st.lists(st.integers(1, 64), min_size=1, max_size=2),
    activation=st.sampled_from(ACTIVATIONS),
    n_envs=st.integers(1, 150),
    keep=st.booleans(),
    step=st.integers(0, 2),
)
def test_acting(
    n_obs: int, n_outputs: int, discrete: bool, pi: Any, vf: Any, activation: Any, n_envs: int, keep: bool, step: int
) -> None:
    """With the same random numbers, and what it leaves in the buffer's rows."""
    th.manual_seed(0)
    action_space: Any = spaces.Discrete(n_outputs) if discrete else spaces.Box(-0.5, 0.7, (n_outputs,))
    kwargs: Dict[str, Any] = {"net_arch": {"pi": pi, "vf": vf}, "activation_fn": activation}
    policy = ActorCriticPolicy(spaces.Box(-10, 10, (n_obs,)), action_space, lambda _: 3e-3, **kwargs).to(DEVICE)
    with th.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * th.randn_like(parameter))
    plain = FastActorCriticPolicy(policy, n_envs)
    buffers = [DeviceRolloutBuffer(3, policy.observation_space, action_space, DEVICE, n_envs=n_envs) for _ in range(2)]
    for buffer in buffers:
        buffer.keep_distributions(plain.distribution_columns if keep else 0)
    bounds = None if discrete else [th.tensor(x, device=DEVICE) for x in (action_space.low, action_space.high)]
    fused_steps = FusedSteps(policy, buffers[1], bounds)
    obs = th.randn(n_envs, n_obs, device=DEVICE)
    results = []
    for acts in (lambda: plain.act(obs), lambda: fused_steps.act(obs, th.full((1,), step, device=DEVICE))):
        th.manual_seed(1)
        with th.no_grad():
            results.append(acts())
    actions, values, log_probs, distribution = results[0]
    buffers[0].put(step, obs, actions, th.zeros(n_envs, device=DEVICE), values, log_probs, distribution)
    env_actions = actions if bounds is None else actions.clamp(*bounds)
    for found, want in zip(results[1], (actions, env_actions, values, log_probs)):
        assert found.dtype is want.dtype
        th.testing.assert_close(found, want, rtol=1e-5, atol=1e-5)
    th.testing.assert_close(buffers[1].rows, buffers[0].rows, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("discrete", [True, False])
def test_what_is_not_a_number_stays_one(discrete: bool) -> None:
    """No action is drawn that there is not, with which an environment would read beyond its table."""
    action_space: Any = spaces.Discrete(2) if discrete else spaces.Box(-1, 1, (1,))
    policy = ActorCriticPolicy(spaces.Box(-10, 10, (4,)), action_space, lambda _: 3e-3).to(DEVICE)
    buffer = DeviceRolloutBuffer(1, policy.observation_space, action_space, DEVICE, n_envs=3)
    obs = th.zeros(3, 4, device=DEVICE)
    obs[1] = th.nan
    step = th.zeros(1, dtype=th.int64, device=DEVICE)
    actions, _, values, log_probs = FusedSteps(policy, buffer, None).act(obs, step)
    assert values.isnan().tolist() == [False, True, False]
    if discrete:
        assert log_probs.isnan().tolist() == [False, True, False] and int(actions.max()) < 2
    else:
        assert actions.flatten().isnan().tolist() == [False, True, False]


def test_wide_observations() -> None:
    """What does not fit into registers is left to PyTorch; what is somewhat wide is taken a few rows at once."""
    for n_obs, narrow in ((100, True), (300, False)):
        buffer = DeviceReplayBuffer(40, spaces.Box(-1, 1, (n_obs,)), spaces.Discrete(2), DEVICE, 4)
        buffer.in_triton, buffer.full = True, True
        stored = buffer.observations.copy_(th.randn(10, 4, n_obs))
        assert buffer._all_in_triton == narrow
        found = buffer.at(th.arange(40, device=DEVICE)).observations
        assert th.equal(found.view(10, 4, n_obs), stored)
        n, none = 40, th.zeros(40, dtype=th.bool, device=DEVICE)
        moments = RunningMoments(n_obs + 1, th.device(DEVICE), 1e-8)
        result = StepResult(found, th.zeros(n, device=DEVICE), none, none, found)
        returns, gamma = (th.zeros(size, dtype=th.float64, device=DEVICE) for size in ((n,), ()))
        step_of = fused.normalize_step(result, none, returns, moments, gamma, False, True, True, 10.0, 10.0)
        th.testing.assert_close(step_of.obs, found, rtol=1e-6, atol=1e-6)


def test_advantages_of_somebodys_own() -> None:
    model = make_model(PPO, make_env(n_envs=8, device=DEVICE), precision="fp32", device=DEVICE, n_steps=4, batch_size=32)
    calls: List[int] = []
    compute = model.rollout_buffer.compute_returns_and_advantage
    model.rollout_buffer.compute_returns_and_advantage = lambda *args: (calls.append(1), compute(*args))
    learn(model, 1)
    assert model._run.rollout.fused is not None and calls == [1]


@ANY
@given(n_envs=st.integers(1, 300), n_obs=st.integers(1, 20), n_steps=st.integers(1, 7), lies_otherwise=st.booleans())
def test_storing_and_advantages(n_envs: int, n_obs: int, n_steps: int, lies_otherwise: bool) -> None:
    """What environments made of actions, also in tensors that are not in a piece, and advantages of all of it."""
    th.manual_seed(0)
    spaces_ = spaces.Box(-10, 10, (n_obs,)), spaces.Box(-1, 1, (1,))
    policy = ActorCriticPolicy(*spaces_, lambda _: 3e-3).to(DEVICE)
    plain, found = (DeviceRolloutBuffer(n_steps, *spaces_, DEVICE, gamma=0.9, gae_lambda=0.8, n_envs=n_envs) for _ in range(2))
    fused_steps = FusedSteps(policy, found, None)
    logs, final_obs = (th.zeros(2, *shape, device=DEVICE) for shape in ((3, n_steps, n_envs), (n_steps, n_envs, n_obs)))
    next_obs = th.zeros(n_envs, n_obs, device=DEVICE)
    values = th.randn(n_steps, n_envs, device=DEVICE)
    plain.tensors.values.copy_(values)
    found.tensors.values.copy_(values)
    for step in range(n_steps):
        obs, last, reward = (th.randn(n_envs, *size, device=DEVICE) for size in ((n_obs,), (n_obs,), ()))
        if lies_otherwise:
            obs, reward = obs.t().contiguous().t(), reward.repeat_interleave(2)[::2]
        terminated, truncated = (th.rand(n_envs, device=DEVICE) < 0.3 for _ in range(2))
        dones, returns = terminated | truncated, th.randn(n_envs, device=DEVICE)
        lengths = th.randint(1, 500, (n_envs,), device=DEVICE)
        result = StepResult(obs, reward, terminated, truncated, last)
        number = th.full((1,), step, device=DEVICE)
        fused_steps.store(number, result, dones, returns, lengths, next_obs, final_obs[1], logs[1])
        for column, value in zip(logs[0], (truncated, returns, lengths * dones)):
            StepColumn(column).put(step, value)
        StepColumn(final_obs[0]).put(step, last)
        StepColumn(plain.tensors.rewards).put(step, reward)
        assert th.equal(next_obs, obs)
    assert th.equal(logs[0], logs[1]) and th.equal(final_obs[0], final_obs[1])
    assert th.equal(plain.tensors.rewards, found.tensors.rewards)
    ended, last_values = logs[0, 2] > 0.0, th.randn(n_envs, device=DEVICE)
    plain.tensors.episode_starts[1:].copy_(ended[:-1])
    plain.compute_returns_and_advantage(last_values, ended[-1])
    fused_steps.advantages(last_values, logs[1, 2])
    for name in ("advantages", "returns"):
        th.testing.assert_close(getattr(found.tensors, name), getattr(plain.tensors, name), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("env_id, normalize, looks", [(CONTINUOUS, True, False), (DISCRETE, False, True)])
def test_rollouts_equal_the_plain_path(env_id: str, normalize: bool, looks: bool) -> None:
    """And all that comes of them."""
    models = []
    for precision in (None, "fp32"):
        env: Any = make_env(env_id, 16, device=DEVICE, max_episode_length=12)
        env = VecNormalize(env) if normalize else env
        options = {"device": DEVICE, "compile": DEVICE == "cuda", "adaptive_lr_kl": 0.01, "n_steps": 8}
        model = make_model(PPO, env, precision=precision, **options)
        models.append(learn(model, 4, Looks() if looks else None))
    assert models[0]._run.rollout.fused is None and models[1]._run.rollout.fused is not None
    tolerance = 1e-4 if DEVICE == "cpu" else 1e-2
    for name, want in models[0].rollout_buffer.tensors._asdict().items():
        found = getattr(models[1].rollout_buffer.tensors, name)
        assert float((found - want).abs().max()) <= tolerance * float(want.abs().max()), name
    assert difference(*models) < tolerance
    episodes = [[(one["r"], one["l"]) for one in model.ep_info_buffer] for model in models]
    assert len(episodes[0]) > 10
    for (r, length), (want_r, want_length) in zip(*episodes):
        assert r == pytest.approx(want_r, abs=1e-2) and length == want_length


def test_parameters_that_are_moved_are_found() -> None:
    """By an update, which makes them flat, and by anybody else."""
    model = make_model(PPO, make_env(n_envs=8, device=DEVICE), precision="fp32", device=DEVICE, n_steps=4, batch_size=32)
    learn(model, 1)
    obs = th.randn(8, 4, device=DEVICE)
    for move in (lambda p: p.data, lambda p: p.data.clone()):
        with th.no_grad():
            for parameter in model.policy.parameters():
                parameter.data = move(parameter).mul(0.9)
        fused_steps = model._run.rollout.fused
        fused_steps.find()
        _, _, values, _ = fused_steps.act(obs, th.zeros(1, dtype=th.int64, device=DEVICE))
        th.testing.assert_close(values, model.policy.predict_values(obs).flatten().detach(), rtol=1e-5, atol=1e-5)


@ANY
@given(
    n_envs=st.integers(1, 9),
    n_rows=st.integers(2, 12),
    n_added=st.integers(1, 30),
    n_obs=st.integers(1, 20),
    n_actions=st.integers(1, 3),
    n_steps=st.integers(1, 5),
    batch_size=st.integers(1, 150),
    economical=st.booleans(),
    time_limits=st.booleans(),
    cut=st.booleans(),
    normalize=st.sampled_from([None, *NORMALIZE]),
)
def test_drawn_transitions(
    n_envs: int,
    n_rows: int,
    n_added: int,
    n_obs: int,
    n_actions: int,
    n_steps: int,
    batch_size: int,
    economical: bool,
    time_limits: bool,
    cut: bool,
    normalize: Any,
) -> None:
    """With their n-step returns, around the newest ones, the ends of episodes and of the buffer."""
    th.manual_seed(0)
    spaces_ = spaces.Box(-10, 10, (n_obs,)), spaces.Box(-1, 1, (n_actions,))
    options = {"optimize_memory_usage": economical, "handle_timeout_termination": time_limits and not economical}
    buffer = DeviceReplayBuffer(n_rows * n_envs, *spaces_, DEVICE, n_envs, n_steps=n_steps, gamma=0.9, **options)
    for _ in range(n_added):
        ends = (th.rand(2, n_envs, device=DEVICE) < 0.2).unbind(0)
        obs, next_obs = th.randn(2, n_envs, n_obs, device=DEVICE).unbind(0)
        actions, reward = th.randn(n_envs, n_actions, device=DEVICE), th.randn(n_envs, device=DEVICE)
        buffer.add_tensors(obs, next_obs, actions, reward, *ends)
    if cut:
        buffer.end_trajectories()
    env = None
    if normalize is not None:
        env = VecNormalize(make_env(n_envs=n_envs, device=DEVICE), **normalize)
        env._state.moments.scale.copy_(th.tensor([0.5, 2.0, 1.0, -1.0, 0.3], device=DEVICE))
        env._state.moments.offset.copy_(th.tensor([0.1, 0.0, -1.0, 1.0, 0.0], device=DEVICE))
        if n_obs != 4:
            env.norm_obs = False
    index = buffer.draw(batch_size)
    samples = []
    for buffer.in_triton in (False, True):
        samples.append(buffer.at(index, env))
    for name, want in samples[0]._asdict().items():
        found = getattr(samples[1], name)
        assert (found is None) == (want is None)
        if want is not None:
            th.testing.assert_close(found, want, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def test_indices_that_there_are_not() -> None:
    """Nobody reads beyond the buffer, and training sees that something is wrong."""
    buffer = DeviceReplayBuffer(40, spaces.Box(-1, 1, (3,)), spaces.Discrete(2), DEVICE, 4)
    buffer.in_triton, buffer.full = True, True
    samples = buffer.at(th.tensor([3, 40, -1], device=DEVICE))
    assert samples.rewards.flatten().isnan().tolist() == [False, True, True]
    assert not samples.observations.any() and not samples.next_observations.any()


@ANY
@given(
    n_obs=st.integers(1, 40),
    n_outputs=st.integers(1, 20),
    units=st.lists(st.integers(1, 64), min_size=1, max_size=2),
    activation=st.sampled_from(ACTIVATIONS),
    squashed=st.booleans(),
    n_envs=st.integers(1, 150),
    lies_otherwise=st.booleans(),
)
def test_acting_of_dqn_and_ddpg(
    n_obs: int, n_outputs: int, units: Any, activation: Any, squashed: bool, n_envs: int, lies_otherwise: bool
) -> None:
    """With parameters that lie anywhere."""
    th.manual_seed(0)
    net: Any = mlp(n_obs, units, n_outputs, activation)
    if squashed:
        net.append(nn.Tanh())
    obs = th.randn(n_envs, n_obs, device=DEVICE)
    if lies_otherwise:
        obs = obs.t().contiguous().t()
        net[0].weight.data = net[0].weight.data.t().contiguous().t()
    layers = parse_layers([net])
    assert layers is not None
    with th.no_grad():
        th.testing.assert_close(FusedMLP(layers).forward(obs), net(obs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("algo", ["dqn", "ddpg"])
def test_training_asks_for_it(algo: str) -> None:
    env = VecNormalize(make_env(ENV_IDS[algo], 8, device=DEVICE))
    model = make_off_policy(algo, env, precision="fp32", device=DEVICE, n_steps=2)
    model.learn(8 * 10)
    assert model.replay_buffer.in_triton and env.unwrapped._in_triton and env._state.in_triton
    assert isinstance(model._run.fast.acting, FusedMLP)
    model.precision = None
    model.learn(8 * 4)
    assert not model.replay_buffer.in_triton and not env.unwrapped._in_triton and not env._state.in_triton
