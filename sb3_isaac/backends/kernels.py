# mypy: ignore-errors
"""Triton kernel of a step of the cartpole with its resets.

Imported by :mod:`sb3_isaac.backends.fused_cartpole` only, where there is Triton. The plain path, which tests compare it with,
is ``integrate`` in ``physics.py`` and ``finish_step`` in ``cartpole.py``; ``cartpole.c`` is the same in C.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _larger(x, y):
    """Not a number stays one, as in torch."""
    return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _within(x, limit):
    """Between -limit and limit."""
    return tl.minimum(_larger(x, -limit), limit, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def cartpole_step(
    dof_state,  # (n, 4) updated
    progress,  # (n,) int64, updated
    actions,  # (n,)
    uniform,  # (n, 4) in [0, 1), for the environments that are reset
    reset_width,  # (4,)
    final_obs,  # (n, 4) written, likewise the others
    obs,  # (n, 4)
    reward,  # (n,)
    force,  # (n,)
    terminated,  # (n,) bool
    truncated,  # (n,) bool
    n,
    h,  # from here to stopped_velocity: physics.Coefficients
    max_cart_speed,
    max_pole_speed,
    pole_moment,
    torque_damping,
    determinant,
    cart_gain,
    pole_gain,
    cart_step,
    pole_step,
    track_limit,
    stopped_gain,
    stopped_velocity,
    max_effort,
    reset_dist,
    reset_angle,
    substeps,
    max_episode_length,
    BLOCK: tl.constexpr,
):
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = e < n
    at = e.to(tl.int64) * 4
    x = tl.load(dof_state + at, mask=inside, other=0.0)
    v = tl.load(dof_state + at + 1, mask=inside, other=0.0)
    angle = tl.load(dof_state + at + 2, mask=inside, other=0.0)
    w = tl.load(dof_state + at + 3, mask=inside, other=0.0)
    effort = _within(tl.load(actions + e, mask=inside, other=0.0), 1.0) * max_effort
    for _ in range(substeps):
        excess = _larger(tl.div_rn(tl.abs(v), max_cart_speed), tl.div_rn(tl.abs(w), max_pole_speed))
        excess = _larger(excess, 1.0)
        v = tl.div_rn(v, excess)
        w = tl.div_rn(w, excess)
        sin = tl.sin(angle)
        cos = tl.cos(angle)
        f = effort - pole_moment * sin * (w * w)
        torque = sin - torque_damping * w
        det = 1.0 - determinant * cos * cos
        new_v = v + cart_step * tl.div_rn(f + cart_gain * cos * torque, det)
        new_w = w + pole_step * tl.div_rn(cos * f + pole_gain * torque, det)
        free_x = x + h * new_v
        x = _within(free_x, track_limit)
        stopped = x != free_x
        w = tl.where(stopped, w + stopped_gain * torque + stopped_velocity * cos * v, new_w)
        v = tl.where(stopped, 0.0, new_v)
        angle = angle + h * w
    failed = (tl.abs(x) > reset_dist) | (tl.abs(angle) > reset_angle)
    age = tl.load(progress + e, mask=inside, other=0) + 1
    timed_out = (age >= max_episode_length - 1) & (failed == 0)
    done = failed | timed_out
    gained = 1.0 - angle * angle - 0.01 * tl.abs(v) - 0.005 * tl.abs(w)
    tl.store(reward + e, tl.where(failed, -2.0, gained), mask=inside)
    tl.store(force + e, effort, mask=inside)
    tl.store(terminated + e, failed, mask=inside)
    tl.store(truncated + e, timed_out, mask=inside)
    tl.store(progress + e, tl.where(done, 0, age), mask=inside)
    for k in tl.static_range(4):
        last = x if k == 0 else (v if k == 1 else (angle if k == 2 else w))
        drawn = (tl.load(uniform + at + k, mask=inside, other=0.0) - 0.5) * tl.load(reset_width + k)
        new = tl.where(done, drawn, last)
        tl.store(final_obs + at + k, last, mask=inside)
        tl.store(obs + at + k, new, mask=inside)
        tl.store(dof_state + at + k, new, mask=inside)
