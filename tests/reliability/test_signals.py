"""Runs of the command line that get a signal, and go on from where it came."""

from __future__ import annotations

import csv
import os
import signal
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import pytest

from sb3_isaac.envs.checkpoints import write_checkpoint
from sb3_isaac.files import checkpoint
from sb3_isaac.zoo import resume, signals
from tests.conftest import ENV_IDS, run_python
from tests.reliability.cli_callback import VARIABLE
from tests.reliability.resume_helpers import ALGOS, Ask, make
from tests.zoo.conftest import call

PARAMS: Dict[str, List[str]] = {
    "ppo": ["n_envs:16", "n_steps:8"],
    "dqn": ["n_envs:16", "learning_starts:64", "batch_size:32", "buffer_size:800"],
    "ddpg": ["n_envs:16", "learning_starts:64", "batch_size:32", "buffer_size:800"],
}


def flags(algo: str, *more: str) -> List[str]:
    callback = "callback:'tests.reliability.cli_callback.SignalOnce'"
    given = f"train --algo {algo} --env {ENV_IDS[algo]} -n 2048 --save-freq 640 --eval-freq 512 --eval-episodes 4 --seed 3"
    given += " --device cpu --verbose 0 --env-kwargs max_episode_length:30"
    return [*given.split(), "-params", callback, *PARAMS[algo], *more]


def outcome(algo: str, run: int = 1, folder: str = ".") -> Dict[str, Any]:
    """What is in a run's files at its end, without times."""
    log = Path(folder, "logs", algo, f"{ENV_IDS[algo]}_{run}")
    found: Dict[str, Any] = {}
    for name in (ENV_IDS[algo], "best_model"):
        model = ALGOS[algo].load(log / f"{name}.zip", device="cpu")
        found[name] = [model.num_timesteps, *(p.tolist() for p in model.get_parameters()["policy"].values())]
    with np.load(log / "evaluations.npz") as evaluations:
        found["evaluations"] = {name: evaluations[name].tolist() for name in evaluations}
    with open(log / "0.monitor.csv") as file:
        found["monitor"] = [row[:2] for row in csv.reader(file)][1:]
    return found


def test_agents_come_with_the_statistics_that_were_saved_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """A run that was killed before its first evaluation has no vecnormalize.pkl, and later ones are of other agents."""
    monkeypatch.chdir(tmp_path)
    given = "--algo ppo --env IsaacGymCartpole-v0 --device cpu".split()
    assert (
        call(["train", *given, *"-n 512 --save-freq 256 --eval-freq -1 --seed 3 --verbose 0 -params normalize:True".split()])
        == 0
    )
    run = Path("logs/ppo/IsaacGymCartpole-v0_1")
    (run / "IsaacGymCartpole-v0" / "vecnormalize.pkl").unlink()
    (run / "IsaacGymCartpole-v0.zip").unlink()
    capfd.readouterr()
    assert call(["evaluate", *given, "--load-last-checkpoint", "-n", "4"]) == 0
    for trust in ([], ["--trust"]):
        assert call(["enjoy", *given, "--load-last-checkpoint", "-n", "50", "--no-render", *trust]) == 0


