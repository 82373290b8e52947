"""The adapter of mjlab, over a strict stand-in (tests/mjlab_standin). ``make test-mjlab`` has the real thing."""

from __future__ import annotations

import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.logger import Logger

import sb3_isaac
from sb3_isaac.backends import mjlab, probe
from sb3_isaac.backends.base import StepResult, check_result
from sb3_isaac.backends.simulator_env import bounds
from sb3_isaac.envs import simulators
from sb3_isaac.zoo.entry_files import hyperparams_dir
from tests.conftest import REPOSITORY

TASK = "mjlab:Mjlab-Cartpole-Balance"
LENGTH = 5
"""Steps of an episode of the stand-in."""


@pytest.fixture(autouse=True)
def standin(monkeypatch):
    ids, names = set(gym.registry), ("mjlab", "warp")
    monkeypatch.syspath_prepend(str(REPOSITORY / "tests" / "mjlab_standin"))
    monkeypatch.setattr(simulators, "_dims", {})
    monkeypatch.setenv(mjlab.QUIET_VARIABLE, "1")
    monkeypatch.setenv(probe.SIM_ENVS_VARIABLE, "1")  # commands set it for the whole process
    kept = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] in names}
    yield
    for name in [name for name in sys.modules if name.partition(".")[0] in names]:
        del sys.modules[name]
    sys.modules.update(kept)
    for env_id in set(gym.registry) - ids:
        del gym.registry[env_id]


def make(n_envs=4, task="Mjlab-Cartpole-Balance", **kwargs):
    return mjlab.make(task, n_envs, th.device("cpu"), kwargs.pop("seed", 0), **kwargs)


def mjlab_env(n_envs=4, **values):
    """As a user makes it."""
    from mjlab.envs import Cfg, ManagerBasedRlEnv

    cfg = Cfg(auto_reset=False, **values)
    cfg.scene.num_envs = n_envs
    return ManagerBasedRlEnv(cfg, device="cpu")


def actions(*values):
    return th.tensor(values, dtype=th.float32).unsqueeze(-1)


def test_a_step_tells_the_true_last_observation():
    env = make(3)
    check_result(env, "reset", env.reset())
    first = env.step(actions(0.0, 0.8, 0.1))
    check_result(env, "step", first)
    kept = StepResult(*(tensor.clone() for tensor in first))
    second = env.step(actions(0.0, 0.8, 0.1))  # moves environment 1 beyond 1 from wherever it was
    assert second.terminated.tolist() == [False, True, False] and not second.truncated.any()
    assert second.final_obs[1, 0] > 1.0 and second.final_obs[1, 1] == 2
    assert second.obs[1, 0].abs() <= 0.25 and second.obs[1, 1] == 0
    # mjlab looked at the others twice, with another noise: once counts
    assert th.equal(second.obs[::2], second.final_obs[::2]) and second.obs[0, 1] == 2
    assert env.progress.tolist() == [2, 0, 2]
    env.step(actions(0.0, 0.0, 0.0))
    assert all(th.equal(now, then) for now, then in zip(first, kept))  # nothing is written over


def test_time_limits_and_failures_at_them():
    env = make(2)
    assert env.max_episode_length == LENGTH + 1
    env.reset()
    for _ in range(LENGTH - 1):
        result = env.step(actions(0.0, 0.0))
        assert not (result.terminated | result.truncated).any()
    env.env.position[0] = 0.9
    result = env.step(actions(1.0, 0.0))  # mjlab says both of environment 0
    assert result.terminated.tolist() == [True, False] and result.truncated.tolist() == [False, True]
    assert (result.final_obs[:, 1] == LENGTH).all() and (result.obs[:, 1] == 0).all()


def test_a_finite_horizon_is_the_tasks_end():
    env = make(2, task="Mjlab-Cartpole-Swingup")
    env.reset()
    for _ in range(LENGTH):
        result = env.step(actions(0.0, 0.0))
    assert result.terminated.all() and not result.truncated.any()


def test_environments_that_cannot_be_wrapped():
    env = mjlab_env()
    env.cfg.auto_reset = True
    with pytest.raises(ValueError, match="make it with cfg.auto_reset = False"):
        sb3_isaac.wrap_mjlab(env)
    with pytest.raises(ValueError, match="takes a ManagerBasedRlEnv of mjlab, without a wrapper, got CartPoleEnv"):
        sb3_isaac.wrap_mjlab(gym.make("CartPole-v1").unwrapped)


