"""Any IsaacGymEnvs task as an environment for Stable-Baselines3.

What IsaacGymEnvs' ``VecTask`` does and SB3 does not expect (``isaacgymenvs/tasks/base/vec_task.py``,
https://github.com/isaac-sim/IsaacGymEnvs): an environment that is done is reset one step late. The step in between ignores
its action and leads from a dead state to a new start: a transition that never happened. Here the environment is reset within
the step instead, and the true last observation is kept.

Its new observation comes from a refresh after the task has set the new state, with no simulate() in between. The tensor API's
documentation does not promise that such a refresh is up to date; IsaacGymEnvs' own tasks do the same in every reset and could
not train if it were not.
"""

from __future__ import annotations

import inspect
import random
import warnings
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Tuple

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_isaac.backends.base import StepResult
from sb3_isaac.backends.simulator_env import SimulatorEnv
from sb3_isaac.envs.vec_env import IsaacVecEnv

ResetFn = Callable[[Any, th.Tensor], Any]
ObserveFn = Callable[[Any], Any]
FailedFn = Callable[[Any], th.Tensor]


def wrap_vec_task(
    task: Any, reset: Optional[ResetFn] = None, observe: Optional[ObserveFn] = None, failed: Optional[FailedFn] = None
) -> IsaacVecEnv:
    """An existing IsaacGymEnvs task (Cartpole, Ant, Humanoid, your own) as an :class:`~sb3_isaac.envs.vec_env.IsaacVecEnv`.

    ::

        import isaacgym, isaacgymenvs          # before torch
        import sb3_isaac
        task = isaacgymenvs.make(seed=0, task="Ant", num_envs=4096, sim_device="cuda:0", rl_device="cuda:0")
        model = sb3_isaac.PPO("MlpPolicy", sb3_isaac.wrap_vec_task(task))

    Done environments are reset within the step by ``task.reset_idx(env_ids)`` and ``task.compute_observations()``, which is
    what the task calls itself, one step later. A task without them, or whose methods want other arguments, needs ``reset``
    and ``observe``.

    A task that calls ``reset_idx`` at once, before it computes the observations (as legged_gym's do), loses the last
    observation of each episode. Here its call waits until the step has shown them. A task that resets in its step in
    another way cannot be helped: a warning says so, and time limits bootstrap from the last observation but one.

    :param task: an object like IsaacGymEnvs' VecTask: ``step``, ``reset_buf``, ``progress_buf``, ``obs_buf``, ``num_envs``,
        ``num_obs``, ``num_actions``, ``max_episode_length``, ``rl_device``; or like legged_gym's BaseTask, with ``device``,
        ``episode_length_buf`` and five values from ``step``; or OmniIsaacGymEnvs' VecEnvRLGames with its task set
    :param reset: ``reset(task, env_ids)`` resets some environments at once; ``env_ids`` (k,) int64
    :param observe: ``observe(task)`` recomputes ``task.obs_buf`` without a simulation step
    :param failed: ``failed(task)`` gives (N,) bool, which environments have failed, before they are reset. Without it, and
        without ``extras["terminate"]``, a failure in the very step of the time limit counts as a time limit, because
        ``time_outs`` does not tell them apart.
    :raises ValueError: the task's spaces, agents or attributes have no counterpart here, or it cannot be reset within the
        step; and in a step that gives other values than these tasks do
    """
    tensor_env = VecTaskEnv(task, reset, observe, failed)
    return IsaacVecEnv(tensor_env, tensor_env.observation_space, tensor_env.action_space)


def box(space: Any, clip: float, what: str) -> spaces.Box:
    """A gym or gymnasium Box as a gymnasium Box, within +-clip.

    :raises ValueError: for any other space
    """
    if not (hasattr(space, "low") and hasattr(space, "high")):
        raise ValueError(f"The task's {what} space is {space}: only a Box is supported.")
    low, high = (np.clip(np.asarray(bound, dtype=np.float32), -clip, clip) for bound in (space.low, space.high))
    return spaces.Box(low, high, dtype=np.float32)


NEEDED = [
    ("progress_buf", "episode_length_buf"),
    ("rl_device", "device"),
    *((name,) for name in ("step", "reset_buf", "obs_buf", "num_envs", "num_obs", "num_actions", "max_episode_length")),
]
"""What a task must have, by IsaacGymEnvs' name or legged_gym's."""


