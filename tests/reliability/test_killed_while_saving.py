"""Whoever kills a process that saves finds whole files. ``make soak`` does the same for long, with trainings and searches."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, run_python


@pytest.mark.slow
def test_files_are_whole_wherever_saving_is_killed(tmp_path: Path) -> None:
    done = run_python("-m", "tests.reliability.killing", str(tmp_path), "10", cwd=REPOSITORY)
    assert done.returncode == 0, done.stdout
    count = re.search(r"(\d+) kills at operations, 10 at random moments, 0 damaged files", done.stdout)
    assert count and int(count.group(1)) >= 5 * 4  # five things; open, write, sync and replace of each
