"""What runs in one iteration of a training, by torch.profiler: kernels, how often and how long, and the gaps between them.

    python scripts/timeline.py [--algo dqn] [--n-envs 4096] [--precision tf32] [--eager] [--device cuda] [--trace trace.json]

On a GPU those are kernels and copies of the device, also within CUDA graphs; on a CPU operations of PyTorch, and nothing of
what is done in C. ``--trace`` writes what chrome://tracing and https://ui.perfetto.dev show as a picture.
"""

from __future__ import annotations

import argparse
import re
import time
from collections import defaultdict
from typing import Any, Dict, Iterable, List, Tuple

import sb3_isaac  # isort: skip  # before torch, which Isaac Gym wants
import torch as th
from benchmark_timing import EPOCHS, HORIZON, MINIBATCH
from stable_baselines3.common.logger import Logger
from torch.profiler import ProfilerActivity, profile

from sb3_isaac.settings.table import PRECISIONS

BATCH = 16_384
MOST_ROWS = 25
"""Of the table; what is rarer or shorter is one row"""


def make_model(args: argparse.Namespace) -> Tuple[Any, int]:
    """What scripts/benchmark.py trains, and the steps of all environments in an iteration."""
    kind = "Discrete" if args.algo == "dqn" else ""
    env: Any = sb3_isaac.make_vec_env(f"IsaacGymCartpole{kind}-v0", args.n_envs, device=args.device, seed=0)
    if args.normalize:
        env = sb3_isaac.VecNormalize(env)
    options: Dict[str, Any] = dict(device=args.device, seed=0, compile=not args.eager, precision=args.precision)
    options["policy_kwargs"] = {"net_arch": [64, 64], "activation_fn": th.nn.ELU}
    if args.algo == "ppo":
        options.update(n_steps=HORIZON, n_epochs=EPOCHS, batch_size=min(MINIBATCH, args.n_envs * HORIZON))
    else:
        options.update(buffer_size=50 * args.n_envs, batch_size=BATCH, train_freq=1, gradient_steps=1, learning_starts=0)
    algorithm = getattr(sb3_isaac, args.algo.upper())
    return algorithm("MlpPolicy", env, **options), HORIZON if args.algo == "ppo" else 1


def short(name: str) -> str:
    """A kernel's name without its templates and arguments."""
    name = re.sub(r"^void |\(.*| \[clone.*", "", name)
    found = 1
    while found:  # from the inside out
        name, found = re.subn(r"<[^<>]*>", "", name)
    return name.replace("|", "/")[:60]


def busy(intervals: Iterable[Tuple[float, float]]) -> float:
    """How long at least one of them was going on."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


def table(found: List[Tuple[str, float, float]], seconds: float, iterations: int) -> str:
    """Markdown.

    :param found: name, beginning and end in microseconds of each
    :param seconds: of all iterations, by the host's clock
    """
    count: Dict[str, int] = defaultdict(int)
    lasted: Dict[str, float] = defaultdict(float)
    for name, start, end in found:
        count[short(name)] += 1
        lasted[short(name)] += end - start
    total = sum(lasted.values())
    ranked = sorted(lasted, key=lambda name: -lasted[name])
    rows = [(name, count[name], lasted[name]) for name in ranked[:MOST_ROWS]]
    rest = ranked[MOST_ROWS:]
    if rest:
        rows.append((f"{len(rest)} others", sum(count[name] for name in rest), sum(lasted[name] for name in rest)))
    lines = ["| | calls | us | share |", "|---|---|---|---|"]
    lines += [f"| {name} | {n / iterations:g} | {us / iterations:,.1f} | {us / total:.0%} |" for name, n, us in rows]
    lines.append(f"| **all** | {len(found) / iterations:g} | {total / iterations:,.1f} | |")
    whole, used = 1e6 * seconds / iterations, busy((start, end) for _, start, end in found) / iterations
    return "\n".join(lines) + f"\n\nOne iteration: {whole:,.0f} us, in {used:,.0f} of them ({used / whole:.0%}) something ran."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algo", choices=("ppo", "dqn", "ddpg"), default="ppo")
    parser.add_argument("--n-envs", type=int, default=4096)
    parser.add_argument("--device", default="cuda" if th.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=PRECISIONS, default=None, help="in Triton's kernels")
    parser.add_argument("--eager", action="store_true", help="without compile=True")
    parser.add_argument("--normalize", action="store_true", help="with VecNormalize")
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--trace", default=None, help="write the whole timeline to this file")
    args = parser.parse_args()
    model, n_steps = make_model(args)
    on_gpu = args.device.startswith("cuda")

    def learn(iterations: int) -> None:
        model.learn(iterations * n_steps * args.n_envs, reset_num_timesteps=False)
        if on_gpu:
            th.cuda.synchronize()

    model.set_logger(Logger(None, []))
    learn(5)  # compiled, captured, warm
    activities = [ProfilerActivity.CUDA] if on_gpu else [ProfilerActivity.CPU]
    with profile(activities=activities) as profiler:
        start = time.perf_counter()
        learn(args.iterations)
        seconds = time.perf_counter() - start
    if args.trace is not None:
        profiler.export_chrome_trace(args.trace)
    kind = "CUDA" if on_gpu else "CPU"
    events: List[Any] = list(profiler.events() or [])
    events = [event for event in events if event.device_type.name == kind and event.cpu_parent is None]
    found = [(event.name, event.time_range.start, event.time_range.end) for event in events]
    print(f"{model.path}; {args.n_envs} environments, {n_steps} steps in an iteration\n")
    print(table(found, seconds, args.iterations))


if __name__ == "__main__":
    main()
