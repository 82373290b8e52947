"""VecNormalize in tensors against SB3's own on the same data."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any, List

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3.common.vec_env as sb3
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from stable_baselines3 import PPO
from stable_baselines3.common.running_mean_std import RunningMeanStd

from sb3_isaac import IsaacVecEnv, VecFrameStack, VecNormalize
from sb3_isaac.backends.base import StepResult, TensorEnv
from sb3_isaac.device.cuda_graph import CudaGraph
from sb3_isaac.envs.running_mean_std import LiveRunningMeanStd, RunningMoments
from sb3_isaac.envs.tensor_path import supports_tensors, wrapper_without_tensors
from tests.conftest import N_ENVS, SyncGuard, difference, parameters, some_actions
from tests.envs.conftest import CLOSE, assert_same_statistics, compare_steps, short_env

# -- against SB3's VecNormalize ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"training": False},
        {"norm_obs": False},
        {"norm_reward": False},
        {"clip_obs": 0.7, "clip_reward": 0.02, "gamma": 0.9, "epsilon": 0.3},
    ],
)
def test_steps_equal_sb3(kwargs: dict) -> None:
    ours, theirs = VecNormalize(short_env(), **kwargs), sb3.VecNormalize(short_env(), **kwargs)
    for _ in range(2):  # a second reset in the middle of episodes
        np.testing.assert_allclose(ours.reset_tensor().numpy(), theirs.reset(), **CLOSE)
        assert compare_steps(ours, theirs, some_actions(ours, 60)) > N_ENVS
        assert_same_statistics(ours, theirs)
    np.testing.assert_array_equal(ours.get_original_obs(), theirs.get_original_obs())
    np.testing.assert_array_equal(ours.get_original_obs_tensor().numpy(), theirs.get_original_obs())
    np.testing.assert_array_equal(ours.get_original_reward(), theirs.get_original_reward())
    np.testing.assert_array_equal(ours.get_original_reward_tensor().numpy(), theirs.get_original_reward())
    sample = np.random.default_rng(1).normal(size=(33, 4)).astype(np.float32)
    np.testing.assert_allclose(ours.normalize_obs_tensor(th.from_numpy(sample)).numpy(), theirs.normalize_obs(sample), **CLOSE)
    np.testing.assert_allclose(
        ours.normalize_reward_tensor(th.from_numpy(sample)).numpy(), theirs.normalize_reward(sample), **CLOSE
    )
    np.testing.assert_allclose(ours.unnormalize_obs(sample), theirs.unnormalize_obs(sample), **CLOSE)


def test_both_paths_share_their_state() -> None:
    ours, theirs = VecNormalize(short_env()), sb3.VecNormalize(short_env())
    np.testing.assert_array_equal(ours.reset(), theirs.reset())
    for k in range(6):
        actions = some_actions(ours, 10, seed=k)
        if k % 2:
            compare_steps(ours, theirs, actions)
        else:
            for action in actions:
                for a, b in zip(ours.step(action)[:3], theirs.step(action)[:3]):
                    np.testing.assert_allclose(a, b, **CLOSE)
                np.testing.assert_allclose(ours.obs_tensor.numpy(), ours.normalize_obs(ours.get_original_obs()), **CLOSE)
                np.testing.assert_array_equal(ours.get_original_reward(), theirs.get_original_reward())
        assert_same_statistics(ours, theirs)


def test_switches_work_in_the_middle() -> None:
    ours, theirs = VecNormalize(short_env()), sb3.VecNormalize(short_env())
    ours.reset_tensor(), theirs.reset()
    for change in ({"training": False}, {"norm_reward": False}, {"norm_obs": False}, {"training": True}, {"norm_obs": True},
                   {"norm_reward": True, "epsilon": 0.5, "clip_obs": 1.5}):  # fmt: skip
        for name, value in change.items():
            setattr(ours, name, value), setattr(theirs, name, value)
        compare_steps(ours, theirs, some_actions(ours, 15))
        assert_same_statistics(ours, theirs)
    without = VecNormalize(short_env(), norm_obs=False)
    without.norm_obs = True
    actions = th.zeros(N_ENVS, 1)
    calls = (without.reset_tensor, lambda: without.step_tensor(actions), lambda: without.normalize_obs_tensor(th.zeros(1, 4)))
    for training in (True, False):
        without.training = training
        for call in calls:
            with pytest.raises(ValueError, match="no statistics of observations: assign obs_rms"):
                call()
    with pytest.raises(AttributeError, match="obs_rms"):  # SB3's own words in its own code
        without.reset()


def test_statistics_take_in_the_reset_and_not_the_final_observation() -> None:
    env = VecNormalize(short_env(max_episode_length=5))
    env.reset_tensor()
    seen = [env.get_original_obs()]
    for action in some_actions(env, 20):
        env.step_tensor(th.from_numpy(action))
        seen.append(env.get_original_obs())
    every = np.concatenate(seen).astype(np.float64)
    np.testing.assert_allclose(env.obs_rms.mean, every.mean(0), atol=1e-6)
    np.testing.assert_allclose(env.obs_rms.var, every.var(0), atol=1e-5)  # SB3's first 1e-4 observations fade
    assert not np.array_equal(env.get_original_final_obs_tensor().numpy(), seen[-1])


@settings(max_examples=60, deadline=None)
@given(
    batches=st.lists(
        st.integers(1, 9).flatmap(lambda n: arrays(np.float64, (n, 3), elements=st.floats(-1e4, 1e4, width=32))),
        min_size=1,
        max_size=6,
    ),
    offset=st.sampled_from([0.0, 1.0, 1e5]),
)
def test_running_statistics_equal_sb3(batches: List[np.ndarray], offset: float) -> None:
    moments, theirs = RunningMoments(3, th.device("cpu"), 1e-8), RunningMeanStd(shape=(3,))
    ours = LiveRunningMeanStd(moments, (3,))
    scale = max(1.0, *(float(np.abs(batch + offset).max()) for batch in batches))
    for batch in batches:
        moments.update(th.from_numpy(batch + offset).t().contiguous())
        theirs.update(batch + offset)
    np.testing.assert_allclose(ours.mean, theirs.mean, rtol=1e-9, atol=1e-9 * scale)
    np.testing.assert_allclose(ours.var, theirs.var, rtol=1e-9, atol=1e-12 * scale**2)
    assert ours.count == pytest.approx(theirs.count, rel=1e-12)
    np.testing.assert_allclose(moments.scale.numpy(), 1.0 / np.sqrt(ours.var + 1e-8), rtol=1e-6)


def test_stock_ppo_learns_the_same() -> None:
    models = []
    for cls in (VecNormalize, sb3.VecNormalize):
        model = PPO("MlpPolicy", cls(short_env()), n_steps=16, batch_size=64, n_epochs=2, seed=1, device="cpu")
        assert model.get_vec_normalize_env() is model.env and isinstance(model.env, sb3.VecNormalize)
        before = parameters(model)
        model.learn(2 * 16 * N_ENVS)
        assert (parameters(model) - before).abs().max() > 1e-3
        models.append(model)
    assert difference(*models) < 1e-6  # not bit for bit: how MKL rounds depends on where numpy happens to put the observations


# -- the statistics from outside -----------------------------------------------------------------------------------------


def test_statistics_can_be_read_and_assigned() -> None:
    env = VecNormalize(short_env())
    env.reset_tensor()
    rms = env.obs_rms
    before = rms.mean
    env.step_tensor(th.zeros(N_ENVS, 1))
    assert rms is env.obs_rms and not np.array_equal(rms.mean, before)  # live, and what was read does not change
    with pytest.raises(ValueError, match="read-only"):
        rms.mean[0] = 1.0
    rms.mean, rms.var = np.arange(4.0), np.full(4, 4.0)
    expected = (np.ones(4) - np.arange(4.0)) / 2.0
    np.testing.assert_allclose(env.normalize_obs_tensor(th.ones(1, 4)).numpy()[0], expected, **CLOSE)
    env.obs_rms = RunningMeanStd(shape=(4,))
    env.ret_rms.var = 9.0
    np.testing.assert_allclose(env.normalize_obs_tensor(th.ones(1, 4)).numpy()[0], np.ones(4), **CLOSE)
    np.testing.assert_allclose(env.normalize_reward_tensor(th.ones(2)).numpy(), 1 / 3, **CLOSE)
    with pytest.raises(ValueError, match=r"shape \(3,\).*needs \(4,\)"):
        env.obs_rms = RunningMeanStd(shape=(3,))
    for plain in (copy.deepcopy(rms), rms.copy(), pickle.loads(pickle.dumps(rms))):
        assert type(plain) is RunningMeanStd
        np.testing.assert_array_equal(plain.mean, rms.mean)
        plain.mean[0] = 5.0  # a copy is writeable and its own
        assert rms.mean[0] != 5.0 and plain.count == rms.count


def test_sync_envs_normalization() -> None:
    train, evaluation, stock = (
        VecNormalize(short_env()),
        VecNormalize(short_env(), training=False),
        sb3.VecNormalize(short_env()),
    )
    train.reset_tensor()
    for action in some_actions(train, 30):
        train.step_tensor(th.from_numpy(action))
    address = evaluation._state.moments.mean.data_ptr()  # type: ignore[union-attr]
    for other in (evaluation, stock):
        sb3.sync_envs_normalization(train, other)
        assert other.obs_rms.count == train.obs_rms.count > 1 and other.ret_rms.var == train.ret_rms.var
    assert type(stock.obs_rms) is RunningMeanStd and evaluation._state.moments.mean.data_ptr() == address  # type: ignore[union-attr]
    obs = th.randn(5, 4)
    assert th.equal(evaluation.normalize_obs_tensor(obs), train.normalize_obs_tensor(obs))
    before = evaluation.obs_rms.mean
    train.step_tensor(th.ones(N_ENVS, 1))
    np.testing.assert_array_equal(evaluation.obs_rms.mean, before)
    sb3.sync_envs_normalization(VecNormalize(short_env(), norm_obs=False), VecNormalize(short_env(), norm_obs=False))


SWITCHES = [{}, {"norm_obs": False}, {"norm_reward": False}, {"norm_obs": False, "norm_reward": False}, {"training": False},
            {"norm_obs": False, "norm_obs_keys": ["a"], "training": False}]  # fmt: skip


@pytest.mark.parametrize("into", SWITCHES)
@pytest.mark.parametrize("out_of", SWITCHES)
def test_sync_envs_normalization_between_all_kinds(out_of: dict, into: dict) -> None:
    """As SB3's does, and then on from there, also with what was switched off switched on."""
    pairs = []
    for cls in (VecNormalize, sb3.VecNormalize):
        train, evaluation = cls(short_env(), **out_of), cls(short_env(), **into)
        train.reset()
        for action in some_actions(train, 20):
            train.step(action)
        sb3.sync_envs_normalization(train, evaluation)
        pairs.append((train, evaluation))
    (_, ours), (_, theirs) = pairs
    assert_same_statistics(ours, theirs)
    switched_on = {"norm_reward": True, "training": True, "norm_obs": hasattr(theirs, "obs_rms")}
    for change in ({}, switched_on):
        for name, value in change.items():
            setattr(ours, name, value), setattr(theirs, name, value)
        np.testing.assert_allclose(ours.reset_tensor().numpy(), theirs.reset(), **CLOSE)
        compare_steps(ours, theirs, some_actions(ours, 15))
        assert_same_statistics(ours, theirs)


