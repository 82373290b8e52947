"""The cartpole as Gymnasium has environments: a single one, and the batched one behind gym.make_vec."""

from __future__ import annotations

from typing import Any, Dict, Optional, Tuple, Union

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces

from sb3_isaac import backends
from sb3_isaac.backends.cartpole import OBS_DIM, CartpoleTask
from sb3_isaac.envs.vec_env import IsaacVecEnv

NO_TIME_LIMIT = 2**62
"""A ``max_episode_length`` that no episode reaches."""


def with_time_limit(task_kwargs: Dict[str, Any], max_episode_steps: Optional[int]) -> Dict[str, Any]:
    """Task parameters for episodes of at most ``max_episode_steps``, as Gymnasium counts them.

    :param task_kwargs: see :class:`~sb3_isaac.backends.cartpole.CartpoleTask`
    :param max_episode_steps: None: the task's own limit
    :raises ValueError: no number of steps, or ``task_kwargs`` ask for longer episodes
    """
    if max_episode_steps is None:
        return task_kwargs
    steps = max_episode_steps
    if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or steps < 1:
        raise ValueError(f"max_episode_steps must be a whole number of at least 1, got {steps!r}.")
    length = task_kwargs.get("max_episode_length", int(steps) + 1)
    if length - 1 > steps:
        raise ValueError(
            f"max_episode_length={length} ends episodes after {length - 1} steps, but max_episode_steps, given or of the id, "
            f"after {steps}: leave max_episode_length out and give max_episode_steps the number of steps that you want."
        )
    return {**task_kwargs, "max_episode_length": length}


class CartpoleEnv(gym.Env):  # type: ignore[type-arg]
    """One Isaac Gym cartpole as a Gymnasium environment.

    It is what ``gym.make`` returns, for tools that want single environments. The simulator is made at the first reset, so
    an instance that is only asked for its spaces costs nothing. Training uses
    :func:`~sb3_isaac.envs.make.make_vec_env`, which describes the arguments that are not listed here.

    The time limit of an id that was registered with ``max_episode_steps`` is kept by Gymnasium's TimeLimit, around this
    class. Otherwise episodes end as ``max_episode_length`` says, or earlier if ``gym.make`` is given ``max_episode_steps``.

    :param discrete: Discrete actions (a choice of ``n_bins`` forces) in place of one force in [-1, 1]
    :param n_bins: number of evenly spaced forces from -max_effort to +max_effort, at least 2, odd or even; 3 if ``discrete``
        and not given
    """

    metadata = {"render_modes": ["rgb_array", "human"], "render_fps": 60}

    def __init__(
        self,
        backend: str = "auto",
        device: Union[th.device, str] = "auto",
        discrete: bool = False,
        n_bins: Optional[int] = None,
        render_mode: Optional[str] = None,
        **task_kwargs: Any,
    ) -> None:
        CartpoleTask.parse(**task_kwargs)  # a mistake is reported here, not at the first reset
        backends.check_name(backend)
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"Unknown render_mode {render_mode!r}: choose one of {self.metadata['render_modes']} or None.")
        if n_bins is not None and not discrete:
            raise ValueError("n_bins needs Discrete actions: use an id with Discrete in its name, or discrete=True.")
        n_bins = 3 if n_bins is None else n_bins
        if isinstance(n_bins, bool) or not isinstance(n_bins, int) or n_bins < 2:
            raise ValueError(f"n_bins must be a whole number of at least 2, got {n_bins!r}.")
        self.backend = backend
        self.device = device
        self.render_mode = render_mode
        self.task_kwargs = task_kwargs
        self.observation_space = spaces.Box(-np.inf, np.inf, (OBS_DIM,), np.float32)
        self.action_space: spaces.Space[Any] = spaces.Discrete(n_bins) if discrete else spaces.Box(-1.0, 1.0, (1,), np.float32)
        self._batch_of_one: Optional[IsaacVecEnv] = None

    def make_batched(self, n_envs: int, seed: Optional[int] = None, max_episode_steps: Optional[int] = None) -> IsaacVecEnv:
        """N copies of this environment as one :class:`IsaacVecEnv`.

        :param max_episode_steps: the limit that Gymnasium's TimeLimit keeps around this environment; None: there is none
        :raises ValueError: for a number of environments or a seed that is none, or see :func:`with_time_limit`
        """
        task_kwargs = with_time_limit(self.task_kwargs, max_episode_steps)
        registered = gym.registry.get(self.spec.id) if self.spec is not None else None
        if max_episode_steps is None and registered is not None and registered.max_episode_steps is not None:
            if "max_episode_length" in task_kwargs:
                with_time_limit(task_kwargs, registered.max_episode_steps)
            else:
                task_kwargs = {**task_kwargs, "max_episode_length": NO_TIME_LIMIT}  # gym.make has seen to it
        if seed is not None and (isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**63):
            raise ValueError(f"seed must be a whole number from 0 to 2**63 - 1 or None, got {seed!r}.")
        seed = None if seed is None else int(seed)
        n_envs = int(n_envs) if isinstance(n_envs, np.integer) else n_envs
        tensor_env = backends.make(self.backend, n_envs, self.device, seed, **task_kwargs)
        env = IsaacVecEnv(tensor_env, self.observation_space, self.action_space, self.render_mode)
        env.spec = self.spec
        return env

    def reset(
        self, *, seed: Optional[int] = None, options: Optional[Dict[str, Any]] = None
    ) -> Tuple[np.ndarray, Dict[str, Any]]:
        super().reset(seed=seed)
        if self._batch_of_one is None:
            self._batch_of_one = self.make_batched(1, seed)
        elif seed is not None:
            self._batch_of_one.seed(seed)
        obs: Any = self._batch_of_one.reset()
        if self.render_mode == "human":
            self.render()
        return obs[0], {}

    def step(self, action: Any) -> Tuple[np.ndarray, float, bool, bool, Dict[str, Any]]:
        if self._batch_of_one is None:
            raise gym.error.ResetNeeded("Call env.reset() before env.step().")
        step: Any = self._batch_of_one.step(np.expand_dims(np.asarray(action), 0))
        obs, reward, dones, infos = step
        truncated = bool(infos[0].get("TimeLimit.truncated", False))
        # gym.Env has no auto-reset: the caller sees the true last observation and resets.
        last_obs = infos[0].get("terminal_observation", obs[0])
        if self.render_mode == "human":
            self.render()
        return last_obs, float(reward[0]), bool(dones[0]) and not truncated, truncated, {}

    def render(self) -> Any:
        if self._batch_of_one is None:
            raise gym.error.ResetNeeded("Call env.reset() before env.render().")
        return self._batch_of_one.render()

    def close(self) -> None:
        if self._batch_of_one is not None:
            self._batch_of_one.close()
            self._batch_of_one = None


