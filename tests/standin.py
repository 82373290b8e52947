"""Child processes with the stand-in in place of Isaac Gym, which must be imported before torch: pytest's own is too late."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from typing import Dict, List

TESTS = os.path.dirname(os.path.abspath(__file__))
STANDIN = os.path.join(TESTS, "isaacgym_standin")
CHECKS = ("isaacgym_standin/checks_standin.py", "isaacgym_standin/checks_backend.py", "backends/test_backend_contract.py")


def run(arguments: List[str], standin: bool = True, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments, the repository and (by default) the stand-in on its path."""
    path = [os.path.dirname(TESTS), TESTS] + ([STANDIN] if standin else [])
    # what this process may have set must not leak into the child
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SB3_ISAAC_", "ISAACGYM_"))}
    return subprocess.run(
        [sys.executable, *arguments],
        env={**inherited, "OMP_NUM_THREADS": "1", **environment, "PYTHONPATH": os.pathsep.join(path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        check=False,
    )


@functools.lru_cache(maxsize=None)
def checks() -> Dict[str, List[str]]:
    """Run all checks that need the stand-in, in one child process. For each file one line a test: "ok" or the failure."""
    with tempfile.TemporaryDirectory() as folder:
        report = os.path.join(folder, "report.xml")
        start = "import sb3_isaac, sys, pytest; sys.exit(pytest.main(sys.argv[1:]))"
        files = [os.path.join(TESTS, name) for name in CHECKS]
        options = ["-q", "-p", "no:cacheprovider", f"--junitxml={report}", f"--rootdir={os.path.dirname(TESTS)}"]
        child = run(["-c", start, *options, *files], SB3_ISAAC_TEST_BACKEND="isaacgym")
        if not os.path.exists(report):
            raise AssertionError(f"the checks on the stand-in did not run:\n{child.stdout}")
        results: Dict[str, List[str]] = {}
        for case in ElementTree.parse(report).iter("testcase"):
            wrong = [kind for kind in ("failure", "error", "skipped") if case.find(kind) is not None]
            line = "ok" if not wrong else f"{case.get('name')}: {case.find(wrong[0]).text}"
            results.setdefault((case.get("classname") or "").replace(".TestViewer", "").split(".")[-1], []).append(line)
        return results


def assert_passed(file: str, at_least: int) -> None:
    """All tests of one file passed in the child process, and there were not fewer than expected."""
    lines = checks().get(file, [])
    failures = [line for line in lines if line != "ok"]
    assert not failures, "\n\n".join(failures)
    assert len(lines) >= at_least, f"only {len(lines)} tests of {file} ran"
