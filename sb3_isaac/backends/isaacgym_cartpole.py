"""The cartpole on NVIDIA Isaac Gym Preview 4 itself. The only file that uses isaacgym.

Written against the documentation of Isaac Gym and the code of IsaacGymEnvs, and tested on a strict stand-in
(tests/isaacgym_standin), **not on NVIDIA's binary**, which cannot be had on test machines. ``sb3-isaac check --backend
isaacgym --record out.npz`` tells on your machine whether both simulators agree.

PhysX allows one simulator per process, ever. So every :class:`IsaacGymCartpole` is a *view*: it keeps its state itself and
brings it along when it is stepped. The one simulator is made at the first step, large enough for every view alive then.

The rules that shape the code below (Isaac Gym documentation, "Tensor API"): a setter may be called once between two
simulates, so that resets and swaps go into one indexed call just before simulate; a refresh after a setter may return
stale data, so that nothing is read back and observations of reset environments are what was written; Isaac Gym keeps no
reference to a tensor that it is given, so that all of them are attributes.
"""

from __future__ import annotations

import logging
import math
import os
import tempfile
import weakref
import xml.etree.ElementTree as ElementTree
from dataclasses import fields
from typing import Any, Dict, Optional, Union

# isaacgym must come before torch: sb3_isaac/_isaacgym_first.py has seen to that.
from isaacgym import gymapi, gymtorch  # type: ignore[import-not-found,unused-ignore]  # isort: skip

import torch as th

from sb3_isaac.backends.base import StepResult
from sb3_isaac.backends.cartpole import OBS_DIM, CartpoleTensorEnv, finish_randomized_step, finish_step
from sb3_isaac.backends.physics import CartpolePhysics
from sb3_isaac.backends.probe import SIM_ENVS_VARIABLE, known_failure, reserved_envs
from sb3_isaac.backends.randomize import applied, push

logger = logging.getLogger(__name__)

HEADLESS_VARIABLE = "SB3_ISAAC_HEADLESS"
"""Environment variable: 0 opens Isaac Gym's viewer."""
MAX_EFFORT = 1000.0
"""The URDF's effort limit of the cart's joint, in newtons."""

URDF = os.path.join(os.path.dirname(os.path.abspath(__file__)), "cartpole.urdf")

_simulator: Optional[Simulator] = None
_views: weakref.WeakSet[IsaacGymCartpole] = weakref.WeakSet()


def differing_physics(one: CartpolePhysics, other: CartpolePhysics) -> Optional[str]:
    """The name of the first parameter of the machine in which the two differ, or None."""
    names = (field.name for field in fields(CartpolePhysics))
    return next((name for name in names if getattr(one, name) != getattr(other, name)), None)


def write_urdf(path: str, physics: CartpolePhysics) -> None:
    """Write the URDF of a cartpole with other masses, lengths and limits."""
    tree = ElementTree.parse(URDF)
    links = {str(link.get("name")): link for link in tree.iter("link")}
    limits = {str(joint.get("name")): joint.find("limit") for joint in tree.iter("joint")}

    def put(element: Optional[ElementTree.Element], **values: Any) -> None:
        assert element is not None
        for name, value in values.items():
            element.set(name, str(value))

    put(links["cart"].find("inertial/mass"), value=physics.cart_mass)
    put(links["pole"].find("inertial/mass"), value=physics.pole_mass)
    for part in ("visual", "collision"):
        put(links["pole"].find(f"{part}/geometry/box"), size=f"0.04 0.06 {physics.pole_length}")
    for part in ("visual", "collision", "inertial"):
        put(links["pole"].find(f"{part}/origin"), xyz=f"0 0 {physics.pole_com}")
    if physics.pole_inertia is not None:  # the pole turns about x alone
        inertia = dict.fromkeys(("ixx", "iyy", "izz"), str(physics.pole_inertia))
        inertial = links["pole"].find("inertial")
        assert inertial is not None
        ElementTree.SubElement(inertial, "inertia", {**inertia, "ixy": "0", "ixz": "0", "iyz": "0"})
    put(limits["slider_to_cart"], lower=-physics.track_limit, upper=physics.track_limit, velocity=physics.max_cart_speed)
    put(limits["cart_to_pole"], velocity=physics.max_pole_speed)
    tree.write(path)


