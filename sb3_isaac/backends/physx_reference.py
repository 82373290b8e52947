"""Recorded PhysX trajectories, and how to hold any backend against them.

``physx_reference.npz`` is an extract of tests/data/golden.npz: 8 cartpoles over 200 steps in PhysX 5.3.1 itself, with
IsaacGymEnvs' settings (tests/data/README.md has its origin). The first half of them balances: there an error grows by
itself, so that each step is started from the recorded state. The second half is pushed at random and rolls on by itself
between its resets.
"""

from __future__ import annotations

import os
from typing import Dict, NamedTuple, Optional

import numpy as np
import torch as th

from sb3_isaac.backends.base import TensorEnv

PATH = os.path.join(os.path.dirname(os.path.abspath(__file__)), "physx_reference.npz")
ONE_STEP_TOLERANCE = 5e-6
"""Largest error of one step from a recorded state, in each component (m, m/s, rad, rad/s)."""
ROLLING_TOLERANCE = 1e-4
"""Largest error where the simulator rolls on by itself, for up to 37 steps; errors grow tenfold there."""
COMPONENTS = ("cart position", "cart velocity", "pole angle", "pole velocity")


class Reference(NamedTuple):
    """T steps of N cartpoles."""

    state: np.ndarray
    """(T, N, 4) float32, before the step"""
    force: np.ndarray
    """(T, N) float32, newtons"""
    next_state: np.ndarray
    """(T, N, 4) float32, after the step"""
    reset: np.ndarray
    """(T, N) bool: the next row of ``state`` is a new start and not ``next_state``"""
    rolls: np.ndarray
    """(N,) bool: whether the cartpole rolls on by itself"""

    @classmethod
    def load(cls) -> Reference:
        with np.load(PATH) as file:
            return cls(**{name: file[name] for name in cls._fields})


def replay(env: TensorEnv, reference: Reference) -> np.ndarray:
    """Drive ``env`` along the recorded forces. Returns what it reached after each step, (T, N, 4) float32.

    :param env: a cartpole with dt=0.0166, substeps=2 and as many environments as the reference has
    :raises ValueError: if the number of environments is another one
    """
    steps, n_envs = reference.force.shape
    if env.n_envs != n_envs:
        raise ValueError(f"The reference has {n_envs} cartpoles, the environment {env.n_envs}: make it with n_envs={n_envs}.")
    state = th.as_tensor(reference.state, device=env.device)
    actions = th.as_tensor(reference.force / 400.0, device=env.device).unsqueeze(-1)
    # A state is written where the recording starts anew, and every time for those that do not roll by themselves.
    write = np.concatenate([np.ones((1, n_envs), dtype=bool), reference.reset[:-1]]) | ~reference.rolls
    reached = np.empty_like(reference.next_state)
    env.reset()
    for kind in (~reference.rolls, reference.rolls):  # apart, so that the rolling ones are left alone for most of the time
        for t in range(steps):
            rows = write[t] & kind
            if rows.any():
                now: Dict[str, th.Tensor] = env.get_state()
                rows_on_device = th.as_tensor(rows, device=env.device)
                now["dof_state"] = th.where(rows_on_device.unsqueeze(-1), state[t], now["dof_state"])
                now["progress"] = th.zeros_like(now["progress"])  # no time limit in between
                env.set_state(now)
            reached[t, kind] = env.step(actions[t]).final_obs.cpu().numpy()[kind]
    return reached


def first_difference(reached: np.ndarray, reference: Reference) -> Optional[str]:
    """The first place where ``reached`` is further from the recording than allowed, in words, or None."""
    tolerance = np.where(reference.rolls, ROLLING_TOLERANCE, ONE_STEP_TOLERANCE)
    error = np.abs(reached.astype(np.float64) - reference.next_state)
    wrong = np.argwhere(~(error <= tolerance[:, None]))  # NaN is wrong
    if len(wrong) == 0:
        return None
    step, env, component = first = tuple(wrong[0])
    return (
        f"differs first at step {step}, cartpole {env}, {COMPONENTS[component]}: {reached[first]:.7g} where PhysX has "
        f"{reference.next_state[first]:.7g} (error {error[first]:.2e}, allowed {tolerance[env]:.0e})"
    )
