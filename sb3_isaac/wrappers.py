"""VecEnv wrappers and the tensor path: which wrappers have it, what to do about the others, and frame stacking."""

from __future__ import annotations

from typing import Any, Dict, List, Mapping, Optional, Tuple, Type, Union

import numpy as np
import torch as th
from stable_baselines3.common import vec_env as sb3

from sb3_isaac.backends.base import StepResult
from sb3_isaac.vec_env import supports_tensors

FORWARDED = (
    "device", "tensor_env", "dones", "episode_returns", "episode_lengths", "valid",
    "make_infos", "log_episodes", "spread_time_limits",
)  # fmt: skip
"""What a wrapper on the tensor path offers unchanged from the environment inside, next to its own ``reset_tensor``,
``step_tensor`` and ``obs_tensor``."""

WAYS_OUT: List[Tuple[Type[sb3.VecEnvWrapper], str]] = [
    (sb3.VecNormalize, "use sb3_isaac.VecNormalize, which has the same arguments and the same files"),
    (sb3.VecFrameStack, "use sb3_isaac.VecFrameStack, which has the same arguments"),
    (
        sb3.VecMonitor,
        "leave it out: the environment reports its episodes itself and make_vec_env(..., monitor_dir=...) writes monitor.csv",
    ),
    (sb3.VecCheckNan, "leave it out: the algorithms of sb3_isaac stop at NaN by themselves"),
    (sb3.VecVideoRecorder, "record a separate environment after training, or one that is only used for evaluation"),
    (sb3.VecTransposeImage, "leave it out: the observations are no images"),
    (sb3.VecExtractDictObs, "leave it out: the observations are no dicts"),
]
"""What to do about SB3's wrappers."""

OWN_WRAPPER = (
    "leave it out, or give its class tensor_path = True and the methods reset_tensor and step_tensor "
    "(sb3_isaac.VecFrameStack is a short example)"
)


def check_tensor_path(env: Any) -> bool:
    """Whether an algorithm should train on ``env`` in tensors. It should call this before it starts.

    :param env: a VecEnv, wrapped or not
    :return: True: use ``reset_tensor`` and ``step_tensor``. False: no IsaacVecEnv inside, behave as SB3.
    :raises ValueError: if a wrapper would force an IsaacVecEnv onto SB3's slow path; the message says what to do
    """
    inner = env.unwrapped if isinstance(env, sb3.VecEnv) else env
    if supports_tensors(env) or not supports_tensors(inner):
        return supports_tensors(env)
    while getattr(type(env), "tensor_path", False):
        env = env.venv
    way_out = next((text for wrapper, text in WAYS_OUT if isinstance(env, wrapper)), OWN_WRAPPER)
    raise ValueError(
        f"{type(env).__name__} has no tensor path and would slow training down many times: {way_out}. "
        "With the algorithms of stable_baselines3 itself it works as it is."
    )


def forward_tensor_path(wrapper: sb3.VecEnvWrapper) -> None:
    """Give ``wrapper`` the :data:`FORWARDED` attributes of the environment inside.

    Not left to ``VecEnvWrapper.__getattr__``, which takes some 20 microseconds per access. They can be attributes
    because an environment on the tensor path updates ``dones`` and the episode statistics in place.
    """
    for name in FORWARDED:
        setattr(wrapper, name, getattr(wrapper.venv, name))


class VecFrameStack(sb3.VecFrameStack):
    """SB3's VecFrameStack; over an environment with a tensor path it has one too.

    :param venv: the environment to wrap
    :param n_stack: number of observations to stack, the newest last
    :param channels_order: see SB3; without meaning for flat observations
    """

    tensor_path = True
    venv: Any
    device: th.device
    dones: th.Tensor
    obs_tensor: th.Tensor

    def __init__(self, venv: sb3.VecEnv, n_stack: int, channels_order: Optional[Union[str, Mapping[str, str]]] = None) -> None:
        super().__init__(venv, n_stack, channels_order)
        self._stack: Optional[th.Tensor] = None
        if supports_tensors(venv):
            forward_tensor_path(self)
            self._stack = th.zeros((self.num_envs, *(self.observation_space.shape or ())), device=self.device)
            self.obs_tensor = self._stack.clone()

    def reset_tensor(self) -> th.Tensor:
        """Reset all environments. Returns obs (N, n_stack * obs_dim), zeros in place of what came before."""
        stack = self._tensors()
        obs = self.venv.reset_tensor()
        stack.zero_()[:, -obs.shape[1] :].copy_(obs)
        self.obs_tensor = stack.clone()
        return self.obs_tensor

    def step_tensor(self, actions: th.Tensor) -> StepResult:
        """One step on the device. ``final_obs`` ends with the true last observation, as SB3's terminal_observation."""
        stack = self._tensors()
        result: StepResult = self.venv.step_tensor(actions)
        older = stack[:, result.obs.shape[1] :]
        final_obs = th.cat((older, result.final_obs), dim=1)
        self.obs_tensor = th.cat((older.masked_fill(self.dones.unsqueeze(1), 0.0), result.obs), dim=1)
        stack.copy_(self.obs_tensor)
        return result._replace(obs=self.obs_tensor, final_obs=final_obs)

    def _tensors(self) -> th.Tensor:
        if self._stack is None:
            raise RuntimeError(f"{type(self.unwrapped).__name__} has no tensor path: use reset() and step().")
        return self._stack

    def reset(self) -> Union[np.ndarray, Dict[str, np.ndarray]]:
        obs: Union[np.ndarray, Dict[str, np.ndarray]] = super().reset()
        self._take_over_numpy_stack()
        return obs

    def step_wait(self) -> Any:
        if self._stack is not None:  # the last step may have been taken in tensors
            self.stacked_obs.stacked_obs = self._stack.cpu().numpy().copy()
        step = super().step_wait()
        self._take_over_numpy_stack()
        return step

    def _take_over_numpy_stack(self) -> None:
        if self._stack is not None:
            self._stack.copy_(th.from_numpy(self.stacked_obs.stacked_obs))
            self.obs_tensor = self._stack.clone()
