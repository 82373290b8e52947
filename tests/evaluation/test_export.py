"""Exported policies do what ``predict`` does, without this package; what cannot be exported leaves no file."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any, Dict

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv
from stable_baselines3.common.vec_env import VecNormalize as SB3VecNormalize
from torch import nn

import sb3_isaac
from sb3_isaac.device.finite import NotFiniteError
from sb3_isaac.evaluation import exporting
from tests.conftest import CONTINUOUS, ENV_IDS, HAS_ONNX, make_env
from tests.zoo.conftest import call

FORMATS = [".pt", pytest.param(".onnx", marks=pytest.mark.skipif(not HAS_ONNX, reason="the extra 'export'"))]
ALONE = """
import sys
import numpy as np
import onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
assert [x.name for x in session.get_inputs()] == ["obs"] and [x.name for x in session.get_outputs()] == ["action"]
np.save(sys.argv[3], session.run(["action"], {"obs": np.load(sys.argv[2])})[0])
assert not {"torch", "stable_baselines3", "sb3_isaac"} & set(sys.modules)
"""


class Pendulum(gym.Env):  # type: ignore[type-arg]
    """Bounds that are neither -1 nor 1, nor alike."""

    observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = spaces.Box(np.array([-2.0, 0.0], np.float32), np.array([2.0, 5.0], np.float32))

    def reset(self, **kwargs: Any) -> Any:
        return np.zeros(3, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(3, np.float32), 0.0, False, False, {}


def make_model(name: str) -> Any:
    algo, _, kind = name.partition(" ")
    package: Any = stable_baselines3 if kind.startswith("stock") else sb3_isaac
    if kind == "stock bounds":
        env: Any = DummyVecEnv([Pendulum])
        return getattr(package, algo.upper())("MlpPolicy", env, seed=0, device="cpu")
    env = make_env(ENV_IDS[algo])
    settings: Dict[str, Any] = {"n_steps": 8, "batch_size": 32} if algo == "ppo" else {"learning_starts": 8}
    if "normalized" in kind:
        env = (SB3VecNormalize if "stock" in kind else sb3_isaac.VecNormalize)(env, clip_obs=2.0)
    if "wide" in kind:
        settings["policy_kwargs"] = {"net_arch": [16, 24], "activation_fn": nn.ELU}
    if "discrete" in kind:
        env = make_env(ENV_IDS["dqn"])
    model = getattr(package, algo.upper())("MlpPolicy", env, seed=0, device="cpu", **settings)
    return model.learn(128)


MODELS = [
    *("ppo", "ppo normalized", "ppo wide discrete", "ppo stock normalized", "ppo stock bounds", "ddpg", "ddpg stock bounds"),
    *("ddpg normalized wide", "dqn", "dqn normalized", "dqn stock"),
]


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("name", MODELS)
def test_it_does_what_predict_does(name: str, suffix: str, tmp_path: Path) -> None:
    model = make_model(name)
    path = tmp_path / f"policy{suffix}"
    done = sb3_isaac.export(model, path)
    assert done.n_bytes == path.stat().st_size and done.difference < 1e-4 and os.listdir(tmp_path) == [path.name]
    obs = np.random.default_rng(1).normal(size=(7, *model.observation_space.shape)).astype(np.float32)
    normalize = model.get_vec_normalize_env()
    wanted, _ = model.predict(obs if normalize is None else normalize.normalize_obs(obs), deterministic=True)
    if suffix == ".onnx":
        np.save(tmp_path / "obs.npy", obs)
        files = [str(tmp_path / file) for file in (path.name, "obs.npy", "action.npy")]
        subprocess.run([sys.executable, "-c", ALONE, *files], check=True)
        found = np.load(tmp_path / "action.npy")
    else:
        loaded: Any = th.jit.load(str(path))  # type: ignore[no-untyped-call]
        found = loaded(th.as_tensor(obs)).detach().numpy()
    assert found.shape == wanted.shape and found.dtype == wanted.dtype
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_the_parameters_that_act_are_counted(tmp_path: Path) -> None:
    done = sb3_isaac.export(make_model("ppo wide discrete"), tmp_path / "a.pt")
    assert done.n_parameters == (4 * 16 + 16) + (16 * 24 + 24) + (24 * 3 + 3)
    assert (done.obs_shape, done.action_shape) == ((4,), ())
    content = (tmp_path / "a.pt").read_bytes()
    assert len(content) < 4 * done.n_parameters + 10_000, "without the critic"
    with zipfile.ZipFile(tmp_path / "a.pt") as file:
        assert not any(b".py" in file.read(name) for name in file.namelist()), "no names of this machine's files"


def test_a_loaded_model_brings_its_statistics(tmp_path: Path) -> None:
    model = make_model("ppo normalized")
    model.save(tmp_path / "model")
    loaded = sb3_isaac.load(tmp_path / "model", device="cpu")
    sb3_isaac.export(model, tmp_path / "a.pt")
    sb3_isaac.export(loaded, tmp_path / "b.pt")
    a, b = (th.jit.load(str(tmp_path / name)) for name in ("a.pt", "b.pt"))  # type: ignore[no-untyped-call]
    obs = th.randn(5, 4)
    th.testing.assert_close(a(obs), b(obs))
    with pytest.warns(UserWarning, match="statistics"):
        bare = sb3_isaac.PPO.load(tmp_path / "model", env=make_env(), device="cpu")
    with pytest.raises(ValueError, match=r"statistics are missing: load it with sb3_isaac\.load"):
        sb3_isaac.export(bare, tmp_path / "c.pt")
    assert not (tmp_path / "c.pt").exists()


class Restless(stable_baselines3.common.policies.ActorCriticPolicy):
    """Acts by chance, whatever is asked of it."""

    def _predict(self, observation: Any, deterministic: bool = False) -> th.Tensor:
        return super()._predict(observation, deterministic) + th.randn(())


def test_what_cannot_be_exported_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("ppo")

    def error(path: Any, kind: Any = ValueError, of: Any = model) -> str:
        with pytest.raises(kind) as raised:
            sb3_isaac.export(of, tmp_path / path)
        return str(raised.value)

    assert "must end in .onnx, .pt, .ts" in error("policy.zip")
    assert "takes a model, not a path" in error("policy.pt", of="agent.zip")
    assert "there is no folder" in error("missing/policy.pt", FileNotFoundError)
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert "needs onnx" in error("policy.onnx", ImportError)
    monkeypatch.undo()
    restless = sb3_isaac.PPO(Restless, make_env(), n_steps=8, batch_size=32, device="cpu")
    assert "differ from those of predict" in error("policy.pt", of=restless)
    images = stable_baselines3.PPO("CnnPolicy", DummyVecEnv([_Pixels]), n_steps=8, batch_size=8, device="cpu")
    assert "no images" in error("policy.pt", of=images)
    model.policy.action_net.bias.data.fill_(np.nan)
    assert "not finite" in error("policy.pt", NotFiniteError)
    assert os.listdir(tmp_path) == []


class _Pixels(Pendulum):
    observation_space = spaces.Box(0, 255, (36, 36, 3), np.uint8)  # type: ignore[assignment]

    def reset(self, **kwargs: Any) -> Any:
        return np.zeros((36, 36, 3), np.uint8), {}


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    given = f"--algo ppo --env {CONTINUOUS} --device cpu".split()
    assert call(["train", *given, *"-n 2048 --eval-freq -1 --verbose 0".split()]) == 0
    capsys.readouterr()
    assert call(["export", *given, "-o", "policy.pt"]) == 0
    printed = capsys.readouterr().out
    assert "policy.pt" in printed and "obs (N, 4) float32" in printed and "action (N, 1) float32" in printed
    assert (tmp_path / "policy.pt").is_file() and len(printed[printed.index("model ") :].splitlines()) == 5
    assert call(["export", *given]) == 0
    assert len(list((tmp_path / "logs" / "ppo" / f"{CONTINUOUS}_1").glob("*.pt"))) == 1
    assert call(["export", *given, "-o", "policy.txt"]) == 1
    assert "must end in" in capsys.readouterr().err
    assert exporting.N_CHECKED >= 100
