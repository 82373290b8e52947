"""The update of PPO on a device: minibatches, gradients, adaptive learning rate and statistics, without waiting for it."""

from __future__ import annotations

import contextlib
import itertools
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.utils import update_learning_rate

from sb3_isaac.buffers.rollout_buffer import DeviceRolloutBuffer
from sb3_isaac.device import ranks, threads
from sb3_isaac.device.cuda_graph import Graphed, has_graphs
from sb3_isaac.device.eligibility import Watch
from sb3_isaac.device.finite import NotFiniteError, advice
from sb3_isaac.device.flat_adam import FlatAdam, optimizer_settings
from sb3_isaac.device.host import to_host
from sb3_isaac.envs.last_finite import LastFinite
from sb3_isaac.envs.tensor_path import patched_buffer
from sb3_isaac.ppo.fast_policy import FastActorCriticPolicy
from sb3_isaac.ppo.fused import FusedUpdate, in_kernels
from sb3_isaac.ppo.loss import APPROX_KL, CLIPPED, ENTROPY, KL, N_SUMS, POLICY_LOSS, SQUARED_ERROR, LossSettings


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
        # --8<-- [start:adapt]
        slower, faster = (lr / self.factor).clamp_(min=self.lowest), (lr * self.factor).clamp_(max=self.highest)
        # Before the first step the policy has not moved (but for rounding): nothing can be learned from that
        too_small = (kl < 0.5 * self.target) & (kl > 1e-6)
        lr.copy_(th.where(kl > 2.0 * self.target, slower, th.where(too_small, faster, lr)))
        # --8<-- [end:adapt]


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


class _Done(NamedTuple):
    """What was done with the minibatches of an update."""

    sums: th.Tensor
    """(minibatches, N_SUMS) statistics"""
    n_rows: List[int]
    """Of each minibatch"""
    epochs: int
    before_last_epoch: int
    """Minibatches"""
    stopped_at: Optional[float]
    """See :class:`UpdateLog`, likewise ``epochs``"""


@contextlib.contextmanager
def unchecked_distributions() -> Iterator[None]:
    """Without torch's checks of distributions, which wait for the device. NaN is found in the statistics instead."""
    before = th.distributions.Distribution._validate_args
    th.distributions.Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        th.distributions.Distribution.set_default_validate_args(before)


