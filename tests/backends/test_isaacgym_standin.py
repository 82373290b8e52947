"""The checks on the stand-in for Isaac Gym, all in one child process, because Isaac Gym must be imported before torch.

That it is as strict as it says (tests/isaacgym_standin/README.md), what our backend does with it, and the contract of all
backends. That it refuses to come after torch is in test_isaacgym_backend.py.
"""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Dict, List

from tests.conftest import REPOSITORY, TESTS, run_python

AT_LEAST = {
    "isaacgym_standin/checks_standin.py": 37,
    "isaacgym_standin/checks_backend.py": 37,
    "backends/test_backend_contract.py": 25,
}
"""How many tests each file has, so that none goes missing"""


def test_all_checks_pass_on_the_standin(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    start = "import sb3_isaac, sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
    files = [str(TESTS / name) for name in AT_LEAST]
    options = ["-q", "-p", "no:cacheprovider", f"--junitxml={report}", f"--rootdir={REPOSITORY}"]
    child = run_python("-c", start, *options, *files, standin=True, SB3_ISAAC_TEST_BACKEND="isaacgym")
    assert report.exists(), f"the checks on the stand-in did not run:\n{child.stdout}"
    passed: Dict[str, int] = {}
    failures: List[str] = []
    for case in ElementTree.parse(report).iter("testcase"):
        wrong = [kind for kind in ("failure", "error", "skipped") if case.find(kind) is not None]
        failures += [f"{case.get('name')}: {case.find(kind).text}" for kind in wrong]  # type: ignore[union-attr]
        file = (case.get("classname") or "").replace(".TestViewer", "").split(".")[-1]
        passed[file] = passed.get(file, 0) + (not wrong)
    assert not failures, "\n\n".join(failures)
    for name, at_least in AT_LEAST.items():
        assert passed.get(Path(name).stem, 0) >= at_least, f"only {passed} ran"
