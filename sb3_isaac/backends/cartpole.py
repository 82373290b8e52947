"""The cartpole task, shared by every backend: constants, reward, termination, reset states.

Source: IsaacGymEnvs, ``isaacgymenvs/tasks/cartpole.py`` and ``cfg/task/Cartpole.yaml``
(https://github.com/isaac-sim/IsaacGymEnvs). All functions are pure, need no host synchronisation and work under
``torch.compile(fullgraph=True)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any, Dict, Optional, Tuple, Union

import torch as th

from sb3_isaac.backends.base import StepResult, TensorEnv

OBS_DIM = 4
"""cart position (m), cart velocity (m/s), pole angle (rad, 0 is upright), pole angular velocity (rad/s)."""
RESET_WIDTH = (0.2, 0.5, 0.2, 0.5)
"""Start positions are uniform within +-0.1, start velocities within +-0.25: the widths of the four ranges."""


@dataclass(frozen=True)
class CartpoleTask:
    """Parameters of the task. The defaults are those of IsaacGymEnvs.

    :param dt: duration of one control step, in seconds (1/60 in the older public Isaac Gym cartpole repositories)
    :param substeps: physics steps in one control step
    :param max_effort: force on the cart at action 1, in newtons
    :param reset_dist: the episode ends when the cart is further than this from the centre, in metres (the cart's stops
        are at 4 m)
    :param max_episode_length: an episode is truncated after ``max_episode_length - 1`` steps, as in IsaacGymEnvs
    :raises ValueError: if a value is out of range
    """

    dt: float = 0.0166
    substeps: int = 2
    max_effort: float = 400.0
    reset_dist: float = 3.0
    max_episode_length: int = 500

    def __post_init__(self) -> None:
        for name, low in (("dt", 0.0), ("substeps", 0), ("max_effort", 0.0), ("reset_dist", 0.0), ("max_episode_length", 1)):
            value = getattr(self, name)
            whole = name in ("substeps", "max_episode_length")
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                raise ValueError(f"Task parameter {name} must be {'an integer' if whole else 'a number'}, got {value!r}.")
            if not (math.isfinite(value) and value > low):
                raise ValueError(f"Task parameter {name} must be greater than {low:g}, got {value!r}.")

    @classmethod
    def parse(cls, **task_kwargs: Any) -> CartpoleTask:
        """Build from keyword arguments; an unknown name is a TypeError that lists the known ones."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(task_kwargs) - set(known))
        if unknown:
            raise TypeError(f"Unknown task parameter {', '.join(unknown)}: the cartpole has {', '.join(known)}.")
        return cls(**task_kwargs)


def reward_and_termination(
    dof_state: th.Tensor, progress: th.Tensor, reset_dist: float, max_episode_length: int
) -> Tuple[th.Tensor, th.Tensor, th.Tensor]:
    """Reward and ends of episodes for states reached after ``progress`` steps.

    IsaacGymEnvs also reports a time-out where the pole falls on the very last step; here that is a termination only, so
    that nobody bootstraps the value of a failure.

    :param dof_state: (N, 4) float32, the state after the step
    :param progress: (N,) int64, steps since the reset, this one included
    :return: reward (N,) float32, terminated (N,) bool, truncated (N,) bool
    """
    x, v, angle, w = dof_state.unbind(-1)
    terminated = (x.abs() > reset_dist) | (angle.abs() > math.pi / 2)
    truncated = (progress >= max_episode_length - 1) & ~terminated
    # 1 - angle^2 - 0.01 |v| - 0.005 |w|
    reward = th.addcmul(angle.new_ones(()), angle, angle, value=-1.0)
    reward = reward.sub_(v.abs(), alpha=0.01).sub_(w.abs(), alpha=0.005).masked_fill_(terminated, -2.0)
    return reward, terminated, truncated


def finish_step(
    dof_state: th.Tensor,
    progress: th.Tensor,
    final_obs: th.Tensor,
    uniform: th.Tensor,
    reset_width: th.Tensor,
    task: CartpoleTask,
) -> StepResult:
    """What follows the physics: reward, ends of episodes and resets. Updates ``dof_state`` and ``progress`` in place.

    :param dof_state: (N, 4) float32, becomes the state to go on from
    :param progress: (N,) int64
    :param final_obs: (N, 4) float32, what the physics returned
    :param uniform: (N, 4) random numbers in [0, 1) for the environments that are reset; the others ignore theirs, because
        choosing which to draw would need the host
    :param reset_width: (4,), :data:`RESET_WIDTH` on the device
    """
    progress += 1
    reward, terminated, truncated = reward_and_termination(final_obs, progress, task.reset_dist, task.max_episode_length)
    done = terminated | truncated
    obs = th.where(done.unsqueeze(-1), (uniform - 0.5) * reset_width, final_obs)
    dof_state.copy_(obs)
    progress.masked_fill_(done, 0)
    return StepResult(obs, reward, terminated, truncated, final_obs)


class CartpoleTensorEnv(TensorEnv):
    """What the cartpole is on every simulator: state, random numbers and reset. A backend adds :meth:`step`.

    :param n_envs: number of environments N, at least 1
    :param device: torch device of the simulation
    :param seed: seed of the reset states; None draws one
    :param task_kwargs: see :class:`CartpoleTask`
    """

    obs_dim = OBS_DIM
    action_dim = 1
    """One horizontal force on the cart, as a fraction of ``max_effort``."""

    def __init__(
        self, n_envs: int, device: Union[th.device, str] = "cpu", seed: Optional[int] = None, **task_kwargs: Any
    ) -> None:
        self.task = CartpoleTask.parse(**task_kwargs)
        self.n_envs = n_envs
        self.device = th.empty(0, device=device).device  # "cuda" becomes "cuda:0", as tensors there say
        self.max_episode_length = self.task.max_episode_length
        self.generator = th.Generator(self.device)
        self.seed(self.generator.seed() if seed is None else seed)
        # The state stays at fixed addresses, so that a step can be captured in a CUDA graph.
        self.dof_state = th.zeros(n_envs, OBS_DIM, device=self.device)
        self.progress = th.zeros(n_envs, dtype=th.int64, device=self.device)
        self.force = th.zeros(n_envs, device=self.device)
        self.reset_width = th.tensor(RESET_WIDTH, device=self.device)

    def seed(self, seed: int) -> None:
        self.generator.manual_seed(seed)

    def _uniform(self) -> th.Tensor:
        return th.rand(self.n_envs, OBS_DIM, generator=self.generator, device=self.device)

    def reset(self) -> th.Tensor:
        self.dof_state.copy_((self._uniform() - 0.5) * self.reset_width)
        self.progress.zero_()
        self.force.zero_()
        return self.dof_state.clone()

    def get_state(self) -> Dict[str, th.Tensor]:
        return {
            "dof_state": self.dof_state.clone(),
            "progress": self.progress.clone(),
            "generator": self.generator.get_state(),
        }

    def set_state(self, state: Dict[str, th.Tensor]) -> None:
        self.dof_state.copy_(state["dof_state"])
        self.progress.copy_(state["progress"])
        self.generator.set_state(state["generator"])

    def render_state(self) -> Dict[str, Any]:
        return {
            "dof_state": self.dof_state.cpu().numpy().copy(),
            "force": self.force.cpu().numpy().copy(),
            "progress": self.progress.cpu().numpy().copy(),
            "max_effort": self.task.max_effort,
            "reset_dist": self.task.reset_dist,
        }
