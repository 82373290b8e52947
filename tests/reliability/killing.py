"""Processes that are killed while they write: ``python -m tests.reliability.killing FOLDER N_KILLS`` prints what was damaged.

One process makes the models; what is killed are its forks, so that a kill takes milliseconds. test_killed_while_saving.py
runs this, and soak.py uses the parts.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pickle
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Tuple

from tests.reliability.faults import faulty_files
from tests.reliability.things_to_save import Thing, read_any, small_models, things


def fork(function: Callable[[], Any], output: Optional[Path] = None) -> int:
    """Run a function in a forked process, its output in a file (None: it stays). Returns the process id."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: no fork outlives whoever would kill it
    try:
        if output is not None:
            file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(file, 1)
            os.dup2(file, 2)
        status = int(function() or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
        os._exit(status)
    raise AssertionError


def in_fork(function: Callable[[], Any]) -> Any:
    """What a function returns in a forked process, which keeps no connection or thread of it alive here."""
    reader, writer = os.pipe()

    def call() -> None:
        with os.fdopen(writer, "wb") as file:
            try:
                result = function()
            except Exception as error:
                result = f"{type(error).__name__}: {error}"
            file.write(pickle.dumps(result))

    pid = fork(call)
    os.close(writer)
    with os.fdopen(reader, "rb") as file:
        data = file.read()
    os.waitpid(pid, 0)
    return pickle.loads(data)


def kill_after(pid: int, seconds: float) -> bool:
    """SIGKILL a process after a while. Returns whether it was still there."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if os.waitpid(pid, os.WNOHANG)[0]:
            return False
        time.sleep(min(0.02, max(end - time.monotonic(), 0)))
    os.kill(pid, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(pid, 0)[1])


def damaged(folder: Path) -> List[str]:
    """Files in a folder and below that cannot be read, and why. Those that no search finds are left out."""
    problems = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            try:
                read_any(path)
            except Exception as error:
                problems.append(f"{path.relative_to(folder)}: {type(error).__name__}: {error}")
    return problems


def kill_at_every_operation(thing: Thing, folder: Path) -> Tuple[int, List[str]]:
    """Save, killed at each operation on files, with half of a write done. Returns how many there are, and what was damaged."""
    thing.save(folder)  # the old file
    with faulty_files(folder) as layer:
        thing.save(folder)
    problems = []
    for number, step in enumerate(layer.done):

        def save(number: int = number) -> None:
            with faulty_files(folder, number, 0):
                thing.save(folder)

        status = os.waitpid(fork(save), 0)[1]
        if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            problems.append(f"{thing.file}: not killed at {step}")
        problems += [f"{problem}, killed at {step}" for problem in damaged(folder)]
    return len(layer.done), problems


def kill_while_saving(all_things: Dict[str, Thing], folder: Path, n_kills: int, rng: random.Random) -> List[str]:
    """Save one thing after the other, killed at random moments. Returns what was damaged."""
    for thing in all_things.values():
        thing.save(folder)

    def save_on() -> None:
        while True:
            for thing in all_things.values():
                thing.save(folder)

    problems = []
    for number in range(n_kills):
        kill_after(fork(save_on), rng.uniform(0.0, 0.25))
        problems += [f"{problem}, kill {number}" for problem in damaged(folder)]
    return problems


def main(folder: Path, n_kills: int) -> int:
    all_things = things(small_models())
    problems: List[str] = []
    n_operations = 0
    for name, thing in all_things.items():
        path = folder / name
        path.mkdir()
        count, found = kill_at_every_operation(thing, path)
        n_operations += count
        problems += found
    (folder / "random").mkdir()
    problems += kill_while_saving(all_things, folder / "random", n_kills, random.Random())
    print(*problems, sep="\n")
    print(f"{n_operations} kills at operations, {n_kills} at random moments, {len(problems)} damaged files")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
