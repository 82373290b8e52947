"""The adapter of Isaac Lab, over a strict stand-in (tests/isaaclab_standin). ``make test-isaaclab`` has the real thing."""

from __future__ import annotations

import sys
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.logger import configure

import sb3_isaac
from sb3_isaac.backends import isaaclab
from sb3_isaac.backends.base import StepResult
from sb3_isaac.backends.probe import SIM_ENVS_VARIABLE
from tests.conftest import REPOSITORY

TASK = "isaaclab:Isaac-Cartpole-Direct"
LENGTH = 5
"""Steps of an episode of the stand-in."""


@pytest.fixture(autouse=True)
def standin(monkeypatch):
    """Isaac Lab's modules are the stand-in's, and no simulator is there before or after."""
    ids = set(gym.registry)
    monkeypatch.syspath_prepend(str(REPOSITORY / "tests" / "isaaclab_standin"))
    monkeypatch.setattr(isaaclab, "_simulator", None)
    monkeypatch.delenv(SIM_ENVS_VARIABLE, raising=False)  # an experiment in the same process reserves room
    isaaclab._views.clear()
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] in ("isaaclab", "isaaclab_tasks")]:
        del sys.modules[name]
    for env_id in set(gym.registry) - ids:
        del gym.registry[env_id]


def make(n_envs=4, **kwargs):
    return isaaclab.make("Isaac-Cartpole-Direct", n_envs, th.device("cpu"), kwargs.pop("seed", 0), **kwargs)


def isaac_lab_env(n_envs=4, **values):
    """As a user makes it."""
    from isaaclab_tasks.utils.parse_cfg import parse_env_cfg

    cfg = parse_env_cfg("Isaac-Cartpole-Direct", device="cpu", num_envs=n_envs)
    for name, value in {"compute_final_obs": True, **values}.items():
        if value is None:
            delattr(cfg, name)
        else:
            setattr(cfg, name, value)
    return gym.make("Isaac-Cartpole-Direct", cfg=cfg)


def actions(n_envs, *values):
    return th.tensor(values or [0.0] * n_envs, dtype=th.float32).unsqueeze(-1)


def test_a_step_tells_the_true_last_observation():
    env = make(3)
    start = env.reset()
    assert start.shape == (3, 2) and (start[:, 0].abs() <= 0.25).all()
    first = env.step(actions(3, 0.0, 1.0, 0.2))
    kept = StepResult(*(tensor.clone() for tensor in first))
    assert not first.terminated.any() and th.equal(first.obs, first.final_obs)
    second = env.step(actions(3, 0.0, 1.0, 0.2))  # moves environment 1 beyond 1, if its start was above 0
    third = env.step(actions(3, 0.0, 1.0, 0.2))
    failed = second.terminated | third.terminated
    assert failed.tolist() == [False, True, False]
    result = second if second.terminated[1] else third
    assert result.final_obs[1, 0] > 1.0 and result.obs[1, 0].abs() <= 0.25 and result.obs[1, 1] == 0
    assert th.equal(result.obs[::2], result.final_obs[::2])
    assert all(th.equal(now, then) for now, then in zip(first, kept))  # nothing is written over
    assert first.reward.dtype == th.float32 and third.terminated.dtype == th.bool


def test_time_limits_and_failures_at_them():
    env = make(2)
    assert env.max_episode_length == LENGTH + 1
    env.reset()
    for _ in range(LENGTH - 1):
        result = env.step(actions(2))
        assert not (result.terminated | result.truncated).any()
    position = result.obs[:, 0]
    result = env.step(actions(2, 0.0, 1.0 if position[1] > 0 else -1.0))
    assert result.truncated.tolist() == [True, True] and (result.final_obs[:, 1] == LENGTH).all()
    env.env.unwrapped.scene.position[:, 1] = 0.9
    env.progress.fill_(LENGTH - 1)
    result = env.step(actions(2, 1.0, 0.0))  # environment 0 fails in its last step: Isaac Lab says both
    assert result.terminated.tolist() == [True, False] and result.truncated.tolist() == [False, True]
    # after steps in which nothing ended, the simulator still has old last observations
    assert th.equal(*env.step(actions(2))[::4])


