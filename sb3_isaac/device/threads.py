"""How many threads: one where the work is small, and large minibatches shared out among several.

Torch splits every single operation among its threads. With the small networks of this package that gains little, and as soon
as another program wants a core, each of the operations waits for the slowest thread: training gets many times slower. Here
torch gets one thread where the operations are small, and large minibatches are divided into lanes of rows, which several
threads take through all layers: they wait for each other twice for each network.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import statistics
import threading
import time
from typing import Callable, Iterator, List, Optional

import torch as th
from torch import nn

from sb3_isaac._torchscript import scripted

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
SMALL_WORK = 1e9
"""Floating point operations of a batch. Below, more threads than one do not pay on a machine that does other things too."""
MAX_THREADS = 16
"""The most that work on a minibatch."""
SPINS = 3000
"""Looks, of half a microsecond or so, before a thread that waits goes to sleep."""
TRY_AGAIN = 50
"""Calls after which the slower way is tried again."""

_default = th.get_num_threads()
"""Torch's own choice for this machine, unless somebody has made another one before this package was imported."""
_asked_for = any(os.environ.get(name) for name in VARIABLES)
_lowered: List[int] = []
"""The numbers of threads before each :func:`torch_threads` that we are in."""


def ask_for(n_threads: int) -> None:
    """Set torch's threads, as the user's choice.

    :param n_threads: at least 1
    """
    global _asked_for
    _asked_for = True
    th.set_num_threads(n_threads)


def is_asked_for() -> bool:
    """Whether torch's number of threads is the user's choice: by a variable, a flag, or ``torch.set_num_threads``."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return _asked_for or available() != _default or _default not in (cores, max(cores // 2, 1))


def available() -> int:
    """The number of threads that may be used: torch's, outside of :func:`torch_threads`."""
    return _lowered[0] if _lowered else th.get_num_threads()


@contextlib.contextmanager
def torch_threads(n_threads: int) -> Iterator[None]:
    """Within the context torch uses so many threads for an operation; afterwards as many as before."""
    before = th.get_num_threads()
    if n_threads == before:
        yield
        return
    _lowered.append(before)
    th.set_num_threads(n_threads)
    try:
        yield
    finally:
        _lowered.pop()
        if th.get_num_threads() == n_threads:  # else somebody has made a choice in the meantime
            th.set_num_threads(before)


def choose(network: nn.Module, n_rows: int, device: th.device) -> int:
    """How many threads torch should use for batches of a network: the user's choice, or one, or more if they are faster now.

    :param network: its Linear layers are looked at
    :param n_rows: rows of a batch
    :param device: where they are
    """
    n_threads = th.get_num_threads()
    if n_threads == 1 or is_asked_for():
        return n_threads
    weights = [module.weight for module in network.modules() if isinstance(module, nn.Linear)]
    numbers = sum(parameter.numel() for parameter in network.parameters())
    if device.type != "cpu" or 2.0 * n_rows * numbers < SMALL_WORK:
        return 1
    inputs = [weight.new_zeros(n_rows, weight.shape[1]) for weight in weights]

    def seconds(n: int) -> float:
        with torch_threads(n), th.no_grad():
            start = time.perf_counter()
            for x, weight in zip(inputs, weights):
                x @ weight.t()
            return time.perf_counter() - start

    rounds = [(seconds(1), seconds(n_threads)) for _ in range(4)][1:]
    one, many = (statistics.median(times) for times in zip(*rounds))
    return n_threads if many < 0.8 * one else 1


def for_chunks(device: th.device, in_lanes: bool) -> int:
    """How many threads torch should use around :class:`Together`: its idle ones would get in the way of ours.

    :param in_lanes: whether there is more than one job to share out
    """
    return th.get_num_threads() if device.type != "cpu" or (is_asked_for() and not in_lanes) else 1


def describe() -> str:
    """On how many threads, in words."""
    torch, most = th.get_num_threads(), available()
    words = f"{torch} thread{'s' * (torch > 1)}"
    return words if most <= torch else f"{words} (large minibatches on {min(most, MAX_THREADS)})"


def _wait(counter: th.Tensor, value: int, most: int) -> bool:
    n = 0
    while int(counter) != value and n < most:
        n += 1
    return int(counter) == value


