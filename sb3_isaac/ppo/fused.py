"""PPO's update of small MLP policies in Triton: a minibatch takes three kernels, and the host waits for none of them.

Taken where ``PPO(precision=...)`` asks for it and ``device/fused.py`` has no reason against it. The plain path, which does the
same in other kernels, is :class:`~sb3_isaac.ppo.fast_policy.FastActorCriticPolicy` and
:class:`~sb3_isaac.device.flat_adam.FlatAdam`. The idea of whole updates in a kernel for networks that fit on the chip is
Müller's: "Real-time neural radiance caching for path tracing" (https://arxiv.org/abs/2106.12372).
"""

from __future__ import annotations

import math
from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch as th
from torch import nn

from sb3_isaac.buffers.rollout_buffer import DeviceRolloutBuffer
from sb3_isaac.device.cuda_graph import Graphed, on_device
from sb3_isaac.device.fast_mlp import ACTIVATIONS
from sb3_isaac.device.flat_adam import FlatAdam, optimizer_settings
from sb3_isaac.device.fused import ROWS, block, layer_starts, n_blocks, starts_of, why_not_fused, widths
from sb3_isaac.ppo.fast_policy import parsed_layers
from sb3_isaac.ppo.loss import N_SUMS


def shape_of(policy: Any, rows: int) -> Dict[str, Any]:
    """What kernels are told of a policy's networks.

    :param rows: of a block
    """
    actor, critic = parsed_layers(policy)
    (a1, a2), (c1, c2) = widths(actor), widths(critic)
    obs_dim, n_outputs = critic[0][0].in_features, actor[-1][0].out_features
    blocks = {"BA1": block(a1), "BA2": block(max(a2, 1)), "BC1": block(c1), "BC2": block(max(c2, 1))}
    blocks.update(BI=block(obs_dim), BO=block(n_outputs))
    shape: Dict[str, Any] = {"ACTOR_H1": a1, "ACTOR_H2": a2, "CRITIC_H1": c1, "CRITIC_H2": c2}
    shape.update(OBS=obs_dim, OUT=n_outputs, ROWS=rows, **blocks)
    shape.update(KIND=ACTIVATIONS[actor[0][1]], DISCRETE=getattr(policy, "log_std", None) is None)
    return shape


def in_kernels(policy: Any, precision: Optional[str]) -> bool:
    """Whether the kernels are asked for, and know the networks of a policy, which are plain."""
    return precision is not None and why_not_fused(parsed_layers(policy), policy.device) is None


def first_of_four(shape: Dict[str, Any]) -> int:
    """Where in a packed row value, log-probability, advantage and return begin.

    :param shape: from :func:`shape_of`
    """
    return int(shape["OBS"] + (1 if shape["DISCRETE"] else shape["OUT"]))


def starts_in(policy: Any, starts: Dict[int, int]) -> Dict[str, int]:
    """Where each of a policy's parameters begins, by the kernels' names.

    :param starts: the same by ``id``
    """
    actor, critic = parsed_layers(policy)
    log_std: Optional[nn.Parameter] = getattr(policy, "log_std", None)
    named = {"log_std": 0 if log_std is None else starts[id(log_std)]}
    return {**named, **layer_starts(actor, starts, "actor_"), **layer_starts(critic, starts, "critic_")}


