"""The cartpole's physics in plain torch, batched, on any device: what Isaac Gym's PhysX computes, to rounding.

The arithmetic is PhysX's, not a textbook's: measured against PhysX 5 itself and against a log of real Isaac Gym
(tests/data/README.md says how, tests/backends/test_physics.py holds the numbers). Do not "improve" the integrator: where PhysX
differs from continuous time, that difference is part of the task.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, NamedTuple, Optional

import torch as th

POLE_COM = 0.47
"""Height of the pole's centre of mass above the joint, of its length."""


def box_inertia(length: Any) -> Any:
    """kg m^2 about its centre of the pole's box, ``length`` metres long, at 1000 kg/m^3. A number or a tensor."""
    # 1000 kg/m^3 * 0.04 m * 0.06 m * length / 12 * (0.06^2 + length^2)
    return 0.2 * length * (0.06**2 + length**2)


@dataclass(frozen=True)
class CartpolePhysics:
    """Parameters of the machine. The defaults are those of IsaacGymEnvs' ``cartpole.urdf`` in Isaac Gym.

    :param cart_mass: in kg
    :param pole_mass: in kg
    :param pole_length: of the pole's box, in metres; its centre of mass is 0.47 of it above the joint
    :param pole_inertia: kg m^2 about the pole's centre. None: what Isaac Gym takes where the URDF gives none, that of the
        pole's box at 1000 kg/m^3, whatever its mass (0.20072 for the default length, a pole of 2.4 kg)
    :param gravity: in m/s^2
    :param angular_damping: of the pole, in 1/s, on its own inertia; the default is PhysX's in Isaac Gym
    :param max_cart_speed: velocity limit of the cart's joint, in m/s
    :param max_pole_speed: velocity limit of the pole's joint, in rad/s
    :param track_limit: where the rail ends on both sides, in metres: the cart stops dead there
    """

    cart_mass: float = 1.0
    pole_mass: float = 1.0
    pole_length: float = 1.0
    pole_inertia: Optional[float] = None
    gravity: float = 9.81
    angular_damping: float = 0.5
    max_cart_speed: float = 100.0
    max_pole_speed: float = 8.0
    track_limit: float = 4.0

    @property
    def pole_com(self) -> float:
        """Distance from the joint to the pole's centre of mass, in metres."""
        return POLE_COM * self.pole_length

    @property
    def inertia(self) -> float:
        """kg m^2 of the pole about its centre."""
        if self.pole_inertia is not None:
            return self.pole_inertia
        return float(box_inertia(self.pole_length))


DEFAULT_PHYSICS = CartpolePhysics()


class Coefficients(NamedTuple):
    """What the equations of :func:`integrate` are made of. With b = m l cos(angle) and D = M J - b^2 they are

        f = F - m l sin(angle) w^2        torque = m l g sin(angle) - damping w
        dv = (J f + b torque) / D         dw = (b f + M torque) / D

    for a total mass M, a pole of mass m whose centre is at l, and its inertia J about the joint. The code divides torque by
    m l g, D by M J, and what dv and dw multiply it with by J and by m l: that takes half the operations."""

    h: float
    """Duration of a physics step, in seconds"""
    max_cart_speed: float
    max_pole_speed: float
    pole_moment: float
    """m l"""
    torque_damping: float
    determinant: float
    cart_gain: float
    pole_gain: float
    cart_step: float
    pole_step: float
    track_limit: float
    stopped_gain: float
    """Where the cart stops dead, the pole takes the reaction: J dw = h torque - b v"""
    stopped_velocity: float


def coefficients(physics: CartpolePhysics, dt: float, substeps: int) -> Coefficients:
    """Of control steps of ``dt`` seconds in so many physics steps."""
    h, gravity = dt / substeps, physics.gravity
    total_mass = physics.cart_mass + physics.pole_mass
    pole_moment = physics.pole_mass * physics.pole_com
    joint_inertia = physics.inertia + physics.pole_mass * physics.pole_com**2
    return Coefficients(
        h=h,
        max_cart_speed=physics.max_cart_speed,
        max_pole_speed=physics.max_pole_speed,
        pole_moment=pole_moment,
        torque_damping=physics.angular_damping * physics.inertia / (pole_moment * gravity),
        determinant=pole_moment**2 / (total_mass * joint_inertia),
        cart_gain=pole_moment**2 * gravity / joint_inertia,
        pole_gain=total_mass * gravity,
        cart_step=h / total_mass,
        pole_step=h * pole_moment / (total_mass * joint_inertia),
        track_limit=physics.track_limit,
        stopped_gain=h * pole_moment * gravity / joint_inertia,
        stopped_velocity=-pole_moment / joint_inertia,
    )


