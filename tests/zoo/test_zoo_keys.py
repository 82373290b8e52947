"""The keys of a hyperparameter file and the flags of rl_zoo3.train on our environments do what they do in rl_zoo3."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any, Dict, List, Optional

import gymnasium as gym
import numpy as np
import pytest
import rl_zoo3.utils
import stable_baselines3.common.vec_env as sb3
from rl_zoo3.utils import create_test_env, get_wrapper_class
from stable_baselines3.common.env_util import make_vec_env

from sb3_isaac import VecFrameStack, VecNormalize
from sb3_isaac.envs.vec_env import IsaacVecEnv
from sb3_isaac.zoo import BatchedVecEnv
from tests.conftest import CONTINUOUS, ENV_IDS, make_env, some_actions
from tests.zoo.conftest import make_manager

ON_CPU = {"backend": "torch", "device": "cpu"}


class PlusHundred(gym.RewardWrapper):  # type: ignore[type-arg]
    def reward(self, reward: Any) -> float:
        return float(reward) + 100.0


class TwoForces(gym.ActionWrapper):  # type: ignore[type-arg]
    def __init__(self, env: Any, force: float = 1.0) -> None:
        super().__init__(env)
        self.force = force
        self.action_space = gym.spaces.Discrete(2)

    def action(self, action: Any) -> np.ndarray:
        return np.array([self.force if action else -self.force], np.float32)


PLUS, TWO_FORCES = f"{__name__}.PlusHundred", f"{__name__}.TwoForces"


def zoo_envs(vec_env_cls: Any, env_wrapper: Any = None, **kwargs: Any) -> Any:
    """What rl_zoo3's ExperimentManager makes of the key env_wrapper."""
    wrapper = get_wrapper_class({"env_wrapper": env_wrapper})
    options = {"n_envs": 2, "seed": 0, "wrapper_class": wrapper, "env_kwargs": ON_CPU, "vec_env_cls": vec_env_cls}
    return make_vec_env(CONTINUOUS, **{**options, **kwargs})  # type: ignore[arg-type]


def train_manager(hyperparams: Dict[str, Any], algo: str = "ppo", env_id: Optional[str] = None, **kwargs: Any) -> Any:
    """What rl_zoo3.train makes, with its model made but not trained."""
    options = {"optimize_hyperparameters": False, "n_eval_envs": 2, "log_interval": -1, **kwargs}
    return make_manager(algo, env_id, hyperparams={"n_envs": 2, **hyperparams}, **options)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# -- env_wrapper -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "env_wrapper",
    [
        {"gymnasium.wrappers.TransformReward": {"func": lambda reward: reward + 100.0}},
        {"gymnasium.wrappers.RescaleAction": {"min_action": -0.1, "max_action": 0.1}},
        PLUS,
        {TWO_FORCES: {"force": 0.5}},
        ["gymnasium.wrappers.ClipAction", PLUS, {TWO_FORCES: {"force": 0.5}}],
    ],
)
def test_wrappers_do_what_they_do_to_single_environments(env_wrapper: Any) -> None:
    with pytest.warns(UserWarning, match="single environments, which are stepped one by one") as record:
        ours = zoo_envs(BatchedVecEnv, env_wrapper)
    assert sum("one by one" in str(warning.message) for warning in record) == 1
    theirs = zoo_envs(sb3.DummyVecEnv, env_wrapper)
    assert ours.action_space == theirs.action_space
    np.testing.assert_array_equal(ours.reset(), theirs.reset())
    for action in some_actions(theirs, 5):
        for mine, other in zip(ours.step(action)[:3], theirs.step(action)[:3]):
            np.testing.assert_array_equal(mine, other)


def test_what_gym_make_adds_leaves_a_batch() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = zoo_envs(BatchedVecEnv, {"gymnasium.wrappers.TimeLimit": {"max_episode_steps": 9}})
    assert isinstance(env, IsaacVecEnv) and env.tensor_env.max_episode_length == 10
    env = zoo_envs(BatchedVecEnv, env_kwargs={**ON_CPU, "max_episode_steps": 600})
    assert isinstance(env, IsaacVecEnv) and env.tensor_env.max_episode_length == 601


