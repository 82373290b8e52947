"""The ablations of the site: what is described can be run, what was run is shown, and verdicts follow their rule."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Dict, List

import pytest

from sb3_isaac.settings.table import ALGORITHM, ENTRY
from tests.conftest import REPOSITORY, run_python
from tests.docs.test_docs import program

summary = program("ablations/summary.py")
DETAILS: Dict[str, Any] = summary.details()


def test_enough_of_each_algorithm_and_all_were_run() -> None:
    counts = Counter(name.split("/")[0] for name in DETAILS if not name.endswith("/base"))
    assert set(counts) == {"ppo", "dqn", "ddpg"} and min(counts.values()) >= 10
    runs = summary.results()["runs"]
    assert set(runs) == set(DETAILS)
    for name, found in runs.items():
        assert len({run["seed"] for run in found}) == len(found) >= 10, name


def test_each_detail_changes_something_that_there_is() -> None:
    subclasses = program("ablations/subclasses.py")
    for name, detail in DETAILS.items():
        assert set(detail["overrides"]) <= set(ALGORITHM) | set(ENTRY), name
        assert "subclass" not in detail or hasattr(subclasses, detail["subclass"])
        changed = bool(detail["overrides"]) or "subclass" in detail or name == "ppo/discrete"
        assert changed != name.endswith("/base"), name


def test_wilson() -> None:
    """Worked examples: 10 of 10 and 0 of 10 (Brown, Cai and DasGupta, 2001), 5 of 10."""
    assert summary.wilson(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert summary.wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert summary.wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)


def seeds(steps: List[Any], stayed: int = 10) -> Any:
    runs = [{"seed": i, "steps": s, "seconds": 1.0, "stayed": stayed, "evaluations": 10} for i, s in enumerate(steps)]
    return summary.summarise(runs)


def test_verdicts() -> None:
    base = seeds([100, 110, 120, 130, 140] * 2)
    assert base.steps == 120 and base.n_solved == 10 and base.stays == 1.0
    assert 100 <= base.steps_interval[0] <= 120 <= base.steps_interval[1] <= 140
    assert summary.verdict(base, base) == "no difference shown"
    assert summary.verdict(seeds([300, 310, 320, 330, 340] * 2), base) == "worse"
    assert summary.verdict(seeds([10, 11, 12, 13, 14] * 2), base) == "better"
    assert summary.verdict(seeds([100, 110, 120, 130, 140] * 2, stayed=5), base) == "worse"
    assert summary.verdict(seeds([10, 11, 12, 13, 14] * 2, stayed=5), base) == "mixed"
    never = seeds([None] * 10)
    assert math.isinf(never.steps) and math.isnan(never.stays) and summary.verdict(never, base) == "worse"
    assert summary.verdict(base, never) == "better"


def test_what_a_page_asks_for() -> None:
    text = summary.fill_in("before\n\n<!-- ablation: ppo/one_epoch -->\n\n<!-- ablation: ppo/relu -->\n\nafter")
    assert text.startswith("before\n\n|  | seeds that solve it |") and text.endswith("|\n\nafter")
    assert text.count("\n| ") == 4  # head, the entry, two details
    assert DETAILS["ppo/one_epoch"]["title"] in text and "the shipped entry" in text
    whole = summary.fill_in("<!-- ablations: dqn -->")
    assert whole.count("\n| ") == 1 + sum(name.startswith("dqn/") for name in DETAILS)  # and the head
    assert "images/ablations_dqn.png" in whole and summary.RULE in whole
    for wrong in ("ppo/no_such", "a2c"):
        with pytest.raises(KeyError, match=wrong):
            summary.fill_in(f"<!-- ablation: {wrong} -->")


@pytest.mark.slow
def test_a_run_again_gives_the_same_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command, in processes of its own, and the same seed in this one."""
    flags = ["--only", "ppo/base", "--seeds", "1", "--jobs", "1", "--out", str(tmp_path / "found.json")]
    done = run_python(str(REPOSITORY / "scripts" / "ablate.py"), *flags)
    assert done.returncode == 0 and "the shipped entry" in done.stdout, done.stdout
    written = json.loads((tmp_path / "found.json").read_text())
    assert {"machine", "versions", "date", "runs"} == set(written)
    ((run,),) = written["runs"].values()
    monkeypatch.setattr(sys, "path", list(sys.path))
    name, again = program("../scripts/ablate.py").train(("ppo/base", run["seed"]))
    assert name == "ppo/base" and 4096 <= run["steps"] <= 100_000
    assert {**again, "seconds": None} == {**run, "seconds": None}


def test_tables_in_answers_and_of_the_entries() -> None:
    text = summary.fill_in("??? question\n\n    <!-- ablation: ppo/one_epoch -->\n\n    <!-- ablation: ppo/relu -->\n\nafter")
    table = text.splitlines()[2:-2]
    assert len(table) == 5 and all(line.startswith("    | ") or line.startswith("    |-") for line in table)
    lines = summary.fill_in("<!-- entries -->").splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| PPO", "| DQN", "| DDPG"]
    assert len({line.count("|") for line in lines}) == 1 and "verdict" not in lines[0]