class PPOUpdate:
    """Updates a policy from rollout buffers as ``stable_baselines3.PPO.train`` does, reading the device once (but see
    :class:`~sb3_isaac.PPO`).

    SB3's plain MLP policies go through :class:`FastActorCriticPolicy`, all others through autograd. The parameters and the
    state of the policy's optimizer stay the policy's own.

    :param policy: an ActorCriticPolicy
    :param buffer: the rollouts
    :param compiled: on a GPU compile the loss and the optimizer, and capture the work on a minibatch in CUDA graphs
    :param precision: of ``device/fused.py``: in Triton's kernels, where they can be had
    """

    def __init__(self, policy: Any, buffer: RolloutBuffer, compiled: bool = False, precision: Optional[str] = None) -> None:
        self.policy = policy
        self.optimizer = policy.optimizer
        self.device = policy.device
        self.buffer = buffer
        self.compiled = compiled
        self.precision = precision
        self.fast: Optional[FastActorCriticPolicy] = None
        """None: autograd does the last update, or none was done"""
        self.adam: Optional[FlatAdam] = None
        """What makes the steps on the fast path"""
        self.fused: Optional[FusedUpdate] = None
        """What does the minibatches in Triton, as part of the fast path"""
        self._watch = Watch(policy)
        self._plain = False
        self._lr = th.zeros((), device=self.device)
        """The learning rate, where it adapts or is read by a graph."""
        self._clip = th.zeros(2, device=self.device)
        self._sums = th.zeros(N_SUMS, device=self.device)
        """The minibatch's statistics"""
        self._old_log_std: Optional[th.Tensor] = None
        self._settings: Any = None
        self._loss_settings: Any = None
        self._captures = compiled and has_graphs(self.device)
        self.gradients, self.step = Graphed(self._fast_gradients, False), Graphed(self._step, False)

    def belongs_to(self, policy: Any, buffer: RolloutBuffer, compiled: bool, precision: Optional[str]) -> bool:
        """Whether this object was made for these, and for the optimizer that the policy has now."""
        mine = (self.policy, self.optimizer, self.device, self.buffer, self.compiled, self.precision)
        return mine == (policy, policy.optimizer, policy.device, buffer, compiled, precision)

    def run(self, settings: Settings, lr: float, last_finite: Optional[LastFinite] = None) -> UpdateLog:
        """All epochs over the full rollout buffer.

        :param lr: the learning rate, or the first one if it adapts
        :param last_finite: keeps what the update has made
        :raises NotFiniteError: if a loss, or what the update has made, is not finite
        """
        self._settings = settings
        self._lr.fill_(lr)
        self._look_again(settings)
        done = self._minibatch_by_minibatch() if self.fused is None else self._in_kernels(self.fused)
        if self.adam is not None:
            self.adam.sync(len(done.n_rows) - (done.stopped_at is not None))
        losses, last_lr = self._read(settings, done.sums, done.n_rows, done.before_last_epoch, last_finite)
        return UpdateLog(losses, last_lr, done.epochs, done.stopped_at)

    def _in_kernels(self, fused: FusedUpdate) -> _Done:
        """The work on all minibatches in Triton."""
        settings = self._settings
        with th.no_grad():
            sums, going, n_rows = fused.run(settings, self._lr, self._clip, self._old_log_std)
            n_minibatches = len(n_rows) // settings.n_epochs
            stopped_at, done = None, len(n_rows)
            if settings.target_kl is not None:
                kls, went_on = to_host(th.stack((sums[:, APPROX_KL], going)))
                if not went_on.all():
                    done = int(went_on.argmin()) + 1
                    stopped_at = float(kls[done - 1]) / n_rows[done - 1]
        epochs = -(-done // n_minibatches)
        return _Done(sums[:done], n_rows[:done], epochs, (epochs - 1) * n_minibatches, stopped_at)

    def _minibatch_by_minibatch(self) -> _Done:
        """The work on all minibatches in PyTorch."""
        settings = self._settings
        sums: List[th.Tensor] = []
        n_rows: List[int] = []
        epochs, before_last_epoch, stopped_at = 0, 0, None
        n_threads = th.get_num_threads()
        if self.fast is not None:
            n_threads = threads.for_chunks(self.device, self.fast.shares_out)
        with threads.torch_threads(n_threads), unchecked_distributions() if self.fast is None else th.no_grad():
            while epochs < settings.n_epochs and stopped_at is None:
                epochs += 1
                before_last_epoch = len(n_rows)
                minibatches = self._minibatches(settings.batch_size)
                for minibatch, moments in zip(minibatches, self._moments(settings, minibatches)):
                    if isinstance(minibatch, th.Tensor):
                        n_rows.append(len(minibatch))
                        self.gradients(minibatch, *moments)
                    else:
                        n_rows.append(len(minibatch.advantages))
                        self._autograd_gradients(minibatch, *moments)
                    self._average()
                    sums.append(self._sums.clone())
                    if settings.target_kl is not None:
                        # Stopping early is the host's decision: here it has to wait for the device
                        kl = float(to_host(self._sums)[APPROX_KL]) / n_rows[-1]
                        if kl > 1.5 * settings.target_kl:
                            stopped_at = kl
                            break
                    self.step(n_rows[-1])
        return _Done(th.stack(sums), n_rows, epochs, before_last_epoch, stopped_at)

    def _minibatches(self, batch_size: int) -> Iterable[Any]:
        """On the fast path which rows of the buffer to take, else SB3's samples."""
        if self.fast is not None and isinstance(self.buffer, DeviceRolloutBuffer):
            return self.buffer.shuffled(batch_size)
        samples = self.buffer.get(batch_size)
        return samples if ranks.world_size() == 1 else list(samples)

    def _moments(self, settings: Settings, minibatches: Any) -> Iterable[Tuple[th.Tensor, ...]]:
        """For each minibatch of an epoch nothing, or, if several ranks share it out, (2,) mean and standard deviation of the
        advantages of all of it: two all-reduces for the epoch."""
        n_ranks = ranks.world_size()
        if n_ranks == 1 or not settings.normalize_advantage:
            return itertools.repeat(())
        if isinstance(self.buffer, DeviceRolloutBuffer) and self.fast is not None:
            column = self.buffer.tensors.advantages.view(-1)
            samples = [column.index_select(0, rows) for rows in minibatches]
        else:
            samples = [minibatch.advantages for minibatch in minibatches]
        totals = th.tensor([float(n_ranks * len(sample)) for sample in samples], device=self.device, dtype=th.float64)
        mean, variance = ranks.moments(samples).unbind(1)
        std = (variance * totals / (totals - 1.0)).sqrt()
        return [(both,) for both in th.stack((mean, std), 1).float()]

    def _average(self) -> None:
        """Of the gradients and the statistics the mean over all ranks, in one all-reduce."""
        if self.adam is not None:
            ranks.mean_(self.adam.grad, self._sums)
        else:
            ranks.mean_gradients(self.policy.parameters(), self._sums)

    def _look_again(self, settings: Settings) -> None:
        """Choose the path: policy, optimizer and settings may have changed since the last update."""
        buffer = self.buffer
        if self._watch.changed([self.optimizer], [self.policy.action_dist]):
            self._plain, self.fast, self.adam = FastActorCriticPolicy.why_not(self.policy, trains=True) is None, None, None
            self.fused = None
        if not self._plain or type(buffer) is not DeviceRolloutBuffer or patched_buffer(buffer) is not None:
            self.fast = self.fused = None
            self.gradients.disable()
            self.step.disable()
            return
        if self.adam is None:
            self.adam = FlatAdam(self.optimizer, self.compiled)
        self.adam.refresh()
        n_rows = min(settings.batch_size, buffer.buffer_size * buffer.n_envs)
        compiles = self.compiled and has_graphs(self.device)
        if self.fast is None or self.fast.max_rows != n_rows:
            self.fast = FastActorCriticPolicy(self.policy, n_rows, self.adam, self.compiled)
            if compiles:
                self.fast.compile()
        clip_range: Any = settings.clip_range
        clip_range_vf: Any = settings.clip_range_vf
        if self.fused is None and self.precision is not None and in_kernels(self.policy, self.precision):
            self.fused = FusedUpdate(self.policy, buffer, self.adam, self.precision, self._captures)
        if compiles or self.fused is not None:  # read from where they lie, because schedules change them
            self._clip[0].fill_(clip_range)
            clip_range = self._clip[0]
            if clip_range_vf is not None:
                self._clip[1].fill_(clip_range_vf)
                clip_range_vf = self._clip[1]
        self._loss_settings = LossSettings(
            clip_range=clip_range,
            clip_range_vf=clip_range_vf,
            ent_coef=settings.ent_coef,
            vf_coef=settings.vf_coef,
            normalize_advantage=settings.normalize_advantage,
        )
        if self.fast.log_std is not None:  # a graph expects it where it was
            old = th.empty_like(self.fast.log_std) if self._old_log_std is None else self._old_log_std
            self._old_log_std = old.detach().copy_(self.fast.log_std.detach())
        constants = (settings._replace(clip_range=0.0, clip_range_vf=None), clip_range_vf is None, self.fast)
        for graphed in (self.gradients, self.step):
            graphed.enabled = self._captures
            graphed.begin(*constants, buffer.rows.data_ptr(), optimizer_settings(self.optimizer))

    def _step(self, n_rows: int) -> None:
        """Clip the gradients and let the optimizer use them."""
        settings = self._settings
        with th.no_grad():
            if settings.adaptive_lr is not None:
                settings.adaptive_lr.adapt_(self._lr, self._sums[KL] / n_rows)
            if self.adam is not None:
                changes = settings.adaptive_lr is not None or self.step.enabled
                self.adam.clip_and_step(settings.max_grad_norm, self._lr if changes else None)
                return
        if settings.adaptive_lr is not None:
            update_learning_rate(self.optimizer, float(self._lr))
        th.nn.utils.clip_grad_norm_(self.policy.parameters(), settings.max_grad_norm)
        self.optimizer.step()

    def _fast_gradients(self, rows: th.Tensor, moments: Optional[th.Tensor] = None) -> None:
        """Write the gradients of a minibatch, whose rows of the buffer are given, and its statistics."""
        assert self.fast is not None and isinstance(self.buffer, DeviceRolloutBuffer)
        self._sums.copy_(self.fast.gradients(self.buffer.rows, rows, self._loss_settings, self._old_log_std, moments))

    def _autograd_gradients(self, samples: Any, moments: Optional[th.Tensor] = None) -> None:
        """The same for any policy: SB3's loss, line by line."""
        settings, actions = self._settings, samples.actions
        if isinstance(self.policy.action_space, spaces.Discrete):
            actions = actions.long().flatten()
        values, log_prob, entropy = self.policy.evaluate_actions(samples.observations, actions)
        values = values.flatten()
        advantages = samples.advantages
        if moments is not None:
            advantages = (advantages - moments[0]) / (moments[1] + 1e-8)
        elif settings.normalize_advantage and len(advantages) > 1:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        log_ratio = log_prob - samples.old_log_prob
        ratio, clip, clip_vf = log_ratio.exp(), settings.clip_range, settings.clip_range_vf
        surrogate = th.min(advantages * ratio, advantages * ratio.clamp(1.0 - clip, 1.0 + clip))
        if clip_vf is not None:
            values = samples.old_values + (values - samples.old_values).clamp(-clip_vf, clip_vf)
        squared_errors = (samples.returns - values).square()
        entropy = -log_prob if entropy is None else entropy  # the usual estimate where there is no formula
        loss = settings.vf_coef * squared_errors.mean() - settings.ent_coef * entropy.mean() - surrogate.mean()
        self.optimizer.zero_grad()
        loss.backward()
        with th.no_grad():
            approx_kl, clipped = ratio - 1.0 - log_ratio, ((ratio - 1.0).abs() > clip).float()
            sums = [term.sum() for term in (squared_errors, approx_kl, clipped, entropy, approx_kl)]
            self._sums.copy_(th.stack([-surrogate.mean(), *sums]))

    def _read(
        self,
        settings: Settings,
        sums: th.Tensor,
        n_rows: Sequence[int],
        before_last_epoch: int,
        last_finite: Optional[LastFinite],
    ) -> Tuple[Dict[str, float], float]:
        """Losses and learning rate: the only time that most updates wait for the device."""
        buffer = self.buffer
        with th.no_grad():
            if isinstance(buffer, DeviceRolloutBuffer):
                values, returns = buffer.tensors.values, buffer.tensors.returns
            else:
                values, returns = th.as_tensor(buffer.values), th.as_tensor(buffer.returns)
            if ranks.world_size() > 1:
                unexplained, variance = ranks.moments([(returns - values).to(self.device), returns.to(self.device)])[:, 1]
            else:
                unexplained, variance = (returns - values).var(unbiased=False), returns.var(unbiased=False)
            log_std = getattr(self.policy, "log_std", None)
            std = self._lr if log_std is None else log_std.exp().mean()
            health = self._lr if last_finite is None else last_finite.look()
            more = th.stack([x.to(self.device) for x in (unexplained, variance, std, self._lr, health)]).float()
            host = to_host(th.cat((sums.flatten(), more)))
        sums_ = host[:-5].reshape(-1, N_SUMS)
        means = sums_ / np.array(n_rows)[:, None]
        unexplained_, variance_, std_, lr, health_ = (float(x) for x in host[-5:])
        if np.isnan(means).any() or not np.isfinite(means[:, [POLICY_LOSS, SQUARED_ERROR]]).all():
            raise NotFiniteError(f"PPO's loss is NaN or infinite: {advice('loss')}")
        if last_finite is not None:
            last_finite.accept(health_)
        policy_loss, value_loss, entropy_loss = sums_[:, POLICY_LOSS], means[:, SQUARED_ERROR], -means[:, ENTROPY]
        loss = policy_loss + settings.ent_coef * entropy_loss + settings.vf_coef * value_loss
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
        return {key: float(value) for key, value in losses.items()}, lr
