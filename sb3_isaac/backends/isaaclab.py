"""Isaac Lab's tasks behind the tensor contract. With isaaclab_state.py all that uses isaaclab, once somebody asks for a task.

Isaac Lab (https://github.com/isaac-sim/IsaacLab) resets an environment within the step that ended its episode, as the contract
wants it, and from version 3 on it tells the true last observation (``cfg.compute_final_obs``). It has one simulator in a
process. So every :class:`IsaacLabEnv` is a *view*: the simulator is made at the first step, large enough for every view alive
then, and a view that is stepped after another one brings its own state along.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import logging
import os
import sys
import tempfile
import warnings
import weakref
from typing import Any, Dict, Mapping, Optional, Tuple, Union

import numpy as np
import torch as th

from sb3_isaac.backends.base import StepResult
from sb3_isaac.backends.isaaclab_state import get_state, set_state
from sb3_isaac.backends.probe import reserved_envs
from sb3_isaac.backends.simulator_env import ActionBounds, Groups, SimulatorEnv

logger = logging.getLogger(__name__)

NOT_INSTALLED = (
    "Isaac Lab is not installed in this Python environment: 'pip install isaaclab' (version 3, Python 3.12), or the slim way "
    "without a GPU in docs/howto/isaaclab.md."
)
NO_FINAL_OBS = (
    "This Isaac Lab environment resets itself within its step, which loses the last observation of each episode: set "
    "cfg.compute_final_obs = True before it is made."
)
CARTPOLE_JOINTS = ("slider_to_cart", "cart_to_pole")
CARTPOLE_USD = ("examples", "assets", "cartpole_single_pendulum.usda")
"""Where the newton wheel has Isaac Lab's cartpole, which Isaac Lab itself downloads."""
POLE_LENGTH = 1.0
"""Of Isaac Lab's cartpole in pictures, in metres."""
_simulator: Optional[Simulator] = None
_views: weakref.WeakSet[IsaacLabEnv] = weakref.WeakSet()
_runtime = contextlib.ExitStack()
"""What Isaac Lab has started (nothing where it needs no Isaac Sim), until the process ends."""


class Settings:
    """What a simulator is made from; equal ones can share it.

    :param task: Isaac Lab's name of the task
    :param device: "cpu" or "cuda:i"
    :param values: by their names in the task's config, with dots: {"sim.dt": 0.01}
    """

    def __init__(self, task: str, device: th.device, values: Dict[str, Any]) -> None:
        self.task, self.device, self.values = task, device, values

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Settings) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __str__(self) -> str:
        return ", ".join(
            [self.task, f"device={self.device}", *(f"{name}={self.values[name]!r}" for name in sorted(self.values))]
        )

    def config(self, n_envs: int) -> Any:
        """Isaac Lab's config object of the task.

        :raises ImportError: Isaac Lab is not installed
        :raises ValueError: no such task
        :raises TypeError: the task's config has no such value
        """
        try:
            gymnasium = importlib.import_module("gymnasium")
            importlib.import_module("isaaclab_tasks")
            parse = importlib.import_module("isaaclab_tasks.utils.parse_cfg").parse_env_cfg
        except ImportError as error:
            missing = (error.name or "").startswith("isaaclab")
            raise ImportError(NOT_INSTALLED if missing else f"Isaac Lab cannot be imported: {error}.") from error
        try:
            gymnasium.spec(self.task)
        except gymnasium.error.Error as error:
            raise ValueError(f"Isaac Lab has no task {self.task!r}: {error}") from error
        with contextlib.redirect_stdout(sys.stderr):
            cfg = parse(self.task, device=str(self.device), num_envs=n_envs)
        cfg.compute_final_obs = True
        for name, value in self.values.items():
            *path, last = name.split(".")
            owner: Any = cfg
            for part in path:
                owner = getattr(owner, part, None)
            if owner is None or not hasattr(owner, last):
                known = ", ".join(sorted(key for key in vars(cfg) if not key.startswith("_")))
                raise TypeError(
                    f"The task {self.task} has no parameter {name!r}: obs_groups, action_bounds, or one of {known}."
                )
            setattr(owner, last, value)
        return cfg


