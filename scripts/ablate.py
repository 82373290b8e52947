"""What each detail of the algorithms is worth: trains the shipped entries with one thing changed, over many seeds.

    python scripts/ablate.py                                   all of docs/ablations.yml, ten seeds each
    python scripts/ablate.py --only ppo/one_epoch dqn          one detail of PPO, all of DQN
    python scripts/ablate.py --draw                            only draw docs/images/ablations_*.png anew

Results are merged into docs/ablations.json as they come, and the site's tables are made from there: see
docs/ablations/summary.py, which has the rule for the verdicts.
"""

from __future__ import annotations

import argparse
import datetime
import json
import math
import multiprocessing
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, Tuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "docs" / "ablations"), str(ROOT / "scripts")]

import summary  # type: ignore[import-not-found]  # noqa: E402

EVAL_STEPS, LATER_EVAL_STEPS = 2048, 8192
"""Environment steps from one evaluation to the next, until the task is solved and after."""
STAY = 3.0
"""A run that solves the task goes on to so many times the steps, as far as the entry's n_timesteps."""


def train(task: Tuple[str, int]) -> Tuple[str, Dict[str, Any]]:
    """One seed of one detail, in a process that may have done others."""
    name, seed = task
    import solve
    import subclasses  # type: ignore[import-not-found]
    import yaml

    detail = summary.details()[name]
    algo, env = detail["algo"], detail["env"]
    entry = yaml.safe_load((ROOT / "hyperparams" / f"{algo}.yml").read_text())[env]
    overrides = dict(detail["overrides"])
    n_envs = overrides.get("n_envs", entry["n_envs"])
    args = solve.parse_args(["--algo", algo, "--env", env, "--eval-every", str(max(EVAL_STEPS // n_envs, 1))])
    args.stay, args.stay_every, args.hyperparams = STAY, max(LATER_EVAL_STEPS // n_envs, 1), overrides
    subclass = detail.get("subclass")
    algorithm = None if subclass is None else getattr(subclasses, subclass)
    found = solve.solve_once(args, seed, algorithm, clock=time.process_time)
    seconds = None if found["seconds"] is None else round(found["seconds"], 3)
    return name, {
        "seed": seed,
        "steps": found["steps"],
        "seconds": seconds,
        **{k: found[k] for k in ("stayed", "evaluations")},
    }


def describe() -> Dict[str, Any]:
    """Machine and versions."""
    from sb3_isaac.cli.check import versions

    cpu = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    names = {"Python": "python", "torch": "torch", "SB3": "stable-baselines3", "sb3_isaac": "sb3_isaac"}
    found = versions()
    return {
        "machine": f"{os.cpu_count()} cores, {cpu or platform.machine()}",
        "versions": {name: found[package] for name, package in names.items()},
        "date": datetime.date.today().isoformat(),
    }


def _lines(path: str) -> List[str]:
    return Path(path).read_text().splitlines() if os.path.isfile(path) else []


def write(path: Path, results: Dict[str, Any]) -> None:
    """One run a line."""
    from sb3_isaac.files.atomic import replacing

    runs = {name: sorted(results["runs"][name], key=lambda run: run["seed"]) for name in sorted(results["runs"])}
    lists = ",\n".join(
        f"{json.dumps(name)}: [\n" + ",\n".join(json.dumps(run) for run in found) + "\n]" for name, found in runs.items()
    )
    head = json.dumps({key: value for key, value in results.items() if key != "runs"}, indent=1)[:-2]
    with replacing(str(path)) as temporary:
        Path(temporary).write_text(f'{head},\n "runs": {{\n{lists}\n}}}}\n')


def draw(results: Dict[str, Any]) -> None:
    """docs/images/ablations_ALGO.png: steps until solved, and what stays solved."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    described = summary.details()
    colors = {"worse": "tab:red", "better": "tab:green", "mixed": "tab:purple", "no difference shown": "tab:gray"}
    for algo in dict.fromkeys(detail["algo"] for detail in described.values()):
        names = [name for name in described if name.startswith(f"{algo}/") and name in results["runs"]]
        if f"{algo}/base" not in names:
            continue
        found = {name: summary.summarise(results["runs"][name]) for name in names}
        base = found[f"{algo}/base"]
        ends = [end for one in found.values() for end in (one.steps, one.steps_interval[1]) if math.isfinite(end)]
        most = max([*ends, 2.0 * base.steps])
        figure, (left, right) = plt.subplots(
            1, 2, sharey=True, figsize=(10.0, 0.8 + 0.27 * len(names)), width_ratios=(2.2, 1.0), layout="constrained"
        )
        for y, name in enumerate(names):
            one = found[name]
            color = "tab:blue" if one is base else colors[summary.verdict(one, base)]
            low, high = (min(end, 1.08 * most) for end in one.steps_interval)
            left.plot([low, high], [y, y], color=color, linewidth=2)
            if math.isfinite(one.steps):
                left.plot(one.steps, y, "o", color=color)
            left.text(1.1 * most, y, f"{one.n_solved}/{one.n_seeds}", va="center", ha="left", fontsize=8)
            if not math.isnan(one.stays):
                right.plot([100 * end for end in one.stays_interval], [y, y], color=color, linewidth=2)
                right.plot(100 * one.stays, y, "o", color=color)
        left.axvspan(*base.steps_interval, color="tab:blue", alpha=0.12, linewidth=0)
        right.axvspan(*(100 * end for end in base.stays_interval), color="tab:blue", alpha=0.12, linewidth=0)
        left.set_yticks(range(len(names)), [described[name]["title"] for name in names], fontsize=8)
        left.invert_yaxis()
        left.set(xlim=(0, 1.2 * most), xlabel="environment steps until solved, median and 95%")
        right.set(xlim=(-2, 102), xlabel="evaluations that stay solved, %")
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(axis="x", alpha=0.3)
        figure.savefig(ROOT / "docs" / "images" / f"ablations_{algo}.png", dpi=110)
        plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", nargs="+", default=None, help="details (ppo/one_epoch) or algorithms (ppo)")
    parser.add_argument("--seeds", type=int, default=10, help="number of seeds")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes at a time, one thread each")
    parser.add_argument("--out", type=Path, default=summary.DOCS / "ablations.json", help="results, merged into what is there")
    parser.add_argument("--list", action="store_true", help="the details")
    parser.add_argument("--draw", action="store_true", help="only draw the figures")
    args = parser.parse_args()
    described = summary.details()
    if args.list:
        print("\n".join(f"{name:32s} {detail['title']}" for name, detail in described.items()))
        return
    if args.draw:
        draw(summary.results(args.out))
        return
    names = [name for name in described if args.only is None or name in args.only or name.split("/")[0] in args.only]
    unknown = {one for one in args.only or [] if one not in described} - {detail["algo"] for detail in described.values()}
    if unknown or args.seeds < 1 or (args.jobs or 1) < 1:
        parser.error(
            f"no such detail: {', '.join(sorted(unknown))} (see --list)" if unknown else "at least one seed and one job"
        )
    results = summary.results(args.out) if args.out.is_file() else {"runs": {}}
    results.update(describe())
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
    tasks = [(name, seed) for name in names for seed in range(1000, 1000 + args.seeds)]  # no entry was chosen on these
    fresh: Dict[str, List[Dict[str, Any]]] = {}
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool:
        for n, (name, run) in enumerate(pool.imap_unordered(train, tasks), 1):
            fresh.setdefault(name, []).append(run)
            results["runs"][name] = fresh[name]
            write(args.out, results)
            print(f"{n}/{len(tasks)} {name} {json.dumps(run)}", flush=True)
        pool.close()
        pool.join()
    for algo in dict.fromkeys(name.split("/")[0] for name in names):
        done = [name for name in described if name.startswith(f"{algo}/") and name in results["runs"]]
        if f"{algo}/base" in done:
            print(f"\n{summary.table(done, results)}")
    if args.out == summary.DOCS / "ablations.json":
        draw(results)


if __name__ == "__main__":
    main()
