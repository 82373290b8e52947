"""The commands ``evaluate``, ``video``, ``export`` and ``plot``. What goes wrong is raised, as the modules they use say."""

from __future__ import annotations

import argparse
import contextlib
import os
from typing import Callable, Dict, List, Optional, Tuple

from stable_baselines3.common.vec_env import unwrap_vec_normalize
from tqdm import tqdm  # type: ignore[import-untyped]

from sb3_isaac.cli.flags import check_flags, check_output
from sb3_isaac.envs.make import is_isaac_env_id
from sb3_isaac.envs.vec_env import MAX_RENDERED_ENVS
from sb3_isaac.evaluation import curves, exporting, measure
from sb3_isaac.evaluation.callbacks import FILE_NAME
from sb3_isaac.evaluation.film import CartpoleFilm, can_be_filmed, n_rows
from sb3_isaac.evaluation.video import check_video_path, play_frames, write_video

MAX_NAMES = 5
"""Settings that a line about different runs names at most."""
MAX_EVAL_ENVS = 1024
"""Environments that are used at most unless told otherwise."""
PUSH_EVERY = 2.0
"""Seconds from one push to the next in a video, unless told otherwise."""
Y_LABELS = {
    "eval": "return (evaluation)",
    "train": "return (training)",
    "reward-rate": "mean reward per step (training)",
}


def evaluate(argv: List[str]) -> int:
    """Print a table about the returns of a trained agent."""
    from sb3_isaac.zoo.agents import add_agent_arguments, import_packages, load_agent

    parser = argparse.ArgumentParser(prog="sb3-isaac evaluate", description="Measure the returns of a trained agent.")
    add_agent_arguments(parser)
    parser.add_argument("-n", "--n-episodes", help="number of episodes (default: 1000)", type=int, default=1000)
    parser.add_argument("-P", "--progress", action="store_true", help="display a progress bar")
    args = parser.parse_args(argv)
    check_flags("evaluate", args)
    import_packages(args)
    # Other environments would be a process each.
    n_envs = max(min(args.n_episodes, MAX_EVAL_ENVS), 1) if is_isaac_env_id(args.env.gym_id) else 1
    agent = load_agent(args, n_envs)
    with contextlib.closing(agent.env):
        result = measure.evaluate(agent.model, agent.env, args.n_episodes, not args.stochastic, args.progress)
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


def video(argv: List[str]) -> int:
    """Write videos of a trained agent."""
    from sb3_isaac.zoo.agents import add_agent_arguments, import_packages, load_agent

    parser = argparse.ArgumentParser(
        prog="sb3-isaac video",
        description="Write a video of a trained agent. Cartpoles of this package stand beside some under uniformly random "
        "actions, and their poles are pushed now and then.",
    )
    add_agent_arguments(parser)
    parser.add_argument("-n", "--n-timesteps", help="timesteps, a frame each (default: 300)", type=int, default=300)
    parser.add_argument(
        "-o", "--output", nargs="+", help="files ending in .mp4 or .gif (default: one of each in the folder videos of the run)"
    )
    parser.add_argument(
        "--push", type=float, metavar="SECONDS", help=f"time from one push to the next (default: {PUSH_EVERY:g}, 0: no pushes)"
    )
    parser.add_argument("--no-untrained", action="store_true", help="show the trained agent alone")
    args = parser.parse_args(argv)
    check_flags("video", args)
    for path in args.output or ["any.mp4"]:
        check_video_path(path)
    import_packages(args)
    ours = is_isaac_env_id(args.env.gym_id)
    n_untrained = 0
    if ours and (args.n_envs is None or args.n_envs > 0):  # load_agent says what is wrong with other numbers
        asked = args.n_envs or MAX_RENDERED_ENVS
        n_trained = min(asked, MAX_RENDERED_ENVS)
        n_untrained = 0 if args.no_untrained else n_rows(n_trained)
        args.n_envs = n_trained + n_untrained
        if asked > MAX_RENDERED_ENVS:
            print(f"The video shows {MAX_RENDERED_ENVS} environments, not {asked}: there is no room for more.")
    agent = load_agent(args, 1, render_mode="rgb_array")
    film = None
    if can_be_filmed(agent.env):
        policy = f"trained: {args.algo.upper()}" + (", stochastic" if args.stochastic else "")
        push_every = PUSH_EVERY if args.push is None else args.push
        film = CartpoleFilm(agent.env, policy, n_untrained, push_every, args.seed)
    elif ours or args.push:
        print("Neither pushes nor an untrained policy: these environments are no batch of this package's cartpoles.")
    outputs = args.output or [os.path.join(agent.folder, "videos", agent.name + suffix) for suffix in (".mp4", ".gif")]
    for path in outputs:
        check_output(path)
    fps = int(agent.env.get_attr("metadata")[0].get("render_fps", 30))
    with contextlib.closing(agent.env):
        frames = play_frames(agent.model, agent.env, args.n_timesteps, deterministic=not args.stochastic, film=film)
        # disable=None: no bar where the output is not a terminal
        write_video(outputs, tqdm(frames, total=args.n_timesteps, unit="frame", disable=None), fps)
    for path in outputs:
        print(f"Wrote {path}")
    return 0


