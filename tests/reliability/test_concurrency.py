"""Runs that start together, runs that fail, and studies whose workers die."""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, List
from unittest import mock

import pytest
import torch as th
from optuna.trial import TrialState

from sb3_isaac import PPO
from sb3_isaac.evaluation.curves import training_curve
from sb3_isaac.zoo import manager, run_folders, studies
from tests.conftest import parameters
from tests.zoo.conftest import call

ENV = "IsaacGymCartpole-v0"


def test_runs_that_start_together_have_a_folder_each(tmp_path: Path) -> None:
    (tmp_path / "ppo" / f"{ENV}_3").mkdir(parents=True)
    with ThreadPoolExecutor(10) as pool:  # all have seen the same latest run
        made = list(pool.map(run_folders.make_run_folder, [f"{tmp_path}/ppo/{ENV}_4"] * 10))
    assert sorted(made) == sorted(f"{tmp_path}/ppo/{ENV}_{n}" for n in range(4, 14))
    assert all(os.path.isdir(path) for path in made)
    assert run_folders.make_run_folder(f"{tmp_path}/ppo/{ENV}_4_some-uuid") == f"{tmp_path}/ppo/{ENV}_4_some-uuid"


def test_the_latest_run_is_the_latest_with_that_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, files in {1: [f"{ENV}.zip", "best_model.zip"], 2: ["best_model.zip"], 10: []}.items():
        folder = tmp_path / "ppo" / f"{ENV}_{number}"
        folder.mkdir(parents=True)
        for name in files:
            (folder / name).touch()

    def find(**which: Any) -> str:
        return str(run_folders.find_model(0, str(tmp_path), "ppo", ENV, **which)[1])

    assert find() == f"{tmp_path}/ppo/{ENV}_1/{ENV}.zip"
    assert "Loading latest experiment, id=1 (later ones have no such model" in capsys.readouterr().out
    assert find(load_best=True) == f"{tmp_path}/ppo/{ENV}_2/best_model.zip"
    with pytest.raises(ValueError, match="No checkpoint found"):
        find(load_last_checkpoint=True)
    with pytest.raises(ValueError, match=f"No model found .*{ENV}_2"):
        run_folders.find_model(2, str(tmp_path), "ppo", ENV)


def test_an_unfinished_run_says_what_it_has(tmp_path: Path) -> None:
    folder = tmp_path / "ppo" / f"{ENV}_1"
    folder.mkdir(parents=True)
    for name, advice in (
        (None, "train one first, or name another"),
        ("best_model.zip", "this run was not finished, take --load-best.$"),
        ("rl_model_90_steps.zip", "take --load-best or --load-last-checkpoint, or go on with sb3-isaac train --resume.$"),
    ):
        if name is not None:
            (folder / name).touch()
        for number in (0, 1):
            with pytest.raises(FileNotFoundError, match=f"No model found .*{ENV}_1/{ENV}.zip: {'.*' * bool(name)}{advice}"):
                run_folders.model_path(number, str(tmp_path), "ppo", ENV)
    (folder / "rl_model_90_steps.zip").unlink()
    with pytest.raises(FileNotFoundError, match="No checkpoint found .*train one first"):
        run_folders.model_path(1, str(tmp_path), "ppo", ENV, load_last_checkpoint=True)


def test_folders_are_no_patterns(tmp_path: Path) -> None:
    """Whatever they are called; and a file of somebody else's among the checkpoints is none."""
    folder = tmp_path / "a [1] *" / "ppo" / f"{ENV}_2"
    folder.mkdir(parents=True)
    for name in ("rl_model_90_steps.zip", "rl_model_100_steps.zip", "rl_model_old_steps.zip"):
        (folder / name).touch()
    (folder / "0.monitor.csv").write_text('#{"t_start": 0.0, "env_id": "x"}\nr,l,t\n1.0,5,0.1\n')
    for number in (0, 2):
        found = run_folders.find_model(number, str(folder.parents[1]), "ppo", ENV, load_last_checkpoint=True)
        assert found[1] == str(folder / "rl_model_100_steps.zip") and found[0].startswith("checkpoint-100-")
    assert training_curve(str(folder), "steps", 1)[1].tolist() == [1.0]