class OmniTask:
    """OmniIsaacGymEnvs' VecEnvRLGames (https://github.com/isaac-sim/OmniIsaacGymEnvs) with the names of IsaacGymEnvs' task.

    Two objects are one task there: the environment steps, its ``_task`` has the tensors, resets late and tells no time limits.
    ``max_episode_length`` is one more than there, where it is the number of steps.

    :raises ValueError: its task is not set, or lacks what is needed
    """

    def __init__(self, env: Any) -> None:
        needed = "num_envs num_observations num_actions _max_episode_length reset_idx get_observations rl_device".split()
        missing = [name for name in needed if not hasattr(env._task, name)]
        if missing:
            raise ValueError(
                f"The task of {type(env).__name__} has no {', '.join(missing)}: set it with set_task, or pass an object with "
                "the attributes of IsaacGymEnvs' tasks."
            )
        self._env = env
        self.step = env.step

    def __getattr__(self, name: str) -> Any:
        if name == "_env":  # before there is one
            raise AttributeError(name)
        return getattr(self._env._task, name)

    @property
    def num_obs(self) -> int:
        return int(self._env._task.num_observations)

    @property
    def max_episode_length(self) -> int:
        return int(self._env._task._max_episode_length) + 1

    def reset_idx(self, env_ids: th.Tensor) -> None:
        self._env._task.reset_idx(env_ids)

    def compute_observations(self) -> None:
        self._env._task.get_observations()


