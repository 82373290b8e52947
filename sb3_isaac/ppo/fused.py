"""PPO's update of small MLP policies in Triton: a minibatch takes three kernels, and the host waits for none of them.

Taken where ``PPO(precision=...)`` asks for it and :func:`why_not_fused` has no reason against it. The plain path, which does
the same in other kernels, is :class:`~sb3_isaac.ppo.fast_policy.FastActorCriticPolicy` and
:class:`~sb3_isaac.device.flat_adam.FlatAdam`. The idea of whole updates in a kernel for networks that fit on the chip is
Müller's: "Real-time neural radiance caching for path tracing" (https://arxiv.org/abs/2106.12372).
"""

from __future__ import annotations

import importlib.util
import math
import os
from typing import Any, Dict, List, Optional, Tuple

import torch as th
from torch import nn

from sb3_isaac.buffers.rollout_buffer import DeviceRolloutBuffer
from sb3_isaac.device import ranks
from sb3_isaac.device.cuda_graph import Graphed
from sb3_isaac.device.fast_mlp import ACTIVATIONS
from sb3_isaac.device.flat_adam import FlatAdam, optimizer_settings
from sb3_isaac.ppo.fast_policy import parsed_layers
from sb3_isaac.ppo.loss import N_SUMS

PRECISIONS = ("fp32", "tf32", "bf16")
"""Of the factors of matrix products: whole float32, 10 bits of its fraction, 7 bits. Sums and all else are float32."""
MOST_UNITS = 128
"""In a layer, so that a block's activations stay on the chip"""
ROWS = {"fp32": 32, "tf32": 64, "bf16": 64}
"""Of a minibatch in one block, by precision: as many as the registers of four warps hold with layers of 64 units (what ptxas
says for compute capability 9.0). Of 8,192 that makes 128 blocks or more, about as many as a large GPU has multiprocessors."""


def why_not_fused(policy: Any, device: th.device) -> Optional[str]:
    """What keeps a policy for which ``FastActorCriticPolicy.why_not`` has no reason out of the kernels; None: nothing."""
    if importlib.util.find_spec("triton") is None:
        return "Triton, which comes with PyTorch for CUDA, is not installed"
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return f"Triton's kernels do not run on {device.type}"
    if ranks.world_size() > 1:
        return "several processes train one model"
    nets = parsed_layers(policy)
    if any(len(net) not in (2, 3) for net in nets):
        return "the networks have neither one nor two hidden layers"
    if max(max(linear.in_features, linear.out_features) for net in nets for linear, _ in net) > MOST_UNITS:
        return f"a layer has more than {MOST_UNITS} inputs or units"
    hidden = {kind for net in nets for _, kind in net[:-1]}
    if len(hidden) > 1 or any(net[-1][1] is not nn.Identity for net in nets):
        return "the layers have different activations"
    return None


def _block(n: int) -> int:
    """The power of 2 that holds n: Triton's matrix products have at least 16 rows and columns."""
    return max(16, 1 << (n - 1).bit_length())