@pytest.mark.parametrize("algo, name, status", [("ppo", "SIGTERM", 143), ("dqn", "SIGHUP", 129), ("ddpg", "SIGINT", 0)])
def test_a_run_goes_on_after_a_signal(
    algo: str, name: str, status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    before = [signal.getsignal(number) for number in signals.HANDLED]
    for folder in ("whole", "cut"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    assert call(flags(algo)) == 0
    monkeypatch.chdir(tmp_path / "cut")
    monkeypatch.setenv(VARIABLE, f"{name}:37")
    if status:
        with pytest.raises(SystemExit) as exited:
            call(flags(algo))
        assert exited.value.code == status
    else:
        assert call(flags(algo)) == 0  # as rl_zoo3 has it
    assert f"{name}: training ends after this rollout" in capfd.readouterr().err
    assert [signal.getsignal(number) for number in signals.HANDLED] == before
    assert ALGOS[algo].load(f"logs/{algo}/{ENV_IDS[algo]}_1/{ENV_IDS[algo]}.zip", device="cpu").num_timesteps < 1000
    assert call(["train", "--resume", "--trust", "--algo", algo, "--env", ENV_IDS[algo]]) == 0
    assert outcome(algo) == outcome(algo, folder="../whole")
    assert sorted(os.listdir(f"logs/{algo}")) == [f"{ENV_IDS[algo]}_1"]
    with pytest.raises(SystemExit) as exited:
        call(["train", "--resume", "1", "--algo", algo, "--env", ENV_IDS[algo]])
    assert exited.value.code == 0 and "has finished" in capfd.readouterr().out


@pytest.mark.slow
def test_killed_runs_and_minus_i(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    """SIGKILL, which nobody hears: the last checkpoint counts, in its own folder or with -i in another."""
    (tmp_path / "whole").mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    assert call(flags("dqn")) == 0
    monkeypatch.chdir(tmp_path)
    command = flags("dqn", "keep_checkpoints:2")
    done = run_python("-m", "sb3_isaac.cli", *command, cwd=tmp_path, **{VARIABLE: "SIGKILL:93"})
    assert done.returncode == -signal.SIGKILL, done.stdout
    folder = Path("logs", "dqn", f"{ENV_IDS['dqn']}_1")
    checkpoints = sorted(folder.glob("*_steps.zip"))
    assert call([*flags("dqn"), "-i", str(checkpoints[0])]) == 0
    assert "as if it had not been interrupted" not in capfd.readouterr().out  # --verbose 0
    newest = checkpoint.newest(folder)
    assert newest is not None
    for path in newest.files.values():  # killed at the worst moment: the manifest is written, the files have not their names
        name, suffix = path[: len(newest.name)], path[len(newest.name) :]
        os.replace(path, f"{name}.new{suffix}" if not suffix.startswith(".new") else path)
    done = run_python(
        "-m",
        "sb3_isaac.cli",
        "train",
        "--resume",
        str(folder),
        "--gym-packages",
        "tests.reliability.cli_callback",
        "--verbose",
        "1",
        cwd=tmp_path,
    )
    assert done.returncode == 0 and "as if it had not been interrupted" in done.stdout, done.stdout
    assert outcome("dqn") == outcome("dqn", folder="whole")
    other, whole = outcome("dqn", run=2), outcome("dqn", folder="whole")
    assert all(other[name] == whole[name] for name in (ENV_IDS["dqn"], "evaluations"))
    assert len(list(folder.glob("*_steps.zip"))) == 2  # what --keep-checkpoints says


def test_the_second_waits_and_the_third_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    killed: List[int] = []
    received = signals.Signals()
    model = make("ppo")
    received.install(model, lambda: write_checkpoint(model, tmp_path / "saved"))
    try:
        with pytest.raises(KeyboardInterrupt):
            model.learn(16 * 8 * 50, callback=lambda locals_, globals_: _kill_once(model, 20))
        assert received.received == signal.SIGHUP and received.status == 129
        assert model.num_timesteps == 16 * 8 * 2 and (tmp_path / "saved.json").is_file()
        os.kill(os.getpid(), signal.SIGTERM)
        assert "SIGTERM: still saving; one more kills" in capfd.readouterr().err
        monkeypatch.setattr(os, "kill", lambda pid, number: killed.append(number))
        received._handle(signal.SIGTERM, None)
        assert killed == [signal.SIGTERM] and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        received.restore()


def _kill_once(model: Any, step: int) -> bool:
    if model.num_timesteps == 8 * step:
        os.kill(os.getpid(), signal.SIGHUP)
    return True


def test_learn_installs_nothing(tmp_path: Path) -> None:
    seen: List[Any] = []
    before = [signal.getsignal(number) for number in signals.HANDLED]
    callback = Ask(None, 0)
    callback._on_step = lambda: seen.append([signal.getsignal(n) for n in signals.HANDLED]) or True  # type: ignore[method-assign, func-returns-value]
    make("ppo").learn(16 * 8, callback=callback)
    assert seen[-1] == before


def test_which_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number in (1, 2, 10):
        Path(f"logs/ppo/Some-v0_{number}").mkdir(parents=True)
    assert resume.find_run(None, "ppo", "Some-v0", "logs") == Path("logs/ppo/Some-v0_10")
    assert resume.find_run("2", "ppo", "Some-v0", "logs") == Path("logs/ppo/Some-v0_2")
    assert resume.find_run("logs/ppo/Some-v0_1", "dqn", None, "logs") == Path("logs/ppo/Some-v0_1")
    for run, algo, env_id, error in (
        ("7", "ppo", "Some-v0", "no run 7 of ppo on Some-v0 in logs"),
        (None, "dqn", "Some-v0", "no run of dqn"),
        (None, "ppo", None, "needs --env"),
        ("logs/none", "ppo", "Some-v0", "no such folder"),
    ):
        with pytest.raises((FileNotFoundError, ValueError), match=error):
            resume.find_run(run, algo, env_id, "logs")
    with pytest.raises(FileNotFoundError, match="no args.yml"):
        resume.flags_of(Path("logs/ppo/Some-v0_1"))
    settings = Path("logs/ppo/Some-v0_1/Some-v0")
    settings.mkdir()
    (settings / "args.yml").write_text("!!python/object/apply:os.mkdir [ran]")
    with pytest.raises(FileNotFoundError, match="no checkpoint to go on from: train with --save-freq"):
        resume.flags_of(Path("logs/ppo/Some-v0_1"))
    with pytest.raises(ValueError, match="args.yml wants to run os.mkdir"):
        resume.saved_args(str(settings / "args.yml"))
    assert not Path("ran").exists()
