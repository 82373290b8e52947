"""Files written before the package's layers became folders load here and go on; what is written here fits the code of then.

``tests/data/before_folders`` has files of the oldest and of the newest versions that are supported, see its README.
"""

from __future__ import annotations

import base64
import io
import json
import pickle
import shutil
import sqlite3
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any, Dict, List, Set, Tuple

import numpy as np
import pytest
import stable_baselines3
import torch as th
import yaml
from rl_zoo3.exp_manager import ExperimentManager

import sb3_isaac
from sb3_isaac.buffers import DeviceReplayBuffer, DeviceRolloutBuffer
from sb3_isaac.cli import main
from tests.data import make_old_files
from tests.data.make_old_files import OBS, make_env, outputs, transitions

DATA = Path(__file__).parent / "data" / "before_folders"
SEED_ID, PPO_ID = "IsaacGymCartpoleSeed-v0", "IsaacGymCartpole-v0"
OURS = ["ppo", "ppo_adaptive", "dqn", "ddpg"]
STOCK = ["stock_dqn", "stock_ppo"]
SETTINGS: Dict[str, Dict[str, Any]] = {
    "ppo": dict(n_minibatches=None, adaptive_lr_kl=None, batch_size=32, n_epochs=2),
    "ppo_adaptive": dict(n_minibatches=2, adaptive_lr_kl=0.01, adaptive_lr_max=0.005, spread_time_limits=True, batch_size=32),
    "dqn": dict(n_steps=3, double_q=True, per_env_epsilon=[1.0, 0.01], reward_scale=0.1, gamma=0.97),
    "ddpg": dict(n_steps=3, per_env_noise=[1.0, 0.1], shared_noise=False, reward_scale=1.0, gamma=0.97),
    "stock_dqn": dict(replay_buffer_class=DeviceReplayBuffer),
    "stock_ppo": dict(rollout_buffer_class=DeviceRolloutBuffer),
}


def versions(folder: Path) -> Tuple[Tuple[int, ...], Tuple[int, ...]]:
    """Python's and SB3's of ``python_3.8_sb3_2.4.1``."""
    _, python, _, sb3 = folder.name.split("_")
    return tuple(map(int, python.split("."))), tuple(map(int, sb3.split(".")))


PYTHON, SB3 = sys.version_info[:2], tuple(map(int, stable_baselines3.__version__.split(".")[:3]))
# SB3's own files cannot be read by an older Python, numpy or SB3
SETS = [folder for folder in sorted(DATA.glob("python_*")) if versions(folder)[0] <= PYTHON and versions(folder)[1] <= SB3]
of_each_set = pytest.mark.parametrize("folder", SETS, ids=lambda folder: folder.name)


def expected(folder: Path, name: str) -> Dict[str, np.ndarray]:
    """What the code of then found in one of its files."""
    with np.load(folder / "expected.npz") as file:
        return {key[len(name) + 1 :]: file[key] for key in file.files if key.startswith(f"{name}/")}


def algorithm(name: str) -> Any:
    package = stable_baselines3 if name.startswith("stock_") else sb3_isaac
    return getattr(package, name.replace("stock_", "").split("_")[0].upper())


def load(cls: Any, folder: Path, name: str, env: Any = None) -> Any:
    """Load a model, and have no warning of something in it that cannot be read."""
    # Before SB3 2.7 schedules were functions, and no other Python reads the pickle of a function
    functions = {"clip_range": 0.25, "lr_schedule": None, "exploration_schedule": None}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Could not deserialize.*")
        return cls.load(
            folder / f"{name}.zip",
            env,
            device="cpu",
            custom_objects=functions if versions(folder)[0] != PYTHON else None,
        )


def make_env_for(folder: Path, name: str) -> Any:
    env = make_env("IsaacGymCartpoleDiscrete-v0" if "dqn" in name else PPO_ID)
    return sb3_isaac.VecNormalize.load(str(folder / "vecnormalize.pkl"), env) if name == "ppo_adaptive" else env


def assert_outputs(model: Any, before: Dict[str, np.ndarray]) -> None:
    now = outputs(model)
    assert now.keys() == before.keys()
    for key in ("policy", "adam", "num_timesteps", "n_updates", "adapted_lr"):
        assert np.array_equal(now[key], before[key]), key
    for key in ("actions", "values"):  # another torch rounds differently
        assert now[key].shape == before[key].shape and np.allclose(now[key], before[key], atol=1e-5), key


