"""The console command finds each of its commands."""

from __future__ import annotations

import importlib
import importlib.machinery
import subprocess
import sys
from pathlib import Path
from typing import Any, List

import pytest

import sb3_isaac
from sb3_isaac.cli import dispatch
from tests.conftest import CONTINUOUS, child_environment, run_python


@pytest.mark.parametrize("command", list(dispatch.COMMANDS))
def test_every_command_lists_its_flags(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    with pytest.raises(SystemExit) as stop:
        dispatch.main([command, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "%%" not in out
    assert f"usage: sb3-isaac {command} " in out and "-h, --help" in out


def test_version(capsys: Any) -> None:
    assert dispatch.main(["--version"]) == 0
    assert capsys.readouterr().out == f"sb3_isaac {sb3_isaac.__version__}\n"


@pytest.mark.parametrize(
    "flags, missing, packages",
    [
        (["video", "--env", CONTINUOUS], ["pygame"], "pygame"),
        (["video", f"--env={CONTINUOUS}"], ["pygame", "imageio_ffmpeg"], "pygame imageio-ffmpeg"),
        (["video", "--env", "CartPole-v1"], ["pygame", "imageio_ffmpeg"], "imageio-ffmpeg"),
        (["video", "--env", "mjlab:Mjlab-Cartpole-Balance"], ["pygame", "imageio_ffmpeg"], "imageio-ffmpeg"),
        (["enjoy", "--env", "mjlab:Mjlab-Cartpole-Balance"], ["pygame"], "pygame"),
        (["record_video", "--env", CONTINUOUS], ["moviepy"], "moviepy"),
        (["record_video", "--env", CONTINUOUS], ["imageio_ffmpeg"], "imageio-ffmpeg"),
        (["enjoy", "--env", CONTINUOUS], ["pygame"], "pygame"),
        (["plot", f"ppo:{CONTINUOUS}"], ["matplotlib"], "matplotlib"),
        (["compare"], ["matplotlib"], "matplotlib"),
        (["enjoy", "--env", CONTINUOUS, "--no-render"], ["pygame"], None),
        (["video", "--help"], ["pygame"], None),
        (["evaluate", "--env", CONTINUOUS], ["pygame", "matplotlib"], None),
    ],
)
def test_missing_packages_are_named_before_anything_is_loaded(
    flags: List[str], missing: List[str], packages: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def find_spec(name: str) -> Any:
        return None if name in missing else importlib.machinery.ModuleSpec(name, None)

    def load(name: str) -> None:
        raise RuntimeError(f"loads {name}")

    monkeypatch.setattr(dispatch.importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(dispatch.importlib, "import_module", load)
    assert dispatch.main(flags) == 1
    err = capsys.readouterr().err
    if packages is None:
        assert "loads sb3_isaac." in err
    else:
        assert err.rstrip().endswith(f"with the extra 'plots': pip install {packages}"), err


def test_enjoy_shows_many_of_our_environments() -> None:
    flags = ["--algo", "ppo", "--env", CONTINUOUS]
    assert dispatch._watch_flags(flags) == ["--n-envs", "16", "-f", "logs", *flags]
    assert dispatch._watch_flags([*flags, "--no-render"]) == ["-f", "logs", *flags, "--no-render"]
    assert dispatch._watch_flags([*flags, "--no-rend"]) == ["-f", "logs", *flags, "--no-rend"], "argparse takes it"
    assert dispatch._record_flags(flags) == ["-f", "logs", *flags]
    other = ["--algo", "ppo", "--env", "CartPole-v1"]
    assert dispatch._watch_flags(other) == dispatch._record_flags(other) == other


def test_defaults_of_enjoy_can_be_overridden(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: List[List[str]] = []
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(dispatch.runpy, "run_module", lambda *args, **kwargs: seen.append(list(sys.argv)))
    assert dispatch.main(["enjoy", "--env", CONTINUOUS, "-f", "mine", "--n-envs", "2", "--no-render"]) == 0
    assert seen == [["sb3-isaac enjoy", "-f", "logs", "--env", CONTINUOUS, "-f", "mine", "--n-envs", "2", "--no-render"]]


@pytest.mark.slow
def test_training_does_not_wait_for_plots_and_databases(tmp_path: Path) -> None:
    """Their imports took a fifth of the time until training begins. The plots come when they are called."""
    code = (
        "import sys, sb3_isaac.zoo, rl_zoo3.exp_manager as zoo\n"
        "assert not {'sqlalchemy', 'optuna.visualization'} & set(sys.modules)\n"
        "import optuna\n"
        "study = optuna.create_study()\n"
        "study.optimize(lambda trial: trial.suggest_float('x', 0.0, 1.0), n_trials=2)\n"
        "assert len(optuna.visualization.matplotlib.plot_optimization_history(study).lines) == 1\n"
        "from optuna.visualization import matplotlib\n"
        "try:\n"
        "    assert zoo.plot_optimization_history(study).data\n"
        "except ImportError as error:\n"
        "    assert 'plotly' in str(error)\n"
    )
    done = run_python("-W", "ignore", "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("command", ["train", "optimize"])
def test_without_an_environment_it_is_said_which_one_it_is(command: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(dispatch.runpy, "run_module", lambda *args, **kwargs: None)
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    for flags, said in (([], True), (["--env", CONTINUOUS], False), ([f"--env={CONTINUOUS}"], False)):
        assert dispatch.main([command, "--algo", "ppo", *flags]) == 0
        assert ("this is CartPole-v1, rl_zoo3's default" in capsys.readouterr().out) == said


CODE = """
import sys
from sb3_isaac.cli import dispatch

def run(command, flags):
    print("x" * 10_000_000)
    return 0

dispatch._run = run
sys.exit(dispatch.main(["check"]))
"""


def test_who_reads_no_further_sees_no_error(tmp_path: Path) -> None:
    """``| head``"""
    for code, lines in ((CODE, []), (CODE.replace('print("x" * 10_000_000)', "raise BrokenPipeError('worker')"), ["worker"])):
        reads = f'set -o pipefail; {sys.executable} -c "$CODE" | head -c 10 > head.txt'
        env = {**child_environment(), "CODE": code}
        done = subprocess.run(["bash", "-c", reads], cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 1
        assert done.stderr.splitlines() == [f"sb3-isaac check: {line}" for line in lines]


def test_closed_output_is_no_error(tmp_path: Path) -> None:
    """``>&-`` and ``2>&-``, with which Python has neither stream."""
    code = CODE.replace('print("x" * 10_000_000)', "print(sys.stdout.flush(), file=sys.stderr)")
    env = {**child_environment(), "CODE": code}
    for closed in (">&-", "2>&-"):
        done = subprocess.run(
            ["bash", "-c", f'{sys.executable} -c "$CODE" {closed}'], cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True
        )
        assert (done.returncode, done.stderr) == (0, "None\n" if closed == ">&-" else "")


@pytest.mark.parametrize("command", list(dispatch.OWN_COMMANDS))
@pytest.mark.parametrize("verbose", [["--verbose", "2"], ["--verbose=2"], ["--verbose", "1"]])
def test_a_traceback_of_any_command(command: str, verbose: List[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: str, flags: List[str]) -> int:
        assert flags == ["--env", CONTINUOUS, "ppo"]
        raise ValueError("wrong")

    monkeypatch.setattr(dispatch, "_run", run)
    argv = [command, "--env", CONTINUOUS, *verbose, "ppo"]
    if "1" in verbose:
        assert dispatch.main(argv) == 1
    else:
        with pytest.raises(ValueError, match="wrong"):
            dispatch.main(argv)


OWN_TASK = """
import numpy as np
from sb3_isaac.evaluation.curves import parse_pair

def own():
    raise ValueError("wrong")

def librarys():
    np.zeros(2) + np.zeros(3)

def packages():
    parse_pair("wrong")
"""


@pytest.mark.parametrize("function, line", [("own", 6), ("librarys", 9), ("packages", None)])
def test_an_error_in_own_code_says_where(
    function: str, line: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "own_task_here.py").write_text(OWN_TASK)
    monkeypatch.syspath_prepend(str(tmp_path))
    own_task = importlib.import_module("own_task_here")
    monkeypatch.setattr(dispatch, "_run", lambda command, flags: getattr(own_task, function)())
    assert dispatch.main(["check"]) == 1
    place = "" if line is None else f" (own_task_here.py, line {line}; --verbose 2 shows all)"
    err = capsys.readouterr().err
    assert err.endswith(f"{place}\n") and (place or "own_task_here" not in err), err
