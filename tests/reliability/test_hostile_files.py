"""Nothing that is in a run folder runs when the folder is opened, unless --trust says so."""

from __future__ import annotations

import inspect
import shutil
import time
from pathlib import Path
from typing import Any, Dict

import optuna
import pytest
from stable_baselines3.common.save_util import load_from_zip_file

import sb3_isaac
from sb3_isaac.files import safe_pickle
from sb3_isaac.files.trust import UntrustedFileError
from tests.conftest import make_env, run_python
from tests.reliability import hostile
from tests.reliability.hostile import PICKLES, RUNS, Run, flags, make_run, rewrite, with_config
from tests.zoo.conftest import call

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


@pytest.mark.parametrize("command", ["evaluate", "enjoy"])
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


@pytest.mark.parametrize("way", PICKLES)
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
