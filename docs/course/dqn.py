"""DQN in plain PyTorch: the pseudocode of its chapter, with autograd.

python docs/course/dqn.py --seeds 10
"""

from __future__ import annotations

import copy
from typing import Any, Callable, NamedTuple

import torch as th
import trial
from torch import nn

import sb3_isaac

ENV = "IsaacGymCartpoleDiscrete-v0"


class Scale(nn.Module):
    """Makes each of the four numbers of an observation about as large as 1."""

    def forward(self, obs: th.Tensor) -> th.Tensor:
        return obs * obs.new_tensor([1.0, 0.3, 3.0, 0.3])


# --8<-- [start:buffer]
class Batch(NamedTuple):
    """Rows of the buffer, each with up to n rewards."""

    obs: th.Tensor
    action: th.Tensor
    rewards: th.Tensor
    """Their discounted sum"""
    discount: th.Tensor
    """Of what follows: gamma to the power of how many rewards there are"""
    last_obs: th.Tensor
    terminated: th.Tensor


class Buffer:
    """The last ``buffer_size`` transitions, time first. DDPG has the same."""

    def __init__(self, buffer_size: int, n_envs: int, action: th.Tensor) -> None:
        shape = (buffer_size // n_envs, n_envs)
        self.obs, self.final_obs, self.reward = th.zeros(*shape, 4), th.zeros(*shape, 4), th.zeros(shape)
        self.action = th.zeros(*shape, *action.shape[1:], dtype=action.dtype)
        self.terminated, self.ended = th.zeros(shape, dtype=th.bool), th.zeros(shape, dtype=th.bool)
        self.n_stored = 0

    def store(self, obs: th.Tensor, action: th.Tensor, result: Any) -> None:
        """A step of all environments. The oldest one is overwritten."""
        at = self.n_stored % len(self.obs)
        self.obs[at], self.action[at], self.reward[at], self.final_obs[at] = obs, action, result.reward, result.final_obs
        self.terminated[at], self.ended[at] = result.terminated, result.terminated | result.truncated
        self.n_stored += 1

    def draw(self, batch_size: int, n_steps: int, gamma: float) -> Batch:
        """Transitions at random, with the rewards of ``n_steps`` steps, or fewer where the episode ends."""
        size, n_envs = self.reward.shape
        start = th.randint(max(0, self.n_stored - size), self.n_stored - n_steps + 1, (batch_size, 1))
        step, env = (start + th.arange(n_steps)) % size, th.randint(n_envs, (batch_size, 1))  # (batch_size, n_steps), (.., 1)
        ended = self.ended[step, env].int()
        counts = ended.cumsum(1) - ended == 0  # no episode has ended before this step
        rewards = (self.reward[step, env] * gamma ** th.arange(n_steps) * counts).sum(1)
        n, env = counts.sum(1), env[:, 0]
        first, last = step[:, 0], step.gather(1, n.unsqueeze(1) - 1)[:, 0]
        last_obs, terminated = self.final_obs[last, env], self.terminated[last, env]
        return Batch(self.obs[first, env], self.action[first, env], rewards, gamma**n, last_obs, terminated)


# --8<-- [end:buffer]


def learn(
    go_on: Callable[[int, trial.Act], bool],
    total_timesteps: int = 49_152,
    n_envs: int = 64,
    learning_rate: float = 0.0021,
    gamma: float = 0.99,
    n_steps: int = 11,
    buffer_size: int = 50_000,
    batch_size: int = 256,
    train_freq: int = 2,
    gradient_steps: int = 3,
    learning_starts: int = 1280,
    tau: float = 0.034,
    reward_scale: float = 0.2,
    max_grad_norm: float = 10.0,
    seed: int = 0,
) -> None:
    """Train until ``go_on`` says no. The names are those of the pseudocode."""
    th.manual_seed(seed)
    # --8<-- [start:learn]
    env = sb3_isaac.make_vec_env(ENV, n_envs, seed=seed, device="cpu")
    q_net = nn.Sequential(Scale(), nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
    target_net = copy.deepcopy(q_net).requires_grad_(False)
    optimizer = th.optim.Adam(q_net.parameters(), lr=learning_rate)
    epsilon = th.logspace(0, 1, n_envs, base=0.01 / 0.6) * 0.6  # of each environment, from 0.6 to 0.01
    obs = env.reset_tensor()
    buffer = Buffer(buffer_size, n_envs, action=th.zeros(n_envs, dtype=th.int64))

    def act(obs: th.Tensor) -> th.Tensor:
        return q_net(obs).argmax(1)

    num_timesteps = 0
    while num_timesteps < total_timesteps and go_on(num_timesteps, act):
        for _ in range(train_freq):  # all environments at once
            explore = (th.rand(n_envs) < epsilon) | (num_timesteps < learning_starts)
            action = th.where(explore, th.randint(3, (n_envs,)), act(obs))
            result = env.step_tensor(action)
            buffer.store(obs, action, result)
            obs, num_timesteps = result.obs, num_timesteps + n_envs
            for target, trained in zip(target_net.parameters(), q_net.parameters()):
                target.lerp_(trained.detach(), tau)
        if num_timesteps <= learning_starts:
            continue
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * (1.0 - num_timesteps / total_timesteps)
        for _ in range(gradient_steps):
            batch = buffer.draw(batch_size, n_steps, gamma)
            with th.no_grad():
                best = q_net(batch.last_obs).argmax(1, keepdim=True)
                value = target_net(batch.last_obs).gather(1, best).squeeze(1)
                target = reward_scale * batch.rewards + batch.discount * ~batch.terminated * value
            q = q_net(batch.obs).gather(1, batch.action.unsqueeze(1)).squeeze(1)
            loss = nn.functional.smooth_l1_loss(q, target)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(q_net.parameters(), max_grad_norm)
            optimizer.step()
    # --8<-- [end:learn]
    go_on(num_timesteps, act)
    env.close()


if __name__ == "__main__":
    trial.main(learn, ENV, __doc__)
