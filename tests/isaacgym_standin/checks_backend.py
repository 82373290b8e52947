"""The Isaac Gym backend on the stand-in. Run by tests/backends/test_isaacgym_standin.py in a process of its own."""

from __future__ import annotations

import sb3_isaac  # isort: skip  # imports isaacgym before torch
import gc
import sys
import weakref

import isaacgym
import pytest
import torch as th
from isaacgym import gymapi

from sb3_isaac import backends
from sb3_isaac.backends import isaacgym_cartpole, physx_reference
from sb3_isaac.backends.isaacgym_cartpole import IsaacGymCartpole
from tests.conftest import QuietGym, SyncGuard

assert sb3_isaac.__version__


@pytest.fixture(autouse=True, params=["stale", "fresh"])
def new_process(request, monkeypatch):
    """Every test starts as a process without a simulator would, under both answers to a refresh after a setter."""
    monkeypatch.delenv("SB3_ISAAC_SIM_ENVS", raising=False)
    monkeypatch.setattr(gymapi.Gym, "sim_created", False)
    monkeypatch.setattr(gymapi.Gym, "refresh_answer", request.param)
    monkeypatch.setattr(isaacgym_cartpole, "_simulator", None)
    monkeypatch.setattr(isaacgym_cartpole, "_views", weakref.WeakSet())


def make(n_envs, seed=0, **kwargs):
    env = backends.make("isaacgym", n_envs, "cpu", seed, **kwargs)
    assert isinstance(env, IsaacGymCartpole)
    return env


def counts():
    return isaacgym_cartpole._simulator.sim.counts


@pytest.mark.parametrize("n_envs", [1, 5, 32])
def test_equals_the_embedded_simulator_bit_for_bit(n_envs):
    task = {"max_episode_length": 22}
    ours, theirs = make(n_envs, 3, **task), backends.make("torch", n_envs, "cpu", 3, **task)
    assert th.equal(ours.reset(), theirs.reset())
    generator = th.Generator().manual_seed(0)
    failed = timed_out = 0
    for step in range(300):
        actions = (th.rand(n_envs, 1, generator=generator) * 4 - 2) * (step % 3 == 0 or step > 120)
        mine, other = ours.step(actions), theirs.step(actions)
        for x, y in zip(mine, other):
            assert th.equal(x, y), step
        assert th.equal(ours.progress, theirs.progress) and th.equal(ours.dof_state, theirs.dof_state)
        assert th.equal(ours.force, theirs.force)
        failed += int(mine.terminated.sum())
        timed_out += int(mine.truncated.sum())
        if step == 150:
            assert th.equal(ours.reset(), theirs.reset())
        if step == 200:
            swapped = theirs.get_state()
            theirs.set_state(ours.get_state())
            ours.set_state(swapped)
    assert failed >= 2 * n_envs and timed_out >= 2 * n_envs


def test_views_go_the_way_of_separate_processes():
    """A training view, an evaluation view and a third, interleaved, against a simulator of its own for each."""
    sizes = {"train": 32, "eval": 8, "probe": 1}
    ours = {name: make(n, seed=n) for name, n in sizes.items()}
    alone = {name: backends.make("torch", n, "cpu", n) for name, n in sizes.items()}
    for name in sizes:
        assert th.equal(ours[name].reset(), alone[name].reset())
    generator = th.Generator().manual_seed(1)
    for turn in range(400):
        name = ("train", "train", "eval", "train", "eval", "eval", "probe")[turn * turn % 7]
        actions = th.rand(sizes[name], 1, generator=generator) * 2 - 1
        for x, y in zip(ours[name].step(actions), alone[name].step(actions)):
            assert th.equal(x, y), (turn, name)
        if turn % 97 == 0:
            assert th.equal(ours["eval"].reset(), alone["eval"].reset())
    assert isaacgym_cartpole._simulator.n_envs == 32


def test_one_setter_call_and_one_refresh_per_step():
    env, other = make(16), make(4)
    env.reset(), other.reset()
    for step in range(50):
        (other if step % 5 == 0 else env).step(th.ones(other.n_envs if step % 5 == 0 else env.n_envs, 1))
    assert counts()["simulate"] == counts()["refresh"] == counts()["set_force"] == 50
    assert counts()["refresh_after_setter"] == 0
    assert 10 <= counts()["set_dof_state"] <= 50


def test_nothing_is_written_where_nothing_was_reset():
    env = make(4)
    env.reset()
    for _ in range(5):
        result = env.step(th.zeros(4, 1))
        assert not (result.terminated | result.truncated).any()
    assert counts()["set_dof_state"] == 1