@pytest.mark.parametrize("order", ["switch first", "statistics first"])
def test_statistics_of_observations_that_come_later(order: str) -> None:
    rms = RunningMeanStd(shape=(4,))
    rms.update(np.random.default_rng(0).normal(2.0, 3.0, (50, 4)))
    ours, theirs = (cls(short_env(), norm_obs=False) for cls in (VecNormalize, sb3.VecNormalize))
    address = ours._state.moments.mean.data_ptr()  # type: ignore[union-attr]
    for env in (ours, theirs):
        assert not hasattr(env, "obs_rms")
        for name, value in sorted({"obs_rms": rms.copy(), "norm_obs": True}.items(), reverse=order == "statistics first"):
            setattr(env, name, value)
    np.testing.assert_allclose(ours.reset_tensor().numpy(), theirs.reset(), **CLOSE)
    compare_steps(ours, theirs, some_actions(ours, 30))
    assert_same_statistics(ours, theirs)
    del ours.obs_rms
    ours.norm_obs, ours.obs_rms = False, rms
    assert ours.obs_rms.count == rms.count and ours._state.moments.mean.data_ptr() == address  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"shape \(3,\).*needs \(4,\)"):
        ours.obs_rms = RunningMeanStd(shape=(3,))


def test_statistics_that_two_environments_would_share() -> None:
    """In SB3 both would hold one object; here the numbers are copied, and that is said."""
    train, evaluation = VecNormalize(short_env()), VecNormalize(short_env(), training=False)
    train.reset()
    for name in ("obs_rms", "ret_rms"):
        with pytest.warns(UserWarning, match=f"^{name} of another VecNormalize .* sync_envs_normalization"):
            setattr(evaluation, name, getattr(train, name))
    assert_same_statistics(evaluation, train, returns=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sb3.sync_envs_normalization(train, evaluation)
        train.obs_rms = train.obs_rms
        train.obs_rms = train.obs_rms.copy()


@pytest.mark.parametrize("kwargs", SWITCHES)
def test_another_environment_inside(kwargs: dict) -> None:
    """``env.venv = ...``: the statistics stay, the tensor path follows."""
    ours, theirs = (cls(short_env(), **kwargs) for cls in (VecNormalize, sb3.VecNormalize))
    for env in (ours, theirs):
        env.reset()
        for action in some_actions(env, 20):
            env.step(action)
        env.venv = short_env(seed=5)
    assert_same_statistics(ours, theirs, returns=False)
    np.testing.assert_allclose(ours.reset_tensor().numpy(), theirs.reset(), **CLOSE)
    assert compare_steps(ours, theirs, some_actions(ours, 40)) > 0
    assert_same_statistics(ours, theirs)
    ours.venv = theirs.venv = sb3.DummyVecEnv([lambda: gym.make("IsaacGymCartpole-v0")] * N_ENVS)
    assert not supports_tensors(ours)
    assert_same_statistics(ours, theirs)
    np.testing.assert_allclose(ours.normalize_obs(np.ones((2, 4))), theirs.normalize_obs(np.ones((2, 4))), **CLOSE)


@pytest.mark.parametrize("value", [0, [0.5] * N_ENVS, np.ones(N_ENVS, np.float32)])
def test_returns_can_be_assigned(value: Any) -> None:
    env = VecNormalize(short_env(), gamma=0.5)
    env.reset()
    env.returns = value
    result = env.step_tensor(th.zeros(N_ENVS, 1))
    expected = np.asarray(value) * 0.5 + env.get_original_reward()
    np.testing.assert_allclose(env.returns, np.where(env.dones, 0.0, expected), **CLOSE)
    assert result.reward.shape == (N_ENVS,)


def test_tensors_keep_their_addresses() -> None:
    env = VecNormalize(short_env())
    held = [*vars(env._state.moments).values(), env._state.batch, env.dones, env.episode_returns, env.episode_lengths]
    addresses = [tensor.data_ptr() for tensor in held]
    env.reset_tensor()
    for action in some_actions(env, 5):
        env.step_tensor(th.from_numpy(action))
        env.step(action)
    env.obs_rms, env.epsilon, env.returns = RunningMeanStd(shape=(4,)), 1e-3, np.zeros(N_ENVS)
    env.reset()
    held = [*vars(env._state.moments).values(), env._state.batch, env.dones, env.episode_returns, env.episode_lengths]
    assert [tensor.data_ptr() for tensor in held] == addresses
    assert env.dones is env.venv.dones and env.episode_returns is env.venv.episode_returns


# -- no host synchronisation ---------------------------------------------------------------------------------------------


class MetaTensorEnv(TensorEnv):
    """Tensors without numbers: whoever needs to know one fails."""

    def __init__(self) -> None:
        self.n_envs, self.device, self.obs_dim, self.action_dim, self.max_episode_length = N_ENVS, th.device("meta"), 4, 1, 500
        self.progress = th.zeros(N_ENVS, dtype=th.int64, device=self.device)

    def reset(self) -> th.Tensor:
        return th.zeros(N_ENVS, 4, device=self.device)

    def step(self, actions: th.Tensor) -> StepResult:
        flag = th.zeros(N_ENVS, dtype=th.bool, device=self.device)
        return StepResult(self.reset(), th.zeros(N_ENVS, device=self.device), flag, flag.clone(), self.reset())

    def seed(self, seed: int) -> None:
        pass

    def get_state(self) -> dict:
        return {}

    def set_state(self, state: dict) -> None:
        pass


@pytest.mark.parametrize("kwargs", [{}, {"norm_obs": False}, {"training": False}])
def test_a_step_never_waits_for_the_device(kwargs: dict) -> None:
    env = VecFrameStack(VecNormalize(IsaacVecEnv(MetaTensorEnv()), **kwargs), 2)
    actions = th.zeros(N_ENVS, 1, device="meta")
    env.reset_tensor()
    result = env.step_tensor(actions)
    infos = env.make_infos(result)
    assert result.obs.shape == (N_ENVS, 8) and result.obs.is_meta and len(infos) == N_ENVS
    with pytest.raises((NotImplementedError, RuntimeError)):
        result.reward.cpu()  # the test's own premise


def test_few_kernels() -> None:
    bare, env = short_env(), VecNormalize(short_env())
    actions = th.zeros(N_ENVS, 1)
    bare.reset_tensor(), env.reset_tensor()
    with SyncGuard() as guard:
        bare.step_tensor(actions)
    alone = sum(guard.kernels.values())
    with SyncGuard() as guard:
        env.step_tensor(actions)
    assert sum(guard.kernels.values()) - alone <= 29


# -- without a tensor path ----------------------------------------------------------------------------------------------


class DictEnv(gym.Env):
    observation_space = spaces.Dict({"a": spaces.Box(-1, 1, (2,), np.float32), "b": spaces.Box(-1, 1, (3,), np.float32)})
    action_space = spaces.Discrete(2)
    render_mode = None

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return {
            key: self.np_random.uniform(-1, 1, box.shape).astype(np.float32) for key, box in self.observation_space.items()
        }, {}

    def step(self, action: Any) -> Any:
        obs, info = self.reset()
        return obs, float(obs["a"][0]), bool(obs["b"][0] > 0.5), False, info


@pytest.mark.parametrize("make", [lambda: gym.make("CartPole-v1"), DictEnv])
def test_on_other_environments_it_is_sb3s(make: Any, tmp_path: Path) -> None:
    results = []
    for cls in (VecNormalize, sb3.VecNormalize):
        env = cls(sb3.DummyVecEnv([make] * 3), norm_obs_keys=["a"] if make is DictEnv else None)
        env.seed(7)
        flat = [env.reset()]
        for k in range(40):
            obs, rewards, dones, infos = env.step(np.array([0, 1, k % 2]))
            flat += [obs, rewards, dones, [info.get("terminal_observation") for info in infos]]
        flat += [env.returns, env.get_original_obs(), env.get_original_reward()]
        env.save(str(tmp_path / cls.__module__))
        results.append(flat)
        assert not supports_tensors(env) and wrapper_without_tensors(env) is None
    np.testing.assert_equal(*results)
    ours = VecNormalize(sb3.DummyVecEnv([make] * 3))
    ours.reset()
    for call in (ours.reset_tensor, ours.get_original_obs_tensor, lambda: ours.step_tensor(th.zeros(3))):
        with pytest.raises(RuntimeError, match="DummyVecEnv has no tensor path"):
            call()
    if make is DictEnv:
        with pytest.raises(ValueError, match="Dict observations"):
            ours.normalize_obs_tensor(th.zeros(3, 4))
    else:
        obs = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
        np.testing.assert_allclose(ours.normalize_obs_tensor(th.from_numpy(obs)).numpy(), ours.normalize_obs(obs), **CLOSE)
        np.testing.assert_allclose(
            ours.normalize_reward_tensor(th.from_numpy(obs)).numpy(), ours.normalize_reward(obs), **CLOSE
        )


def test_observations_that_cannot_be_normalised() -> None:
    dict_env = short_env()
    dict_env.observation_space = DictEnv.observation_space
    with pytest.raises(ValueError, match="needs Box observations"):
        VecNormalize(dict_env)
    with pytest.raises(ValueError, match="norm_obs_keys"):
        VecNormalize(short_env(), norm_obs_keys=["a"])


# -- CUDA ------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not th.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_captured_and_saved(tmp_path: Path) -> None:
    def make() -> VecNormalize:
        return VecNormalize(short_env(device="cuda"))

    eager, captured = make(), make()
    actions = th.zeros(N_ENVS, 1, device="cuda")
    for env in (eager, captured):
        env.reset_tensor()
        env.step_tensor(actions)
    graph = CudaGraph(lambda: captured.step_tensor(actions), [captured.tensor_env.generator])
    for step in range(60):
        actions.uniform_(-1.0, 1.0)
        expected, result = eager.step_tensor(actions), graph()
        for a, b in zip(result, expected):
            th.testing.assert_close(a, b)
        if step == 40:  # statistics from outside reach the captured step
            for env in (eager, captured):
                env.obs_rms, env.ret_rms = RunningMeanStd(shape=(4,)), RunningMeanStd(shape=())
    np.testing.assert_allclose(captured.obs_rms.mean, eager.obs_rms.mean)
    assert captured.obs_rms.count == eager.obs_rms.count and captured.returns.shape == (N_ENVS,)
    stock = sb3.VecNormalize(make().venv)
    on_device = make()
    np.testing.assert_allclose(on_device.reset(), stock.reset(), **CLOSE)
    compare_steps(on_device, stock, some_actions(on_device, 40), "cuda")
    for action in some_actions(on_device, 30):
        for a, b in zip(on_device.step(action)[:3], stock.step(action)[:3]):
            np.testing.assert_allclose(a, b, **CLOSE)
    assert_same_statistics(on_device, stock)
    on_device.save(str(tmp_path / "vecnormalize.pkl"))
    assert_same_statistics(VecNormalize.load(str(tmp_path / "vecnormalize.pkl"), short_env()), on_device, returns=False)
