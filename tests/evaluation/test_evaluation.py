"""Evaluation: SB3's numbers, without bias, without touching the model, and fast."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, Dict, List, Type

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import DDPG, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecNormalize

from sb3_isaac import IsaacVecEnv, evaluate
from sb3_isaac.backends.base import StepResult, TensorEnv
from sb3_isaac.evaluation.callbacks import BatchedEvalCallback
from sb3_isaac.evaluation.measure import bootstrap_interval, tensor_policy
from tests.conftest import CONTINUOUS, DISCRETE, make_env
from tests.evaluation.conftest import GAINS, balancing_model


class Staircase(TensorEnv):
    """Environment i has episodes of i + 1 steps with reward 1 each; the odd ones end by the time limit."""

    obs_dim = action_dim = 1
    device = th.device("cpu")
    max_episode_length = 100

    def __init__(self, n_envs: int) -> None:
        self.n_envs = n_envs
        self.progress = th.zeros(n_envs, dtype=th.int64)
        self.length = th.arange(1, n_envs + 1)

    def reset(self) -> th.Tensor:
        self.progress.zero_()
        return th.zeros(self.n_envs, 1)

    def step(self, actions: th.Tensor) -> StepResult:
        self.progress += 1
        done = self.progress >= self.length
        self.progress.masked_fill_(done, 0)
        odd = th.arange(self.n_envs) % 2 == 1
        obs = th.zeros(self.n_envs, 1)
        return StepResult(obs, th.ones(self.n_envs), done & ~odd, done & odd, obs)

    def seed(self, seed: int) -> None:
        pass

    def get_state(self) -> Dict[str, th.Tensor]:
        return {"progress": self.progress.clone()}

    def set_state(self, state: Dict[str, th.Tensor]) -> None:
        self.progress.copy_(state["progress"])


@pytest.mark.parametrize("algorithm, env_id", [(PPO, CONTINUOUS), (PPO, DISCRETE), (DQN, DISCRETE), (DDPG, CONTINUOUS)])
@pytest.mark.parametrize("n_episodes", [4, 12, 15])
def test_agrees_with_sb3(algorithm: Type[BaseAlgorithm], env_id: str, n_episodes: int) -> None:
    env = make_env(env_id, 6, max_episode_length=25)
    model = algorithm("MlpPolicy", env, seed=1, device="cpu")  # type: ignore[call-arg]
    assert tensor_policy(model) is not None
    env.seed(5)
    result = evaluate(model, env, n_episodes)
    env.seed(5)
    returns, lengths = evaluate_policy(model, env, n_episodes, return_episode_rewards=True)
    # Our networks round in their own way, and a falling pole makes an error grow
    np.testing.assert_allclose(result.returns, returns, atol=1e-4)
    np.testing.assert_array_equal(result.lengths, lengths)
    assert result.n_episodes == n_episodes
    assert np.std(returns) > 0.01  # the episodes differ by more than that
    assert (result.mean, result.std) == pytest.approx((np.mean(returns), np.std(returns)), abs=1e-4)
    assert result.failures + result.time_outs == n_episodes
    np.testing.assert_array_equal(result.truncated, result.lengths == 24)


def test_short_episodes_do_not_count_more() -> None:
    env = IsaacVecEnv(Staircase(10))
    model = PPO("MlpPolicy", env, device="cpu", n_steps=8, batch_size=8)
    result = evaluate(model, env, 20)
    assert result.mean == 5.5  # the first 20 episodes to end have a mean below 3
    assert sorted(result.lengths) == sorted(list(range(1, 11)) * 2)
    assert (result.failures, result.time_outs) == (10, 10)
    assert list(result.lengths[:3]) == [1, 1, 2], "in the order in which they ended"
    # What does not divide evenly goes to the last environments: 0 or 1 each.
    assert sorted(evaluate(model, env, 3).lengths) == [8, 9, 10]


def test_a_balancing_policy_and_its_statistics() -> None:
    env = make_env(n_envs=20)
    result = evaluate(balancing_model(env), env, 20)
    assert result.mean > 495 and result.failures == 0 and result.time_outs == 20 and result.mean_length == 499
    low, high = result.confidence_interval
    assert low <= result.mean <= high and high - low < result.std
    assert "20 time-outs" in str(result) and f"{result.mean:.2f}" in str(result)


def test_a_thousand_episodes_take_the_steps_of_one() -> None:
    env = make_env(n_envs=1000)
    model, step, steps = balancing_model(env), env.tensor_env.step, []
    env.tensor_env.step = lambda actions: steps.append(len(actions)) or step(actions)
    result = evaluate(model, env, 1000)
    assert result.n_episodes == 1000 and result.mean_length == 499 and result.seconds > 0
    assert steps == [1000] * 499


def test_normalised_observations() -> None:
    env = VecNormalize(make_env(max_episode_length=25), clip_obs=2.0)
    model = PPO("MlpPolicy", env, seed=1, device="cpu", n_steps=24, batch_size=192)
    model.learn(192)
    env.training = False
    before = env.obs_rms.mean.copy(), env.obs_rms.var.copy(), env.obs_rms.count
    env.seed(5)
    returns, lengths = evaluate_policy(model, env, 12, return_episode_rewards=True)
    env.training = True
    env.seed(5)
    result = evaluate(model, env, 12)
    np.testing.assert_allclose(result.returns, returns, atol=1e-4)
    assert result.returns.max() > 1 or result.returns.min() < -1, "unnormalised"
    assert env.training is True, "as it was"
    np.testing.assert_array_equal(env.obs_rms.mean, before[0])
    assert env.obs_rms.count == before[2]


def test_the_model_is_left_alone() -> None:
    train_env, env = make_env(), make_env(max_episode_length=25)
    model = DDPG("MlpPolicy", train_env, device="cpu", seed=0, learning_starts=10**6)
    model.learn(60)
    model.policy.set_training_mode(True)
    model.policy.actor_target.train(False)
    modes = [module.training for module in model.policy.modules()]
    weights = {name: value.clone() for name, value in model.policy.state_dict().items()}
    numbers, progress, last_obs = th.random.get_rng_state(), train_env.tensor_env.progress.clone(), model._last_obs.copy()
    evaluate(model, env, 12)
    assert [module.training for module in model.policy.modules()] == modes
    assert all(th.equal(weights[name], value) for name, value in model.policy.state_dict().items())
    assert th.equal(th.random.get_rng_state(), numbers), "deterministic evaluation draws no random numbers"
    assert th.equal(train_env.tensor_env.progress, progress) and (model._last_obs == last_obs).all()
    model.learn(60, reset_num_timesteps=False)


def test_training_mode_comes_back_after_an_error() -> None:
    env = make_env()
    model = balancing_model(env)
    model.policy.set_training_mode(True)
    env.tensor_env.step = lambda actions: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        evaluate(model, env, 6)
    assert model.policy.training


def test_stochastic() -> None:
    env = make_env(n_envs=50)
    model = balancing_model(env)
    with th.no_grad():
        model.policy.log_std.fill_(0.0)
    assert evaluate(model, env, 50, deterministic=False).failures > evaluate(model, env, 50).failures
    dqn = DQN("MlpPolicy", make_env(DISCRETE), device="cpu", seed=0)
    dqn.exploration_rate = 1.0
    obs = th.zeros(3000, 4)
    greedy, random = tensor_policy(dqn), tensor_policy(dqn, deterministic=False)
    assert greedy is not None and random is not None
    assert len(th.unique(greedy(obs))) == 1
    assert (th.bincount(random(obs)) > 900).all(), "a coin per environment"


@pytest.mark.parametrize("kind", ["vec", "single", "predictor"])
def test_any_environment_and_any_predictor(kind: str) -> None:
    env: Any = make_vec_env("CartPole-v1", 2, seed=0) if kind == "vec" else gym.make("CartPole-v1", max_episode_steps=20)
    if kind == "predictor":
        env = make_env(max_episode_length=25)

        class Predictor:
            def predict(self, obs: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False) -> Any:
                return np.clip(obs @ np.array(GAINS, dtype=np.float32).reshape(4, 1), -1, 1), state

        result = evaluate(Predictor(), env, 6)
        assert result.time_outs == 6
        return
    model = PPO("MlpPolicy", env, device="cpu", seed=0)
    result = evaluate(model, env, 5)
    returns, lengths = evaluate_policy(model, env, 5, return_episode_rewards=True, warn=False)
    assert result.n_episodes == len(returns) == 5
    assert list(result.lengths) == list(result.returns)  # CartPole-v1 gives 1 per step
    assert result.failures == (result.lengths < (500 if kind == "vec" else 20)).sum()


@pytest.mark.parametrize("trained, given", [(CONTINUOUS, DISCRETE), (DISCRETE, CONTINUOUS)])
def test_other_action_space(trained: str, given: str) -> None:
    model = PPO("MlpPolicy", make_env(trained), device="cpu")
    with pytest.raises(ValueError, match="trained for actions .* but this environment has .* choose the environment id"):
        evaluate(model, make_env(given), 6)
    if trained == DISCRETE:
        with pytest.raises(ValueError, match=r"Discrete\(3\), but this environment has Discrete\(4\)"):
            evaluate(model, make_env(trained, n_bins=4), 6)


@pytest.mark.parametrize("n_episodes", [0, -5])
def test_no_episodes(n_episodes: int) -> None:
    env = make_env()
    with pytest.raises(ValueError, match="n_episodes must be a whole number of at least 1"):
        evaluate(balancing_model(env), env, n_episodes)


def test_bootstrap_interval() -> None:
    assert bootstrap_interval(np.full(10, 3.0)) == (3.0, 3.0)
    rng = np.random.default_rng(1)
    hits, n_trials = 0, 120
    for _ in range(n_trials):
        low, high = bootstrap_interval(rng.normal(size=60), n_resamples=200)
        hits += low <= 0.0 <= high
    assert 0.87 <= hits / n_trials <= 0.99
    values = rng.normal(size=500)
    assert bootstrap_interval(values) == bootstrap_interval(values)
    low, high = bootstrap_interval(values)
    assert high - low == pytest.approx(2 * 1.96 * values.std() / np.sqrt(500), rel=0.1)


def learn_with(callback_class: Type[EvalCallback], folder: Path, env_id: str = CONTINUOUS) -> Dict[str, Any]:
    """A short training run with evaluations; what it wrote, and what it logged."""
    kept: Dict[str, List[Any]] = {}
    env, eval_env = make_env(env_id, 8, max_episode_length=25), make_env(env_id, 4, max_episode_length=25)
    model = PPO("MlpPolicy", env, seed=3, device="cpu", n_steps=16, batch_size=128)
    logger = configure(None, [])
    record = logger.record

    def keep(key: str, value: Any, exclude: Any = None) -> None:
        kept.setdefault(key, []).append(value)
        record(key, value, exclude)

    logger.record = keep  # type: ignore[method-assign]
    model.set_logger(logger)
    eval_env.seed(7)
    callback = callback_class(
        eval_env, n_eval_episodes=10, eval_freq=20, log_path=str(folder), best_model_save_path=str(folder), verbose=0
    )
    model.learn(8 * 16 * 4, callback=callback)
    with np.load(folder / "evaluations.npz") as log:
        arrays = {name: log[name] for name in log.files}
    logged = {key: value for key, value in kept.items() if key.startswith("eval/")}
    files = sorted(path.name for path in folder.iterdir())
    best = PPO.load(folder / "best_model", device="cpu").policy.state_dict()
    return {"arrays": arrays, "logged": logged, "files": files, "best": best, "means": callback.best_mean_reward}


def test_callback_writes_and_logs_what_sb3_does(tmp_path: Path) -> None:
    theirs, ours = learn_with(EvalCallback, tmp_path / "theirs"), learn_with(BatchedEvalCallback, tmp_path / "ours")
    assert ours["files"] == theirs["files"] == ["best_model.zip", "evaluations.npz"]
    assert set(ours["arrays"]) == set(theirs["arrays"]) == {"timesteps", "results", "ep_lengths"}
    for name, array in theirs["arrays"].items():
        assert ours["arrays"][name].dtype == array.dtype and ours["arrays"][name].shape == array.shape
        np.testing.assert_allclose(ours["arrays"][name], array, atol=1e-4)
    assert len(theirs["arrays"]["timesteps"]) == 3
    assert set(ours["logged"]) == set(theirs["logged"]) == {"eval/mean_reward", "eval/mean_ep_length"}
    np.testing.assert_allclose(ours["logged"]["eval/mean_reward"], theirs["logged"]["eval/mean_reward"], atol=1e-4)
    assert ours["means"] == pytest.approx(theirs["means"], abs=1e-4)
    for name, value in theirs["best"].items():
        th.testing.assert_close(ours["best"][name], value, rtol=0.0, atol=1e-6)


def test_callback_on_other_environments_is_sb3s(tmp_path: Path) -> None:
    class Success(gym.Wrapper):  # type: ignore[type-arg]
        def step(self, action: Any) -> Any:
            obs, reward, terminated, truncated, info = super().step(action)
            return obs, reward, terminated, truncated, {**info, "is_success": True}

    env = make_vec_env("CartPole-v1", 2, seed=0, wrapper_class=Success)
    model = PPO("MlpPolicy", env, seed=0, device="cpu", n_steps=16, batch_size=32)
    callback = BatchedEvalCallback(env, n_eval_episodes=3, eval_freq=10, log_path=str(tmp_path), verbose=0)
    model.learn(32, callback=callback)
    with np.load(tmp_path / "evaluations.npz") as log:
        assert log["successes"].shape == (1, 3) and log["successes"].all()


def test_callback_stops_training_and_keeps_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from stable_baselines3.common.callbacks import StopTrainingOnRewardThreshold

    env = make_env(n_envs=8, max_episode_length=25)
    model = balancing_model(env)
    stop = StopTrainingOnRewardThreshold(reward_threshold=20.0)
    callback = BatchedEvalCallback(
        make_env(n_envs=4, max_episode_length=25),
        callback_on_new_best=stop,
        n_eval_episodes=4,
        eval_freq=2,
        log_path=str(tmp_path),
        best_model_save_path=str(tmp_path),
        verbose=0,
    )
    model.learn(8 * 8 * 10, callback=callback)
    assert model.num_timesteps == 16
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(files) == {"best_model.zip", "evaluations.npz"}

    def disk_full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", disk_full)
    with pytest.warns(UserWarning, match=r"evaluations.*evaluations\.npz: No space left on device.*Training goes on"):
        model.learn(8 * 8 * 10, callback=callback)
    assert (tmp_path / "evaluations.npz").read_bytes() == files["evaluations.npz"]
