"""PPO's rollout in Triton: acting in one kernel, storing what the environments made of it in another, advantages in a third.

Taken where ``PPO(precision=...)`` asks for it and ``device/fused.py`` has no reason against it. The plain path is
:meth:`~sb3_isaac.ppo.fast_policy.FastActorCriticPolicy.act` and :meth:`~sb3_isaac.DeviceRolloutBuffer.put`.
"""

from __future__ import annotations

from typing import Any, Dict, Tuple

import torch as th
from torch import nn

from sb3_isaac._for_c import dense
from sb3_isaac.backends.base import StepResult
from sb3_isaac.buffers.rollout_buffer import DeviceRolloutBuffer
from sb3_isaac.device.cuda_graph import on_device
from sb3_isaac.device.flat_adam import share_storage
from sb3_isaac.device.fused import n_blocks
from sb3_isaac.ppo.fused import first_of_four, shape_of, starts_in

ROWS = 64
"""Environments in a block that acts: with layers of 64 units four warps hold all of it in registers (what ptxas says for
compute capability 9.0), while of 32 they spill 900 bytes, because other matrix units are taken."""
BLOCK = 128
"""In a block where each is for itself"""


class FusedSteps:
    """Acts and stores.

    :param policy: one for whose networks :func:`~sb3_isaac.device.fused.why_not_fused` has no reason
    :param buffer: the rollouts
    :param bounds: lowest and highest action (action_dim,) of a Box, to which actions are clipped
    """

    def __init__(self, policy: Any, buffer: DeviceRolloutBuffer, bounds: Any) -> None:
        self._policy, self._buffer = policy, buffer
        self._shape = shape_of(policy, ROWS)
        self._first_of_four = first_of_four(self._shape)
        none = th.zeros(1, device=buffer.device)
        self._low: th.Tensor = none if bounds is None else bounds[0]
        self._high: th.Tensor = none if bounds is None else bounds[1]
        self._addresses: Dict[int, int] = {}
        self._params, self._starts = none, {"": 0}
        self.find()

    def find(self) -> None:
        """Look where the parameters are, which an update may have moved, and move them together if they are apart."""
        parameters = list(self._policy.parameters())
        if len({parameter.untyped_storage().data_ptr() for parameter in parameters}) > 1:
            share_storage(parameters)
        addresses = {id(parameter): parameter.data_ptr() for parameter in parameters}
        if addresses == self._addresses:
            return
        self._addresses = addresses
        first: nn.Parameter = min(parameters, key=lambda parameter: parameter.data_ptr())
        self._params = first.detach()  # the kernels' "params + start" goes beyond its end, into the others
        begin, size = first.data_ptr(), first.element_size()
        self._starts = starts_in(self._policy, {key: (address - begin) // size for key, address in addresses.items()})

    def act(self, obs: th.Tensor, step: th.Tensor) -> Tuple[th.Tensor, th.Tensor, th.Tensor, th.Tensor]:
        """With the same random numbers as the plain path.

        :param obs: (N, *obs_shape)
        :param step: (1,) int64, where in the rollout
        :return: actions (N, action_dim) or (N,) int64, the same for the environments, values and log-probabilities (N,)
        """
        from sb3_isaac.ppo import kernels

        shape, table, n = self._shape, self._buffer.rows, len(obs)
        noise = obs.new_empty(n, shape["OUT"])
        if shape["DISCRETE"]:
            noise.exponential_()
            actions = env_actions = th.empty(n, dtype=th.int64, device=obs.device)
        else:
            noise.normal_()
            actions, env_actions = th.empty_like(noise), th.empty_like(noise)
        values, log_probs = obs.new_empty(n), obs.new_empty(n)
        with on_device(obs.device):  # Triton takes the current one
            kernels.act[(n_blocks(n, shape["ROWS"]),)](
                *(obs, noise, self._params, self._low, self._high, step, table, table.stride(0)),
                *(actions, env_actions, values, log_probs, n),
                **self._starts,
                **shape,
                OLD=table.shape[1] > self._first_of_four + 4,
            )
        return actions, env_actions, values, log_probs

    def store(
        self,
        step: th.Tensor,
        result: StepResult,
        dones: th.Tensor,
        returns: th.Tensor,
        lengths: th.Tensor,
        next_obs: th.Tensor,
        final_obs_log: th.Tensor,
        logs: th.Tensor,
    ) -> None:
        """
        :param step: (1,) int64, where in the rollout
        :param dones: (N,) bool, and of the episodes so far the ``returns`` and ``lengths`` (N,)
        :param next_obs: (N, *obs_shape), written
        :param final_obs_log: (n_steps, N, *obs_shape), of which this step is written, likewise the others
        :param logs: (3, n_steps, N) truncated, returns, and lengths of the episodes that ended
        """
        from sb3_isaac.ppo import kernels

        n, obs_dim = len(dones), self._shape["OBS"]
        obs, final_obs = (dense(x, n * obs_dim) for x in (result.obs, result.final_obs))
        reward, truncated = dense(result.reward, n), dense(result.truncated, n, dtype=th.bool)
        episodes = dense(dones, n, dtype=th.bool), dense(returns, n), dense(lengths, n, dtype=th.int64)
        with on_device(obs.device):
            kernels.store_step[(n_blocks(n, BLOCK),)](
                *(obs, final_obs, reward, truncated, *episodes, step, next_obs, final_obs_log),
                *(self._buffer.tensors.rewards, *logs.unbind(0), n),
                OBS=obs_dim,
                BI=self._shape["BI"],
                BLOCK=BLOCK,
            )

    def advantages(self, last_values: th.Tensor, lengths_log: th.Tensor) -> None:
        """What ``DeviceRolloutBuffer.compute_returns_and_advantage`` does.

        :param last_values: (N,) V of the observations after the last step
        :param lengths_log: (n_steps, N) lengths of the episodes that ended, else 0
        """
        from sb3_isaac.ppo import kernels

        buffer = self._buffer
        gamma, decay = float(buffer.gamma), float(buffer.gamma * buffer.gae_lambda)
        with on_device(last_values.device):
            kernels.advantages[(n_blocks(buffer.n_envs, BLOCK),)](
                *(buffer.tensors.rewards, lengths_log, dense(last_values, buffer.n_envs), buffer.rows, buffer.rows.stride(0)),
                *(buffer.n_envs, buffer.buffer_size, gamma, decay),
                VALUE=self._first_of_four,
                BLOCK=BLOCK,
            )