def assert_arrays(now: Dict[str, np.ndarray], before: Dict[str, np.ndarray]) -> None:
    assert now.keys() == before.keys() and len(before) > 0
    for key in before:
        assert np.array_equal(now[key], before[key]), key


def test_there_are_files_of_this_python_or_an_older_one() -> None:
    assert [folder.name for folder in sorted(DATA.glob("python_*"))] == ["python_3.11_sb3_2.9.2", "python_3.8_sb3_2.4.1"]
    assert SETS


# -- models ----------------------------------------------------------------------------------------------------------


@of_each_set
@pytest.mark.parametrize("name", OURS + STOCK)
def test_models_load_and_train_on(folder: Path, name: str) -> None:
    before = expected(folder, name)
    assert_outputs(load(algorithm(name), folder, name), before)  # without an environment

    model = load(algorithm(name), folder, name, make_env_for(folder, name))
    assert_outputs(model, before)
    for key, value in SETTINGS[name].items():
        found = getattr(model, key)
        assert (list(found) if isinstance(value, list) else found) == value, key
    if "ppo" in name:
        assert np.isclose(model.clip_range(1.0), 0.25 if name == "ppo" or versions(folder)[0] != PYTHON else 0.2)
        assert type(model.rollout_buffer) is DeviceRolloutBuffer
    else:
        assert type(model.replay_buffer) is DeviceReplayBuffer
        assert model.replay_buffer.n_steps == (3 if name in OURS else 1)
    model.learn(128, reset_num_timesteps=False)
    after = outputs(model)
    assert after["num_timesteps"] == before["num_timesteps"] + 128 and after["n_updates"] > before["n_updates"]
    assert np.isfinite(after["policy"]).all() and 0.0 < np.abs(after["policy"] - before["policy"]).max() < 0.5
    assert (after["adapted_lr"] > 0.0) == (name == "ppo_adaptive") and after["adapted_lr"] <= 0.005


@of_each_set
@pytest.mark.parametrize("name", OURS)
def test_models_load_in_stock_sb3(folder: Path, name: str) -> None:
    stock = getattr(stable_baselines3, algorithm(name).__name__)
    model = load(stock, folder, name)
    assert type(model) is stock
    before = expected(folder, name)
    assert np.array_equal(outputs(model)["policy"], before["policy"])
    assert np.allclose(model.predict(OBS, deterministic=True)[0], before["actions"], atol=1e-5)


def test_noise_comes_back() -> None:
    noise = load(sb3_isaac.DDPG, SETS[0], "ddpg").action_noise
    assert type(noise).__name__ == "NormalActionNoise" and noise._sigma.tolist() == [0.3]


# -- buffers and statistics ------------------------------------------------------------------------------------------


@of_each_set
@pytest.mark.parametrize("name", ["dqn", "ddpg", "stock_dqn"])
def test_saved_replay_buffers_load(folder: Path, name: str) -> None:
    before = expected(folder, f"{name}_buffer")
    assert {0.0, 1.0, 2.0} == set(before["dones"].flatten())  # episodes go on, fail, run out of time
    model = load(algorithm(name), folder, name, make_env_for(folder, name))
    model.load_replay_buffer(folder / f"{name}_buffer.pkl")
    assert type(model.replay_buffer) is DeviceReplayBuffer
    assert_arrays(transitions(model.replay_buffer), before)
    model.learn(128, reset_num_timesteps=False)
    assert model.replay_buffer.pos == before["pos"] + 128 // model.n_envs
    now = transitions(model.replay_buffer)
    assert all(np.array_equal(now[key][: before["pos"] - 1], before[key][:-1]) for key in before if key != "pos")


@of_each_set
def test_pickled_replay_buffers_load(folder: Path) -> None:
    before = expected(folder, "device_replay_buffer")
    buffer = pickle.loads((folder / "device_replay_buffer.pkl").read_bytes())
    assert type(buffer) is DeviceReplayBuffer and buffer.n_steps == 3 and buffer.buffer_size == 100 and buffer.gamma == 0.97
    assert_arrays(transitions(buffer), before)
    assert th.equal(buffer.generator.get_state(), th.Generator().manual_seed(3).get_state())
    samples = buffer.sample_tensors(64)
    known = before["observations"].reshape(-1, 4)
    assert all((known == row).all(1).any() for row in samples.observations.numpy())
    assert samples.discounts is not None and np.isclose(float(samples.discounts.min()), 0.97**3)