class FusedUpdate:
    """Works off the minibatches of an update.

    :param policy: one for whose networks :func:`~sb3_isaac.device.fused.why_not_fused` has no reason
    :param buffer: the rollouts
    :param adam: of the policy's optimizer
    :param precision: of :data:`~sb3_isaac.settings.table.PRECISIONS`
    :param captures: on a GPU capture all minibatches of an update in one CUDA graph
    """

    def __init__(
        self,
        policy: Any,
        buffer: DeviceRolloutBuffer,
        adam: FlatAdam,
        precision: str,
        captures: bool = False,
    ) -> None:
        self._buffer, self._adam = buffer, adam
        device, n_params = adam.flat.device, adam.flat.numel()
        self._starts = starts_in(policy, starts_of(adam.parameters))
        self._shape = shape_of(policy, ROWS[precision])
        self._shape["PRECISION"] = precision
        self._first_of_four = first_of_four(self._shape)
        self._no_old_log_std = th.zeros(self._shape["OUT"], device=device)
        self._parts = th.zeros(0, n_params + N_SUMS, device=device)
        self._grad = th.zeros(n_params + N_SUMS, device=device)
        self._steps, self._going = th.zeros((), device=device), th.ones((), device=device)
        self._work = Graphed(self._all_minibatches, captures, generators=self._generators)
        self._now: Any = None

    def run(
        self, settings: Any, lr: th.Tensor, clips: th.Tensor, old_log_std: Optional[th.Tensor]
    ) -> Tuple[th.Tensor, th.Tensor, List[int]]:
        """All epochs.

        :param settings: :class:`~sb3_isaac.ppo.update.Settings`
        :param lr: () learning rate, adapted in place
        :param clips: (2,) clip ranges of the policy and of the values
        :param old_log_std: (action_dim,) of the rollout's Gaussian, where the buffer keeps its means
        :return: (minibatches, N_SUMS) statistics of each; (minibatches,) 0 from that on at which ``target_kl`` stopped the
            update, else 1; and the numbers of their rows
        """
        adam, buffer = self._adam, self._buffer
        n_rows = int(buffer.buffer_size * buffer.n_envs)
        batch_size = int(settings.batch_size)
        sizes = [min(batch_size, n_rows - start) for start in range(0, n_rows, batch_size)]
        most = n_blocks(max(sizes), self._shape["ROWS"])
        if most > len(self._parts):
            self._parts = self._parts.new_zeros(most, self._parts.shape[1])
        self._steps = adam.steps if isinstance(adam.steps, th.Tensor) else self._steps.fill_(adam.steps)
        self._now = settings._replace(clip_range=0.0), tuple(sizes), lr, clips, old_log_std
        constants = (settings._replace(clip_range=0.0, clip_range_vf=None), settings.clip_range_vf is None, tuple(sizes))
        tensors = (buffer.rows.data_ptr(), lr.data_ptr(), clips.data_ptr(), old_log_std is None, self._parts.data_ptr())
        self._work.begin(constants, tensors, optimizer_settings(adam.optimizer))
        with on_device(adam.flat.device):  # Triton takes the current one
            log = self._work().clone()
        if not isinstance(adam.steps, th.Tensor):
            adam.steps = float(self._steps)
        return log[:, :N_SUMS], log[:, N_SUMS], sizes * settings.n_epochs

    def _generators(self) -> List[th.Generator]:
        """What minibatches are drawn from, besides torch's default."""
        return [] if self._buffer.generator is None else [self._buffer.generator]

    def _moments(self, settings: Any, orders: th.Tensor, sizes: Sequence[int]) -> th.Tensor:
        """(n_epochs, minibatches, 4), two of them used: what is taken from the advantages of a minibatch, and what they are
        multiplied by then. See :func:`~sb3_isaac.ppo.loss.scaled_advantages`."""
        advantages = self._buffer.rows[:, self._first_of_four + 2][orders]
        moments = advantages.new_zeros(len(orders), len(sizes), 4)  # aligned, too
        for i, part in enumerate(th.split(advantages, list(sizes), 1)):
            scale = -1.0 / part.shape[1]
            if settings.normalize_advantage and part.shape[1] > 1:
                std, mean = th.std_mean(part, 1)
                moments[:, i, 0], moments[:, i, 1] = mean, scale / (std + 1e-8)
            else:
                moments[:, i, 1] = scale
        return moments

    def _all_minibatches(self) -> th.Tensor:
        """Draw them, and for each gradients, their sum over the blocks, and a step."""
        from sb3_isaac.ppo import kernels

        settings, sizes, lr, clips, old_log_std = self._now
        orders = th.stack([self._buffer.shuffled()[0] for _ in range(settings.n_epochs)])
        moments = self._moments(settings, orders, sizes)
        table, flat, grad = self._buffer.rows, self._adam.flat, self._grad
        group = self._adam.optimizer.param_groups[0]
        beta1, beta2 = (float(beta) for beta in group["betas"])
        n_params, adaptive = flat.numel(), settings.adaptive_lr
        log = table.new_zeros(len(orders) * len(sizes), 8)  # and so aligned: Triton compiles for what is not anew
        self._going.fill_(1.0)
        for i in range(len(log)):
            epoch, n = divmod(i, len(sizes))
            start, n_rows = sum(sizes[:n]), sizes[n]
            blocks = n_blocks(n_rows, self._shape["ROWS"])
            kernels.minibatch_gradients[(blocks,)](
                table,
                table.stride(0),
                orders[epoch, start:],
                n_rows,
                moments[epoch, n],
                flat,
                self._no_old_log_std if old_log_std is None else old_log_std,
                clips,
                self._parts,
                self._parts.stride(0),
                n_params,
                float(settings.ent_coef),
                float(settings.vf_coef),
                **self._starts,
                **self._shape,
                OLD=table.shape[1] > self._first_of_four + 4,
                CLIP_VF=settings.clip_range_vf is not None,
            )
            th.sum(self._parts[:blocks], 0, out=grad)
            kernels.clip_and_step[(1,)](
                flat,
                grad,
                self._adam.grad,
                self._adam.exp_avg,
                self._adam.exp_avg_sq,
                n_params,
                n_rows,
                self._steps,
                lr,
                self._going,
                log[i],
                float(settings.max_grad_norm) if settings.max_grad_norm is not None else math.inf,
                beta2,
                1.0 - beta1,
                1.0 - beta2,
                math.log(beta1) if beta1 > 0.0 else -math.inf,
                math.log(beta2) if beta2 > 0.0 else -math.inf,
                float(group["eps"]),
                0.0 if settings.target_kl is None else float(settings.target_kl),
                *((0.0, 1.0, 0.0, 0.0) if adaptive is None else map(float, adaptive)),
                CLIPS=settings.max_grad_norm is not None and math.isfinite(settings.max_grad_norm),
                STOPS=settings.target_kl is not None,
                ADAPTS=adaptive is not None,
                BLOCK=min(block(n_params), 4096),
                num_warps=8,
            )
        return log
