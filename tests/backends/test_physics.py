"""The embedded simulator against PhysX itself and against a log of real Isaac Gym. tests/data/README.md has the origins."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch as th

from sb3_isaac.backends.cartpole import CartpoleTask, reward_and_termination
from sb3_isaac.backends.physics import DEFAULT_PHYSICS, CartpolePhysics, integrate
from sb3_isaac.backends.torch_cartpole import TorchCartpole, advance, traced
from tests.conftest import DATA

TORCH_2 = int(th.__version__.split(".")[0]) >= 2


@pytest.fixture(scope="module")
def golden():
    with np.load(DATA / "golden.npz") as file:
        return {name: th.as_tensor(file[name]) for name in file.files if name != "meta"}


@pytest.fixture(scope="module")
def trace():
    with np.load(DATA / "real_isaacgym_ppo_trace.npz") as file:
        return {name: file[name] for name in file.files}


dtypes = pytest.mark.parametrize("dtype", [th.float64, th.float32], ids=str)
"""In float64 only the rounding of PhysX is left, the same everywhere. In float32, in which the simulator runs, ours is added:
every processor rounds in its own way, and a falling pole makes an error grow."""
LAST_DIGITS = {th.float64: 0.0, th.float32: 2.4e-7}
"""Relative: two units in the last place."""


@dtypes
def test_one_step_from_anywhere(golden, dtype):
    """2000 states over the whole range, in PhysX 5.3.1."""
    state, force, expected = (golden[name].to(dtype) for name in ("state", "force", "next_state"))
    th.testing.assert_close(integrate(state, force), expected, atol=5e-6, rtol=LAST_DIGITS[dtype])


@dtypes
def test_one_step_along_trajectories(golden, dtype):
    state, force, expected = (golden[f"traj_{name}"].flatten(0, 1).to(dtype) for name in ("state", "force", "next"))
    th.testing.assert_close(integrate(state, force), expected, atol=5e-6, rtol=LAST_DIGITS[dtype])


@dtypes
def test_rolling_between_resets(golden, dtype):
    """The ten trajectories pushed at random, from one reset to the next without a correction."""
    state, force, expected, reset = (golden[f"traj_{name}"][10:] for name in ("state", "force", "next", "reset"))
    state, force, worst = state.to(dtype), force.to(dtype), 0.0
    now = state[:, 0]
    for t in range(force.shape[1]):
        reached = integrate(now, force[:, t])
        worst = max(worst, float((reached - expected[:, t]).abs().max()))
        if t + 1 < force.shape[1]:
            now = th.where(reset[:, t, None], state[:, t + 1], reached)
    assert worst <= {th.float64: 1e-4, th.float32: 3e-4}[dtype]
    assert reset.sum() > 70


def roll_trace(trace, dtype, physics=DEFAULT_PHYSICS):
    """Errors of the logged run's mean rewards, with the simulator rolling forward by itself between resets."""
    dt, substeps = (json.loads(str(trace["meta"]))[name] for name in ("dt", "substeps"))
    force, reset, state = (
        th.as_tensor(trace["force"]).to(dtype),
        th.as_tensor(trace["reset"]),
        th.as_tensor(trace["state"]).to(dtype),
    )
    assert dt == pytest.approx(1 / 60) and force.shape == (128, 128)
    now, means = state[0], []
    for t in range(128):
        reached = integrate(now, force[t], dt, substeps, physics)
        progress, actions = th.zeros(128, dtype=th.int64), th.zeros(128, 1)
        reward, _, _ = reward_and_termination(reached, progress, actions, CartpoleTask())
        means.append(float(reward.double().mean()))
        if t < 127:
            now = th.where(reset[t, :, None], state[t + 1], reached)
    return np.abs(np.array(means) - trace["real_mean_reward"])


@dtypes
def test_real_isaac_gym(trace, dtype):
    """Every mean reward that real Isaac Gym logged over 128 steps of 128 environments, within 1e-5, our rounding apart."""
    error = roll_trace(trace, dtype)
    assert np.isnan(error).sum() == 1  # where the log restarts its sum
    largest, rms = {th.float64: (1e-5, 3e-6), th.float32: (5e-5, 1e-5)}[dtype]
    assert np.nanmax(error) <= largest
    assert np.sqrt(np.nanmean(error**2)) <= rms


