"""The sum over ranks of one machine, through its memory.

gloo sends tensors through sockets that threads of its own look after: where a minibatch takes some milliseconds, these threads
wake up late and every minibatch waits for them. Here each rank writes its numbers where the others read them, tells them so
by a byte through a pipe, and adds what it reads, always in the order of the ranks: all have the same sum to the last bit.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import socket
import tempfile
import time
from pathlib import Path
from typing import Callable, Dict, List, Optional, Tuple

import torch as th

BYTES = 2**20
"""Room for the numbers of one sum, per rank and twice. What is larger is for gloo"""
SPIN_SECONDS = 0.005
"""How long a rank looks again and again before it sleeps: waking up takes longer than the others usually do"""
TIMEOUT_SECONDS = 1800.0
"""As long as gloo waits for a rank"""
READY = b"."
IN_MEMORY = "/dev/shm"
"""Files there are memory, on Linux"""


class OneHost:
    """Sums of CPU tensors over ranks that share a machine. Made by :func:`meet`."""

    def __init__(self, folder: Path, rank: int, gather: Callable[[object], List[object]]):
        """
        :param folder: an empty one, that all ranks see; not needed afterwards
        :param gather: what :func:`sb3_isaac.device.ranks.gather` does; all ranks meet there
        """
        size = len(gather(None))
        self._rank = rank
        others = [k for k in range(size) if k != rank]
        # As with every FIFO: who reads can open it first, who writes only then.
        for k in others:
            os.mkfifo(folder / f"{k}_to_{rank}")
        self._from: Dict[int, int] = {k: os.open(folder / f"{k}_to_{rank}", os.O_RDONLY | os.O_NONBLOCK) for k in others}
        gather(None)
        self._to: List[int] = [os.open(folder / f"{rank}_to_{k}", os.O_WRONLY) for k in others]
        # Whoever comes first makes the file.
        memory = th.from_file(str(folder / "memory"), shared=True, size=2 * size * BYTES, dtype=th.uint8)
        self._memory = memory.view(2, size, BYTES)
        self._half = 0
        self._views: Dict[Tuple[int, th.dtype], List[List[th.Tensor]]] = {}
        gather(None)

    def takes(self, tensor: th.Tensor) -> bool:
        """Whether there is room for it."""
        return tensor.device.type == "cpu" and tensor.numel() * tensor.element_size() <= BYTES

    def sum_(self, flat: th.Tensor) -> None:
        """Put the sum over all ranks into ``flat`` (n,), contiguous. All ranks must call it.

        :raises RuntimeError: another rank has ended, or has not come for half an hour
        """
        key = (flat.numel(), flat.dtype)
        if key not in self._views:
            count = flat.numel() * flat.element_size()
            self._views[key] = [[one[:count].view(flat.dtype) for one in half] for half in self._memory]
        # Two halves: when all have come to the next sum, all have read this one.
        self._half = 1 - self._half
        parts = self._views[key][self._half]
        parts[self._rank].copy_(flat)
        try:
            for pipe in self._to:
                os.write(pipe, READY)
            for rank, pipe in self._from.items():
                self._wait_for(rank, pipe)
        except OSError as error:  # nobody reads there any more
            raise RuntimeError(f"a rank on this machine has ended: {error}") from error
        th.add(parts[0], parts[1], out=flat)
        for part in parts[2:]:
            flat.add_(part)

    def _wait_for(self, rank: int, pipe: int) -> None:
        sleeps_at = time.perf_counter() + SPIN_SECONDS
        while True:
            with contextlib.suppress(BlockingIOError):  # nothing there yet
                if os.read(pipe, 1) == READY:
                    return
                raise RuntimeError(f"rank {rank} has ended")
            if time.perf_counter() < sleeps_at:
                os.sched_yield()
            elif not select.select([pipe], [], [], TIMEOUT_SECONDS)[0]:
                raise RuntimeError(f"rank {rank} has not come for {TIMEOUT_SECONDS:.0f} s")

    def close(self) -> None:
        """Let the others know that this rank comes no more."""
        for pipe in (*self._from.values(), *self._to):
            os.close(pipe)
        self._from, self._to = {}, []


def meet(rank: int, gather: Callable[[object], List[object]]) -> Optional[OneHost]:
    """Sums through memory, if all ranks are on one machine that can. All ranks must call it."""
    folder = ""
    if rank == 0:
        with contextlib.suppress(OSError):  # nowhere to write
            folder = tempfile.mkdtemp(prefix="sb3_isaac_", dir=IN_MEMORY if os.access(IN_MEMORY, os.W_OK) else None)
    try:
        folder = str(gather(folder)[0])
        able = all(hasattr(os, name) for name in ("mkfifo", "sched_yield"))
        # Another machine may see a folder of that name, and another container of this one another /dev/shm.
        places = gather((socket.gethostname(), able and os.access(folder, os.W_OK)))
        return OneHost(Path(folder), rank, gather) if set(places) == {(socket.gethostname(), True)} else None
    finally:
        if rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