def test_tensor_operations_of_a_step():
    """At most 15 beyond simulate(). Reward, ends and resets are the task's, the same on every backend, and apart."""
    env = make(64)
    env.reset()
    env.step(th.zeros(64, 1))
    simulator = isaacgym_cartpole._simulator
    guard = SyncGuard(allowed=["nonzero"])
    gym, finish_step = simulator.gym, isaacgym_cartpole.finish_step
    task = SyncGuard()

    def counted_apart(*args):
        with guard.pause(), task:
            return finish_step(*args)

    simulator.gym, isaacgym_cartpole.finish_step = QuietGym(gym, guard), counted_apart
    actions = th.ones(64, 1)
    try:
        with guard:
            env.step(actions)
    finally:
        simulator.gym, isaacgym_cartpole.finish_step = gym, finish_step
    assert 0 < sum(guard.kernels.values()) <= 15, guard.kernels
    assert sum(guard.kernels.values()) == 7, guard.kernels  # nonzero, to int32, clamp, mul, clone, rand, or
    assert 0 < sum(task.kernels.values()) <= 25, task.kernels


def test_agrees_with_recorded_physx():
    recorded = physx_reference.Reference.load()
    env = make(recorded.force.shape[1])
    reached = physx_reference.replay(env, recorded)
    assert physx_reference.first_difference(reached, recorded) is None


@pytest.mark.parametrize("new_process", ["stale"], indirect=True)  # once is enough: it takes two seconds
def test_many_environments():
    env = make(65_536)
    assert env.reset().shape == (65_536, 4)
    assert env.step(th.ones(65_536, 1)).obs.isfinite().all()


def test_largest_view_alive_at_the_first_step_counts():
    small, large = make(2), make(9)
    small.reset()
    small.step(th.zeros(2, 1))
    assert isaacgym_cartpole._simulator.n_envs == 9
    large.reset()
    large.step(th.zeros(9, 1))


def test_a_view_that_is_gone_does_not_count():
    closed = make(50)
    closed.close()
    forgotten = make(40)
    del forgotten
    gc.collect()
    env = make(3)
    env.reset()
    env.step(th.zeros(3, 1))
    assert isaacgym_cartpole._simulator.n_envs == 3


@pytest.mark.parametrize("how", ["reserve", "variable"])
def test_room_for_later_environments(monkeypatch, how):
    if how == "variable":
        monkeypatch.setenv("SB3_ISAAC_SIM_ENVS", "20")
    else:
        monkeypatch.setenv("SB3_ISAAC_SIM_ENVS", "1")  # put back afterwards
        backends.reserve(20)
        backends.reserve(10)
    env = make(3)
    env.reset()
    env.step(th.zeros(3, 1))
    make(20)
    with pytest.raises(RuntimeError, match="made for 20 environments, and 21 are asked for: set .*SB3_ISAAC_SIM_ENVS=21"):
        make(21)
    monkeypatch.setenv("SB3_ISAAC_SIM_ENVS", "many")
    with pytest.raises(ValueError, match="must be a whole number, got 'many'"):
        backends.reserve(3)


def test_other_settings_need_another_process():
    env, late = make(3), make(3, dt=1 / 60)
    env.reset()
    env.step(th.zeros(3, 1))
    for kwargs in ({"dt": 0.01}, {"substeps": 4}, {"gravity": 5.0}, {"pole_length": 2.0}):
        with pytest.raises(RuntimeError, match="one Isaac Gym simulator .* use another process"):
            make(3, **kwargs)
    late.reset()
    with pytest.raises(RuntimeError, match="dt=0.0166, and dt=0.0166666"):
        late.step(th.zeros(3, 1))
    with pytest.raises(ValueError, match="max_effort=2000 is more than the cart's joint takes"):
        make(3, max_effort=2000.0)


