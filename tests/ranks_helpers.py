"""Several processes that train one model, without torchrun: forks of the test's own process, which import nothing."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from typing import Any, Callable, List

import torch as th

PATIENCE = 300.0
"""Seconds after which a rank hangs: on a busy machine each waits long for the other, hundreds of times"""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _child(pipes: Any, function: Callable[..., Any], rank: int, n_ranks: int, port: int, args: Any) -> None:
    for i, (outside, inside) in enumerate(pipes):  # so that who dies is heard of
        outside.close()
        if i != rank:
            inside.close()
    pipe = pipes[rank][1]
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(n_ranks), TORCHELASTIC_RUN_ID="test")
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    th.set_num_threads(1)
    try:
        pipe.send(("returned", function(rank, *args)))
    except BaseException as error:
        pipe.send((type(error).__name__, f"{error}\n{traceback.format_exc()}"))
    pipe.recv()  # nobody leaves before all are through, as the first has the store
    os._exit(0)


def run_ranks(n_ranks: int, function: Callable[..., Any], *args: Any) -> List[Any]:
    """Call ``function(rank, *args)`` in so many processes at once.

    :return: for each rank ("returned", what it returned), (name of the exception, its text), or ("died", None)
    """
    context = multiprocessing.get_context("fork")
    port, results = free_port(), []
    pipes = [context.Pipe() for _ in range(n_ranks)]
    children = [context.Process(target=_child, args=(pipes, function, rank, n_ranks, port, args)) for rank in range(n_ranks)]
    for child in children:
        child.start()
    for _, inside in pipes:
        inside.close()
    try:
        for outside, _ in pipes:
            assert outside.poll(PATIENCE), "a rank hangs"
            try:
                results.append(outside.recv())
            except EOFError:
                results.append(("died", None))
        for (outside, _), result in zip(pipes, results):
            if result[0] != "died":
                outside.send(None)
    finally:
        for child in children:
            child.join(0.0 if len(results) < n_ranks else 60)
            child.kill()
            child.join()
    return results


def returned(results: List[Any]) -> List[Any]:
    """What all ranks have returned."""
    assert all(kind == "returned" for kind, _ in results), results
    return [value for _, value in results]
