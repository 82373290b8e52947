"""DDPG (https://arxiv.org/abs/1509.02971) as Stable-Baselines3 has it, at tensor speed."""

from __future__ import annotations

import warnings
from typing import Any, List, Optional, Sequence, Tuple, cast

import stable_baselines3
import torch as th
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.utils import polyak_update
from torch.nn import functional as F

from sb3_isaac.buffers.replay_buffer import ReplaySamples
from sb3_isaac.ddpg.fast_policy import FastTD3Policy
from sb3_isaac.device import ranks
from sb3_isaac.off_policy.algorithm import TensorOffPolicyAlgorithm, TensorRun
from sb3_isaac.off_policy.exploration import DeviceNoise, HostNoise, noise_settings, spread
from sb3_isaac.off_policy.update import chunks


class DDPG(TensorOffPolicyAlgorithm, stable_baselines3.DDPG):
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
    :param precision: "fp32", "tf32" or "bf16": act with and update MLP policies of one or two hidden layers of at most 64
        units in Triton's kernels, see :class:`sb3_isaac.PPO`. Experimental: not yet run on a GPU.
    :param reward_scale: factor on the rewards of the update, not on those that are logged or stored *
    :param spread_time_limits: begin with episodes of random age, so that time-outs do not come all at once *
    :param compile: on a GPU, capture acting, stepping and updates in CUDA graphs and compile the simulator's step with
        torch.compile (needs torch 2.4). On a CPU do it in C, which the machine's C compiler makes at
        the first use, in a few seconds; networks that are no small MLPs stay in PyTorch, and so does all where there is no
        compiler: :attr:`path` says why. The results are the same to rounding. *
    :param stats_window_size: episodes that ``rollout/ep_rew_mean`` is the mean of; SB3's other algorithms have it too
    :raises ValueError: for an option marked * with an environment that has no tensor interface, or an unknown noise
    """

    only_in_tensors = {**TensorOffPolicyAlgorithm.only_in_tensors, "per_env_noise": None, "shared_noise": False}
    algo = "ddpg"
    loss_names = ("critic_loss", "actor_loss")
    aliases = ("actor", "actor_target", "critic", "critic_target")

    def __init__(
        self,
        policy: Any,
        env: Any,
        *args: Any,
        per_env_noise: Optional[Sequence[float]] = None,
        shared_noise: bool = False,
        stats_window_size: int = 100,
        **kwargs: Any,
    ) -> None:
        self.per_env_noise = per_env_noise
        self.shared_noise = shared_noise
        super().__init__(policy, env, *args, **kwargs)
        self._stats_window_size = stats_window_size  # which SB3's DDPG does not pass on to its base class

    def _optimizers(self) -> List[th.optim.Optimizer]:
        return [self.actor.optimizer, self.critic.optimizer]

    def _why_not_fast_policy(self) -> Optional[str]:
        return FastTD3Policy.why_not(self.policy)

    def _make_fast_policy(self) -> FastTD3Policy:
        return FastTD3Policy(
            self.policy, n_envs=self.n_envs, batch_size=self.batch_size, compiled=self.compile, precision=self.precision
        )

    def _trained_nets(self) -> List[Any]:
        return [self.actor.mu, *self.critic.q_networks]

    # -- acting ------------------------------------------------------------------------------------------------------

    def _look_again(self, run: TensorRun) -> None:
        super()._look_again(run)
        settings = noise_settings(self.action_noise)
        if settings != run.exploration_settings:
            if run.exploration_settings is not None:
                before, new = run.exploration, self._make_exploration(run.updates.captures)
                if not (isinstance(before, DeviceNoise) and isinstance(new, DeviceNoise) and before.become(new)):
                    run.exploration = new
            run.exploration_settings = settings

    def _make_exploration(self, captures: bool) -> Any:
        noise = self.action_noise
        if noise is None and self.per_env_noise is None:
            return None
        if not DeviceNoise.supports(noise) and self.per_env_noise is None and not self.shared_noise:
            warnings.warn(
                f"action_noise of type {type(noise).__name__} is drawn in numpy, for one environment after the other. Faster: "
                "SB3's NormalActionNoise or OrnsteinUhlenbeckActionNoise, or the option per_env_noise.",
                stacklevel=6,
            )
            return HostNoise(cast(ActionNoise, noise), self.n_envs, self.device)
        scale = None
        if self.per_env_noise is not None:
            scale = spread("per_env_noise", self.per_env_noise, self.n_envs, self.device)
        return DeviceNoise(noise, self.n_envs, self._action_dim(), self.device, scale, self.shared_noise)

    def _action_dim(self) -> int:
        assert self.action_space.shape is not None
        return int(self.action_space.shape[0])

    @th.no_grad()
    def _act(self, obs: th.Tensor, random: bool) -> th.Tensor:
        """Actions (N, action_dim) in [-1, 1] for observations (N, *obs_shape)."""
        assert self._run is not None
        noise, fast = self._run.exploration, self._run.fast
        if random:
            actions = th.rand((len(obs), self._action_dim()), device=obs.device).mul_(2.0).sub_(1.0)
        else:
            actions = self.policy._predict(obs) if fast is None else fast.acting.forward(obs.flatten(1))
        return actions if noise is None else noise.add_to(actions)

    def _after_step(self, dones: th.Tensor) -> None:
        if self._run is not None and self._run.exploration is not None:
            self._run.exploration.reset(dones)

    # -- the update --------------------------------------------------------------------------------------------------

    def _constants(self) -> Tuple[Any, ...]:
        return self.tau, self.target_policy_noise, self.target_noise_clip

    def _may_capture_updates(self) -> bool:
        return self.policy_delay == 1

    def _loss_counts(self, before: int, after: int) -> Sequence[int]:
        return [after - before, after // self.policy_delay - before // self.policy_delay]

    def _update(self, samples: ReplaySamples, gradient_steps: int) -> None:
        assert self._run is not None
        step = self._autograd_step if self._run.fast is None else self._fast_step
        # What does not depend on the networks, for all minibatches at once
        discounts = (1.0 - samples.dones) * (self.gamma if samples.discounts is None else samples.discounts)
        rewards = samples.rewards if self.reward_scale == 1.0 else samples.rewards * self.reward_scale
        columns = (samples.observations, samples.actions, samples.next_observations, discounts, rewards)
        for rows in chunks(len(rewards), len(rewards) // gradient_steps):
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
        assert self._run is not None
        fast, losses = self._run.fast, self._run.log.loss_sums
        actor_lr, critic_lr = self._run.lrs
        obs = obs.flatten(1).float()  # as SB3 does with integers
        # --8<-- [start:step]
        next_values = fast.next_values(next_obs.flatten(1).float(), self._target_noise(actions))
        fast.critic_step(obs, actions, th.addcmul(rewards, discounts, next_values), critic_lr, losses[0])
        if self._n_updates % self.policy_delay == 0:
            fast.actor_step(obs, actor_lr, losses[1])
            fast.update_targets(self.tau)
        # --8<-- [end:step]

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
        ranks.mean_gradients(self.critic.parameters())
        self.critic.optimizer.step()
        losses[0].add_(critic_loss.detach())
        if self._n_updates % self.policy_delay == 0:
            actor_loss = -self.critic.q1_forward(obs, self.actor(obs)).mean()
            self.actor.optimizer.zero_grad()
            actor_loss.backward()  # type: ignore[no-untyped-call]
            ranks.mean_gradients(self.actor.parameters())
            self.actor.optimizer.step()
            losses[1].add_(actor_loss.detach())
            polyak_update(self.critic.parameters(), self.critic_target.parameters(), self.tau)
            polyak_update(self.actor.parameters(), self.actor_target.parameters(), self.tau)
            polyak_update(self.critic_batch_norm_stats, self.critic_batch_norm_stats_target, 1.0)
            polyak_update(self.actor_batch_norm_stats, self.actor_batch_norm_stats_target, 1.0)