class VecTaskEnv(SimulatorEnv):
    """The tensor contract over an IsaacGymEnvs task. See :func:`wrap_vec_task` for the arguments.

    A step waits once for the device, to know which environments are reset, as the task itself does.
    """

    def __init__(
        self,
        task: Any,
        reset: Optional[ResetFn] = None,
        observe: Optional[ObserveFn] = None,
        failed: Optional[FailedFn] = None,
    ) -> None:
        if int(getattr(task, "num_agents", 1)) != 1:
            raise ValueError(f"The task has {task.num_agents} agents in each environment: only one is supported.")
        task = OmniTask(task) if hasattr(task, "_task") else task
        self.task = task
        found = [next((name for name in names if hasattr(task, name)), None) for names in NEEDED]
        if None in found:
            lacks = ", ".join(" or ".join(names) for names, name in zip(NEEDED, found) if name is None)
            raise ValueError(f"{type(task).__name__} is no task of IsaacGymEnvs or legged_gym: it has no {lacks}.")
        self._progress_name, device_name = str(found[0]), str(found[1])
        self.device = th.empty(0, device=getattr(task, device_name)).device
        self.n_envs = int(task.num_envs)
        self.obs_dim, self.action_dim = int(task.num_obs), int(task.num_actions)
        self._clip_obs = _clip(task, "clip_obs", "clip_observations")
        # legged_gym's tasks have no spaces
        obs_space, action_space = (
            getattr(task, f"{what}_space", None) or spaces.Box(-np.inf, np.inf, (size,))
            for what, size in (("observation", self.obs_dim), ("action", self.action_dim))
        )
        self.observation_space = box(obs_space, self._clip_obs, "observation")
        self.action_space = box(action_space, _clip(task, "clip_actions", "clip_actions"), "action")
        self.limit_actions(self.action_space.low, self.action_space.high)
        self._failed = failed
        self._reset_fn: Any = reset or _own_method(task, "reset_idx", 1)
        self._observe_fn: Any = observe or _own_method(task, "compute_observations", 0)
        needs = {"reset=": ("reset_idx(env_ids)", self._reset_fn), "observe=": ("compute_observations()", self._observe_fn)}
        missing = {argument: method for argument, (method, function) in needs.items() if function is None}
        if missing:
            raise ValueError(
                f"{type(task).__name__} cannot be reset within the step, because it has no "
                f"{' and no '.join(missing.values())}: pass {' and '.join(missing)} to wrap_vec_task."
            )
        self._waits = reset is None
        """Whether the task's own calls of reset_idx wait: with a ``reset`` from outside they may mean something else."""
        self._resets_itself: Optional[bool] = None
        """Whether the task resets in its step all the same. None: no episode has ended yet."""
        self._last_obs = th.zeros(self.n_envs, self.obs_dim, device=self.device)
        self._has_set = False

    @property
    def progress(self) -> th.Tensor:  # type: ignore[override]
        """(N,) the task's own step counter, on the simulation's device."""
        return getattr(self.task, self._progress_name)  # type: ignore[no-any-return]

    @property
    def max_episode_length(self) -> int:  # type: ignore[override]
        """The task's own, which it may change."""
        return int(self.task.max_episode_length)

    def seed(self, seed: int) -> None:
        """Seed all generators that tasks draw from: Python's, numpy's and torch's."""
        random.seed(seed)
        np.random.seed(seed % 2**32)
        th.manual_seed(seed)

    def reset(self) -> th.Tensor:
        if self._has_set:
            # a setter may be called once between two simulates, and the last step's resets were that once
            self._step_task(th.zeros(self.n_envs, self.action_dim, device=self.device))
        self._last_obs = self._reset(th.arange(self.n_envs, device=self.task.reset_buf.device))
        return self._last_obs

    def _step_task(self, actions: th.Tensor) -> Tuple[Any, th.Tensor]:
        """Step the task. Returns what it gave, and (N,) bool on the simulation's device: what it would have reset."""
        self._has_set = False
        waiting = th.zeros(self.n_envs, dtype=th.bool, device=self.task.reset_buf.device)
        if not self._waits:
            return self.task.step(actions), waiting
        with _resets_wait(self.task) as calls:
            values = self.task.step(actions)
        for env_ids in calls:
            waiting[env_ids] = True
        return values, waiting

    def _unpack(self, values: Any) -> Tuple[Any, th.Tensor, th.Tensor, Dict[str, Any]]:
        """obs (N, obs_dim), reward (N,), done (N,) and extras from what the task's step gave.

        :raises ValueError: if that is something else
        """
        if isinstance(values, (tuple, list)) and len(values) in (4, 5):
            obs, *privileged, reward, done, extras = values
            obs = obs.get("obs") if isinstance(obs, Mapping) else obs
            shapes = [getattr(value, "shape", None) for value in (obs, reward, done)]
            # Gymnasium's five values have rewards (N,) in second place, legged_gym's have None or (N, k)
            legged = all(value is None or getattr(value, "ndim", 0) == 2 for value in privileged)
            if legged and isinstance(extras, dict) and shapes == [(self.n_envs, self.obs_dim), *[(self.n_envs,)] * 2]:
                return obs, reward, done, extras
        raise ValueError(
            f"The step of {type(self.task).__name__} gave {_describe(values)}. Expected: (observations, rewards, dones, "
            f"extras), or legged_gym's (observations, privileged observations, rewards, dones, extras), with observations "
            f"({self.n_envs}, {self.obs_dim}), alone or as the dict's 'obs', rewards and dones ({self.n_envs},), and a dict."
        )

    def step(self, actions: th.Tensor) -> StepResult:
        before = self.progress.clone()
        values, waiting = self._step_task(self.clip(actions))
        obs, reward, dones, extras = self._unpack(values)
        # the task writes its next step over these tensors, and so does a reset
        final_obs, reward, done = obs.float().clone(), reward.float().clone(), dones != 0
        told = extras.get("time_outs")
        truncated = self._timed_out(told, self.progress)
        failed = None
        if self._failed is not None:
            failed = self._failed(self.task).to(self.device, th.bool, copy=True)
        elif "terminate" in extras:  # IsaacGymEnvs' AMP tasks tell failures
            failed = extras["terminate"].to(self.device) != 0
        obs = final_obs
        resets = done | waiting.to(self.device)
        env_ids = resets.nonzero().flatten()
        if len(env_ids) > 0:
            if self._resets_itself is None:
                self._look_for_own_resets(done, before)
            if self._resets_itself:
                self._has_set = True
                if told is None or not truncated.any():  # IsaacGymEnvs' base class looks at the counter after the reset
                    truncated = self._timed_out(None, before + 1)
                final_obs = th.where((done & truncated).unsqueeze(-1), self._last_obs, obs)
            else:
                obs = th.where(resets.unsqueeze(-1), self._reset(env_ids.to(self.task.reset_buf.device)), obs)
                final_obs = th.where(done.unsqueeze(-1), final_obs, obs)
                if extras.get("time_outs") is not told:  # legged_gym's reset_idx tells it
                    truncated = self._timed_out(extras.get("time_outs"), before + 1)
        truncated = truncated & done
        if failed is not None:
            truncated = truncated & ~failed
        if len(env_ids) > 0:  # legged_gym's metrics of the episodes that ended; in between they lie there
            self.note_metrics({"log": extras.get("episode")})
        self._last_obs = obs
        return StepResult(obs, reward, done & ~truncated, truncated, final_obs)

    def _timed_out(self, told: Optional[th.Tensor], progress: th.Tensor) -> th.Tensor:
        """(N,) bool, a copy.

        :param told: what the task says about it
        :param progress: (N,) steps taken, for a task that does not say
        """
        time_outs = progress >= self.max_episode_length - 1 if told is None else told
        return time_outs.to(device=self.device, dtype=th.bool, copy=True)

    def _look_for_own_resets(self, done: th.Tensor, before: th.Tensor) -> None:
        """At the first ends: has the task set back the counters of what is done, and not by the calls that wait?

        :param before: (N,) the counters before the step
        """
        counted = (self.progress > before).to(self.device)
        if not counted.any() or not done.any():  # of a counter that stands still nothing can be said
            return
        self._resets_itself = not bool(counted[done].any())
        if self._resets_itself:
            warnings.warn(
                f"{type(self.task).__name__} resets itself within its step before it computes the observations, and not by "
                "reset_idx(env_ids): the last observation of each episode is lost, time limits bootstrap from the one "
                "before. Leave that reset out of the task's step: wrap_vec_task resets what is done.",
                stacklevel=2,
            )

    def _reset(self, env_ids: th.Tensor) -> th.Tensor:
        """Reset some environments and look at all. Returns obs (N, obs_dim), as the task's step gives it."""
        task = self.task
        self._has_set = True
        self._reset_fn(task, env_ids)
        # some tasks leave a mark to be reset once more (IsaacGymEnvs' Anymal), which would be done in the next step
        task.reset_buf[env_ids] = 0
        self.progress[env_ids] = 0
        self._observe_fn(task)
        obs: th.Tensor = task.obs_buf
        noise = (getattr(task, "dr_randomizations", None) or {}).get("observations")
        if noise:
            obs = noise["noise_lambda"](obs)  # as the task's step does
        clipped: th.Tensor = th.clamp(obs.float(), -self._clip_obs, self._clip_obs).to(self.device)  # a copy
        return clipped

    def get_state(self) -> Dict[str, th.Tensor]:
        """:raises NotImplementedError: always: nobody but the task knows what its steps depend on"""
        raise NotImplementedError(f"{type(self.task).__name__} cannot tell its whole state: it cannot be saved and restored.")


