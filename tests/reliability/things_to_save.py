"""What this package writes under a final name, and how it is read: for tests and scripts/soak.py."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any, Callable, Dict, NamedTuple

import numpy as np
from stable_baselines3.common.save_util import load_from_pkl

from sb3_isaac import DDPG, DQN, PPO, VecNormalize, make_vec_env
from sb3_isaac.envs.portable_pickle import load_pickle


class Thing(NamedTuple):
    """One that is saved."""

    file: str
    """Name of the file that appears."""
    save: Callable[[Path], Any]
    """Saves it into a folder."""
    read: Callable[[Path], Any]
    """Reads the file; raises if it is damaged."""


def cartpoles(env_id: str = "IsaacGymCartpole-v0", n_envs: int = 8) -> Any:
    return VecNormalize(make_vec_env(env_id, n_envs, seed=0, backend="torch", device="cpu"))


def small_models() -> Dict[str, Any]:
    """One trained model of each algorithm, by its name."""
    off_policy: Dict[str, Any] = {"buffer_size": 2000, "learning_starts": 16, "batch_size": 16, "seed": 0, "device": "cpu"}
    models = {
        "ppo": PPO("MlpPolicy", cartpoles(), n_steps=8, batch_size=64, n_epochs=1, seed=0, device="cpu"),
        "dqn": DQN("MlpPolicy", cartpoles("IsaacGymCartpoleDiscrete-v0"), **off_policy),
        "ddpg": DDPG("MlpPolicy", cartpoles(), **off_policy),
    }
    for model in models.values():
        model.learn(64)
    return models


def read_zip(path: Path) -> None:
    """A whole zip file, the checksums of all parts included."""
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None and "policy.pth" in archive.namelist()


def read_npz(path: Path) -> None:
    with np.load(path) as arrays:
        assert all(arrays[name].size for name in arrays.files)


def read_any(path: Path) -> None:
    """Read a file of a run folder as what its name says.

    :raises Exception: it is damaged
    """
    readers: Dict[str, Callable[[Path], Any]] = {".zip": read_zip, ".npz": read_npz, ".pkl": lambda p: load_pickle(str(p))}
    if path.suffix in readers:
        readers[path.suffix](path)
    elif path.suffix in (".yml", ".txt"):
        assert path.read_text().strip(), "empty"
    elif path.suffix in (".png", ".gif", ".mp4", ".csv"):
        assert path.stat().st_size > 0, "empty"


def things(models: Dict[str, Any]) -> Dict[str, Thing]:
    """All kinds of files, by their names."""
    made = {
        name: Thing(f"{name}.zip", lambda folder, model=model, name=name: model.save(folder / name), read_zip)
        for name, model in models.items()
    }
    normalize = models["ppo"].get_vec_normalize_env()
    made["statistics"] = Thing(
        "vecnormalize.pkl", lambda folder: normalize.save(str(folder / "vecnormalize.pkl")), lambda p: load_pickle(str(p))
    )
    made["buffer"] = Thing("buffer.pkl", lambda folder: models["dqn"].save_replay_buffer(folder / "buffer"), load_from_pkl)
    return made


def as_bytes(model: Any) -> bytes:
    file = io.BytesIO()
    model.save(file)
    return file.getvalue()
