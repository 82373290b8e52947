"""DDPG (https://arxiv.org/abs/1509.02971) as Stable-Baselines3 has it, at tensor speed."""

from __future__ import annotations

from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

import stable_baselines3
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.type_aliases import RolloutReturn
from stable_baselines3.common.utils import polyak_update
from torch.nn import functional as F

from sb3_isaac import off_policy
from sb3_isaac.buffers import ReplaySamples
from sb3_isaac.exploration import DeviceNoise, spread
from sb3_isaac.fast_mlp import FastMLP, parse_layers
from sb3_isaac.flat_adam import FlatAdam, share_storage

CHUNK = 2048
"""Rows of a batch that are worked through at once: their activations stay in the processor's cache."""


class FastActorCritic:
    """Actor, critics and their targets of plain layers, without autograd.

    :param model: a DDPG for which :meth:`supports` is true
    """

    def __init__(self, model: DDPG) -> None:
        self.actor_adam = FlatAdam(model.actor.optimizer)  # type: ignore[arg-type]
        self.critic_adam = FlatAdam(model.critic.optimizer)  # type: ignore[arg-type]
        self._targets = (share_storage(model.actor_target.parameters()), share_storage(model.critic_target.parameters()))

        def mlp(module: Any, rows: int = CHUNK) -> FastMLP:
            layers = parse_layers(module)
            assert layers is not None
            return FastMLP(layers, rows)

        self.acting = mlp(model.actor.mu, model.n_envs)
        self.actor, self.actor_target = mlp(model.actor.mu), mlp(model.actor_target.mu)
        self.critics = [mlp(net) for net in model.critic.q_networks]
        self.critic_targets = [mlp(net) for net in model.critic_target.q_networks]
        self._obs_dim = self.actor.layers[0][0].in_features
        width = self.critics[0].layers[0][0].in_features
        self._input = self._targets[0].new_empty(CHUNK, width)
        self._next_input = self._targets[0].new_empty(CHUNK, width)

    @staticmethod
    def supports(model: DDPG) -> bool:
        """The networks are Linear layers and known activations on flat observations, the optimizers are plain Adam."""
        nets = (model.actor, model.actor_target, model.critic, model.critic_target)
        flat = all(type(net.features_extractor) is FlattenExtractor for net in nets)
        layers: List[Any] = [model.actor.mu, *model.critic.q_networks]
        optimizers: List[Any] = [model.actor.optimizer, model.critic.optimizer]
        return flat and all(parse_layers(net) for net in layers) and all(FlatAdam.supports(one) for one in optimizers)

    def _join(self, obs: th.Tensor, actions: th.Tensor, out: th.Tensor) -> th.Tensor:
        return th.cat((obs, actions), 1, out=out[: len(obs)])

    def next_values(self, next_obs: th.Tensor, noise: Optional[th.Tensor]) -> th.Tensor:
        """(B, 1), what the target networks think of the next observations: the lowest of the critics.

        :param noise: (B, action_dim) to add to the target actor's actions, or None
        """
        parts = []
        for rows in off_policy.pieces(len(next_obs), CHUNK):
            actions = self.actor_target.forward(next_obs[rows])
            if noise is not None:
                actions = (actions + noise[rows]).clamp_(-1.0, 1.0)
            x = self._join(next_obs[rows], actions, self._next_input)
            values = self.critic_targets[0].forward(x)
            for critic in self.critic_targets[1:]:
                values = th.minimum(values, critic.forward(x))
            parts.append(values)
            if len(next_obs) > CHUNK:
                parts[-1] = values.clone()
        return parts[0] if len(parts) == 1 else th.cat(parts)

    def critic_step(self, obs: th.Tensor, actions: th.Tensor, targets: th.Tensor, loss_sum: th.Tensor) -> None:
        """One step of Adam on the critics' squared errors, whose mean is added to ``loss_sum``."""
        batch = len(obs)
        for rows in off_policy.pieces(batch, CHUNK):
            x = self._join(obs[rows], actions[rows], self._input)
            for critic in self.critics:
                error = critic.forward(x).sub_(targets[rows])
                loss_sum.add_(th.linalg.vector_norm(error).square_(), alpha=1.0 / batch)
                critic.backward(error.mul_(2.0 / batch), accumulate=rows.start > 0)
        self.critic_adam.step()

    def actor_step(self, obs: th.Tensor, loss_sum: th.Tensor) -> None:
        """One step of Adam up the first critic's slope; minus its mean value is added to ``loss_sum``."""
        batch = len(obs)
        for rows in off_policy.pieces(batch, CHUNK):
            actions = self.actor.forward(obs[rows])
            values = self.critics[0].forward(self._join(obs[rows], actions, self._input))
            loss_sum.sub_(values.sum(), alpha=1.0 / batch)
            grad = self.critics[0].backward(values.fill_(-1.0 / batch), parameters=False, inputs=True)
            assert grad is not None
            self.actor.backward(grad[:, self._obs_dim :], accumulate=rows.start > 0)
        self.actor_adam.step()

    def update_targets(self, tau: float) -> None:
        """Polyak's average: the target networks go ``tau`` of the way to the trained ones."""
        self._targets[0].lerp_(self.actor_adam.flat, tau)
        self._targets[1].lerp_(self.critic_adam.flat, tau)

    def refresh(self) -> None:
        """Bind anew what ``load_state_dict`` replaced."""
        self.actor_adam.refresh()
        self.critic_adam.refresh()