def test_observation_groups():
    inner = mjlab_env()
    venv = sb3_isaac.wrap_mjlab(inner, obs_groups=("actor", "critic"))
    obs = venv.reset()
    assert venv.observation_space.shape == (4,) and np.array_equal(obs[:, 0], obs[:, 3])
    with pytest.raises(ValueError, match="no observation group 'policy'.*it has actor, critic, camera"):
        sb3_isaac.wrap_mjlab(inner, obs_groups="policy")
    with pytest.raises(ValueError, match="'camera' of group 'camera' is a tensor .4, 3, 8, 8..*only vectors"):
        sb3_isaac.wrap_mjlab(inner, obs_groups="camera")


def test_action_bounds():
    inner = mjlab_env(n_actions=2)
    venv = sb3_isaac.wrap_mjlab(inner, action_bounds=(-0.5, [1.0, 2.0]))
    assert venv.action_space == gym.spaces.Box(np.float32([-0.5, -0.5]), np.float32([1.0, 2.0]))
    venv.reset()
    venv.step_tensor(th.tensor([[9.0, 9.0], [-9.0, -9.0], [0.1, 1.5], [0.0, 0.0]]))
    assert th.equal(inner.actions, th.tensor([[1.0, 2.0], [-0.5, -0.5], [0.1, 1.5], [0.0, 0.0]]))
    discrete = sb3_isaac.make_vec_env(TASK, n_envs=3, discrete=True, action_bounds=0.2)
    discrete.reset()
    discrete.step(np.array([0, 1, 2]))
    assert th.equal(discrete.tensor_env.env.actions, actions(-0.2, 0.0, 0.2))
    for wrong in (0.0, -1.0, (1.0, -1.0), np.inf, "wide", (0.0, [1.0, 2.0, 3.0])):
        with pytest.raises(ValueError, match="action_bounds=.* must be a positive number"):
            bounds(wrong, 2)


def test_metrics_are_means_since_they_were_asked_for():
    env = make(2)
    env.reset()
    assert env.pop_metrics() == {}  # of episodes that a reset from outside broke off, nothing is told
    for _ in range(2):
        env.env.position[:] = 0.0
        env.step(actions(0.0, 2.0))
    assert env.pop_metrics() == {}  # bounds: 1 is no failure
    env.env.position[1] = 0.5
    env.step(actions(0.0, 1.0))  # ends after 3 steps
    env.env.position[1] = 0.5
    env.step(actions(0.0, 1.0))  # ends after 1
    assert env.pop_metrics() == {"Episode_Reward/alive": 2.0, "Metrics/told": 2.0}
    assert env.pop_metrics() == {}


def test_by_name(capsys):
    venv = sb3_isaac.make_vec_env(TASK, n_envs=4, seed=0)
    assert venv.reset().shape == (4, 3) and venv.metadata["render_fps"] == 10
    venv.seed(3)
    first = venv.reset()
    venv.seed(4)
    other = venv.reset()
    venv.seed(3)
    assert np.array_equal(venv.reset(), first) and not np.array_equal(other, first)
    printed = capsys.readouterr().out
    assert printed == "mjlab compiles its kernels, once on this machine: about a minute\n"
    assert sys.modules["warp"].config.log_level == sys.modules["warp"].LOG_WARNING
    inner = venv.tensor_env.env
    venv.close()
    venv.close()
    assert inner.closed == 1
    for kwargs, length in (({"max_episode_steps": 7}, 7), ({"episode_length_s": 2.0}, 20), ({"max_episode_length": 4}, 3)):
        assert sb3_isaac.make_vec_env(TASK, **kwargs).tensor_env.env.max_episode_length == length
    with pytest.raises(NotImplementedError, match="render_mode='rgb_array'"):
        sb3_isaac.make_vec_env(TASK).get_images()
    drawn = sb3_isaac.make_vec_env(TASK, n_envs=4, render_mode="rgb_array")
    assert drawn.tensor_env.env.cfg.viewer.max_extra_envs == 3 and drawn.get_images()[0].shape == (480, 640, 3)
    with pytest.raises(ValueError, match="no task 'Mjlab-Cartpole-Balanse': did you mean Mjlab-Cartpole-Balance?"):
        sb3_isaac.make_vec_env(TASK[:-2] + "se")
    with pytest.raises(TypeError, match="Mjlab-Cartpole-Balance takes obs_groups, .* got lenght=3"):
        sb3_isaac.make_vec_env(TASK, lenght=3)


