"""SB3's ``infos`` for thousands of environments: filled for the ones that are done, built only when somebody looks."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Dict, Iterator, List

import numpy as np
import torch as th

from sb3_isaac.backends.base import StepResult


class Infos(Sequence):  # type: ignore[type-arg]  # Sequence[...] cannot be subscripted as a base on Python 3.8
    """A sequence of N dicts, as :meth:`stable_baselines3.common.vec_env.VecEnv.step` returns them.

    Environments whose episode ended have ``terminal_observation`` (the true last one), ``TimeLimit.truncated`` and
    ``episode`` (r: return, l: length, t: seconds since the start). The others have an empty dict. Nothing is copied to
    the host before the first access, which must come before the next step.

    :param result: what the step returned; the others: ``episode_returns``, ``episode_lengths`` and ``t_start`` of
        :class:`~sb3_isaac.envs.tensor_path.TensorVecEnv`
    """

    def __init__(self, result: StepResult, returns: th.Tensor, lengths: th.Tensor, t_start: float) -> None:
        self._result = result
        self._returns = returns
        self._lengths = lengths
        self._t = round(time.time() - t_start, 6)
        self._expired = False

    def take(self, returns: th.Tensor, lengths: th.Tensor) -> None:
        """Tell of these episodes: tensors (N,) that stay as they are until the next step."""
        self._returns, self._lengths = returns, lengths

    @cached_property
    def truncated(self) -> np.ndarray:
        """(N,) bool: which episodes ended by the time limit, without building a single dict."""
        return np.array(self._result.truncated.cpu().numpy())

    def changed(self) -> bool:
        """Whether somebody has written other time limits into dicts that were looked at."""
        infos = vars(self).get("filled", {})
        return any(bool(info.get("TimeLimit.truncated", False)) != self.truncated[i] for i, info in infos.items())

    def expire(self) -> None:
        """The step is over: what has not been read by now is gone."""
        self._expired = True

    @cached_property
    def filled(self) -> Dict[int, Dict[str, Any]]:
        """The dicts of the environments that are done (and of those somebody wrote into), by index."""
        if self._expired:
            raise RuntimeError(
                "The infos of an earlier step were kept without being read, and are gone: read them in the callback."
            )
        done = (self._result.terminated | self._result.truncated).nonzero().squeeze(-1)
        columns = (done, self._result.final_obs[done], self._returns[done], self._lengths[done])
        return {
            int(i): {
                "terminal_observation": final_obs,
                "TimeLimit.truncated": bool(self.truncated[i]),
                "episode": {"r": round(float(episode_return), 6), "l": int(length), "t": self._t},
            }
            for i, final_obs, episode_return, length in zip(*(column.cpu().numpy() for column in columns))
        }

    @cached_property
    def _list(self) -> List[Dict[str, Any]]:
        infos: List[Dict[str, Any]] = [{} for _ in range(len(self))]
        for i, info in self.filled.items():
            infos[i] = info
        return infos

    def __len__(self) -> int:
        return len(self._result.reward)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice) or "_list" in vars(self):
            return self._list[index]
        # range: negative indices and IndexError, as a list has them
        return self.filled.setdefault(range(len(self))[index], {})

    def __setitem__(self, index: Any, info: Any) -> None:
        self._list[index] = info

    def __iter__(self) -> Iterator[Dict[str, Any]]:
        return iter(self._list)

    def copy(self) -> List[Dict[str, Any]]:
        """A shallow copy, as of a list."""
        return self._list.copy()
