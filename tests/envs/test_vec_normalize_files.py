"""vecnormalize.pkl: ours in stock SB3, stock SB3's in ours, across versions."""

from __future__ import annotations

import copy
import pickle
import pickletools
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3.common.vec_env as sb3
from stable_baselines3.common.running_mean_std import RunningMeanStd

from sb3_isaac import VecNormalize
from sb3_isaac.envs.tensor_path import supports_tensors
from tests.conftest import DATA, N_ENVS, some_actions
from tests.envs.conftest import CLOSE, assert_same_statistics, compare_steps, short_env, trained

CHILD = """
import sys
sys.modules["sb3_isaac"] = None
import gymnasium, numpy, pickle
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
env = VecNormalize.load(sys.argv[1], DummyVecEnv([lambda: gymnasium.make("CartPole-v1")]))
assert type(env) is VecNormalize
print(*env.normalize_obs(numpy.ones(4)), env.normalize_reward(numpy.ones(1))[0], env.obs_rms.count, env.gamma)
env.reset(); env.step(numpy.array([0]))  # it goes on
"""


def test_stock_sb3_loads_our_file_without_this_package(tmp_path: Path) -> None:
    env = trained()
    path = str(tmp_path / "vecnormalize.pkl")
    env.save(path)
    out = subprocess.run([sys.executable, "-c", CHILD, path], capture_output=True, text=True, cwd=str(tmp_path))
    assert out.returncode == 0, out.stderr
    expected = [*env.normalize_obs(np.ones(4)), env.normalize_reward(np.ones(1))[0], env.obs_rms.count, env.gamma]
    np.testing.assert_allclose([float(word) for word in out.stdout.split()], expected, rtol=1e-6)


def test_nothing_in_the_file_is_ours_or_bound_to_a_version(tmp_path: Path) -> None:
    path = tmp_path / "vecnormalize.pkl"
    trained().save(str(path))
    words = {arg for _, arg, _ in pickletools.genops(path.read_bytes()) if isinstance(arg, str)}
    assert "stable_baselines3.common.vec_env.vec_normalize" in words
    assert not [w for w in words if "sb3_isaac" in w or w.split(".")[0] == "torch" or "numpy._core" in w or "numpy.core" in w]


def test_pickled_by_others_it_is_a_stock_object() -> None:
    env = trained()
    loaded = pickle.loads(pickle.dumps(env))
    assert type(loaded) is sb3.VecNormalize and type(loaded.obs_rms) is RunningMeanStd
    assert env.venv is not None and loaded.obs_rms.count == env.obs_rms.count


@pytest.mark.parametrize("cls", [VecNormalize, sb3.VecNormalize])
def test_we_load_our_file_and_a_stock_file(cls: Any, tmp_path: Path) -> None:
    saved, path = trained(cls), str(tmp_path / "vecnormalize.pkl")
    saved.save(path)
    env = VecNormalize.load(path, short_env())
    assert type(env) is VecNormalize and supports_tensors(env)
    assert_same_statistics(env, VecNormalize.load(path, sb3.DummyVecEnv([lambda: gym.make("IsaacGymCartpole-v0")] * N_ENVS)))
    np.testing.assert_array_equal(env.obs_rms.var, saved.obs_rms.var)
    assert (env.gamma, env.clip_obs, env.num_envs) == (0.97, 5.0, N_ENVS)
    stock = sb3.VecNormalize.load(path, short_env())
    np.testing.assert_allclose(env.reset_tensor().numpy(), stock.reset(), **CLOSE)
    compare_steps(env, stock, some_actions(env, 30))
    assert_same_statistics(env, stock)


@pytest.mark.parametrize("way", ["file", "pickle", "deepcopy"])
@pytest.mark.parametrize("switch", [{}, {"norm_obs": False}, {"norm_reward": False}, {"training": False}, {"norm_obs": True}])
@pytest.mark.parametrize("cls", [VecNormalize, sb3.VecNormalize])
def test_every_option_goes_along(cls: Any, switch: dict, way: str, tmp_path: Path) -> None:
    """From ours to stock SB3 and from there to ours; what was switched off before and after the start."""
    options = {"clip_obs": 0.7, "clip_reward": 0.02, "gamma": 0.9, "epsilon": 0.3, "norm_obs_keys": None}
    saved = cls(short_env(), **{**options, "norm_obs": switch.get("norm_obs", True)})
    saved.reset()
    for action in some_actions(saved, 20):
        saved.step(action)
    if switch.get("norm_obs"):
        saved.norm_obs = False  # with statistics
    for name, value in switch.items():
        if name != "norm_obs":
            setattr(saved, name, value)
    path = tmp_path / "vecnormalize.pkl"
    if way == "file":
        saved.save(path)
    elif way == "pickle":
        path.write_bytes(pickle.dumps(saved))
    else:
        copied = copy.deepcopy(saved)
        assert type(copied) is cls and copied.venv is None and saved.venv is not None
        copied.set_venv(short_env())
        assert supports_tensors(copied) == (cls is VecNormalize)
        assert_same_statistics(copied, saved, returns=False)
        copied.save(path)
    stock, ours = sb3.VecNormalize.load(path, short_env()), VecNormalize.load(path, short_env())
    assert type(stock) is sb3.VecNormalize
    for name in (*options, "norm_obs", "norm_reward", "training"):
        assert getattr(ours, name) == getattr(stock, name) == getattr(saved, name), name
    for env in (ours, stock):
        assert_same_statistics(env, saved, returns=False)
        assert not env.returns.any()
    np.testing.assert_allclose(ours.reset_tensor().numpy(), stock.reset(), **CLOSE)
    compare_steps(ours, stock, some_actions(ours, 30))
    assert_same_statistics(ours, stock)


@pytest.mark.parametrize("writer", ["stock", "ours"])
@pytest.mark.parametrize("versions", ["sb3_2.4.1_numpy_1.23", "sb3_2.9.2_numpy_2.4"])
def test_files_of_other_versions(writer: str, versions: str) -> None:
    """Stock SB3 with numpy 1 cannot read its own files that were written with numpy 2; ours are read everywhere."""
    path = str(DATA / f"vecnormalize_{writer}_{versions}.pkl")
    for cls in (VecNormalize, sb3.VecNormalize) if writer == "ours" else (VecNormalize,):
        env = cls.load(path, short_env())
        np.testing.assert_allclose(env.obs_rms.count, (42 if writer == "ours" else 41) * 16 + 1e-4)
        env.reset()
        env.step(np.zeros((N_ENVS, 1), np.float32))
        assert env.action_space.contains(env.action_space.sample())


def test_a_file_that_holds_something_else(tmp_path: Path) -> None:
    path = tmp_path / "other.pkl"
    path.write_bytes(pickle.dumps({"obs_rms": 1}))
    with pytest.raises(ValueError, match="holds a dict, not a VecNormalize"):
        VecNormalize.load(str(path), short_env())
