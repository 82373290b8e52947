"""The processes that train one model, which torchrun calls ranks: who they are, and all that they say to each other.

A process is one of several ranks if torchrun has started it (its variables are set), or if its program has initialised
``torch.distributed``'s default process group. Alone, every function here does nothing and costs next to nothing.

Numbers on a CPU and all decisions go through gloo, the numbers through memory where all ranks are on one machine
(``one_host.py``); gradients on GPUs go through NCCL. Where a function says so, all ranks must call it, in the same order.
https://pytorch.org/docs/stable/distributed.html
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import random
import socket
import warnings
from functools import partial
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence

import numpy as np
import torch as th
from torch import nn

from sb3_isaac.device import one_host
from sb3_isaac.device.cuda_graph import between_graphs
from sb3_isaac.device.finite import NotFiniteError

TORCHRUN = ("TORCHELASTIC_RUN_ID", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables that tell that torchrun has started this process."""
LOST = (
    "Another rank of this training has died or cannot be reached, and without it there is no update: training ends here too, "
    "and the last checkpoint stays as it is."
)


class RankLost(RuntimeError):
    """Another rank has ended, so this one cannot go on. The message says why, if it has told."""


class _Met:
    """What this process has of the others, once :func:`join` has met them."""

    group: Any = None
    """Of gloo, for everything on a CPU; None: the others have not been met"""
    one_host: Optional[one_host.OneHost] = None
    """Sums of tensors on a CPU, if all ranks are on one machine"""
    on_gpu: Any = None
    """The same for tensors on GPUs"""
    store: Any = None
    """Where a rank says why it ends; None: the program has made the process group, and keeps its store to itself"""
    initialised = False
    """Whether the process group is ours to destroy"""
    left = False
    seeded = False


# -- who ---------------------------------------------------------------------------------------------------------------


def launched() -> bool:
    """Whether torchrun has started this process."""
    return all(name in os.environ for name in TORCHRUN)


def _initialised() -> bool:
    distributed: Any = th.distributed
    return bool(distributed.is_available() and distributed.is_initialized())


def world_size() -> int:
    """How many ranks there are; 1: this process is alone."""
    if _initialised():
        return th.distributed.get_world_size()
    return int(os.environ["WORLD_SIZE"]) if launched() else 1


def rank() -> int:
    """The number of this one among them, from 0. The first one logs, evaluates and saves."""
    if _initialised():
        return th.distributed.get_rank()
    return int(os.environ["RANK"]) if launched() else 0


