"""save_checkpoint and resume in code: what they take, promise and refuse."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import stable_baselines3
import torch as th
from stable_baselines3.common.env_util import make_vec_env as sb3_vec_env
from stable_baselines3.common.vec_env import VecNormalize as SB3VecNormalize

from sb3_isaac import DQN, PPO, StepResult, TensorEnv, VecNormalize, make_vec_env, register
from tests.conftest import difference, make_env
from tests.reliability.resume_helpers import ALGOS, TOTAL, Ask, differences, everything, learn, make, vec_env

ROLLOUT = 16 * 8


def test_stock_sb3_loads_a_checkpoint(tmp_path: Path) -> None:
    model = make("ppo", "normalized")
    learn(model, "ppo", "normalized", tmp_path, 2 * ROLLOUT, True, 2 * ROLLOUT)
    stock = stable_baselines3.PPO.load(tmp_path / "saved", device="cpu")
    assert type(stock) is stable_baselines3.PPO and difference(stock, model) == 0.0
    statistics = SB3VecNormalize.load(str(tmp_path / "saved_vecnormalize.pkl"), make_env())
    np.testing.assert_array_equal(statistics.obs_rms.mean, model.env.obs_rms.mean)


@pytest.mark.parametrize("algo", ALGOS)
def test_another_learn(algo: str, tmp_path: Path) -> None:
    """A checkpoint between two calls of learn, of which the second follows after resuming."""
    model = make(algo, "normalized")
    model.learn(TOTAL[algo] // 2)
    model.save_checkpoint(tmp_path / "saved.zip")
    model.learn(TOTAL[algo] // 2, reset_num_timesteps=False)
    expected = everything(model)
    resumed = ALGOS[algo].resume(tmp_path / "saved", vec_env(algo, "normalized", seed=9), device="cpu")
    resumed.learn(TOTAL[algo] // 2, reset_num_timesteps=False)
    assert differences(expected, everything(resumed)) == []
    again = ALGOS[algo].resume(tmp_path, vec_env(algo, "normalized"), device="cpu")
    again.learn()  # it had reached what was planned
    assert again.num_timesteps == model.num_timesteps // 2


def test_the_plan(tmp_path: Path) -> None:
    model = make("ppo")
    model.learn(4 * ROLLOUT, callback=Ask(tmp_path / "saved", 2 * ROLLOUT, draws=False))
    for arguments, end in (({}, 4), ({"total_timesteps": 4 * ROLLOUT}, 4), ({"total_timesteps": 6 * ROLLOUT}, 6)):
        resumed = PPO.resume(tmp_path / "saved", vec_env("ppo"), device="cpu")
        resumed.learn(callback=Ask(None, 0, draws=False), **arguments)
        assert resumed.num_timesteps == resumed._total_timesteps == end * ROLLOUT
        if end == 4:
            assert difference(resumed, model) == 0.0
    fresh = PPO.resume(tmp_path / "saved", vec_env("ppo"), device="cpu")
    fresh.learn(ROLLOUT, reset_num_timesteps=True)
    assert fresh.num_timesteps == ROLLOUT


def test_vec_normalize_comes_along(tmp_path: Path) -> None:
    model = make("ppo", "normalized")
    model.learn(2 * ROLLOUT, callback=Ask(tmp_path / "saved", ROLLOUT, draws=False))
    resumed = PPO.resume(tmp_path / "saved", vec_env("ppo"), device="cpu")
    assert isinstance(resumed.env, VecNormalize)
    with pytest.warns(UserWarning, match="had callbacks that this one has not: Ask. Give learn the same"):
        resumed.learn()
    assert difference(resumed, model) == 0.0


def test_another_environment_is_refused(tmp_path: Path) -> None:
    model = make("ppo")
    learn(model, "ppo", "", tmp_path, ROLLOUT, True, ROLLOUT)
    with pytest.raises(ValueError, match="is of 8 environments .*has 4 .*make it as it was"):
        PPO.resume(tmp_path / "saved", vec_env("ppo", n_envs=4), device="cpu")
    with pytest.raises(ValueError, match="TorchCartpole in IsaacVecEnv.*and the environment given has 8 .*VecNormalize"):
        PPO.resume(tmp_path / "saved", vec_env("ppo", "normalized"), device="cpu")
    with pytest.raises(ValueError, match="is a checkpoint of PPO: use PPO.resume"):
        DQN.resume(tmp_path / "saved", vec_env("dqn"), device="cpu")
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        PPO.resume(tmp_path / "nothing", vec_env("ppo"))
    (tmp_path / "saved_state.pt").write_bytes(b"cut")
    with pytest.raises(ValueError, match="not complete"):
        PPO.resume(tmp_path / "saved", vec_env("ppo"))
    with pytest.warns(UserWarning, match="not complete"), pytest.raises(FileNotFoundError, match="no complete checkpoint in"):
        PPO.resume(tmp_path, vec_env("ppo"))


@pytest.mark.parametrize("algo", ALGOS)
def test_a_checkpoint_before_anything_was_learned(algo: str, tmp_path: Path) -> None:
    model = make(algo, "normalized")
    model.save_checkpoint(tmp_path / "saved")
    model.learn(2 * ROLLOUT)
    resumed = ALGOS[algo].resume(tmp_path / "saved", vec_env(algo, "normalized", seed=9), device="cpu")
    with pytest.raises(ValueError, match="total_timesteps must be a number of at least 0, got -1"):
        resumed.learn(-1)
    resumed.learn(2 * ROLLOUT)
    assert differences(everything(model), everything(resumed)) == []


def test_a_checkpoint_beside_a_folder_of_its_name(tmp_path: Path) -> None:
    model = make("ppo")
    (tmp_path / "run").mkdir()  # with the monitor's file, for example
    model.save_checkpoint(tmp_path / "run")
    assert PPO.resume(tmp_path / "run", vec_env("ppo"), device="cpu").num_timesteps == 0


def test_an_old_file(tmp_path: Path) -> None:
    model = make("ppo")
    model.learn(2 * ROLLOUT)
    model._total_timesteps = 3 * ROLLOUT
    model.save(tmp_path / "old")
    with pytest.warns(UserWarning, match="Missing are the state of the environments, random numbers"):
        resumed = PPO.resume(tmp_path / "old", vec_env("ppo"), device="cpu")
    assert difference(resumed, model) == 0.0
    resumed.learn()
    assert resumed.num_timesteps == 3 * ROLLOUT


@pytest.mark.filterwarnings("ignore:You are trying to run PPO on the GPU")
def test_other_environments_begin_anew(tmp_path: Path) -> None:
    """Those of others cannot tell where they stand: that is said, the rest goes on."""
    model = PPO("MlpPolicy", sb3_vec_env("Pendulum-v1", 2), n_steps=16, batch_size=16, device="cpu", seed=0)
    model.learn(64)
    model.save_checkpoint(tmp_path / "saved")
    with pytest.warns(UserWarning, match="not exactly.*the running episodes of DummyVecEnv: new ones begin"):
        resumed = PPO.resume(tmp_path / "saved", sb3_vec_env("Pendulum-v1", 2), device="cpu")
    assert difference(resumed, model) == 0.0
    resumed.learn(96)
    assert resumed.num_timesteps == 96


def test_without_the_replay_buffer(tmp_path: Path) -> None:
    model = make("dqn")
    model.learn(320)
    model.save_checkpoint(tmp_path / "saved", replay_buffer=False)
    with pytest.warns(UserWarning, match="is without the replay buffer"):
        resumed = DQN.resume(tmp_path / "saved", vec_env("dqn"), device="cpu")
    assert resumed.replay_buffer.size() == 0
    resumed.learn(640)
    assert resumed.num_timesteps == 640


def test_arguments_that_are_given_now_win(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """--env-kwargs of an own task, which are attributes of it as what it counts is."""

    class Task(TensorEnv):
        obs_dim, action_dim, max_episode_length = 1, 1, 10

        def __init__(self, n_envs: int, device: th.device, seed: int, goal: float = 1.0, name: str = "old") -> None:
            self.n_envs, self.device, self.goal, self.name = n_envs, device, goal, name
            self.progress, self.n_steps = th.zeros(n_envs, dtype=th.int64), 0

        def seed(self, seed: int) -> None: ...

        def reset(self) -> th.Tensor:
            return th.zeros(self.n_envs, 1)

        def step(self, actions: th.Tensor) -> StepResult:
            self.n_steps += 1
            never, obs = th.zeros(self.n_envs, dtype=th.bool), th.zeros(self.n_envs, 1)
            return StepResult(obs, th.full((self.n_envs,), self.goal), never, never, obs)

    register("Goal-v0", Task)
    request.addfinalizer(lambda: gymnasium.registry.pop("Goal-v0"))

    def environment(**kwargs: Any) -> Any:
        return make_vec_env("Goal-v0", 2, device="cpu", seed=1, **kwargs)

    model = PPO("MlpPolicy", environment(goal=2.0), n_steps=8, batch_size=16, seed=0, device="cpu")
    model.learn(32)
    model.save_checkpoint(tmp_path / "saved")
    with pytest.warns(UserWarning, match=r"Task is made with other arguments than the checkpoint's \(goal, name\)"):
        resumed = PPO.resume(tmp_path / "saved", environment(goal=3.0, name="new"), device="cpu")
    task = resumed.env.unwrapped.tensor_env
    assert (task.goal, task.name, task.n_steps) == (3.0, "new", 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed = PPO.resume(tmp_path / "saved", environment(goal=2.0), device="cpu")
    assert resumed.env.unwrapped.tensor_env.goal == 2.0


def test_own_task(tmp_path: Path, my_pendulum: Any) -> None:
    """A task without get_state: its tensors and generators are taken as they are."""
    env = make_vec_env("MyPendulum-v0", 8, device="cpu", seed=1)
    model = PPO("MlpPolicy", env, n_steps=16, batch_size=64, seed=0, device="cpu")
    model.learn(ROLLOUT)
    model.save_checkpoint(tmp_path / "saved")
    model.learn(15 * ROLLOUT, reset_num_timesteps=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed = PPO.resume(tmp_path / "saved", make_vec_env("MyPendulum-v0", 8, device="cpu", seed=7), device="cpu")
    resumed.learn(15 * ROLLOUT, reset_num_timesteps=False)
    assert not th.equal(model.env.unwrapped.tensor_env.progress, th.full((8,), 16 * 16))  # episodes have ended
    np.testing.assert_array_equal(model._last_obs, resumed._last_obs)
