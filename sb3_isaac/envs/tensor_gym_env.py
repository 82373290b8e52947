"""Any batched simulator as Gymnasium has environments: a single one, and the batched one behind gym.make_vec."""

from __future__ import annotations

from typing import Any, ClassVar, Dict, Optional, Tuple, Type, Union

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces

from sb3_isaac import backends
from sb3_isaac.backends.base import TensorEnv
from sb3_isaac.envs.vec_env import IsaacVecEnv
from sb3_isaac.settings.check import check, check_one
from sb3_isaac.settings.memory import check_envs
from sb3_isaac.settings.table import COUNT

NO_TIME_LIMIT = 2**62
"""A ``max_episode_length`` that no episode reaches."""


def make_action_space(action_dim: int, discrete: bool, n_bins: Optional[int]) -> spaces.Space[Any]:
    """Box(-1, 1), or a choice of ``n_bins`` (3 if None) evenly spaced values of the one action.

    :raises ValueError: ``n_bins`` below 2, or without ``discrete``
    """
    if n_bins is not None and not discrete:
        raise ValueError("n_bins needs Discrete actions: use an id with Discrete in its name, or discrete=True.")
    check("env", {"n_bins": n_bins})
    return (
        spaces.Discrete(3 if n_bins is None else int(n_bins)) if discrete else spaces.Box(-1.0, 1.0, (action_dim,), np.float32)
    )


def with_time_limit(task_kwargs: Dict[str, Any], max_episode_steps: Optional[int]) -> Dict[str, Any]:
    """Task parameters for episodes of at most ``max_episode_steps``, as Gymnasium counts them.

    :param task_kwargs: parameters of the task, of which ``max_episode_length`` may be one
    :param max_episode_steps: None: the task's own limit
    :raises ValueError: no number of steps, or ``task_kwargs`` ask for longer episodes
    """
    if max_episode_steps is None:
        return task_kwargs
    check_one("max_episode_steps", max_episode_steps, COUNT)
    steps = max_episode_steps
    length = task_kwargs.get("max_episode_length", int(steps) + 1)
    if length - 1 > steps:
        raise ValueError(
            f"max_episode_length={length} ends episodes after {length - 1} steps, but max_episode_steps, given or of the id, "
            f"after {steps}: leave max_episode_length out and give max_episode_steps the number of steps that you want."
        )
    return {**task_kwargs, "max_episode_length": length}


class TensorGymEnv(gym.Env):  # type: ignore[type-arg]
    """One environment of a batched simulator. A subclass sets the two spaces and says how the simulator is made.

    It is what ``gym.make`` returns, for tools that want single environments. The simulator is made at the first reset, so
    an instance that is only asked for its spaces costs nothing. Training uses
    :func:`~sb3_isaac.envs.make.make_vec_env`.

    The time limit of an id that was registered with ``max_episode_steps`` is kept by Gymnasium's TimeLimit, around this
    class. Otherwise episodes end as the task says, or earlier if ``gym.make`` is given ``max_episode_steps``.

    :param device: torch device of the simulation, or "auto"
    :param render_mode: None, "rgb_array" or "human"
    :param task_kwargs: parameters of the task
    :raises ValueError: unknown render_mode
    """

    metadata = {"render_modes": ["rgb_array", "human"], "render_fps": 60}

    def __init__(self, device: Union[th.device, str], render_mode: Optional[str], task_kwargs: Dict[str, Any]) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"Unknown render_mode {render_mode!r}: choose one of {self.metadata['render_modes']} or None.")
        self.device = device
        self.render_mode = render_mode
        self.task_kwargs = task_kwargs
        self._batch_of_one: Optional[IsaacVecEnv] = None

    def make_tensor_env(self, n_envs: int, seed: Optional[int], task_kwargs: Dict[str, Any]) -> TensorEnv:
        """The simulator of ``n_envs`` environments.

        :param task_kwargs: :attr:`task_kwargs`, with ``max_episode_length`` where somebody limits the episodes
        """
        raise NotImplementedError

    def asked_for(self, n_envs: int, seed: Optional[int]) -> Tuple[th.device, int]:
        """The device and the seed of a simulator of ``n_envs`` environments.

        :raises ValueError: n_envs below 1
        :raises MemoryError: they need more memory than there is
        """
        check("env", {"n_envs": n_envs})
        # "cuda" becomes "cuda:0", as tensors there say
        device = th.empty(0, device=backends.resolve_device(self.device)).device
        check_envs(n_envs, device)
        return device, th.Generator().seed() % 2**31 if seed is None else seed

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
        check("env", {"n_envs": n_envs, "seed": seed})
        seed = None if seed is None else int(seed)
        n_envs = int(n_envs) if isinstance(n_envs, np.integer) else n_envs
        tensor_env = self.make_tensor_env(n_envs, seed, task_kwargs)
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


class TensorGymVectorEnv(gym.vector.VectorEnv):  # type: ignore[type-arg]
    """The batched environment behind ``gym.make_vec``. Done environments are reset within the same step.

    ``infos["final_obs"]`` (N, obs_dim) holds the true last observations and ``infos["_final_obs"]`` (N,) tells for which
    environments; numpy arrays, as :class:`gymnasium.vector.VectorEnv` has them.

    :param num_envs: number of environments
    :param max_episode_steps: of the id or of ``gym.make_vec``, see :func:`with_time_limit`
    :param env_kwargs: as for :attr:`single_class`
    """

    single_class: ClassVar[Type[TensorGymEnv]]
    """The single environment's class."""

    def __init__(self, num_envs: int = 1, max_episode_steps: Optional[int] = None, **env_kwargs: Any) -> None:
        single = self.single_class(**env_kwargs)
        self._env = single.make_batched(num_envs, max_episode_steps=max_episode_steps)
        self.num_envs = num_envs
        self.render_mode = single.render_mode
        self.metadata = {**single.metadata, "render_fps": self._env.metadata["render_fps"]}
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