def _clip(task: Any, name: str, name_in_cfg: str) -> float:
    """The largest absolute value, as IsaacGymEnvs or legged_gym has it; infinite if the task does not clip."""
    normalization = getattr(getattr(task, "cfg", None), "normalization", None)
    return float(getattr(task, name, getattr(normalization, name_in_cfg, np.inf)))


def _own_method(task: Any, name: str, n_arguments: int) -> Optional[Callable[..., Any]]:
    """A method of the task, as a function of the task, if it can be called with so many arguments."""
    method = getattr(type(task), name, None)
    # IsaacGymEnvs' base class has a reset_idx that does nothing
    if method is None or getattr(method, "__qualname__", "").startswith("VecTask."):
        return None
    try:
        inspect.signature(method).bind(task, *[None] * n_arguments)
    except TypeError:
        return None
    return method  # type: ignore[no-any-return]


@contextmanager
def _resets_wait(task: Any) -> Iterator[List[Any]]:
    """Collect the ``env_ids`` of the task's calls of its own reset_idx, in place of resetting."""
    calls: List[Any] = []
    given, patched = task.reset_idx, "reset_idx" in vars(task)

    def wait(env_ids: Any, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs:  # the same call cannot be made later
            return given(env_ids, *args, **kwargs)
        is_index = isinstance(env_ids, th.Tensor) and env_ids.dtype != th.bool
        calls.append(env_ids.long() if is_index else env_ids)
        return None

    task.reset_idx = wait
    try:
        yield calls
    finally:
        if patched:
            task.reset_idx = given
        else:
            del task.reset_idx


def _describe(values: Any) -> str:
    """The types and shapes of what a step gave."""
    if isinstance(values, (tuple, list)):
        return f"({', '.join(map(_describe, values))})"
    if isinstance(values, Mapping):
        return f"a dict of {', '.join(f'{key!r}: {_describe(value)}' for key, value in values.items())}" if values else "{}"
    return str(tuple(values.shape)) if hasattr(values, "shape") else type(values).__name__
