"""The console command finds each of its commands."""

from __future__ import annotations

import sys

import pytest

from sb3_isaac.cli import dispatch


@pytest.mark.parametrize("command", list(dispatch.COMMANDS))
def test_every_command_lists_its_flags(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    with pytest.raises(SystemExit) as stop:
        dispatch.main([command, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert f"usage: sb3-isaac {command} " in out and "-h, --help" in out
