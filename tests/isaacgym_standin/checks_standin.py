"""The stand-in refuses what it says it refuses. Run by tests/backends/test_isaacgym_standin.py in a process of its own."""

from __future__ import annotations

import os

import sb3_isaac  # isort: skip  # imports isaacgym before torch
import pytest
import torch as th
from isaacgym import gymapi, gymtorch, physics
from isaacgym.asset import UnknownAsset

from sb3_isaac.backends.physics import integrate

N = 3
ASSET_FOLDER = os.path.join(os.path.dirname(sb3_isaac.__file__), "backends")
Refused = gymapi.Refused


@pytest.fixture(autouse=True)
def new_process(monkeypatch):
    """Every test starts as a process without a simulator would."""
    monkeypatch.setattr(gymapi.Gym, "sim_created", False)
    monkeypatch.setattr(gymapi.Gym, "refresh_answer", "stale")


def parameters():
    params = gymapi.SimParams()
    params.dt, params.substeps = 0.0166, 2
    params.up_axis, params.gravity = gymapi.UP_AXIS_Z, gymapi.Vec3(0.0, 0.0, -9.81)
    params.physx.solver_type, params.physx.num_velocity_iterations = 1, 0
    return params


def create_sim(params=None):
    return gymapi.acquire_gym().create_sim(0, -1, gymapi.SIM_PHYSX, params or parameters())


def load(gym, sim, folder=ASSET_FOLDER, **changes):
    options = gymapi.AssetOptions()
    options.fix_base_link = True
    for name, value in changes.items():
        setattr(options, name, value)
    return gym.load_asset(sim, folder, "cartpole.urdf", options)


def add_env(gym, sim, asset, effort=True):
    env = gym.create_env(sim, gymapi.Vec3(-2, -4, 0), gymapi.Vec3(2, 4, 4), 1)
    pose = gymapi.Transform()
    pose.p.z = 2.0
    actor = gym.create_actor(env, asset, pose, "cartpole", gym.get_sim_actor_count(sim) - 1, 1, 0)
    properties = gym.get_actor_dof_properties(env, actor)
    if effort:
        properties["driveMode"][0] = gymapi.DOF_MODE_EFFORT
    gym.set_actor_dof_properties(env, actor, properties)
    return env


def prepared(n=N, effort=True):
    gym = gymapi.acquire_gym()
    sim = create_sim()
    asset = load(gym, sim)
    for _ in range(n):
        add_env(gym, sim, asset, effort)
    assert gym.prepare_sim(sim) and gym.get_sim_dof_count(sim) == 2 * n
    return gym, sim


def states(value, n=N):
    return th.full((2 * n, 2), float(value))


def int32(*numbers):
    return th.tensor(numbers, dtype=th.int32)


def test_one_simulator_per_process():
    create_sim()
    with pytest.raises(Refused, match="once per process"):
        create_sim()


def test_physx_only():
    with pytest.raises(Refused, match="SIM_PHYSX"):
        gymapi.acquire_gym().create_sim(0, -1, gymapi.SIM_FLEX, parameters())


def test_nothing_is_added_after_prepare_sim():
    gym, sim = prepared()
    asset = sim.asset
    for call in (
        lambda: gym.create_env(sim, gymapi.Vec3(), gymapi.Vec3(), 1),
        lambda: gym.create_actor(sim.envs[-1], asset, gymapi.Transform(), "late", 2, 1, 0),
        lambda: gym.add_ground(sim, gymapi.PlaneParams()),
        lambda: gym.prepare_sim(sim),
    ):
        with pytest.raises(Refused):
            call()


def test_environments_are_filled_one_after_the_other():
    gym, sim = gymapi.acquire_gym(), create_sim()
    asset = load(gym, sim)
    first = add_env(gym, sim, asset)
    gym.create_env(sim, gymapi.Vec3(), gymapi.Vec3(), 1)
    with pytest.raises(Refused, match="one after the other"):
        gym.create_actor(first, asset, gymapi.Transform(), "late", 0, 1, 0)


def test_no_tensors_before_prepare_sim():
    gym, sim = gymapi.acquire_gym(), create_sim()
    add_env(gym, sim, load(gym, sim))
    force, state, index = th.zeros(2), states(0, 1), int32(0)
    for call in (
        lambda: gym.acquire_dof_state_tensor(sim),
        lambda: gym.refresh_dof_state_tensor(sim),
        lambda: gym.simulate(sim),
        lambda: gym.set_dof_actuation_force_tensor(sim, gymtorch.unwrap_tensor(force)),
        lambda: gym.set_dof_state_tensor_indexed(sim, gymtorch.unwrap_tensor(state), gymtorch.unwrap_tensor(index), 1),
    ):
        with pytest.raises(Refused, match="before prepare_sim"):
            call()