class Simulator:
    """The Isaac Lab environment of this process.

    :param env: Isaac Lab's, perhaps in Gymnasium's wrappers
    :param settings: what it was made from here; None: the user has made it
    :param files: what it needs while it exists
    """

    def __init__(
        self, env: Any, settings: Optional[Settings] = None, files: Optional[tempfile.TemporaryDirectory[str]] = None
    ) -> None:
        self.env, self.core, self.settings, self._files = env, env.unwrapped, settings, files
        self.n_envs = int(self.core.num_envs)
        self.device = th.empty(0, device=self.core.device).device
        self.resident: Optional[weakref.ref[IsaacLabEnv]] = None
        """The view whose episodes the simulator has."""

    def let_in(self, view: IsaacLabEnv) -> None:
        """Make ``view`` the one whose episodes the simulator has. The other one keeps its own."""
        before = self.resident() if self.resident is not None else None
        if before is view:
            return
        if before is not None:
            before.leave()
        self.resident = weakref.ref(view)
        if view.away is not None:
            set_state(self.core, view.away, view.n_envs)
            view.away = None

    def close(self) -> None:
        self.resident = None
        self.env.close()
        if self._files is not None:
            self._files.cleanup()


def make_simulator(settings: Settings, n_envs: int, seed: Optional[int]) -> Simulator:
    """Isaac Lab's environment of a task. What it prints goes to the error stream.

    :raises RuntimeError: Isaac Lab cannot make it
    """
    cfg = settings.config(n_envs)
    cfg.seed = seed
    files = use_local_cartpole(cfg)
    launch = importlib.import_module("isaaclab.app.sim_launcher").launch_simulation
    gymnasium = importlib.import_module("gymnasium")
    with contextlib.redirect_stdout(sys.stderr):
        _runtime.enter_context(launch(cfg, {"headless": True, "device": str(settings.device)}))
        env = gymnasium.make(settings.task, cfg=cfg)
    logger.info("Isaac Lab simulates %d environments of %s on %s.", n_envs, settings.task, settings.device)
    return Simulator(env, settings, files)


def shared_simulator(settings: Settings, n_envs: int, seed: Optional[int]) -> Simulator:
    """The simulator of the process, made or made larger if need be: at least as large as every view of the same settings.

    :param seed: for one that is made now
    :raises RuntimeError: the process has one of other settings, which is in use
    """
    global _simulator
    there = _simulator
    if there is not None and (there.settings != settings or there.n_envs < n_envs):
        if there.settings != settings and any(view.settings == there.settings for view in _views):
            raise RuntimeError(
                f"This process has one Isaac Lab simulator, of {there.settings}, and {settings} is asked for: close the "
                "environments of the first one, or use another process."
            )
        resident = there.resident() if there.resident is not None else None
        if resident is not None:
            resident.leave()
        there.close()
        there = _simulator = None
    if there is None:
        alike = [view.n_envs for view in _views if view.settings == settings]
        there = _simulator = make_simulator(settings, max([n_envs, reserved_envs(), *alike]), seed)
    return there


def use_local_cartpole(cfg: Any) -> Optional[tempfile.TemporaryDirectory[str]]:
    """Take the cartpole that the newton wheel ships, where Isaac Lab would download the same one, and leave out the ground,
    another download, which a cart on a rail never touches.

    The file's defaultPrim is spelt "cartPole", where the prim is "cartpole": the copy has it right.

    :return: the folder of the copy, to be kept as long as the simulator; None where nothing was to be done
    """
    spawned = [item.spawn for item in vars(cfg.scene).values() if getattr(item, "spawn", None) is not None]
    carts = [spawn for spawn in spawned if str(getattr(spawn, "usd_path", "")).endswith("/Cartpole/cartpole.usd")]
    newton = getattr(importlib.util.find_spec("newton"), "submodule_search_locations", None) or ["."]
    source = os.path.join(list(newton)[0], *CARTPOLE_USD)
    if not carts or "://" not in str(carts[0].usd_path) or not os.path.isfile(source):
        return None
    folder = tempfile.TemporaryDirectory(prefix="sb3_isaac_")
    path = os.path.join(folder.name, "cartpole.usda")
    with open(source, encoding="utf-8") as original, open(path, "w", encoding="utf-8") as copy:
        copy.write(original.read().replace('defaultPrim = "cartPole"', 'defaultPrim = "cartpole"'))
    for spawn in carts:
        spawn.usd_path = path
    if hasattr(cfg.scene, "ground"):
        cfg.scene.ground = None
    return folder