def integrate(
    dof_state: th.Tensor,
    force: th.Tensor,
    dt: float = 0.0166,
    substeps: int = 2,
    physics: CartpolePhysics = DEFAULT_PHYSICS,
) -> th.Tensor:
    """One control step of the cartpole, as PhysX computes it.

    :param dof_state: (N, 4) float32: cart position (m), cart velocity (m/s), pole angle (rad), pole velocity (rad/s)
    :param force: (N,) float32, on the cart, in newtons. A positive force pushes the cart to its positive side and raises
        both velocities.
    :param dt: duration of the control step, in seconds
    :param substeps: physics steps that it is divided into
    :param physics: masses, lengths and limits
    :return: (N, 4) float32, the next state
    """
    x, v, angle, w = dof_state.unbind(-1)
    one = dof_state.new_ones(())
    c = coefficients(physics, dt, substeps)
    for _ in range(substeps):
        # Both joints are slowed by one common factor: a fast pole slows the cart.
        excess = th.maximum(v.abs() / c.max_cart_speed, w.abs() / c.max_pole_speed).clamp(min=1.0)
        v, w = v / excess, w / excess
        sin, cos = th.sin(angle), th.cos(angle)
        f = th.addcmul(force, sin, w * w, value=-c.pole_moment)
        torque = th.sub(sin, w, alpha=c.torque_damping)
        det = th.addcmul(one, cos, cos, value=-c.determinant)
        new_v = th.addcdiv(v, th.addcmul(f, cos, torque, value=c.cart_gain), det, value=c.cart_step)
        new_w = th.addcdiv(w, th.add(cos * f, torque, alpha=c.pole_gain), det, value=c.pole_step)
        free_x = th.add(x, new_v, alpha=c.h)
        x = free_x.clamp(-c.track_limit, c.track_limit)
        stopped = x != free_x
        stopped_w = th.add(w, torque, alpha=c.stopped_gain)
        stopped_w = th.addcmul(stopped_w, cos, v, value=c.stopped_velocity)
        w = th.where(stopped, stopped_w, new_w)
        v = new_v.masked_fill(stopped, 0.0)
        angle = th.add(angle, w, alpha=c.h)
    return th.stack((x, v, angle, w), dim=-1)


def integrate_each(
    dof_state: th.Tensor,
    force: th.Tensor,
    own: Dict[str, th.Tensor],
    dt: float = 0.0166,
    substeps: int = 2,
    physics: CartpolePhysics = DEFAULT_PHYSICS,
) -> th.Tensor:
    """:func:`integrate` of cartpoles that differ. The same equations; more operations, as constants are tensors.

    :param own: (N,) float32 each: "cart_mass" (kg), "pole_mass" (kg), "pole_length" (m), "angular_damping" (1/s); what is not
        there is as ``physics`` says
    """
    x, v, angle, w = dof_state.unbind(-1)
    h = dt / substeps
    cart_mass: Any = own.get("cart_mass", physics.cart_mass)
    pole_mass: Any = own.get("pole_mass", physics.pole_mass)
    pole_length: Any = own.get("pole_length", physics.pole_length)
    angular_damping: Any = own.get("angular_damping", physics.angular_damping)
    pole_inertia: Any = box_inertia(pole_length) if physics.pole_inertia is None else physics.pole_inertia
    pole_com = POLE_COM * pole_length
    total_mass = cart_mass + pole_mass
    pole_moment = pole_mass * pole_com
    joint_inertia = pole_inertia + pole_moment * pole_com
    damping = angular_damping * pole_inertia
    weight_moment = pole_moment * physics.gravity
    determinant = total_mass * joint_inertia
    for _ in range(substeps):
        excess = th.maximum(v.abs() / physics.max_cart_speed, w.abs() / physics.max_pole_speed).clamp(min=1.0)
        v, w = v / excess, w / excess
        sin, cos = th.sin(angle), th.cos(angle)
        b = pole_moment * cos
        f = force - pole_moment * sin * w * w
        torque = weight_moment * sin - damping * w
        h_per_det = h / (determinant - b * b)
        new_v = v + h_per_det * (joint_inertia * f + b * torque)
        new_w = w + h_per_det * (b * f + total_mass * torque)
        free_x = th.add(x, new_v, alpha=h)
        x = free_x.clamp(-physics.track_limit, physics.track_limit)
        stopped = x != free_x
        w = th.where(stopped, w + (h * torque - b * v) / joint_inertia, new_w)
        v = new_v.masked_fill(stopped, 0.0)
        angle = th.add(angle, w, alpha=h)
    return th.stack((x, v, angle, w), dim=-1)