class CartpoleVectorEnv(gym.vector.VectorEnv):  # type: ignore[type-arg]
    """The batched environment behind ``gym.make_vec``. Done environments are reset within the same step.

    ``infos["final_obs"]`` (N, 4) holds the true last observations and ``infos["_final_obs"]`` (N,) tells for which
    environments; numpy arrays, as :class:`gymnasium.vector.VectorEnv` has them.

    :param num_envs: number of environments
    :param max_episode_steps: of the id or of ``gym.make_vec``, see :func:`with_time_limit`
    :param env_kwargs: as for :class:`CartpoleEnv`
    """

    def __init__(self, num_envs: int = 1, max_episode_steps: Optional[int] = None, **env_kwargs: Any) -> None:
        single = CartpoleEnv(**env_kwargs)
        self._env = single.make_batched(num_envs, max_episode_steps=max_episode_steps)
        self.num_envs = num_envs
        self.render_mode = single.render_mode
        self.metadata = dict(CartpoleEnv.metadata)
        if hasattr(gym.vector, "AutoresetMode"):  # gymnasium >= 1.1
            self.metadata["autoreset_mode"] = gym.vector.AutoresetMode.SAME_STEP
        self.single_observation_space, self.single_action_space = single.observation_space, single.action_space
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, num_envs)

    def reset(  # type: ignore[override]
        self, *, seed: Optional[int] = None, options: Optional[Dict[str, Any]] = None
    ) -> Tuple[np.ndarray, Dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self._env.seed(seed)
        return np.asarray(self._env.reset()), {}

    def step(self, actions: Any) -> Tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, Dict[str, Any]]:
        step: Any = self._env.step(actions)
        obs, reward, dones, infos = step
        last_obs, truncated = np.array(obs), infos.truncated
        for i, info in infos.filled.items():
            last_obs[i] = info["terminal_observation"]
        info = {"final_obs": last_obs, "_final_obs": dones} if dones.any() else {}
        return obs, reward, dones & ~truncated, truncated.copy(), info

    def render(self) -> Any:
        return self._env.render()

    def close_extras(self, **kwargs: Any) -> None:
        if hasattr(self, "_env"):  # Gymnasium also closes what could not be made
            self._env.close()
