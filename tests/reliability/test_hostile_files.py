"""Nothing that is in a run folder runs when the folder is opened, unless --trust says so."""

from __future__ import annotations

import argparse
import contextlib
import inspect
import json
import math
import pickle
import shutil
import time
import zipfile
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import optuna
import pytest
import yaml
from rl_zoo3.utils import StoreDict
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.save_util import load_from_zip_file

import sb3_isaac
from sb3_isaac.files import checkpoint, plain_state, safe_pickle
from sb3_isaac.files.trust import UntrustedFileError
from sb3_isaac.zoo import manager, resume
from tests.conftest import make_env, run_python
from tests.reliability import hostile
from tests.reliability.hostile import (
    PICKLES,
    RUNS,
    Run,
    flags,
    make_run,
    named,
    pickled,
    rewrite,
    text,
    with_config,
)
from tests.reliability.hostile import (
    call as call_of,
)
from tests.reliability.resume_helpers import Ask, make, vec_env
from tests.zoo.conftest import call

HAS_TRIAL_ID = "trial_id" in inspect.signature(manager.ExperimentManager.__init__).parameters
needs_trial_id = pytest.mark.skipif(not HAS_TRIAL_ID, reason="rl_zoo3 2.6 and newer")
STEPS = {"algo": "PPO", "num_timesteps": 16, "total_timesteps": 32, "missing": [], "logs": {}}
SB3_RUNS_PTH = "weights_only=True" not in inspect.getsource(load_from_zip_file)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Dict[str, Run]:
    logs = tmp_path_factory.mktemp("runs")
    return {algo: make_run(logs, algo) for algo in ("ppo", "dqn")}