@of_each_set
def test_pickled_rollout_buffers_load(folder: Path) -> None:
    buffer = pickle.loads((folder / "device_rollout_buffer.pkl").read_bytes())
    assert type(buffer) is DeviceRolloutBuffer and buffer.full
    before = expected(folder, "device_rollout_buffer")
    samples = {key[len("samples/") :]: before.pop(key) for key in list(before) if key.startswith("samples/")}
    assert_arrays({key: value.numpy() for key, value in buffer.tensors._asdict().items()}, before)
    assert_arrays({key: value.numpy() for key, value in buffer._get_samples(np.arange(64))._asdict().items()}, samples)
    drawn = th.cat([batch.returns for batch in buffer.get(16)])
    assert np.array_equal(np.sort(drawn.numpy()), np.sort(before["returns"].flatten()))


@of_each_set
def test_statistics_load(folder: Path) -> None:
    env = sb3_isaac.VecNormalize.load(str(folder / "vecnormalize.pkl"), make_env())
    before = expected(folder, "vecnormalize")
    assert len(before) == 6
    for key, value in before.items():
        name, part = key.split("/")
        assert np.allclose(getattr(getattr(env, name), part), value, rtol=1e-12, atol=0.0), key
    obs = env.normalize_obs_tensor(th.from_numpy(OBS)).numpy()
    by_hand = (OBS - before["obs_rms/mean"]) / np.sqrt(before["obs_rms/var"] + env.epsilon)
    assert np.allclose(obs, by_hand.clip(-10, 10), atol=1e-5)


# -- studies and run folders -----------------------------------------------------------------------------------------


def call(capfd: pytest.CaptureFixture[str], words: str, *more: str) -> str:
    """What the command prints, typed as ``sb3-isaac WORDS MORE``."""
    before = list(sys.argv)
    try:
        status = main([*words.split(), *more])
    finally:
        sys.argv = before
    out, err = capfd.readouterr()
    assert status == 0, out + err
    return out


def trials_of(file: Path) -> Dict[int, Dict[str, Any]]:
    """The complete hyperparameters of the trials in a journal or database, by their number, read without Optuna."""
    if file.suffix == ".log":
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        said = [line for line in lines if "hyperparams" in line.get("user_attr", {}) and "trial_id" in line]
        return {line["trial_id"]: line["user_attr"]["hyperparams"] for line in said}
    with sqlite3.connect(str(file)) as database:
        rows = database.execute(
            "SELECT number, value_json FROM trial_user_attributes JOIN trials USING (trial_id) WHERE key = 'hyperparams'"
        ).fetchall()
    return {number: json.loads(text) for number, text in rows}