def export(argv: List[str]) -> int:
    """Write the policy of a trained agent to files that need neither this package nor SB3."""
    from sb3_isaac.zoo.agents import add_agent_arguments, load_agent

    parser = argparse.ArgumentParser(
        prog="sb3-isaac export",
        description="Write a trained agent's deterministic policy for a robot: raw observations in, the environment's actions "
        "out. The statistics of VecNormalize and the action bounds are in the file.",
    )
    add_agent_arguments(parser)
    parser.add_argument(
        "-o",
        "--output",
        nargs="+",
        help="files ending in .onnx, or in .pt for TorchScript (default: one .pt in the run's folder)",
    )
    args = parser.parse_args(argv)
    check_flags("export", args)
    if args.stochastic:
        raise ValueError("--stochastic cannot be exported: a file draws no random numbers. Leave it out.")
    for path in args.output or []:
        exporting.check_path(path)
    agent = load_agent(args, n_envs=1)
    with contextlib.closing(agent.env):
        normalize = unwrap_vec_normalize(agent.env)
        outputs = args.output or [os.path.join(agent.folder, f"{agent.name}.pt")]
        for path in outputs:
            check_output(path)
        for path in outputs:
            done = exporting.export(agent.model, path, normalize)
            kind = "float32" if agent.model.action_space.shape else "int64"
            obs, action = (", ".join(["N", *map(str, shape)]) for shape in (done.obs_shape, done.action_shape))
            rows = {
                "model": agent.path,
                "file": f"{done.path}, {done.n_bytes / 1000:.1f} kB, {done.n_parameters:,} parameters",
                "input": f"{exporting.OBS} ({obs}) float32, as the environment returns it",
                "output": f"{exporting.ACTION} ({action}) {kind}, as the environment takes it",
                "largest difference": f"{done.difference:.1e} from predict, on {exporting.N_CHECKED} random observations",
            }
            for label, value in rows.items():
                print(f"{label:20s}{value}")
    return 0


def plot(argv: List[str]) -> int:
    """Draw learning curves of all runs in log folders, with confidence bands."""
    parser = argparse.ArgumentParser(
        prog="sb3-isaac plot",
        description="Learning curves of all runs in log folders: mean and 95% confidence band. Name the curves, or "
        "give -e and -a, which draw every algorithm on every environment.",
    )
    parser.add_argument("curves", nargs="*", metavar="ALGO:ENV", help="curves, such as ppo:IsaacGymCartpole-v0")
    parser.add_argument("-a", "--algo", "--algos", nargs="+", default=["ppo"], help="algorithms for -e (default: ppo)")
    parser.add_argument("-e", "--env", nargs="+", default=[], help="environment ids")
    parser.add_argument("-f", "--folder", "--exp-folders", nargs="+", default=["logs"], help="log folders (default: logs)")
    parser.add_argument("--exp-id", type=int, help="draw the run of that number alone (0: the latest; default: all runs)")
    parser.add_argument("-l", "--labels", nargs="+", help="one label per curve (default: algorithm and environment)")
    parser.add_argument("-x", "--x-axis", choices=["steps", "seconds"], default="steps", help="default: steps")
    parser.add_argument(
        "--curve",
        choices=list(Y_LABELS),
        help="eval: mean returns of the evaluations; train: returns of the training episodes; reward-rate: mean reward per "
        "training step (default: eval by steps, train by seconds, reward-rate with --reference)",
    )
    parser.add_argument("-w", "--window", type=int, help="training episodes to average (default: 100)", default=100)
    parser.add_argument("--reference", nargs="+", default=[], metavar="CSV", help="curves of real Isaac Gym to lay over")
    parser.add_argument("-max", "--max-timesteps", type=float, help="end of the x axis")
    parser.add_argument("-o", "--output", help="file to write (.png, .svg, .pdf); without it, a window is opened")
    args = parser.parse_intermixed_args(argv)
    check_flags("plot", args)
    args.folder, swallowed = _without_pairs(args.folder)
    pairs = [curves.parse_pair(text) for text in args.curves + swallowed]
    pairs += [(algo, env_id) for algo in args.algo for env_id in args.env]
    if not pairs:
        parser.error("name at least one curve, ALGO:ENV, or an environment with -e")

    kind = args.curve or ("reward-rate" if args.reference else "train" if args.x_axis == "seconds" else "eval")
    if args.x_axis == "seconds" and kind != "train":
        raise ValueError(f"The curve {kind!r} has no times: use --curve train with --x-axis seconds.")
    if args.reference and kind != "reward-rate":
        raise ValueError("Reference curves are rewards per step: use --curve reward-rate with --reference.")
    groups = [(folder, algo, env_id) for folder in args.folder or ["logs"] for algo, env_id in pairs]
    labels = args.labels or [_label(group, groups) for group in groups]
    if len(labels) != len(groups):
        raise ValueError(f"{len(groups)} curves need as many --labels, got {len(labels)}.")

    readers: Dict[str, Callable[[str], curves.Curve]] = {
        "eval": curves.evaluation_curve,
        "train": lambda run: curves.training_curve(run, args.x_axis, args.window),
        "reward-rate": lambda run: curves.reward_rate_curve(os.path.join(run, FILE_NAME)),
    }
    pyplot = curves.import_pyplot(show=args.output is None)
    figure, axes = pyplot.subplots(figsize=curves.FIGURE_SIZE, layout="constrained")
    thresholds = []
    for group, label in zip(groups, labels):
        runs = _of_number(curves.find_runs(*group), args.exp_id)
        found = _read_curves(runs, readers[kind])
        curves.draw(axes, list(found.values()), label, noun=_noun(list(found), group[2]))
        thresholds.append(curves.solved_return(group[2], runs))
    if kind != "reward-rate":
        curves.draw_solved(axes, thresholds)
    for path in args.reference:
        x, y = curves.reward_rate_curve(path)
        name = os.path.splitext(os.path.basename(path))[0]
        axes.plot(x, y, label=f"Isaac Gym: {name}", linestyle="--", color="0.25", linewidth=1.5)
    if args.max_timesteps is not None:
        axes.set_xlim(right=args.max_timesteps)
    curves.style(axes, "environment steps" if args.x_axis == "steps" else "seconds", Y_LABELS[kind])
    if args.output is None:
        pyplot.show()
    else:
        curves.save_figure(figure, args.output)
        print(f"Wrote {args.output}")
    pyplot.close(figure)
    return 0