def test_two_processes_do_not_train_in_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who goes on with a run that is still under way would cut its logs and prune its checkpoints."""
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(run_folders, "PATIENCE", 0.1)
    folder = tmp_path / "ppo" / f"{ENV}_1"
    folder.mkdir(parents=True)
    resume = ["train", "--resume", "--algo", "ppo", "--env", ENV, "-f", str(tmp_path)]
    other = os.open(folder, os.O_RDONLY)  # as another process has it
    fcntl.flock(other, fcntl.LOCK_EX)
    assert call(resume) == 1
    assert f"Another process is training in {folder}: wait until it has ended" in capsys.readouterr().err
    os.close(other)  # it has ended, or was killed
    assert call(resume) == 1
    assert "it has no args.yml" in capsys.readouterr().err
    run_folders.hold(str(folder))
    run_folders.hold(f"{folder}/.")
    third = os.open(folder, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(third, fcntl.LOCK_EX | fcntl.LOCK_NB)
    run_folders.let_go()
    fcntl.flock(third, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(third)


def folders(logs: str = "logs") -> List[str]:
    return sorted(path.name for path in Path(logs, "ppo").iterdir() if path.name.startswith(ENV))


def test_a_failed_run_leaves_no_folder_and_a_diverged_one_its_last_finite_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    flags = f"--algo ppo --env {ENV} --seed 0 --device cpu".split()
    train = ["train", *flags, *"-n 1024 --eval-freq -1 -params n_envs:16 n_steps:16 n_minibatches:2".split()]
    held = []
    with monkeypatch.context() as patch:
        patch.setattr(manager, "hold", held.append)
        assert call(train) == 0
    assert held == [f"logs/ppo/{ENV}_1"]
    assert call([*train, "rollout_buffer_kwargs:{'no_such':1}"]) == 1  # found when its folder is made already
    assert call(["optimize", *flags, *"-n 512 --n-trials 1 --no-optim-plots -params n_envs:16".split()]) == 0
    Path("bad_reward.py").write_text(
        "import torch as th\n"
        "calls = []\n"
        "def at_step(n, terminated):\n"
        "    calls.append(1)\n"
        "    return th.where(terminated | (len(calls) < n), 1.0, float('inf'))\n"
        "def early(obs, actions, terminated, task):\n"
        "    return at_step(10, terminated)\n"
        "def late(obs, actions, terminated, task):\n"
        "    return at_step(60, terminated)\n"
    )
    assert call([*train, "--env-kwargs", "reward:bad_reward:early"]) == 1  # before it has learned anything
    assert folders() == [f"{ENV}_1"]
    sys.modules.pop("bad_reward")
    capsys.readouterr()
    assert call([*train, "--env-kwargs", "reward:bad_reward:late"]) == 1
    said = capsys.readouterr().err
    assert "The reward of environment" in said and "was inf in step" in said and "Training ended after" in said
    assert folders() == [f"{ENV}_1", f"{ENV}_2"]
    model = PPO.load(f"logs/ppo/{ENV}_2/{ENV}.zip", device="cpu")
    assert model._n_updates > 0 and bool(th.isfinite(parameters(model)).all())


# -- studies ---------------------------------------------------------------------------------------------------------


def make_study(path: Path) -> Any:
    return studies.open_study(str(path), "s", {"algo": "ppo", "env": ENV})


def test_a_cut_journal_is_repaired(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Wherever a crash has cut the last line, when it is opened and when another worker goes on writing."""
    path = tmp_path / "study.log"
    study = make_study(path)
    study.tell(study.ask(), 1.0)
    whole = path.read_bytes()
    last = whole[:-1].rfind(b"\n") + 1
    for end in (last + 1, last + 12, len(whole) - 1):
        path.write_bytes(whole[:end])
        capsys.readouterr()
        opened = make_study(path)
        assert path.read_bytes().startswith(whole[:last]) and path.read_bytes().endswith(b"}\n")
        assert f"Repaired {path}" in capsys.readouterr().out
        assert len(opened.trials) == 1
    path.write_bytes(whole)
    working = make_study(path)
    with open(path, "ab") as file:
        file.write(b'{"op_code":5,"worker')  # another worker is killed while this one goes on
    working.tell(working.ask(), 2.0)
    assert [trial.value for trial in make_study(path).trials] == [1.0, 2.0]
    assert all(json.loads(line) for line in path.read_bytes().splitlines())


def test_a_line_that_is_being_written_is_not_cut(tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    make_study(path)
    lock = studies.RepairingLock(str(path), studies.JOURNAL_GRACE)
    lock.acquire()
    with open(path, "ab") as file:
        file.write(b'{"op_code":2,"worker_id":"w","study_id":0,')
    with ThreadPoolExecutor(1) as pool:
        opened = pool.submit(make_study, path)  # waits for the lock
        with open(path, "ab") as file:
            file.write(b'"user_attr":{"written":1}}\n')
        lock.release()
        assert opened.result().user_attrs["written"] == 1


@pytest.mark.parametrize("text", [b"notes\nwithout an end", b'{"other": 1', b'{"op'])
def test_what_is_no_journal_is_left_alone(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "notes.log"
    path.write_bytes(text)
    if text == b'{"op':  # the first line of a journal
        make_study(path)
    else:
        with pytest.raises(studies.StorageError, match="is not a journal file"):
            make_study(path)
        assert path.read_bytes() == text


def test_trials_of_workers_that_are_gone_end(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study.log")
    here = studies.this_worker()
    child = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and its parent does not look
    workers = {
        "alive": here,
        "same number, other process": {**here, "started": "another boot 123"},
        "ended": {**here, "pid": child.pid, "started": None},
        "elsewhere": {**here, "host": "another"},
        "elsewhere, silent": {**here, "host": "another"},
        "of an older version": {"host": here["host"], "pid": here["pid"]},
    }
    for name, worker in workers.items():
        trial = study.ask()
        trial.set_user_attr("worker", worker)
        trial.set_user_attr("name", name)
    later = datetime.datetime.now() + datetime.timedelta(seconds=studies.STALE + 60)
    assert studies.fail_dead_trials(study) == 2
    with mock.patch.object(studies.datetime, "datetime", wraps=datetime.datetime) as clock:
        clock.now.return_value = later
        study.trials[3]  # has been evaluated since
        study._storage.set_trial_user_attr(study.trials[3]._trial_id, "seen", int(later.timestamp()) - 60)
        assert studies.fail_dead_trials(study) == 1
    child.wait()
    failed = {trial.user_attrs["name"] for trial in study.trials if trial.state == TrialState.FAIL}
    assert failed == {"same number, other process", "ended", "elsewhere, silent"}
