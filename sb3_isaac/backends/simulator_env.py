"""What the adapters of other people's batched simulators share (mjlab, Isaac Lab, IsaacGymEnvs).

An adapter is a subclass with ``step``, ``reset``, ``seed`` and ``progress`` that calls what is here: docs/howto/adapter.md
writes one. The simulators differ in when they reset and where the true last observation is found; all else is common:
dicts of observation groups, buffers that the next step overwrites, unbounded actions, a dict of metrics.
"""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Sequence, Tuple, Union

import numpy as np
import torch as th

from sb3_isaac.backends.base import StepResult, TensorEnv, describe

Groups = Union[str, Sequence[str]]
"""The name of an observation group, or several, which are put side by side in this order."""
ActionBounds = Union[float, Tuple[Any, Any]]
"""One positive number b for [-b, b], or (low, high), each a number or one for every action."""


class SimulatorEnv(TensorEnv):
    """The tensor contract over a simulator whose tensors, dicts and conventions are its own.

    A subclass calls :meth:`setup` in its ``__init__``, once the simulator has shown its first observations.
    """

    obs_groups: Tuple[str, ...]
    """The observation groups that the policy sees."""
    action_bounds: Tuple[np.ndarray, np.ndarray]
    """Lowest and highest action, each (action_dim,) float32. The simulators have none of their own."""
    _metrics: Dict[str, Tuple[Any, int]] = {}
    """Sums, and of how many. Each environment gets a dict of its own with the first of them."""

    def setup(
        self,
        n_envs: int,
        device: Union[th.device, str],
        obs: Any,
        groups: Groups,
        action_dim: int,
        action_bounds: ActionBounds,
    ) -> None:
        """Set what the contract asks for.

        :param obs: the first observations: a mapping of groups
        :param groups: those that the policy is to see
        :param action_bounds: see :data:`ActionBounds`
        :raises ValueError: no such group, observations or actions that are no vectors of numbers, bounds that are none
        """
        self.n_envs = int(n_envs)
        self.device = th.empty(0, device=device).device  # "cuda" becomes "cuda:0", as tensors there say
        self.obs_groups = (groups,) if isinstance(groups, str) else tuple(groups)
        self.obs_dim = self.observe(obs).shape[-1]
        self.action_dim = int(action_dim)
        self.limit_actions(*bounds(action_bounds, self.action_dim))

    def limit_actions(self, low: np.ndarray, high: np.ndarray) -> None:
        """Set :attr:`action_bounds`.

        :param low: (action_dim,) float32, as is ``high``
        """
        self.action_bounds = (low, high)
        self._low, self._high = (th.as_tensor(bound, device=self.device) for bound in self.action_bounds)

    # -- tensors -----------------------------------------------------------------------------------------------------

    def observe(self, obs: Any) -> th.Tensor:
        """The groups of :attr:`obs_groups` side by side, (N, obs_dim) float32: a copy, which no later step changes.

        :raises ValueError: a group is missing, or is no vector of numbers
        """
        return th.cat([column for name in self.obs_groups for column in self._columns(obs, name)], dim=-1)

    def _columns(self, obs: Any, name: str) -> List[th.Tensor]:
        """One group as tensors (N, k) float32: what it is, or what its terms are."""
        if not isinstance(obs, Mapping) or name not in obs:
            has = ", ".join(map(str, obs)) if isinstance(obs, Mapping) else describe(obs)
            raise ValueError(f"The task has no observation group {name!r}: name others with obs_groups=, it has {has}.")
        group = obs[name]
        terms = group if isinstance(group, Mapping) else {name: group}
        for term, value in terms.items():
            # (N, k), or a history of vectors (N, h, k)
            if not isinstance(value, th.Tensor) or value.ndim not in (2, 3) or len(value) != self.n_envs:
                raise ValueError(
                    f"The observation {term!r} of group {name!r} is {describe(value)}: only vectors can be learned from, one "
                    f"for each of the {self.n_envs} environments, so name groups without it with obs_groups=."
                )
        return [value.to(device=self.device, dtype=th.float32).flatten(1) for value in terms.values()]

    def clip(self, actions: th.Tensor) -> th.Tensor:
        """Actions (N, action_dim) within :attr:`action_bounds`: another tensor, which the simulator may keep."""
        return th.maximum(th.minimum(actions, self._high), self._low)

    def result(
        self, obs: th.Tensor, reward: th.Tensor, terminated: th.Tensor, truncated: th.Tensor, final_obs: th.Tensor
    ) -> StepResult:
        """What the step returns, of copies where the simulator keeps buffers. A failure at the time limit is a failure.

        :param obs: of :meth:`observe`, or made of it, as is ``final_obs``
        :param reward: (N,), of any float type
        :param terminated: (N,) bool, as is ``truncated``: the simulator may set both
        """
        failed = terminated.to(device=self.device, dtype=th.bool, copy=True)
        timed_out = truncated.to(device=self.device, dtype=th.bool) & ~failed
        return StepResult(obs, reward.to(device=self.device, dtype=th.float32, copy=True), failed, timed_out, final_obs)

    def get_state(self) -> Dict[str, th.Tensor]:
        """:raises NotImplementedError: always, unless the adapter knows better: these simulators do not tell their state"""
        raise NotImplementedError(f"{type(self).__name__} cannot tell its whole state: it cannot be saved and restored.")

    def set_state(self, state: Dict[str, th.Tensor]) -> None:
        """:raises NotImplementedError: always, see :meth:`get_state`"""
        self.get_state()

    # -- metrics -----------------------------------------------------------------------------------------------------

    def note_metrics(self, extras: Any) -> None:
        """Add ``extras["log"]``, the task's metrics, to what :meth:`pop_metrics` tells. Nothing waits for the device.

        :param extras: what a step or a reset returned; all else in it is left alone, and so are values that are no numbers
        """
        log = extras.get("log") if isinstance(extras, Mapping) else None
        if log and not self._metrics:
            self._metrics = {}
        for name, value in (log or {}).items():
            if isinstance(value, th.Tensor) and value.numel() == 1:
                value = value.detach().reshape(()).float()
            elif not isinstance(value, (int, float, np.number)):
                continue
            total, count = self._metrics.get(name, (0.0, 0))
            self._metrics[name] = (total + value, count + 1)  # a new tensor: the simulator may write into its own again

    def pop_metrics(self) -> Dict[str, float]:
        """Means of the metrics over the steps since the last call that told them, by the task's names."""
        noted, self._metrics = self._metrics, {}
        on_device = [total for total, _ in noted.values() if isinstance(total, th.Tensor)]
        read = iter(th.stack(on_device).tolist() if on_device else [])  # one read of the device for all of them
        return {
            name: float(next(read) if isinstance(total, th.Tensor) else total) / count
            for name, (total, count) in noted.items()
        }


def bounds(action_bounds: ActionBounds, action_dim: int) -> Tuple[np.ndarray, np.ndarray]:
    """Lowest and highest action, each (action_dim,) float32.

    :raises ValueError: they are no finite numbers, one above the other
    """
    low, high = (
        action_bounds if isinstance(action_bounds, (tuple, list)) and len(action_bounds) == 2 else (None, action_bounds)
    )
    try:
        highest = np.array(np.broadcast_to(np.asarray(high, np.float32), (action_dim,)))
        lowest = -highest if low is None else np.array(np.broadcast_to(np.asarray(low, np.float32), (action_dim,)))
    except (TypeError, ValueError):
        lowest = highest = np.zeros(action_dim, np.float32)
    if not (np.isfinite(lowest).all() and np.isfinite(highest).all() and (lowest < highest).all()):
        raise ValueError(
            f"action_bounds={action_bounds!r} must be a positive number, or (low, high) with low below high, each a number or "
            f"one for each of the {action_dim} actions."
        )
    return lowest, highest