class Simulator:
    """The one simulator of this process: N cartpoles side by side, each in an environment of its own.

    Settings: IsaacGymEnvs, ``cfg/task/Cartpole.yaml`` and ``cfg/config.yaml``.

    :param n_envs: number of cartpoles N
    :param device: "cuda:i" for the GPU pipeline, "cpu" for the CPU pipeline
    :param dt: control step, in seconds
    :param substeps: physics steps in a control step
    :param physics: masses, lengths and limits; others than IsaacGymEnvs' are written into a URDF file for Isaac Gym
    :param headless: no viewer
    :raises RuntimeError: if Isaac Gym cannot make the simulator
    """

    def __init__(
        self, n_envs: int, device: th.device, dt: float, substeps: int, physics: CartpolePhysics, headless: bool
    ) -> None:
        self.n_envs, self.device, self.dt, self.substeps, self.physics = n_envs, device, dt, substeps, physics
        self.resident: Optional[object] = None
        """The key of the view whose state PhysX has."""
        self.gym: Any = gymapi.acquire_gym()
        index = device.index or 0
        if device.type == "cuda" and device.index is None and th.cuda.is_available():
            index = th.cuda.current_device()
        self.sim: Any = self.gym.create_sim(index, -1 if headless else index, gymapi.SIM_PHYSX, self._parameters())
        if self.sim is None:
            raise RuntimeError("Isaac Gym could not create a simulator; what it printed above says why.")
        self._add_cartpoles()
        if not self.gym.prepare_sim(self.sim):
            raise RuntimeError("Isaac Gym could not prepare the simulation; what it printed above says why.")
        # (num_dofs, 2), position and velocity of cart, pole, cart, pole, ...: in our order, (N, 4)
        self.dof_state: th.Tensor = gymtorch.wrap_tensor(self.gym.acquire_dof_state_tensor(self.sim)).view(n_envs, OBS_DIM)
        self.viewer = None if headless else Viewer(self.gym, self.sim)
        logger.info("Isaac Gym simulates %d cartpoles on %s.", n_envs, device)

    def _parameters(self) -> Any:
        params = gymapi.SimParams()
        params.dt, params.substeps = self.dt, self.substeps
        params.up_axis = gymapi.UP_AXIS_Z
        params.gravity = gymapi.Vec3(0.0, 0.0, -self.physics.gravity)
        params.use_gpu_pipeline = params.physx.use_gpu = self.device.type == "cuda"
        params.physx.solver_type = 1  # TGS
        params.physx.num_position_iterations, params.physx.num_velocity_iterations = 4, 0
        params.physx.num_threads, params.physx.num_subscenes = 4, 4
        params.physx.contact_offset, params.physx.rest_offset = 0.02, 0.001
        params.physx.bounce_threshold_velocity = 0.2
        params.physx.max_depenetration_velocity = 100.0
        params.physx.default_buffer_size_multiplier = 2.0
        params.physx.max_gpu_contact_pairs = 1024 * 1024
        params.physx.contact_collection = gymapi.CC_NEVER
        return params

    def _add_cartpoles(self) -> None:
        plane = gymapi.PlaneParams()
        plane.normal = gymapi.Vec3(0.0, 0.0, 1.0)
        self.gym.add_ground(self.sim, plane)
        options = gymapi.AssetOptions()
        options.fix_base_link = True
        options.angular_damping = self.physics.angular_damping
        if differing_physics(self.physics, CartpolePhysics()) is None:
            asset = self.gym.load_asset(self.sim, *os.path.split(URDF), options)
        else:
            with tempfile.TemporaryDirectory() as folder:
                write_urdf(os.path.join(folder, "cartpole.urdf"), self.physics)
                asset = self.gym.load_asset(self.sim, folder, "cartpole.urdf", options)
        pose = gymapi.Transform()
        pose.p.z = 2.0
        spacing = 4.0
        lower = gymapi.Vec3(-0.5 * spacing, -spacing, 0.0)
        upper = gymapi.Vec3(0.5 * spacing, spacing, spacing)
        for i in range(self.n_envs):
            env = self.gym.create_env(self.sim, lower, upper, int(math.sqrt(self.n_envs)))
            # collision group i: environments do not touch each other; filter 1: cart, pole and rail neither
            actor = self.gym.create_actor(env, asset, pose, "cartpole", i, 1, 0)
            properties = self.gym.get_actor_dof_properties(env, actor)
            properties["driveMode"][0] = gymapi.DOF_MODE_EFFORT
            properties["driveMode"][1] = gymapi.DOF_MODE_NONE
            properties["stiffness"][:] = 0.0
            properties["damping"][:] = 0.0
            self.gym.set_actor_dof_properties(env, actor, properties)
            if self.gym.get_actor_index(env, actor, gymapi.DOMAIN_SIM) != i:
                raise RuntimeError(f"Isaac Gym numbers the actor of environment {i} differently: this backend relies on it.")

    def write(self, states: th.Tensor, actors: th.Tensor) -> None:
        """Move some cartpoles to new states, at the next :meth:`simulate`. Once per simulate at most.

        :param states: (2 N, 2) float32, contiguous, of all cartpoles; the caller keeps it unchanged until then
        :param actors: (k,) int32, which to move; kept by the caller, too
        """
        count = int(actors.shape[0])
        if count:
            self.gym.set_dof_state_tensor_indexed(
                self.sim, gymtorch.unwrap_tensor(states), gymtorch.unwrap_tensor(actors), count
            )

    def simulate(self, forces: th.Tensor) -> None:
        """One control step; :attr:`dof_state` is new afterwards.

        :param forces: (N, 2) float32 contiguous, on carts (newtons) and poles (0)
        """
        self.gym.set_dof_actuation_force_tensor(self.sim, gymtorch.unwrap_tensor(forces))
        self.gym.simulate(self.sim)
        if self.device.type == "cpu" or self.viewer is not None:
            self.gym.fetch_results(self.sim, True)
        self.gym.refresh_dof_state_tensor(self.sim)
        if self.viewer is not None and not self.viewer.draw():
            self.viewer = None


