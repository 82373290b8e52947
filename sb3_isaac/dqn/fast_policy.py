"""SB3's DQNPolicy of plain layers without autograd: acting, targets, and the gradient of the Huber loss."""

from __future__ import annotations

from typing import Any, Optional, Union

import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.dqn.policies import DQNPolicy, QNetwork
from torch.nn import functional as F

from sb3_isaac._torchscript import as_script
from sb3_isaac.device import ranks
from sb3_isaac.device.eligibility import why_not_fast
from sb3_isaac.device.fast_mlp import FastMLP, Passes, backward_pass, forward_pass, n_lanes, parse_layers
from sb3_isaac.device.flat_adam import FlatAdam, bring_back, share_storage, views_of
from sb3_isaac.device.fused import why_not_fused
from sb3_isaac.device.fused_mlp import FusedMLP
from sb3_isaac.device.native_mlp import NativeMLP, parts, why_not_native
from sb3_isaac.dqn.fused import FusedQNetworks
from sb3_isaac.dqn.native import NativeQNetworks
from sb3_isaac.off_policy.update import chunk_rows, chunks


def huber_gradient(
    q: th.Tensor, actions: th.Tensor, targets: th.Tensor, grad: th.Tensor, loss_sum: th.Tensor, batch: int
) -> None:
    """Write the gradient of the mean Huber loss with respect to ``q`` into ``grad``, and add the loss to ``loss_sum``.

    :param q: (rows, n_actions)
    :param actions: (rows, 1) int64
    :param targets: (rows, 1)
    :param grad: (rows, n_actions)
    :param batch: rows of the whole minibatch
    """
    # --8<-- [start:step]
    chosen = q.gather(1, actions)
    loss_sum.add_(F.smooth_l1_loss(chosen, targets, reduction="sum"), alpha=1.0 / batch)
    error = chosen.sub_(targets).clamp_(-1.0, 1.0).mul_(1.0 / batch)  # the Huber loss's derivative
    grad.zero_().scatter_(1, actions, error)
    # --8<-- [end:step]


def network_gradients(
    obs: th.Tensor, actions: th.Tensor, targets: th.Tensor, net: Passes, grad: th.Tensor, loss_sum: th.Tensor
) -> None:
    """Forward pass, loss and backward pass of a small minibatch, see :func:`huber_gradient`."""
    forward_pass(obs, net)
    huber_gradient(net.outputs[-1], actions, targets, grad, loss_sum, obs.shape[0])
    backward_pass(grad, obs, net, False, False, net.first_grad, 0)


def network_values(next_obs: th.Tensor, target: Passes, online: Optional[Passes]) -> th.Tensor:
    """(rows, 1), what the target network thinks of next observations, for its best action or, if there is one, that of the
    online network."""
    forward_pass(next_obs, target)
    q = target.outputs[-1]
    if online is None:
        return q.amax(1, True)
    forward_pass(next_obs, online)
    return q.gather(1, online.outputs[-1].argmax(1, True))


