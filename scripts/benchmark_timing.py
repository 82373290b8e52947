"""What benchmark.py and benchmark_peers.py share: the work of a PPO row, and the clock."""

from __future__ import annotations

import time
from typing import Any, Callable

import torch as th

HORIZON, EPOCHS, MINIBATCH = 16, 8, 8192


def rate(work: Callable[[], Any], *, units: float, seconds: float, device: str, warm_up: int = 2) -> float:
    """Units per second of ``work``, repeated for about the given time, once at least, after calls that do not count."""

    def synchronize() -> None:
        if device.startswith("cuda"):
            th.cuda.synchronize()

    for _ in range(warm_up):
        work()
    synchronize()
    calls, start = 0, time.perf_counter()
    while calls == 0 or time.perf_counter() - start < seconds:
        work()
        synchronize()
        calls += 1
    return calls * units / (time.perf_counter() - start)