def _without_pairs(folders: List[str]) -> Tuple[List[str], List[str]]:
    """The words after ``-f`` that are folders, and the ALGO:ENV that argparse took for some: ``-f logs ppo:X dqn:Y``."""
    pairs = [word for word in folders if ":" in word and os.sep not in word and not os.path.isdir(word)]
    return [word for word in folders if word not in pairs], pairs


def _of_number(runs: List[str], exp_id: Optional[int]) -> List[str]:
    """The run of ``--exp-id``; all of them where it is not given.

    :raises FileNotFoundError: there is none of that number
    """
    if exp_id is None:
        return runs
    chosen = runs[-1:] if exp_id == 0 else [run for run in runs if run.endswith(f"_{exp_id}")]
    if not chosen:
        numbers = ", ".join(run.rpartition("_")[2] for run in runs)
        raise FileNotFoundError(f"No run {exp_id} beside {runs[0]}: --exp-id takes one of {numbers}, or 0 for the latest.")
    return chosen


def _noun(runs: List[str], env_id: str) -> str:
    """What the runs of one curve are called: "seed" if each is known to have its own. Other differences are said."""
    found = {run: curves.settings_of(run, env_id) for run in runs}
    known = [(run, settings) for run, (_, settings) in found.items() if settings is not None]
    for run, settings in known[1:]:
        first = known[0][1]
        differ = [name for name in sorted({*first, *settings}) if first.get(name) != settings.get(name)]
        if differ:
            names = ", ".join(differ[:MAX_NAMES]) + (", ..." if len(differ) > MAX_NAMES else "")
            print(f"One curve of different settings: {known[0][0]} and {run} differ in {names} (--exp-id N draws one run)")
            break
    seeds = {seed for seed, _ in found.values()}
    return "seed" if None not in seeds and len(seeds) == len(runs) else "run"


def _read_curves(runs: List[str], reader: Callable[[str], curves.Curve]) -> Dict[str, curves.Curve]:
    """The curves of those runs that have one: a search, or a run that was stopped early, leaves a folder without.

    :raises FileNotFoundError: if none has one
    """
    found, missing = {}, []
    for run in runs:
        try:
            found[run] = reader(run)
        except FileNotFoundError as error:
            missing.append((run, error))
    if not found:
        raise missing[0][1]
    if missing:
        print(f"Left out, as there is no such curve: {', '.join(run for run, _ in missing)}")
    return found


def _label(group: Tuple[str, str, str], groups: List[Tuple[str, str, str]]) -> str:
    """Algorithm, and what else tells a curve from the others."""
    folder, algo, env_id = group
    folders, _, env_ids = (set(column) for column in zip(*groups))
    parts = [algo.upper()]
    if len(env_ids) > 1:
        parts.append(env_id)
    if len(folders) > 1:
        parts.append(os.path.basename(os.path.normpath(folder)))
    return " ".join(parts)
