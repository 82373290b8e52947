"""The cartpole task, shared by every backend: constants, reward, termination, reset states.

Source: IsaacGymEnvs, ``isaacgymenvs/tasks/cartpole.py`` and ``cfg/task/Cartpole.yaml``
(https://github.com/isaac-sim/IsaacGymEnvs). All functions are pure, need no host synchronisation and work under
``torch.compile(fullgraph=True)``.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import dataclass, fields
from typing import Any, Callable, Dict, Mapping, Optional, Tuple, Union

import torch as th

from sb3_isaac.backends.base import StepResult, TensorEnv, describe
from sb3_isaac.backends.physics import CartpolePhysics
from sb3_isaac.backends.randomize import ANOTHER, Drawn, Draws, Randomization, noisy, redraw
from sb3_isaac.settings.check import check

OBS_DIM = 4
"""cart position (m), cart velocity (m/s), pole angle (rad, 0 is upright), pole angular velocity (rad/s)."""
RESET_WIDTH = (0.2, 0.5, 0.2, 0.5)
"""Start positions are uniform within +-0.1, start velocities within +-0.25: the widths of the four ranges."""


@dataclass(frozen=True)
class CartpoleTask(CartpolePhysics):
    """Parameters of the task, beside those of :class:`CartpolePhysics`. The defaults are those of IsaacGymEnvs.

    ``reward`` and ``termination`` are functions of tensors on the simulation's device, or their names, "module:function"::

        def reward(obs, actions, terminated, task):  # -> (N,) float32
            return torch.cos(obs[:, 2]) - 0.001 * actions[:, 0] ** 2 - 2.0 * terminated

        def termination(obs, actions, task):         # -> (N,) bool
            return (obs[:, 0].abs() > task.reset_dist) | (obs[:, 2].abs() > 0.4)

    ``obs`` (N, 4) float32 is what the step has led to, before any reset; ``actions`` (N, 1) float32 in [-1, 1] is what was
    done; ``terminated`` (N,) bool; ``task`` is this object. They may not change their arguments, and are called once with
    made-up states when the simulator is made, which checks their results. With ``compile=True`` a step is compiled: what
    changes between two steps must be in tensors.

    ``randomize`` gives each environment values of its own, uniform in a range and drawn anew at each of its resets::

        randomize={
            "cart_mass": (0.5, 2.0),        # kg
            "pole_mass": (0.5, 2.0),        # kg
            "pole_length": (0.5, 2.0),      # m; the inertia follows, unless pole_inertia is given
            "angular_damping": (0.0, 1.0),  # 1/s
            "force_scale": (0.8, 1.2),      # times max_effort
            "action_delay": (0, 3),         # whole control steps, 0 to 3; no force until the first action arrives
            "obs_noise": (0.0, 0.01),       # standard deviation of Gaussian noise, new in each step
            "push_velocity": (-1.5, 1.5),   # rad/s, added to the pole's velocity at each push
            "push_interval": (1.0, 3.0),    # s, from the reset or one push to the next
        }

    One number in the place of two is the value of all. Four numbers of ``obs_noise`` are the deviations of the four values of
    an observation (m, m/s, rad, rad/s). Reward and termination see the true state, and the actions as they were given; ``obs``
    and ``final_obs`` are noisy.

    :param dt: duration of one control step, in seconds (1/60 in the older public Isaac Gym cartpole repositories)
    :param substeps: physics steps in one control step
    :param max_effort: force on the cart at action 1, in newtons
    :param reset_dist: the episode ends when the cart is further than this from the centre, in metres
    :param reset_angle: the episode ends when the pole leans further than this, in rad
    :param max_episode_length: an episode is truncated after ``max_episode_length - 1`` steps, as in IsaacGymEnvs
    :param reward: in the place of :func:`default_reward`
    :param termination: in the place of :func:`default_termination`
    :param randomize: see above; None or empty: all environments are alike
    :raises ValueError: if a value is out of range, or there is no function of that name
    """

    dt: float = 0.0166
    substeps: int = 2
    max_effort: float = 400.0
    reset_dist: float = 3.0
    reset_angle: float = math.pi / 2
    max_episode_length: int = 500
    reward: Union[str, Callable[..., th.Tensor], None] = None
    termination: Union[str, Callable[..., th.Tensor], None] = None
    randomize: Union[Mapping[str, Any], Randomization, None] = None

    def __post_init__(self) -> None:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        check("cartpole", values, where="the task parameters", defaults={field.name: field.default for field in fields(self)})
        for name, value in values.items():
            if name in ("reward", "termination") and value is not None:
                object.__setattr__(self, name, _function(name, value))
            elif hasattr(value, "item"):  # torch compiles with Python's numbers, not numpy's
                object.__setattr__(self, name, value.item())
        randomized = Randomization.parse(self.randomize)
        object.__setattr__(self, "randomize", randomized)
        for field in fields(self):
            if randomized is not None and field.name in randomized.names and values[field.name] != field.default:
                raise ValueError(
                    f"{field.name}={values[field.name]!r} and randomize={{{field.name!r}: ...}} say the same thing twice: "
                    "leave one of them out (randomize=None turns all of it off)."
                )

    @classmethod
    def parse(cls, **task_kwargs: Any) -> CartpoleTask:
        """Build from keyword arguments; an unknown name is a TypeError that lists the known ones."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(task_kwargs) - set(known))
        if unknown:
            named = ", ".join(name or "''" for name in unknown)
            raise TypeError(f"Unknown task parameter {named}: the cartpole has {', '.join(known)}.")
        return cls(**task_kwargs)


