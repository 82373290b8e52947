"""The cartpole's step in C against PhysX, and against the plain path."""

from __future__ import annotations

from typing import Any, Dict

import numpy as np
import pytest
import torch as th

from sb3_isaac.backends.cartpole import RESET_WIDTH, CartpoleTask
from sb3_isaac.backends.torch_cartpole import TorchCartpole, advance, advance_in_c, why_not_in_c
from tests.conftest import DATA, make_env
from tests.native.conftest import needs_a_compiler
from tests.ppo.conftest import make_model

pytestmark = needs_a_compiler


def integrated(state: th.Tensor, force: th.Tensor, **task: Any) -> th.Tensor:
    """Where the physics lead, before any reset."""
    settings = CartpoleTask(max_effort=400.0, max_episode_length=10**6, **task)
    n, width = len(state), th.tensor(RESET_WIDTH)
    progress, uniform = th.zeros(n, dtype=th.int64), th.zeros(n, 4)
    result, applied = advance_in_c(state.clone(), progress, (force / 400.0).unsqueeze(1), uniform, width, settings)
    assert th.allclose(applied, force, rtol=1e-6, atol=0.0)
    return result.final_obs


def test_one_step_of_physx() -> None:
    with np.load(DATA / "golden.npz") as file:
        golden = {name: th.as_tensor(file[name]) for name in file.files if name != "meta"}
    for names in (("state", "force", "next_state"), ("traj_state", "traj_force", "traj_next")):
        state, force, expected = (golden[name] for name in names)
        state, force, expected = state.reshape(-1, 4), force.flatten(), expected.reshape(-1, 4)
        th.testing.assert_close(integrated(state, force), expected, atol=5e-6, rtol=3.6e-7)


TASKS: Dict[str, Dict[str, Any]] = {
    "default": {},
    "other": dict(
        cart_mass=2.0, pole_mass=0.3, pole_length=1.4, gravity=3.7, angular_damping=0.1, track_limit=1.0, max_pole_speed=3.0,
        max_cart_speed=4.0, dt=0.02, substeps=3, max_effort=60.0, reset_dist=0.9, reset_angle=1.0,
    ),
    "spinning": dict(reset_angle=1e6, reset_dist=1e6, angular_damping=0.0, max_pole_speed=1e3),
}  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("n_envs", [1, 13, 64])
def test_steps_are_the_plain_ones_to_rounding(task: str, n_envs: int) -> None:
    """From the same states, through failures, the rail's end, time limits and resets."""
    given = dict(TASKS[task], seed=3, max_episode_length=40)
    plain, in_c = TorchCartpole(n_envs, **given), TorchCartpole(n_envs, **given)
    in_c.compile()
    assert in_c._in_c and not plain._in_c
    assert th.equal(plain.reset(), in_c.reset())
    generator, ends = th.Generator().manual_seed(0), th.zeros(3, dtype=th.int64)
    for _ in range(200):
        if task == "spinning":  # far from zero, too
            plain.dof_state[:, 2].mul_(1.1)
        in_c.dof_state.copy_(plain.dof_state)
        in_c.progress.copy_(plain.progress)
        in_c.generator.set_state(plain.generator.get_state())
        before = plain.dof_state.clone()
        actions = th.rand(n_envs, 1, generator=generator) * 3.0 - 1.5
        expected, found = plain.step(actions), in_c.step(actions)
        # Not where the verdict hangs on rounding
        limits = th.tensor([plain.task.reset_dist, plain.task.reset_angle])
        sure = (expected.final_obs[:, ::2].abs() - limits).abs().amin(1) > 1e-4
        far = 1.0 + before.abs().amax(1, keepdim=True)
        assert float(((found.final_obs - expected.final_obs) / far).abs().max()) < 1e-5
        for name in ("terminated", "truncated"):
            assert th.equal(getattr(found, name)[sure], getattr(expected, name)[sure])
            assert getattr(found, name).dtype == th.bool
        for one, other in ((found.obs, expected.obs), (in_c.dof_state, plain.dof_state)):
            assert th.allclose((one / far)[sure], (other / far)[sure], rtol=0.0, atol=1e-5)
        assert th.allclose(found.reward[sure], expected.reward[sure], rtol=1e-4, atol=1e-4)
        assert th.allclose(in_c.force, plain.force, rtol=1e-6)
        assert th.equal(in_c.progress[sure], plain.progress[sure])
        stopped = expected.final_obs[:, 0].abs() == plain.task.track_limit
        ends += th.stack([expected.terminated.sum(), expected.truncated.sum(), stopped.sum()])
    if n_envs == 64:
        assert ends[1] > 0 and (task == "spinning" or ends[0] > 0)


def test_each_step_has_tensors_of_its_own() -> None:
    env = TorchCartpole(5, seed=0)
    env.compile()
    env.reset()
    first = env.step(th.zeros(5, 1))
    kept = [tensor.clone() for tensor in first]
    env.step(th.ones(5, 1))
    assert all(th.equal(one, other) for one, other in zip(first, kept))


def test_a_nan_stays_with_its_environment() -> None:
    env = TorchCartpole(20, seed=0)
    env.compile()
    env.reset()
    actions = th.zeros(20, 1)
    actions[3] = th.nan
    result = env.step(actions)
    assert result.final_obs.isnan().any(1).nonzero().tolist() == [[3]]
    state, progress = env.dof_state.clone(), env.progress.clone()
    expected, _ = advance(state, progress, actions, th.zeros(20, 4), env.reset_width, env.task)
    assert expected.final_obs.isnan().any(1).nonzero().tolist() == [[3]]


@pytest.mark.parametrize(
    "task",
    [
        {"reward": lambda obs, actions, terminated, task: obs[:, 0]},
        {"termination": lambda obs, actions, task: obs[:, 0] > 1},
        {"randomize": {"pole_mass": (0.5, 2.0)}},
    ],
)
def test_tasks_with_functions_or_randomisation_stay_in_pytorch(task: Dict[str, Any]) -> None:
    env = TorchCartpole(4, seed=0, **task)
    env.compile()
    assert not env._in_c and "of its own" in str(why_not_in_c(env.task))
    env.reset()
    env.step(th.zeros(4, 1))


@pytest.mark.parametrize(
    "actions", [th.full((3, 1), 0.5, dtype=th.float64), th.ones(3, 1, dtype=th.int64), th.full((1, 1), 0.5)]
)
def test_actions_of_another_kind(actions: th.Tensor) -> None:
    plain, in_c = TorchCartpole(3, seed=0), TorchCartpole(3, seed=0)
    in_c.compile()
    for env in (plain, in_c):
        env.reset()
        env.step(actions)
    assert th.allclose(in_c.force, plain.force.float())
    for wrong in (th.zeros(3), th.zeros(2, 1)):
        with pytest.raises((IndexError, RuntimeError)):
            in_c.step(wrong)


def test_back_to_the_plain_step() -> None:
    """A model without ``compile`` on an environment that one with it has trained on."""
    env = make_env()
    for compiled in (True, False):
        make_model(env=env, compile=compiled).learn(128)
        assert env.tensor_env._in_c == compiled