@pytest.mark.parametrize(
    "wrong",
    [
        {"pole_inertia": 1 / 12},
        {"angular_damping": 0.0},
        {"max_pole_speed": 80.0},
        {"pole_length": 0.5 / 0.47, "pole_inertia": 0.20072},
        {"gravity": 9.7},
    ],
)
def test_the_log_tells_wrong_physics_from_right(trace, wrong):
    assert np.nanmax(roll_trace(trace, th.float32, CartpolePhysics(**wrong))) > 1e-3


def integrate_with_constants(dof_state, force, dt, substeps):
    """What integrate() was before its numbers were parameters, operation by operation."""
    moment, joint = 1.0 * 0.47, 0.20072 + 1.0 * 0.47**2
    x, v, angle, w = dof_state.unbind(-1)
    one = dof_state.new_ones(())
    h = dt / substeps
    for _ in range(substeps):
        excess = th.maximum(v.abs() / 100.0, w.abs() / 8.0).clamp(min=1.0)
        v, w = v / excess, w / excess
        sin, cos = th.sin(angle), th.cos(angle)
        f = th.addcmul(force, sin, w * w, value=-moment)
        torque = th.sub(sin, w, alpha=0.5 * 0.20072 / (moment * 9.81))
        det = th.addcmul(one, cos, cos, value=-(moment**2) / (2.0 * joint))
        cart_gain = th.addcmul(f, cos, torque, value=moment**2 * 9.81 / joint)
        pole_gain = th.add(cos * f, torque, alpha=2.0 * 9.81)
        new_v = th.addcdiv(v, cart_gain, det, value=h / 2.0)
        new_w = th.addcdiv(w, pole_gain, det, value=h * moment / (2.0 * joint))
        free_x = th.add(x, new_v, alpha=h)
        x = free_x.clamp(-4.0, 4.0)
        stopped = x != free_x
        stopped_w = th.add(w, torque, alpha=h * moment * 9.81 / joint)
        stopped_w = th.addcmul(stopped_w, cos, v, value=-moment / joint)
        w = th.where(stopped, stopped_w, new_w)
        v = new_v.masked_fill(stopped, 0.0)
        angle = th.add(angle, w, alpha=h)
    return th.stack((x, v, angle, w), dim=-1)


@pytest.mark.parametrize("dtype", [th.float64, th.float32], ids=str)
def test_the_default_parameters_are_the_old_constants_bit_for_bit(dtype):
    assert (CartpolePhysics().inertia, CartpolePhysics().pole_com) == (0.20072, 0.47)
    generator = th.Generator().manual_seed(0)
    state = ((th.rand(5000, 4, generator=generator) - 0.5) * th.tensor([8.2, 220.0, 7.0, 20.0])).to(dtype)
    force = ((th.rand(5000, generator=generator) - 0.5) * 2000.0).to(dtype)
    for dt, substeps in ((0.0166, 2), (1 / 60, 3)):
        expected = integrate_with_constants(state, force, dt, substeps)
        assert th.equal(integrate(state, force, dt, substeps), expected)
        assert th.equal(integrate(state, force, dt, substeps, CartpoleTask()), expected)
    assert (expected[:, 0].abs() == 4.0).any()


@pytest.mark.parametrize(
    "physics",
    [
        {},
        {"cart_mass": 3.0},
        {"pole_mass": 0.2},
        {"pole_length": 2.0},
        {"gravity": 1.62},
        {"angular_damping": 0.0},
        {"pole_inertia": 0.05},
    ],
    ids=str,
)
def test_other_parameters_obey_the_equations_of_motion(physics):
    """Accelerations of one short step against the 2x2 system solved in float64."""
    p = CartpolePhysics(**physics)
    generator = th.Generator().manual_seed(1)
    state = (th.rand(50, 4, generator=generator, dtype=th.float64) - 0.5) * th.tensor([4.0, 8.0, 6.0, 8.0])
    force = (th.rand(50, generator=generator, dtype=th.float64) - 0.5) * 100.0
    _, _, angle, w = state.unbind(-1)
    length = 0.47 * p.pole_length
    inertia = 0.2 * p.pole_length * (0.0036 + p.pole_length**2) if p.pole_inertia is None else p.pole_inertia
    total, joint, coupling = p.cart_mass + p.pole_mass, inertia + p.pole_mass * length**2, p.pole_mass * length * angle.cos()
    # with these signs: M dv - b dw = f and J dw - b dv = torque
    matrix = th.stack([th.full_like(angle, total), -coupling, -coupling, th.full_like(angle, joint)], -1).view(-1, 2, 2)
    f = force - p.pole_mass * length * angle.sin() * w**2
    torque = p.pole_mass * p.gravity * length * angle.sin() - p.angular_damping * inertia * w
    h = 1e-6
    expected = th.linalg.solve(matrix, th.stack([f, torque], -1).unsqueeze(-1)).squeeze(-1)
    found = (integrate(state, force, h, 1, p) - state)[:, [1, 3]] / h
    th.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_limits_are_parameters():
    task = CartpoleTask(track_limit=1.0, max_cart_speed=2.0, max_pole_speed=3.0, reset_dist=0.5, reset_angle=0.2)
    fast = integrate(th.tensor([[0.0, 4.0, 0.0, 0.0], [0.0, 0.0, 0.0, 6.0]]), th.zeros(2), 1e-6, 1, task)
    assert fast[0, 1] == pytest.approx(2.0, abs=1e-3) and fast[1, 3] == pytest.approx(3.0, abs=1e-3)
    assert integrate(th.tensor([[0.999, 2.0, 0.0, 0.0]]), th.zeros(1), 0.0166, 2, task)[0, :2].tolist() == [1.0, 0.0]
    obs = th.tensor([[0.6, 0.0, 0.0, 0.0], [0.0, 0.0, 0.3, 0.0], [0.4, 0.0, 0.1, 0.0]])
    _, terminated, _ = reward_and_termination(obs, th.zeros(3, dtype=th.int64), th.zeros(3, 1), task)
    assert terminated.tolist() == [True, True, False]