def test_acquired_tensor_is_a_copy_that_refresh_fills():
    gym, sim = prepared()
    tensor = gymtorch.wrap_tensor(gym.acquire_dof_state_tensor(sim))
    assert tensor.shape == (2 * N, 2) and tensor.dtype == th.float32
    new, every = states(0.1), th.arange(N, dtype=th.int32)
    gym.set_dof_state_tensor_indexed(sim, gymtorch.unwrap_tensor(new), gymtorch.unwrap_tensor(every), N)
    gym.simulate(sim)
    gym.fetch_results(sim, True)
    assert not tensor.any()
    gym.refresh_dof_state_tensor(sim)
    expected = integrate(th.full((N, 4), 0.1), th.zeros(N), 0.0166, 2)
    assert th.equal(tensor.view(N, 4), expected)


@pytest.mark.parametrize(
    ("state", "index", "count", "message"),
    [
        (states(0).double(), int32(0), 1, "Unsupported Gym tensor dtype"),
        (states(0).to(th.int32), int32(0), 1, "expected DTYPE_FLOAT32"),
        (states(0), int32(0).long(), 1, "expected DTYPE_UINT32"),
        (states(0, 2), int32(0), 1, "expected shape"),
        (states(0).view(-1), int32(0), 1, "expected shape"),
        (states(0), int32(0, 1), 1, "expected shape"),
        (states(0), int32(N), 1, "outside 0 to 2"),
        (states(0), int32(-1), 1, "outside 0 to 2"),
        (states(0), int32(1, 1), 2, "occurs twice"),
        (states(0), int32(), 0, "no actors"),
        (th.zeros(2, 2 * N).t(), int32(0), 1, "must be contiguous"),
    ],
)
def test_tensors_are_checked(state, index, count, message):
    gym, sim = prepared()
    with pytest.raises(Exception, match=message):
        gym.set_dof_state_tensor_indexed(sim, gymtorch.unwrap_tensor(state), gymtorch.unwrap_tensor(index), count)
    with pytest.raises(Refused, match="expected a descriptor"):
        gym.set_dof_state_tensor_indexed(sim, state, index, count or 1)


@pytest.mark.parametrize("shape", [(N,), (2 * N, 1), (2, N), (N, 2, 1)])
def test_forces_are_for_all_dofs(shape):
    gym, sim = prepared()
    force = th.zeros(shape)
    with pytest.raises(Refused, match="expected shape"):
        gym.set_dof_actuation_force_tensor(sim, gymtorch.unwrap_tensor(force))


def test_freed_temporaries():
    gym, sim = prepared()
    descriptor = gymtorch.unwrap_tensor(th.zeros(2 * N) + 1)  # nobody keeps the sum
    with pytest.raises(Refused, match="was freed"):
        gym.set_dof_actuation_force_tensor(sim, descriptor)
    force = th.zeros(N, 2)
    gym.set_dof_actuation_force_tensor(sim, gymtorch.unwrap_tensor(force.view(-1)))  # a view of what is kept is fine
    gym.simulate(sim)
    gym.set_dof_actuation_force_tensor(sim, gymtorch.unwrap_tensor(force))
    del force
    with pytest.raises(Refused, match="was freed"):
        gym.simulate(sim)


def test_moved_and_changed_tensors():
    gym, sim = prepared()
    force = th.zeros(2 * N)
    descriptor = gymtorch.unwrap_tensor(force)
    force.set_(th.zeros(2 * N))
    with pytest.raises(Refused, match="has moved"):
        gym.set_dof_actuation_force_tensor(sim, descriptor)
    gym.set_dof_actuation_force_tensor(sim, gymtorch.unwrap_tensor(force))
    force += 1
    with pytest.raises(Refused, match="was changed"):
        gym.simulate(sim)


def test_a_setter_once_per_simulate():
    gym, sim = prepared()
    state, index, force = states(0), int32(0), th.zeros(2 * N)

    def set_state():
        gym.set_dof_state_tensor_indexed(sim, gymtorch.unwrap_tensor(state), gymtorch.unwrap_tensor(index), 1)

    def set_force():
        gym.set_dof_actuation_force_tensor(sim, gymtorch.unwrap_tensor(force))

    for setter in (set_state, set_force):
        setter()
        with pytest.raises(Refused, match="called twice"):
            setter()
    gym.simulate(sim)
    set_state(), set_force()


