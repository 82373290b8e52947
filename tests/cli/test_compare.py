"""sb3-isaac compare: every curve with every seed, one picture, one table; what fails does not lose the rest."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Callable, List

import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="plots need the extra 'plots'").use("Agg")
import gymnasium as gym  # noqa: E402
from matplotlib import pyplot  # noqa: E402

from sb3_isaac.cli import compare, dispatch  # noqa: E402
from tests.conftest import CONTINUOUS, DISCRETE  # noqa: E402


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def stand_in(monkeypatch: pytest.MonkeyPatch, train: Callable[[List[str]], int], said: str = "") -> List[List[str]]:
    """In the place of child processes: a function that is given their flags. Returns all flags."""
    calls: List[List[str]] = []
    original = subprocess.run

    def run(command: Any, *args: Any, **kwargs: Any) -> Any:
        if list(command[:3]) != [sys.executable, "-m", "sb3_isaac.cli"]:  # of the standard library
            return original(command, *args, **kwargs)
        calls.append(command[3:])
        return subprocess.CompletedProcess(command, train(command[3:]), stdout=said)

    monkeypatch.setattr(compare.subprocess, "run", run)
    return calls


def value(flags: List[str], name: str) -> str:
    return flags[flags.index(name) + 1]


def leave_a_run(flags: List[str]) -> int:
    """What a training leaves: evaluations at 10, 20, 30 thousand steps; PPO is solved at 20 thousand with an odd seed."""
    algo, env_id, seed = (value(flags, name) for name in ("--algo", "--env", "--seed"))
    parent = Path(value(flags, "-f"), algo)
    number = 1 + len(list(parent.glob(f"{env_id}_*")))
    run = parent / f"{env_id}_{number}"
    (run / env_id).mkdir(parents=True)
    means = [100.0, 480.0 if int(seed) % 2 else 300.0, 490.0 + int(seed)] if algo == "ppo" else [10.0, 20.0, 30.0]
    results = np.array(means)[:, None] + np.zeros((3, 4))
    np.savez(run / "evaluations.npz", timesteps=[10_000, 20_000, 30_000], results=results)
    return 0


def test_it_trains_draws_and_prints(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    drawn: List[Any] = []
    monkeypatch.setattr(pyplot, "close", drawn.append)
    calls = stand_in(monkeypatch, leave_a_run)
    leave_a_run(["train", "--algo", "ppo", "--env", CONTINUOUS, "--seed", "8", "-f", "logs"])  # an older one
    assert compare.compare(["--seeds", "3", "-n", "5000", "--device", "cpu"]) == 0
    trained = [(value(call, "--algo"), value(call, "--env"), value(call, "--seed")) for call in calls]
    pairs = [("ppo", CONTINUOUS), ("dqn", DISCRETE), ("ddpg", CONTINUOUS)]
    assert trained == [(*pair, seed) for pair in pairs for seed in "123"], "the three algorithms, one after the other"
    for call in calls:
        assert call[0] == "train" and value(call, "-n") == "5000" and value(call, "--device") == "cpu"
        assert "--num-threads" not in call
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert lines[0] == f"sb3-isaac train --algo ppo --env {CONTINUOUS} --seed 1 -f logs --device cpu -n 5000"
    assert sum(line.startswith("sb3-isaac train") for line in lines) == 9 and len(lines) == 9 + 4 + 1
    table = {line.split()[0]: line.split()[1:] for line in lines[10:13]}
    assert table[f"ppo:{CONTINUOUS}"] == ["3/3", "20,000", "/", "30,000", "492.0,", "491.0"]
    assert table[f"dqn:{DISCRETE}"] == ["0/3", "-", "30.0,", "30.0"]
    assert lines[-1] == "Wrote logs/compare.png" and Path("logs/compare.png").read_bytes().startswith(b"\x89PNG")
    labels = [text.get_text() for text in drawn[0].axes[0].get_legend().get_texts()]
    assert labels[0] == f"PPO {CONTINUOUS} (3 seeds)", "without the older run"
    assert "solved: 475" in labels


def test_a_failed_training_is_said_and_loses_nothing(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def train(flags: List[str]) -> int:
        leave_a_run(flags)
        return 1 if value(flags, "--seed") == "2" or value(flags, "--algo") == "ddpg" else 0

    stand_in(monkeypatch, train, said="Traceback ...\nsb3-isaac train: it went wrong.\n\n")
    pairs = [f"ppo:{CONTINUOUS}", f"ddpg:{CONTINUOUS}", f"ppo:{CONTINUOUS}"]
    assert compare.compare([*pairs, "-s", "3", "-f", "mine", "-o", "picture.svg"]) == 1
    out, err = capsys.readouterr()
    assert len(err.splitlines()) == 4, "twice the same curve is once"
    assert err.splitlines()[0] == f"ppo:{CONTINUOUS} with seed 2 failed (exit status 1): sb3-isaac train: it went wrong."
    assert f"ppo:{CONTINUOUS}  2/2" in out and "\nddpg" not in out
    assert "<svg" in Path("picture.svg").read_text()
    stand_in(monkeypatch, lambda flags: 0)  # leaves nothing
    with pytest.raises(RuntimeError, match="No training succeeded"):
        compare.compare([pairs[0], "-s", "2"])
    assert "failed (it left no run): it said nothing" in capsys.readouterr().err


def test_a_training_without_evaluations_has_not_failed(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def train(flags: List[str]) -> int:
        leave_a_run(flags)
        if value(flags, "--seed") == "1":
            Path("logs", "ppo", f"{CONTINUOUS}_1", "evaluations.npz").unlink()
        return 0

    stand_in(monkeypatch, train, said="Saving to logs")
    with pytest.raises(ValueError, match="no curve to draw: choose a larger -n"):
        compare.compare([f"ppo:{CONTINUOUS}", "--seeds", "1"])
    sentence = f"ppo:{CONTINUOUS} with seed 1 was trained, but no evaluation fell into so few steps: choose a larger -n\n"
    assert capsys.readouterr().err == sentence
    shutil.rmtree("logs")
    assert compare.compare([f"ppo:{CONTINUOUS}", "--seeds", "2"]) == 1
    out, err = capsys.readouterr()
    assert err == sentence and f"ppo:{CONTINUOUS}  1/1" in out


def test_the_table_is_printed_before_the_picture_is_written(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    def full(figure: Any, path: str) -> None:
        raise OSError("full")

    stand_in(monkeypatch, leave_a_run)
    monkeypatch.setattr(compare.curves, "save_figure", full)
    with pytest.raises(OSError, match="full"):
        compare.compare([f"ppo:{CONTINUOUS}", "--seeds", "1"])
    assert f"ppo:{CONTINUOUS}  1/1" in capsys.readouterr().out


def test_jobs_are_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare.os, "cpu_count", lambda: 8)
    calls = stand_in(monkeypatch, leave_a_run)
    assert compare.compare([f"ppo:{CONTINUOUS}", f"dqn:{DISCRETE}", "--jobs", "3", "--seeds", "3"]) == 0
    assert all(value(call, "--num-threads") == "2" for call in calls)
    for algo in ("ppo", "dqn"):  # seeds of one curve in order: their folders are numbered
        assert [value(call, "--seed") for call in calls if value(call, "--algo") == algo] == ["1", "2", "3"]


def test_ctrl_c_begins_no_further_training(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(flags: List[str]) -> int:
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # type: ignore[arg-type]
        time.sleep(0.3)  # rl_zoo3 saves the model, and its exit status says that all went well
        return leave_a_run(flags)

    calls, before = stand_in(monkeypatch, interrupted), set(threading.enumerate())
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever another test, or who started us, has left
    try:
        with pytest.raises(KeyboardInterrupt):
            compare.compare(["--seeds", "4"])
    finally:
        signal.signal(signal.SIGINT, handler)
    # A pool that was just starting its thread when the signal came does not wait for it, and it would go on in another test
    for thread in set(threading.enumerate()) - before:
        thread.join()
    assert len(calls) == 1


def test_mistakes_are_said_before_the_first_training(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = stand_in(monkeypatch, leave_a_run)
    Path("taken").touch()
    for argv, error, message in (
        (["--seeds", "0"], ValueError, "--seeds must be a whole number of at least 1, got 0"),
        (["--jobs", "0"], ValueError, "--jobs must be a whole number of at least 1"),
        (["-n", "0"], ValueError, "--n-timesteps must be a whole number of at least 1"),
        ([CONTINUOUS], ValueError, "named ALGO:ENV"),
        ([f"pppo:{CONTINUOUS}"], ValueError, "Unknown algorithm 'pppo' .*choose one of .*ddpg, dqn.*ppo"),
        (["ppo:IsaacGymCartpol-v0"], gym.error.UnregisteredEnv, "IsaacGymCartpole"),
        (["-o", "x.foo"], ValueError, "Cannot write a picture to x.foo: the name must end in .*png"),
        (["-o", "taken/x.png"], NotADirectoryError, "Cannot write taken/x.png: It is a file .* Name another file with -o"),
    ):
        with pytest.raises(error, match=message):
            compare.compare(argv)
    assert calls == []


def test_with_a_real_training(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """In this process, as importing everything again would take most of the time."""

    def train(flags: List[str]) -> int:
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", list(sys.argv))
            return dispatch.main(flags)

    stand_in(monkeypatch, train)
    flags = [f"ppo:{CONTINUOUS}", "--seeds", "1", "-n", "2048", "--device", "cpu"]
    assert dispatch.main(["compare", *flags]) == 0
    assert Path("logs", "ppo", f"{CONTINUOUS}_1", "evaluations.npz").is_file()
    assert f"ppo:{CONTINUOUS}  0/1" in capsys.readouterr().out
