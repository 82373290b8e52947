"""Draw the pictures of README.md from log folders.

    for algo in ppo dqn ddpg: for seed in 1 2 3 4 5:
        sb3-isaac train --algo ALGO --env IsaacGymCartpole[Discrete]-v0 --seed SEED -f logs          (seconds each)
        sb3-isaac train --algo ALGO --env IsaacGymCartpoleSeed[Discrete]-v0 --seed SEED -f logs      (long: use a GPU)
    python scripts/plot_readme.py --folder logs

Writes into docs/images: trained.png (a trained PPO policy and its learning curve), learning_curves.png (all three
algorithms), isaac_gym_overlay.png (our runs with the settings of public runs on real Isaac Gym, and those runs). A picture
whose logs are missing is left out, with a message.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Dict, List

import sb3_isaac.zoo  # noqa: F401  # registers what rl_zoo3 needs to know
from sb3_isaac.evaluation import curves
from sb3_isaac.evaluation.callbacks import FILE_NAME
from sb3_isaac.evaluation.video import play_frames
from sb3_isaac.zoo.agents import add_agent_arguments, load_agent

ROOT = Path(__file__).resolve().parents[1]
SOLVED_RETURN = 475
COLORS = {"ppo": "tab:blue", "dqn": "tab:orange", "ddpg": "tab:green"}
FILM_STEPS = (1, 6, 20, 150)


def env_of(algo: str, kind: str = "") -> str:
    return f"IsaacGymCartpole{kind}{'Discrete' if algo == 'dqn' else ''}-v0"


def draw_trained(pyplot: Any, folder: str) -> Any:
    """Four moments of one episode under a trained PPO policy, and how it got there."""
    parser = argparse.ArgumentParser()
    add_agent_arguments(parser)
    flags = parser.parse_args(["--algo", "ppo", "--env", env_of("ppo"), "-f", folder, "--device", "cpu", "--load-best"])
    agent = load_agent(flags, n_envs=1, render_mode="rgb_array")
    film = [frame for i, frame in enumerate(play_frames(agent.model, agent.env, FILM_STEPS[-1]), 1) if i in FILM_STEPS]
    agent.env.close()
    figure = pyplot.figure(figsize=(9.6, 2.9), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.5, 1.0))
    for axes, frame in zip(left.subplots(2, 2).flat, film):
        axes.imshow(frame)
        axes.axis("off")
    axes = right.subplots()
    draw_evaluations(axes, folder, "ppo")
    curves.style(axes, "environment steps", "return (evaluation)")
    return figure


def draw_evaluations(axes: Any, folder: str, algo: str) -> None:
    runs = curves.find_runs(folder, algo, env_of(algo))
    curves.draw(axes, [curves.evaluation_curve(run) for run in runs], algo.upper(), COLORS[algo])


def draw_learning_curves(pyplot: Any, folder: str) -> Any:
    """Evaluations of all three algorithms."""
    figure, axes = pyplot.subplots(figsize=(6.4, 3.8), layout="constrained")
    axes.axhline(SOLVED_RETURN, color="0.6", linewidth=1, linestyle=":")
    for algo in COLORS:
        draw_evaluations(axes, folder, algo)
    curves.style(axes, "environment steps", "return (evaluation)")
    return figure


def draw_overlay(pyplot: Any, folder: str) -> Any:
    """Mean reward per step of our Seed entries, and of the public runs on real Isaac Gym with the same settings."""
    figure, all_axes = pyplot.subplots(1, 3, figsize=(10.0, 3.4), sharey=True, layout="constrained")
    for axes, algo in zip(all_axes, COLORS):
        runs = curves.find_runs(folder, algo, env_of(algo, "Seed"))
        ours = [curves.reward_rate_curve(str(Path(run, FILE_NAME))) for run in runs]
        curves.draw(axes, ours, "embedded simulator", COLORS[algo])
        x, y = curves.reward_rate_curve(str(ROOT / "tests" / "data" / f"seed_curve_{algo}.csv"))
        axes.plot(x, y, color="0.2", linestyle="--", linewidth=1.3, label="Isaac Gym, public run")
        curves.style(axes, "environment steps", "mean reward per step" if algo == "ppo" else "", algo.upper())
    return figure


PICTURES: Dict[str, Any] = {
    "trained.png": draw_trained,
    "learning_curves.png": draw_learning_curves,
    "isaac_gym_overlay.png": draw_overlay,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-f", "--folder", default="logs", help="log folder (default: logs)")
    parser.add_argument("-o", "--output", default=str(ROOT / "docs" / "images"), help="default: docs/images")
    parser.add_argument("--only", nargs="+", choices=list(PICTURES), default=list(PICTURES), help="draw these only")
    args = parser.parse_args()
    pyplot = curves.import_pyplot()
    pyplot.rcParams.update({"font.size": 9, "savefig.facecolor": "white"})
    missing: List[str] = []
    for name in args.only:
        try:
            figure = PICTURES[name](pyplot, args.folder)
        except (FileNotFoundError, ValueError, AssertionError) as error:
            missing.append(name)
            print(f"{name} left out: {error}", file=sys.stderr)
            continue
        path = Path(args.output) / name
        curves.save_figure(figure, str(path))
        pyplot.close(figure)
        print(f"Wrote {path} ({path.stat().st_size / 1000:.0f} kB)")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