@pytest.mark.parametrize(
    "physics",
    [
        {"cart_mass": 2.0, "pole_mass": 0.3, "pole_length": 0.7, "gravity": 3.7, "angular_damping": 0.1},
        {"pole_inertia": 0.1, "max_cart_speed": 5.0, "max_pole_speed": 4.0, "track_limit": 0.5, "reset_angle": 3.0},
    ],
)
def test_another_machine_is_what_isaac_gym_gets(physics):
    """Written into a URDF file, gravity and damping apart: the embedded simulator with the same parameters agrees."""
    ours, theirs = make(3, **physics), backends.make("torch", 3, "cpu", 0, **physics)
    ours.reset(), theirs.reset()
    for k in range(40):
        actions = th.tensor([[0.1], [-0.05], [1.0]]) * (-1) ** (k // 10)
        for x, y in zip(ours.step(actions), theirs.step(actions)):
            assert th.equal(x, y)


def test_task_parameters_differ_between_views():
    strong, weak = make(3), make(3, max_effort=100.0, max_episode_length=5)
    theirs = backends.make("torch", 3, "cpu", 0, max_effort=100.0, max_episode_length=5)
    strong.reset(), weak.reset(), theirs.reset()
    for _ in range(12):
        strong.step(th.ones(3, 1))
        for x, y in zip(weak.step(th.ones(3, 1)), theirs.step(th.ones(3, 1))):
            assert th.equal(x, y)


def test_randomisation_that_needs_no_other_machine_equals_the_embedded_simulators():
    ranges = {"force_scale": (0.8, 1.2), "action_delay": (0, 3), "obs_noise": 0.01}
    task = {"max_episode_length": 22, "randomize": {**ranges, "push_velocity": (-2.0, 2.0), "push_interval": (0.05, 0.2)}}
    ours, theirs, other = make(16, 3, **task), backends.make("torch", 16, "cpu", 3, **task), make(4)
    assert th.equal(ours.reset(), theirs.reset())
    other.reset()
    generator = th.Generator().manual_seed(0)
    ended = 0
    for step in range(80):
        actions = th.rand(16, 1, generator=generator) * 2 - 1
        mine = ours.step(actions)
        for x, y in zip(mine, theirs.step(actions)):
            assert th.equal(x, y), step
        ended += int((mine.terminated | mine.truncated).sum())
        if step % 20 == 19:
            other.step(th.zeros(4, 1))
    theirs_state = theirs.get_state()
    assert all(th.equal(value, theirs_state[name]) for name, value in ours.get_state().items())
    assert ended > 32 and counts()["refresh_after_setter"] == 0


def test_a_machine_that_differs_between_environments_is_refused():
    with pytest.raises(ValueError, match="Isaac Gym cannot randomise cart_mass, pole_length, as its .* backend='torch'"):
        make(3, randomize={"pole_length": (0.5, 1.0), "cart_mass": 2.0, "force_scale": 0.5})
    with pytest.raises(ValueError, match="max_effort=400 with its force_scale is more than the cart's joint takes"):
        make(3, randomize={"force_scale": (1.0, 3.0)})
    assert isaacgym_cartpole._simulator is None


@pytest.mark.parametrize(
    ("failure", "says"),
    [
        ("ninja", "cannot be used: gymtorch.*pip install ninja"),
        ("compiler", "cannot be used: gymtorch.*C\\+\\+ compiler"),
        ("driver", "needs NVIDIA's driver"),
        ("create_sim", "could not create a simulator"),
    ],
)
@pytest.mark.parametrize("new_process", ["stale"], indirect=True)
def test_failures_on_the_way_are_explained(monkeypatch, failure, says):
    if failure in ("ninja", "compiler"):  # as in a process that has not used it yet: gymtorch fails when it is imported
        for name in ("isaacgym.gymtorch", "sb3_isaac.backends.isaacgym_cartpole"):
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.delattr(isaacgym, "gymtorch")
    monkeypatch.setattr(gymapi.failures, "ASKED_FOR", failure)
    with pytest.raises(RuntimeError, match=says):
        env = backends.make("isaacgym", 3, "cpu", 0)
        env.reset()
        env.step(th.zeros(3, 1))


class TestViewer:
    def test_draws_every_step(self):
        env = make(3, headless=False)
        env.reset()
        for _ in range(4):
            env.step(th.zeros(3, 1))
        assert isaacgym_cartpole._simulator.sim.graphics_device == 0
        assert isaacgym_cartpole._simulator.viewer.handle.frames == 4

    def test_keys_and_closing(self):
        env = make(3, headless=False)
        env.reset()
        env.step(th.zeros(3, 1))
        simulator = isaacgym_cartpole._simulator
        handle = simulator.viewer.handle
        handle.events.append(gymapi.ActionEvent("toggle", 1.0))
        env.step(th.zeros(3, 1))
        assert handle.frames == 1
        handle.events += [gymapi.ActionEvent("toggle", 0.0), gymapi.ActionEvent("toggle", 1.0)]  # released, pressed again
        env.step(th.zeros(3, 1))
        assert handle.frames == 2
        handle.events.append(gymapi.ActionEvent("close", 1.0))
        env.step(th.zeros(3, 1))
        assert handle.closed and simulator.viewer is None
        env.step(th.zeros(3, 1))

    def test_headless_by_default(self, monkeypatch):
        env = make(3)
        env.reset()
        env.step(th.zeros(3, 1))
        assert isaacgym_cartpole._simulator.viewer is None
        assert isaacgym_cartpole._simulator.sim.graphics_device == -1
        monkeypatch.setenv("SB3_ISAAC_HEADLESS", "0")
        assert not make(3).headless
