"""How fast, against what: ratios from interleaved runs in one process tree on one machine.

Every row runs in a process of its own; the rows take turns, round after round, so that a busy moment of the machine hits all
of them alike. Reported are medians over the rounds, the spread (lowest to highest) and the ratio to the row named as baseline.

    python scripts/benchmark.py [--quick] [--only ppo-4096] [--device cuda] [--json out.json]
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

HERE = Path(__file__).resolve().parent
BOX_ID, DISCRETE_ID = "IsaacGymCartpole-v0", "IsaacGymCartpoleDiscrete-v0"
HORIZON, EPOCHS, MINIBATCH = 16, 8, 8192
BATCH = 16_384


class Row(NamedTuple):
    """One line of the table."""

    name: str
    unit: str
    run: Callable[[argparse.Namespace], float]
    """Measures once. Runs in a process of its own."""
    baseline: Optional[str] = None
    """The row that this one is divided by."""
    higher_is_better: bool = True
    threads: int = 2
    rounds: Optional[int] = None
    """Fewer rounds than the others, for rows that take long."""
    needs: Optional[str] = None
    """A package that may be missing."""


def make_env(args: argparse.Namespace, n_envs: int, env_id: str = BOX_ID, **kwargs: Any) -> Any:
    import sb3_isaac

    return sb3_isaac.make_vec_env(env_id, n_envs, device=args.device, seed=0, **kwargs)


def synchronize(args: argparse.Namespace) -> None:
    import torch as th

    if str(args.device).startswith("cuda"):
        th.cuda.synchronize()


def rate(args: argparse.Namespace, work: Callable[[], Any], units: float, seconds: float) -> float:
    """Units per second of ``work``, repeated for about the given time, after two warm-up calls."""
    for _ in range(2):
        work()
    synchronize(args)
    calls, start = 0, time.perf_counter()
    while calls == 0 or time.perf_counter() - start < seconds:
        work()
        synchronize(args)
        calls += 1
    return calls * units / (time.perf_counter() - start)


# -- (a) PPO training ----------------------------------------------------------------------------------------------------


def ppo_rate(n_envs: int, kind: str) -> Callable[[argparse.Namespace], float]:
    """Environment steps per second of whole training: rollouts and updates."""

    def run(args: argparse.Namespace) -> float:
        import stable_baselines3
        from stable_baselines3.common.vec_env import DummyVecEnv
        from torch import nn

        import sb3_isaac
        from sb3_isaac.envs.cartpole_env import CartpoleEnv

        policy_kwargs = {"net_arch": {"pi": [64, 64], "vf": [64, 64]}, "activation_fn": nn.ELU}
        options = dict(
            n_steps=HORIZON, n_epochs=EPOCHS, batch_size=MINIBATCH, device=args.device, seed=0, policy_kwargs=policy_kwargs
        )
        if kind == "dummy":
            env: Any = DummyVecEnv([lambda: CartpoleEnv(device="cpu")] * n_envs)
        else:
            env = make_env(args, n_envs)
        if kind in ("eager", "compiled"):
            model: Any = sb3_isaac.PPO("MlpPolicy", env, compile=kind == "compiled", **options)
        else:
            model = stable_baselines3.PPO("MlpPolicy", env, **options)
        per_iteration = n_envs * HORIZON
        warm_up, seconds = (0, 0.0) if kind == "dummy" else (3, 2.0 if args.quick else 6.0)
        if warm_up:
            model.learn(warm_up * per_iteration)
        iterations, start = 0, time.perf_counter()
        while iterations == 0 or time.perf_counter() - start < seconds:
            model.learn(per_iteration, reset_num_timesteps=False)
            synchronize(args)
            iterations += 1
        return iterations * per_iteration / (time.perf_counter() - start)

    return run


# -- (b) until solved ----------------------------------------------------------------------------------------------------


def solve(algo: str, what: str, stock: bool = False) -> Callable[[argparse.Namespace], float]:
    """Median over five seeds of the seconds or environment steps until solved, with the shipped entries."""

    def run(args: argparse.Namespace) -> float:
        seeds = 2 if args.quick else 5
        command = [sys.executable, str(HERE / "solve.py"), "--algo", algo, "--seeds", str(seeds), "--device", args.device]
        lines = subprocess.run(
            command + ["--stock"] * stock, check=True, stdout=subprocess.PIPE, text=True
        ).stdout.splitlines()
        results = [json.loads(line) for line in lines if line.startswith("{")]
        solved = [r[what] for r in results if r["seconds"] is not None]
        if len(solved) < len(results):
            raise RuntimeError(f"{algo} solved only {len(solved)} of {len(results)} seeds")
        return float(statistics.median(solved))

    return run


# -- (c) updates of DQN and DDPG -----------------------------------------------------------------------------------------


def update_rate(algo: str, kind: str) -> Callable[[argparse.Namespace], float]:
    """Gradient steps per second on batches of 16,384 from a full buffer."""

    def run(args: argparse.Namespace) -> float:
        import stable_baselines3
        from stable_baselines3.common.logger import Logger

        import sb3_isaac

        env = make_env(args, 4096, DISCRETE_ID if algo == "DQN" else BOX_ID)
        options: Dict[str, Any] = dict(buffer_size=4096 * 50, batch_size=BATCH, device=args.device, seed=0, train_freq=1)
        options.update(learning_starts=4096 * 40, policy_kwargs={"net_arch": [64, 64]})
        if kind == "compiled":
            options["compile"] = True
        model = getattr(stable_baselines3 if kind == "stock" else sb3_isaac, algo)("MlpPolicy", env, **options)
        model.learn(4096 * 42)
        model.set_logger(Logger(None, []))
        steps = 5
        return rate(args, lambda: model.train(gradient_steps=steps, batch_size=BATCH), steps, 1.0 if args.quick else 4.0)

    return run


# -- (d) replay ----------------------------------------------------------------------------------------------------------


def replay_pair(kind: str) -> Callable[[argparse.Namespace], float]:
    """Milliseconds of one add of 4096 transitions and one sample of 16,384."""

    def run(args: argparse.Namespace) -> float:
        import numpy as np
        import torch as th
        from gymnasium import spaces
        from stable_baselines3.common.buffers import ReplayBuffer

        from sb3_isaac.buffers.replay_buffer import DeviceReplayBuffer

        n = 4096
        spec = (n * 100, spaces.Box(-np.inf, np.inf, (4,)), spaces.Box(-1.0, 1.0, (1,)))
        if kind == "stock":
            stock = ReplayBuffer(*spec, device=args.device, n_envs=n)
            obs, action = np.zeros((n, 4), np.float32), np.zeros((n, 1), np.float32)
            reward, done = np.zeros(n, np.float32), np.zeros(n, bool)
            infos: List[Dict[str, Any]] = [{} for _ in range(n)]

            def pair() -> None:
                stock.add(obs, obs, action, reward, done, infos)
                stock.sample(BATCH)
        else:
            ours = DeviceReplayBuffer(*spec, device=args.device, n_envs=n)
            t_obs, t_action = th.zeros(n, 4, device=args.device), th.zeros(n, 1, device=args.device)
            t_reward, t_done = th.zeros(n, device=args.device), th.zeros(n, dtype=th.bool, device=args.device)

            def pair() -> None:
                ours.add_tensors(t_obs, t_obs, t_action, t_reward, t_done, t_done)
                ours.sample(BATCH)

        for _ in range(100):  # a full buffer
            pair()
        return 1e3 / rate(args, pair, 1, 1.0 if args.quick else 3.0)

    return run


# -- (e) stepping --------------------------------------------------------------------------------------------------------


def step_rate(n_envs: int, kind: str) -> Callable[[argparse.Namespace], float]:
    """Environment steps per second of the bare simulator, or of the VecEnv around it."""

    def run(args: argparse.Namespace) -> float:
        import torch as th

        env = make_env(args, n_envs)
        env.reset()
        actions = th.rand(n_envs, 1, device=args.device) * 2 - 1
        if kind == "bare":
            step: Callable[[], Any] = lambda: env.tensor_env.step(actions)  # noqa: E731
        elif kind == "tensor":
            step = lambda: env.step_tensor(actions)  # noqa: E731
        else:
            array = actions.cpu().numpy()
            step = lambda: env.step(array)  # noqa: E731

        def many() -> None:
            for _ in range(20):
                step()

        return rate(args, many, 20 * n_envs, 0.5 if args.quick else 2.0)

    return run


# -- (f) memory ----------------------------------------------------------------------------------------------------------


def memory(what: str) -> Callable[[argparse.Namespace], float]:
    """Peak megabytes beyond what importing torch takes (on CUDA: of device memory)."""

    def run(args: argparse.Namespace) -> float:
        import torch as th

        th.rand(1000, 1000) @ th.rand(1000, 1000)  # the libraries' own buffers
        import sb3_isaac

        cuda = str(args.device).startswith("cuda")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        env = make_env(args, 65_536 if what == "env" else 4096)
        if what == "env":
            env.reset_tensor()
            actions = th.zeros(65_536, 1, device=args.device)
            for _ in range(50):
                env.step_tensor(actions)
        else:
            model = sb3_isaac.PPO("MlpPolicy", env, n_steps=HORIZON, batch_size=MINIBATCH, n_epochs=EPOCHS, device=args.device)
            model.learn(3 * 4096 * HORIZON)
        if cuda:
            return th.cuda.max_memory_allocated() / 2**20
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024

    return run


def make_rows() -> List[Row]:
    rows = []
    for n in (512, 4096):
        stock = f"ppo-{n} stock SB3, fast numpy adapter"
        unit = "env steps/s"
        rows += [
            Row(stock, unit, ppo_rate(n, "stock"), stock),
            Row(f"ppo-{n} sb3_isaac, eager", unit, ppo_rate(n, "eager"), stock),
            Row(f"ppo-{n} sb3_isaac, compiled", unit, ppo_rate(n, "compiled"), stock),
            Row(f"ppo-{n} stock SB3, DummyVecEnv", unit, ppo_rate(n, "dummy"), stock, rounds=1),
        ]
        rows += peer_rows(n, stock)
    for algo in ("ppo", "dqn", "ddpg"):
        stock = f"solve-{algo} stock SB3"
        rows += [
            Row(stock, "s", solve(algo, "seconds", stock=True), stock, False, 1, 1),
            Row(f"solve-{algo} sb3_isaac", "s", solve(algo, "seconds"), stock, False, 1, 1),
            Row(f"solve-{algo} sb3_isaac, env steps", "steps", solve(algo, "steps"), None, False, 1, 1),
        ]
    for algo in ("DQN", "DDPG"):
        stock = f"update-{algo} stock SB3"
        rows.append(Row(stock, "gradient steps/s", update_rate(algo, "stock"), stock))
        rows.append(Row(f"update-{algo} sb3_isaac, eager", "gradient steps/s", update_rate(algo, "eager"), stock))
        rows.append(Row(f"update-{algo} sb3_isaac, compiled", "gradient steps/s", update_rate(algo, "compiled"), stock))
    stock = "replay add + sample, stock SB3"
    rows.append(Row(stock, "ms", replay_pair("stock"), stock, False, 1))
    rows.append(Row("replay add + sample, sb3_isaac", "ms", replay_pair("ours"), stock, False, 1))
    for n in (4096, 65_536):
        bare = f"step-{n} bare simulator"
        rows.append(Row(bare, "env steps/s", step_rate(n, "bare"), bare, threads=1))
        rows.append(Row(f"step-{n} IsaacVecEnv.step_tensor", "env steps/s", step_rate(n, "tensor"), bare, threads=1))
        rows.append(Row(f"step-{n} IsaacVecEnv.step (numpy)", "env steps/s", step_rate(n, "numpy"), bare, threads=1))
    rows.append(Row("memory of 65,536 environments", "MB", memory("env"), None, False, rounds=1))
    rows.append(Row("memory of PPO training, 4096 environments", "MB", memory("ppo"), None, False, rounds=1))
    return rows


def peer_rows(n_envs: int, baseline: str) -> List[Row]:
    """Other libraries on the same simulator, where they are installed."""
    import benchmark_peers

    return [
        Row(f"ppo-{n_envs} {name}", "env steps/s", benchmark_peers.rate_of(name, n_envs), baseline, needs=package)
        for name, package in benchmark_peers.PACKAGES.items()
    ]


# -- running -------------------------------------------------------------------------------------------------------------


def run_child(row: Row, args: argparse.Namespace) -> Tuple[Optional[float], str]:
    """One measurement of one row: its value, or None and why not."""
    if row.needs and importlib.util.find_spec(row.needs) is None:
        return None, f"{row.needs} is not installed"
    threads = str(args.threads or row.threads)
    env = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    command = [sys.executable, __file__, "--row", row.name, "--device", args.device] + ["--quick"] * args.quick
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    if done.returncode:
        return None, (done.stderr.strip().splitlines() or ["failed"])[-1][:150]
    return float(json.loads(done.stdout.strip().splitlines()[-1])["value"]), ""


def table(rows: List[Row], values: Dict[str, List[float]], reasons: Dict[str, str]) -> str:
    """A Markdown table."""
    lines = ["| | median | spread | against its baseline |", "|---|---|---|---|"]
    for row in rows:
        got = values.get(row.name)
        if not got:
            lines.append(f"| {row.name} | {reasons.get(row.name, 'not run')} | | |")
            continue
        median, base = statistics.median(got), values.get(row.baseline or "")
        ratio = ""
        if base and row.baseline != row.name:
            quotient = median / statistics.median(base)
            ratio = f"{quotient if row.higher_is_better else 1 / quotient:.2f}x"
        number = "{:,.0f}" if median >= 100 else "{:.2f}"
        spread = f"{number.format(min(got))} to {number.format(max(got))}" if len(got) > 1 else ""
        lines.append(f"| {row.name} | {number.format(median)} {row.unit} | {spread} | {ratio} |")
    return "\n".join(lines)


def describe_machine(device: str) -> str:
    import torch as th

    name = th.cuda.get_device_name() if device.startswith("cuda") else f"{os.cpu_count()} cores"
    import stable_baselines3

    versions = f"Python {platform.python_version()}, torch {th.__version__}, SB3 {stable_baselines3.__version__}"
    return f"{name}, {platform.machine()}, {versions}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, shorter measurements")
    parser.add_argument("--rounds", type=int, default=None, help="default: 5, quick: 2")
    parser.add_argument("--only", nargs="+", default=[""], help="rows whose name contains one of these texts")
    parser.add_argument("--skip", nargs="+", default=[], help="leave out rows whose name contains one of these texts")
    parser.add_argument("--threads", type=int, default=None, help="default: 2, and 1 for single-thread rows")
    parser.add_argument("--json", default=None, help="write all measurements to this file")
    parser.add_argument("--row", default=None, help=argparse.SUPPRESS)
    args = parser.parse_args()
    sys.path.insert(0, str(HERE))
    import sb3_isaac  # noqa: F401  # before torch, which Isaac Gym wants to precede where it is installed

    rows = make_rows()
    if args.row is not None:
        (row,) = (row for row in rows if row.name == args.row)
        with contextlib.redirect_stdout(io.StringIO()):
            measured = row.run(args)
        print(json.dumps({"value": measured}))
        return
    rows = [row for row in rows if any(t in row.name for t in args.only) and not any(t in row.name for t in args.skip)]
    rounds = args.rounds or (2 if args.quick else 5)
    values: Dict[str, List[float]] = {}
    reasons: Dict[str, str] = {}
    for k in range(rounds):
        for row in rows:
            if k < (row.rounds or rounds) and row.name not in reasons:
                value, reason = run_child(row, args)
                if value is None:
                    reasons[row.name] = reason
                else:
                    values.setdefault(row.name, []).append(value)
                print(
                    f"round {k + 1}/{rounds}  {row.name}: {reason or f'{value:,.2f} {row.unit}'}", file=sys.stderr, flush=True
                )
    machine = describe_machine(args.device)
    print(f"{machine}\n\n{table(rows, values, reasons)}")
    if args.json:
        Path(args.json).write_text(json.dumps({"machine": machine, "values": values, "not run": reasons}, indent=1))


if __name__ == "__main__":
    main()
