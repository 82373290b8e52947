"""Models of ours in a process with stock SB3, in which this package cannot be imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

SCRIPT = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "sb3_isaac":
            raise ImportError("no sb3_isaac here")
sys.meta_path.insert(0, Refuse())
import warnings; warnings.simplefilter("error", UserWarning)
import numpy as np, gymnasium as gym, stable_baselines3
from pathlib import Path

class Still(gym.Env):
    observation_space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
    def __init__(self, space): self.action_space = space
    def reset(self, seed=None, options=None): return np.zeros(4, np.float32), {}
    def step(self, action): return np.ones(4, np.float32), 1.0, False, False, {}

for path in Path(sys.argv[1]).glob("*.zip"):
    data = np.load(path.with_suffix(".npz"))
    algorithm = getattr(stable_baselines3, str(data["algo"]))
    model = algorithm.load(path, device="cpu")
    assert np.allclose(model.predict(data["obs"], deterministic=True)[0], data["actions"], atol=1e-5), path
    buffer = "rollout" if algorithm is stable_baselines3.PPO else "replay"
    made = getattr(model, f"{buffer}_buffer_class") or type(getattr(model, f"{buffer}_buffer"))
    assert made.__module__ == "stable_baselines3.common.buffers", made
    if buffer == "replay":
        assert type(model.replay_buffer).__module__ == "stable_baselines3.common.buffers"
        model.load_replay_buffer(path.with_suffix(".pkl"))
        assert model.replay_buffer.size() == data["rows"]
    model = algorithm.load(path, Still(model.action_space), device="cpu", batch_size=16)
    before = {k: v.clone() for k, v in model.policy.state_dict().items()}
    model.learn(100, reset_num_timesteps=False)
    assert any(not (before[k] == v).all() for k, v in model.policy.state_dict().items()), path
"""


def save(model: Any, folder: Path, name: str) -> None:
    """Write the model, its replay buffer if it has one, and what it predicts, for :func:`check`."""
    obs = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    data = {"algo": type(model).__name__, "obs": obs, "actions": model.predict(obs, deterministic=True)[0]}
    model.save(folder / f"{name}.zip")
    if hasattr(model, "save_replay_buffer"):
        model.save_replay_buffer(folder / f"{name}.pkl")
        data["rows"] = model.replay_buffer.size()
    np.savez(folder / f"{name}.npz", **data)


def check(folder: Path) -> None:
    """Whether stock SB3 loads all models in the folder, predicts the same, holds buffers of its own and trains on."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    command = [sys.executable, "-c", SCRIPT, str(folder)]
    done = subprocess.run(command, env=env, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
