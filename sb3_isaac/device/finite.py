"""NaN and infinity: what is raised where they come in, and where they began."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch as th


class NotFiniteError(FloatingPointError):
    """Training or evaluation met NaN or infinity. The message says where it began."""


class Origin(NamedTuple):
    """The first number that is not finite."""

    name: str
    """Of what it is in, such as "reward" """
    step: int
    env: int
    value: float


def is_finite(array: np.ndarray) -> bool:
    """Whether all numbers of an array of any shape are finite: one sum, and a closer look only if that is not."""
    if array.dtype.kind != "f":
        return True
    return math.isfinite(np.add.reduce(array.reshape(-1))) or bool(np.isfinite(array).all())


def first_not_finite(columns: Sequence[Tuple[str, Any]]) -> Optional[Origin]:
    """The first number that is not finite: by step, the order of ``columns``, environment. None: there is none.

    :param columns: names, and tensors or arrays (steps, N, ...), on any device
    """
    found = []
    for order, (name, values) in enumerate(columns):
        tensor = th.as_tensor(values)
        values = tensor.reshape(*tensor.shape[:2], -1)
        bad = ~th.isfinite(values)
        where = bad.any(2).nonzero()  # in the order of steps, then environments
        if len(where) > 0:
            step, env = where[0].tolist()
            found.append((step, order, Origin(name, step, env, float(values[step, env][bad[step, env]][0]))))
    return min(found)[2] if found else None


def advice(name: str) -> str:
    """What to do about the thing of that name, in which NaN or infinity began."""
    if name in ("reward", "observation", "final observation"):
        return f"look at how the environment, or a wrapper on it, makes its {name}s."
    return "training has diverged, lower the learning rate or the scale of the rewards."