def test_gymnasium_and_its_registry(monkeypatch):
    monkeypatch.delitem(gym.registry, TASK, raising=False)  # another test may have looked for it
    assert sb3_isaac.envs.is_isaac_env_id(TASK) and not sb3_isaac.envs.is_isaac_env_id("gym:CartPole-v1")
    assert "mjlab" not in sys.modules  # nothing is imported before somebody steps
    single = gym.make(gym.spec(TASK), device="cpu")
    assert "mjlab" not in sys.modules
    assert single.action_space == gym.spaces.Box(-1.0, 1.0, (1,)) and single.observation_space.shape == (3,)
    single.reset(seed=0)
    assert [single.step(np.zeros(1, np.float32))[3] for _ in range(LENGTH)] == [False] * 4 + [True]
    vector = gym.make_vec(gym.spec(TASK), num_envs=2, device="cpu")
    vector.reset(seed=0)
    assert "final_obs" in [vector.step(np.zeros((2, 1), np.float32)) for _ in range(LENGTH)][-1][4]


def test_without_mjlab(monkeypatch):
    monkeypatch.setitem(sys.modules, "mjlab", None)
    with pytest.raises(ImportError, match="mjlab is not installed: pip install mjlab"):
        sb3_isaac.make_vec_env(TASK)


@pytest.mark.parametrize("algo", ["PPO", "DDPG"])
def test_training(algo, tmp_path):
    """A model trains and is evaluated in another environment, and the metrics are in SB3's logger."""
    venv = sb3_isaac.make_vec_env(TASK, n_envs=4, seed=0)
    settings = {"n_steps": 8, "n_minibatches": 1} if algo == "PPO" else {"learning_starts": 8, "batch_size": 8}
    model = getattr(sb3_isaac, algo)("MlpPolicy", venv, seed=0, device="cpu", **settings)
    logged, logger = {}, Logger(None, [])
    logger.dump = lambda step: logged.update(logger.name_to_value)
    model.set_logger(logger)
    model.learn(128, log_interval=1)
    assert logged["Metrics/told"] == 2.0
    model.save(tmp_path / "model")
    loaded = sb3_isaac.load(tmp_path / "model", sb3_isaac.make_vec_env(TASK, n_envs=2))
    assert sb3_isaac.evaluate(loaded, loaded.get_env(), 2).n_episodes == 2


def test_commands(tmp_path, monkeypatch, capfd):
    """train, evaluate, plot and optimize by a task's name; a task without an entry learns with the one of all."""
    from sb3_isaac.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sb3-isaac"])
    common = ["--algo", "ppo", "--env", TASK, "-f", "logs"]
    training = ["--n-envs", "8", "-n", "256", "--eval-freq", "128", "--eval-episodes", "8", "--device", "cpu"]
    assert main(["train", *common, *training]) == 0
    assert (tmp_path / "logs" / "ppo" / "Mjlab-Cartpole-Balance_1" / "Mjlab-Cartpole-Balance.zip").is_file()
    assert main(["evaluate", *common, "-n", "8", "--device", "cpu"]) == 0
    assert "mjlab:Mjlab-Cartpole-Balance, 8 at once" in capfd.readouterr().out
    assert main(["plot", f"ppo:{TASK}", "-f", "logs", "-o", "curve.png"]) == 0
    assert main(["optimize", *common, "-n", "256", "--n-trials", "2", "--device", "cpu"]) == 0
    printed = capfd.readouterr().out.splitlines()[-1]  # the command that trains with what was found
    assert main([*printed[printed.index("train ") :].split(), "-f", "logs", "-n", "128", "--device", "cpu"]) == 0
    swingup = ["--algo", "ppo", "--env", "mjlab:Mjlab-Cartpole-Swingup", "-f", "logs", *training]
    assert main(["train", *swingup, "-params", "n_minibatches:1"]) == 0
    said = f"{hyperparams_dir()}/ppo.yml has no entry mjlab:Mjlab-Cartpole-Swingup: training starts from mjlab:default"
    assert said in capfd.readouterr().out
    assert main(["train", "--algo", "ppo", "--env", "mjlab:Mjlab-Cartpole", "-f", "logs"]) == 1
    assert "mjlab has no task 'Mjlab-Cartpole'" in capfd.readouterr().err


@pytest.mark.slow
def test_rl_zoo3s_own_script_knows_the_id():
    """It looks in the registry before it asks anything of ours."""
    words = ["-m", "rl_zoo3.train", "--algo", "ppo", "--env", TASK, "--gym-packages", "sb3_isaac.zoo", "-n", "1"]
    done = subprocess.run([sys.executable, *words], cwd=str(REPOSITORY), capture_output=True, text=True)
    assert done.stderr.strip().splitlines()[-1].startswith("ImportError: mjlab is not installed: pip install mjlab")
