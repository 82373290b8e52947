"""Loads our models with stock SB3 where this package cannot be imported.

No part of conftest.py, because check_in_stock_sb3 there runs it as a script, in a process of its own: the package must be
out of reach before anything else is imported.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any


class Refuse:
    """An import hook to which this package does not exist."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.split(".")[0] == "sb3_isaac":
            raise ImportError("no sb3_isaac here")


def check(folder: Path) -> None:
    """Every model of the folder loads, predicts the same, holds buffers of SB3's and trains on."""
    import gymnasium as gym
    import numpy as np
    import stable_baselines3

    class Still(gym.Env):
        observation_space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)

        def __init__(self, space: Any) -> None:
            self.action_space = space

        def reset(self, seed: Any = None, options: Any = None) -> Any:
            return np.zeros(4, np.float32), {}

        def step(self, action: Any) -> Any:
            return np.ones(4, np.float32), 1.0, False, False, {}

    paths = list(folder.glob("*.zip"))
    assert paths
    for path in paths:
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
        before = {name: value.clone() for name, value in model.policy.state_dict().items()}
        model.learn(100, reset_num_timesteps=False)
        assert any(not (before[name] == value).all() for name, value in model.policy.state_dict().items()), path


if __name__ == "__main__":
    sys.path.pop(0)  # the folder of this file
    sys.meta_path.insert(0, Refuse())  # type: ignore[arg-type]
    warnings.simplefilter("error", UserWarning)
    check(Path(sys.argv[1]))
