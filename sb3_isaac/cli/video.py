"""``sb3-isaac video``: what a trained agent looks like."""

from __future__ import annotations

import argparse
import os
from typing import List, Optional

from tqdm import tqdm  # type: ignore[import-untyped]

from sb3_isaac.envs.make import is_isaac_env_id
from sb3_isaac.envs.vec_env import MAX_RENDERED_ENVS
from sb3_isaac.evaluation.video import check_video_path, play_frames, write_video
from sb3_isaac.zoo.agents import add_agent_arguments, load_agent


def main(argv: Optional[List[str]] = None) -> int:
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
        frames = play_frames(agent.model, agent.env, args.n_timesteps, deterministic=not args.stochastic)
        # disable=None: no bar where the output is not a terminal
        write_video(outputs, tqdm(frames, total=args.n_timesteps, unit="frame", disable=None), fps)
    finally:
        agent.env.close()
    for path in outputs:
        print(f"Wrote {path}")
    return 0
