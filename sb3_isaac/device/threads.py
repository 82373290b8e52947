"""How many threads: one where the work is small, and large minibatches shared out among several.

Torch splits every single operation among its threads. With the small networks of this package that gains little, and as soon
as another program wants a core, each of the operations waits for the slowest thread: training gets many times slower. Here
torch gets one thread where the operations are small, and large minibatches are worked on in independent chunks by several
threads, which wait for each other once in a minibatch.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Generic, Iterator, List, Mapping, Optional, Sequence, TypeVar

import torch as th
from torch import nn

from sb3_isaac.device.flat_adam import views_of

VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
SMALL_WORK = 1e9
"""Floating point operations of a batch. Below, more threads than one do not pay on a machine that does other things too."""
MAX_LANES = 8
"""So many chunks of a minibatch are worked on at the same time, if there are as many threads."""

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


def describe() -> str:
    """On how many threads, in words."""
    torch, most = th.get_num_threads(), available()
    words = f"{torch} thread{'s' * (torch > 1)}"
    return words if most <= torch else f"{words} (large minibatches on {min(most, MAX_LANES)})"


def in_parallel(job: Callable[[int], None], n_jobs: int) -> None:
    """Call ``job`` with 0 to ``n_jobs - 1``, in any order, without gradients, on as many threads as there are.

    Each has one thread of torch. Who is done with one job takes the next: a thread that another program holds up does fewer.

    :raises Exception: what a job raises
    """
    numbers = itertools.count()  # next() of it is one step for all threads

    def work() -> None:
        with th.no_grad():  # which each thread has for itself
            for i in numbers:
                if i >= n_jobs:
                    return
                job(i)

    n_helpers = min(available(), n_jobs, MAX_LANES) - 1
    with torch_threads(1):
        helpers = [_pool().submit(work) for _ in range(n_helpers)]
        try:
            work()
        finally:
            for helper in helpers:
                if not helper.cancel():  # one that has not begun would find nothing to do
                    helper.result()


@functools.lru_cache(maxsize=None)
def _pool() -> ThreadPoolExecutor:
    # A thread keeps the number of torch's threads that it begins with
    initializer = functools.partial(th.set_num_threads, 1)
    return ThreadPoolExecutor(MAX_LANES - 1, thread_name_prefix="sb3_isaac", initializer=initializer)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a child has none of its parent's threads


Networks = TypeVar("Networks")
Gradients = Mapping[nn.Parameter, th.Tensor]


class Lanes(Generic[Networks]):
    """Shares out the chunks of a minibatch among networks with the same parameters, but buffers and gradients of their own.

    Which rows go to which lane, and the order of all sums, depend on the size of the minibatch alone: the results are the
    same to the last bit, however many threads there are.

    :param make: makes such networks, whose gradients go where the argument says; None: into the parameters' ``grad``
    :param parameters: of the networks
    :param chunk: rows that they can work on at once
    """

    def __init__(
        self, make: Callable[[Optional[Gradients]], Networks], parameters: Sequence[nn.Parameter], chunk: int
    ) -> None:
        self.chunk = chunk
        self.main = make(None)
        """For minibatches of one chunk, and all else"""
        self._make = make
        self._parameters = list(parameters)
        self._lanes: List[Networks] = []
        self._grads = th.zeros(0)

    def run(
        self,
        work: Callable[[Networks, slice, bool], Optional[th.Tensor]],
        n_rows: int,
        gradients_of: Sequence[nn.Parameter] = (),
    ) -> Optional[th.Tensor]:
        """Work on a minibatch.

        :param work: called with networks, rows, and whether to add to gradients of earlier rows. May return a tensor.
        :param gradients_of: the parameters whose gradients ``work`` computes
        :return: the sum of what ``work`` returned
        """
        if n_rows <= self.chunk:
            return work(self.main, slice(0, n_rows), False)
        n_chunks = -(-n_rows // self.chunk)
        size, n_lanes = -(-n_rows // n_chunks), min(n_chunks, MAX_LANES)
        if len(self._lanes) < n_lanes:
            self._make_lanes(n_lanes)
        totals: List[Optional[th.Tensor]] = [None] * n_lanes

        def job(lane: int) -> None:
            for start in range(lane * size, n_rows, n_lanes * size):
                result = work(self._lanes[lane], slice(start, min(start + size, n_rows)), start > lane * size)
                total = totals[lane]
                totals[lane] = result if total is None or result is None else total + result

        in_parallel(job, n_lanes)
        if gradients_of:
            summed = dict(zip(self._parameters, views_of(self._grads[:n_lanes].sum(0), self._parameters)))
            for parameter in gradients_of:
                assert parameter.grad is not None
                parameter.grad.copy_(summed[parameter])
        return None if totals[0] is None else th.stack([total for total in totals if total is not None]).sum(0)

    def _make_lanes(self, n_lanes: int) -> None:
        like = self._parameters[0]
        self._grads = like.new_zeros(n_lanes, sum(parameter.numel() for parameter in self._parameters))
        self._lanes = [self._make(dict(zip(self._parameters, views_of(grads, self._parameters)))) for grads in self._grads]
