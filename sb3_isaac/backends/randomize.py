"""Domain randomisation of the cartpole: what differs from one environment to the next, drawn anew at every reset.

The idea: Tobin et al., "Domain randomization for transferring deep neural networks from simulation to the real world", 2017
(https://arxiv.org/abs/1703.06907). Pushes are those of legged_gym and Isaac Lab: a velocity is changed every few seconds.

The functions of tensors need no host synchronisation and work under ``torch.compile(fullgraph=True)``. They change what
:class:`Drawn` holds in place, at fixed addresses, so that a step can be captured in a CUDA graph.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, Mapping, NamedTuple, Optional, Tuple

import numpy as np
import torch as th

from sb3_isaac.settings import SETTINGS, check

MACHINE = ("cart_mass", "pole_mass", "pole_length", "angular_damping")
"""Names that are parameters of the machine, which only a simulator with a cartpole for each environment can randomise."""
AT_RESET = (*MACHINE, "force_scale", "action_delay", "obs_noise")
"""Names whose values hold for an episode. The others are drawn at every push."""
ANOTHER = "The state is of cartpoles with another randomize=: make the environment as it was."


@dataclass(frozen=True)
class Randomization:
    """The task parameter ``randomize``, after it was checked. :meth:`parse` makes it.

    :param names: what is drawn at each reset, the rows of :attr:`Drawn.parameters`
    :param low: the lower ends of their ranges
    :param high: the upper ends
    :param noise_scale: one factor of the observation noise for each value of an observation
    :param push_velocity: low and high, in rad/s; None: no pushes
    :param push_interval: low and high, in seconds
    """

    names: Tuple[str, ...]
    low: Tuple[float, ...]
    high: Tuple[float, ...]
    noise_scale: Tuple[float, ...] = (1.0, 1.0, 1.0, 1.0)
    push_velocity: Optional[Tuple[float, float]] = None
    push_interval: Tuple[float, float] = (0.0, 0.0)

    @classmethod
    def parse(cls, given: Any) -> Optional[Randomization]:
        """What a user gives as ``randomize``: names and ranges, see :class:`~sb3_isaac.backends.cartpole.CartpoleTask`.

        :return: None: nothing is randomised
        :raises ValueError: no mapping, an unknown name, a range that is none or out of bounds, half of a push
        """
        if given is None or isinstance(given, cls):
            return given
        known = ", ".join(SETTINGS["randomize"])
        if not isinstance(given, Mapping):
            raise ValueError(
                "randomize must be a mapping of names to ranges, such as {'pole_length': (0.5, 2.0), 'action_delay': (0, 2)}, "
                f"got {given!r}; the names: {known}."
            )
        unknown = [str(name) for name in given if name not in SETTINGS["randomize"]]
        if unknown:
            raise ValueError(f"randomize has no {', '.join(map(repr, unknown))}: it may have {known}.")
        check("randomize", given, where="randomize")
        missing = {"push_velocity", "push_interval"} - set(given)
        if len(missing) == 1:
            raise ValueError(
                f"randomize has pushes without {missing.pop()}: give push_velocity (rad/s, what a push adds to the pole's "
                "velocity) and push_interval (s, from one push to the next), or neither."
            )
        ranges: Dict[str, Tuple[float, ...]] = {
            name: tuple(float(number) for number in np.broadcast_to(value, max(np.size(value), 2)))
            for name, value in given.items()
        }
        noise_scale = (1.0, 1.0, 1.0, 1.0)
        if len(ranges.get("obs_noise", ())) == 4:
            a, b, c, d = ranges["obs_noise"]
            noise_scale, ranges["obs_noise"] = (a, b, c, d), (1.0, 1.0)
        pushes: Dict[str, Any] = {name: ranges[name] for name in ("push_velocity", "push_interval") if name in ranges}
        names = tuple(name for name in AT_RESET if name in ranges)
        low, high = (tuple(ranges[name][i] for name in names) for i in (0, 1))
        return cls(names, low, high, noise_scale, **pushes) if given else None

    def highest(self, name: str, otherwise: float) -> float:
        """The upper end of a range, or what holds where it is not randomised."""
        return self.high[self.names.index(name)] if name in self.names else otherwise

    @property
    def of_machine(self) -> Tuple[str, ...]:
        """The names that only a simulator with a cartpole for each environment can randomise."""
        return tuple(name for name in self.names if name in MACHINE)


class Drawn(NamedTuple):
    """What each of N environments has of its own, with the ranges as tensors. All on the device."""

    parameters: th.Tensor
    """(K, N) float32: one row for each of :attr:`Randomization.names`. Rows are contiguous, which is what a step reads."""
    sent: th.Tensor
    """(D, N) float32: the actions of the last D steps, the newest first; D is the longest delay. 0 before an episode."""
    until_push: th.Tensor
    """(N,) float32: control steps until the next push, (0,) without pushes."""
    low: th.Tensor
    """(K, 1) float32"""
    high: th.Tensor
    """(K, 1) float32"""
    width: th.Tensor
    """(K, 1) float32: from low to high, and 1 more of the delay, which is rounded down"""
    noise_scale: th.Tensor
    """(4,) float32"""

    @classmethod
    def make(cls, spec: Randomization, n_envs: int, device: th.device) -> Drawn:
        """Before the first reset everything is at the lower end of its range."""
        width = [high - low + (name == "action_delay") for name, low, high in zip(spec.names, spec.low, spec.high)]
        columns = (spec.low, spec.high, width)
        low, high, widths = (th.tensor(column, dtype=th.float32, device=device).view(-1, 1) for column in columns)
        return cls(
            parameters=low.expand(-1, n_envs).clone(),
            sent=th.zeros(int(spec.highest("action_delay", 0)), n_envs, device=device),
            until_push=th.zeros(0 if spec.push_velocity is None else n_envs, device=device),
            low=low,
            high=high,
            width=widths,
            noise_scale=th.tensor(spec.noise_scale, device=device),
        )

    def state(self) -> Dict[str, th.Tensor]:
        """Copies of what steps change, by name."""
        return {name: getattr(self, name).clone() for name in STATE}

    def set_state(self, state: Dict[str, th.Tensor]) -> None:
        """:raises ValueError: the state is of cartpoles that are randomised differently"""
        if any(name not in state or state[name].shape != getattr(self, name).shape for name in STATE):
            raise ValueError(ANOTHER)
        for name in STATE:
            getattr(self, name).copy_(state[name])


STATE = ("parameters", "sent", "until_push")


class Draws(NamedTuple):
    """The random numbers of one step. Environments that need none ignore theirs: choosing would need the host."""

    uniform: th.Tensor
    """(N, 4) in [0, 1): of start states"""
    rows: th.Tensor
    """(K, N) in [0, 1), of what is drawn at a reset; with pushes two rows more: of their velocity and of their interval"""
    normal: Optional[th.Tensor]
    """(N, 4) standard normal: of the observation noise"""

    @classmethod
    def make(cls, spec: Randomization, n_envs: int, obs_dim: int, generator: th.Generator) -> Draws:
        n_rows = len(spec.names) + (0 if spec.push_velocity is None else 2)
        numbers = th.rand(n_envs * (obs_dim + n_rows), generator=generator, device=generator.device)
        uniform, rows = numbers[: n_envs * obs_dim], numbers[n_envs * obs_dim :]
        normal = None
        if "obs_noise" in spec.names:
            normal = th.randn(n_envs, obs_dim, generator=generator, device=generator.device)
        return cls(uniform.view(n_envs, obs_dim), rows.view(n_rows, n_envs), normal)


def own_values(drawn: Drawn, spec: Randomization, name: str) -> Optional[th.Tensor]:
    """(N,) float32: what the environments have drawn, a view; None: this is not randomised."""
    return drawn.parameters[spec.names.index(name)] if name in spec.names else None


def applied(actions: th.Tensor, drawn: Drawn, spec: Randomization) -> th.Tensor:
    """What reaches the carts of actions that are given now: late and scaled. Keeps ``actions`` for later.

    :param actions: (N, 1) float32, clipped to [-1, 1]
    :return: (N,) fractions of ``max_effort``; 0 until the first action of an episode arrives
    """
    action = actions[:, 0]
    delay, scale = own_values(drawn, spec, "action_delay"), own_values(drawn, spec, "force_scale")
    if delay is not None:
        newest_first = th.cat((action.unsqueeze(0), drawn.sent))
        action = newest_first.gather(0, delay.long().unsqueeze(0))[0]
        drawn.sent.copy_(newest_first[:-1])
    return action if scale is None else action * scale


def push(dof_state: th.Tensor, draws: Draws, drawn: Drawn, spec: Randomization) -> Optional[th.Tensor]:
    """Push the poles whose time has come, before the physics of a step: their angular velocity changes at once.

    :param dof_state: (N, 4) float32, changed in place
    :return: (N,) bool, which were pushed; None: there are no pushes
    """
    if spec.push_velocity is None:
        return None
    low, high = spec.push_velocity
    drawn.until_push.sub_(1.0)
    pushed = drawn.until_push < 0.5
    dof_state[:, 3].add_((draws.rows[-2] * (high - low) + low) * pushed)
    return pushed


def redraw(done: th.Tensor, pushed: Optional[th.Tensor], draws: Draws, drawn: Drawn, spec: Randomization, dt: float) -> None:
    """New values for the environments that are reset, and the time of the next push for those and for the pushed.

    :param done: (N,) bool
    :param pushed: what :func:`push` returned
    """
    if spec.names:
        new = th.addcmul(drawn.low, draws.rows[: len(spec.names)], drawn.width)
        if "action_delay" in spec.names:
            new[spec.names.index("action_delay")].floor_()
            drawn.sent.masked_fill_(done, 0.0)
        new = th.minimum(new, drawn.high)  # which rounding may pass
        drawn.parameters.copy_(th.where(done, new, drawn.parameters))
    if spec.push_velocity is not None:
        low, high = spec.push_interval[0] / dt, spec.push_interval[1] / dt
        again = done if pushed is None else done | pushed
        drawn.until_push.copy_(th.where(again, draws.rows[-1] * (high - low) + low, drawn.until_push))


def noisy(obs: th.Tensor, draws: Draws, drawn: Drawn, spec: Randomization) -> th.Tensor:
    """Observations (N, 4) as the agent gets them."""
    std = own_values(drawn, spec, "obs_noise")
    if std is None or draws.normal is None:
        return obs
    return th.addcmul(obs, draws.normal * drawn.noise_scale, std.unsqueeze(-1))