@pytest.mark.filterwarnings("ignore:PlusHundred can only wrap")
def test_wrappers_in_training_evaluation_and_enjoy() -> None:
    experiment = train_manager({"env_wrapper": PLUS, "n_steps": 8, "n_minibatches": 2, "normalize": False})
    envs = [experiment.create_envs(2), experiment.create_envs(2, eval_env=True)]
    hyperparams = {"env_wrapper": PLUS, "normalize": False}
    envs.append(create_test_env(CONTINUOUS, 1, should_render=False, hyperparams=hyperparams, env_kwargs=dict(ON_CPU)))
    for env in envs:
        env.reset()
        assert (env.step(np.zeros((env.num_envs, 1)))[1] > 50).all()


@pytest.mark.filterwarnings("ignore:(PlusHundred|TwoForces) can only wrap")
def test_options_that_need_a_batch_are_named() -> None:
    with pytest.raises(ValueError, match="add -params reward_scale:1.0 per_env_noise:None, or leave"):
        train_manager({"env_wrapper": PLUS}, "ddpg")
    with pytest.raises(ValueError, match="search space of ddpg is for a batch"):
        make_manager("ddpg", hyperparams={"env_wrapper": PLUS, "n_envs": 2})
    plain = {"double_q": False, "per_env_epsilon": None, "reward_scale": 1.0, "normalize": False}
    Path("own.yml").write_text(f"{CONTINUOUS}: {{n_timesteps: 100, policy: MlpPolicy}}\n")
    # The wrapper makes the actions discrete
    experiment = train_manager({"env_wrapper": TWO_FORCES, **plain}, "dqn", CONTINUOUS, config="own.yml")
    assert experiment.create_envs(1).action_space == gym.spaces.Discrete(2)


@pytest.mark.parametrize("name", ["info_keywords", "reset_keywords"])
def test_monitor_keywords_that_nothing_reports(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name}=\('score',\), which the environment knows nothing of"):
        zoo_envs(BatchedVecEnv, monitor_kwargs={name: ("score",)})


def test_monitor_without_early_resets() -> None:
    with pytest.warns(UserWarning, match=r"Monitor\(allow_early_resets=False\) can only wrap"):
        env = zoo_envs(BatchedVecEnv, monitor_kwargs={"allow_early_resets": False})
    env.reset()
    with pytest.raises(RuntimeError, match="before done"):
        env.reset()


# -- frame_stack -----------------------------------------------------------------------------------------------------


def stack_and_normalize(env: Any) -> Any:
    return sb3.VecFrameStack(sb3.VecNormalize(env, gamma=0.99), 2)


def normalize_stacked(env: Any) -> Any:
    return sb3.VecNormalize(sb3.VecFrameStack(env, 2), gamma=0.99)


@pytest.mark.parametrize(
    "algo, normalize, wrap",
    [
        ("ppo", False, lambda env: sb3.VecFrameStack(env, 2)),
        ("ddpg", False, lambda env: sb3.VecFrameStack(env, 2)),
        ("ppo", True, stack_and_normalize),
        ("ddpg", True, normalize_stacked),
        ("dqn", True, normalize_stacked),
    ],
)
def test_frame_stack(algo: str, normalize: bool, wrap: Any) -> None:
    hyperparams = {"frame_stack": 2, "normalize": normalize, "gamma": 0.99}
    experiment = train_manager(hyperparams, algo, seed=5)
    ours = experiment.create_envs(4)
    theirs = wrap(make_env(ENV_IDS[algo], n_envs=4, seed=5, max_episode_length=40))
    theirs.seed(5)
    np.testing.assert_allclose(ours.reset(), theirs.reset(), rtol=1e-5, atol=1e-5)
    for action in some_actions(theirs, 60):
        for mine, other in zip(ours.step(action)[:3], theirs.step(action)[:3]):
            np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("algo", ["ppo", "dqn", "ddpg"])
def test_frame_stack_from_training_to_enjoy(algo: str, tmp_path: Path) -> None:
    hyperparams: Dict[str, Any] = {"frame_stack": 3, "normalize": True}
    hyperparams.update({"n_steps": 8, "n_minibatches": 1} if algo == "ppo" else {"learning_starts": 16, "n_steps": 1})
    experiment = train_manager(hyperparams, algo, eval_freq=64, n_timesteps=256)
    model, _ = experiment.setup_experiment()
    experiment.learn(model)
    assert model.observation_space.shape == (12,)
    stats = tmp_path / "vecnormalize.pkl"
    model.get_vec_normalize_env().save(str(stats))
    saved = {"normalize": True, "normalize_kwargs": {}, "frame_stack": 3}
    env = create_test_env(ENV_IDS[algo], 2, str(tmp_path), should_render=False, hyperparams=saved, env_kwargs=dict(ON_CPU))
    layers: List[Any] = [env]
    while isinstance(layers[-1], sb3.VecEnvWrapper):
        layers.append(layers[-1].venv)
    assert sum(isinstance(layer, VecFrameStack) for layer in layers) == 1
    assert sum(isinstance(layer, VecNormalize) for layer in layers) == 1
    assert env.observation_space.shape == (12,) and model.predict(env.reset())[0].shape[0] == 2


