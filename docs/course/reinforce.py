"""REINFORCE on a thousand cartpoles, then with a baseline, then with generalised advantage estimation.

python docs/course/reinforce.py
"""

from __future__ import annotations

import argparse
from typing import Dict, NamedTuple

import torch as th
from torch import nn
from torch.distributions import Normal

import sb3_isaac

STAGES = {"returns": "REINFORCE", "baseline": "with a baseline", "gae": "with GAE"}
REWARD_SCALE = 0.02
"""Values then are about 1, which networks learn easily."""


class Rollout(NamedTuple):
    """What all environments did, time first."""

    obs: th.Tensor
    """(n_steps, N, 4)"""
    actions: th.Tensor
    """(n_steps, N, 1)"""
    rewards: th.Tensor
    """(n_steps, N), scaled"""
    not_done: th.Tensor
    """(n_steps, N), 0 where the step ended an episode"""
    last_obs: th.Tensor
    """(N, 4), after the last step"""


class Agent(nn.Module):
    """A policy (a network and the width of its noise) and a critic."""

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        self.policy, self.critic = (nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, 1)) for _ in range(2))
        self.log_std = nn.Parameter(th.zeros(1))

    def distribution(self, obs: th.Tensor) -> Normal:
        """What the actions are drawn from: (..., 1) for observations (..., 4)."""
        return Normal(self.policy(obs), self.log_std.exp())

    def values(self, obs: th.Tensor) -> th.Tensor:
        """(...) for observations (..., 4)."""
        return self.critic(obs).squeeze(-1)


@th.no_grad()
def play(agent: Agent, env: sb3_isaac.IsaacVecEnv, n_steps: int) -> Rollout:
    """Reset all environments and take ``n_steps`` steps of each; whoever fails begins again."""
    obs, steps = env.reset_tensor(), []
    for _ in range(n_steps):
        action = agent.distribution(obs).sample()
        result = env.step_tensor(action)  # which clips the action to [-1, 1]
        steps.append((obs.clone(), action, result.reward * REWARD_SCALE, (~result.terminated).float()))
        obs = result.obs
    return Rollout(*(th.stack(column) for column in zip(*steps)), obs.clone())


# --8<-- [start:estimate]
@th.no_grad()
def estimate(agent: Agent, rollout: Rollout, stage: str, gamma: float = 0.99, gae_lambda: float = 0.95) -> th.Tensor:
    """How good each action was, (n_steps, N)."""
    values, last_values = agent.values(rollout.obs), agent.values(rollout.last_obs)
    if stage == "returns":
        values, last_values = th.zeros_like(values), th.zeros_like(last_values)
    if stage != "gae":
        gae_lambda = 1.0
    next_values = th.cat([values[1:], last_values.unsqueeze(0)])
    td_error = rollout.rewards + gamma * rollout.not_done * next_values - values
    advantages, total = th.zeros_like(td_error), th.zeros_like(last_values)
    for step in reversed(range(len(td_error))):
        total = td_error[step] + gamma * gae_lambda * rollout.not_done[step] * total
        advantages[step] = total
    return advantages


# --8<-- [end:estimate]


# --8<-- [start:loss]
def policy_loss(agent: Agent, obs: th.Tensor, actions: th.Tensor, advantages: th.Tensor) -> th.Tensor:
    """Its gradient is the policy gradient, with the sign that an optimizer wants."""
    log_prob = agent.distribution(obs).log_prob(actions).squeeze(-1)
    return -(advantages * log_prob).mean()


# --8<-- [end:loss]


