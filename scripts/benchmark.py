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
import re
import resource
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import sb3_isaac  # isort: skip  # before torch, which Isaac Gym wants to precede where it is installed
import benchmark_peers
import numpy as np
import stable_baselines3
import torch as th
from benchmark_timing import EPOCHS, HORIZON, MINIBATCH, rate
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_isaac.device import ranks
from sb3_isaac.envs.cartpole_env import CartpoleEnv
from sb3_isaac.settings.table import PRECISIONS

BOX_ID, DISCRETE_ID = "IsaacGymCartpole-v0", "IsaacGymCartpoleDiscrete-v0"
BATCH = 16_384
RANK = "one of several ranks"
"""Not a row of the table: what torchrun starts for one"""


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


def make_env(args: argparse.Namespace, n_envs: int, env_id: str = BOX_ID) -> Any:
    return sb3_isaac.make_vec_env(env_id, n_envs, device=args.device, seed=0)


def ppo_rate(args: argparse.Namespace, n_envs: int, kind: str) -> float:
    """Environment steps per second of PPO's whole training: rollouts and updates."""
    options: Dict[str, Any] = dict(n_steps=HORIZON, n_epochs=EPOCHS, batch_size=MINIBATCH, device=args.device, seed=0)
    options["policy_kwargs"] = {"net_arch": {"pi": [64, 64], "vf": [64, 64]}, "activation_fn": th.nn.ELU}
    slow = kind == "dummy"
    env = DummyVecEnv([lambda: CartpoleEnv(device="cpu")] * n_envs) if slow else make_env(args, n_envs)
    if kind in ("eager", "compiled", "rank", *PRECISIONS):
        precision = kind if kind in PRECISIONS else None
        compiled = kind == "compiled" or precision is not None
        model: Any = sb3_isaac.PPO("MlpPolicy", env, compile=compiled, precision=precision, **options)
    elif kind == "sbx":
        flax, sbx = importlib.import_module("flax.linen"), importlib.import_module("sbx")
        options["policy_kwargs"]["activation_fn"] = flax.elu
        model = sbx.PPO("MlpPolicy", env, **{**options, "device": "auto"})  # JAX chooses
    else:
        model = stable_baselines3.PPO("MlpPolicy", env, **options)
    per_iteration = n_envs * HORIZON
    if kind == "rank":  # all do the same number of rollouts
        n, clock = 20 if args.quick else 60, []
        for count in (3, n):
            clock.append(time.perf_counter())
            model.learn(count * per_iteration * ranks.world_size(), reset_num_timesteps=False)
        return n * per_iteration / (time.perf_counter() - clock[1])
    return rate(
        lambda: model.learn(per_iteration, reset_num_timesteps=False),
        units=per_iteration,
        seconds=0.0 if slow else 2.0 if args.quick else 6.0,
        device=args.device,
        warm_up=0 if slow else 3,
    )