# -- spaces ----------------------------------------------------------------------------------------------------------


def spaces_of(cfg: Any) -> Optional[Tuple[Dict[str, Any], Any]]:
    """The spaces of the observation groups and of the actions, of a task that tells them in its config (Isaac Lab's direct
    workflow); None: the managers tell, once they have been made."""
    if not (hasattr(cfg, "observation_space") and hasattr(cfg, "action_space")):
        return None
    to_space = importlib.import_module("isaaclab.envs.utils.spaces").spec_to_gym_space
    groups = {"policy": to_space(cfg.observation_space)}
    if getattr(cfg, "state_space", None):
        groups["critic"] = to_space(cfg.state_space)
    return groups, to_space(cfg.action_space)


def blank(space: Any, n_envs: int, device: Any) -> Any:
    """Zeros in the place of observations: of a space or, in a dict, of the spaces of one (Gymnasium's Dict is such)."""
    if hasattr(space, "items"):
        return {name: blank(inner, n_envs, device) for name, inner in space.items()}
    return th.zeros(n_envs, *(space.shape or ()), device=device)


def is_cartpole(cfg: Any) -> bool:
    """Whether the robot of a task is Isaac Lab's cartpole."""
    states = (getattr(item, "init_state", None) for item in vars(cfg.scene).values())
    return any(set(CARTPOLE_JOINTS) == set(getattr(state, "joint_pos", ())) for state in states)


# -- the view --------------------------------------------------------------------------------------------------------


