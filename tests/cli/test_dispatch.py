"""The console command finds each of its commands."""

from __future__ import annotations

import importlib.machinery
import sys
from typing import Any, List

import pytest

from sb3_isaac.cli import dispatch
from tests.conftest import CONTINUOUS


@pytest.mark.parametrize("command", list(dispatch.COMMANDS))
def test_every_command_lists_its_flags(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    with pytest.raises(SystemExit) as stop:
        dispatch.main([command, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert "%%" not in out
    assert f"usage: sb3-isaac {command} " in out and "-h, --help" in out


@pytest.mark.parametrize(
    "flags, missing, packages",
    [
        (["video", "--env", CONTINUOUS], ["pygame"], "pygame"),
        (["video", f"--env={CONTINUOUS}"], ["pygame", "imageio_ffmpeg"], "pygame imageio-ffmpeg"),
        (["video", "--env", "CartPole-v1"], ["pygame", "imageio_ffmpeg"], "imageio-ffmpeg"),
        (["record_video", "--env", CONTINUOUS], ["moviepy"], "moviepy"),
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
