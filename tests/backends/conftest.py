"""The checks on the stand-in for Isaac Gym, all in one child process, because Isaac Gym must be imported before torch."""

from __future__ import annotations

import functools
import tempfile
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Dict, List

from tests.conftest import REPOSITORY, TESTS, run_python

CHECKS = ("isaacgym_standin/checks_standin.py", "isaacgym_standin/checks_backend.py", "backends/test_backend_contract.py")


@functools.lru_cache(maxsize=None)
def checks_on_standin() -> Dict[str, List[str]]:
    """Run all checks that need the stand-in. For each file one line a test: "ok" or the failure."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        start = "import sb3_isaac, sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
        files = [str(TESTS / name) for name in CHECKS]
        options = ["-q", "-p", "no:cacheprovider", f"--junitxml={report}", f"--rootdir={REPOSITORY}"]
        child = run_python("-c", start, *options, *files, standin=True, SB3_ISAAC_TEST_BACKEND="isaacgym")
        if not report.exists():
            raise AssertionError(f"the checks on the stand-in did not run:\n{child.stdout}")
        results: Dict[str, List[str]] = {}
        for case in ElementTree.parse(report).iter("testcase"):
            wrong = [kind for kind in ("failure", "error", "skipped") if case.find(kind) is not None]
            line = "ok" if not wrong else f"{case.get('name')}: {case.find(wrong[0]).text}"  # type: ignore[union-attr]
            results.setdefault((case.get("classname") or "").replace(".TestViewer", "").split(".")[-1], []).append(line)
        return results


def assert_passed_on_standin(file: str, at_least: int) -> None:
    """All tests of one file passed in the child process, and there were not fewer than expected."""
    lines = checks_on_standin().get(file, [])
    failures = [line for line in lines if line != "ok"]
    assert not failures, "\n\n".join(failures)
    assert len(lines) >= at_least, f"only {len(lines)} tests of {file} ran"
