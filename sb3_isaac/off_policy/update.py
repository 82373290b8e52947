"""The updates of DQN and DDPG: which minibatches, in how large chunks, and whether in a CUDA graph."""

from __future__ import annotations

from typing import Any, Callable, List, Sequence

import torch as th

from sb3_isaac.buffers.replay_buffer import DeviceReplayBuffer, ReplaySamples
from sb3_isaac.device.cuda_graph import Graphed, plain_attributes
from sb3_isaac.device.host import same_device

CHUNK = 32_768
"""Rows of a large batch that a CPU works through at once, to save memory."""
SAMPLE_ROWS = 4096
"""Small batches are drawn from the replay buffer together, up to so many transitions."""


def chunks(n: int, size: int) -> List[slice]:
    """Slices of at most ``size`` rows that cover ``n`` rows."""
    return [slice(start, min(start + size, n)) for start in range(0, n, size)]


def chunk_rows(batch_size: int, device: th.device) -> int:
    """Rows that the networks work through at once."""
    rows = max(SAMPLE_ROWS, batch_size)
    return rows if device.type == "cuda" else min(rows, CHUNK)


class Updates:
    """Draws minibatches and has gradient steps done on them, on a GPU also in a CUDA graph.

    :param vec_normalize: what normalises the samples, or None
    :param update: from transitions and the number of minibatches that they are; must be safe to capture
    :param captures: whether in a CUDA graph
    """

    def __init__(self, vec_normalize: Any, update: Callable[[ReplaySamples, int], None], captures: bool) -> None:
        self._vec_normalize = vec_normalize
        self._update = update
        self.captures = captures
        self._buffer: Any = None
        self._newest: Any = None
        self.graphed_update = Graphed(self._update_at, captures)

    def run(self, buffer: DeviceReplayBuffer, gradient_steps: int, batch_size: int, constants: Sequence[Any]) -> None:
        """``gradient_steps`` steps on minibatches of ``batch_size`` transitions.

        :param constants: the settings that ``update`` reads, which a captured graph keeps as they were
        """
        graphed = self.graphed_update
        graphed.enabled = graphed.enabled and same_device(buffer.storage_device, buffer.device)
        if buffer is not self._buffer:
            self._buffer, self._newest = buffer, th.zeros((), dtype=th.int64, device=buffer.storage_device)
        graphed.begin(buffer, buffer.n_steps, buffer.gamma, buffer.handle_timeout_termination, self._normalizing(), *constants)
        for steps in chunks(gradient_steps, max(1, SAMPLE_ROWS // batch_size)):
            n = steps.stop - steps.start
            if graphed.enabled:
                self._newest.fill_(buffer.newest)
                graphed(buffer.draw(n * batch_size), n)
            else:
                self._update(buffer.sample_tensors(n * batch_size, env=self._vec_normalize), n)

    def _normalizing(self) -> Any:
        """What a graph keeps of VecNormalize: settings, and where its statistics are."""
        if self._vec_normalize is None or not self.graphed_update.enabled:
            return None
        return plain_attributes(self._vec_normalize), vars(self._vec_normalize).get("_state")

    def _update_at(self, index: th.Tensor, gradient_steps: int) -> None:
        self._update(self._buffer.at(index, env=self._vec_normalize, newest=self._newest), gradient_steps)