def test_signs():
    """A positive force pushes the cart to its positive side and raises both velocities; the angle is not wrapped."""
    x, v, angle, w = integrate(th.zeros(1, 4), th.tensor([100.0]))[0].tolist()
    assert x > 0 and v > 0 and angle > 0 and w > 0
    falling = integrate(th.tensor([[0.0, 0.0, 0.1, 0.0]]), th.zeros(1))[0].tolist()
    assert falling[3] > 0.0  # gravity pulls the pole further down
    assert integrate(th.tensor([[0.0, 0.0, 10.0, 8.0]]), th.zeros(1))[0, 2] > 10.0


def test_mirror_image():
    generator = th.Generator().manual_seed(0)
    state = (th.rand(200, 4, generator=generator) - 0.5) * th.tensor([7.9, 30.0, 6.0, 18.0])
    force = (th.rand(200, generator=generator) - 0.5) * 800
    assert th.equal(integrate(-state, -force), -integrate(state, force))


def test_speed_limits_share_one_factor():
    """A pole beyond 8 rad/s slows the cart, too; nothing is clamped at the end of a step."""
    h = 1e-9
    v, w = integrate(th.tensor([[0.0, 10.0, 0.0, 16.0]]), th.zeros(1), dt=h, substeps=1)[0, [1, 3]].tolist()
    assert (v, w) == (pytest.approx(5.0, abs=1e-4), pytest.approx(8.0, abs=1e-4))
    v, w = integrate(th.tensor([[0.0, 200.0, 0.0, 1.0]]), th.zeros(1), dt=h, substeps=1)[0, [1, 3]].tolist()
    assert (v, w) == (pytest.approx(100.0, abs=1e-3), pytest.approx(0.5, abs=1e-4))
    assert integrate(th.tensor([[0.0, 0.0, 0.0, 8.0]]), th.tensor([400.0]))[0, 3] > 8.0


@pytest.mark.parametrize("side", [1.0, -1.0])
def test_the_rail_ends_at_four_metres(side):
    """The cart stops dead there and the pole takes the reaction; a force away from the end frees it."""
    h, v, angle, w, force = 0.0083, 5.0, 0.3, 1.0, 400.0
    before = th.tensor([[side * 3.99, side * v, side * angle, side * w]])
    after = integrate(before, th.tensor([side * force]), dt=h, substeps=1)[0].double() * side
    ml, inertia = 0.47, 0.20072 + 0.47**2
    torque = ml * 9.81 * math.sin(angle) - 0.5 * 0.20072 * w
    expected_w = w + (h * torque - ml * math.cos(angle) * v) / inertia
    assert after[:2].tolist() == [4.0, 0.0]
    assert float(after[3]) == pytest.approx(expected_w, rel=1e-5)
    assert float(after[2]) == pytest.approx(angle + h * expected_w, rel=1e-5)
    still = integrate(th.tensor([[side * 4.0, 0.0, 0.0, 0.0]]), th.tensor([side * 400.0]))[0]
    assert still.tolist() == [side * 4.0, 0.0, 0.0, 0.0]
    away = integrate(th.tensor([[side * 4.0, 0.0, 0.0, 0.0]]), th.tensor([-side * 400.0]))[0]
    assert abs(away[0]) < 4.0 and away[1] * side < 0


