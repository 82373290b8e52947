"""Capture a function in a CUDA graph: hundreds of small kernels are then started by one call."""

from __future__ import annotations

import gc
from typing import Any, Callable, Iterable

import torch as th


class CudaGraph:
    """A function without arguments that reads and writes tensors at fixed addresses, captured once and replayed.

    Capturing runs the Python code but no kernel, so the function's state on the device stays as it is. It must have run
    before (libraries initialise themselves in the first call), must not wait for the device, and gives the tensors of the
    capture, whose content every replay overwrites. Random numbers go on as in eager calls.

    Source: https://pytorch.org/docs/stable/notes/cuda.html#cuda-graphs

    :param function: what to capture
    :param generators: the random generators it uses besides torch's default
    """

    def __init__(self, function: Callable[[], Any], generators: Iterable[th.Generator] = ()) -> None:
        self._graph = th.cuda.CUDAGraph()
        for generator in generators:
            self._graph.register_generator_state(generator)
        # If garbage collection freed an older graph in the middle, CUDA would give up the capture
        gc.collect()
        collecting = gc.isenabled()
        gc.disable()
        try:
            with th.cuda.graph(self._graph):
                self.result = function()
        finally:
            if collecting:
                gc.enable()

    def __call__(self) -> Any:
        self._graph.replay()
        return self.result


def check_compile(device: th.device) -> None:
    """Whether ``compile=True`` can work.

    :raises RuntimeError: if torch is too old
    """
    if not hasattr(th, "compile"):
        raise RuntimeError(f"compile=True needs torch 2 or newer, this is {th.__version__}: leave it out.")
    if device.type == "cuda" and not hasattr(th.cuda.CUDAGraph, "register_generator_state"):
        raise RuntimeError(f"compile=True on a GPU needs torch 2.4 or newer, this is {th.__version__}: leave it out.")