def _function(name: str, value: Any) -> Callable[..., th.Tensor]:
    """The function that ``reward`` or ``termination`` is, or names as "module:function".

    :raises ValueError: it is neither
    """
    if isinstance(value, str):
        module, _, function = value.partition(":")
        try:
            value = getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(
                f"Task parameter {name}={value!r} names no function, as 'module:function' does: {error}."
            ) from error
    if not callable(value):
        raise ValueError(f"Task parameter {name} must be a function or 'module:function', got {value!r}.")
    return value  # type: ignore[no-any-return]


def default_termination(obs: th.Tensor, actions: th.Tensor, task: CartpoleTask) -> th.Tensor:
    """Which cartpoles are too far from the centre or lean too far, (N,) bool. Arguments: :class:`CartpoleTask`."""
    return (obs[:, 0].abs() > task.reset_dist) | (obs[:, 2].abs() > task.reset_angle)


def default_reward(obs: th.Tensor, actions: th.Tensor, terminated: th.Tensor, task: CartpoleTask) -> th.Tensor:
    """1 - angle^2 - 0.01 |v| - 0.005 |w|, and -2 for a failure: (N,) float32. Arguments: :class:`CartpoleTask`."""
    _, v, angle, w = obs.unbind(-1)
    reward = th.addcmul(angle.new_ones(()), angle, angle, value=-1.0)
    return reward.sub_(v.abs(), alpha=0.01).sub_(w.abs(), alpha=0.005).masked_fill_(terminated, -2.0)


def reward_and_termination(
    obs: th.Tensor, progress: th.Tensor, actions: th.Tensor, task: CartpoleTask
) -> Tuple[th.Tensor, th.Tensor, th.Tensor]:
    """Reward and ends of episodes for states reached after ``progress`` steps.

    IsaacGymEnvs also reports a time-out where the pole falls on the very last step; here that is a termination only, so
    that nobody bootstraps the value of a failure.

    :param obs: (N, 4) float32, the state after the step
    :param progress: (N,) int64, steps since the reset, this one included
    :param actions: (N, 1) float32 in [-1, 1]
    :return: reward (N,) float32, terminated (N,) bool, truncated (N,) bool
    """
    termination: Any = task.termination or default_termination
    reward: Any = task.reward or default_reward
    terminated = termination(obs, actions, task)
    truncated = (progress >= task.max_episode_length - 1) & ~terminated
    return reward(obs, actions, terminated, task), terminated, truncated


def check_functions(task: CartpoleTask, n_envs: int, device: th.device) -> None:
    """Call the user's ``reward`` and ``termination`` once.

    :raises ValueError: a result of another shape, dtype or device, or an argument was changed
    """
    obs = th.linspace(-0.4, 0.4, n_envs * OBS_DIM, device=device).view(n_envs, OBS_DIM)
    actions = th.linspace(-1.0, 1.0, n_envs, device=device).unsqueeze(-1)
    terminated = th.zeros(n_envs, dtype=th.bool, device=device)
    given = (obs, actions, terminated)
    before = [tensor.clone() for tensor in given]
    for name, arguments, dtype in (("termination", given[:2], th.bool), ("reward", given, th.float32)):
        function: Any = getattr(task, name)
        if function is None:
            continue
        result = function(*arguments, task)
        wanted = describe(th.empty(n_envs, dtype=dtype, device=device))
        if describe(result) != wanted:
            raise ValueError(
                f"The function {name}= returned {describe(result)}; it must return {wanted}: one value for each environment."
            )
        if not all(th.equal(tensor, copy) for tensor, copy in zip(given, before)):
            raise ValueError(f"The function {name}= has changed its arguments in place: work on a copy (.clone()).")


def finish_step(
    dof_state: th.Tensor,
    progress: th.Tensor,
    final_obs: th.Tensor,
    uniform: th.Tensor,
    reset_width: th.Tensor,
    actions: th.Tensor,
    task: CartpoleTask,
) -> StepResult:
    """What follows the physics: reward, ends of episodes and resets. Updates ``dof_state`` and ``progress`` in place.

    :param dof_state: (N, 4) float32, becomes the state to go on from
    :param progress: (N,) int64
    :param final_obs: (N, 4) float32, what the physics returned
    :param uniform: (N, 4) random numbers in [0, 1) for the environments that are reset; the others ignore theirs, because
        choosing which to draw would need the host
    :param reset_width: (4,), :data:`RESET_WIDTH` on the device
    :param actions: (N, 1) float32, clipped to [-1, 1]
    """
    # --8<-- [start:resets]
    progress += 1
    reward, terminated, truncated = reward_and_termination(final_obs, progress, actions, task)
    done = terminated | truncated
    obs = th.where(done.unsqueeze(-1), (uniform - 0.5) * reset_width, final_obs)
    dof_state.copy_(obs)
    progress.masked_fill_(done, 0)
    return StepResult(obs, reward, terminated, truncated, final_obs)
    # --8<-- [end:resets]