def test_every_environment_goes_its_own_way():
    """A batch gives exactly what each environment gives alone."""
    generator = th.Generator().manual_seed(1)
    state = (th.rand(64, 4, generator=generator) - 0.5) * th.tensor([6.0, 20.0, 3.0, 16.0])
    force = (th.rand(64, generator=generator) - 0.5) * 800
    batch = integrate(state, force)
    for n in (1, 7, 33):
        assert th.equal(integrate(state[:n].clone(), force[:n].clone()), batch[:n])


def test_substeps():
    """Two control steps of one substep are one control step of two."""
    state, force = th.tensor([[0.1, 1.0, 0.2, -3.0]]), th.tensor([123.0])
    twice = integrate(integrate(state, force, 0.0083, 1), force, 0.0083, 1)
    assert th.allclose(twice, integrate(state, force, 0.0166, 2), atol=1e-6)


def test_a_balancing_controller_reaches_the_time_limit():
    """The textbook feedback keeps the pole up for the whole episode, with nearly the highest return."""
    env = TorchCartpole(32, seed=0)
    gain = th.tensor([0.54, 0.45, -1.88, -0.51])
    obs, returns = env.reset(), th.zeros(32)
    for step in range(1, 500):
        result = env.step((obs @ gain).unsqueeze(-1))
        obs, returns = result.obs, returns + result.reward
        assert not result.terminated.any()
        assert result.truncated.all() == (step == 499)
    assert returns.min() > 475 and returns.max() <= 499


@pytest.mark.skipif(th._C._jit_can_fuse_on_cpu(), reason="TorchScript fuses here, and so rounds in another way")
@pytest.mark.parametrize("n_envs", [1, 33])
def test_torchscript_changes_no_bit(n_envs):
    """What a CPU steps with, against the Python functions, through failures, time limits and resets."""
    env = TorchCartpole(n_envs, seed=3, max_episode_length=40)
    assert traced(env.task) is not None
    state, progress = env.reset(), env.progress.clone()
    twin = TorchCartpole(n_envs, seed=3, max_episode_length=40)
    twin.reset()
    ends = th.zeros(2, dtype=th.int64)
    for actions in th.rand(80, n_envs, 1, generator=th.Generator().manual_seed(0)) * 2.4 - 1.2:
        result = env.step(actions)
        arguments = (state, progress, actions, twin._uniform(), twin.reset_width)
        expected, force = advance(*arguments, env.task)
        for x, y in zip([*result, env.force, env.dof_state, env.progress], [*expected, force, state, progress]):
            assert x.dtype == y.dtype and th.equal(x, y)
        ends += th.stack([result.terminated.sum(), result.truncated.sum()])
    assert ends[0] > 0 and (n_envs == 1 or ends[1] > 0)


def test_functions_of_the_user_stay_in_python():
    """They may look at values, which a trace would freeze."""
    assert traced(CartpoleTask(reward=lambda obs, actions, terminated, task: obs[:, 0])) is None
    assert traced(CartpoleTask(termination=lambda obs, actions, task: obs[:, 0] > 1)) is None


@pytest.mark.skipif(not TORCH_2, reason="torch.compile came with torch 2")
def test_compiles_into_one_graph():
    """No graph break: what fullgraph=True refuses would be a host synchronisation or Python on the data."""
    generator = th.Generator().manual_seed(0)
    state, force = th.rand(8, 4, generator=generator) - 0.5, th.rand(8, generator=generator)
    compiled = th.compile(integrate, fullgraph=True, backend="eager")
    assert th.allclose(compiled(state, force, 0.0166, 2), integrate(state, force, 0.0166, 2), rtol=0.0, atol=1e-6)
    task, width = CartpoleTask(), th.tensor([0.2, 0.5, 0.2, 0.5])
    step = th.compile(advance, fullgraph=True, backend="eager")
    uniform, actions = th.rand(8, 4, generator=generator), th.rand(8, 1, generator=generator)
    arguments = [state, 2 + 71 * th.arange(8), actions, uniform, width]
    plain = [tensor.clone() for tensor in arguments]
    result, applied = step(*arguments, task)
    expected, expected_force = advance(*plain, task)
    for x, y in zip([*result, applied, *arguments[:2]], [*expected, expected_force, *plain[:2]]):
        assert x.dtype == y.dtype and th.allclose(x.double(), y.double(), rtol=0.0, atol=3e-6)
    assert expected.truncated.any()
