"""CUDA graphs for machines without a GPU: what a capture runs is recorded, operation by operation, and replayed as it was.

As a graph does, a replay reads and writes where the tensors lay at the capture, runs no Python of the function, and knows
nothing of tensors that have taken their place. So what goes wrong in a graph goes wrong here: numbers that were kept, tensors
that were replaced, values that the host has read.
"""

from __future__ import annotations

import sys
from typing import Any, Dict, List, Sequence

import pytest
import torch as th
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

from sb3_isaac.backends import torch_cartpole
from sb3_isaac.device import cuda_graph, fast_mlp
from sb3_isaac.envs.vec_env import IsaacVecEnv
from sb3_isaac.ppo.fast_policy import FastActorCriticPolicy

WAITS = ("_local_scalar_dense", "nonzero", "aten.equal", "masked_select")
"""Operations that wait for the device, which no capture may"""


def tensors_in(*trees: Any) -> List[th.Tensor]:
    return [leaf for leaf in tree_flatten(trees)[0] if isinstance(leaf, th.Tensor)]


def memory(tensor: th.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class Recording(TorchDispatchMode):
    """Records what is done while it is entered, and then puts back what that has changed.

    :param generators: the random generators that are used besides torch's default
    """

    def __init__(self, generators: Sequence[th.Generator]) -> None:
        super().__init__()
        self._generators = [th.default_generator, *generators]
        self._operations: List[Any] = []
        self._made: Dict[int, th.Tensor] = {}
        """By memory, what was made within"""
        self._found: Dict[int, th.Tensor] = {}
        """By memory, what was there before"""
        self._before: Dict[int, Any] = {}
        """By memory, a tensor that is written to, and what was in it"""
        self.replays = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(name in str(function) for name in WAITS):
            raise RuntimeError(f"{function} waits for the device, and this is captured.")
        # Views that nobody moves: a tensor's memory may be another one later, as with parameter.data = ...
        given, named = (
            tree_map(lambda x: x.detach() if isinstance(x, th.Tensor) else x, part) for part in (args, kwargs or {})
        )
        inputs = {memory(tensor) for tensor in tensors_in(given, named)}
        for tensor in tensors_in(given, named):
            if memory(tensor) not in self._made:
                self._found.setdefault(memory(tensor), tensor)
        written = self._written(function, given, named)
        for tensor in written:
            if memory(tensor) in self._found and memory(tensor) not in self._before:
                self._before[memory(tensor)] = tensor, tensor.untyped_storage().clone()
        result = function(*args, **(kwargs or {}))
        results = [tensor.detach() for tensor in tensors_in(result)]
        for tensor in results:
            if memory(tensor) not in inputs and memory(tensor) not in self._found:
                self._made[memory(tensor)] = tensor
        views = bool(results) and not written and all(memory(tensor) in inputs for tensor in results)
        if not views and "empty" not in str(function):
            self._operations.append((function, given, named, results))
        return result

    @staticmethod
    def _written(function: Any, args: Any, kwargs: Any) -> List[th.Tensor]:
        """The arguments that it writes to."""
        found: List[Any] = []
        for i, argument in enumerate(function._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                found.append(kwargs.get(argument.name, args[i] if i < len(args) else None))
        return tensors_in(found)

    def __enter__(self) -> Recording:
        self._states = [generator.get_state() for generator in self._generators]
        return super().__enter__()  # type: ignore[no-any-return]

    def __exit__(self, *exception: Any) -> Any:
        leave = super().__exit__(*exception)
        for tensor, content in self._before.values():
            tensor.untyped_storage().copy_(content)
        self._before.clear()
        for generator, state in zip(self._generators, self._states):
            generator.set_state(state)
        return leave

    def replay(self) -> None:
        self.replays += 1
        for function, args, kwargs, results in self._operations:
            for kept, new in zip(results, tensors_in(function(*args, **kwargs))):
                if kept.data_ptr() != new.data_ptr():
                    kept.copy_(new)


def record_graphs(monkeypatch: pytest.MonkeyPatch) -> List[Recording]:
    """Have ``compile=True`` do on a CPU what it does on a GPU, but for the compiler. Returns where recordings will be."""
    recordings: List[Recording] = []

    def open_(graph: Any) -> None:
        recording = Recording(graph._generators)
        recordings.append(recording)
        graph._stack.enter_context(recording)
        graph._graphs.append(recording)
        graph._parts.append(recording.replay)

    monkeypatch.setattr(cuda_graph.CudaGraph, "_open", open_)
    monkeypatch.setattr(cuda_graph, "DEVICES", ("cpu",))
    monkeypatch.setattr(cuda_graph.gc, "collect", lambda: 0)  # for older graphs, which need it on a GPU only
    # What is done on a CPU only: C, TorchScript, threads, a look at each step
    for module in [module for name, module in sorted(sys.modules.items()) if name.startswith("sb3_isaac.")]:
        if hasattr(module, "why_not_library"):
            monkeypatch.setattr(module, "why_not_library", lambda: "this is a GPU")
    monkeypatch.setattr(torch_cartpole, "traced", lambda task: None)
    monkeypatch.setattr(fast_mlp.FastMLP, "small", lambda *args: None)
    monkeypatch.setattr(FastActorCriticPolicy, "compile", lambda policy: None)
    monkeypatch.setattr(FastActorCriticPolicy, "_in_lanes", FastActorCriticPolicy._at_once)
    monkeypatch.setattr(IsaacVecEnv, "_check_finite", lambda *args: None)
    return recordings
