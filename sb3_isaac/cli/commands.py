"""``sb3-isaac evaluate``, ``video`` and ``record_video``: what a trained agent is worth, and what it looks like."""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from typing import List, Optional

from tqdm import tqdm  # type: ignore[import-untyped]

from sb3_isaac.envs.make import is_isaac_env_id
from sb3_isaac.envs.vec_env import MAX_RENDERED_ENVS
from sb3_isaac.evaluation.measure import evaluate
from sb3_isaac.evaluation.video import check_video_path, play_frames, write_video
from sb3_isaac.zoo.agents import add_agent_arguments, load_agent

MAX_EVAL_ENVS = 1024
"""Environments that ``evaluate`` uses at most unless told otherwise."""


def evaluate_main(argv: Optional[List[str]] = None) -> int:
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
        result = evaluate(agent.model, agent.env, args.n_episodes, not args.stochastic, args.progress)
    finally:
        agent.env.close()
    low, high = result.confidence_interval
    rows = [
        ("model", agent.path),
        ("environment", f"{args.env.gym_id}, {agent.env.num_envs} at once"),
        ("policy", "stochastic" if args.stochastic else "deterministic"),
        ("episodes", f"{result.n_episodes}"),
        ("mean return", f"{result.mean:.2f} +/- {result.std:.2f}"),
        ("95% interval of the mean", f"{low:.2f} to {high:.2f}"),
        ("lowest, highest return", f"{result.returns.min():.2f}, {result.returns.max():.2f}"),
        ("mean length", f"{result.mean_length:.1f} steps"),
        ("failures", f"{result.failures}"),
        ("time-outs", f"{result.time_outs}"),
        ("seconds", f"{result.seconds:.2f}"),
    ]
    for label, value in rows:
        print(f"{label:26s}{value}")
    return 0


def video_main(argv: Optional[List[str]] = None) -> int:
    """Write videos of a trained agent. Errors are raised, see :mod:`sb3_isaac.zoo.agents`."""
    parser = argparse.ArgumentParser(prog="sb3-isaac video", description="Write a video of a trained agent.")
    add_agent_arguments(parser)
    parser.add_argument("-n", "--n-timesteps", help="timesteps, a frame each (default: 300)", type=int, default=300)
    parser.add_argument(
        "-o", "--output", nargs="+", help="files ending in .mp4 or .gif (default: one of each in the folder videos of the run)"
    )
    args = parser.parse_args(argv)
    if args.n_timesteps < 1:
        raise ValueError(f"--n-timesteps must be at least 1, got {args.n_timesteps}.")
    for path in args.output or ["any.mp4"]:
        check_video_path(path)
    agent = load_agent(args, MAX_RENDERED_ENVS if is_isaac_env_id(args.env.gym_id) else 1, render_mode="rgb_array")
    outputs = args.output or [os.path.join(agent.folder, "videos", agent.name + suffix) for suffix in (".mp4", ".gif")]
    fps = int(agent.env.get_attr("metadata")[0].get("render_fps", 30))
    try:
        frames = play_frames(agent.model, agent.env, args.n_timesteps, not args.stochastic)
        # disable=None: no bar where the output is not a terminal
        write_video(outputs, tqdm(frames, total=args.n_timesteps, unit="frame", disable=None), fps)
    finally:
        agent.env.close()
    for path in outputs:
        print(f"Wrote {path}")
    return 0


def record_video_main(argv: Optional[List[str]] = None) -> int:
    """rl_zoo3's own record_video, with its flags. It has no ``--gym-packages``, and so cannot find our environments alone."""
    sys.argv = ["sb3-isaac record_video", *(sys.argv[1:] if argv is None else argv)]
    runpy.run_module("rl_zoo3.record_video", run_name="__main__")
    return 0
