"""DDPG in plain PyTorch: the pseudocode of its chapter, with autograd.

python docs/course/ddpg.py --seeds 10
"""

from __future__ import annotations

import copy
from typing import Callable

import torch as th
import trial
from dqn import Buffer
from torch import nn

import sb3_isaac

ENV = "IsaacGymCartpole-v0"


# --8<-- [start:networks]
class Actor(nn.Module):
    """From observations (N, 4) to actions (N, 1) in [-1, 1]."""

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        layers = nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, 1), nn.Tanh()
        self.layers = nn.Sequential(*layers)

    def forward(self, obs: th.Tensor) -> th.Tensor:
        return self.layers(obs)


class Critic(nn.Module):
    """From observations (N, 4) and actions (N, 1) to values (N,)."""

    def __init__(self, hidden: int = 32) -> None:
        super().__init__()
        layers = nn.Linear(5, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, 1)
        self.layers = nn.Sequential(*layers)

    def forward(self, obs: th.Tensor, action: th.Tensor) -> th.Tensor:
        return self.layers(th.cat([obs, action], dim=1)).squeeze(1)


# --8<-- [end:networks]


def learn(
    go_on: Callable[[int, trial.Act], bool],
    total_timesteps: int = 49_152,
    n_envs: int = 128,
    learning_rate: float = 0.01,
    gamma: float = 0.99,
    n_steps: int = 12,
    buffer_size: int = 100_000,
    batch_size: int = 128,
    train_freq: int = 2,
    gradient_steps: int = 5,
    learning_starts: int = 1280,
    tau: float = 0.08,
    noise: float = 1.0,
    reward_scale: float = 0.3,
    seed: int = 0,
) -> None:
    """Train until ``go_on`` says no. The names are those of the pseudocode; ``noise`` is a factor, 0 for none."""
    th.manual_seed(seed)
    env = sb3_isaac.make_vec_env(ENV, n_envs, seed=seed, device="cpu")
    # --8<-- [start:learn]
    actor, critic = Actor(), Critic()
    target_actor, target_critic = copy.deepcopy(actor), copy.deepcopy(critic)
    actor_optimizer = th.optim.Adam(actor.parameters(), lr=learning_rate)
    critic_optimizer = th.optim.Adam(critic.parameters(), lr=learning_rate)
    std = noise * 1.5 * th.logspace(0, 1, n_envs, base=0.8 / 1.5).unsqueeze(1)  # of each environment's noise, 1.5 to 0.8
    obs = env.reset_tensor()
    buffer = Buffer(buffer_size, n_envs, action=th.zeros(n_envs, 1))

    num_timesteps = 0
    while num_timesteps < total_timesteps and go_on(num_timesteps, actor):
        for _ in range(train_freq):  # all environments at once
            if num_timesteps < learning_starts:
                action = 2.0 * th.rand(n_envs, 1) - 1.0
            else:
                action = (actor(obs).detach() + std * th.randn(n_envs, 1)).clamp(-1.0, 1.0)
            result = env.step_tensor(action)
            buffer.store(obs, action, result)
            obs, num_timesteps = result.obs, num_timesteps + n_envs
        if num_timesteps <= learning_starts:
            continue
        for optimizer in (actor_optimizer, critic_optimizer):
            optimizer.param_groups[0]["lr"] = learning_rate * (1.0 - num_timesteps / total_timesteps)
        for _ in range(gradient_steps):
            batch = buffer.draw(batch_size, n_steps, gamma)
            with th.no_grad():
                value = target_critic(batch.last_obs, target_actor(batch.last_obs))
                target = reward_scale * batch.rewards + batch.discount * ~batch.terminated * value
            critic_loss = (critic(batch.obs, batch.action) - target).square().mean()
            critic_optimizer.zero_grad()
            critic_loss.backward()
            critic_optimizer.step()

            actor_loss = -critic(batch.obs, actor(batch.obs)).mean()  # up, so the minus
            actor_optimizer.zero_grad()
            actor_loss.backward()  # through the critic, whose own gradient is thrown away before its next step
            actor_optimizer.step()

            for target, trained in ((target_critic, critic), (target_actor, actor)):
                for slow, fast in zip(target.parameters(), trained.parameters()):
                    slow.data.lerp_(fast.data, tau)
    # --8<-- [end:learn]
    go_on(num_timesteps, actor)
    env.close()


if __name__ == "__main__":
    trial.main(learn, ENV, __doc__)
