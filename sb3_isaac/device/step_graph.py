"""A step of the environments in a CUDA graph, and how to see that it still does what an uncaptured one would."""

from __future__ import annotations

from typing import Any, Callable, Dict, List

import torch as th

from sb3_isaac.device.cuda_graph import CudaGraph


def layers(env: Any) -> List[Any]:
    """The wrappers, the env and the simulator."""
    found = [env]
    while "venv" in vars(found[-1]):
        found.append(found[-1].venv)
    return [*found, env.tensor_env]


def plain_settings(env: Any) -> List[Dict[str, Any]]:
    """The numbers and switches of all layers, which a captured step keeps as they were."""
    return [{k: v for k, v in vars(layer).items() if isinstance(v, (bool, int, float, str))} for layer in layers(env)]


class StepGraph:
    """A function that steps ``env``, captured once and replayed. See :class:`~sb3_isaac.device.cuda_graph.CudaGraph`.

    :param env: a VecEnv on the tensor path, wrapped or not, whose simulator is ``capturable``
    :param step: what to capture
    """

    def __init__(self, env: Any, step: Callable[[], Any]) -> None:
        before = [(layer, dict(vars(layer))) for layer in layers(env)]
        generator = getattr(env.tensor_env, "generator", None)
        self._graph = CudaGraph(step, [] if generator is None else [generator])
        # Attributes that a step assigns anew are to stay the graph's tensors, whatever happens between replays
        self._rebound = [
            (layer, {k: v for k, v in vars(layer).items() if isinstance(v, th.Tensor) and old.get(k) is not v})
            for layer, old in before
        ]

    def __call__(self) -> Any:
        """One step. Returns what the captured one returned: its tensors, overwritten."""
        result = self._graph()
        for layer, tensors in self._rebound:
            vars(layer).update(tensors)
        return result
