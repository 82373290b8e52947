"""Stand-in for ``isaacgym.gymapi``: what the cartpole needs of it. See the README one folder up for the sources."""

import enum
import os

import numpy

from isaacgym import failures, gymdeps  # noqa: F401  (gymdeps refuses to come after torch)
from isaacgym.asset import Asset
from isaacgym.structs import (  # noqa: F401  (all are part of the module's interface)
    AssetOptions,
    CameraProperties,
    ContactCollection,
    DofDriveMode,
    IndexDomain,
    KeyboardInput,
    PhysXParams,
    PlaneParams,
    Quat,
    SimParams,
    SimType,
    Tensor,
    TensorDataType,
    Transform,
    UpAxis,
    Vec3,
)

for _enum in (ContactCollection, DofDriveMode, IndexDomain, KeyboardInput, SimType, TensorDataType, UpAxis):
    globals().update(_enum.__members__)  # gymapi.SIM_PHYSX and so on, as in the real module

DOF_PROPERTIES = numpy.dtype(  # docs:physics, the table "DOF Properties and Drive Modes"
    [("hasLimits", "?"), ("lower", "<f4"), ("upper", "<f4"), ("driveMode", "<i4"), ("velocity", "<f4")]
    + [(name, "<f4") for name in ("effort", "stiffness", "damping", "friction", "armature")]
)


class Refused(RuntimeError):
    """The code under test did what the real Isaac Gym refuses, crashes on or leaves undefined."""


class Phase(enum.Enum):
    SETUP = 0
    RUNNING = 1


class Sim:
    """The simulator's handle. Code under test must treat it as opaque; tests read ``counts``."""

    def __init__(self, params, device_id, graphics_device):
        self.params = params
        self.device = f"cuda:{device_id}" if params.use_gpu_pipeline else "cpu"
        self.graphics_device = graphics_device
        self.phase = Phase.SETUP
        self.envs = []
        self.asset = None
        self.fetched = True
        self.pending = {}  # setter's name -> (descriptors, values at the time of the call)
        self.counts = {"simulate": 0, "refresh": 0, "refresh_after_setter": 0, "set_dof_state": 0, "set_force": 0}


class Env:
    def __init__(self, sim, index):
        self.sim, self.index = sim, index
        self.dof_properties = None


class Viewer:
    def __init__(self):
        self.closed, self.frames, self.events = False, 0, []


class ActionEvent:
    def __init__(self, action, value):
        self.action, self.value = action, value


def _refuse(condition, message):
    if condition:
        raise Refused(message)


