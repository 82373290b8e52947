"""Every file under a final name is the old one or the new one, whatever fails while it is written."""

from __future__ import annotations

import errno
import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any, Callable, Dict

import numpy as np
import pytest
import torch as th
import yaml

from sb3_isaac import PPO
from sb3_isaac.cli import main
from sb3_isaac.envs.model_files import save_whole
from sb3_isaac.evaluation import curves
from sb3_isaac.evaluation.callbacks import BatchedEvalCallback
from sb3_isaac.files import atomic
from sb3_isaac.files.atomic import LEFT_OVER, replacing, replacing_all, staging, write
from tests.reliability.faults import faulty_files
from tests.reliability.things_to_save import small_models, things


@pytest.fixture(scope="module")
def models() -> Dict[str, Any]:
    return small_models()


def files(folder: Path) -> Dict[str, bytes]:
    """All files in a folder and below, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def fail_everywhere(folder: Path, save: Callable[[], Any], error: int) -> int:
    """Save once, then again with each operation failing. Returns how many there are.

    Each time the error is raised with the name of a file in the folder, and the folder holds what it held before.
    """
    save()
    with faulty_files(folder) as layer:
        save()
    assert any(step.startswith("write") for step in layer.done), "this is not written by Python"
    first_move = [step.split()[0] for step in layer.done].index("replace")
    steps = [
        number for number, step in enumerate(layer.done) if not step.startswith("remove") and not step.endswith(folder.name)
    ]
    for number in steps:
        before = files(folder)
        for lasting in (False, True):
            with faulty_files(folder, number, error, lasting=lasting), pytest.raises(OSError) as raised:
                save()
            assert raised.value.errno == error and str(folder) in str(raised.value.filename)
            assert ".part" not in str(raised.value)
            assert files(folder).keys() == before.keys()
            if number <= first_move:  # of a model and its statistics, one is new after that
                assert files(folder) == before, layer.done[number]
    return len(steps)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("name", ["ppo", "dqn", "ddpg", "statistics", "buffer"])
def test_an_error_at_any_operation_leaves_the_old_file(name: str, error: int, models: Dict[str, Any], tmp_path: Path) -> None:
    thing = things(models)[name]
    assert fail_everywhere(tmp_path, lambda: thing.save(tmp_path), error) >= 4  # open, write, fsync, replace
    thing.read(tmp_path / thing.file)


def test_a_full_disk_is_named_with_file_and_size(models: Dict[str, Any], tmp_path: Path) -> None:
    with faulty_files(tmp_path, 1), pytest.raises(
        OSError, match=r"No space left on device: .* to write, .* free: '.*ppo\.zip'"
    ):
        models["ppo"].save(tmp_path / "ppo")  # what a user calls raises
    with faulty_files(tmp_path, 1), pytest.raises(OSError, match=r"device: \d\.\d+ kB to write"):
        models["ppo"].get_vec_normalize_env().save(str(tmp_path / "v.pkl"))
    assert files(tmp_path) == {}


def test_statistics_never_change_without_their_model(models: Dict[str, Any], tmp_path: Path) -> None:
    """The model is on the disk before the statistics take their place."""
    with faulty_files(tmp_path) as layer:
        models["ppo"].save(tmp_path / "m")
    steps = [step.split()[0] for step in layer.done]
    first = steps.index("replace")
    assert steps[first : first + 2] == ["replace", "replace"] and steps[:first].count("fsync") == 2


def test_evaluations_config_and_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the commands write: all of it through the layer, none of it directly under a final name."""
    monkeypatch.chdir(tmp_path)
    flags = "train --algo ppo --env IsaacGymCartpole-v0 -n 1024 --eval-freq 512 --eval-episodes 2 --save-freq 512 --device cpu"
    params = ["-params", "n_envs:16", "n_steps:8", "n_minibatches:1", "n_epochs:1", "normalize:True"]
    with faulty_files(tmp_path) as layer:
        assert main([*flags.split(), *params, "-f", "logs", "--verbose", "0"]) == 0
        assert main(["check", "--backend", "torch", "--device", "cpu", "--record", "record.npz"]) == 0
    opened = {step.split()[1] for step in layer.done if step.startswith("open") and not step.endswith(".part")}
    assert opened == {"0.monitor.csv"}  # a log, which grows
    replaced = {step.split()[1] for step in layer.done if step.startswith("replace")}
    assert replaced >= {"config.yml", "args.yml", "evaluations.npz", "best_model.zip", "vecnormalize.pkl", "record.npz"}
    assert replaced >= {"rl_model_512_steps.zip", "IsaacGymCartpole-v0.zip", "best_model_vecnormalize.pkl"}
    run = tmp_path / "logs" / "ppo" / "IsaacGymCartpole-v0_1"
    assert set(files(tmp_path)) >= {"record.npz", "logs/ppo/IsaacGymCartpole-v0_1/IsaacGymCartpole-v0/config.yml"}
    assert yaml.safe_load((run / "IsaacGymCartpole-v0" / "config.yml").read_text().split("\n", 1)[1])
    assert not [name for name in files(tmp_path) if ".part" in name]


