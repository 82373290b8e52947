"""mjlab's tasks behind the tensor contract. The only file that uses mjlab, which is imported when somebody asks for a task.

mjlab (https://github.com/mujocolab/mjlab) is MuJoCo-Warp with Isaac Lab's managers. Made with ``auto_reset=False`` it resets
nothing by itself: its step ends in the true last observation, and the reset is ours.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import io
import os
from typing import Any, Iterator, List, Optional, Sequence

import numpy as np
import torch as th

from sb3_isaac.backends.base import StepResult
from sb3_isaac.backends.simulator_env import ActionBounds, Groups, SimulatorEnv

INSTALL = "mjlab is not installed: pip install mjlab (Python 3.10 or newer), see docs/howto/mjlab.md."
QUIET_VARIABLE = "MJLAB_WARP_QUIET"
"""Environment variable of mjlab: 0 shows every kernel that Warp loads."""
MAX_DRAWN_ENVS = 16
"""As many as one picture of sb3_isaac has."""


class MjlabEnv(SimulatorEnv):
    """The tensor contract over a ``ManagerBasedRlEnv``. See :func:`sb3_isaac.wrap_mjlab` for the arguments.

    A step waits once for the device, to know which environments are reset, as mjlab itself does. mjlab draws from the global
    generators of Python, numpy and torch: seeding it seeds them.
    """

    # --8<-- [start:adapter]
    def __init__(self, env: Any, obs_groups: Groups = "actor", action_bounds: ActionBounds = 1.0) -> None:
        if not hasattr(env, "action_manager") or not hasattr(env, "episode_length_buf"):
            raise ValueError(f"wrap_mjlab takes a ManagerBasedRlEnv of mjlab, without a wrapper, got {type(env).__name__}.")
        if getattr(env.cfg, "auto_reset", True):
            raise ValueError(
                "This mjlab environment resets itself within its step, which loses the last observation of each episode: make "
                "it with cfg.auto_reset = False (mjlab 1.6 or newer)."
            )
        self.env, self._closed = env, False
        obs, _ = env.reset()
        self.setup(env.num_envs, env.device, obs, obs_groups, env.action_manager.total_action_dim, action_bounds)
        self.render_fps = max(round(1.0 / env.step_dt), 1)

    @property
    def progress(self) -> th.Tensor:  # type: ignore[override]
        """(N,) int64, mjlab's own counter of steps."""
        return self.env.episode_length_buf  # type: ignore[no-any-return]

    @property
    def max_episode_length(self) -> int:  # type: ignore[override]
        """One more than mjlab's own, which is the number of steps."""
        return int(self.env.max_episode_length) + 1

    def reset(self) -> th.Tensor:
        # Metrics of a reset from outside would be of episodes that were broken off: they are left out.
        return self.observe(self.env.reset()[0])

    def step(self, actions: th.Tensor) -> StepResult:
        obs, reward, terminated, truncated, extras = self.env.step(self.clip(actions))
        self.note_metrics(extras)
        done = terminated | truncated
        if self.env.cfg.is_finite_horizon:  # the time limit is the task's end: nothing is to be had after it
            terminated = done
        final_obs = self.observe(obs)
        result = self.result(final_obs, reward, terminated, truncated, final_obs)
        env_ids = done.nonzero().flatten()
        if len(env_ids) == 0:
            return result
        obs, extras = self.env.reset(env_ids=env_ids)
        self.note_metrics(extras)
        # mjlab observes all environments again, with new noise: of those that go on the first look counts.
        return result._replace(obs=th.where(done.unsqueeze(-1), self.observe(obs), final_obs))

    # --8<-- [end:adapter]

    def seed(self, seed: int) -> None:
        with quietly():
            self.env.seed(seed % 2**31)

    def render(self, n_envs: int) -> Sequence[np.ndarray]:
        """One picture of the first environments, as mjlab's own camera sees them.

        :raises NotImplementedError: the environment was made without pictures
        """
        picture = self.env.render()
        if picture is None:
            raise NotImplementedError(
                "This mjlab environment was made without pictures: make it with render_mode='rgb_array'."
            )
        return [np.asarray(picture)]

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self.env.close()


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    """Without the tables that mjlab prints about every environment, unless something goes wrong."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def tasks() -> List[str]:
    """Names of the tasks of mjlab and of the packages that add to them.

    :raises ImportError: mjlab is not installed, or cannot be imported
    """
    quiet = os.environ.setdefault(QUIET_VARIABLE, "1").lower() in ("1", "true", "yes")
    try:
        importlib.import_module("mjlab")
    except ModuleNotFoundError as error:
        if error.name == "mjlab":
            raise ImportError(INSTALL) from error
        raise
    warp = importlib.import_module("warp")
    if quiet and hasattr(warp, "LOG_WARNING"):  # of which older versions of mjlab do not know
        warp.config.log_level = max(warp.config.log_level, warp.LOG_WARNING)
    with quietly():
        importlib.import_module("mjlab.tasks")  # which registers them
    return list(importlib.import_module("mjlab.tasks.registry").list_tasks())


def make(
    task: str,
    n_envs: int,
    device: th.device,
    seed: int,
    obs_groups: Groups = "actor",
    action_bounds: ActionBounds = 1.0,
    max_episode_length: Optional[int] = None,
    render_mode: Optional[str] = None,
    **cfg: Any,
) -> MjlabEnv:
    """Make a task of mjlab by its name.

    :param task: "Mjlab-Cartpole-Balance", for example
    :param n_envs: number of environments
    :param max_episode_length: episodes are truncated after that minus one steps; None: as the task says
    :param render_mode: None: without pictures
    :param cfg: other attributes of the task's configuration: ``episode_length_s``, ``decimation``, ...
    :raises ImportError: mjlab is not installed
    :raises ValueError: there is no such task, or see :func:`sb3_isaac.wrap_mjlab`
    :raises TypeError: its configuration has no such attribute
    :raises RuntimeError: pictures cannot be drawn here
    """
    known = tasks()
    if task not in known:
        close = difflib.get_close_matches(task, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"choose one of {', '.join(known)}."
        raise ValueError(f"mjlab has no task {task!r}: {hint}")
    config = importlib.import_module("mjlab.tasks.registry").load_env_cfg(task)
    for name, value in cfg.items():
        if not hasattr(config, name) or not isinstance(value, (bool, int, float, str)):
            raise TypeError(f"{task} takes obs_groups, action_bounds and numbers of its configuration, got {name}={value!r}.")
        setattr(config, name, value)
    config.scene.num_envs, config.seed, config.auto_reset = n_envs, seed % 2**31, False
    if max_episode_length is not None:
        # In seconds, a little below the whole step: mjlab rounds up
        config.episode_length_s = (max_episode_length - 1.001) * config.sim.mujoco.timestep * config.decimation
    viewer = config.viewer
    viewer.max_extra_envs, viewer.width, viewer.height = min(n_envs, MAX_DRAWN_ENVS) - 1, 640, 480
    environment = importlib.import_module("mjlab.envs").ManagerBasedRlEnv
    _announce_compilation()
    try:
        with quietly():
            env = environment(config, device=str(device), render_mode=None if render_mode is None else "rgb_array")
    except Exception as error:
        if render_mode is None:
            raise
        raise RuntimeError(
            f"mjlab cannot draw here ({type(error).__name__}: {error}): set the environment variable MUJOCO_GL to egl, osmesa "
            "or glfw, whichever is installed, or leave rendering out (enjoy --no-render)."
        ) from error
    return MjlabEnv(env, obs_groups, action_bounds)


def _announce_compilation() -> None:
    """Say so before the first environment of this machine, for which Warp compiles its kernels without a word."""
    warp = importlib.import_module("warp")
    with quietly():
        warp.init()
    cache = warp.config.kernel_cache_dir
    if not (cache and os.path.isdir(cache) and os.listdir(cache)):
        print("mjlab compiles its kernels, once on this machine: about a minute", flush=True)
