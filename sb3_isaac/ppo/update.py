"""The update of PPO on a device: minibatches, gradients, adaptive learning rate and statistics, without waiting for it."""

from __future__ import annotations

import contextlib
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, cast

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer

from sb3_isaac.buffers.rollout_buffer import DeviceRolloutBuffer
from sb3_isaac.device.cuda_graph import CudaGraph
from sb3_isaac.device.flat_adam import FlatAdam
from sb3_isaac.device.host import to_host
from sb3_isaac.ppo.fast_policy import CPU_ROWS, FastActorCritic, why_not_fast
from sb3_isaac.ppo.loss import APPROX_KL, CLIPPED, ENTROPY, KL, N_SUMS, POLICY_LOSS, SQUARED_ERROR, Objective


class AdaptiveLR(NamedTuple):
    """Learning rate that keeps the KL divergence between the old and the new policy near a target.

    Source: rsl_rl (https://github.com/leggedrobotics/rsl_rl) and rl_games; the idea is in section 4 of
    https://arxiv.org/abs/1707.06347.
    """

    target: float
    """At more than twice the target the rate is divided by ``factor``, at less than half multiplied."""
    factor: float
    lowest: float
    highest: float

    def adapt_(self, lr: th.Tensor, kl: th.Tensor) -> None:
        """Change ``lr`` () in place, given the KL divergence () of the minibatch at hand."""
        slower, faster = (lr / self.factor).clamp_(min=self.lowest), (lr * self.factor).clamp_(max=self.highest)
        # Before the first step the policy has not moved (but for rounding): nothing can be learned from that
        too_small = (kl < 0.5 * self.target) & (kl > 1e-6)
        lr.copy_(th.where(kl > 2.0 * self.target, slower, th.where(too_small, faster, lr)))


class Settings(NamedTuple):
    """What one update needs to know, with SB3's names."""

    n_epochs: int
    batch_size: int
    clip_range: float
    clip_range_vf: Optional[float]
    ent_coef: float
    vf_coef: float
    max_grad_norm: float
    normalize_advantage: bool
    target_kl: Optional[float]
    adaptive_lr: Optional[AdaptiveLR]


class UpdateLog(NamedTuple):
    """What an update has to tell, on the host."""

    losses: Dict[str, float]
    """By SB3's logger keys"""
    learning_rate: float
    """The last one"""
    epochs: int
    """Epochs done, the one that target_kl ended included"""
    stopped_at: Optional[float]
    """The KL divergence at which target_kl ended the update"""


@contextlib.contextmanager
def unchecked_distributions() -> Iterator[None]:
    """Without torch's checks of distributions, which wait for the device. NaN is found in the statistics instead."""
    before = th.distributions.Distribution._validate_args
    th.distributions.Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        th.distributions.Distribution.set_default_validate_args(before)


class _Captured(NamedTuple):
    """The work on minibatches of one size, captured."""

    places: th.Tensor
    """Where the graphs read which transitions to take"""
    gradients: CudaGraph
    apply: CudaGraph