class Gym:
    """The API. Methods take their arguments by position, as the real ones do (stubs: arg0, arg1, ...)."""

    sim_created = False
    refresh_answer = os.environ.get("ISAACGYM_STANDIN_REFRESH", "stale")

    # -- setup -------------------------------------------------------------------------------------------------------

    def create_sim(self, compute_device=0, graphics_device=0, type=SimType.SIM_FLEX, params=None):  # stubs
        # https://github.com/RoboVerseOrg/RoboVerse/pull/294; IsaacGymEnvs: vec_task._create_sim_once
        _refuse(Gym.sim_created, "Foundation object exists already: create_sim() works once per process")
        _refuse(type is not SimType.SIM_PHYSX, "the tensor API is available with SIM_PHYSX only (docs:tensors)")
        # docs:tensors: the GPU pipeline needs GPU PhysX; compute_device is the ordinal of a CUDA device (stubs)
        _refuse(params.use_gpu_pipeline and not params.physx.use_gpu, "the GPU pipeline needs physx.use_gpu = True")
        if failures.at_create_sim():
            return None
        Gym.sim_created = True
        return Sim(params, compute_device, graphics_device)

    def add_ground(self, sim, params):
        _refuse(sim.phase is not Phase.SETUP, "add_ground() after prepare_sim()")
        # docs:simsetup, "Creating a Ground Plane": the normal depends on the up axis
        _refuse(params.normal.z != 1.0 or sim.params.up_axis is not UpAxis.UP_AXIS_Z, "the plane's normal is not the up axis")

    def load_asset(self, sim, rootpath, filename, options=None):
        return Asset(os.path.join(rootpath, filename), options or AssetOptions(), sim.params)

    def get_asset_dof_count(self, asset):
        return len(asset.dofs)

    def create_env(self, sim, lower, upper, num_per_row):
        _refuse(sim.phase is not Phase.SETUP, "create_env() after prepare_sim()")  # docs:tensors, "Simulation Setup"
        _refuse(not (isinstance(num_per_row, int) and num_per_row > 0), "create_env() needs a positive number per row")
        sim.envs.append(Env(sim, len(sim.envs)))
        return sim.envs[-1]

    def create_actor(self, env, asset, pose, name=None, group=-1, filter=-1, segmentationId=0):  # stubs
        _refuse(env.sim.phase is not Phase.SETUP, "create_actor() after prepare_sim()")
        _refuse(env is not env.sim.envs[-1], "environments must be populated one after the other (docs:simsetup)")
        _refuse(env.dof_properties is not None, "the stand-in knows one actor per environment")
        _refuse(group != env.index, "actors of different environments must not collide (docs:simsetup, collision_group)")
        _refuse(not filter > 0, "the cart collides with its own rail unless the filter is > 0 (docs, Creating Actors)")
        _refuse(pose.p.z != 2.0, "the public task puts the cartpole 2 m above the ground (IsaacGymEnvs)")
        env.sim.asset = asset
        env.dof_properties = numpy.array(asset.dofs, dtype=DOF_PROPERTIES)
        return 0

    def get_actor_dof_properties(self, env, actor):
        return env.dof_properties.copy()

    def set_actor_dof_properties(self, env, actor, properties):
        _refuse(properties.dtype != DOF_PROPERTIES or properties.shape != env.dof_properties.shape, "wrong DOF properties")
        env.dof_properties = properties.copy()
        return True

    def get_actor_index(self, env, actor, domain):
        _refuse(domain is not IndexDomain.DOMAIN_SIM, "the tensor API counts actors over the whole simulation (docs:tensors)")
        return env.index

    def get_sim_actor_count(self, sim):
        return len(sim.envs)

    def get_sim_dof_count(self, sim):
        return len(sim.envs) * len(sim.asset.dofs)

    def prepare_sim(self, sim):
        import torch

        _refuse(sim.phase is not Phase.SETUP, "prepare_sim() was called twice")  # stricter
        sim.phase = Phase.RUNNING
        n = len(sim.envs)
        modes = numpy.stack([env.dof_properties["driveMode"] for env in sim.envs])
        sim.effort_driven = torch.as_tensor(modes == DofDriveMode.DOF_MODE_EFFORT, device=sim.device)
        for env in sim.envs:
            # DOF_MODE_NONE and EFFORT with stiffness or damping would be another machine (IsaacGymEnvs: cartpole.py)
            _refuse(env.dof_properties["stiffness"].any() or env.dof_properties["damping"].any(), "a joint has a spring")
        sim.state = torch.zeros(n, 4, device=sim.device)  # the engine's own copy: x, v, angle, w of every cartpole
        sim.cache = torch.zeros(2 * n, 2, device=sim.device)  # docs:tensors: (num_dofs, 2), a copy of the state
        return True

    # -- tensors -----------------------------------------------------------------------------------------------------

    def acquire_dof_state_tensor(self, sim):
        _refuse(sim.phase is Phase.SETUP, "acquire_dof_state_tensor() before prepare_sim() (docs:tensors, Physics State)")
        tensor = Tensor()
        tensor.shape, tensor.dtype, tensor.kept = list(sim.cache.shape), TensorDataType.DTYPE_FLOAT32, sim.cache
        return tensor

    def refresh_dof_state_tensor(self, sim):
        _refuse(sim.phase is Phase.SETUP, "refresh_dof_state_tensor() before prepare_sim()")
        # IsaacGymEnvs: vec_task.step calls fetch_results after simulate on the CPU pipeline
        _refuse(not sim.fetched, "refresh before fetch_results() on the CPU pipeline")
        sim.counts["refresh"] += 1
        sim.counts["refresh_after_setter"] += "set_dof_state" in sim.pending
        # docs:tensors, "Limitations": between a setter and simulate, a refresh "may return stale data"
        if self.refresh_answer == "fresh":
            self._apply_dof_state(sim)
        sim.cache.copy_(sim.state.view(-1, 2))
        return True

    def set_dof_state_tensor_indexed(self, sim, states, indices, count):
        n = len(sim.envs)
        _refuse(count < 1, "set_dof_state_tensor_indexed() with no actors")  # IsaacGymEnvs guards against it
        states_now = self._read(sim, states, TensorDataType.DTYPE_FLOAT32, [[2 * n, 2]], "DOF states of all actors")
        # docs:tensors: "The actor indices must be 32-bit integers"
        indices_now = self._read(sim, indices, TensorDataType.DTYPE_UINT32, [[count]], "actor indices")
        # docs:tensors: "Valid actor indices range from 0 to A - 1"
        _refuse(int(indices_now.min()) < 0 or int(indices_now.max()) >= n, f"an actor index is outside 0 to {n - 1}")
        _refuse(indices_now.unique().numel() != count, "an actor index occurs twice")  # stricter
        self._set(sim, "set_dof_state", [states, indices], [states_now, indices_now])
        return True

    def set_dof_actuation_force_tensor(self, sim, forces):
        shapes = [[2 * len(sim.envs)], [len(sim.envs), 2]]  # one number per DOF; the shape itself is not documented
        now = self._read(sim, forces, TensorDataType.DTYPE_FLOAT32, shapes, "forces on all DOFs")
        self._set(sim, "set_force", [forces], [now])
        return True

    def _set(self, sim, name, descriptors, values):
        _refuse(sim.phase is Phase.SETUP, f"{name} before prepare_sim()")
        # docs:tensors, "Limitations": a setter "should be called only once per step"
        _refuse(name in sim.pending, f"{name} was called twice without a simulate() in between")
        sim.counts[name] += 1
        sim.pending[name] = (descriptors, [value.clone() for value in values])

    def _read(self, sim, tensor, dtype, shapes, what):
        """The values that a descriptor points to, after all checks."""
        import torch

        _refuse(not isinstance(tensor, Tensor), f"{what}: expected a descriptor from gymtorch.unwrap_tensor()")
        if tensor.kept is not None:
            return tensor.kept
        owner = tensor.owner()
        # docs:tensors, "Tensor Lifetime": "a crash or data corruption are possible"
        _refuse(owner is None, f"{what}: the torch tensor was freed before Isaac Gym read it")
        now = torch.as_strided(owner.detach(), *tensor.layout)
        _refuse(now.data_ptr() != tensor.data_address, f"{what}: the torch tensor's memory has moved")
        # docs, release notes: "Improved error checking for input tensors"
        _refuse(tensor.dtype is not dtype, f"{what}: expected {dtype.name}, got {tensor.dtype.name}")
        _refuse(tensor.shape not in shapes, f"{what}: expected shape {shapes}, got {tensor.shape}")
        _refuse(str(now.device) != sim.device, f"{what}: expected a tensor on {sim.device}, got one on {now.device}")
        return now

    # -- running -----------------------------------------------------------------------------------------------------

    def simulate(self, sim):
        _refuse(sim.phase is Phase.SETUP, "simulate() before prepare_sim()")
        import torch

        from isaacgym.physics import step

        for name, (descriptors, values) in sim.pending.items():
            # stricter: on the GPU pipeline the new values "do not get applied until a subsequent call to simulate"
            # (docs:tensors), so their memory is left alone until then
            for tensor, value in zip(descriptors, values):
                now = self._read(sim, tensor, tensor.dtype, [tensor.shape], f"{name}, at simulate()")
                _refuse(not torch.equal(now, value), f"{name}: the tensor was changed before simulate() applied it")
        force = torch.zeros(len(sim.envs), 2, device=sim.device)
        if "set_force" in sim.pending:
            force = sim.pending["set_force"][1][0].view(-1, 2)
            # docs:tensors, "DOF Controls": only DOFs in DOF_MODE_EFFORT take forces
            force = torch.where(sim.effort_driven, force, torch.zeros_like(force))
        self._apply_dof_state(sim)
        sim.pending.clear()
        sim.state = step(sim.state, force, sim.params.dt, sim.params.substeps, sim.asset.machine)
        sim.counts["simulate"] += 1
        sim.fetched = sim.params.use_gpu_pipeline

    def _apply_dof_state(self, sim):
        if "set_dof_state" in sim.pending:
            states, indices = sim.pending["set_dof_state"][1]
            sim.state[indices.long()] = states.view(-1, 4)[indices.long()]

    def fetch_results(self, sim, wait_for_latest_sim_step):
        sim.fetched = True

    # -- viewer (docs:simsetup, "Adding a Viewer") -------------------------------------------------------------------

    def create_viewer(self, sim, properties):
        # docs:simsetup: with graphics device -1 "no graphics context will be created"
        _refuse(sim.graphics_device < 0, "create_viewer() needs a graphics device")
        return Viewer()

    def subscribe_viewer_keyboard_event(self, viewer, key, action):
        _refuse(not isinstance(key, KeyboardInput), "expected a KEY_* constant")

    def viewer_camera_look_at(self, viewer, env, position, target):
        _refuse(not (isinstance(position, Vec3) and isinstance(target, Vec3)), "expected two Vec3")

    def query_viewer_has_closed(self, viewer):
        return viewer.closed

    def query_viewer_action_events(self, viewer):
        events, viewer.events = viewer.events, []
        return events

    def step_graphics(self, sim):
        _refuse(not sim.fetched, "step_graphics() before fetch_results()")  # IsaacGymEnvs: vec_task.render

    def draw_viewer(self, viewer, sim, render_collision=False):
        _refuse(viewer.closed, "draw_viewer() on a closed viewer")
        viewer.frames += 1

    def sync_frame_time(self, sim):
        pass

    def poll_viewer_events(self, viewer):
        pass

    def destroy_viewer(self, viewer):
        viewer.closed = True


_gym = Gym()


def acquire_gym():
    """The singleton (docs:simsetup)."""
    failures.at_acquire_gym()
    return _gym