def learn(
    stage: str,
    n_envs: int = 1024,
    n_steps: int = 64,
    n_updates: int = 40,
    gamma: float = 0.99,
    gae_lambda: float = 0.95,
    learning_rate: float = 0.05,
    critic_learning_rate: float = 0.02,
    n_minibatches: int = 16,
    seed: int = 0,
) -> Agent:
    """Train with one of STAGES. ``n_minibatches`` are the critic's."""
    if not 1 <= n_steps < 499:
        raise ValueError(f"n_steps={n_steps}: the program knows no time limits, so rollouts have 1 to 498 steps.")
    th.manual_seed(seed)
    agent = Agent()
    env = sb3_isaac.make_vec_env("IsaacGymCartpole-v0", n_envs, seed=seed, device="cpu")
    policy_optimizer = th.optim.Adam([*agent.policy.parameters(), agent.log_std], lr=learning_rate)
    critic_optimizer = th.optim.Adam(agent.critic.parameters(), lr=critic_learning_rate)
    for _ in range(n_updates):
        # --8<-- [start:update]
        rollout = play(agent, env, n_steps)
        advantages = estimate(agent, rollout, stage, gamma, gae_lambda)
        policy_optimizer.zero_grad()
        policy_loss(agent, rollout.obs, rollout.actions, advantages).backward()
        policy_optimizer.step()  # once: the rollout is of the old policy now
        if stage == "returns":
            continue
        returns = (advantages + agent.values(rollout.obs)).detach().flatten()
        obs = rollout.obs.flatten(0, 1)
        for rows in th.randperm(len(returns)).chunk(n_minibatches):
            critic_optimizer.zero_grad()
            (agent.values(obs[rows]) - returns[rows]).square().mean().backward()
            critic_optimizer.step()
        # --8<-- [end:update]
    env.close()
    return agent


@th.no_grad()
def evaluate(agent: Agent, n_envs: int = 256, seed: int = 1) -> th.Tensor:
    """Lengths of the first episode of each environment without noise, (n_envs,)."""
    env = sb3_isaac.make_vec_env("IsaacGymCartpole-v0", n_envs, seed=seed, device="cpu")
    obs, length, running = env.reset_tensor(), th.zeros(n_envs), th.ones(n_envs, dtype=th.bool)
    while running.any():
        result = env.step_tensor(agent.policy(obs))
        length += running
        running &= ~(result.terminated | result.truncated)
        obs = result.obs
    env.close()
    return length


# --8<-- [start:noise]
def noise(agent: Agent, n_groups: int = 64, size: int = 16, n_steps: int = 64, seed: int = 2) -> Dict[str, float]:
    """How far the gradients of groups of environments lie from their mean, in lengths of that mean, for each stage."""
    th.manual_seed(seed)
    env = sb3_isaac.make_vec_env("IsaacGymCartpole-v0", n_groups * size, seed=seed, device="cpu")
    rollout, found = play(agent, env, n_steps), {}
    for stage in STAGES:
        advantages, gradients = estimate(agent, rollout, stage), []
        for envs in th.arange(n_groups * size).chunk(n_groups):
            loss = policy_loss(agent, rollout.obs[:, envs], rollout.actions[:, envs], advantages[:, envs])
            gradients.append(nn.utils.parameters_to_vector(th.autograd.grad(loss, list(agent.policy.parameters()))))
        mean = th.stack(gradients).mean(0)
        found[stage] = float((th.stack(gradients) - mean).norm(dim=1).mean() / mean.norm())
    env.close()
    return found


# --8<-- [end:noise]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for stage, name in STAGES.items():
        parser.add_argument(f"--{stage}", action="store_true", help=f"only {name}; without any such flag: all")
    parser.add_argument("--seeds", type=int, default=1, help="how many trainings")
    parser.add_argument("--n-envs", type=int, default=1024)
    parser.add_argument("--n-steps", type=int, default=64)
    parser.add_argument("--n-updates", type=int, default=40)
    parser.add_argument("--gamma", type=float, default=0.99)
    parser.add_argument("--gae-lambda", type=float, default=0.95)
    parser.add_argument("--learning-rate", type=float, default=0.05)
    args = vars(parser.parse_args())
    th.set_num_threads(1)  # the operations are too small to be shared out
    asked_for = [stage for stage in STAGES if args.pop(stage)]
    seeds, noises = range(args.pop("seeds")), []
    for stage in asked_for or STAGES:
        means = [float(evaluate(learn(stage, seed=seed, **args)).mean()) for seed in seeds]
        mean = sum(means) / len(means)
        print(f"{STAGES[stage]:16s} {mean:4.0f} of 499 steps (mean of {len(means)}; {min(means):.0f} to {max(means):.0f})")
    for seed in seeds:
        half_trained = learn("baseline", seed=seed, **{**args, "n_updates": args["n_updates"] // 4})
        noises.append(noise(half_trained))
    print("Noise of the gradient of 16 environments, in lengths of the gradient:")
    for stage, name in STAGES.items():
        print(f"{name:16s} {sum(each[stage] for each in noises) / len(noises):4.1f}")


if __name__ == "__main__":
    main()
