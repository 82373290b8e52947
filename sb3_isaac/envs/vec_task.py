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
from typing import Any, Callable, Dict, Optional

import numpy as np
import torch as th
from gymnasium import spaces

from sb3_isaac.backends.base import StepResult, TensorEnv
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

    :param task: an object like IsaacGymEnvs' VecTask: ``step``, ``reset_buf``, ``progress_buf``, ``obs_buf``, ``num_envs``,
        ``num_obs``, ``num_actions``, ``max_episode_length``, ``rl_device``
    :param reset: ``reset(task, env_ids)`` resets some environments at once; ``env_ids`` (k,) int64
    :param observe: ``observe(task)`` recomputes ``task.obs_buf`` without a simulation step
    :param failed: ``failed(task)`` gives (N,) bool, which environments have failed, before they are reset. Without it, and
        without ``extras["terminate"]``, a failure in the very step of the time limit counts as a time limit, because
        ``time_outs`` does not tell them apart.
    :raises ValueError: the task's spaces or agents have no counterpart here, or it cannot be reset within the step
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


class VecTaskEnv(TensorEnv):
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
        self.task = task
        self.device = th.empty(0, device=task.rl_device).device
        self.n_envs = int(task.num_envs)
        self.obs_dim, self.action_dim = int(task.num_obs), int(task.num_actions)
        self.max_episode_length = int(task.max_episode_length)
        self._clip_obs = float(getattr(task, "clip_obs", np.inf))
        self.observation_space = box(task.observation_space, self._clip_obs, "observation")
        self.action_space = box(task.action_space, float(getattr(task, "clip_actions", np.inf)), "action")
        self._low, self._high = (
            th.as_tensor(end, device=self.device) for end in (self.action_space.low, self.action_space.high)
        )
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
        self._has_set = False

    @property
    def progress(self) -> th.Tensor:  # type: ignore[override]
        """(N,) the task's own step counter, on the simulation's device."""
        return self.task.progress_buf  # type: ignore[no-any-return]

    def seed(self, seed: int) -> None:
        """Seed all generators that tasks draw from: Python's, numpy's and torch's."""
        random.seed(seed)
        np.random.seed(seed % 2**32)
        th.manual_seed(seed)

    def reset(self) -> th.Tensor:
        if self._has_set:
            # a setter may be called once between two simulates, and the last step's resets were that once
            self._step_task(th.zeros(self.n_envs, self.action_dim, device=self.device))
        return self._reset(th.arange(self.n_envs, device=self.task.reset_buf.device))

    def _step_task(self, actions: th.Tensor) -> Any:
        self._has_set = False
        return self.task.step(actions)

    def step(self, actions: th.Tensor) -> StepResult:
        obs_dict, reward, dones, extras = self._step_task(th.max(th.min(actions, self._high), self._low))
        # the task writes its next step over these tensors, and so does a reset
        final_obs, reward, done = obs_dict["obs"].clone(), reward.float().clone(), dones != 0
        time_outs = extras.get("time_outs", self.progress >= self.max_episode_length - 1)
        truncated = done & time_outs.to(device=self.device, dtype=th.bool)
        if self._failed is not None:
            truncated &= ~self._failed(self.task).to(self.device)
        elif "terminate" in extras:  # IsaacGymEnvs' AMP tasks tell failures
            truncated &= extras["terminate"].to(self.device) == 0
        terminated = done & ~truncated
        obs = final_obs
        env_ids = done.nonzero().flatten()
        if len(env_ids) > 0:
            obs = th.where(done.unsqueeze(-1), self._reset(env_ids.to(self.task.reset_buf.device)), final_obs)
        return StepResult(obs, reward, terminated, truncated, final_obs)

    def _reset(self, env_ids: th.Tensor) -> th.Tensor:
        """Reset some environments and look at all. Returns obs (N, obs_dim), as the task's step gives it."""
        task = self.task
        self._has_set = True
        self._reset_fn(task, env_ids)
        # some tasks leave a mark to be reset once more (IsaacGymEnvs' Anymal), which would be done in the next step
        task.reset_buf[env_ids] = 0
        task.progress_buf[env_ids] = 0
        self._observe_fn(task)
        obs: th.Tensor = task.obs_buf
        noise = (getattr(task, "dr_randomizations", None) or {}).get("observations")
        if noise:
            obs = noise["noise_lambda"](obs)  # as the task's step does
        clipped: th.Tensor = th.clamp(obs, -self._clip_obs, self._clip_obs).to(self.device)  # a copy
        return clipped

    def get_state(self) -> Dict[str, th.Tensor]:
        """:raises NotImplementedError: always: nobody but the task knows what its steps depend on"""
        raise NotImplementedError(f"{type(self.task).__name__} cannot tell its whole state: it cannot be saved and restored.")

    def set_state(self, state: Dict[str, th.Tensor]) -> None:
        """:raises NotImplementedError: always, see :meth:`get_state`"""
        self.get_state()


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
