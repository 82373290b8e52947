"""What belongs together stays together: a model and the statistics of VecNormalize."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stable_baselines3
from stable_baselines3.common.vec_env import VecNormalize as SB3VecNormalize

import sb3_isaac
from tests.conftest import make_env

IDS = {"ppo": "IsaacGymCartpole-v0", "dqn": "IsaacGymCartpoleDiscrete-v0", "ddpg": "IsaacGymCartpole-v0"}
TRAP = "trained on observations normalised by VecNormalize"


def trained(algo: str, normalize: Any = sb3_isaac.VecNormalize, **options: Any) -> Any:
    env = make_env(IDS[algo], n_envs=8)
    env = env if normalize is None else normalize(env, **options)
    of_algo = {"n_steps": 8} if algo == "ppo" else {"learning_starts": 8}
    return getattr(sb3_isaac, algo.upper())("MlpPolicy", env, batch_size=32, device="cpu", **of_algo).learn(64)


@pytest.mark.parametrize("algo", list(IDS))
@pytest.mark.parametrize("name", ["agent", "agent.zip", "agent.v1"])
def test_load_gives_policy_and_statistics(algo: str, name: str, tmp_path: Path) -> None:
    model = trained(algo)
    model.save(tmp_path / name)
    again = sb3_isaac.load(tmp_path / name, make_env(IDS[algo]), device="cpu")
    assert type(again) is type(model)
    statistics, expected = again.get_vec_normalize_env(), model.get_vec_normalize_env()
    assert np.array_equal(statistics.obs_rms.mean, expected.obs_rms.mean)
    assert not statistics.training and not statistics.norm_reward and again.get_env() is statistics
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours, theirs = (sb3_isaac.evaluate(m, e, 16).returns for m, e in ((again, again.get_env()), (again, statistics)))
    assert len(ours) == len(theirs) == 16
    without_env = sb3_isaac.load(tmp_path / name, device="cpu")
    obs = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    assert np.allclose(without_env.vec_normalize.normalize_obs(obs), expected.normalize_obs(obs))
    without_env.save(tmp_path / "again")  # the statistics are no part of the zip
    with zipfile.ZipFile(tmp_path / "again.zip") as archive:
        assert b"vec_normalize" not in archive.read("data").replace(b"_vec_normalize", b"")


@pytest.mark.slow
def test_stock_sb3_reads_both_files_without_this_package(tmp_path: Path) -> None:
    model = trained("ppo")
    model.save(tmp_path / "agent")
    code = (
        "import sys; sys.modules['sb3_isaac'] = None\n"
        "import gymnasium, numpy as np\n"
        "from stable_baselines3 import PPO\n"
        "from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize\n"
        "env = VecNormalize.load('agent_vecnormalize.pkl', DummyVecEnv([lambda: gymnasium.make('InvertedPendulumLike-v0')]))\n"
    ).replace("DummyVecEnv([lambda: gymnasium.make('InvertedPendulumLike-v0')])", "DummyVecEnv([lambda: Env()])")
    env_code = (
        "class Env(gymnasium.Env):\n"
        "    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (4,), np.float32)\n"
        "    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)\n"
    )
    lines = code.split("\n")
    code = "\n".join([*lines[:4], env_code, *lines[4:], "print(PPO.load('agent').num_timesteps, env.obs_rms.count > 1)"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(model.num_timesteps), "True"]


@pytest.mark.parametrize("algo", list(IDS))
def test_the_trap_is_named(algo: str, tmp_path: Path) -> None:
    model = trained(algo)
    model.save(tmp_path / "agent")
    cls = type(model)
    with pytest.warns(UserWarning, match=f"{TRAP}.*sb3_isaac.load"):
        loaded = cls.load(tmp_path / "agent", make_env(IDS[algo]), device="cpu")
    with pytest.warns(UserWarning, match=TRAP):
        sb3_isaac.evaluate(loaded, make_env(IDS[algo]), 4)
    os.remove(tmp_path / "agent_vecnormalize.pkl")
    with pytest.raises(FileNotFoundError, match="agent_vecnormalize.pkl"):
        sb3_isaac.load(tmp_path / "agent", make_env(IDS[algo]), device="cpu")


@pytest.mark.parametrize("normalize, options", [(None, {}), (sb3_isaac.VecNormalize, {"norm_obs": False})])
def test_no_warning_where_observations_are_as_they_are(normalize: Any, options: Any, tmp_path: Path) -> None:
    model = trained("ppo", normalize, **options)
    model.save(tmp_path / "agent")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = sb3_isaac.load(tmp_path / "agent", make_env(), device="cpu")
        sb3_isaac.evaluate(loaded, loaded.get_env(), 4)
    assert loaded.get_vec_normalize_env() is None


def test_a_given_vec_normalize_and_sb3s_own_are_kept(tmp_path: Path) -> None:
    model = trained("ppo", SB3VecNormalize)
    model.save(tmp_path / "agent")
    env = sb3_isaac.VecNormalize(make_env())
    assert sb3_isaac.load(tmp_path / "agent", env, device="cpu").get_env() is env
    again = sb3_isaac.load(tmp_path / "agent", make_env(), device="cpu")
    assert isinstance(again.get_env(), sb3_isaac.VecNormalize)


def test_models_of_stock_sb3_and_of_other_algorithms(tmp_path: Path) -> None:
    env = make_env()
    stable_baselines3.PPO("MlpPolicy", env, n_steps=8, device="cpu").save(tmp_path / "ppo")
    assert type(sb3_isaac.load(tmp_path / "ppo", device="cpu")) is sb3_isaac.PPO
    stable_baselines3.SAC("MlpPolicy", env, device="cpu", buffer_size=100).save(tmp_path / "sac")
    with pytest.raises(ValueError, match="no model of PPO, DQN or DDPG"):
        sb3_isaac.load(tmp_path / "sac")
    with pytest.raises(FileNotFoundError, match="no model at"):
        sb3_isaac.load(tmp_path / "nothing")
    (tmp_path / "broken.zip").write_bytes(b"no zip")
    with pytest.raises(ValueError, match="cannot be read as a model that SB3's save has written"):
        sb3_isaac.load(tmp_path / "broken.zip")


def test_a_failed_save_leaves_the_old_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = trained("ppo")
    model.save(tmp_path / "agent")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fails(*args: Any, **kwargs: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("stable_baselines3.common.base_class.save_to_zip_file", fails)
    with pytest.raises(OSError, match="disk full"):
        model.save(tmp_path / "agent")
    after = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert after["agent.zip"] == before["agent.zip"] and set(after) == set(before)
