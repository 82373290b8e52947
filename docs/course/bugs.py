"""Six faults of public cartpole code: a class as it stood with the fault in it, and below it the right one.

Everything else is the package's. find_the_bug.py trains with the one and with the other.
"""

from __future__ import annotations

from typing import Any, List

import torch as th
from stable_baselines3.common.callbacks import BaseCallback

import sb3_isaac
from sb3_isaac.backends.base import StepResult
from sb3_isaac.backends.cartpole import reward_and_termination
from sb3_isaac.backends.physics import integrate
from sb3_isaac.backends.torch_cartpole import TorchCartpole
from sb3_isaac.ppo.rollout import Rollout


# --8<-- [start:time_limits]
class CartpoleOfOldGym(TorchCartpole):
    """Steps as Gym had them for years: one flag, done, says that the episode is over."""

    def step(self, actions: th.Tensor) -> StepResult:
        result = super().step(actions)
        done = result.terminated | result.truncated
        return result._replace(terminated=done, truncated=th.zeros_like(done))
        # --8<-- [end:time_limits]


# --8<-- [start:gae_across_ends]
def gae(
    rewards: th.Tensor, values: th.Tensor, last_values: th.Tensor, dones: th.Tensor, gamma: float, gae_lambda: float
) -> th.Tensor:
    """Advantages (n_steps, N) of a rollout. last_values (N,): of the observations after it. dones (n_steps, N)."""
    next_values = th.cat((values[1:], last_values.unsqueeze(0)))
    advantages, advantage = th.zeros_like(rewards), th.zeros_like(last_values)
    for step in reversed(range(len(rewards))):
        delta = rewards[step] + gamma * next_values[step] - values[step]
        advantage = delta + gamma * gae_lambda * advantage
        advantages[step] = advantage
    return advantages
    # --8<-- [end:gae_across_ends]


# --8<-- [start:right_gae]
def right_gae(
    rewards: th.Tensor, values: th.Tensor, last_values: th.Tensor, dones: th.Tensor, gamma: float, gae_lambda: float
) -> th.Tensor:
    next_values = th.cat((values[1:], last_values.unsqueeze(0)))
    advantages, advantage = th.zeros_like(rewards), th.zeros_like(last_values)
    for step in reversed(range(len(rewards))):
        not_done = 1.0 - dones[step]
        delta = rewards[step] + gamma * not_done * next_values[step] - values[step]
        advantage = delta + gamma * gae_lambda * not_done * advantage
        advantages[step] = advantage
    return advantages
    # --8<-- [end:right_gae]


class PPOWithOwnGae(sb3_isaac.PPO):
    """The package's PPO with the advantages of a function of this file."""

    advantages_of: Any = staticmethod(right_gae)

    def _end_rollout(self, rollout: Rollout) -> Any:
        last_values = super()._end_rollout(rollout)
        if last_values is not None:
            t = self.rollout_buffer.tensors
            last_dones = th.as_tensor(self._last_episode_starts, dtype=th.float32).unsqueeze(0)
            dones = th.cat((t.episode_starts[1:], last_dones))
            t.advantages.copy_(
                self.advantages_of(t.rewards, t.values, last_values.flatten(), dones, self.gamma, self.gae_lambda)
            )
            t.returns.copy_(t.advantages + t.values)
        return last_values


class PPOWithFaultyGae(PPOWithOwnGae):
    advantages_of = staticmethod(gae)


# --8<-- [start:log_prob]
class RolloutWithClipping(Rollout):
    """A step is: actions, values, log_probs = policy(obs); env.step(_for_env(actions)); then observations, actions, rewards,
    values and log_probs go into the buffer."""

    def _for_env(self, actions: th.Tensor) -> th.Tensor:
        return actions.clamp_(-1.0, 1.0)  # a force is a number from -1 to 1
        # --8<-- [end:log_prob]


class PPOWithClipping(sb3_isaac.PPO):
    """The package's PPO with the rollout above."""

    def collect_rollouts(self, env: Any, callback: BaseCallback, rollout_buffer: Any, n_rollout_steps: int) -> bool:
        if self._run.rollout is None:
            self._run.rollout = RolloutWithClipping(env, self.policy, rollout_buffer)
        return super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)


# --8<-- [start:shared_noise]
class Noise:
    """Gaussian noise on actions (N, action_dim)."""

    std = 0.5

    def add_to(self, actions: th.Tensor) -> th.Tensor:
        noise = self.std * th.randn(actions.shape[1])
        return (actions + noise).clamp(-1.0, 1.0)
        # --8<-- [end:shared_noise]

    def reset(self, dones: th.Tensor) -> None:
        """It has no memory."""


class RightNoise(Noise):
    # --8<-- [start:right_noise]
    def add_to(self, actions: th.Tensor) -> th.Tensor:
        noise = self.std * th.randn(actions.shape)
        # --8<-- [end:right_noise]
        return (actions + noise).clamp(-1.0, 1.0)


class DDPGWithOwnNoise(sb3_isaac.DDPG):
    """The package's DDPG with a noise of this file."""

    noise_class = RightNoise

    def _make_exploration(self, captures: bool) -> Noise:
        return self.noise_class()


class DDPGWithFaultyNoise(DDPGWithOwnNoise):
    noise_class = Noise


# --8<-- [start:replayed_rewards]
class Curve(BaseCallback):
    """Keeps a point of the learning curve for each step."""

    def __init__(self) -> None:
        super().__init__()
        self.points: List[float] = []

    def _on_step(self) -> bool:
        buffer = self.model.replay_buffer
        if buffer.size() > 0:
            rewards = buffer.rewards[: buffer.size()].reshape(-1)
            self.points.append(rewards[buffer.draw(256)].mean().item())
        return True
        # --8<-- [end:replayed_rewards]


class RightCurve(Curve):
    # --8<-- [start:right_curve]
    def _on_step(self) -> bool:
        env = self.training_env
        self.points += env.episode_returns[env.dones].tolist()  # of the episodes that have just ended
        # --8<-- [end:right_curve]
        return True


# --8<-- [start:late_reset]
class CartpoleOfIsaacGymEnvs(TorchCartpole):
    """The order of IsaacGymEnvs' tasks: forces, physics, reset of what was done, observations, rewards."""

    def reset(self) -> th.Tensor:
        self.reset_buf = th.zeros(self.n_envs, dtype=th.bool)
        return super().reset()

    def step(self, actions: th.Tensor) -> StepResult:
        actions = actions.clamp(-1.0, 1.0)
        force = actions[:, 0] * self.task.max_effort
        obs = integrate(self.dof_state, force, self.task.dt, self.task.substeps, self.task)
        self.progress += 1
        starts = (self._uniform() - 0.5) * self.reset_width
        obs = th.where(self.reset_buf.unsqueeze(1), starts, obs)
        self.progress.masked_fill_(self.reset_buf, 0)
        self.dof_state.copy_(obs)
        reward, terminated, truncated = reward_and_termination(obs, self.progress, actions, self.task)
        self.reset_buf = terminated | truncated
        return StepResult(obs, reward, terminated, truncated, final_obs=obs)
        # --8<-- [end:late_reset]