class IsaacLabEnv(SimulatorEnv):
    """N environments of an Isaac Lab task: a view on the simulator of this process. :func:`sb3_isaac.wrap_isaaclab` makes one
    of an environment that is there, :func:`make` one by the task's name.

    A step waits once for the device, as Isaac Lab wants to know which environments it resets.

    :param simulator: the one that is there, or what it will be made from at the first step
    :param spaces: the observation spaces of the groups, and the action space
    :param seed: of the simulator, if this view is the first
    :param max_episode_length: see :class:`~sb3_isaac.backends.base.TensorEnv`; None: the task's own
    """

    one_per_process = True
    exact_state = False

    def __init__(
        self,
        simulator: Union[Simulator, Settings],
        n_envs: int,
        spaces: Tuple[Any, Any],
        cfg: Any,
        obs_groups: Groups = "policy",
        action_bounds: ActionBounds = 1.0,
        seed: Optional[int] = None,
        max_episode_length: Optional[int] = None,
    ) -> None:
        self.simulator = simulator if isinstance(simulator, Simulator) else None
        self.settings = simulator if isinstance(simulator, Settings) else None
        device = simulator.device
        self.away: Optional[Dict[str, th.Tensor]] = None
        """The state of the episodes while another view is stepped."""
        self._seed = seed
        self._dt = float(cfg.sim.dt * cfg.decimation)
        self._own_length = cfg.episode_length_s
        self._limit = max_episode_length
        self.render_fps = max(round(1.0 / self._dt), 1)
        self.n_envs = n_envs
        obs, action_dim = blank(spaces[0], n_envs, device), int(np.prod(getattr(spaces[1], "shape", None) or (1,)))
        self.setup(n_envs, device, obs, obs_groups, action_dim, action_bounds)
        self._padded = th.zeros(0, action_dim, device=self.device)
        """Actions of all environments of a simulator that has more: those of the others stay 0."""
        self._told: Dict[str, Tuple[Any, int]] = {}
        self._last_obs = th.zeros(n_envs, self.obs_dim, device=self.device)
        _views.add(self)

    # -- one simulator -------------------------------------------------------------------------------------------------

    def _enter(self) -> Simulator:
        """The simulator, with this view's episodes in it; made now if need be.

        :raises RuntimeError: the process has another simulator
        """
        simulator = self.simulator
        if simulator is None:
            assert self.settings is not None
            simulator = shared_simulator(self.settings, self.n_envs, self._seed)
        simulator.let_in(self)
        # Isaac Lab rounds it up to whole steps
        simulator.core.cfg.episode_length_s = self._own_length if self._limit is None else (self._limit - 1.5) * self._dt
        return simulator

    def leave(self) -> None:
        """Keep the state of the episodes: another view is about to be stepped."""
        simulator = self.simulator or _simulator
        if simulator is not None and simulator.resident is not None and simulator.resident() is self:
            self.away = get_state(simulator.core, self.n_envs)
            simulator.resident = None

    def close(self) -> None:
        """Forget this view. A simulator that the user has made is closed with it; another one stays for later views."""
        _views.discard(self)
        self.away = None
        simulator = self.simulator or _simulator
        if simulator is None:
            return
        if simulator.resident is not None and simulator.resident() is self:
            simulator.resident = None
        if self.simulator is not None and not any(view.simulator is self.simulator for view in _views):
            self.simulator.close()

    @property
    def env(self) -> Any:
        """Isaac Lab's environment, which other views may use, too."""
        return self._enter().env

    # -- the contract --------------------------------------------------------------------------------------------------

    @property
    def progress(self) -> th.Tensor:  # type: ignore[override]
        """(N,) int64, Isaac Lab's own counter of steps."""
        return self._enter().core.episode_length_buf[: self.n_envs]  # type: ignore[no-any-return]

    @property
    def max_episode_length(self) -> int:  # type: ignore[override]
        """One more than Isaac Lab's own, which is the number of steps."""
        return int(np.ceil(self._own_length / self._dt)) + 1 if self._limit is None else self._limit

    @max_episode_length.setter
    def max_episode_length(self, value: int) -> None:
        self._limit = value

    def _rows(self, value: Any) -> Any:
        """The rows of this view: of a tensor, or of every tensor in a dict."""
        if isinstance(value, Mapping):
            return {name: self._rows(inner) for name, inner in value.items()}
        return value[: self.n_envs] if isinstance(value, th.Tensor) else value

    def reset(self) -> th.Tensor:
        obs, extras = self._enter().env.reset()
        self._note(extras)
        self._last_obs = self.observe(self._rows(obs))
        return self._last_obs

    def step(self, actions: th.Tensor) -> StepResult:
        simulator = self._enter()
        actions = self.clip(actions)
        if simulator.n_envs > self.n_envs:
            if len(self._padded) != simulator.n_envs:
                self._padded = th.zeros(simulator.n_envs, self.action_dim, device=self.device)
            self._padded[: self.n_envs] = actions
            actions = self._padded
        obs, reward, terminated, truncated, extras = simulator.env.step(actions)
        self._note(extras)
        new = self.observe(self._rows(obs))
        result = self.result(new, self._rows(reward), self._rows(terminated), self._rows(truncated), new)
        # Isaac Lab leaves the observations of earlier ends there
        last = self.observe(self._rows(extras["final_obs"])) if "final_obs" in extras else self._last_obs
        done = (result.terminated | result.truncated).unsqueeze(-1)
        self._last_obs = new
        return result._replace(final_obs=th.where(done, last, new))

    def _note(self, extras: Any) -> None:
        """Metrics that the task has renewed: it leaves those of earlier ends in the dict, to be read again at every step."""
        renewed = {}
        for name, value in (extras.get("log") or {}).items():
            told = self._told.get(name)
            version = value._version if isinstance(value, th.Tensor) else 0
            if told is None or told[0] is not value or told[1] != version:
                self._told[name] = value, version
                renewed[name] = value
        self.note_metrics({"log": renewed})

    def seed(self, seed: int) -> None:
        """Seed all generators that Isaac Lab draws from: Python's, numpy's, torch's and Warp's."""
        simulator = self.simulator or _simulator
        if simulator is None:
            self._seed = seed  # it will be made with it
        else:
            simulator.core.seed(seed)

    def get_state(self) -> Dict[str, th.Tensor]:
        """Copies of the scene's bodies and joints, and of the tensors of the task. What the solver and sensors keep to
        themselves is not among them, and not the generators, which are those of the whole process."""
        return get_state(self._enter().core, self.n_envs)

    def set_state(self, state: Dict[str, th.Tensor]) -> None:
        set_state(self._enter().core, {name: value.to(self.device) for name, value in state.items()}, self.n_envs)