@pytest.mark.parametrize(
    "file",
    [file for folder in sorted(DATA.glob("python_*")) for file in sorted(folder.glob("study.*"))],
    ids=lambda file: f"{file.parent.name}_{file.name}",
)
def test_studies_are_trained_from_and_added_to(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before = trials_of(file)
    assert sorted(before) == [0, 1, 2] and all("learning_rate" in trial for trial in before.values())
    monkeypatch.chdir(tmp_path)
    shutil.copy(file, tmp_path / file.name)
    storage = file.name if file.suffix == ".log" else f"sqlite:///{file.name}"
    common = f"--algo ppo --env {PPO_ID} --storage {storage} --study-name old --device cpu"
    if hasattr(ExperimentManager, "load_trial"):  # from rl_zoo3 2.6 on there is --trial-id
        call(capfd, f"train {common} --trial-id 1 -n 64 -f runs --eval-freq -1")
        config = yaml.load((tmp_path / f"runs/ppo/{PPO_ID}_1/{PPO_ID}/config.yml").read_text(), Loader=yaml.UnsafeLoader)
        assert {key: config[key] for key in before[1]} == before[1]
    call(
        capfd,
        f"optimize {common} --n-trials 1 -n 256 --no-optim-plots --n-eval-envs 4 --eval-episodes 4",
        "-params",
        "n_envs:4",
    )
    after = trials_of(tmp_path / file.name)
    assert sorted(after) == [0, 1, 2, 3] and {number: after[number] for number in before} == before


@of_each_set
def test_run_folders_are_used_and_go_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(folder / "runs", tmp_path / "runs")
    run = tmp_path / "runs" / "ppo" / f"{SEED_ID}_1"
    which = f"--algo ppo --env {SEED_ID} -f runs --device cpu"
    assert "episodes                  8\n" in call(capfd, f"evaluate {which} -n 8")
    assert "Loading" in call(capfd, f"enjoy {which} --no-render -n 50")

    # The settings of then as a hyperparameter file: its callback is named by where it was
    config = yaml.load((run / SEED_ID / "config.yml").read_text(), Loader=yaml.UnsafeLoader)
    assert config["callback"] == "sb3_isaac.reward_log.RewardLog"
    Path("old.yml").write_text(yaml.safe_dump({SEED_ID: dict(config)}))
    call(capfd, f"train {which} -conf old.yml -i {run / SEED_ID}.zip -n 960 --eval-freq -1")
    new = tmp_path / "runs" / "ppo" / f"{SEED_ID}_2"
    model = sb3_isaac.PPO.load(new / f"{SEED_ID}.zip", device="cpu")
    # rl_zoo3 counts timesteps from 0 again
    assert model.num_timesteps == 960 and model._n_updates == 1280 // 64 * 2 + 960 // 64 * 2
    assert (new / "reward_rate.csv").read_text().splitlines()[0] == (run / "reward_rate.csv").read_text().splitlines()[0]
    assert len((new / "reward_rate.csv").read_text().splitlines()) == 3  # 240 steps: two windows of 100


# -- the other way round ---------------------------------------------------------------------------------------------


class Names(pickle.Unpickler):
    """Notes what a pickle names."""

    def __init__(self, data: bytes, found: Set[str]) -> None:
        super().__init__(io.BytesIO(data))
        self.found = found

    def find_class(self, module: str, name: str) -> Any:
        self.found.add(f"{module}.{name}")
        return super().find_class(module, name)


def content(path: Path) -> Dict[str, Set[str]]:
    """What a model's file is made of: entries, attributes, which of these are pickled, classes named in pickles."""
    named: Set[str] = set()
    with zipfile.ZipFile(path) as archive:
        data = json.loads(archive.read("data"))
        entries = set(archive.namelist())
        states = {
            name: th.load(io.BytesIO(archive.read(name)), map_location="cpu") for name in entries if name.endswith(".pth")
        }
    pickled = {key for key, value in data.items() if isinstance(value, dict) and ":serialized:" in value}
    for key in pickled:
        Names(base64.b64decode(data[key][":serialized:"]), named).load()
    tensors = {f"{entry}/{key}" for entry, state in states.items() for key in (state if isinstance(state, dict) else ())}
    return {"entries": entries, "attributes": set(data), "pickled": pickled, "named": named, "tensors": tensors}


@pytest.fixture(scope="module")
def new_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same models, made by the present code."""
    folder = tmp_path_factory.mktemp("new")
    make_old_files.write_models(folder)
    return folder


NEW_ATTRIBUTES = {"observations_are_normalized", "precision"}
"""A bool, and a word or None, which SB3's load puts into the model and nothing of the old code reads."""


@pytest.mark.parametrize("name", OURS)
def test_new_models_hold_nothing_that_the_old_code_does_not_know(new_files: Path, name: str) -> None:
    new = content(new_files / f"{name}.zip")
    assert not [word for word in new["named"] if word.startswith("sb3_isaac")]
    same_sb3: List[Path] = [folder for folder in SETS if versions(folder) == (PYTHON, SB3)]
    if not same_sb3:
        pytest.skip(f"no files of Python {PYTHON} and SB3 {SB3} to compare with")
    old = content(same_sb3[0] / f"{name}.zip")
    assert new["entries"] == old["entries"] and new["tensors"] == old["tensors"]
    for kind in ("attributes", "pickled", "named"):
        assert new[kind] - old[kind] <= NEW_ATTRIBUTES


@pytest.mark.parametrize("name", ["dqn_buffer", "ddpg_buffer", "vecnormalize"])
def test_new_buffers_and_statistics_name_no_class_of_ours(new_files: Path, name: str) -> None:
    named: Set[str] = set()
    Names((new_files / f"{name}.pkl").read_bytes(), named).load()
    assert any(word.startswith("stable_baselines3") for word in named)
    assert not [word for word in named if word.startswith("sb3_isaac")]