class _Helper(threading.Thread):
    """A thread that works on what it is given, waits busily for more for a moment, then sleeps.

    A core that has slept is slow for about a millisecond on many machines, as long as our jobs take: hence the busy waiting.
    """

    def __init__(self) -> None:
        super().__init__(name="sb3_isaac helper", daemon=True)
        self._given, self._done = th.zeros(2, dtype=th.int64, device="cpu").unbind(0)
        """Pieces of work so far, which TorchScript can look at"""
        self._n = 0
        self._work: Optional[Callable[[], None]] = None
        self._error: Optional[BaseException] = None
        self._asleep, self._awake = False, threading.Semaphore(0)
        self.start()

    def give(self, work: Optional[Callable[[], None]]) -> None:
        """:param work: None ends the thread"""
        self._work = work
        self._n += 1
        self._given.fill_(self._n)
        if self._asleep:
            self._awake.release()

    def wait(self) -> None:
        """:raises Exception: what the work raised"""
        wait = scripted(_wait)
        while wait is None or not wait(self._done, self._n, SPINS):
            if int(self._done) == self._n:
                break
            time.sleep(1e-4)
        error, self._error = self._error, None
        if error is not None:
            raise error

    def run(self) -> None:
        th.set_num_threads(1)
        wait = scripted(_wait)
        for n in itertools.count(1):
            while wait is None or not wait(self._given, n, SPINS):
                self._asleep = True
                if int(self._given) != n:
                    self._awake.acquire()
                self._asleep = False
                if int(self._given) == n:
                    break
            work, self._work = self._work, None
            if work is None:
                return
            try:
                work()
            except BaseException as error:
                self._error = error
            work = None
            self._done.fill_(n)


_helpers: List[_Helper] = []
_in_use = threading.Lock()
"""The helpers work for one caller at a time."""


def _end_helpers() -> None:
    for helper in _helpers:
        helper.give(None)
    for helper in _helpers:
        helper.join(timeout=1.0)
    _helpers.clear()


atexit.register(_end_helpers)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_helpers.clear)  # a child has none of its parent's threads


class Together:
    """Does jobs that are the same at each call on several threads, as long as that is faster than on one.

    Each has one thread of torch, and who is done with a job takes the next. If the user has chosen a number of threads, so
    many take part, whether or not that is faster; with a single job they are torch's own.
    """

    def __init__(self) -> None:
        self._seconds: List[Optional[float]] = [None, None]
        """Of a call alone, and with helpers: running means"""
        self._n_calls = 0

    def run(self, job: Callable[[int], None], n_jobs: int) -> None:
        """Call ``job`` with 0 to ``n_jobs - 1``, in any order, without gradients.

        :raises Exception: what a job raises
        """
        asked_for = is_asked_for()
        if asked_for and n_jobs == 1:
            job(0)
            return
        n_helpers = min(available(), n_jobs, MAX_THREADS) - 1
        with torch_threads(1):  # with more, torch may add up in another order
            if n_helpers >= 1 and (asked_for or self._choose()) and _in_use.acquire(blocking=False):
                try:
                    ready, start = len(_helpers) >= n_helpers, time.perf_counter()
                    _share_out(job, n_jobs, n_helpers)
                    if ready:  # threads that have yet to start take their time once
                        self._note(1, time.perf_counter() - start)
                finally:
                    _in_use.release()
                return
            start = time.perf_counter()
            for i in range(n_jobs):
                job(i)
            self._note(0, time.perf_counter() - start)

    def _choose(self) -> bool:
        """Whether to take helpers. Now and then what was slower is tried again: the machine may be less or more busy."""
        self._n_calls += 1
        alone, helped = self._seconds
        if helped is None or alone is None:
            return helped is None
        return (helped < alone) != (self._n_calls % TRY_AGAIN == 0)

    def _note(self, helped: int, seconds: float) -> None:
        before = self._seconds[helped]
        # Good news is believed at once: the first call of all is slow
        self._seconds[helped] = seconds if before is None or seconds < before else 0.7 * before + 0.3 * seconds


def _share_out(job: Callable[[int], None], n_jobs: int, n_helpers: int) -> None:
    numbers = itertools.count()  # next() of it is one step for all threads

    def work() -> None:
        with th.no_grad():  # which each thread has for itself
            for i in numbers:
                if i >= n_jobs:
                    return
                job(i)

    while len(_helpers) < n_helpers:
        _helpers.append(_Helper())
    for helper in _helpers[:n_helpers]:
        helper.give(work)
    try:
        work()
    finally:
        for helper in _helpers[:n_helpers]:
            helper.wait()