def finish_randomized_step(
    dof_state: th.Tensor,
    progress: th.Tensor,
    final_obs: th.Tensor,
    draws: Draws,
    reset_width: th.Tensor,
    actions: th.Tensor,
    task: CartpoleTask,
    drawn: Drawn,
    pushed: Optional[th.Tensor],
) -> StepResult:
    """:func:`finish_step` of environments that differ: those that are reset draw new values, and observations get noise.

    :param draws: of this step
    :param drawn: changed in place
    :param pushed: what :func:`~sb3_isaac.backends.randomize.push` returned
    """
    spec: Any = task.randomize
    result = finish_step(dof_state, progress, final_obs, draws.uniform, reset_width, actions, task)
    done = result.terminated | result.truncated
    # The last observation has the noise of the episode that ended, the next one that of the new episode. Both share their
    # random numbers, which no one notices, as they are of different episodes.
    last = noisy(result.final_obs, draws, drawn, spec)
    redraw(done, pushed, draws, drawn, spec, task.dt)
    return StepResult(noisy(result.obs, draws, drawn, spec), result.reward, result.terminated, result.truncated, last)


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
        check_functions(self.task, n_envs, self.device)
        self.generator = th.Generator(self.device)
        self.seed(self.generator.seed() if seed is None else seed)
        # The state stays at fixed addresses, so that a step can be captured in a CUDA graph.
        self.dof_state = th.zeros(n_envs, OBS_DIM, dtype=th.float32, device=self.device)
        self.progress = th.zeros(n_envs, dtype=th.int64, device=self.device)
        self.force = th.zeros(n_envs, dtype=th.float32, device=self.device)
        self.reset_width = th.tensor(RESET_WIDTH, dtype=th.float32, device=self.device)
        spec: Any = self.task.randomize
        self.drawn: Optional[Drawn] = None if spec is None else Drawn.make(spec, n_envs, self.device)
        """What environments have of their own; None: nothing."""

    def seed(self, seed: int) -> None:
        self.generator.manual_seed(seed)

    def _uniform(self) -> th.Tensor:
        return th.rand(self.n_envs, OBS_DIM, generator=self.generator, dtype=th.float32, device=self.device)

    def _draws(self) -> Draws:
        """The random numbers of one step with randomisation."""
        spec: Any = self.task.randomize
        return Draws.make(spec, self.n_envs, OBS_DIM, self.generator)

    def own_parameters(self) -> Dict[str, th.Tensor]:
        """Copies of what the environments have drawn at their last reset, (N,) float32 by name. For critics that may know,
        and for statistics."""
        spec: Any = self.task.randomize
        return {} if self.drawn is None else dict(zip(spec.names, self.drawn.parameters.clone()))

    def reset(self) -> th.Tensor:
        draws = None if self.drawn is None else self._draws()
        uniform = self._uniform() if draws is None else draws.uniform
        self.dof_state.copy_((uniform - 0.5) * self.reset_width)
        self.progress.zero_()
        self.force.zero_()
        obs = self.dof_state.clone()
        if self.drawn is None or draws is None:
            return obs
        spec: Any = self.task.randomize
        redraw(th.ones_like(self.progress, dtype=th.bool), None, draws, self.drawn, spec, self.task.dt)
        return noisy(obs, draws, self.drawn, spec)

    def get_state(self) -> Dict[str, th.Tensor]:
        return {
            "dof_state": self.dof_state.clone(),
            "progress": self.progress.clone(),
            "generator": self.generator.get_state(),
            **({} if self.drawn is None else self.drawn.state()),
        }

    def set_state(self, state: Dict[str, th.Tensor]) -> None:
        """:raises ValueError: the state is of cartpoles that are randomised differently"""
        if self.drawn is not None:
            self.drawn.set_state(state)
        elif "parameters" in state:
            raise ValueError(ANOTHER)
        self.dof_state.copy_(state["dof_state"])
        self.progress.copy_(state["progress"])
        self.generator.set_state(state["generator"])

    def render_state(self) -> Dict[str, Any]:
        lengths = self.own_parameters().get("pole_length")
        return {
            "dof_state": self.dof_state.cpu().numpy().copy(),
            "force": self.force.cpu().numpy().copy(),
            "progress": self.progress.cpu().numpy().copy(),
            "max_effort": self.task.max_effort,
            "reset_dist": self.task.reset_dist,
            "pole_length": self.task.pole_length if lengths is None else lengths.cpu().numpy(),
        }