def test_frame_stack_on_other_environments_is_sb3s() -> None:
    env = rl_zoo3.utils.VecFrameStack(sb3.DummyVecEnv([lambda: gym.make("CartPole-v1")]), 2)
    twin = sb3.VecFrameStack(sb3.DummyVecEnv([lambda: gym.make("CartPole-v1")]), 2)
    for each in (env, twin):
        each.seed(1)
    np.testing.assert_array_equal(env.reset(), twin.reset())


# -- two settings, and the explicit one wins -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "algo, given, without",
    [
        ("ppo", {"batch_size": 64}, {"n_minibatches"}),
        ("dqn", {"exploration_final_eps": 0.2}, {"per_env_epsilon"}),
        ("dqn", {"exploration_fraction": 0.5, "per_env_epsilon": [0.5, 0.1]}, set()),
        ("ppo", {"n_minibatches": None, "n_steps": 32}, set()),
    ],
)
def test_params_replace_what_the_file_says_in_other_words(algo: str, given: Dict[str, Any], without: set) -> None:  # type: ignore[type-arg]
    experiment = train_manager(given, algo)
    hyperparams, saved = experiment.read_hyperparameters()
    theirs = train_manager({}, algo).read_hyperparameters()[0]
    assert set(theirs) - set(hyperparams) == without == set(theirs) - set(saved)
    assert {key: hyperparams[key] for key in given} == given


def test_batch_size_of_params() -> None:
    model, _ = train_manager({"n_envs": 8, "batch_size": 32}).setup_experiment()
    assert model.batch_size == 32 and model.n_minibatches is None


@pytest.mark.parametrize(
    "flags, expected",
    [
        ([], (64, 64, True)),
        (["--eval-episodes", "5"], (5, 5, True)),
        (["--eval-ep=5", "--n-eval-envs", "1"], (5, 1, True)),
        (["--eval-freq", "25000"], (64, 64, False)),
    ],
)
def test_evaluation_as_the_command_line_says(flags: List[str], expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train", *flags])
    experiment = make_manager(n_eval_episodes=5, n_eval_envs=1, eval_freq=25_000, optimize_hyperparameters=False)
    n_eval_envs = 64 if expected[1] == 64 else expected[1]
    assert (experiment.n_eval_episodes, experiment.n_eval_envs) == (expected[0], n_eval_envs)
    assert experiment.batched_defaults is expected[2]


def test_actions_and_device_are_those_of_the_environment() -> None:
    model, _ = train_manager({"n_steps": 8, "n_minibatches": 1}, env_kwargs={**ON_CPU, "discrete": True}).setup_experiment()
    assert model.action_space == gym.spaces.Discrete(3)
    with pytest.raises(ValueError, match="ddpg needs continuous actions"):
        train_manager({}, "ddpg", env_kwargs={"discrete": True})
    gym.register("OnCpu-v0", entry_point="sb3_isaac.envs:CartpoleEnv", kwargs={"device": "cpu"}, max_episode_steps=7)
    try:
        Path("own.yml").write_text("OnCpu-v0: {n_timesteps: 100, policy: MlpPolicy}\n")
        experiment = train_manager({}, "ppo", "OnCpu-v0", config="own.yml", env_kwargs={})
        experiment.device = "cuda:77"  # of the model; would be refused
        env = experiment.create_envs(3)
        assert env.unwrapped.tensor_env.max_episode_length == 8 and env.num_envs == 3
    finally:
        gym.registry.pop("OnCpu-v0")


def test_evaluation_environments_have_arguments_of_their_own() -> None:
    experiment = train_manager({}, eval_env_kwargs={**ON_CPU, "max_episode_steps": 6}, env_kwargs={**ON_CPU, "dt": 0.02})
    train, evaluation = (experiment.create_envs(2, eval_env=eval_env).unwrapped.tensor_env for eval_env in (False, True))
    assert (train.task.dt, train.max_episode_length) == (0.02, 500)
    assert (evaluation.task.dt, evaluation.max_episode_length) == (0.0166, 7)
