"""CUDA graphs, which start hundreds of small kernels by one call: warming up, capturing, replaying, voiding."""

from __future__ import annotations

import dataclasses
import functools
import gc
import types
from contextlib import ExitStack, nullcontext
from typing import Any, Callable, ContextManager, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch as th


def plain_attributes(owner: object) -> Dict[str, Any]:
    """What an object holds that a graph of its methods keeps as it was: numbers, switches, groups of them, and functions."""

    def plain(value: Any) -> bool:
        if isinstance(value, tuple):
            return all(map(plain, value))
        settings = dataclasses.is_dataclass(value) and type(value).__hash__ is not None  # frozen, so comparing is safe
        return settings or isinstance(value, (bool, int, float, str, np.generic, *FUNCTIONS))

    return {name: value for name, value in vars(owner).items() if plain(value)}


FUNCTIONS = (types.FunctionType, types.MethodType, functools.partial)
"""Which somebody may put in the place of a method"""


@functools.lru_cache(maxsize=None)
def _stream(device: int) -> Any:
    """Where graphs of a device are captured. PyTorch has one for all devices, on that which was the current one first."""
    return th.cuda.Stream(device)  # type: ignore[no-untyped-call]


def on_device(device: th.device) -> ContextManager[Any]:
    """Make a GPU the current one, on which kernels and graphs are captured."""
    return th.cuda.device(device) if device.type == "cuda" else nullcontext()


DEVICES = ("cuda",)
"""That have graphs"""


def has_graphs(device: th.device) -> bool:
    """Whether functions can be captured on a device."""
    return device.type in DEVICES


_capturing: Optional[CudaGraph] = None
"""What is being captured"""


def between_graphs(action: Callable[[], Any]) -> None:
    """Do what no graph can hold, such as waiting for another process: now, or, within a capture, at each replay.

    There the graph is cut in two, and ``action`` is done between them. It gets the tensors that the graphs have at fixed
    addresses, and must leave its results there.
    """
    if _capturing is None:
        action()
    else:
        _capturing.cut(action)


class CudaGraph:
    """A function of tensors at fixed addresses, captured once and replayed.

    Capturing runs the Python code but no kernel, so the function's state on the device stays as it is. It must have run
    before (libraries initialise themselves in the first call), must not wait for the device, and gives the tensors of the
    capture, whose content every replay overwrites. Random numbers go on as in eager calls.

    Source: https://pytorch.org/docs/stable/notes/cuda.html#cuda-graphs

    :param function: what to capture
    :param inputs: its arguments; the content of tensors among them may differ at each replay
    :param owners: objects whose attributes the function sets to new tensors. They are to stay the graph's tensors, whatever
        happens between replays.
    :param generators: the random generators it uses besides torch's default
    """

    def __init__(
        self,
        function: Callable[..., Any],
        inputs: Sequence[Any] = (),
        owners: Sequence[object] = (),
        generators: Sequence[th.Generator] = (),
    ) -> None:
        self._inputs = [x.clone() if isinstance(x, th.Tensor) else x for x in inputs]
        before = [dict(vars(owner)) for owner in owners]
        self._generators = generators
        self._graphs: List[Any] = []
        self._parts: List[Callable[[], Any]] = []
        """What a replay does: graphs, and what is done between them"""
        self._stack = ExitStack()
        # If garbage collection freed an older graph in the middle, CUDA would give up the capture
        gc.collect()
        collecting = gc.isenabled()
        gc.disable()
        global _capturing
        outer, _capturing = _capturing, self
        try:
            with self._stack:
                self._open()
                self._result = function(*self._inputs)
        finally:
            _capturing = outer
            if collecting:
                gc.enable()
        self._rebound: List[Tuple[object, Dict[str, th.Tensor]]] = []
        self._read: List[Tuple[object, Dict[str, th.Tensor]]] = []
        """What owners held all the time: a graph goes on to read it where it was"""
        for owner, old in zip(owners, before):
            tensors = {k: v for k, v in vars(owner).items() if isinstance(v, th.Tensor)}
            self._rebound.append((owner, {k: v for k, v in tensors.items() if old.get(k) is not v}))
            self._read.append((owner, {k: v for k, v in tensors.items() if old.get(k) is v}))

    def _open(self) -> None:
        """Begin to capture a graph, which shares the memory of those before it: what they leave there is for it to read."""
        graph = th.cuda.CUDAGraph()
        for generator in self._generators:
            graph.register_generator_state(generator)
        pool = {"pool": self._graphs[0].pool()} if self._graphs else {}
        self._stack.enter_context(th.cuda.graph(graph, stream=_stream(th.cuda.current_device()), **pool))
        self._graphs.append(graph)
        self._parts.append(graph.replay)

    def cut(self, action: Callable[[], Any]) -> None:
        """End the graph that is being captured, and begin another one, see :func:`between_graphs`."""
        self._stack.close()
        self._parts.append(action)
        self._open()

    def is_current(self) -> bool:
        """Whether owners still have the tensors that the graph reads, and nobody has put others in their place."""
        return all(vars(owner).get(k) is v for owner, tensors in self._read for k, v in tensors.items())

    def __call__(self, *inputs: Any) -> Any:
        for captured, given in zip(self._inputs, inputs):
            if isinstance(captured, th.Tensor):
                captured.copy_(given)
        for part in self._parts:
            part()
        for owner, tensors in self._rebound:
            vars(owner).update(tensors)
        return self._result