class Viewer:
    """Isaac Gym's window. V switches drawing off and on, Escape closes it (keys as in IsaacGymEnvs)."""

    def __init__(self, gym: Any, sim: Any) -> None:
        self.gym, self.sim, self.drawing = gym, sim, True
        self.handle = gym.create_viewer(sim, gymapi.CameraProperties())
        if self.handle is None:
            raise RuntimeError(f"Isaac Gym could not open its viewer (no display?): leave {HEADLESS_VARIABLE} unset.")
        gym.subscribe_viewer_keyboard_event(self.handle, gymapi.KEY_ESCAPE, "close")
        gym.subscribe_viewer_keyboard_event(self.handle, gymapi.KEY_V, "toggle")
        gym.viewer_camera_look_at(self.handle, None, gymapi.Vec3(20.0, 25.0, 3.0), gymapi.Vec3(10.0, 15.0, 0.0))

    def draw(self) -> bool:
        """Show the current state in real time. False once the window was closed."""
        closed = self.gym.query_viewer_has_closed(self.handle)
        for event in self.gym.query_viewer_action_events(self.handle):
            if event.value > 0:
                closed = closed or event.action == "close"
                self.drawing = self.drawing != (event.action == "toggle")
        if closed:
            self.gym.destroy_viewer(self.handle)
            return False
        if self.drawing:
            self.gym.step_graphics(self.sim)
            self.gym.draw_viewer(self.handle, self.sim, True)
            self.gym.sync_frame_time(self.sim)
        else:
            self.gym.poll_viewer_events(self.handle)
        return True


