"""SB3's running mean and variance in tensors, and the numpy object through which SB3 sees them."""

from __future__ import annotations

import copy
import math
from typing import Any, Tuple

import numpy as np
import torch as th
from stable_baselines3.common.running_mean_std import RunningMeanStd

from sb3_isaac._native import library
from sb3_isaac.device import ranks

INITIAL_COUNT = 1e-4
"""SB3 starts from mean 0 and variance 1 with this weight, which avoids a division by zero."""


class RunningMoments:
    """Mean and variance of K columns on a device, and the factors that normalise by them.

    The statistics are float64, as SB3's: they are sums over a whole training, and their K numbers are too few for slow
    float64 units to matter. What touches every observation (``scale``, ``offset``) is float32. All tensors keep their
    address, so that an update can be captured in a CUDA graph; nothing waits for the device.

    :param n_columns: number of columns K
    :param device: torch device
    :param epsilon: added to the variance before its root is taken
    """

    in_c = False
    """Whether an update, of a contiguous batch on a CPU, is in C"""

    def __init__(self, n_columns: int, device: th.device, epsilon: float) -> None:
        self.mean = th.zeros(n_columns, dtype=th.float64, device=device)
        self.var = th.ones_like(self.mean)
        self.count = th.full_like(self.mean, INITIAL_COUNT)
        self.epsilon = th.full_like(self.mean, epsilon)
        self.scale = th.zeros(n_columns, dtype=th.float32, device=device)
        self.offset = th.zeros(n_columns, dtype=th.float32, device=device)
        self._zero = th.zeros_like(self.mean)
        self.refresh()

    def columns(self, which: slice) -> RunningMoments:
        """Some of the columns, as views: they share their numbers with this object."""
        some = copy.copy(self)
        for name, value in vars(self).items():
            setattr(some, name, value[which] if isinstance(value, th.Tensor) else value)
        return some

    def update(self, batch: th.Tensor) -> None:
        """Take in a batch. Columns that are not finite change nothing but the count.

        Source: Chan et al., "Updating formulae and a pairwise algorithm for computing sample variances" (1979), as in
        SB3's ``RunningMeanStd.update_from_moments``.

        :param batch: (K, N) float64: one row per column, which makes the sums contiguous
        """
        n = batch.shape[1]
        if self.in_c:
            tensors = (self.mean, self.var, self.count, self.epsilon, self.scale, self.offset)
            library().update_moments(batch.data_ptr(), len(batch), n, *(tensor.data_ptr() for tensor in tensors))
            return
        # Two passes: th.var_mean (Welford) is five times slower on a CPU, sums of squares are less exact.
        batch_mean = batch.mean(1)
        batch_var = (batch - batch_mean.unsqueeze(1)).square_().mean(1)
        # A column with NaN or infinity leaves its statistics as they are
        finite = batch_var < math.inf
        batch_mean, batch_var = th.where(finite, batch_mean, self.mean), th.where(finite, batch_var, self.var)
        weight = self.count.add_(n).reciprocal().mul_(n)
        delta = batch_mean - self.mean
        self.mean.addcmul_(delta, weight)
        # var = (1 - weight) var + weight (batch_var + (1 - weight) delta^2); (1 - weight) delta is now batch_mean - mean
        self.var.lerp_(batch_var.addcmul_(delta, batch_mean.sub_(self.mean)), weight)
        self.refresh()

    def merge(self, base: th.Tensor) -> None:
        """Take in what other ranks have added to statistics that all had in common. All ranks must call it.

        Source: Chan et al., see :meth:`update`, with sums about the common mean

        :param base: (3, K) float64, mean, variance and count that all had
        """
        mean, var, count = base
        shift = self.mean - mean
        more = th.stack(
            (self.count - count, self.count * shift, self.count * (self.var + shift.square()) - count * var)
        )  # numbers, their sum and sum of squares
        ranks.mean_(more)
        n, total, squares = more.mul_(ranks.world_size())
        th.add(count, n, out=self.count)
        shift = total / self.count
        th.add(mean, shift, out=self.mean)
        self.var.copy_((count * var + squares) / self.count - shift.square())
        self.refresh()

    def refresh(self) -> None:
        """Recompute ``scale`` and ``offset``: ``(x - mean) / sqrt(var + epsilon)`` is ``x * scale + offset``."""
        scale = (self.var + self.epsilon).rsqrt_()
        self.scale.copy_(scale)
        self.offset.copy_(th.addcmul(self._zero, self.mean, scale, value=-1.0))


def _live_property(name: str) -> Any:
    """An attribute of :class:`LiveRunningMeanStd` that is read from a tensor of its moments, and written to it."""

    def read(rms: LiveRunningMeanStd) -> np.ndarray:
        array: np.ndarray = getattr(rms._moments, name).cpu().numpy().reshape(rms._shape).copy()
        array.flags.writeable = False
        return array

    def write(rms: LiveRunningMeanStd, new: Any) -> None:
        array = np.broadcast_to(np.asarray(new, dtype=np.float64), rms._shape)
        getattr(rms._moments, name).copy_(th.from_numpy(array.reshape(-1).copy()))
        rms._moments.refresh()

    return property(read, write)


class LiveRunningMeanStd(RunningMeanStd):
    """SB3's RunningMeanStd whose numbers are those of a :class:`RunningMoments`.

    Reading copies from the device, assigning writes to it: SB3's own code works on it unchanged. The arrays that it
    returns cannot be written into (``rms.mean[0] = 1`` raises), because that would not reach the device: assign a whole
    one (``rms.mean = ...``). Copies and pickles are plain RunningMeanStd objects.

    :param moments: where the numbers are
    :param shape: shape of ``mean`` and ``var``
    """

    def __init__(self, moments: RunningMoments, shape: Tuple[int, ...]) -> None:
        self._moments = moments
        self._shape = shape

    def assign(self, other: RunningMeanStd) -> None:
        """Take over the numbers of another one.

        :raises ValueError: if its shape differs
        """
        if np.shape(other.mean) != self._shape or np.shape(other.var) != self._shape:
            raise ValueError(f"Statistics of shape {np.shape(other.mean)} were assigned, the environment needs {self._shape}.")
        self.mean, self.var, self.count = other.mean, other.var, other.count

    mean = _live_property("mean")
    var = _live_property("var")

    @property
    def count(self) -> float:
        return float(self._moments.count[0])

    @count.setter
    def count(self, value: float) -> None:
        self._moments.count.fill_(float(value))

    def __reduce__(self) -> Any:
        return RunningMeanStd, (), vars(self.copy())