def restarts() -> int:
    """How often torchrun has started the ranks again, see its ``--max-restarts``."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) if launched() else 0


def agent() -> str:
    """A name of the torchrun that has started this process, which stays when it starts the ranks again."""
    parent, since = os.getppid(), ""
    with contextlib.suppress(OSError, IndexError):  # in a container each may have the same number
        since = Path(f"/proc/{parent}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{os.environ.get('TORCHELASTIC_RUN_ID')} {socket.gethostname()} {parent} {since}"


def own_seed(seed: Optional[int]) -> Optional[int]:
    """The seed of this rank: the given one and the number of the rank. None stays None."""
    return None if seed is None else seed + rank()


def choose_gpu() -> None:
    """Make "cuda" mean the GPU of this rank: each of the ranks on a machine has another one, as long as there are enough."""
    cuda: Any = th.cuda
    if launched() and world_size() > 1 and cuda.is_available() and not cuda.is_initialized():
        cuda.set_device(int(os.environ.get("LOCAL_RANK", rank())) % cuda.device_count())


# -- meeting and parting -----------------------------------------------------------------------------------------------


def join() -> None:
    """Meet the other ranks, if there are any and they have not been met. All ranks must call it.

    :raises RankLost: somebody did not come, or this rank has left them
    """
    if world_size() == 1 or _Met.group is not None:
        return
    if _Met.left:
        raise RankLost("This rank has left the others because of an error: start all of them again.")
    choose_gpu()
    distributed: Any = th.distributed
    with _with_others():
        if not distributed.is_initialized():
            store, number, size = next(iter(distributed.rendezvous("env://")))
            # torchrun keeps its store when it starts the ranks again
            prefixed = distributed.PrefixStore(f"sb3_isaac_{restarts()}", store)
            distributed.init_process_group("gloo", store=prefixed, rank=number, world_size=size)
            _Met.store, _Met.initialised = distributed.PrefixStore(f"sb3_isaac_end_{restarts()}", store), True
        _Met.group = distributed.new_group(backend="gloo")
    _Met.one_host = one_host.meet(rank(), gather)
    atexit.register(_part)


def meet_on(device: th.device) -> None:
    """Choose how tensors on ``device`` are averaged: by NCCL, which wants a GPU for each rank. All ranks must call it."""
    if world_size() == 1 or device.type != "cuda" or _Met.on_gpu is not None:
        return
    distributed: Any = th.distributed
    index = device.index if device.index is not None else th.cuda.current_device()
    uuid = getattr(th.cuda.get_device_properties(index), "uuid", (os.environ.get("CUDA_VISIBLE_DEVICES"), index))
    gpus = gather((socket.gethostname(), str(uuid)))
    if distributed.is_nccl_available() and len(set(gpus)) == len(gpus):
        with _with_others():
            _Met.on_gpu = distributed.new_group(backend="nccl")
        return
    if rank() == 0:
        warnings.warn(
            f"{len(gpus)} ranks share {len(set(gpus))} GPUs: their gradients go through the host, which is slow. Start as "
            "many ranks as there are GPUs.",
            stacklevel=2,
        )
    _Met.on_gpu = _Met.group


def seed_apart() -> None:
    """Once in a process that has no seed of its own: other random numbers than those of the first rank."""
    if rank() > 0 and not _Met.seeded:
        random.seed(random.getrandbits(31) + rank())
        np.random.seed(np.random.randint(2**31 - 1) + rank())
        th.manual_seed(int(th.randint(2**31 - 1, ())) + rank())
    _Met.seeded = True


def leave(error: BaseException) -> None:
    """Part with the others because of an error, and tell them. Who waits for this rank, or will, has a :class:`RankLost`, or
    the same :class:`NotFiniteError`."""
    if _Met.group is None:
        return
    why = {"rank": rank(), "kind": type(error).__name__, "sentence": " ".join(str(error).split())}
    if not isinstance(error, RankLost) and _Met.store is not None:
        with contextlib.suppress(RuntimeError, ValueError):  # nobody is left who could hear it
            _Met.store.compare_set("why", "", json.dumps(why))
            _Met.store.add("ends", 1)
    _Met.left = True
    _part()


def speaks() -> bool:
    """Whether this rank is the one to say why the run ends: the first that asks."""
    if _Met.store is None:
        return True
    try:
        return bool(_Met.store.compare_set("said", "", str(rank())).decode() == str(rank()))
    except (RuntimeError, ValueError):
        return True


def _part() -> None:
    """Close the connections, which wakes whoever waits for this rank."""
    distributed: Any = th.distributed
    group, _Met.group, _Met.on_gpu = _Met.group, None, None
    if _Met.one_host is not None:
        _Met.one_host.close()
        _Met.one_host = None
    if group is not None:
        with contextlib.suppress(RuntimeError, ValueError, AssertionError):
            distributed.destroy_process_group(None if _Met.initialised else group)


def _told() -> Optional[Dict[str, Any]]:
    """Why another rank has left, if one has said so."""
    if _Met.store is None:
        return None
    try:
        if _Met.store.add("ends", 0) == 0:
            return None
        why: Dict[str, Any] = json.loads(_Met.store.get("why"))
        return why
    except (RuntimeError, ValueError):
        return None


@contextlib.contextmanager
def _with_others() -> Iterator[None]:
    """For a block that waits for other ranks.

    :raises RankLost: one is not there any more
    :raises NotFiniteError: it has met NaN or infinity
    """
    if _Met.left:
        raise RankLost("This rank has left the others because of an error: start all of them again.")
    try:
        yield
    except RuntimeError as error:
        why = _told()
        if why is None:
            raise RankLost(f"{LOST} ({str(error).strip().splitlines()[0][:150]})") from error
        kind = NotFiniteError if why["kind"] == NotFiniteError.__name__ else RankLost
        raise kind(f"Rank {why['rank']}: {why['sentence']}") from error


# -- numbers -----------------------------------------------------------------------------------------------------------


def mean_(*tensors: th.Tensor) -> None:
    """Put the mean over all ranks into tensors of one type and device, in one all-reduce. All ranks must call it.

    Between two CUDA graphs, where it is called within what is captured.
    """
    if world_size() > 1:
        between_graphs(partial(_mean_, tensors))


def _mean_(tensors: Sequence[th.Tensor]) -> None:
    flat = tensors[0] if len(tensors) == 1 and tensors[0].is_contiguous() else th.cat([x.reshape(-1) for x in tensors])
    distributed: Any = th.distributed
    with _with_others(), th.no_grad():
        if _Met.one_host is not None and _Met.one_host.takes(flat):
            _Met.one_host.sum_(flat.view(-1))
        else:
            distributed.all_reduce(flat, group=_Met.on_gpu if flat.is_cuda else _Met.group)
        flat.mul_(1.0 / world_size())
        if flat is not tensors[0]:
            for tensor, mean in zip(tensors, th.split(flat, [x.numel() for x in tensors])):
                tensor.copy_(mean.view(tensor.shape))


def mean_gradients(parameters: Iterable[nn.Parameter], *more: th.Tensor) -> None:
    """The mean over all ranks of the gradients that autograd has left, and of ``more``, in place. All ranks must call it.

    A parameter that has no gradient on any rank has none afterwards.
    """
    if world_size() == 1:
        return
    learned = [parameter for parameter in parameters if parameter.requires_grad]
    missing = [parameter for parameter in learned if parameter.grad is None]
    used = th.tensor([float(parameter.grad is not None) for parameter in learned], device=learned[0].device)
    for parameter in missing:
        parameter.grad = th.zeros_like(parameter)
    mean_(*(parameter.grad for parameter in learned if parameter.grad is not None), used, *more)
    if missing:
        for parameter, share in zip(learned, used.tolist()):
            if share == 0.0:
                parameter.grad = None


def moments(samples: Sequence[th.Tensor]) -> th.Tensor:
    """(len(samples), 2) float64: mean and variance of each of the tensors, over those of all ranks. All ranks must call it.

    :param samples: the tensors of one place have as many numbers on all ranks
    """
    counts = th.tensor([float(x.numel()) for x in samples], dtype=th.float64, device=samples[0].device)
    doubles = [x.double() for x in samples]
    first = th.stack([x.sum() for x in doubles]) / counts
    mean_(first)
    second = th.stack([(x - mean).square().sum() for x, mean in zip(doubles, first)]) / counts
    mean_(second)
    return th.stack((first, second), 1)


# -- decisions ---------------------------------------------------------------------------------------------------------


def gather(value: Any) -> List[Any]:
    """What each rank says, in their order. All ranks must call it.

    :param value: what pickle takes, without tensors
    """
    size = world_size()
    if size == 1:
        return [value]
    found: List[Any] = [None] * size
    distributed: Any = th.distributed
    with _with_others():
        distributed.all_gather_object(found, value, group=_Met.group)
    return found


def from_first(value: Any) -> Any:
    """What the first rank says. All ranks must call it.

    :param value: what pickle takes, tensors on a CPU included
    """
    if world_size() == 1:
        return value
    told = [value if rank() == 0 else None]
    distributed: Any = th.distributed
    with _with_others():
        distributed.broadcast_object_list(told, src=0, group=_Met.group)
    return told[0]


def check_alike(settings: Dict[str, Any]) -> None:
    """Whether settings are the same on all ranks. All ranks must call it.

    :raises ValueError: one is not; on all ranks
    """
    everywhere = gather(settings)
    for name in everywhere[0]:
        values = [one.get(name) for one in everywhere]
        if any(value != values[0] for value in values):
            raise ValueError(
                f"{name} must be the same on all ranks, and is {', '.join(map(str, values))} on ranks 0 to {len(values) - 1}."
            )