def ranks_rate(args: argparse.Namespace, n_ranks: int) -> float:
    """Environment steps per second of PPO's training by so many processes, with 2048 environments and one thread each."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(n_ranks), "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "127.0.0.1:0", __file__, "--row", RANK, "--device", args.device]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(command + ["--quick"] * args.quick, env=env, check=True, stdout=subprocess.PIPE, text=True)
    values = [float(value) for value in re.findall(r'"value": ([0-9.e+]+)', done.stdout)]  # two may share a line
    return statistics.median(values) * n_ranks


def solve(args: argparse.Namespace, algo: str, what: str, stock: bool = False, **params: Any) -> float:
    """Median over five seeds of the seconds or environment steps until solved, with the shipped entries.

    :param params: that differ from those
    """
    command = [sys.executable, str(Path(__file__).with_name("solve.py")), "--algo", algo, "--device", args.device]
    command += ["--seeds", "2" if args.quick else "5"] + ["--stock"] * stock + ["-params", json.dumps(params)]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    results = [json.loads(line) for line in lines if line.startswith("{")]
    solved = [r[what] for r in results if r["seconds"] is not None]
    if len(solved) < len(results):
        raise RuntimeError(f"{algo} solved only {len(solved)} of {len(results)} seeds")
    return float(statistics.median(solved))


def update_rate(args: argparse.Namespace, algo: str, kind: str) -> float:
    """Gradient steps per second of DQN or DDPG on batches of 16,384 from a full buffer."""
    env = make_env(args, 4096, DISCRETE_ID if algo == "DQN" else BOX_ID)
    options: Dict[str, Any] = dict(buffer_size=4096 * 50, batch_size=BATCH, device=args.device, seed=0, train_freq=1)
    options.update(learning_starts=4096 * 40, policy_kwargs={"net_arch": [64, 64]})
    if kind in ("compiled", *PRECISIONS):
        options["compile"] = True
    if kind in PRECISIONS:
        options["precision"] = kind
    model = getattr(stable_baselines3 if kind == "stock" else sb3_isaac, algo)("MlpPolicy", env, **options)
    model.learn(4096 * 42)
    model.set_logger(Logger(None, []))
    n_steps, seconds = 5, 1.0 if args.quick else 4.0
    return rate(lambda: model.train(n_steps, batch_size=BATCH), units=n_steps, seconds=seconds, device=args.device)


def replay_pair(args: argparse.Namespace, kind: str, n_rows: int = 100) -> float:
    """Milliseconds of one add of 4096 transitions and one sample of 16,384.

    :param n_rows: of the buffer, each of 4096 transitions
    """
    n = 4096
    spec = (n * n_rows, spaces.Box(-np.inf, np.inf, (4,)), spaces.Box(-1.0, 1.0, (1,)))
    if kind == "stock":
        stock = ReplayBuffer(*spec, device=args.device, n_envs=n)
        obs, action = np.zeros((n, 4), np.float32), np.zeros((n, 1), np.float32)
        reward, done = np.zeros(n, np.float32), np.zeros(n, bool)
        infos: List[Dict[str, Any]] = [{} for _ in range(n)]

        def pair() -> None:
            stock.add(obs, obs, action, reward, done, infos)
            stock.sample(BATCH)
    else:
        ours = sb3_isaac.DeviceReplayBuffer(*spec, device=args.device, n_envs=n)
        ours.in_triton = kind == "triton"
        t_obs, t_action = th.zeros(n, 4, device=args.device), th.zeros(n, 1, device=args.device)
        t_reward, t_done = th.zeros(n, device=args.device), th.zeros(n, dtype=th.bool, device=args.device)

        def pair() -> None:
            ours.add_tensors(t_obs, t_obs, t_action, t_reward, t_done, t_done)
            ours.sample(BATCH)

    for _ in range(n_rows):  # a full buffer
        pair()
    return 1e3 / rate(pair, units=1, seconds=1.0 if args.quick else 3.0, device=args.device)


def step_rate(args: argparse.Namespace, n_envs: int, kind: str) -> float:
    """Environment steps per second of the bare simulator, or of the VecEnv around it."""
    env = make_env(args, n_envs)
    env.reset()
    actions: Any = th.rand(n_envs, 1, device=args.device) * 2 - 1
    if kind == "numpy":
        actions = actions.cpu().numpy()
    step = {"bare": env.tensor_env.step, "tensor": env.step_tensor, "numpy": env.step}[kind]

    def many() -> None:
        for _ in range(20):
            step(actions)

    return rate(many, units=20 * n_envs, seconds=0.5 if args.quick else 2.0, device=args.device)


def memory(args: argparse.Namespace, what: str, n_envs: int) -> float:
    """Peak megabytes beyond what importing torch takes (on CUDA: of device memory)."""
    th.rand(1000, 1000) @ th.rand(1000, 1000)  # the libraries' own buffers
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    env = make_env(args, n_envs)
    if what == "env":
        env.reset_tensor()
        actions = th.zeros(n_envs, 1, device=args.device)
        for _ in range(50):
            env.step_tensor(actions)
    elif what == "replay":
        sb3_isaac.DeviceReplayBuffer(10_000_000, env.observation_space, env.action_space, args.device, n_envs)
    else:
        model = sb3_isaac.PPO("MlpPolicy", env, n_steps=HORIZON, batch_size=MINIBATCH, n_epochs=EPOCHS, device=args.device)
        model.learn(3 * n_envs * HORIZON)
    if args.device.startswith("cuda"):
        return th.cuda.max_memory_allocated() / 2**20
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def make_rows(device: str) -> List[Row]:
    rows: List[Row] = []
    on_gpu = device.startswith("cuda")
    for n in (512, 4096, *((16_384, 65_536) if on_gpu else ())):
        stock = f"ppo-{n} stock SB3, fast numpy adapter"
        row = partial(Row, unit="env steps/s", baseline=stock)
        rows += [
            row(stock, run=partial(ppo_rate, n_envs=n, kind="stock")),
            row(f"ppo-{n} sb3_isaac, eager", run=partial(ppo_rate, n_envs=n, kind="eager")),
            row(f"ppo-{n} sb3_isaac, compiled", run=partial(ppo_rate, n_envs=n, kind="compiled")),
            row(f"ppo-{n} SBX (SB3 in JAX), fast numpy adapter", run=partial(ppo_rate, n_envs=n, kind="sbx"), needs="sbx"),
        ]
        if n <= 4096:
            rows.append(row(f"ppo-{n} stock SB3, DummyVecEnv", run=partial(ppo_rate, n_envs=n, kind="dummy"), rounds=1))
        if on_gpu:
            name = f"ppo-{n} sb3_isaac, compiled, in Triton: "
            rows += [row(name + one, run=partial(ppo_rate, n_envs=n, kind=one), needs="triton") for one in PRECISIONS]
        # Other libraries on the same simulator, where they are installed
        for name, package in benchmark_peers.PACKAGES.items():
            rows.append(row(f"ppo-{n} {name}", run=partial(benchmark_peers.ppo_rate, name=name, n_envs=n), needs=package))
    one = "ranks-1 PPO, one process"
    row = partial(Row, unit="env steps/s", baseline=one, threads=1)
    rows += [
        row(one, run=partial(ranks_rate, n_ranks=1)),
        row("ranks-2 PPO, two processes", run=partial(ranks_rate, n_ranks=2)),
    ]
    for algo in ("ppo", "dqn", "ddpg"):
        stock = f"solve-{algo} stock SB3"
        row = partial(Row, higher_is_better=False, threads=1, rounds=1)
        seconds = partial(solve, algo=algo, what="seconds")
        rows += [
            row(stock, unit="s", run=partial(seconds, stock=True), baseline=stock),
            row(f"solve-{algo} sb3_isaac", unit="s", run=seconds, baseline=stock),
            row(f"solve-{algo} sb3_isaac, compiled", unit="s", run=partial(seconds, compile=True), baseline=stock),
            row(f"solve-{algo} sb3_isaac, env steps", unit="steps", run=partial(solve, algo=algo, what="steps")),
        ]
        for one in PRECISIONS if on_gpu else ():
            run = partial(seconds, compile=True, precision=one)
            rows.append(row(f"solve-{algo} sb3_isaac, compiled, in Triton: {one}", "s", run, stock, needs="triton"))
    for algo in ("DQN", "DDPG"):
        stock = f"update-{algo} stock SB3"
        row = partial(Row, unit="gradient steps/s", baseline=stock)
        rows += [
            row(stock, run=partial(update_rate, algo=algo, kind="stock")),
            row(f"update-{algo} sb3_isaac, eager", run=partial(update_rate, algo=algo, kind="eager")),
            row(f"update-{algo} sb3_isaac, compiled", run=partial(update_rate, algo=algo, kind="compiled")),
        ]
        if on_gpu:
            name = f"update-{algo} sb3_isaac, compiled, in Triton: "
            rows += [row(name + one, run=partial(update_rate, algo=algo, kind=one), needs="triton") for one in PRECISIONS]
    stock = "replay add + sample, stock SB3"
    row = partial(Row, unit="ms", baseline=stock, higher_is_better=False, threads=1)
    rows.append(row(stock, run=partial(replay_pair, kind="stock")))
    rows.append(row("replay add + sample, sb3_isaac", run=partial(replay_pair, kind="ours")))
    if on_gpu:
        large, in_triton = partial(replay_pair, n_rows=2441), partial(row, needs="triton")
        rows += [
            in_triton("replay add + sample, sb3_isaac, in Triton", run=partial(replay_pair, kind="triton")),
            row("replay add + sample of 10 million, sb3_isaac", run=partial(large, kind="ours")),
            in_triton("replay add + sample of 10 million, sb3_isaac, in Triton", run=partial(large, kind="triton")),
        ]
    for n in (4096, 65_536):
        bare = f"step-{n} bare simulator"
        row = partial(Row, unit="env steps/s", baseline=bare, threads=1)
        rows += [
            row(bare, run=partial(step_rate, n_envs=n, kind="bare")),
            row(f"step-{n} IsaacVecEnv.step_tensor", run=partial(step_rate, n_envs=n, kind="tensor")),
            row(f"step-{n} IsaacVecEnv.step (numpy)", run=partial(step_rate, n_envs=n, kind="numpy")),
        ]
    row = partial(Row, unit="MB", higher_is_better=False, rounds=1)
    rows.append(row("memory of 65,536 environments", run=partial(memory, what="env", n_envs=65_536)))
    for n in (4096, *((16_384, 65_536) if on_gpu else ())):
        rows.append(row(f"memory of PPO training, {n} environments", run=partial(memory, what="ppo", n_envs=n)))
    if on_gpu:
        rows.append(row("memory of 10 million transitions", run=partial(memory, what="replay", n_envs=4096)))
    return rows


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
    name = th.cuda.get_device_name() if device.startswith("cuda") else f"{os.cpu_count()} cores"
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
    rows = make_rows(args.device)
    if args.row is not None:
        one_rank = Row(RANK, "env steps/s", partial(ppo_rate, n_envs=2048, kind="rank"))
        (row,) = (row for row in [*rows, one_rank] if row.name == args.row)
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
