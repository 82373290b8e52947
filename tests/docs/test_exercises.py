"""The exercises of the course: enough of them, with answers that their commands have printed, and flags that exist."""

from __future__ import annotations

import inspect
import re
import sys
from typing import Any, List

import pytest

from tests.docs.test_docs import DOCS, program

COURSE = DOCS / "course"
CHAPTERS = ["mdp", "q_learning", "dqn", "ddpg", "ppo", "many_envs"]
TEXT = {chapter: (COURSE / f"{chapter}.md").read_text().split("\n## Exercises\n")[1] for chapter in CHAPTERS}


@pytest.fixture(autouse=True)
def course(monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs import each other."""
    monkeypatch.syspath_prepend(str(COURSE))


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_each_chapter_has_three_with_answers(chapter: str) -> None:
    exercises = re.split(r"^\*\*\d\. ", TEXT[chapter], flags=re.MULTILINE)[1:]
    assert len(exercises) >= 3
    for exercise in exercises:
        assert exercise.count('??? question "Answer"') == 1
        assert chapter == "q_learning" or "exercises.txt:" in exercise or "<!-- ablation: " in exercise, exercise


def test_answers_are_of_the_commands_that_the_pages_show() -> None:
    exercises, pages = program("course/exercises.py"), "".join(TEXT.values())
    found = exercises.sections(exercises.OUT.read_text())
    assert list(found) == list(exercises.COMMANDS)
    for name, command in exercises.COMMANDS.items():
        assert found[name].startswith(f"$ python docs/course/{command}\n") and found[name].count("\n") >= 2
        assert pages.count(f'exercises.txt:{name}"') == 1
        assert f"\npython docs/course/{command}\n" in pages


def test_flags_of_the_commands_exist() -> None:
    commands: List[Any] = [line.split()[1:] for text in TEXT.values() for line in re.findall(r"^python docs/.*$", text, re.M)]
    assert len(commands) >= 15
    for path, *arguments in commands:
        source = (DOCS.parent / path).read_text()
        module = program(path[len("docs/") :])
        settings = inspect.signature(module.learn).parameters if hasattr(module, "learn") else {}
        for flag in (argument for argument in arguments if argument.startswith("--")):
            assert flag in ("--seeds",) or f'"{flag}"' in source or flag[2:].replace("-", "_") in settings, flag


def test_rules_print_what_the_answers_show(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    exercises, rules = program("course/exercises.py"), program("course/rules.py")
    found = exercises.sections(exercises.OUT.read_text())
    for name in ("none", "lean"):
        monkeypatch.setattr(sys, "argv", exercises.COMMANDS[name].split())
        rules.main()
        assert capsys.readouterr().out == found[name].split("\n", 1)[1]