def test_environments_that_lose_the_last_observation():
    with pytest.raises(ValueError, match="set cfg.compute_final_obs = True"):
        sb3_isaac.wrap_isaaclab(isaac_lab_env(compute_final_obs=False))


def test_older_isaac_lab():
    env = isaac_lab_env(compute_final_obs=None)
    with pytest.warns(UserWarning, match="the observation before it"):
        venv = sb3_isaac.wrap_isaaclab(env)
    venv.reset()
    before = [venv.step_tensor(actions(4)).obs.clone() for _ in range(LENGTH - 1)][-1]
    assert th.equal(venv.step_tensor(actions(4)).final_obs, before)


def test_observation_groups_and_action_bounds():
    inner = isaac_lab_env(state_space=1, max_action=0.5)
    venv = sb3_isaac.wrap_isaaclab(inner, obs_groups=("policy", "critic"), action_bounds=0.5)
    assert venv.observation_space.shape == (3,) and (venv.action_space.low, venv.action_space.high) == (-0.5, 0.5)
    assert venv.reset().shape == (4, 3)
    obs = venv.step(np.full((4, 1), 0.5, np.float32))[0]
    assert (obs[:, 2] == 0.5).all()
    assert venv.tensor_env.step(actions(4, 7.0, 0.0, 0.0, -7.0)).obs[:, 2].tolist() == [0.5, 0.0, 0.0, -0.5]
    with pytest.raises(ValueError, match="no observation group 'actor'.*policy, critic"):
        sb3_isaac.wrap_isaaclab(inner, obs_groups="actor")
    with pytest.raises(ValueError, match="n_envs must be from 1 to the 4"):
        sb3_isaac.wrap_isaaclab(inner, n_envs=5)


def test_metrics_are_told_once():
    """Isaac Lab leaves the metrics of the last ends in extras["log"]: they do not count again at each step."""
    env = make(2)
    env.reset()
    env.pop_metrics()
    for _ in range(LENGTH):
        env.step(actions(2))
    env.step(actions(2))
    env.progress.fill_(2)
    env.env.unwrapped.scene.position[:, 1] = 0.9
    env.step(actions(2, 1.0, 1.0))
    for _ in range(3):
        env.step(actions(2))
    assert env.pop_metrics() == {"Metrics/success_rate": 0.5}  # once 1, once 0
    assert env.pop_metrics() == {}


def test_training_and_evaluation_share_the_simulator():
    train = make(4)
    train.reset()
    train.step(actions(4, 0.1, 0.2, 0.3, 0.4))
    state = train.get_state()
    expected = [train.step(actions(4, *[0.02 * i] * 4)).obs for i in range(3)]
    train.set_state(state)
    evaluation = make(2, max_episode_length=3)
    got = []
    for i in range(3):
        got.append(train.step(actions(4, *[0.02 * i] * 4)).obs)
        evaluation.reset()
        ends = [evaluation.step(actions(2)).truncated.tolist() for _ in range(2)]
        assert ends == [[False, False], [True, True]]
        assert train.max_episode_length == LENGTH + 1
    assert th.equal(th.stack(got), th.stack(expected))
    assert isaaclab._simulator.n_envs == 4
    assert train.progress.tolist() == [4] * 4


def test_a_larger_view_makes_a_larger_simulator():
    train = make(2)
    train.reset()
    obs = train.step(actions(2, 0.2, -0.2)).obs
    evaluation = make(8)
    assert evaluation.reset().shape == (8, 2) and isaaclab._simulator.n_envs == 8
    result = train.step(actions(2))
    assert th.equal(result.obs[:, 0], obs[:, 0]) and result.obs[:, 1].tolist() == [2, 2]


