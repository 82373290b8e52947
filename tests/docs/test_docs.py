"""The programs of the documentation do what its text says, files that it names exist. ``make docs`` checks the links."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch as th

from tests.conftest import REPOSITORY, run_python

DOCS = REPOSITORY / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


def program(name: str) -> Any:
    """A file of the course as a module."""
    spec = importlib.util.spec_from_file_location(Path(name).stem, DOCS / name)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(DOCS)) for page in PAGES])
def test_files_that_a_page_names_exist(page: Path) -> None:
    text = page.read_text()
    names = re.findall(r"[`\"]((?:sb3_isaac|tests|docs|scripts|examples|hyperparams)/[\w./-]+)", text)
    missing = [name for name in names if not (REPOSITORY / name.split(":")[0]).exists()]
    assert not missing
    for line in re.findall(r".*8 ?<.*", text):  # an include that is none would be shown as it is, without an error
        assert re.fullmatch(r' *--8<-- "[\w./]+(:\w+)?"', line), line


def test_one_step_prints_what_the_page_shows() -> None:
    """Shapes, types and what is not rounded."""
    done = run_python(str(DOCS / "course" / "one_step.py"))
    assert done.returncode == 0, done.stdout
    shown = (DOCS / "course" / "one_step.txt").read_text()
    assert re.sub(r"0\.990\d*", "0.990", done.stdout) == re.sub(r"0\.990\d*", "0.990", shown)


def test_boxes_are_numbered_row_by_row() -> None:
    q_table = program("course/q_table.py")
    assert q_table.SHAPE == [5, 5, 8, 7]
    lowest, highest = th.full((1, 4), -9.0), th.full((1, 4), 9.0)
    assert q_table.box(th.cat([lowest, highest])).tolist() == [0, 5 * 5 * 8 * 7 - 1]
    upright = th.tensor([[0.0, 0.0, 0.01, 0.0]])  # third of 5, third of 5, fifth of 8, fourth of 7
    assert q_table.box(upright).tolist() == [((2 * 5 + 2) * 8 + 4) * 7 + 3]


def test_the_table_learns_to_balance() -> None:
    q_table = program("course/q_table.py")
    untrained = q_table.evaluate(th.rand(5 * 5 * 8 * 7, 3, generator=th.Generator().manual_seed(0)), n_envs=64)
    trained = q_table.evaluate(q_table.learn(n_envs=512, n_steps=600), n_envs=64)
    assert untrained.mean() < 70 and trained.mean() > 120


def test_the_table_s_program_prints_what_the_page_shows(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Two seeds: the deviation is their difference / sqrt(2), and so is the standard error of a difference of two means."""
    monkeypatch.setattr(sys, "argv", "q_table.py --seeds 2 --n-envs 8 --n-steps 2".split())
    q_table = program("course/q_table.py")
    q_table.main()
    printed, shown = (
        [re.sub(r"\d+", "", line) for line in text.splitlines()]
        for text in (capsys.readouterr().out, (DOCS / "course" / "q_table.txt").read_text())
    )
    assert len(shown) == 11 and set(shown[:-1]) == set(printed[:-1]) and shown[-1] == printed[-1]
    assert q_table.chance([100.0, 200.0]) == ", standard deviation 71: two such means differ by up to 141 by chance"
