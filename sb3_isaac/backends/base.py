"""The tensor contract: what a batched simulator must offer, and nothing more.

Everything above this file (VecEnv, algorithms, evaluation) talks to a simulator through :class:`TensorEnv` alone.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from typing import Any, Dict, NamedTuple, Sequence, Tuple

import numpy as np
import torch as th


class StepResult(NamedTuple):
    """What one step of N environments returns. All tensors lie on the environment's device.

    The tensors may be overwritten by the next step: whoever keeps them copies them.
    """

    obs: th.Tensor
    """(N, obs_dim) float32. The observation to act on next: after the reset where an episode ended."""
    reward: th.Tensor
    """(N,) float32."""
    terminated: th.Tensor
    """(N,) bool. The task failed."""
    truncated: th.Tensor
    """(N,) bool. The time limit was reached and the task did not fail. Never true together with ``terminated``."""
    final_obs: th.Tensor
    """(N, obs_dim) float32. The true last observation, before the reset. Equal to ``obs`` where nothing ended."""


class TensorEnv(ABC):
    """N copies of one task, stepped together. Done environments are reset within the same step."""

    n_envs: int
    """Number of environments N."""
    device: th.device
    """Where every tensor of the contract lies."""
    obs_dim: int
    """Length of one observation."""
    action_dim: int
    """Length of one action; actions are float32 within :attr:`action_bounds`, the backend clips what is outside."""
    action_bounds: Tuple[Any, Any] = (-1.0, 1.0)
    """Lowest and highest action: numbers, or arrays (action_dim,) float32."""
    max_episode_length: int
    """Time limit, in control steps (the environment truncates when ``progress`` reaches this minus one)."""
    progress: th.Tensor
    """(N,) int64, control steps since the reset. May be written in place to spread the time-outs."""
    render_fps: int = 60
    """Pictures in a second of simulated time."""
    one_per_process: bool = False
    """Whether the process can have one such simulator only."""
    capturable: bool = False
    """A step may be captured in a CUDA graph: it is torch alone, at fixed addresses, and never waits for the device."""

    @abstractmethod
    def reset(self) -> th.Tensor:
        """Reset all environments. Returns obs (N, obs_dim)."""

    @abstractmethod
    def step(self, actions: th.Tensor) -> StepResult:
        """Advance all environments by one control step. ``actions`` is (N, action_dim) float32 on ``device``."""

    @abstractmethod
    def seed(self, seed: int) -> None:
        """Seed the generator that draws the reset states, from now on."""

    exact_state: bool = True
    """Whether the steps after :meth:`set_state` repeat to the last bit. PhysX keeps more than it tells."""

    def get_state(self) -> Dict[str, th.Tensor]:
        """Copies of everything that the following steps depend on, the random generator included. Training needs it not;
        checkpoints (docs/resume.md) take the attributes of a task that does not have this method.

        :raises NotImplementedError: the task cannot tell its state
        """
        raise NotImplementedError(f"{type(self).__name__} cannot tell its state: give it get_state() and set_state(state).")

    def set_state(self, state: Dict[str, th.Tensor]) -> None:
        """Restore what :meth:`get_state` returned. The following steps then repeat exactly.

        :raises NotImplementedError: the task cannot tell its state
        """
        raise NotImplementedError(f"{type(self).__name__} cannot tell its state: give it get_state() and set_state(state).")

    def pop_metrics(self) -> Dict[str, float]:
        """Means of what the task has told of itself since the last call, by its own names, for the logger. Asked once in a
        rollout; it may wait for the device."""
        return {}

    def compile(self) -> None:  # noqa: B027  (most simulators have nothing to compile)
        """Let a compiler make a step faster, where it can. Results may then differ by rounding."""

    def close(self) -> None:  # noqa: B027  (most simulators have nothing to free)
        """Free what the simulator holds. Calling it twice is allowed."""

    def render_state(self) -> Dict[str, Any]:
        """Host copies of what the cartpole's pictures are drawn from. Not meant for a hot path."""
        raise NotImplementedError(f"{type(self).__name__} is no cartpole.")

    def render(self, n_envs: int) -> Sequence[np.ndarray]:
        """Pictures of the first ``n_envs`` environments, each (height, width, 3) uint8 RGB, of one size; or one of them all.

        :raises NotImplementedError: the task draws none
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no pictures: leave rendering out (enjoy --no-render), or give it a method "
            "render(n_envs) that returns n_envs arrays (height, width, 3) uint8."
        )


def describe(value: Any) -> str:
    """Shape, dtype and device of a tensor, or what else it is."""
    if isinstance(value, th.Tensor):
        return f"a tensor {tuple(value.shape)} of {str(value.dtype).replace('torch.', '')} on {value.device}"
    return f"{type(value).__name__} {value!r}"[:80]


def check_result(env: TensorEnv, method: str, result: Any) -> None:
    """Whether ``env.step`` or ``env.reset`` returned what the contract says: shapes, dtypes and device, not values.

    :param method: "step" or "reset"
    :raises ValueError: if not
    """
    call = f"{type(env).__name__}.{method}"
    fields = StepResult._fields if method == "step" else ("obs",)
    values = (result,) if method == "reset" else result
    if not isinstance(values, StepResult if method == "step" else tuple):
        raise ValueError(f"{call} returned {describe(result)}: it must be a StepResult, of {', '.join(fields)}.")
    for field, value in zip(fields, values):
        shape = (env.n_envs, env.obs_dim) if field in ("obs", "final_obs") else (env.n_envs,)
        dtype = th.bool if field in ("terminated", "truncated") else th.float32
        wanted = describe(th.empty(shape, dtype=dtype, device=env.device))
        if describe(value) != wanted:
            raise ValueError(f"{call} returned {describe(value)} as {field}: it must be {wanted}.")


def check_values(env: TensorEnv, result: StepResult, episode_lengths: th.Tensor) -> bool:
    """Whether a step keeps to what the contract says of its values, where it can be seen. Waits for the device.

    :param episode_lengths: (N,) steps of the episodes so far, this one included
    :return: whether there was a warning, for what is probably a mistake
    :raises ValueError: for what surely is one
    """
    call = f"{type(env).__name__}.step"
    ended = result.terminated | result.truncated
    differ = (result.final_obs != result.obs).any(1)
    probably = None
    for found, words, surely in (
        (result.terminated & result.truncated, "is terminated and truncated at once: truncated & ~terminated is right", True),
        (
            differ & ~ended,
            "has another final_obs than obs, though no episode has ended: final_obs is what the step has led to, obs the same "
            "but where there was a reset",
            True,
        ),
        (
            ended & ~differ,
            "has ended, and its obs is its final_obs: reset it within the step, and keep a copy from before as final_obs (no "
            "tensor that is filled again)",
            False,
        ),
        (ended & (env.progress != 0), "has ended, and its progress is not 0", False),
        (
            episode_lengths > env.max_episode_length,
            f"goes on after max_episode_length={env.max_episode_length} steps: the task has to look there",
            False,
        ),
    ):
        if bool(found.any()):
            sentence = f"{call}: environment {int(found.nonzero()[0])} {words}."
            if surely:
                raise ValueError(sentence)
            probably = probably or sentence
    if probably is not None:
        warnings.warn(probably, stacklevel=2)
    return probably is not None