class DDPG(stable_baselines3.DDPG):
    """Stable-Baselines3's DDPG, trained in tensors where the environment is an IsaacVecEnv.

    Everything that SB3's DDPG takes means the same; here is what is different or new. With any other environment it is
    SB3's DDPG, and the options marked * raise an error.

    With thousands of environments: ``learning_starts`` and ``total_timesteps`` count transitions of all environments,
    ``train_freq`` counts steps of all environments at once. ``gradient_steps=-1`` would mean ``n_envs`` updates for each
    step: use a small number. ``log_interval`` (episodes) is looked at once in 100 steps, when statistics and losses are
    read from the device. ``action_noise`` may be SB3's normal or Ornstein-Uhlenbeck noise (or VectorizedActionNoise).

    :param n_steps: rewards to sum before bootstrapping; SB3's own option from 2.7 on, here for every version
    :param per_env_noise: factors on the action noise, spread geometrically between the first and the last environment,
        e.g. (1.0, 0.1); without ``action_noise`` they are standard deviations of Gaussian noise (mixed exploration of
        PQL, https://arxiv.org/abs/2307.12983) *
    :param shared_noise: one draw of the noise for all environments *
    :param reward_scale: factor on the rewards of the update, not on those that are logged or stored *
    :param spread_time_limits: begin with episodes of random age, so that time-outs do not come all at once *
    :param stats_window_size: episodes that ``rollout/ep_rew_mean`` is the mean of; SB3's other algorithms have it too
    :raises ValueError: for an option marked * with an environment that has no tensor interface, or an unknown noise
    """

    def __init__(
        self,
        policy: Any,
        env: Any,
        *args: Any,
        n_steps: int = 1,
        per_env_noise: Optional[Sequence[float]] = None,
        shared_noise: bool = False,
        reward_scale: float = 1.0,
        spread_time_limits: bool = False,
        stats_window_size: int = 100,
        **kwargs: Any,
    ) -> None:
        self.per_env_noise = per_env_noise
        self.shared_noise = shared_noise
        self.reward_scale = reward_scale
        self.spread_time_limits = spread_time_limits
        self.n_steps = n_steps
        self._run: Optional[off_policy.TensorRun] = None
        self._fast: Optional[FastActorCritic] = None
        self._noise: Optional[DeviceNoise] = None
        if off_policy.SB3_HAS_N_STEPS:
            kwargs["n_steps"] = n_steps
        super().__init__(policy, env, *args, **kwargs)
        self._stats_window_size = stats_window_size  # which SB3's DDPG does not pass on to its base class

    def _setup_model(self) -> None:
        if off_policy.on_tensor_path(self):
            off_policy.use_device_buffer(self)
        super()._setup_model()

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: Any = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> Tuple[int, BaseCallback]:
        self._run = self._fast = self._noise = None
        args = (total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        extras = {
            "n_steps (before SB3 2.7)": self.n_steps > 1 and not off_policy.SB3_HAS_N_STEPS,
            "per_env_noise": self.per_env_noise is not None,
            "shared_noise": self.shared_noise,
            "reward_scale": self.reward_scale != 1.0,
            "spread_time_limits": self.spread_time_limits,
        }
        if not off_policy.check_tensor_path(self, extras):
            return super()._setup_learn(*args)
        with off_policy.starting(self, reset_num_timesteps):
            result = super()._setup_learn(*args)
        self._run = off_policy.TensorRun(self, ("critic_loss", "actor_loss"))
        self._fast = FastActorCritic(self) if FastActorCritic.supports(self) else None
        if self.action_noise is not None or self.per_env_noise is not None:
            scale = None
            if self.per_env_noise is not None:
                scale = spread("per_env_noise", self.per_env_noise, self.n_envs, self.device)
            self._noise = DeviceNoise(
                self.action_noise, self.n_envs, self._action_dim(), self.device, scale, self.shared_noise
            )
        return result

    def _action_dim(self) -> int:
        assert self.action_space.shape is not None
        return int(self.action_space.shape[0])

    @th.no_grad()
    def _act(self, obs: th.Tensor, random: bool) -> Tuple[th.Tensor, th.Tensor]:
        """Actions (N, action_dim) for observations (N, obs_dim): for the env, and in [-1, 1] for the replay buffer."""
        if random:
            actions = th.rand((len(obs), self._action_dim()), device=obs.device).mul_(2.0).sub_(1.0)
        else:
            actions = self._fast.acting.forward(obs) if self._fast is not None else self.actor(obs)
        if self._noise is not None:
            actions = self._noise.add_to(actions)
        space: Any = self.action_space
        if (space.low == -1.0).all() and (space.high == 1.0).all():
            return actions, actions
        low, high = (th.as_tensor(bound, dtype=th.float32, device=obs.device) for bound in (space.low, space.high))
        return low + 0.5 * (actions + 1.0) * (high - low), actions

    def collect_rollouts(  # type: ignore[override]
        self,
        env: Any,
        callback: BaseCallback,
        train_freq: Any,
        replay_buffer: Any,
        action_noise: Any = None,
        learning_starts: int = 0,
        log_interval: Optional[int] = None,
    ) -> RolloutReturn:
        if self._run is None:
            return super().collect_rollouts(
                env, callback, train_freq, replay_buffer, action_noise, learning_starts, log_interval
            )
        if self._fast is None:
            self.policy.set_training_mode(False)
        after_step = None if self._noise is None else self._noise.reset
        return off_policy.collect_rollouts(
            self, self._run, self._act, callback, train_freq, learning_starts, log_interval, after_step
        )

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        if self._run is None:
            super().train(gradient_steps, batch_size)
            return
        self._update_learning_rate([self.actor.optimizer, self.critic.optimizer])  # type: ignore[list-item]
        with self._run.timed("update"):
            at_once = max(1, off_policy.SAMPLE_ROWS // batch_size)
            for rows in off_policy.pieces(gradient_steps, at_once):
                n = rows.stop - rows.start
                samples = self.replay_buffer.sample_tensors(n * batch_size, env=self._vec_normalize_env)  # type: ignore[union-attr]
                self._update(samples, n)
        self._run.note_update(self, gradient_steps, batch_size, self.train_freq)  # type: ignore[arg-type]

    def _update(self, samples: ReplaySamples, gradient_steps: int) -> None:
        """Gradient steps on the minibatches that ``samples`` consists of, one after the other."""
        batch = len(samples.observations) // gradient_steps
        update = self._autograd_step if self._fast is None else self._fast_step
        if self._fast is None:
            self.policy.set_training_mode(True)
        # What does not depend on the networks, for all minibatches at once
        discounts = (1.0 - samples.dones) * (self.gamma if samples.discounts is None else samples.discounts)
        rewards = samples.rewards if self.reward_scale == 1.0 else samples.rewards * self.reward_scale
        columns = (samples.observations, samples.actions, samples.next_observations, discounts, rewards)
        for i in range(gradient_steps):
            self._n_updates += 1
            update(*(column[i * batch : (i + 1) * batch] for column in columns))

    def _target_noise(self, actions: th.Tensor) -> Optional[th.Tensor]:
        """TD3's noise on the target actions, which DDPG clips at 0."""
        if self.target_noise_clip == 0.0 or self.target_policy_noise == 0.0:
            return None
        noise = th.randn_like(actions).mul_(self.target_policy_noise)
        return noise.clamp_(-self.target_noise_clip, self.target_noise_clip)

    @th.no_grad()
    def _fast_step(
        self, obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor, discounts: th.Tensor, rewards: th.Tensor
    ) -> None:
        assert self._fast is not None and self._run is not None
        obs = obs.flatten(1)
        next_values = self._fast.next_values(next_obs.flatten(1), self._target_noise(actions))
        self._fast.critic_step(obs, actions, th.addcmul(rewards, discounts, next_values), self._run.loss_sums[0])
        self._run.loss_counts[0] += 1
        if self._n_updates % self.policy_delay == 0:
            self._fast.actor_step(obs, self._run.loss_sums[1])
            self._run.loss_counts[1] += 1
            self._fast.update_targets(self.tau)

    def _autograd_step(
        self, obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor, discounts: th.Tensor, rewards: th.Tensor
    ) -> None:
        assert self._run is not None
        with th.no_grad():
            noise = self._target_noise(actions)
            next_actions = self.actor_target(next_obs)
            next_actions = next_actions if noise is None else (next_actions + noise).clamp(-1.0, 1.0)
            next_values = th.cat(self.critic_target(next_obs, next_actions), 1).min(1, keepdim=True)[0]
            targets = rewards + discounts * next_values
        critic_loss = th.stack([F.mse_loss(values, targets) for values in self.critic(obs, actions)]).sum()
        self.critic.optimizer.zero_grad()
        critic_loss.backward()  # type: ignore[no-untyped-call]
        self.critic.optimizer.step()
        self._run.loss_sums[0].add_(critic_loss.detach())
        self._run.loss_counts[0] += 1
        if self._n_updates % self.policy_delay == 0:
            actor_loss = -self.critic.q1_forward(obs, self.actor(obs)).mean()
            self.actor.optimizer.zero_grad()
            actor_loss.backward()  # type: ignore[no-untyped-call]
            self.actor.optimizer.step()
            self._run.loss_sums[1].add_(actor_loss.detach())
            self._run.loss_counts[1] += 1
            polyak_update(self.critic.parameters(), self.critic_target.parameters(), self.tau)
            polyak_update(self.actor.parameters(), self.actor_target.parameters(), self.tau)
            polyak_update(self.critic_batch_norm_stats, self.critic_batch_norm_stats_target, 1.0)
            polyak_update(self.actor_batch_norm_stats, self.actor_batch_norm_stats_target, 1.0)

    # -- saved files -------------------------------------------------------------------------------------------------

    def set_parameters(self, *args: Any, **kwargs: Any) -> None:
        super().set_parameters(*args, **kwargs)
        if self._fast is not None:
            self._fast.refresh()

    def get_parameters(self) -> Dict[str, Dict[str, Any]]:
        if self._fast is not None:
            self._fast.actor_adam.sync()
            self._fast.critic_adam.sync()
        return super().get_parameters()

    def save(self, path: Any, exclude: Optional[Iterable[str]] = None, include: Optional[Iterable[str]] = None) -> None:
        with off_policy.portable(self, self._run):
            super().save(path, exclude, include)

    def _excluded_save_params(self) -> List[str]:
        return [*super()._excluded_save_params(), "_run", "_fast", "_noise"]

    def save_replay_buffer(self, path: Any) -> None:
        """Save the replay buffer as SB3's own, which stock SB3 loads too."""
        with off_policy.stock_buffer(self):
            super().save_replay_buffer(path)

    def load_replay_buffer(self, path: Any, truncate_last_traj: bool = True) -> None:
        super().load_replay_buffer(path, truncate_last_traj)
        if off_policy.on_tensor_path(self):
            off_policy.use_device_buffer(self)