class FastDQNPolicy:
    """Q-network and target network of a ``DQNPolicy`` without autograd.

    :param policy: one for which :meth:`why_not` has no reason
    :param n_envs: the most observations to act on
    :param batch_size: of the minibatches
    :param compiled: compile the optimizer's step on a GPU; on a CPU all in C, where it can be had (``device/native_mlp.py``)
    :param precision: of ``device/fused.py``: the passes in Triton's kernels, where they can be had
    """

    def __init__(self, policy: Any, n_envs: int, batch_size: int, compiled: bool, precision: Optional[str] = None) -> None:
        self.adam = FlatAdam(policy.optimizer, compiled, scripted=True)
        self.adams = [self.adam]
        """What makes the steps, one for each of the algorithm's losses"""
        self._targets = list(policy.q_net_target.parameters())
        self._target_flat = share_storage(self._targets)
        self._target_views = views_of(self._target_flat, self._targets)
        self._chunk = chunk_rows(batch_size, self._target_flat.device)
        online, target = (parse_layers(net.q_net) for net in (policy.q_net, policy.q_net_target))
        assert online is not None and target is not None
        native = compiled and why_not_native([online], self._target_flat.device) is None
        self.acting: Union[FastMLP, FusedMLP, NativeMLP] = NativeMLP(online) if native else FastMLP(online, n_envs)
        self._online = FastMLP(online, self._chunk, gradients=self.adam.gradients)
        # The target network is done when the other begins: they use the same buffers, which stay in the cache
        self._target = FastMLP(target, self._chunk, self._online)
        self.fused: Union[FusedQNetworks, NativeQNetworks, None] = None
        """What does the update's passes in other kernels than PyTorch's"""
        if precision is not None and why_not_fused([online], self._target_flat.device) is None:
            self.fused = FusedQNetworks(online, self.adam, self._target_flat, precision)
            self.acting = FusedMLP(online)
        elif native:
            self.fused = NativeQNetworks(online, target, self.adam, dict(zip(self._targets, self._target_views)))
        self._grad = self._target_flat.new_zeros(self._chunk, online[-1][0].out_features)
        if not self._target_flat.is_cuda and self.fused is None:
            self._network_gradients, self._network_values = as_script(network_gradients), as_script(network_values)

    @staticmethod
    def why_not(policy: Any) -> Optional[str]:
        """What makes ``policy`` more than SB3's plain MLP Q-network; None: this class can stand in for it."""
        if not isinstance(policy.observation_space, spaces.Box) or is_image_space(policy.observation_space):
            return f"the observations are {policy.observation_space}"
        nets = [[net.q_net] for net in (policy.q_net, policy.q_net_target) if type(net) is QNetwork]
        own = (DQNPolicy, QNetwork, FlattenExtractor)
        return why_not_fast(policy, own, nets, optimizers=[(policy.optimizer, policy.q_net)])

    def shares_out(self, batch_size: int) -> bool:
        """Whether a minibatch is more than one job for threads."""
        return len(parts(batch_size)) > 1 if isinstance(self.fused, NativeQNetworks) else n_lanes(batch_size) > 1

    def next_values(self, next_obs: th.Tensor, double_q: bool) -> th.Tensor:
        """(B, 1), what the target network thinks of the next observations, for the best action.

        :param double_q: best in the eyes of the online network (https://arxiv.org/abs/1509.06461)
        """
        if self.fused is not None:
            return self.fused.next_values(next_obs, double_q)
        small = self._target.small(next_obs, False), self._online.small(next_obs, False)
        if small[0] is not None:
            values: th.Tensor = self._network_values(next_obs, small[0], small[1] if double_q else None)
            return values
        values = next_obs.new_empty(len(next_obs), 1)
        for rows in chunks(len(next_obs), self._chunk):
            q = self._target.forward(next_obs[rows])
            if double_q:
                values[rows] = q.gather(1, self._online.forward(next_obs[rows]).argmax(1, keepdim=True))
            else:
                th.amax(q, 1, keepdim=True, out=values[rows])
        return values

    @th.no_grad()
    def gradient_step(
        self,
        obs: th.Tensor,
        actions: th.Tensor,
        targets: th.Tensor,
        max_grad_norm: float,
        lr: Optional[th.Tensor],
        loss_sum: th.Tensor,
    ) -> None:
        """One step of Adam on the Huber loss, whose mean is added to ``loss_sum``.

        :param obs: (B, obs_dim)
        :param actions: (B, 1) int64
        :param targets: (B, 1)
        :param lr: on the device; None: the optimizer's
        """
        batch, small = len(obs), self._online.small(obs, True)
        if self.fused is not None:
            self.fused.gradients(obs, actions, targets, loss_sum)
        elif small is not None:
            self._network_gradients(obs, actions, targets, small, self._grad[:batch], loss_sum)
        else:
            split = zip(*(th.split(whole, self._chunk) for whole in (obs, actions, targets)))
            for i, (x, action, target) in enumerate(split):
                q = self._online.forward(x)
                grad = self._grad[: len(q)]
                huber_gradient(q, action, target, grad, loss_sum, batch)
                self._online.backward(grad, accumulate=i > 0)
        ranks.mean_(self.adam.grad)
        self.adam.clip_and_step(max_grad_norm, lr)

    def refresh(self) -> None:
        """Before a series of steps: bring back what somebody has moved."""
        self.adam.refresh()
        bring_back(self._targets, self._target_views)

    def update_target(self, tau: float) -> None:
        """Polyak's average: the target network goes ``tau`` of the way to the online one."""
        self.refresh()  # a callback has just been called
        self._target_flat.lerp_(self.adam.flat, tau)