def test_stock_algorithms_on_our_ids_save_whole_files(tmp_path: Path) -> None:
    flags = "train --algo sac --env IsaacGymCartpole-v0 -n 32 --eval-freq -1 --save-freq 16 --save-replay-buffer --device cpu"
    conf = tmp_path / "sac.yml"
    conf.write_text(
        "IsaacGymCartpole-v0: {policy: MlpPolicy, n_timesteps: 32, n_envs: 8, learning_starts: 100, buffer_size: 64}"
    )
    with faulty_files(tmp_path) as layer:
        assert main([*flags.split(), "-conf", str(conf), "-f", str(tmp_path), "--verbose", "0"]) == 0
    opened = {step.split()[1] for step in layer.done if step.startswith("open") and not step.endswith(".part")}
    assert opened == {"0.monitor.csv"}
    replaced = {step.split()[1] for step in layer.done if step.startswith("replace")}
    assert replaced >= {"rl_model_16_steps.zip", "IsaacGymCartpole-v0.zip", "replay_buffer.pkl"}


def test_sb3s_evaluation_of_environments_without_tensors(tmp_path: Path) -> None:
    """BatchedEvalCallback is SB3's there, whose np.savez writes under the final name."""
    import gymnasium as gym

    env = gym.make("CartPole-v1")
    model = PPO("MlpPolicy", gym.make("CartPole-v1"), n_steps=8, batch_size=8, n_epochs=1, device="cpu")
    callback = BatchedEvalCallback(env, n_eval_episodes=1, eval_freq=8, log_path=str(tmp_path), verbose=0)
    with faulty_files(tmp_path) as layer:
        model.learn(16, callback=callback)
    assert [step for step in layer.done if step.startswith("replace")] == ["replace evaluations.npz"] * 2
    assert not [step for step in layer.done if step == "open evaluations.npz"]
    with np.load(tmp_path / "evaluations.npz") as saved:
        assert saved["timesteps"].tolist() == [8, 16] and set(saved.files) == {"timesteps", "results", "ep_lengths"}


def test_pictures(tmp_path: Path) -> None:
    pyplot = curves.import_pyplot()
    figure = pyplot.figure()
    for name in ("curve.png", "curve.svg", "curve.pdf"):
        with faulty_files(tmp_path) as layer:
            curves.save_figure(figure, str(tmp_path / name))
        assert f"replace {name}" in layer.done and f"open {name}" not in layer.done
        before = files(tmp_path)
        for number, step in enumerate(layer.done):
            if not step.startswith("remove") and not step.endswith(tmp_path.name):
                with faulty_files(tmp_path, number, lasting=True), pytest.raises(OSError):
                    curves.save_figure(figure, str(tmp_path / name))
                assert files(tmp_path) == before
    pyplot.close(figure)


# -- the writer ------------------------------------------------------------------------------------------------------


def test_paths_and_open_files_as_in_sb3(models: Dict[str, Any], tmp_path: Path) -> None:
    model = models["ppo"]
    model.save(tmp_path / "new" / "a")  # folders are made
    model.save(str(tmp_path / "b.zip"))
    model.save(tmp_path / "c.model")  # any other ending stays
    with open(tmp_path / "d.zip", "wb") as file:
        model.save(file)
        assert not file.closed
    memory = io.BytesIO()
    models["dqn"].save_replay_buffer(memory)
    assert memory.getvalue()
    assert set(files(tmp_path)) == {
        "new/a.zip", "new/a_vecnormalize.pkl", "b.zip", "b_vecnormalize.pkl", "c.model", "c.model_vecnormalize.pkl", "d.zip",
    }  # fmt: skip
    for name in ("new/a", "b", "c.model", "d.zip"):
        loaded = PPO.load(tmp_path / name, device="cpu")
        assert th.equal(loaded.policy.action_net.weight, model.policy.action_net.weight)
    (tmp_path / "folder.zip").mkdir()
    with pytest.warns(UserWarning, match="is a folder"):
        model.save(tmp_path / "folder.zip")
    assert (tmp_path / "folder.zip_2").is_file()


