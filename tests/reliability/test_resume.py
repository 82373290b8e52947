"""Training that was interrupted and resumed is training that was not interrupted, to the last bit."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Tuple

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import VecEnvWrapper

from tests.conftest import run_python
from tests.reliability.resume_helpers import ALGOS, TOTAL, differences, everything, learn, make, rows, vec_env


def uninterrupted(algo: str, wrapped: str, folder: Path, after: int, **options: Any) -> Tuple[Any, Any]:
    """A whole training that has saved a checkpoint on its way, and its callbacks."""
    model = make(algo, wrapped, **options)
    used = learn(model, algo, wrapped, folder, after, True, TOTAL[algo])
    return model, used


CASES = [(algo, wrapped) for algo in ALGOS for wrapped in ("", "normalized")] + [("ppo", "stacked-normalized")]


@pytest.mark.parametrize("algo, wrapped", CASES)
def test_resumed_is_uninterrupted(algo: str, wrapped: str, tmp_path: Path) -> None:
    after = 16 * 8 * 3 if algo == "ppo" else 800
    model, used = uninterrupted(algo, wrapped, tmp_path, after)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed = ALGOS[algo].resume(tmp_path / "saved", vec_env(algo, wrapped, seed=99), device="cpu")
    assert resumed.num_timesteps == after
    th.manual_seed(123)
    np.random.seed(123)
    used_again = learn(resumed, algo, wrapped, tmp_path / "resumed", after, False)
    assert differences(everything(model), everything(resumed)) == []
    assert rows(tmp_path, after) == rows(tmp_path / "resumed", after) != []
    assert used[0].seen == used_again[0].seen
    for name in ("best_mean_reward", "evaluations_results", "evaluations_timesteps", "n_calls"):
        assert getattr(used[1], name) == getattr(used_again[1], name)


class OwnWrapper(VecEnvWrapper):
    """Has no tensor path, so that training runs in numpy, and something to remember."""

    def __init__(self, venv: Any) -> None:
        super().__init__(venv)
        self.drift, self.generator, self.history = np.zeros(venv.num_envs, np.float32), np.random.default_rng(0), []

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        obs, rewards, dones, infos = self.venv.step_wait()
        self.drift += 0.01 * self.generator.normal(size=len(rewards)).astype(np.float32)
        self.history.append(float(self.drift.sum()))
        return obs, rewards + self.drift, dones, infos


OPTIONS = {
    "adaptive rate, two logs in five": ("ppo", {"adaptive_lr_kl": 0.01, "n_minibatches": 4, "batch_size": None}, 3),
    "sde": ("ppo", {"use_sde": True, "sde_sample_freq": 4}, 1),
    "epsilon of each env": ("dqn", {"per_env_epsilon": (0.9, 0.05), "double_q": True}, 8),
    "gaussian noise": ("ddpg", {"action_noise": NormalActionNoise(np.zeros(1), np.ones(1)), "policy_kwargs": None}, 8),
    "noise of each env": ("ddpg", {"per_env_noise": (0.9, 0.05), "action_noise": None}, 100),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(name: str, tmp_path: Path) -> None:
    algo, options, log_interval = OPTIONS[name]
    options = {key: value for key, value in options.items() if value is not None or key == "action_noise"}
    after, made = (256, 16 * 8 * 7) if algo == "ppo" else (800, 1600)
    model = make(algo, "normalized", **options)
    learn(model, algo, "normalized", tmp_path, after, True, made, log_interval=log_interval)
    resumed = ALGOS[algo].resume(tmp_path / "saved", vec_env(algo, "normalized", seed=99), device="cpu")
    learn(resumed, algo, "normalized", tmp_path / "resumed", after, False)
    assert differences(everything(model), everything(resumed)) == []
    assert rows(tmp_path, after) == rows(tmp_path / "resumed", after)


@pytest.mark.filterwarnings("ignore:Training runs in numpy", "ignore:Training and eval env are not")
@pytest.mark.parametrize("algo", ALGOS)
def test_wrapper_in_numpy(algo: str, tmp_path: Path) -> None:
    """SB3's own code, and a wrapper whose attributes are taken as they are."""
    options = {"n_steps": 1} if algo != "ppo" else {}
    after = 256 if algo == "ppo" else 320
    model = make(algo, env=OwnWrapper(vec_env(algo)), **options)
    learn(model, algo, "", tmp_path, after, True, 2 * after)
    resumed = ALGOS[algo].resume(tmp_path / "saved", OwnWrapper(vec_env(algo, seed=99)), device="cpu")
    learn(resumed, algo, "", tmp_path / "resumed", after, False)
    for name in ("drift", "history"):
        np.testing.assert_array_equal(getattr(model.env, name), getattr(resumed.env, name))
    assert rows(tmp_path, after) == rows(tmp_path / "resumed", after)
    one, other = (th.cat([p.detach().flatten() for p in each.policy.parameters()]) for each in (model, resumed))
    assert th.equal(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("algo", ALGOS)
def test_fresh_process(algo: str, tmp_path: Path) -> None:
    after = 16 * 8 * 4 if algo == "ppo" else 800
    model, _ = uninterrupted(algo, "normalized", tmp_path, after)
    done = run_python("-m", "tests.reliability.resume_helpers", algo, "normalized", str(tmp_path), str(after))
    assert done.returncode == 0, done.stdout
    expected = everything(model)
    th.save(expected, tmp_path / "expected.pt")
    resumed = th.load(tmp_path / "resumed.pt", **({"weights_only": False} if th.__version__ >= "2" else {}))
    assert differences(expected, resumed) == []
    assert rows(tmp_path, after) == rows(tmp_path / "resumed", after)
