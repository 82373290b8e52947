"""The cartpole's step by other code than PyTorch's, in C or in Triton, against PhysX and the plain path: what is compared."""

from __future__ import annotations

from typing import Any, Callable, Dict

import numpy as np
import torch as th

from sb3_isaac.backends.cartpole import RESET_WIDTH, CartpoleTask
from sb3_isaac.backends.torch_cartpole import TorchCartpole
from tests.conftest import DATA

TASKS: Dict[str, Dict[str, Any]] = {
    "default": {},
    "other": dict(
        cart_mass=2.0, pole_mass=0.3, pole_length=1.4, gravity=3.7, angular_damping=0.1, track_limit=1.0, max_pole_speed=3.0,
        max_cart_speed=4.0, dt=0.02, substeps=3, max_effort=60.0, reset_dist=0.9, reset_angle=1.0,
    ),
    "spinning": dict(reset_angle=1e6, reset_dist=1e6, angular_damping=0.0, max_pole_speed=1e3),
}  # fmt: skip


def check_physx(advance: Callable[..., Any], device: str = "cpu") -> None:
    """From states of PhysX to those that it came to."""
    with np.load(DATA / "golden.npz") as file:
        golden = {name: th.as_tensor(file[name], device=device) for name in file.files if name != "meta"}
    task, width = CartpoleTask(max_effort=400.0, max_episode_length=10**6), th.tensor(RESET_WIDTH, device=device)
    for names in (("state", "force", "next_state"), ("traj_state", "traj_force", "traj_next")):
        state, force, expected = (golden[name] for name in names)
        state, force, expected = state.reshape(-1, 4), force.flatten(), expected.reshape(-1, 4)
        progress, uniform = th.zeros(len(state), dtype=th.int64, device=device), th.zeros(len(state), 4, device=device)
        result, applied = advance(state.clone(), progress, (force / 400.0).unsqueeze(1), uniform, width, task)
        assert th.allclose(applied, force, rtol=1e-6, atol=0.0)
        th.testing.assert_close(result.final_obs, expected, atol=5e-6, rtol=3.6e-7)


def check_cartpoles(plain: TorchCartpole, other: TorchCartpole, far_from_zero: bool, n_steps: int = 200) -> th.Tensor:
    """From the same states, through failures, the rail's end, time limits and resets.

    :param far_from_zero: let angles grow
    :return: how many failures, time limits and cartpoles at the rail's end there were
    """
    assert th.equal(plain.reset(), other.reset())
    generator, ends = th.Generator().manual_seed(0), th.zeros(3, dtype=th.int64, device=plain.device)
    for _ in range(n_steps):
        if far_from_zero:
            plain.dof_state[:, 2].mul_(1.1)
        other.dof_state.copy_(plain.dof_state)
        other.progress.copy_(plain.progress)
        other.generator.set_state(plain.generator.get_state())
        before = plain.dof_state.clone()
        actions = (th.rand(plain.n_envs, 1, generator=generator) * 3.0 - 1.5).to(plain.device)
        expected, found = plain.step(actions), other.step(actions)
        # Not where the verdict hangs on rounding
        limits = th.tensor([plain.task.reset_dist, plain.task.reset_angle], device=plain.device)
        sure = (expected.final_obs[:, ::2].abs() - limits).abs().amin(1) > 1e-4
        far = 1.0 + before.abs().amax(1, keepdim=True)
        assert float(((found.final_obs - expected.final_obs) / far).abs().max()) < 1e-5
        for name in ("terminated", "truncated"):
            assert th.equal(getattr(found, name)[sure], getattr(expected, name)[sure])
            assert getattr(found, name).dtype == th.bool
        for one, want in ((found.obs, expected.obs), (other.dof_state, plain.dof_state)):
            assert th.allclose((one / far)[sure], (want / far)[sure], rtol=0.0, atol=1e-5)
        assert th.allclose(found.reward[sure], expected.reward[sure], rtol=1e-4, atol=1e-4)
        assert th.allclose(other.force, plain.force, rtol=1e-6)
        assert th.equal(other.progress[sure], plain.progress[sure])
        stopped = expected.final_obs[:, 0].abs() == plain.task.track_limit
        ends += th.stack([expected.terminated.sum(), expected.truncated.sum(), stopped.sum()])
    return ends
