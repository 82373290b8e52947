"""PPO's gradients in C, where ``PPO(compile=True)`` asks for it and ``device/native_mlp.py`` has no reason against it."""

from __future__ import annotations

from typing import Optional

import torch as th
from torch import nn

from sb3_isaac._for_c import pointer
from sb3_isaac._native import library
from sb3_isaac.device.fast_mlp import Layers
from sb3_isaac.device.flat_adam import FlatAdam
from sb3_isaac.device.native_mlp import Nets, Trained
from sb3_isaac.ppo.loss import N_SUMS, LossSettings


class NativeGradients:
    """Stands in for the passes and the loss of :class:`~sb3_isaac.ppo.fast_policy.FastActorCriticPolicy`.

    :param actor: layers for which :func:`~sb3_isaac.device.native_mlp.why_not_native` has no reason, likewise ``critic``
    :param log_std: of the Gaussian; None: the actions are from a Categorical
    :param adam: of the policy's optimizer, into whose ``grad`` gradients are written
    """

    def __init__(self, actor: Layers, critic: Layers, log_std: Optional[nn.Parameter], adam: FlatAdam) -> None:
        self._log_std, self._library = log_std, library()
        self._obs_dim = critic[0][0].in_features
        self._action_columns = 1 if log_std is None else log_std.numel()
        memory = self._library.ppo_memory(self._action_columns, actor[-1][0].out_features)
        self._nets = Trained([actor, critic], adam, {}, memory)
        self._scaled, self._sums = adam.grad.new_zeros(0), adam.grad.new_zeros(N_SUMS)

    def __call__(
        self,
        table: th.Tensor,
        rows: th.Tensor,
        settings: LossSettings,
        old_log_std: Optional[th.Tensor],
        moments: Optional[th.Tensor],
    ) -> th.Tensor:
        """See :meth:`FastActorCriticPolicy.gradients <sb3_isaac.ppo.fast_policy.FastActorCriticPolicy.gradients>`. Without
        the gradient of a Gaussian's entropy."""
        n_rows, first, log_std = len(rows), self._obs_dim + self._action_columns, self._log_std
        if n_rows > len(self._scaled):
            self._scaled = self._scaled.new_empty(n_rows)
        packed, scaled = (pointer(table), table.stride(0)), self._scaled
        self._library.ppo_scale(
            *packed, first + 2, pointer(rows), n_rows, settings.normalize_advantage, pointer(moments), pointer(scaled)
        )
        clip_range_vf = -1.0 if settings.clip_range_vf is None else settings.clip_range_vf
        coefficients = settings.clip_range, clip_range_vf, settings.ent_coef, settings.vf_coef

        def work(nets: Nets, share: slice, sums: int) -> None:
            grad = None if log_std is None else nets.gradients[log_std]
            self._library.ppo_gradients(
                nets[0],
                nets[1],
                *(pointer(log_std), pointer(old_log_std), pointer(grad)),
                *(*packed, self._action_columns, table.shape[1] > first + 4),
                *(pointer(rows, share.start), pointer(scaled, share.start), share.stop - share.start, n_rows),
                *coefficients,
                sums,
                nets.memory,
            )

        self._sums.zero_()
        self._nets.run_gradients(n_rows, work, self._sums)
        return self._sums
