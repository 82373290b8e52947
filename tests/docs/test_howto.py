"""What the how-tos show is run, page by page, as one would type it; and the messages that they explain exist."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any, List

import pytest

from tests.conftest import HAS_ONNX, REPOSITORY
from tests.zoo.conftest import call

pytest.importorskip("matplotlib", reason="pictures need the extra 'plots'").use("Agg")
HOWTO = REPOSITORY / "docs" / "howto"
BLOCK = re.compile(r"(<!-- not run: .+? -->\n+)?```bash\n(.*?)```", re.DOTALL)

SHORTER = {
    "variants.py": ["--n-timesteps", "4096"],
    "randomisation.py": ["--n-timesteps", "4096", "--seeds", "1", "--rounds", "1"],
}
"""Flags for programs that take long."""


def commands(page: Path) -> List[str]:
    """The lines of a page's commands, but for those that say why they cannot be run here."""
    return [line for reason, block in BLOCK.findall(page.read_text()) if not reason for line in block.splitlines()]


WITH_COMMANDS = [page for page in sorted(HOWTO.glob("*.md")) if commands(page)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the first run of the page on training."""
    folder = tmp_path_factory.mktemp("trained")
    first = commands(HOWTO / "train.md")[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(first, patch)
    return folder


def run(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, as importing everything anew for each would take most of the time."""
    name, *arguments = shlex.split(command)
    if name == "cp":
        for source in arguments[:-1]:
            shutil.copy(REPOSITORY / source, arguments[-1])
        return
    if name == "python":
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", [*arguments, *SHORTER.get(Path(arguments[0]).name, [])])
            runpy.run_path(str(REPOSITORY / arguments[0]), run_name="__main__")
        return
    assert name == "sb3-isaac"
    if arguments[0] == "export" and not HAS_ONNX:
        arguments = [argument for argument in arguments if not argument.endswith(".onnx")]
    assert call([*arguments, *([] if "--device" in arguments or arguments[0] == "plot" else ["--device", "cpu"])]) == 0, (
        command
    )


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=[page.stem for page in WITH_COMMANDS])
def test_commands(page: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for command in commands(page)[page.stem == "train" :]:
        run(command, monkeypatch)
        printed = capsys.readouterr()
        assert "Traceback" not in printed.out + printed.err and "Error" not in printed.err, command


def test_messages_that_are_explained_exist() -> None:
    text = "\n".join(path.read_text() for path in sorted((REPOSITORY / "sb3_isaac").rglob("*.py")))
    text = re.sub(r"\"\s*\n\s*f?\"", "", text)  # texts of several lines
    messages = re.findall(r'^\| "(.+?)"', (HOWTO / "troubleshooting.md").read_text(), flags=re.MULTILINE)
    assert len(messages) >= 15 and [message for message in messages if message not in text] == []
