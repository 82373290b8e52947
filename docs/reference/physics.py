"""How far the embedded simulator is from PhysX and from a log of real Isaac Gym: python docs/reference/physics.py"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Dict

import numpy as np
import torch as th

from sb3_isaac.backends.cartpole import CartpoleTask, reward_and_termination
from sb3_isaac.backends.physics import CartpolePhysics, integrate

DATA = Path(__file__).resolve().parents[2] / "tests" / "data"


def one_step_error() -> float:
    """Largest error of one step from 2,000 states and forces, against PhysX 5.3.1."""
    with np.load(DATA / "golden.npz") as file:
        state, force, expected = (th.as_tensor(file[name]) for name in ("state", "force", "next_state"))
    return float((integrate(state, force) - expected).abs().max())


# --8<-- [start:log]
def log_error(substeps: int = 2, **physics: Any) -> float:
    """Root mean square error of the mean reward of 128 environments, over 128 steps of a run on real Isaac Gym."""
    with np.load(DATA / "real_isaacgym_ppo_trace.npz") as file:
        logged, dt = file["real_mean_reward"], json.loads(str(file["meta"]))["dt"]
        force, reset, state = (th.as_tensor(file[name]) for name in ("force", "reset", "state"))
    now, errors = state[0], []
    for t in range(len(force)):
        reached = integrate(now, force[t], dt, substeps, CartpolePhysics(**physics))
        reward, _, _ = reward_and_termination(reached, th.zeros(128), th.zeros(128, 1), CartpoleTask())
        errors.append(float(reward.double().mean()) - logged[t])
        if t + 1 < len(force):  # what follows a reset is known; all else the simulator makes by itself
            now = th.where(reset[t, :, None], state[t + 1], reached)
    return float(np.sqrt(np.nanmean(np.square(errors))))


# --8<-- [end:log]

WRONG: Dict[str, Dict[str, Any]] = {
    "the pole's inertia is that of a rod of 1 kg": {"pole_inertia": 1.0 / 12.0},
    "no damping": {"angular_damping": 0.0},
    "one physics step in the place of two": {"substeps": 1},
    "no limit of the pole's speed": {"max_pole_speed": 1e9},
    "the centre of mass in the middle, 0.5 m": {"pole_length": 0.5 / 0.47, "pole_inertia": 0.20072},
}


def main() -> None:
    print(f"| | error |\n|---|---|\n| one step, 2,000 states, PhysX (largest) | {one_step_error():.0e} |")
    print(f"| log of real Isaac Gym, as it is | {log_error():.1e} |")
    for name, changes in WRONG.items():
        print(f"| {name} | {log_error(**changes):.1e} |")


if __name__ == "__main__":
    main()
