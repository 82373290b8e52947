"""Draw the pictures of README.md from log folders.

    sb3-isaac compare --seeds 5 -f logs                                                              (seconds each)
    for algo in ppo dqn ddpg: for seed in 1 2 3:
        sb3-isaac train --algo ALGO --env IsaacGymCartpoleSeed[Discrete]-v0 --seed SEED -f logs      (long: use a GPU)
    python scripts/plot_readme.py --folder logs

Writes into docs/images: trained.png (a trained PPO policy beside an untrained one, and its learning curve),
learning_curves.png (all three algorithms), isaac_gym_overlay.png (our runs with the settings of public runs on real Isaac
Gym, and those runs). A picture whose logs are missing is left out, with a message.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, Dict, List

import sb3_isaac.zoo  # noqa: F401  # registers what rl_zoo3 needs to know
from sb3_isaac.envs.ids import REWARD_THRESHOLD
from sb3_isaac.evaluation import curves
from sb3_isaac.evaluation.callbacks import FILE_NAME
from sb3_isaac.evaluation.film import CartpoleFilm, Tiles
from sb3_isaac.evaluation.video import play_frames
from sb3_isaac.zoo.agents import add_agent_arguments, load_agent

ROOT = Path(__file__).resolve().parents[1]
COLORS = {"ppo": "tab:blue", "dqn": "tab:orange", "ddpg": "tab:green"}
FILM_STEPS = {10: "start", 128: "after a push", 200: "later"}
"""Which moments of the film are shown, by step. Poles are pushed at step 120."""


def env_of(algo: str, kind: str = "") -> str:
    return f"IsaacGymCartpole{kind}{'Discrete' if algo == 'dqn' else ''}-v0"


def draw_trained(pyplot: Any, folder: str) -> Any:
    """Moments of one episode under a trained PPO policy, the same without training, and how it got there."""
    parser = argparse.ArgumentParser()
    add_agent_arguments(parser)
    flags = parser.parse_args(["--algo", "ppo", "--env", env_of("ppo"), "-f", folder, "--device", "cpu", "--load-best"])
    agent = load_agent(flags, n_envs=2)
    film = CartpoleFilm(agent.env, n_untrained=1, push_every=2.0)
    moments: Dict[int, Tiles] = {}
    for step, _ in enumerate(play_frames(agent.model, agent.env, max(FILM_STEPS), film=film), 1):
        if step in FILM_STEPS:
            moments[step] = film.tiles()
    agent.env.close()
    figure = pyplot.figure(figsize=(11.0, 3.3), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1.7, 1.0))
    grid = left.add_gridspec(3, len(FILM_STEPS), height_ratios=(1.0, 1.0, 0.16))
    for row, label in enumerate(("trained PPO", "untrained:\nrandom actions")):
        for column, (step, title) in enumerate(FILM_STEPS.items()):
            axes = left.add_subplot(grid[row, column])
            axes.imshow(moments[step][row][0])
            axes.set(xticks=[], yticks=[], ylabel=label if column == 0 else "", title=title if row == 0 else "")
            for spine in axes.spines.values():
                spine.set_visible(False)
    axes = left.add_subplot(grid[2, :])
    axes.imshow(film.key(width=760))
    axes.axis("off")
    axes = right.subplots()
    draw_evaluations(axes, folder, "ppo")
    curves.draw_solved(axes, [REWARD_THRESHOLD])
    curves.style(axes, "environment steps", "return (evaluation)")
    return figure


def draw_evaluations(axes: Any, folder: str, algo: str) -> None:
    runs = curves.find_runs(folder, algo, env_of(algo))
    curves.draw(axes, [curves.evaluation_curve(run) for run in runs], algo.upper(), COLORS[algo])


def draw_learning_curves(pyplot: Any, folder: str) -> Any:
    """Evaluations of all three algorithms."""
    figure, axes = pyplot.subplots(figsize=(6.4, 4.4), layout="constrained")
    for algo in COLORS:
        draw_evaluations(axes, folder, algo)
    curves.draw_solved(axes, [REWARD_THRESHOLD])
    curves.style(axes, "environment steps", "return (evaluation)")
    return figure


def draw_overlay(pyplot: Any, folder: str) -> Any:
    """Mean reward per step of our Seed entries, and of the public runs on real Isaac Gym with the same settings."""
    figure, all_axes = pyplot.subplots(1, 3, figsize=(10.0, 4.2), sharey=True, layout="constrained")
    for axes, algo in zip(all_axes, COLORS):
        runs = curves.find_runs(folder, algo, env_of(algo, "Seed"))
        ours = [curves.reward_rate_curve(str(Path(run, FILE_NAME))) for run in runs]
        curves.draw(axes, ours, "embedded simulator", COLORS[algo])
        x, y = curves.reward_rate_curve(str(ROOT / "tests" / "data" / f"seed_curve_{algo}.csv"))
        axes.plot(x, y, color="0.2", linestyle="--", linewidth=1.3, label="Isaac Gym, public run")
        y_label = "mean reward per step" if algo == "ppo" else ""
        curves.style(axes, "environment steps", y_label, algo.upper(), legend_columns=1)
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