class Graphed:
    """A function that on a GPU is captured in CUDA graphs, one for each combination of its arguments' shapes.

    The first call with such arguments runs as it is, the second captures, later ones replay.

    :param function: arguments are tensors, and numbers that are part of the graph
    :param enabled: False: always run the function as it is
    :param owners: see :class:`CudaGraph`; also, a change of their numbers and switches voids the graphs, and so do other
        tensors in the place of those that they had
    :param generators: gives those of :class:`CudaGraph`; others in their place void the graphs
    """

    def __init__(
        self,
        function: Callable[..., Any],
        enabled: bool,
        owners: Sequence[object] = (),
        generators: Callable[[], Sequence[th.Generator]] = tuple,
    ) -> None:
        self.function = function
        self.enabled = enabled
        self.graphs: Dict[Tuple[Any, ...], CudaGraph] = {}
        self._warm: List[Tuple[Any, ...]] = []
        self._owners = owners
        self._generators = generators
        self._constants: Any = None

    def begin(self, *constants: Any) -> None:
        """To be called before a series of calls: graphs that were captured with other constants are void.

        :param constants: what the function reads and a graph keeps: numbers, and objects, which are compared by identity
        """
        if not self.enabled:
            self.disable()
            return
        now = (constants, [*map(id, self._generators())], [(owner, plain_attributes(owner)) for owner in self._owners])
        if now != self._constants or not all(graph.is_current() for graph in self.graphs.values()):
            self.graphs.clear()
            self._warm.clear()
            self._constants = now

    def disable(self) -> None:
        """Run the function as it is from now on, and forget its graphs."""
        self.enabled, self._constants = False, None
        self.graphs.clear()

    def __call__(self, *inputs: Any) -> Any:
        if not self.enabled:
            return self.function(*inputs)
        key = tuple(x.shape if isinstance(x, th.Tensor) else x for x in inputs)
        graph = self.graphs.get(key)
        if graph is None:
            if key not in self._warm:
                self._warm.append(key)
                return self.function(*inputs)
            graph = self.graphs[key] = CudaGraph(self.function, inputs, self._owners, self._generators())
        return graph(*inputs)


def check_compile(device: th.device) -> None:
    """Whether ``compile=True`` can work on a device.

    :raises RuntimeError: if torch is too old
    """
    if device.type == "cuda" and not hasattr(th.cuda.CUDAGraph, "register_generator_state"):
        raise RuntimeError(f"compile=True on a GPU needs torch 2.4 or newer, this is {th.__version__}: leave it out.")
