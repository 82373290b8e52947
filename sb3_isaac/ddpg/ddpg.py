"""DDPG (https://arxiv.org/abs/1509.02971) as Stable-Baselines3 has it, at tensor speed."""

from __future__ import annotations

import time
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

import stable_baselines3
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import RolloutReturn
from stable_baselines3.common.utils import polyak_update
from torch.nn import functional as F

from sb3_isaac.buffers import sb3_buffer as replay_files
from sb3_isaac.buffers.replay_buffer import ReplaySamples
from sb3_isaac.ddpg.fast_policy import FastActorCritic
from sb3_isaac.off_policy import algorithm as off_policy
from sb3_isaac.off_policy.exploration import DeviceNoise, spread
from sb3_isaac.off_policy.rollout import TensorRun


class DDPG(stable_baselines3.DDPG):
    """Stable-Baselines3's DDPG, trained in tensors where the environment is an IsaacVecEnv.

    Everything that SB3's DDPG takes means the same; here is what is different or new. With any other environment it is
    SB3's DDPG, and the options marked * raise an error.

    With thousands of environments: ``learning_starts`` and ``total_timesteps`` count transitions of all environments,
    ``train_freq`` counts steps of all environments at once. ``gradient_steps=-1`` would mean ``n_envs`` updates for each
    step: use a small number. ``log_interval`` (episodes) is looked at once in 100 steps, when statistics and losses are
    read from the device; losses are means since the last time. ``action_noise`` may be SB3's normal or Ornstein-Uhlenbeck
    noise, or VectorizedActionNoise of these.

    :param n_steps: rewards to sum before bootstrapping; SB3's own option from 2.7 on, here for every version
    :param per_env_noise: factors on the action noise, spread geometrically between the first and the last environment,
        e.g. (1.0, 0.1); without ``action_noise`` they are standard deviations of Gaussian noise (mixed exploration of
        PQL, https://arxiv.org/abs/2307.12983) *
    :param shared_noise: one draw of the noise for all environments *
    :param reward_scale: factor on the rewards of the update, not on those that are logged or stored *
    :param spread_time_limits: begin with episodes of random age, so that time-outs do not come all at once *
    :param compile: compile the simulator's step with torch.compile; on a GPU, capture acting, stepping and updates in CUDA
        graphs, for MLP policies. Needs torch 2. The results are the same, but for rounding. *
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
        compile: bool = False,
        stats_window_size: int = 100,
        **kwargs: Any,
    ) -> None:
        self.n_steps = n_steps
        self.per_env_noise = per_env_noise
        self.shared_noise = shared_noise
        self.reward_scale = reward_scale
        self.spread_time_limits = spread_time_limits
        self.compile = compile
        self._run: Optional[TensorRun] = None  # not None: training runs in tensors
        self._fast: Optional[FastActorCritic] = None  # not None: the networks are updated without autograd
        if replay_files.SB3_HAS_N_STEPS:
            kwargs["n_steps"] = n_steps
        super().__init__(policy, env, *args, **kwargs)
        self._stats_window_size = stats_window_size  # which SB3's DDPG does not pass on to its base class

    def _setup_model(self) -> None:
        if off_policy.on_tensor_path(self):
            replay_files.use_device_buffer(self)
        super()._setup_model()

    def _setup_learn(
        self,
        total_timesteps: int,
        callback: Any = None,
        reset_num_timesteps: bool = True,
        tb_log_name: str = "run",
        progress_bar: bool = False,
    ) -> Tuple[int, BaseCallback]:
        if self._fast is not None:
            self._fast.sync()
        self._run = self._fast = None
        args = (total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        extras = {"per_env_noise": self.per_env_noise is not None, "shared_noise": self.shared_noise}
        if not off_policy.check_tensor_path(self, extras):
            return super()._setup_learn(*args)
        with off_policy.starting(self, reset_num_timesteps):
            result = super()._setup_learn(*args)
        self._noise = self._make_noise()
        self._fast = FastActorCritic(self) if FastActorCritic.supports(self) else None
        captured = self.compile and self._fast is not None and self.device.type == "cuda"
        after_step = None if self._noise is None else self._noise.reset
        self._run = TensorRun(self, self._act, after_step, ("critic_loss", "actor_loss"), captured)
        self._updates = off_policy.Updates(self, self._update, captured and self.policy_delay == 1)
        self._lr = th.zeros((), device=self.device) if captured else None  # where a captured graph reads it
        space: Any = self.action_space
        low, high = (th.as_tensor(bound, dtype=th.float32, device=self.device) for bound in (space.low, space.high))
        is_unit = bool((space.low == -1.0).all() and (space.high == 1.0).all())
        self._bounds = None if is_unit else (low, high)
        return result

    def _make_noise(self) -> Optional[DeviceNoise]:
        if self.action_noise is None and self.per_env_noise is None:
            return None
        scale = None
        if self.per_env_noise is not None:
            scale = spread("per_env_noise", self.per_env_noise, self.n_envs, self.device)
        return DeviceNoise(self.action_noise, self.n_envs, self._action_dim(), self.device, scale, self.shared_noise)

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
        if self._bounds is None:
            return actions, actions
        low, high = self._bounds
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
        return off_policy.collect_rollouts(self, self._run, callback, train_freq, learning_starts, log_interval)

    # -- the update --------------------------------------------------------------------------------------------------

    def train(self, gradient_steps: int, batch_size: int = 100) -> None:
        if self._run is None:
            super().train(gradient_steps, batch_size)
            return
        start = time.perf_counter()
        self._update_learning_rate([self.actor.optimizer, self.critic.optimizer])  # type: ignore[list-item]
        if self._lr is not None:
            self._lr.fill_(self.actor.optimizer.param_groups[0]["lr"])
        if self._fast is None:
            self.policy.set_training_mode(True)
        before = self._n_updates
        self._updates.run(gradient_steps, batch_size)
        self._n_updates = before + gradient_steps  # a captured update does not count
        counts = self._run.log.loss_counts
        counts[0] += gradient_steps
        counts[1] += self._n_updates // self.policy_delay - before // self.policy_delay
        self._run.log.seconds["update"] += time.perf_counter() - start
        self._run.note_update(self, gradient_steps, batch_size)

    def _update(self, samples: ReplaySamples, gradient_steps: int) -> None:
        """Gradient steps on the minibatches that ``samples`` consists of, one after the other."""
        step = self._autograd_step if self._fast is None else self._fast_step
        # What does not depend on the networks, for all minibatches at once
        discounts = (1.0 - samples.dones) * (self.gamma if samples.discounts is None else samples.discounts)
        rewards = samples.rewards if self.reward_scale == 1.0 else samples.rewards * self.reward_scale
        columns = (samples.observations, samples.actions, samples.next_observations, discounts, rewards)
        for rows in off_policy.pieces(len(rewards), len(rewards) // gradient_steps):
            self._n_updates += 1
            step(*(column[rows] for column in columns))

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
        losses = self._run.log.loss_sums
        obs = obs.flatten(1)
        next_values = self._fast.next_values(next_obs.flatten(1), self._target_noise(actions))
        self._fast.critic_step(obs, actions, th.addcmul(rewards, discounts, next_values), self._lr, losses[0])
        if self._n_updates % self.policy_delay == 0:
            self._fast.actor_step(obs, self._lr, losses[1])
            self._fast.update_targets(self.tau)

    def _autograd_step(
        self, obs: th.Tensor, actions: th.Tensor, next_obs: th.Tensor, discounts: th.Tensor, rewards: th.Tensor
    ) -> None:
        assert self._run is not None
        losses = self._run.log.loss_sums
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
        losses[0].add_(critic_loss.detach())
        if self._n_updates % self.policy_delay == 0:
            actor_loss = -self.critic.q1_forward(obs, self.actor(obs)).mean()
            self.actor.optimizer.zero_grad()
            actor_loss.backward()  # type: ignore[no-untyped-call]
            self.actor.optimizer.step()
            losses[1].add_(actor_loss.detach())
            polyak_update(self.critic.parameters(), self.critic_target.parameters(), self.tau)
            polyak_update(self.actor.parameters(), self.actor_target.parameters(), self.tau)
            polyak_update(self.critic_batch_norm_stats, self.critic_batch_norm_stats_target, 1.0)
            polyak_update(self.actor_batch_norm_stats, self.actor_batch_norm_stats_target, 1.0)

    # -- files -------------------------------------------------------------------------------------------------------

    def set_parameters(self, *args: Any, **kwargs: Any) -> None:
        super().set_parameters(*args, **kwargs)
        if self._fast is not None:
            self._fast.refresh()

    def get_parameters(self) -> Dict[str, Dict[str, Any]]:
        if self._fast is not None:
            self._fast.sync()
        return super().get_parameters()

    def save(self, path: Any, exclude: Optional[Iterable[str]] = None, include: Optional[Iterable[str]] = None) -> None:
        with replay_files.portable(self, None if self._run is None else self._run.last_obs()):
            super().save(path, exclude, include)

    def _excluded_save_params(self) -> List[str]:
        return [*super()._excluded_save_params(), "_run", "_fast", "_updates", "_lr", "_noise", "_bounds"]

    def save_replay_buffer(self, path: Any) -> None:
        """Save the replay buffer as SB3's own, which stock SB3 loads too."""
        with replay_files.stock_buffer(self):
            super().save_replay_buffer(path)

    def load_replay_buffer(self, path: Any, truncate_last_traj: bool = True) -> None:
        super().load_replay_buffer(path, truncate_last_traj)
        if off_policy.on_tensor_path(self):
            replay_files.use_device_buffer(self)