class IsaacLabCartpole(IsaacLabEnv):
    """Isaac Lab's cartpole, of which there are pictures."""

    _force = 0.0

    def step(self, actions: th.Tensor) -> StepResult:
        self._force = self.clip(actions)[:, 0]  # type: ignore[assignment]
        return super().step(actions)

    def render_state(self) -> Dict[str, Any]:
        core = self._enter().core
        cart = next(iter(core.scene.articulations.values()))
        order = [cart.joint_names.index(name) for name in CARTPOLE_JOINTS]
        position, velocity = (values.torch[: self.n_envs, order] for values in (cart.data.joint_pos, cart.data.joint_vel))
        dof_state = th.stack((position[:, 0], velocity[:, 0], position[:, 1], velocity[:, 1]), dim=-1)
        force = self._force if isinstance(self._force, th.Tensor) else th.zeros(self.n_envs)
        scale = float(getattr(core.cfg, "action_scale", 100.0))
        return {
            "dof_state": dof_state.cpu().numpy().copy(),
            "force": scale * force.cpu().numpy(),
            "progress": core.episode_length_buf[: self.n_envs].cpu().numpy().copy(),
            "max_effort": scale * float(np.abs(self.action_bounds[1]).max()),
            "reset_dist": float(getattr(core.cfg, "max_cart_pos", 3.0)),
            "pole_length": POLE_LENGTH,
        }


def make(
    task: str,
    n_envs: int,
    device: th.device,
    seed: Optional[int],
    obs_groups: Groups = "policy",
    action_bounds: ActionBounds = 1.0,
    max_episode_length: Optional[int] = None,
    render_mode: Optional[str] = None,
    **values: Any,
) -> IsaacLabEnv:
    """A task of Isaac Lab by its name, such as "Isaac-Cartpole-Direct".

    :param obs_groups: see :func:`sb3_isaac.wrap_isaaclab`, as ``action_bounds``
    :param max_episode_length: see :class:`~sb3_isaac.backends.base.TensorEnv`; None: the task's own
    :param render_mode: pictures need no preparation
    :param values: of the task's config by their names, with dots: ``rew_scale_alive=2.0``, ``**{"sim.dt": 0.01}``
    :raises ImportError: Isaac Lab is not installed
    :raises ValueError: no such task, no such group, observations that are no vectors, bounds that are none
    :raises TypeError: the task's config has no such value
    :raises RuntimeError: the process has a simulator of other settings, which is in use
    """
    settings = Settings(task, device, values)
    cfg = settings.config(n_envs)
    spaces = spaces_of(cfg)
    if spaces is None:
        core = shared_simulator(settings, n_envs, seed).core
        spaces = core.single_observation_space, core.single_action_space
    kind = IsaacLabCartpole if is_cartpole(cfg) else IsaacLabEnv
    return kind(settings, n_envs, spaces, cfg, obs_groups, action_bounds, seed, max_episode_length)


_wrapped: weakref.WeakValueDictionary[int, Simulator] = weakref.WeakValueDictionary()
"""Simulators that users have made, by the id of Isaac Lab's environment."""


def view_of(env: Any, obs_groups: Groups, action_bounds: ActionBounds, n_envs: Optional[int]) -> IsaacLabEnv:
    """A view on an Isaac Lab environment that is there, see :func:`sb3_isaac.wrap_isaaclab`."""
    core = env.unwrapped
    if not getattr(core.cfg, "compute_final_obs", True):
        raise ValueError(NO_FINAL_OBS)
    if not hasattr(core.cfg, "compute_final_obs"):
        warnings.warn(
            "This Isaac Lab (older than version 3) does not tell the last observation of an episode: time limits bootstrap "
            "from the observation before it.",
            stacklevel=3,
        )
    simulator = _wrapped.get(id(core))
    if simulator is None or simulator.core is not core:
        simulator = _wrapped[id(core)] = Simulator(env)
    n_envs = simulator.n_envs if n_envs is None else n_envs
    if not 1 <= n_envs <= simulator.n_envs:
        raise ValueError(f"n_envs must be from 1 to the {simulator.n_envs} environments of the simulator, got {n_envs}.")
    kind = IsaacLabCartpole if is_cartpole(core.cfg) else IsaacLabEnv
    return kind(
        simulator, n_envs, (core.single_observation_space, core.single_action_space), core.cfg, obs_groups, action_bounds
    )