def test_a_link_stays_one_and_rights_stay(tmp_path: Path) -> None:
    target, link = tmp_path / "target.txt", tmp_path / "link.txt"
    target.write_text("old")
    target.chmod(0o664)
    link.symlink_to(target)
    write(link, "new")
    assert link.is_symlink() and target.read_text() == "new" and target.stat().st_mode & 0o777 == 0o664
    write(os.devnull, "nothing is replaced")
    assert not os.path.isfile(os.devnull)


def test_temporary_files_are_found_by_nobody_and_old_ones_go(tmp_path: Path) -> None:
    with pytest.raises(KeyError), replacing(tmp_path / "rl_model_8_steps.zip") as name:
        Path(name).write_text("half")
        (left,) = [path.name for path in tmp_path.iterdir()]
        for pattern in ("*.zip", "rl_model_*_steps.zip", "*.pkl", "*monitor.csv", "IsaacGymCartpole-v0_[0-9]*"):
            assert list(tmp_path.glob(pattern)) == []
        raise KeyError
    assert files(tmp_path) == {}
    (tmp_path / left).write_text("left by a killed process")
    fresh = tmp_path / f".x.0123{atomic.SUFFIX}"
    fresh.write_text("being written by another one")
    then = os.stat(tmp_path / left).st_mtime - 2 * LEFT_OVER
    os.utime(tmp_path / left, (then, then))
    write(tmp_path / "new.txt", "new")
    assert set(files(tmp_path)) == {fresh.name, "new.txt"}


def test_names_as_long_as_they_may_be(tmp_path: Path) -> None:
    write(tmp_path / ("x" * 255), "whole")
    assert files(tmp_path) == {"x" * 255: b"whole"}


def test_of_several_files_none_changes_alone(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]

    def save(text: str = "new") -> None:
        with replacing_all(paths) as names:
            for name in names:
                Path(name).write_text(text)

    save("old")
    with faulty_files(tmp_path) as layer:
        save()
    save("old")
    for number in range(layer.done.index("replace a") + 1):
        with faulty_files(tmp_path, number), pytest.raises(OSError):
            save()
        assert files(tmp_path) == {"a": b"old", "b": b"old"}


def test_staging_and_save_whole(tmp_path: Path) -> None:
    write(tmp_path / "a.yml", "old")
    with pytest.raises(KeyError), staging(str(tmp_path)) as inside:
        Path(inside, "a.yml").write_text("half")
        raise KeyError
    assert files(tmp_path) == {"a.yml": b"old"}
    with staging(str(tmp_path)) as inside:
        for name in ("a.yml", "b.yml"):
            Path(inside, name).write_text("new")
    save_whole(lambda path: Path(path).write_text("x"), tmp_path / "buffer", ".pkl")
    assert files(tmp_path) == {"a.yml": b"new", "b.yml": b"new", "buffer.pkl": b"x"}
    memory = io.BytesIO()
    save_whole(lambda file: file.write(b"y"), memory, ".pkl")
    assert memory.getvalue() == b"y"


def test_a_file_that_may_not_be_written_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kept.zip"
    path.write_text("old")
    monkeypatch.setattr(os, "access", lambda *args: False)  # root may write to all
    with pytest.raises(PermissionError, match="kept.zip"):
        write(path, "new")
    assert files(tmp_path) == {"kept.zip": b"old"}


def test_stock_sb3_reads_the_zip(models: Dict[str, Any], tmp_path: Path) -> None:
    models["ppo"].save(tmp_path / "m")
    with zipfile.ZipFile(tmp_path / "m.zip") as archive:
        assert json.loads(archive.read("data"))["n_steps"] == 8
        assert archive.namelist()[:2] == ["data", "pytorch_variables.pth"]
