"""Ranks that add through the memory of their machine, against the sum itself and against gloo."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path
from typing import Any, List, Optional, Tuple

import pytest
import torch as th

from sb3_isaac.device import one_host, ranks
from tests.ranks_helpers import returned, run_ranks

N_SUMS = 60


def numbers(rank: int, i: int) -> th.Tensor:
    """What a rank gives at its i-th sum: other shapes and types each time."""
    generator = th.Generator().manual_seed(i)
    shape = [int(th.randint(0 if i % 7 == 0 else 1, 40, (), generator=generator)) for _ in range(1 + i % 2)]
    values = th.randn(*shape, generator=generator.manual_seed(1000 * i + rank))
    return values.double() if i % 3 == 0 else values


def add_up(rank: int) -> List[Tuple[th.Tensor, bool]]:
    ranks.join()
    assert ranks._Met.one_host is not None
    found = []
    for i in range(N_SUMS):
        if th.rand((), generator=th.Generator().manual_seed(7 * i + rank)) < 0.1:
            time.sleep(3 * one_host.SPIN_SECONDS)  # the others fall asleep
        mean = numbers(rank, i)
        ranks.mean_(mean)
        found.append((mean, ranks._Met.one_host.takes(mean)))
    large = th.full((one_host.BYTES // 4 + 1,), float(rank))
    ranks.mean_(large)
    return [*found, (large[-1:].clone(), ranks._Met.one_host.takes(large))]


@pytest.mark.parametrize("n_ranks", [2, 3])
def test_all_ranks_have_the_same_mean(n_ranks: int) -> None:
    found = returned(run_ranks(n_ranks, add_up))
    for i in range(N_SUMS):
        total = numbers(0, i)
        for rank in range(1, n_ranks):
            total = total + numbers(rank, i)
        for one in found:
            assert one[i][1] and one[i][0].dtype == total.dtype
            assert th.equal(one[i][0], total.mul(1.0 / n_ranks))
    for one in found:  # too large, so gloo's
        assert one[-1][0].item() == pytest.approx((n_ranks - 1) / 2) and not one[-1][1]


def lone(rank: int, what: str) -> Optional[Tuple[float, str]]:
    """What happens to the first rank when the second one ends: seconds until it knows, and how it is told."""
    ranks.join()
    ranks.mean_(th.ones(3))
    if rank == 1:
        time.sleep(0.3)  # the first sleeps by now
        if what == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        ranks.leave(ValueError("of its own"))
        return None
    started = time.perf_counter()
    with pytest.raises(ranks.RankLost) as error:
        ranks.mean_(th.ones(3))
        ranks.mean_(th.ones(3))  # by now there is nobody
    return time.perf_counter() - started, str(error.value)


@pytest.mark.parametrize("what, sentence", [("killed", ranks.LOST), ("left", "Rank 1: of its own")])
def test_who_waits_for_a_rank_that_ends_wakes_up(what: str, sentence: str) -> None:
    (seconds, told) = run_ranks(2, lone, what)[0][1]
    assert told.startswith(sentence) and seconds < one_host.TIMEOUT_SECONDS / 10


def apart(rank: int, why: str, folder: Path) -> Any:
    if why == "machine":
        socket.gethostname = lambda: f"machine {rank}"  # type: ignore[assignment]
    elif why == "no pipes":
        del os.mkfifo
    else:
        one_host.IN_MEMORY = one_host.tempfile.tempdir = str(folder / "missing")
    ranks.join()
    mean = th.tensor([float(rank)])
    ranks.mean_(mean)
    return ranks._Met.one_host, mean.item()


@pytest.mark.parametrize("why", ["machine", "no pipes", "nowhere to write"])
def test_ranks_apart_talk_through_gloo(why: str, tmp_path: Path) -> None:
    assert returned(run_ranks(2, apart, why, tmp_path)) == [(None, 0.5), (None, 0.5)]


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_host, "IN_MEMORY", str(tmp_path))
    returned(run_ranks(2, add_up))
    assert list(tmp_path.iterdir()) == []
