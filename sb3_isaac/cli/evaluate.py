"""``sb3-isaac evaluate``: what a trained agent is worth."""

from __future__ import annotations

import argparse
from typing import List, Optional

from sb3_isaac.envs.make import is_isaac_env_id
from sb3_isaac.evaluation.measure import evaluate
from sb3_isaac.zoo.agents import add_agent_arguments, load_agent

MAX_EVAL_ENVS = 1024
"""Environments that are used at most unless told otherwise."""


def main(argv: Optional[List[str]] = None) -> int:
    """Print a table about the returns of a trained agent. Errors are raised, see :mod:`sb3_isaac.zoo.agents`."""
    parser = argparse.ArgumentParser(prog="sb3-isaac evaluate", description="Measure the returns of a trained agent.")
    add_agent_arguments(parser)
    parser.add_argument("-n", "--n-episodes", help="number of episodes (default: 1000)", type=int, default=1000)
    parser.add_argument("-P", "--progress", action="store_true", help="display a progress bar")
    args = parser.parse_args(argv)
    # Other environments would be a process each.
    n_envs = max(min(args.n_episodes, MAX_EVAL_ENVS), 1) if is_isaac_env_id(args.env.gym_id) else 1
    agent = load_agent(args, n_envs)
    try:
        result = evaluate(
            agent.model, agent.env, args.n_episodes, deterministic=not args.stochastic, progress_bar=args.progress
        )
    finally:
        agent.env.close()
    low, high = result.confidence_interval
    rows = {
        "model": agent.path,
        "environment": f"{args.env.gym_id}, {agent.env.num_envs} at once",
        "policy": "stochastic" if args.stochastic else "deterministic",
        "episodes": f"{result.n_episodes}",
        "mean return": f"{result.mean:.2f} +/- {result.std:.2f}",
        "95% interval of the mean": f"{low:.2f} to {high:.2f}",
        "lowest, highest return": f"{result.returns.min():.2f}, {result.returns.max():.2f}",
        "mean length": f"{result.mean_length:.1f} steps",
        "failures": f"{result.failures}",
        "time-outs": f"{result.time_outs}",
        "seconds": f"{result.seconds:.2f}",
    }
    for label, value in rows.items():
        print(f"{label:26s}{value}")
    return 0
