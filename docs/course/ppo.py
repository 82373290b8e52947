"""PPO in plain PyTorch: the pseudocode of its chapter, with autograd.

python docs/course/ppo.py --seeds 10
"""

from __future__ import annotations

from typing import Any, Callable, NamedTuple

import torch as th
import trial
from torch import nn
from torch.distributions import Normal, kl_divergence

import sb3_isaac

ENV = "IsaacGymCartpole-v0"


def layer(n_in: int, n_out: int, gain: float = 2.0**0.5) -> nn.Linear:
    """Orthogonal weights and no biases at first."""
    linear = nn.Linear(n_in, n_out)
    nn.init.orthogonal_(linear.weight, gain)
    nn.init.zeros_(linear.bias)
    return linear


class Agent(nn.Module):
    """A policy (a network and the width of its noise) and a critic."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Sequential(layer(4, 32), nn.Tanh(), layer(32, 1, gain=0.01))
        self.log_std = nn.Parameter(th.zeros(1))
        self.critic = nn.Sequential(layer(4, 64), nn.Tanh(), layer(64, 64), nn.Tanh(), layer(64, 1, gain=1.0))

    def policy(self, obs: th.Tensor) -> Normal:
        """What the actions are drawn from: (..., 1) for observations (..., 4)."""
        return Normal(self.mean(obs), self.log_std.exp())

    def value(self, obs: th.Tensor) -> th.Tensor:
        """(...) for observations (..., 4)."""
        return self.critic(obs).squeeze(-1)


# --8<-- [start:rollout]
class Rollout(NamedTuple):
    """Of all environments, flat: n_steps * n_envs rows."""

    obs: th.Tensor
    action: th.Tensor
    log_prob: th.Tensor
    mean: th.Tensor
    """Of the policy that acted"""
    std: th.Tensor
    advantage: th.Tensor
    returns: th.Tensor


@th.no_grad()
def collect(agent: Agent, env: Any, obs: th.Tensor, n_steps: int, gamma: float, gae_lambda: float) -> Any:
    """The rollout, and the observation after it."""
    steps, rewards, values, ended = [], [], [], []
    for _ in range(n_steps):
        policy = agent.policy(obs)
        action = policy.sample()
        result = env.step_tensor(action)  # which clips the action to [-1, 1]
        after_limit = result.truncated * agent.value(result.final_obs)
        steps.append((obs.clone(), action, policy.log_prob(action), policy.mean, policy.stddev))
        rewards.append(result.reward + gamma * after_limit)
        values.append(agent.value(obs))
        ended.append((result.terminated | result.truncated).float())
        obs = result.obs
    next_value, total, advantages = agent.value(obs), th.zeros(len(obs)), []
    for reward, value, end in zip(reversed(rewards), reversed(values), reversed(ended)):
        td_error = reward + gamma * (1.0 - end) * next_value - value
        total = td_error + gamma * gae_lambda * (1.0 - end) * total
        advantages.append(total)
        next_value = value
    advantage = th.cat(advantages[::-1])
    return Rollout(*(th.cat(column) for column in zip(*steps)), advantage, advantage + th.cat(values)), obs


# --8<-- [end:rollout]


def learn(
    go_on: Callable[[int, trial.Act], bool],
    total_timesteps: int = 65_536,
    n_envs: int = 128,
    n_steps: int = 16,
    n_epochs: int = 8,
    n_minibatches: int = 1,
    learning_rate: float = 0.0036,
    adaptive_lr_kl: float = 0.01,
    gamma: float = 0.99,
    gae_lambda: float = 0.95,
    clip_range: float = 0.2,
    vf_coef: float = 1.0,
    ent_coef: float = 0.0,
    max_grad_norm: float = 1.0,
    seed: int = 0,
) -> None:
    """Train until ``go_on`` says no. The names are those of the pseudocode."""
    th.manual_seed(seed)
    # --8<-- [start:learn]
    env = sb3_isaac.VecNormalize(sb3_isaac.make_vec_env(ENV, n_envs, seed=seed, device="cpu"), gamma=gamma)
    agent, num_timesteps, obs = Agent(), 0, env.reset_tensor()

    def act(obs: th.Tensor) -> th.Tensor:
        return agent.policy(env.normalize_obs_tensor(obs)).mean

    optimizer = th.optim.Adam(agent.parameters(), lr=learning_rate)
    while num_timesteps < total_timesteps and go_on(num_timesteps, act):
        rollout, obs = collect(agent, env, obs, n_steps, gamma, gae_lambda)
        num_timesteps += n_steps * n_envs
        for _ in range(n_epochs):
            for rows in th.randperm(n_steps * n_envs).chunk(n_minibatches):
                batch = Rollout(*(column[rows] for column in rollout))
                policy = agent.policy(batch.obs)
                advantage = (batch.advantage - batch.advantage.mean()) / batch.advantage.std()
                ratio = (policy.log_prob(batch.action) - batch.log_prob).exp().squeeze(-1)
                clipped = ratio.clamp(1.0 - clip_range, 1.0 + clip_range)
                policy_loss = -th.min(ratio * advantage, clipped * advantage).mean()
                value_loss = (agent.value(batch.obs) - batch.returns).square().mean()
                loss = policy_loss + vf_coef * value_loss - ent_coef * policy.entropy().mean()
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(agent.parameters(), max_grad_norm)
                kl = kl_divergence(Normal(batch.mean, batch.std), policy).mean().item()
                if kl > 2.0 * adaptive_lr_kl:
                    learning_rate = max(1e-4, learning_rate / 1.5)
                elif 1e-6 < kl < 0.5 * adaptive_lr_kl:  # below: no step was taken yet
                    learning_rate = min(1e-2, learning_rate * 1.5)
                optimizer.param_groups[0]["lr"] = learning_rate
                optimizer.step()
    # --8<-- [end:learn]
    go_on(num_timesteps, act)
    env.close()


if __name__ == "__main__":
    trial.main(learn, ENV, __doc__)