class PPOUpdate:
    """Updates a policy from rollout buffers as ``stable_baselines3.PPO.train`` does, reading the device once.

    SB3's plain MLP policies go through :class:`FastActorCritic`, all others through autograd. The parameters and the state
    of the policy's optimizer stay the policy's own.

    :param policy: an ActorCriticPolicy
    :param compiled: compile the loss; on a GPU also the optimizer, and capture the work on a minibatch in CUDA graphs
    """

    def __init__(self, policy: Any, compiled: bool = False) -> None:
        self.policy = policy
        self.optimizer = policy.optimizer
        self.device = policy.device
        self.compiled = compiled
        self._captures = compiled and self.device.type == "cuda"
        self.adam = FlatAdam(policy.optimizer) if self._is_plain_adam() else None
        if compiled and self.adam is not None:
            self.adam.compile()
        self.lr = th.zeros((), device=self.device)
        """The learning rate, where it adapts or is read by a graph."""
        self._clip = th.zeros(2, device=self.device)
        self._fast: Optional[FastActorCritic] = None
        self._rows: Optional[th.Tensor] = None
        """What the rollout buffer holds in packed rows, one for each transition, so that one gather serves a minibatch"""
        self._old_log_std: Optional[th.Tensor] = None
        self._captured: Dict[int, _Captured] = {}
        self._capture_for: Any = None

    def _is_plain_adam(self) -> bool:
        ours = {id(p) for p in self.policy.parameters()}
        return FlatAdam.supports(self.optimizer) and {id(p) for p in self.optimizer.param_groups[0]["params"]} == ours

    def belongs_to(self, policy: Any) -> bool:
        """Whether policy and optimizer are still those that this object was made for."""
        return policy is self.policy and policy.optimizer is self.optimizer and policy.device == self.device

    def run(self, buffer: RolloutBuffer, settings: Settings, lr: float) -> UpdateLog:
        """All epochs over a full rollout buffer.

        :param lr: the learning rate, or the first one if it adapts
        :raises FloatingPointError: if a loss is NaN
        :raises ValueError: if the learning rate is to adapt and the optimizer is not plain Adam
        """
        self._buffer, self._settings = buffer, settings
        self.lr.fill_(lr)
        fast = self._prepare()
        per_epoch = -(-buffer.buffer_size * buffer.n_envs // settings.batch_size)
        sums = th.zeros(settings.n_epochs * per_epoch, N_SUMS, device=self.device)
        rows: List[int] = []
        epochs, stopped_at = 0, None
        with th.no_grad() if fast else unchecked_distributions():
            while epochs < settings.n_epochs and stopped_at is None:
                epochs += 1
                # Of the fast path: which of the packed rows to take
                shuffled = cast(DeviceRolloutBuffer, buffer).shuffled if fast else buffer.get
                batches: Iterable[Any] = shuffled(settings.batch_size)
                for batch in batches:
                    n_rows = len(batch) if fast else len(batch.advantages)
                    batch_sums = self._gradients(batch)
                    sums[len(rows)].copy_(batch_sums)
                    rows.append(n_rows)
                    if settings.target_kl is not None:
                        # Stopping early is the host's decision: here it has to wait for the device
                        kl = float(to_host(batch_sums)[APPROX_KL]) / n_rows
                        if kl > 1.5 * settings.target_kl:
                            stopped_at = kl
                            break
                    self._apply(batch_sums, n_rows)
        if self.adam is not None:
            self.adam.sync(self.adam.steps_at_sync + len(rows) - (stopped_at is not None))
        return self._log(sums[: len(rows)], np.array(rows), epochs, stopped_at)

    def _prepare(self) -> bool:
        """Look at policy and optimizer again, which may have changed since. Returns whether the fast path can be taken."""
        buffer, settings, adam = self._buffer, self._settings, self.adam
        if adam is None:
            if settings.adaptive_lr is not None:
                raise ValueError(
                    "adaptive_lr_kl needs torch.optim.Adam over all parameters, without weight decay or variants."
                )
            return False
        adam.refresh()
        if not isinstance(buffer, DeviceRolloutBuffer) or why_not_fast(self.policy) is not None:
            self._captured.clear()
            self._capture_for = None
            return False
        n_rows = buffer.buffer_size * buffer.n_envs
        cached = n_rows if self.device.type == "cuda" else CPU_ROWS
        piece = min(settings.batch_size, n_rows, cached)
        if self._fast is None or self._fast.max_rows != piece:
            self._fast = FastActorCritic(self.policy, piece)
            if self.compiled:
                self._fast.compile()
        clip_range: Any = settings.clip_range
        clip_range_vf: Any = settings.clip_range_vf
        if self.compiled:  # read from where they lie, because schedules change them
            self._clip[0].fill_(clip_range)
            clip_range = self._clip[0]
            if clip_range_vf is not None:
                self._clip[1].fill_(clip_range_vf)
                clip_range_vf = self._clip[1]
        self._objective = Objective(
            clip_range, clip_range_vf, settings.ent_coef, settings.vf_coef, settings.normalize_advantage
        )
        with th.no_grad():
            self._pack(buffer, self._fast, settings.adaptive_lr is not None)
        if self._captures:
            # The first update runs without graphs, which initialises CUDA's libraries
            constants = (settings._replace(clip_range=0.0), clip_range_vf is None, id(self._rows), id(self._fast))
            if constants != self._capture_for:
                self._capture_for, self._may_capture = constants, False
                self._captured.clear()
            else:
                self._may_capture = True
        return True

    def _pack(self, buffer: DeviceRolloutBuffer, fast: FastActorCritic, with_old: bool) -> None:
        """Fill :attr:`_rows`, in the order in which SB3 counts transitions: env by env.

        :param with_old: also what the actions were drawn from, which has not changed since
        """
        data, (n_steps, n) = buffer.tensors, buffer.tensors.rewards.shape
        scalars = (data.values, data.log_probs, data.advantages, data.returns)
        columns = [data.observations.flatten(2), data.actions.flatten(2), *(x.unsqueeze(2) for x in scalars)]
        if with_old:
            columns.append(fast.distribution(data.observations.flatten(0, 1)).view(n_steps, n, -1))
            if fast.log_std is not None:  # a graph expects it where it was
                old = fast.log_std.new_empty(fast.log_std.shape) if self._old_log_std is None else self._old_log_std
                self._old_log_std = old.copy_(fast.log_std)
        width = sum(column.shape[2] for column in columns)
        if self._rows is None or self._rows.shape != (n * n_steps, width):
            self._rows = th.empty(n * n_steps, width, device=self.device)
        table = self._rows.view(n, n_steps, width).transpose(0, 1)
        for part, column in zip(th.split(table, [column.shape[2] for column in columns], 2), columns):
            part.copy_(column)

    def _gradients(self, batch: Any) -> th.Tensor:
        """Write a minibatch's gradients into the parameters. Returns its sums (N_SUMS,), valid until the next minibatch."""
        if not isinstance(batch, th.Tensor):
            return self._autograd_gradients(batch)
        if not (self._captures and self._may_capture):
            return self._fast_gradients(batch)
        captured = self._captured.get(len(batch))
        if captured is None:
            places, n_rows = batch.clone(), len(batch)
            gradients = CudaGraph(lambda: self._fast_gradients(places))
            sums = gradients.result
            captured = _Captured(places, gradients, CudaGraph(lambda: self._step(sums, n_rows)))
            self._captured[n_rows] = captured
        captured.places.copy_(batch)
        result: th.Tensor = captured.gradients()
        return result

    def _apply(self, sums: th.Tensor, n_rows: int) -> None:
        if n_rows in self._captured:
            self._captured[n_rows].apply()
        else:
            self._step(sums, n_rows)

    def _step(self, sums: th.Tensor, n_rows: int) -> None:
        """Clip the gradients and let the optimizer use them."""
        settings = self._settings
        if self.adam is None:
            th.nn.utils.clip_grad_norm_(self.policy.parameters(), settings.max_grad_norm)
            self.optimizer.step()
            return
        with th.no_grad():
            if settings.adaptive_lr is not None:
                settings.adaptive_lr.adapt_(self.lr, sums[KL] / n_rows)
            changes = settings.adaptive_lr is not None or self._captures
            self.adam.clip_and_step(settings.max_grad_norm, self.lr if changes else None)

    def _fast_gradients(self, places: th.Tensor) -> th.Tensor:
        assert self._fast is not None and self._rows is not None
        return self._fast.gradients(self._rows.index_select(0, places), self._objective, self._old_log_std)

    def _autograd_gradients(self, samples: Any) -> th.Tensor:
        """For any policy: SB3's loss, line by line."""
        settings, actions = self._settings, samples.actions
        if isinstance(self.policy.action_space, spaces.Discrete):
            actions = actions.long().flatten()
        values, log_prob, entropy = self.policy.evaluate_actions(samples.observations, actions)
        values = values.flatten()
        advantages = samples.advantages
        if settings.normalize_advantage and len(advantages) > 1:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        log_ratio = log_prob - samples.old_log_prob
        ratio, clip, clip_vf = log_ratio.exp(), settings.clip_range, settings.clip_range_vf
        surrogate = th.min(advantages * ratio, advantages * ratio.clamp(1.0 - clip, 1.0 + clip))
        if clip_vf is not None:
            values = samples.old_values + (values - samples.old_values).clamp(-clip_vf, clip_vf)
        squared_errors = (samples.returns - values).square()
        entropy = -log_prob if entropy is None else entropy  # the usual estimate where there is no formula
        loss = settings.vf_coef * squared_errors.mean() - settings.ent_coef * entropy.mean() - surrogate.mean()
        if self.adam is None:
            self.optimizer.zero_grad()
        else:
            self.adam.grad.zero_()
        loss.backward()
        with th.no_grad():
            approx_kl, clipped = ratio - 1.0 - log_ratio, ((ratio - 1.0).abs() > clip).float()
            sums = [term.sum() for term in (squared_errors, approx_kl, clipped, entropy, approx_kl)]
            return th.stack([-surrogate.mean(), *sums])

    def _log(self, sums: th.Tensor, rows: np.ndarray, epochs: int, stopped_at: Optional[float]) -> UpdateLog:
        """Read what there is to tell: the only time that an update waits for the device (with target_kl: the last)."""
        buffer, settings = self._buffer, self._settings
        with th.no_grad():
            if isinstance(buffer, DeviceRolloutBuffer):
                values, returns = buffer.tensors.values, buffer.tensors.returns
            else:
                values, returns = th.as_tensor(buffer.values), th.as_tensor(buffer.returns)
            unexplained, variance = (returns - values).var(unbiased=False), returns.var(unbiased=False)
            log_std = getattr(self.policy, "log_std", None)
            std = self.lr if log_std is None else log_std.exp().mean()
            more = th.stack([x.to(self.device) for x in (unexplained, variance, std, self.lr)])
            host = to_host(th.cat((sums.flatten(), more)))
        sums_ = host[:-4].reshape(-1, N_SUMS)
        means = sums_ / rows[:, None]
        unexplained_, variance_, std_, lr = (float(x) for x in host[-4:])
        if np.isnan(means).any():
            raise FloatingPointError(
                "PPO's loss is NaN: training has diverged, lower the learning rate or the scale of the rewards."
            )
        policy_loss, value_loss, entropy_loss = sums_[:, POLICY_LOSS], means[:, SQUARED_ERROR], -means[:, ENTROPY]
        loss = policy_loss + settings.ent_coef * entropy_loss + settings.vf_coef * value_loss
        before_last_epoch = (epochs - 1) * -(-buffer.buffer_size * buffer.n_envs // settings.batch_size)
        losses = {
            "train/entropy_loss": np.mean(entropy_loss),
            "train/policy_gradient_loss": np.mean(policy_loss),
            "train/value_loss": np.mean(value_loss),
            "train/approx_kl": np.mean(means[before_last_epoch:, APPROX_KL]),
            "train/clip_fraction": np.mean(means[:, CLIPPED]),
            "train/loss": loss[-1],
            "train/explained_variance": np.nan if variance_ == 0.0 else 1.0 - unexplained_ / variance_,
        }
        if log_std is not None:
            losses["train/std"] = std_
        return UpdateLog({key: float(value) for key, value in losses.items()}, lr, epochs, stopped_at)
