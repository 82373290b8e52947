"""SB3's ``infos`` for thousands of environments: filled for the ones that are done, built only when somebody looks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Dict, Iterator, List, Optional

import numpy as np
import torch as th

from sb3_isaac.backends.base import StepResult


class Infos(Sequence):  # type: ignore[type-arg]  # Sequence[...] cannot be subscripted as a base on Python 3.8
    """A sequence of N dicts, as :meth:`stable_baselines3.common.vec_env.VecEnv.step` returns them.

    Environments whose episode ended have ``terminal_observation`` (the true last one), ``TimeLimit.truncated`` and
    ``episode`` (r: return, l: length, t: seconds since the start). The others have an empty dict. Nothing is copied to
    the host before the first access, which must come before the next step.

    :param result: what the step returned
    :param returns: (N,) float32, returns of the episodes that ended
    :param lengths: (N,) their lengths
    :param t_start: when the environment was made, from ``time.time()``
    """

    def __init__(self, result: StepResult, returns: th.Tensor, lengths: th.Tensor, t_start: float) -> None:
        self._n = int(result.reward.shape[0])
        self._result = result
        self._returns = returns
        self._lengths = lengths
        self._t = round(time.time() - t_start, 6)
        self._expired = False
        self._filled: Optional[Dict[int, Dict[str, Any]]] = None
        self._list: Optional[List[Dict[str, Any]]] = None
        self._truncated: Optional[np.ndarray] = None

    @property
    def truncated(self) -> np.ndarray:
        """(N,) bool: which episodes ended by the time limit, without building a single dict."""
        if self._truncated is None:
            self._truncated = self._result.truncated.cpu().numpy().copy()
        return self._truncated

    def expire(self) -> None:
        """The step is over: what has not been read by now is gone."""
        self._expired = True

    def filled(self) -> Dict[int, Dict[str, Any]]:
        """The dicts of the environments that are done (and of those somebody wrote into), by index."""
        if self._filled is None and self._expired:
            raise RuntimeError(
                "The infos of an earlier step were kept without being read, and are gone: read them in the callback."
            )
        if self._filled is None:
            done = (self._result.terminated | self._result.truncated).nonzero().squeeze(-1)
            columns = (done, self._result.final_obs[done], self._returns[done], self._lengths[done])
            truncated = self.truncated
            self._filled = {
                int(i): {
                    "terminal_observation": final_obs,
                    "TimeLimit.truncated": bool(truncated[i]),
                    "episode": {"r": round(float(episode_return), 6), "l": int(length), "t": self._t},
                }
                for i, final_obs, episode_return, length in zip(*(column.cpu().numpy() for column in columns))
            }
        return self._filled

    def _as_list(self) -> List[Dict[str, Any]]:
        if self._list is None:
            self._list = [{} for _ in range(len(self))]
            for i, info in self.filled().items():
                self._list[i] = info
        return self._list

    def __len__(self) -> int:
        return self._n

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self._as_list()[index]
        if self._list is not None:
            return self._list[index]
        # range: negative indices and IndexError, as a list has them
        return self.filled().setdefault(range(len(self))[index], {})

    def __setitem__(self, index: Any, info: Any) -> None:
        self._as_list()[index] = info

    def __iter__(self) -> Iterator[Dict[str, Any]]:
        return iter(self._as_list())

    def copy(self) -> List[Dict[str, Any]]:
        """A shallow copy, as of a list."""
        return self._as_list().copy()
