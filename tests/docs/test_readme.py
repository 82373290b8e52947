"""README.md is short, and its commands and its Python do what it says."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from sb3_isaac.cli.dispatch import COMMANDS
from tests.conftest import REPOSITORY, run_python

README = (REPOSITORY / "README.md").read_text()


def test_at_most_700_words() -> None:
    assert len(README.split()) <= 700


def test_the_python_example(tmp_path: Path) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert "learn(100_000, progress_bar=True)" in example
    (tmp_path / "example.py").write_text(example.replace("100_000, progress_bar=True", "20_480"))
    done = run_python("example.py", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    (mean,) = re.findall(r"mean return ([\d.]+)", done.stdout)
    assert float(mean) > 100  # a fifth of what README trains
    assert (tmp_path / "cartpole.zip").is_file() and (tmp_path / "cartpole_vecnormalize.pkl").is_file()


def test_the_commands(tmp_path: Path) -> None:
    """Those of rl_zoo3, one after the other, as they stand there; and the names of ours."""
    commands = re.findall(r"^python (-m rl_zoo3.*)$", README, flags=re.MULTILINE)
    assert [command.split()[1] for command in commands] == ["rl_zoo3.train", "rl_zoo3.enjoy"]
    for command in commands:
        done = run_python(*shlex.split(command), cwd=tmp_path)
        assert done.returncode == 0 and "Traceback" not in done.stdout, done.stdout
    assert "Episode Reward" in done.stdout
    named = re.search(r"`sb3-isaac train`.*?are ours", README, flags=re.DOTALL)
    assert named is not None
    assert set(re.findall(r"`(?:sb3-isaac )?(\w+)`", named.group())) - {"sb3"} <= set(COMMANDS)