class FusedUpdate:
    """Works off the minibatches of an update.

    :param policy: one for which :func:`why_not_fused` has no reason
    :param buffer: the rollouts
    :param adam: of the policy's optimizer
    :param precision: of :data:`PRECISIONS`
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
        actor, critic = parsed_layers(policy)
        log_std: Optional[nn.Parameter] = getattr(policy, "log_std", None)
        starts, start = {}, 0
        for parameter in adam.parameters:
            starts[id(parameter)] = start
            start += parameter.numel()
        self._starts: Dict[str, int] = {"log_std": 0 if log_std is None else starts[id(log_std)]}
        self._shape: Dict[str, Any] = {}
        for name, net in (("actor", actor), ("critic", critic)):
            linears = [linear for linear, _ in net]
            # Without a second hidden layer nobody reads where it is
            for i, linear in ((1, linears[0]), (2, linears[-2]), (3, linears[-1])):
                self._starts[f"{name}_w{i}"], self._starts[f"{name}_b{i}"] = starts[id(linear.weight)], starts[id(linear.bias)]
            h1, h2 = linears[0].out_features, linears[1].out_features if len(linears) == 3 else 0
            self._shape.update({f"{name.upper()}_H1": h1, f"{name.upper()}_H2": h2})
            self._shape.update({f"B{name[0].upper()}1": _block(h1), f"B{name[0].upper()}2": _block(max(h2, 1))})
        obs_dim, n_outputs = critic[0][0].in_features, actor[-1][0].out_features
        self._first_of_four = obs_dim + (1 if log_std is None else n_outputs)
        self._shape.update(OBS=obs_dim, OUT=n_outputs, BI=_block(obs_dim), BO=_block(n_outputs), ROWS=ROWS[precision])
        self._shape.update(KIND=ACTIVATIONS[actor[0][1]], DISCRETE=log_std is None, PRECISION=precision)
        self._n_warps = 4 if max(self._shape[name] for name in ("BI", "BO", "BA1", "BA2", "BC1", "BC2")) <= 64 else 8
        self._no_old_log_std = th.zeros(n_outputs, device=device)
        self._parts = th.zeros(0, n_params + N_SUMS, device=device)
        self._grad = th.zeros(n_params + N_SUMS, device=device)
        self._steps, self._going = th.zeros((), device=device), th.ones((), device=device)
        self._work = Graphed(self._all_minibatches, captures)
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
        n_rows = buffer.buffer_size * buffer.n_envs
        sizes = [min(settings.batch_size, n_rows - start) for start in range(0, n_rows, settings.batch_size)]
        n_blocks = -(-max(sizes) // self._shape["ROWS"])
        if n_blocks > len(self._parts):
            self._parts = self._parts.new_zeros(n_blocks, self._parts.shape[1])
        on_device = isinstance(adam.steps, th.Tensor)
        self._steps = adam.steps if isinstance(adam.steps, th.Tensor) else self._steps.fill_(adam.steps)
        orders = th.stack([buffer.shuffled()[0] for _ in range(settings.n_epochs)])
        self._now = settings._replace(clip_range=0.0), tuple(sizes), lr, clips, old_log_std
        constants = (settings._replace(clip_range=0.0, clip_range_vf=None), settings.clip_range_vf is None, tuple(sizes))
        tensors = (buffer.rows.data_ptr(), lr.data_ptr(), clips.data_ptr(), old_log_std is None, self._parts.data_ptr())
        self._work.begin(constants, tensors, optimizer_settings(adam.optimizer))
        with th.cuda.device_of(adam.flat):  # type: ignore[no-untyped-call]  # Triton's
            log = self._work(orders, self._moments(settings, orders, sizes)).clone()
        if not on_device:
            adam.steps = float(self._steps)
        return log[:, :N_SUMS], log[:, N_SUMS], sizes * settings.n_epochs

    def _moments(self, settings: Any, orders: th.Tensor, sizes: List[int]) -> th.Tensor:
        """(n_epochs, minibatches, 4), two of them used: what is taken from the advantages of a minibatch, and what they are
        multiplied by then. See :func:`~sb3_isaac.ppo.loss.scaled_advantages`."""
        advantages = self._buffer.rows[:, self._first_of_four + 2][orders]
        moments = advantages.new_zeros(len(orders), len(sizes), 4)  # aligned, too
        for i, part in enumerate(th.split(advantages, sizes, 1)):
            scale = -1.0 / part.shape[1]
            if settings.normalize_advantage and part.shape[1] > 1:
                std, mean = th.std_mean(part, 1)
                moments[:, i, 0], moments[:, i, 1] = mean, scale / (std + 1e-8)
            else:
                moments[:, i, 1] = scale
        return moments

    def _all_minibatches(self, orders: th.Tensor, moments: th.Tensor) -> th.Tensor:
        """Gradients, their sum over the blocks, and a step, for each."""
        from sb3_isaac.ppo import kernels

        settings, sizes, lr, clips, old_log_std = self._now
        table, flat, grad = self._buffer.rows, self._adam.flat, self._grad
        group = self._adam.optimizer.param_groups[0]
        beta1, beta2 = (float(beta) for beta in group["betas"])
        n_params, adaptive = flat.numel(), settings.adaptive_lr
        log = table.new_zeros(len(orders) * len(sizes), 8)  # and so aligned: Triton compiles for what is not anew
        self._going.fill_(1.0)
        for i in range(len(log)):
            epoch, n = divmod(i, len(sizes))
            start, n_rows = sum(sizes[:n]), sizes[n]
            n_blocks = -(-n_rows // self._shape["ROWS"])
            kernels.minibatch_gradients[(n_blocks,)](
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
                num_warps=self._n_warps,
            )
            th.sum(self._parts[:n_blocks], 0, out=grad)
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
                0.0 if settings.target_kl is None else settings.target_kl,
                *((0.0, 1.0, 0.0, 0.0) if adaptive is None else adaptive),
                CLIPS=settings.max_grad_norm is not None and math.isfinite(settings.max_grad_norm),
                STOPS=settings.target_kl is not None,
                ADAPTS=adaptive is not None,
                BLOCK=min(_block(n_params), 4096),
                num_warps=8,
            )
        return log
