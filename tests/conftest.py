"""What tests of several folders share."""

from __future__ import annotations

from typing import Any, Callable, Sequence

import pytest
import torch as th

from sb3_isaac.device import cuda_graph


class StandInGraph:
    """What replaying a CUDA graph does, for machines without one: the function again, on inputs that stay where they were."""

    def __init__(
        self, function: Callable[..., Any], inputs: Sequence[Any] = (), owners: Any = (), generators: Any = ()
    ) -> None:
        self.function = function
        self.inputs = [x.clone() if isinstance(x, th.Tensor) else x for x in inputs]
        self.replays = 0

    def __call__(self, *inputs: Any) -> Any:
        self.replays += 1
        for captured, given in zip(self.inputs, inputs):
            if isinstance(captured, th.Tensor):
                captured.copy_(given)
            else:
                assert captured == given
        return self.function(*self.inputs)


def stand_in_for_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graph, "CudaGraph", StandInGraph)
