"""VecFrameStack: SB3's, and over an environment with a tensor path in tensors."""

from __future__ import annotations

from typing import Any, Dict, Mapping, Optional, Union

import numpy as np
import torch as th
from stable_baselines3.common import vec_env as sb3

from sb3_isaac.backends.base import StepResult
from sb3_isaac.envs.tensor_path import TensorVecEnv, forward_tensor_path, supports_tensors
from sb3_isaac.settings.check import check


class VecFrameStack(sb3.VecFrameStack):
    """SB3's VecFrameStack, with the same arguments; over an environment with a tensor path it has one too."""

    tensor_path = True
    device: th.device
    dones: th.Tensor
    obs_tensor: th.Tensor

    def __init__(self, venv: sb3.VecEnv, n_stack: int, channels_order: Optional[Union[str, Mapping[str, str]]] = None) -> None:
        check("entry", {"frame_stack": n_stack}, where="the argument n_stack")
        super().__init__(venv, n_stack, channels_order)
        self._inside: Optional[TensorVecEnv] = None
        self._stack = th.zeros(0)
        if supports_tensors(venv):
            forward_tensor_path(self)
            self._inside = venv
            self._stack = th.zeros((self.num_envs, *(self.observation_space.shape or ())), device=self.device)
            self.obs_tensor = self._stack.clone()

    def reset_tensor(self) -> th.Tensor:
        """Reset all environments. Returns obs (N, n_stack * obs_dim), zeros in place of what came before."""
        obs = self._tensor_venv().reset_tensor()
        self._stack.zero_()[:, -obs.shape[1] :].copy_(obs)
        self.obs_tensor = self._stack.clone()
        return self.obs_tensor

    def step_tensor(self, actions: th.Tensor) -> StepResult:
        """One step on the device. ``final_obs`` ends with the true last observation, as SB3's terminal_observation."""
        result = self._tensor_venv().step_tensor(actions)
        older = self._stack[:, result.obs.shape[1] :]
        final_obs = th.cat((older, result.final_obs), dim=1)
        self.obs_tensor = th.cat((older.masked_fill(self.dones.unsqueeze(1), 0.0), result.obs), dim=1)
        self._stack.copy_(self.obs_tensor)
        return result._replace(obs=self.obs_tensor, final_obs=final_obs)

    def state_dict(self) -> Optional[Dict[str, th.Tensor]]:
        """A copy of the stacked observations; None: there is no tensor path."""
        return None if self._inside is None else {"stack": self._stack.clone()}

    def load_state_dict(self, state: Dict[str, th.Tensor]) -> None:
        """Restore what :meth:`state_dict` returned."""
        self._stack.copy_(state["stack"])
        self.obs_tensor = self._stack.clone()

    def _tensor_venv(self) -> TensorVecEnv:
        if self._inside is None:
            raise RuntimeError(f"{type(self.unwrapped).__name__} has no tensor path: use reset() and step().")
        return self._inside

    def reset(self) -> Union[np.ndarray, Dict[str, np.ndarray]]:
        obs: Union[np.ndarray, Dict[str, np.ndarray]] = super().reset()
        self._take_over_numpy_stack()
        return obs

    def step_wait(self) -> Any:
        if self._inside is not None:  # the last step may have been taken in tensors
            self.stacked_obs.stacked_obs = self._stack.cpu().numpy().copy()
        step = super().step_wait()
        self._take_over_numpy_stack()
        return step

    def _take_over_numpy_stack(self) -> None:
        if self._inside is not None:
            self._stack.copy_(th.from_numpy(self.stacked_obs.stacked_obs))
            self.obs_tensor = self._stack.clone()