class IsaacGymCartpole(CartpoleTensorEnv):
    """N cartpoles in Isaac Gym: a view on the simulator of this process.

    A step waits once for the device: Isaac Gym wants to know how many environments are reset. Steps must run on torch's
    default CUDA stream, on which Isaac Gym works too.

    Arguments that are not listed: see :class:`~sb3_isaac.backends.cartpole.CartpoleTensorEnv`.

    :param device: "cuda:i" (GPU pipeline) or "cpu" (CPU pipeline)
    :param headless: False opens Isaac Gym's viewer; None looks at ``SB3_ISAAC_HEADLESS``
    :raises ValueError: a task parameter that Isaac Gym's cartpole cannot have
    :raises RuntimeError: the process has a simulator already and this view does not fit into it
    """

    one_per_process = True
    exact_state = False

    def __init__(
        self,
        n_envs: int,
        device: Union[th.device, str] = "cuda",
        seed: Optional[int] = None,
        headless: Optional[bool] = None,
        **task_kwargs: Any,
    ) -> None:
        super().__init__(n_envs, device, seed, **task_kwargs)
        spec: Any = self.task.randomize
        if spec is not None and spec.of_machine:
            raise ValueError(
                f"Isaac Gym cannot randomise {', '.join(spec.of_machine)}, as its cartpoles are made once and alike: leave "
                "that out of randomize= (the rest works), or use backend='torch'."
            )
        effort = self.task.max_effort * (1.0 if spec is None else spec.highest("force_scale", 1.0))
        if effort > MAX_EFFORT:
            scale = "" if effort == self.task.max_effort else " with its force_scale"
            raise ValueError(
                f"max_effort={self.task.max_effort:g}{scale} is more than the cart's joint takes: at most {MAX_EFFORT:g} N."
            )
        self.headless = os.environ.get(HEADLESS_VARIABLE, "1") != "0" if headless is None else headless
        if _simulator is not None:
            self._check_fits(_simulator)
        self._key = object()  # stands for this view in the simulator, which thus does not keep it alive
        self._attached = False
        self._all_new = True
        """PhysX must be given the state of every environment, not only of those that were reset."""
        self._states, self._forces = self.dof_state.view(-1, 2), th.zeros(n_envs, 2, device=self.device)
        """What Isaac Gym gets, see :meth:`_attach`: (2 M, 2) states and (M, 2) forces of its M cartpoles."""
        self._done = th.zeros(n_envs, dtype=th.bool, device=self.device)
        self._everyone = th.arange(n_envs, dtype=th.int32, device=self.device)
        self._actors = self._everyone
        _views.add(self)

    def _check_fits(self, simulator: Simulator) -> None:
        there_is = "This process has one Isaac Gym simulator (PhysX allows no second one)"
        compared = [(name, getattr(simulator, name), getattr(self.task, name)) for name in ("dt", "substeps")]
        compared.insert(0, ("device", simulator.device, self.device))
        different = differing_physics(simulator.physics, self.task)
        if different is not None:
            compared.append((different, getattr(simulator.physics, different), getattr(self.task, different)))
        for name, made, asked in compared:
            if asked != made:
                raise RuntimeError(f"{there_is}, with {name}={made}, and {name}={asked} is asked for: use another process.")
        n_envs = self.n_envs
        if n_envs > simulator.n_envs:
            raise RuntimeError(
                f"{there_is}, made for {simulator.n_envs} environments, and {n_envs} are asked for: set the environment "
                f"variable {SIM_ENVS_VARIABLE}={n_envs}, call sb3_isaac.backends.reserve({n_envs}) first, or make the largest "
                "environment first."
            )

    def _attach(self) -> Simulator:
        """The simulator, made now if this is the first step of the process, with this view's buffers laid out for it."""
        global _simulator
        if _simulator is None:
            n_envs = max([view.n_envs for view in _views] + [reserved_envs()])
            try:
                task = self.task
                _simulator = Simulator(n_envs, self.device, task.dt, task.substeps, task, self.headless)
            except Exception as error:
                raise RuntimeError(known_failure(str(error)) or str(error)) from error
        if not self._attached:
            self._check_fits(_simulator)
            # Isaac Gym takes states and forces of all its actors: ours are the first N, the others rest.
            states = th.zeros(_simulator.n_envs, OBS_DIM, device=self.device)
            states[: self.n_envs] = self.dof_state
            self.dof_state = states[: self.n_envs]
            self._states = states.view(-1, 2)
            self._forces = th.zeros(_simulator.n_envs, 2, device=self.device)
            self.force = self._forces[: self.n_envs, 0]
            self._attached = True
        return _simulator

    def step(self, actions: th.Tensor) -> StepResult:
        simulator = self._attach()
        spec: Any = self.task.randomize
        draws = None if self.drawn is None else self._draws()
        pushed = None if self.drawn is None or draws is None else push(self.dof_state, draws, self.drawn, spec)
        if self._all_new or simulator.resident is not self._key:
            self._actors = self._everyone
            simulator.resident, self._all_new = self._key, False
        else:
            moved = self._done if pushed is None else self._done | pushed
            self._actors = moved.nonzero().view(-1).to(th.int32)  # the one host synchronisation
        simulator.write(self._states, self._actors)
        actions = actions.clamp(-1.0, 1.0)
        fractions = actions[:, 0] if self.drawn is None else applied(actions, self.drawn, spec)
        th.mul(fractions, self.task.max_effort, out=self.force)
        simulator.simulate(self._forces)
        final_obs = simulator.dof_state[: self.n_envs].clone()  # another view's step would overwrite it
        given = (self.dof_state, self.progress, final_obs)
        if self.drawn is None or draws is None:
            result = finish_step(*given, self._uniform(), self.reset_width, actions, self.task)
        else:
            result = finish_randomized_step(*given, draws, self.reset_width, actions, self.task, self.drawn, pushed)
        th.logical_or(result.terminated, result.truncated, out=self._done)
        return result

    def reset(self) -> th.Tensor:
        self._all_new = True
        return super().reset()

    def set_state(self, state: Dict[str, th.Tensor]) -> None:
        self._all_new = True
        super().set_state(state)

    def close(self) -> None:
        """Forget this view. The simulator stays: the process cannot have another one."""
        _views.discard(self)
        if _simulator is not None and _simulator.resident is self._key:
            _simulator.resident = None