def test_fetch_results_comes_first_on_the_cpu_pipeline():
    gym, sim = prepared()
    gym.refresh_dof_state_tensor(sim)
    gym.simulate(sim)
    with pytest.raises(Refused, match="fetch_results"):
        gym.refresh_dof_state_tensor(sim)
    gym.fetch_results(sim, True)
    gym.refresh_dof_state_tensor(sim)


@pytest.mark.parametrize("answer", ["stale", "fresh"])
def test_both_answers_to_a_refresh_after_a_setter(answer, monkeypatch):
    monkeypatch.setattr(gymapi.Gym, "refresh_answer", answer)
    gym, sim = prepared()
    tensor = gymtorch.wrap_tensor(gym.acquire_dof_state_tensor(sim))
    new, index = states(0.2), int32(1)
    gym.set_dof_state_tensor_indexed(sim, gymtorch.unwrap_tensor(new), gymtorch.unwrap_tensor(index), 1)
    gym.refresh_dof_state_tensor(sim)
    assert tensor.view(N, 4)[1].tolist() == pytest.approx([0.2 if answer == "fresh" else 0.0] * 4)
    assert not tensor.view(N, 4)[[0, 2]].any()
    gym.simulate(sim)
    gym.fetch_results(sim, True)
    gym.refresh_dof_state_tensor(sim)
    expected = integrate(th.full((1, 4), 0.2), th.zeros(1), 0.0166, 2)
    assert th.equal(tensor.view(N, 4)[1:2], expected)


@pytest.mark.parametrize("effort", [True, False])
def test_only_effort_driven_joints_take_forces(effort):
    gym, sim = prepared(effort=effort)
    force = th.tensor([[100.0, 0.0]]).repeat(N, 1)
    gym.set_dof_actuation_force_tensor(sim, gymtorch.unwrap_tensor(force))
    gym.simulate(sim)
    expected = integrate(th.zeros(N, 4), th.full((N,), 100.0 if effort else 0.0), 0.0166, 2)
    assert th.equal(sim.state, expected)
    state = sim.state.clone()
    gym.simulate(sim)  # a force acts for one step
    assert th.equal(sim.state, integrate(state, th.zeros(N), 0.0166, 2))
    with pytest.raises(NotImplementedError, match="no motor"):
        physics.step(state, th.ones(N, 2), 0.0166, 2, sim.asset.machine)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('<origin xyz="0 0 0.47"/>', '<origin xyz="0 0 0.5"/>'),
        ("0.04 0.06 1.0", "0.05 0.06 1.0"),
        ('axis xyz="0 1 0"', 'axis xyz="1 0 0"'),
        ("0.12 0 0", "0 0 0"),
        ('lower="-4"', 'lower="-3"'),
    ],
)
def test_another_machine_is_not_simulated(tmp_path, old, new):
    with open(os.path.join(ASSET_FOLDER, "cartpole.urdf")) as file:
        text = file.read()
    assert old in text
    (tmp_path / "cartpole.urdf").write_text(text.replace(old, new))
    with pytest.raises(UnknownAsset):
        load(gymapi.acquire_gym(), create_sim(), str(tmp_path))


def test_another_setting_is_not_simulated(monkeypatch):
    gym, sim = gymapi.acquire_gym(), create_sim()
    for change in ({"fix_base_link": False}, {"density": 1.0}, {"armature": 0.1}):
        with pytest.raises(UnknownAsset):
            load(gym, sim, **change)
    for name, value in (("solver_type", 0), ("num_position_iterations", 8), ("num_velocity_iterations", 1)):
        monkeypatch.setattr(gymapi.Gym, "sim_created", False)
        params = parameters()
        setattr(params.physx, name, value)
        with pytest.raises(UnknownAsset):
            load(gym, create_sim(params))


def test_misspelt_parameters():
    with pytest.raises(AttributeError):
        parameters().sub_steps = 2
    with pytest.raises(AttributeError):
        gymapi.AssetOptions().fix_base = True
    with pytest.raises(TypeError):
        parameters().physx.contact_collection = 0


def test_no_viewer_without_a_graphics_device():
    gym, sim = prepared()
    with pytest.raises(Refused, match="graphics device"):
        gym.create_viewer(sim, gymapi.CameraProperties())