def test_one_simulator_in_a_process():
    env = make(2)
    env.reset()
    other = make(2, episode_length_s=0.7)
    with pytest.raises(
        RuntimeError, match="one Isaac Lab simulator, of Isaac-Cartpole-Direct, device=cpu, and .*=0.7 is asked"
    ):
        other.reset()
    env.close()
    assert other.reset().shape == (2, 2) and other.max_episode_length == 8
    other.close()
    other.close()
    wrapped = make(2)  # nobody uses the other settings any more
    assert wrapped.reset().shape == (2, 2)


def test_a_users_simulator_ends_with_the_last_view():
    inner = isaac_lab_env()
    first, second = sb3_isaac.wrap_isaaclab(inner), sb3_isaac.wrap_isaaclab(inner, n_envs=2)
    first.reset()
    first.close()
    assert second.reset().shape == (2, 2)
    second.close()
    assert not hasattr(inner.unwrapped, "scene")


def test_by_name(capsys):
    venv = sb3_isaac.make_vec_env(TASK, n_envs=4, seed=0, **{"sim.dt": 0.1})
    assert venv.observation_space.shape == (2,) and venv.reset().shape == (4, 2)
    again = venv.reset()
    venv.seed(3)
    first = venv.reset()
    venv.seed(3)
    assert np.array_equal(venv.reset(), first) and not np.array_equal(first, again)
    assert venv.metadata["render_fps"] == 5 and venv.tensor_env.max_episode_length == 4
    assert capsys.readouterr().out == ""
    images = venv.get_images()
    assert len(images) == 4 and images[0].dtype == np.uint8 and len(images[0].shape) == 3
    with pytest.raises(TypeError, match="Isaac-Cartpole-Direct has no parameter 'sim.dtt'.*episode_length_s"):
        sb3_isaac.make_vec_env(TASK, **{"sim.dtt": 0.1})
    with pytest.raises(ValueError, match="no task 'Isaac-Cartpole-Directt'"):
        sb3_isaac.make_vec_env(TASK + "t")
    with pytest.raises(NotImplementedError):
        sb3_isaac.make_vec_env("isaaclab:Isaac-Reach", n_envs=1).get_images()


def test_without_isaac_lab(monkeypatch):
    monkeypatch.setitem(sys.modules, "isaaclab_tasks", None)
    with pytest.raises(ImportError, match="pip install isaaclab"):
        sb3_isaac.make_vec_env(TASK)


def test_the_cartpole_is_not_downloaded(monkeypatch, tmp_path: Path):
    file = tmp_path.joinpath("newton", *isaaclab.CARTPOLE_USD)
    file.parent.mkdir(parents=True)
    file.write_text('(\n    defaultPrim = "cartPole"\n)\ndef Xform "cartpole" (')
    (tmp_path / "newton" / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    env = make(1)
    env.reset()
    scene = env.env.unwrapped.cfg.scene
    path = Path(scene.robot.spawn.usd_path)
    assert path.read_text() == '(\n    defaultPrim = "cartpole"\n)\ndef Xform "cartpole" (' and scene.ground is None
    env.close()
    make(1, episode_length_s=0.9).reset()  # another simulator: the copy of the first is gone
    assert not path.exists()


@pytest.mark.parametrize("algo", ["PPO", "DQN"])
def test_training(algo, tmp_path):
    """The metrics are in SB3's logger, and training goes on after an evaluation on the same simulator."""
    discrete = {"discrete": True} if algo == "DQN" else {}
    venv = sb3_isaac.make_vec_env(TASK, n_envs=4, seed=0, **discrete)
    settings = {"n_steps": 8, "n_minibatches": 1} if algo == "PPO" else {"learning_starts": 8, "batch_size": 8}
    model = getattr(sb3_isaac, algo)("MlpPolicy", venv, seed=0, device="cpu", **settings)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(128, log_interval=1)
    assert "Metrics/success_rate" in (tmp_path / "progress.csv").read_text()
    assert sb3_isaac.evaluate(model, sb3_isaac.make_vec_env(TASK, n_envs=2, **discrete), 2).n_episodes == 2
    model.learn(32)
