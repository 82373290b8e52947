"""Cartpoles that follow a rule which was written by hand: how long they stand, and what they earn.

python docs/course/rules.py --rule lean
"""

from __future__ import annotations

import argparse

import torch as th

import sb3_isaac

# --8<-- [start:rules]
RULES = {
    "none": lambda obs: th.zeros(len(obs)),
    "random": lambda obs: th.rand(len(obs)) * 2.0 - 1.0,
    "lean": lambda obs: -obs[:, 2].sign(),  # full force to where the pole leans: a positive angle is to the left
    "gentle": lambda obs: obs @ th.tensor([0.0, 0.0, -0.3, -0.05]),  # less of it, and against the fall
    "centre": lambda obs: obs @ th.tensor([0.02, 0.03, -0.3, -0.05]),  # and away from where the cart is too far out
}
# --8<-- [end:rules]


def play(rule: str, gamma: float, n_envs: int = 1024, seed: int = 0, **task: float) -> str:
    """One episode of each cartpole, in a line."""
    th.manual_seed(seed)
    env = sb3_isaac.make_vec_env("IsaacGymCartpole-v0", n_envs, seed=seed, device="cpu", **task)
    obs, running, failed = env.reset_tensor(), th.ones(n_envs, dtype=th.bool), th.zeros(n_envs, dtype=th.bool)
    length, total, discounted = th.zeros(n_envs), th.zeros(n_envs), th.zeros(n_envs)
    while running.any():
        result = env.step_tensor(RULES[rule](obs).unsqueeze(1))
        discounted += running * gamma**length * result.reward
        total += running * result.reward
        length += running
        failed |= running & result.terminated
        running &= ~(result.terminated | result.truncated)
        obs = result.obs
    env.close()
    numbers = f"{length.mean():.1f} steps, return {total.mean():.1f}, discounted {discounted.mean():.2f}"
    return f"{rule}: {numbers}, {failed.float().mean():.0%} failed"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rule", choices=list(RULES), default="none")
    parser.add_argument("--gamma", type=float, default=0.99)
    parser.add_argument("--gravity", type=float, default=9.81, help="m/s2")
    args = parser.parse_args()
    print(play(args.rule, args.gamma, gravity=args.gravity))


if __name__ == "__main__":
    main()