@pytest.fixture
def run(runs: Dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A copy of the run of PPO."""
    return copied(runs["ppo"], tmp_path, monkeypatch)


def copied(original: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.syspath_prepend(str(tmp_path))  # where the attackers' modules are
    logs = tmp_path / "logs"
    shutil.copytree(original.logs, logs)
    folder = logs / original.algo / original.folder.name
    return Run(logs, original.algo, original.env_id, folder, folder / original.env_id)


@pytest.mark.parametrize("way", PICKLES)
def test_a_pickle_runs_nothing(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker, path = tmp_path / "marker", tmp_path / "vecnormalize.pkl"
    path.write_bytes(PICKLES[way](str(marker)))
    with pytest.raises(UntrustedFileError, match=r"vecnormalize.pkl wants to run .*trust=True"):
        sb3_isaac.VecNormalize.load(str(path), make_env(n_envs=2))
    assert not marker.exists()


@pytest.mark.parametrize("command", ["evaluate", "enjoy", "export"])
@pytest.mark.parametrize("way", RUNS)
def test_opening_a_run_runs_nothing(way: str, command: str, run: Run, tmp_path: Path, capsys: Any) -> None:
    marker = tmp_path / "marker"
    RUNS[way](run, str(marker))
    status = call(flags(run, command))
    assert not marker.exists()
    if status != 0:  # otherwise it was not needed, and left out
        error = capsys.readouterr().err
        assert error.startswith(f"sb3-isaac {command}: {run.logs}") or ".pth in " in error or "config.yml" in error
        assert "wants to run" in error and "--trust" in error and error.count("\n") == 1


def makes_marker(marker: Path, opens: Any) -> bool:
    try:
        opens()
    except Exception:  # what is made is of no use: the harm is done
        pass
    deadline = time.monotonic() + 60.0  # a process may be slow to begin
    while not marker.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return marker.exists()


@pytest.mark.parametrize(
    "way", [way for way in PICKLES if way != "a random generator" or np.lib.NumpyVersion(np.__version__) >= "1.24.0"]
)
def test_the_same_pickle_runs_if_it_is_trusted(way: str, tmp_path: Path) -> None:
    """Or else it would be no test of the one above."""
    marker, path = tmp_path / "marker", tmp_path / "vecnormalize.pkl"
    path.write_bytes(PICKLES[way](str(marker)))
    assert makes_marker(marker, lambda: sb3_isaac.VecNormalize.load(str(path), make_env(n_envs=2), trust=True))


@pytest.mark.parametrize("way", [way for way in RUNS if way not in hostile.PTH or SB3_RUNS_PTH])
def test_the_same_run_runs_it_with_trust(way: str, run: Run, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    RUNS[way](run, str(marker))
    assert makes_marker(marker, lambda: call([*flags(run, "evaluate"), "--trust"]))


# -- other ways to open files -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["video", "record_video"])
def test_filming_runs_nothing(command: str, run: Run, tmp_path: Path, capsys: Any) -> None:
    for module in ("pygame", "imageio_ffmpeg") if command == "video" else ("pygame", "moviepy"):
        pytest.importorskip(module)
    for number, way in enumerate(("zip: policy_class", "config: normalize", "args: a value", "statistics: within")):
        marker = tmp_path / f"marker{number}"
        RUNS[way](run, str(marker))
        assert call(flags(run, command)) == 1 and not marker.exists()
        assert "wants to run" in capsys.readouterr().err


@pytest.mark.slow
def test_rl_zoo3s_own_command_runs_nothing(run: Run, tmp_path: Path) -> None:
    """It imports us when it has begun. What is harmful is not needed here, so that it plays."""
    markers = [tmp_path / f"marker{number}" for number in range(4)]
    rewrite(run, {"unheard_of": hostile._value(str(markers[0])), "learning_rate": hostile._value(str(markers[1]))})
    with_config(
        run, callback=hostile.APPLY.format(str(markers[2])), policy_kwargs=f'"{hostile.PYTHON.format(str(markers[3]))}"'
    )
    argv = ["-m", "rl_zoo3.enjoy", *flags(run, "enjoy")[1:], "--gym-packages", "sb3_isaac.zoo"]
    done = run_python(*argv, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert not any(marker.exists() for marker in markers)


@pytest.mark.parametrize("place", ["zip", "statistics", "replay buffer"])
def test_going_on_with_a_trained_agent_runs_nothing(
    place: str, runs: Dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    run = copied(runs["dqn"], tmp_path, monkeypatch)
    marker = tmp_path / "marker"
    if place == "zip":
        rewrite(run, {"policy_kwargs": hostile._value(str(marker))})
    else:
        path = run.settings / "vecnormalize.pkl" if place == "statistics" else run.folder / "replay_buffer.pkl"
        path.write_bytes(hostile._value(str(marker)))
    more = [
        "--algo",
        "dqn",
        "--env",
        run.env_id,
        "-f",
        str(tmp_path / "new"),
        "-n",
        "32",
        "--device",
        "cpu",
        "--eval-freq",
        "-1",
    ]
    argv = ["train", "-i", str(run.zip), *more, "-params", "n_envs:2", "learning_starts:8", "buffer_size:100"]
    assert call(argv) == 1 and not marker.exists()
    error = capsys.readouterr().err
    assert "wants to run posix.mkdir" in error and "--trust" in error and str(run.folder) in error
    call([*argv, "--trust"])
    assert marker.exists()


@pytest.mark.parametrize("way", hostile.RESUMED)
def test_resuming_a_run_runs_nothing(way: str, run: Run, tmp_path: Path, capsys: Any) -> None:
    marker = tmp_path / "marker"
    hostile.RESUMED[way](run, str(marker))
    checkpoint.write(run.folder / "rl_model_16_steps", {"model": lambda file: file.write(run.zip.read_bytes())}, STEPS)
    assert call(["train", "--resume", str(run.folder)]) == 1 and not marker.exists()
    assert capsys.readouterr().err.count("\n") == 1  # what was left out is followed by: the checkpoint has no state


def test_the_state_of_a_checkpoint_names_generators_and_no_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    called: List[Any] = []
    monkeypatch.setattr(np.random, "test", lambda: called.append(1))  # runs numpy's tests, and what pytest finds here
    packed = plain_state.Packer().pack(np.random.Generator(np.random.PCG64(3)))
    assert plain_state.Unpacker().unpack(packed).integers(1000) == np.random.Generator(np.random.PCG64(3)).integers(1000)
    packed["value"]["value"][0][1] = "test"
    with pytest.raises(ValueError, match="an unknown random generator: 'test'"):
        plain_state.Unpacker().unpack(packed)
    assert not called


def test_the_state_of_a_checkpoint_says_nothing_about_paths(tmp_path: Path) -> None:
    """Or a stranger's would have files written wherever it likes."""
    model = make("ppo")
    model.learn(256, callback=[CheckpointCallback(16, str(tmp_path / "own")), Ask(tmp_path / "saved", 128, draws=False)])
    state = plain_state.load(str(tmp_path / "saved_state.pt"))
    saved = next(entry for entry in state["callbacks"] if entry["class"] == "CheckpointCallback")
    saved["state"]["save_path"] = str(tmp_path / "elsewhere")
    state["model"]["tensorboard_log"] = str(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    _replace_state(tmp_path / "saved", state)
    resumed = sb3_isaac.PPO.resume(tmp_path / "saved", vec_env("ppo"), device="cpu")
    resumed.learn(callback=[CheckpointCallback(16, str(tmp_path / "own")), Ask(None, 0, draws=False)])
    assert resumed.num_timesteps == 256 and resumed.tensorboard_log is None
    assert list((tmp_path / "own").iterdir()) and not list((tmp_path / "elsewhere").iterdir())


def _replace_state(path: Path, state: Dict[str, Any]) -> None:
    found = checkpoint.read(path)
    assert found is not None
    model = Path(found.files["model"]).read_bytes()
    writers = {"model": lambda file: file.write(model), "state": lambda file: plain_state.save(state, file)}
    checkpoint.write(path, writers, {key: value for key, value in found.info.items() if key != "format"})


def test_what_a_run_goes_on_with(run: Run) -> None:
    """Whatever its command line said is said again; what another tool has added is not."""
    env_kwargs = {"max_cart_speed": math.inf, "pole_length": 1e-7, "x": [1, (2,), {"a": None, 3: "it's"}], "y": True}
    said = {"algo": "ppo", "env": run.env_id, "env_kwargs": env_kwargs, "seed": 3, "progress": True, "track": False}
    (run.settings / "args.yml").write_text(
        yaml.dump({**said, "device": "cpu", "n_trials": 500, "x y": 1, "wandb_tags": ["a"]})
    )
    checkpoint.write(run.folder / "rl_model_16_steps", {"model": lambda file: file.write(b"x")}, STEPS)
    flags = resume.flags_of(run.folder) or []
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--env-kwargs", nargs="+", action=StoreDict)
    args, rest = parser.parse_known_args(flags)
    assert args.env_kwargs == env_kwargs
    words = ["--seed=3", "--progress", "--algo=ppo", f"--env={run.env_id}", "--device=cpu", "--wandb-tags", "a"]
    assert sorted(rest[:-4]) == sorted(words) and rest[-2:] == ["-i", str(run.folder / "rl_model_16_steps.zip")]
    (run.settings / "args.yml").write_text(yaml.dump({**said, "track": True}))
    with pytest.raises(UntrustedFileError, match="wants to run Weights & Biases, which --track may name"):
        resume.flags_of(run.folder)
    assert "--track" in (resume.flags_of(run.folder, ["--track"]) or [])
    (run.settings / "args.yml").write_text(yaml.dump({**said, "seed": [1, 2]}))
    with pytest.raises(ValueError, match=r"args.yml cannot be read: its seed is \[1, 2\], and should be of the kind int"):
        resume.flags_of(run.folder)
    (run.settings / "args.yml").write_text(yaml.dump({**said, "n_timesteps": 500}))
    assert "--n-timesteps=500" in (resume.flags_of(run.folder) or [])
    assert "--n-timesteps=500" not in (resume.flags_of(run.folder, ["-params", "n_timesteps:60"]) or [])
    (run.settings / "config.yml").unlink()
    with pytest.raises(FileNotFoundError, match="has lost its config.yml, and with it the run's hyperparameters"):
        resume.flags_of(run.folder)


@pytest.mark.parametrize("algo", ["ppo", "dqn"])
def test_loading_in_python_runs_nothing(
    algo: str, runs: Dict[str, Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copied(runs[algo], tmp_path, monkeypatch)
    marker = tmp_path / "marker"
    cls: Any = getattr(sb3_isaac, algo.upper())
    model = cls.load(run.zip, device="cpu")
    rewrite(run, {"policy_class": hostile._value(str(marker))})
    for load in (sb3_isaac.load, lambda path, **kwargs: cls.load(path, trust=False, **kwargs)):
        with pytest.raises(UntrustedFileError, match=r"zip \(in its entry 'policy_class'\) wants to run posix.mkdir"):
            load(run.zip, device="cpu")
    (run.folder / f"{run.env_id}_vecnormalize.pkl").write_bytes(hostile._value(str(marker)))
    rewrite(run, {"policy_class": pickle.dumps(model.policy_class)})
    for env in (None, make_env(run.env_id, n_envs=2)):
        with pytest.raises(UntrustedFileError, match="_vecnormalize.pkl wants to run posix.mkdir"):
            sb3_isaac.load(run.zip, env, device="cpu")
    if algo == "dqn":
        (run.folder / "replay_buffer.pkl").write_bytes(hostile._value(str(marker)))
        with pytest.raises(UntrustedFileError, match="replay_buffer.pkl wants to run posix.mkdir"):
            model.load_replay_buffer(run.folder / "replay_buffer.pkl")
    assert not marker.exists()
    with contextlib.suppress(Exception):
        sb3_isaac.load(run.zip, device="cpu", trust=True)
    assert marker.exists()


def test_plots_run_nothing(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    marker = tmp_path / "marker"
    objects = np.array([hostile.Evil(str(marker))], dtype=object)
    np.savez(run.folder / "evaluations.npz", timesteps=objects, results=objects)
    argv = ["plot", f"ppo:{run.env_id}", "-f", str(run.logs), "-o", str(tmp_path / "plot.png")]
    assert call(argv) == 1 and not marker.exists()


@pytest.mark.parametrize("key", ["policy_kwargs", "normalize", "monitor_kwargs"])
def test_texts_of_a_hyperparameter_file_are_no_code(key: str, tmp_path: Path, capsys: Any) -> None:
    marker = tmp_path / "marker"
    entry = {
        "policy": "MlpPolicy",
        "n_timesteps": 16,
        "n_envs": 2,
        "n_steps": 4,
        "batch_size": 8,
        key: hostile.PYTHON.format(str(marker)),
    }
    (tmp_path / "ppo.yml").write_text(json.dumps({"IsaacGymCartpole-v0": entry}))
    argv = ["train", "--algo", "ppo", "--env", "IsaacGymCartpole-v0", "-conf", str(tmp_path / "ppo.yml"), "-f", str(tmp_path)]
    assert call([*argv, "--device", "cpu"]) == 1 and not marker.exists()
    assert f"ppo.yml or -params (in its entry '{key}') wants to run" in capsys.readouterr().err
    assert makes_marker(marker, lambda: call([*argv, "--device", "cpu", "--trust"]))


@needs_trial_id
@pytest.mark.parametrize(
    "hyperparams",
    [
        {"policy_kwargs": "__import__('os').mkdir({marker!r})"},
        {"env_wrapper": {"pydoc.pipepager": {"cmd": "mkdir {marker}"}}},
        {"callback": [{"os.mkdir": {"path": "{marker}"}}]},
        {"policy": "os.mkdir"},
        {"env_kwargs": {"reward": "os:mkdir"}},
    ],
    ids=lambda entry: next(iter(entry)),
)
def test_the_trials_of_a_study_run_nothing(hyperparams: Dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    marker = tmp_path / "marker"
    filled = json.loads(json.dumps(hyperparams).replace("{marker!r}", f"'{marker}'").replace("{marker}", str(marker)))
    storage = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(storage=storage, study_name="s")
    study.set_user_attr("purpose", {"algo": "ppo", "env": "IsaacGymCartpole-v0"})
    attributes = {"hyperparams": {"n_envs": 2, "policy": "MlpPolicy", "n_timesteps": 64, **filled}}
    study.add_trial(optuna.trial.create_trial(value=1.0, user_attrs=attributes))
    argv = ["train", "--algo", "ppo", "--env", "IsaacGymCartpole-v0", "-f", str(tmp_path), "--device", "cpu"]
    assert call([*argv, "--storage", storage, "--study-name", "s", "--trial-id", "0"]) == 1 and not marker.exists()
    assert "wants to run" in capsys.readouterr().err


@needs_trial_id
def test_a_trial_may_name_what_ones_own_file_names(tmp_path: Path, capsys: Any) -> None:
    marker = tmp_path / "marker"
    storage = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(storage=storage, study_name="s")
    study.set_user_attr("purpose", {"algo": "ppo", "env": "IsaacGymCartpole-v0"})
    entry = {"policy": "MlpPolicy", "n_timesteps": 16, "n_envs": 2, "n_steps": 4, "batch_size": 8}
    entry["callback"] = [{"os.mkdir": {"path": str(marker)}}]
    study.add_trial(optuna.trial.create_trial(value=1.0, user_attrs={"hyperparams": entry}))
    (tmp_path / "ppo.yml").write_text(json.dumps({"IsaacGymCartpole-v0": entry}))
    argv = ["train", "--algo", "ppo", "--env", "IsaacGymCartpole-v0", "-conf", str(tmp_path / "ppo.yml"), "-f", str(tmp_path)]
    argv += ["--device", "cpu", "--storage", storage, "--study-name", "s", "--trial-id", "0"]
    assert makes_marker(marker, lambda: call(argv)) and "wants to run" not in capsys.readouterr().err


# -- what would not run code by itself, but is as bad ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "way, body",
    {
        "a class gets attributes": named("stable_baselines3.common.running_mean_std", "RunningMeanStd")
        + b"(N}X\x06\x00\x00\x00updateK\x01stb",
        "an array's address": named("stable_baselines3.common.running_mean_std", "RunningMeanStd")
        + b")\x81}X\x13\x00\x00\x00__array_interface__K\x01sb",
        "a subclass of arrays": call_of(
            named("numpy.core.multiarray", "_reconstruct"), named("numpy", "dtype"), b"K\x00\x85", text("b")
        ),
        "an extension": b"\x82\x01",
        "a constructor": call_of(named("stable_baselines3.common.buffers", "ReplayBuffer"), b"K\x01"),
        "an enumeration": call_of(named("stable_baselines3.common.type_aliases", "TrainFrequencyUnit"), text("A"), text("B")),
    }.items(),
)
def test_refused_as_well(way: str, body: bytes) -> None:
    with pytest.raises(UntrustedFileError, match="file wants to run"):
        safe_pickle.loads(pickled(body), "file")


def test_nobody_changes_the_flags_of_a_dtype() -> None:
    """Or numpy would take the numbers of a buffer for the addresses of objects."""
    state = b"(K\x03X\x01\x00\x00\x00|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    dtype = call_of(named("numpy", "dtype"), text("O8"), b"\x89", b"\x88") + state
    assert safe_pickle.loads(pickled(dtype), "file").hasobject
    buffer = call_of(named("numpy.core.numeric", "_frombuffer"), b"C\x08AAAAAAAA", dtype, b"K\x01\x85", text("C"))
    with pytest.raises(UntrustedFileError, match="a buffer of objects"):
        safe_pickle.loads(pickled(buffer), "file")


def test_a_zip_bomb_is_not_unpacked(run: Run) -> None:
    with zipfile.ZipFile(run.zip, "a", zipfile.ZIP_DEFLATED) as archive, archive.open("bomb.pth", "w") as member:
        for _ in range(110):
            member.write(bytes(2**20))
    with pytest.raises(ValueError, match="would become 11[0-9],[0-9,]+: no saved agent is packed so tightly"):
        sb3_isaac.load(run.zip, device="cpu")


def test_members_cannot_lead_out_of_the_zip(run: Run, tmp_path: Path) -> None:
    rewrite(run, {}, {"../../outside.pth": b"x", "/tmp/outside.pth": b"x", "__class__.pth": b"x", "a/b.pth": b"x"})
    sb3_isaac.load(run.zip, device="cpu")
    assert not list(tmp_path.rglob("outside*"))
