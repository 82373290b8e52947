"""Q-learning with a table: a cartpole cut into boxes, learned on a thousand cartpoles at once.

python docs/course/q_table.py --seeds 10
"""

from __future__ import annotations

import argparse
import statistics
from typing import List

import torch as th

import sb3_isaac

# --8<-- [start:boxes]
EDGES = (  # of x (m), x velocity (m/s), angle (rad), angular velocity (rad/s)
    th.tensor([-1.5, -0.5, 0.5, 1.5]),
    th.tensor([-1.0, -0.3, 0.3, 1.0]),
    th.tensor([-0.2, -0.1, -0.03, 0.0, 0.03, 0.1, 0.2]),
    th.tensor([-1.5, -0.6, -0.2, 0.2, 0.6, 1.5]),
)
SHAPE = [len(edges) + 1 for edges in EDGES]  # 5 x 5 x 8 x 7 = 1,400 boxes


def box(obs: th.Tensor) -> th.Tensor:
    """Number of the box that each observation (N, 4) lies in, (N,) int64."""
    number = th.zeros(len(obs), dtype=th.int64)
    for i, edges in enumerate(EDGES):
        number = number * SHAPE[i] + th.bucketize(obs[:, i].contiguous(), edges)
    return number


# --8<-- [end:boxes]


def learn(
    n_envs: int = 1024,
    n_steps: int = 600,
    gamma: float = 0.99,
    learning_rate: float = 0.1,
    seed: int = 0,
    time_limit_is_failure: bool = False,
) -> th.Tensor:
    """Returns the table Q (boxes, actions)."""
    th.manual_seed(seed)
    env = sb3_isaac.make_vec_env("IsaacGymCartpoleDiscrete-v0", n_envs, seed=seed, device="cpu")
    n_boxes, n_actions = int(th.tensor(SHAPE).prod()), int(env.action_space.n)
    q = th.zeros(n_boxes, n_actions)
    state = box(env.reset_tensor())
    env.spread_time_limits()
    for step in range(n_steps):
        # --8<-- [start:update]
        epsilon = max(0.05, 1.0 - step / (0.5 * n_steps))
        explore = th.rand(n_envs) < epsilon
        action = th.where(explore, th.randint(n_actions, (n_envs,)), q[state].argmax(1))
        result = env.step_tensor(action)

        over = result.terminated
        if time_limit_is_failure:
            over = over | result.truncated
        next_value = q[box(result.final_obs)].amax(1)  # of the true last observation
        target = result.reward + gamma * next_value * ~over
        td_error = target - q[state, action]

        # Many environments are in one box: it moves by their mean error.
        cell = state * n_actions + action
        mean_error = th.zeros(q.numel()).scatter_reduce(0, cell, td_error, "mean", include_self=False)
        q.view(-1).add_(mean_error, alpha=learning_rate * (1.0 - 0.95 * step / n_steps))
        state = box(result.obs)
        # --8<-- [end:update]
    env.close()
    return q


def evaluate(q: th.Tensor, n_envs: int = 256, seed: int = 1) -> th.Tensor:
    """Lengths of the first episode of each environment under the greedy policy, (n_envs,)."""
    env = sb3_isaac.make_vec_env("IsaacGymCartpoleDiscrete-v0", n_envs, seed=seed, device="cpu")
    state, length, running = box(env.reset_tensor()), th.zeros(n_envs), th.ones(n_envs, dtype=th.bool)
    while running.any():
        result = env.step_tensor(q[state].argmax(1))
        length += running
        running &= ~(result.terminated | result.truncated)
        state = box(result.obs)
    env.close()
    return length


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1, help="how many trainings")
    parser.add_argument("--n-envs", type=int, default=1024)
    parser.add_argument("--n-steps", type=int, default=600)
    parser.add_argument("--gamma", type=float, default=0.99)
    parser.add_argument("--learning-rate", type=float, default=0.1)
    parser.add_argument("--time-limit-is-failure", action="store_true", help="the mistake of detail 1")
    args = vars(parser.parse_args())
    means = []
    for seed in range(args.pop("seeds")):
        length = evaluate(learn(seed=seed, **args))
        means.append(length.mean().item())
        print(f"seed {seed}: {means[-1]:.0f} of 499 steps, {(length == 499).float().mean():.0%} to the time limit")
    print(f"mean {statistics.mean(means):.0f}" + (chance(means) if len(means) > 1 else ""))


def chance(means: List[float]) -> str:
    """Twice the standard error of the difference of two means of so many seeds: a smaller difference says nothing."""
    deviation = statistics.stdev(means)
    limit = 2.0 * deviation * (2.0 / len(means)) ** 0.5
    return f", standard deviation {deviation:.0f}: two such means differ by up to {limit:.0f} by chance"


if __name__ == "__main__":
    main()
