"""``make soak``: many kills of processes that train, alone and as ranks, save and search; a long training's memory is watched.

    python -m tests.reliability.soak [--kills 200] [--minutes 30] [--folder DIR]

Ends with status 1 if a file under a final name cannot be read, if more than one checkpoint interval or a finished trial is
lost, or if memory or open files grow.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import shutil
import struct
import sys
import tempfile
import time
from mmap import mmap
from pathlib import Path
from typing import Any, Callable, Dict, List

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

import sb3_isaac.zoo  # noqa: F401  # before the forks
from sb3_isaac.cli import main as sb3_isaac_command
from sb3_isaac.zoo.studies import load_study
from tests.reliability.kill_ranks import killed_ranks
from tests.reliability.killing import damaged, fork, in_fork, kill_after, kill_while_saving
from tests.reliability.things_to_save import small_models, things

IDS = {"ppo": "IsaacGymCartpole-v0", "dqn": "IsaacGymCartpoleDiscrete-v0", "ddpg": "IsaacGymCartpole-v0"}
SAVE_EVERY = 2048
"""Timesteps from one checkpoint to the next."""
GROWTH = 1.05
"""What memory may grow by from the second third of the long training to the last."""


def train(algo: str, folder: Path, n_timesteps: int, *flags: str) -> int:
    argv = ["train", "--algo", algo, "--env", IDS[algo], "-n", str(n_timesteps), "-f", str(folder), "--device", "cpu"]
    return sb3_isaac_command([*argv, *flags])


def killed_trainings(folder: Path, n_kills: int, rng: random.Random) -> List[str]:
    """Kill trainings with checkpoints and evaluations. At most what was done since the last checkpoint may be lost."""
    problems = []
    steps = mmap(-1, 8)  # shared with the forks: how far training came
    on_step = BaseCallback.on_step

    def counting(callback: BaseCallback) -> bool:
        steps[:8] = struct.pack("q", callback.model.num_timesteps)
        return on_step(callback)

    for number in range(n_kills):
        algo = list(IDS)[number % 3]
        steps[:8] = struct.pack("q", 0)

        def run(algo: str = algo) -> int:
            BaseCallback.on_step = counting  # type: ignore[method-assign]
            flags = ["--save-freq", str(SAVE_EVERY), "--eval-freq", "4096", "--eval-episodes", "2", "--save-replay-buffer"]
            return train(algo, folder / "training", 10**7, *flags)

        kill_after(fork(run, folder / "training.txt"), rng.uniform(1.0, 6.0))
        reached = struct.unpack("q", steps[:8])[0]
        saved = [_steps_of(path) for path in _newest_run(folder / "training" / algo).glob("rl_model_*_steps.zip")]
        lost = reached - max(saved, default=0)
        if reached and lost > SAVE_EVERY + 1024:  # and the environments of one step more
            problems.append(f"{algo}, kill {number}: {lost} timesteps lost")
        problems += [f"{problem}, kill {number}" for problem in damaged(_newest_run(folder / "training" / algo))]
    return problems


def killed_final_saves(folder: Path, n_kills: int, rng: random.Random) -> List[str]:
    """Kill short trainings about when they save what they have come to."""
    problems = []
    seconds: Dict[str, float] = {}
    for number in range(n_kills):
        algo = list(IDS)[number % 3]

        def run(algo: str = algo) -> int:
            return train(algo, folder / "final", 2048, "--eval-freq", "-1", "--save-replay-buffer", "--verbose", "0")

        if algo not in seconds:
            start = time.monotonic()
            os.waitpid(fork(run, folder / "final.txt"), 0)
            seconds[algo] = time.monotonic() - start
        kill_after(fork(run, folder / "final.txt"), seconds[algo] * rng.uniform(0.7, 1.05))
        problems += [f"{problem}, kill {number}" for problem in damaged(_newest_run(folder / "final" / algo))]
    return problems


def killed_searches(folder: Path, n_kills: int, rng: random.Random) -> List[str]:
    """Kill searches. The study opens afterwards, with all trials that were finished."""
    (folder / "search").mkdir(exist_ok=True)
    storages = [str(folder / "search" / "study.log"), f"sqlite:///{folder / 'search' / 'study.db'}"]
    problems = []
    finished = {storage: 0 for storage in storages}
    for number in range(n_kills):
        storage = storages[number % 2]

        def run(storage: str = storage) -> int:
            flags = f"--algo ppo --env {IDS['ppo']} --device cpu -n 2000 --n-trials 100 --no-optim-plots --study-name s"
            return sb3_isaac_command(["optimize", *flags.split(), "--storage", storage, "-f", str(folder / "search")])

        def count(storage: str = storage) -> int:
            trials = load_study(storage, "s").get_trials(deepcopy=False)
            return sum(trial.state.is_finished() for trial in trials)

        kill_after(fork(run, folder / "search.txt"), rng.uniform(2.0, 10.0))
        exists = Path(storage.replace("sqlite:///", "")).is_file()
        found = in_fork(count) if exists else 0
        if isinstance(found, str) and finished[storage] == 0 and "There is no study" in found:
            continue  # killed before it was made
        if isinstance(found, str) or found < finished[storage]:
            problems.append(f"{storage}, kill {number}: {finished[storage]} finished trials before, now {found}")
        else:
            finished[storage] = found
    print(f"finished trials: {sum(finished.values())}")
    return problems


def _newest_run(folder: Path) -> Path:
    runs = sorted((path for path in folder.glob("*_[0-9]*") if path.is_dir()), key=lambda path: _steps_of(path))
    return runs[-1] if runs else folder / "none"


def _steps_of(path: Path) -> int:
    return int(re.findall(r"\d+", path.name)[-1])


def watch(folder: Path, minutes: float) -> List[str]:
    """Train for long, with checkpoints, evaluations and logs, and watch memory and open files."""
    samples: List[Any] = []

    def run() -> int:
        flags = ["--save-freq", "100000", "--keep-checkpoints", "5", "--eval-freq", "200000", "--log-interval", "10"]
        return train("ppo", folder / "long", 10**10, *flags, "--tensorboard-log", str(folder / "long" / "tb"))

    pid = fork(run, folder / "long.txt")
    end = time.monotonic() + 60 * minutes
    ended = False
    while time.monotonic() < end and not ended:
        time.sleep(min(5.0, 3 * minutes))
        ended = os.waitpid(pid, os.WNOHANG)[0] != 0
        if not ended:
            status = Path(f"/proc/{pid}/status").read_text()
            resident = int(re.search(r"VmRSS:\s+(\d+)", status).group(1)) / 1024  # type: ignore[union-attr]
            samples.append((resident, len(os.listdir(f"/proc/{pid}/fd"))))
    if ended:
        return [f"the long training ended by itself, see {folder}/long.txt"]
    kill_after(pid, 0.0)
    third = len(samples) // 3
    before, files_before = np.median(samples[third : 2 * third], axis=0).tolist()
    after, files_after = np.median(samples[-third:], axis=0).tolist()
    print(f"long training: memory {before:.0f} then {after:.0f} MB, open files {files_before:.0f} then {files_after:.0f}")
    grown = after > GROWTH * before or files_after > files_before
    return ["memory or open files grow"] * grown + damaged(_newest_run(folder / "long" / "ppo"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--minutes", type=float, default=30.0, help="of the long training")
    parser.add_argument("--folder", type=Path, help="to work in, and to leave everything in (default: a temporary one)")
    parser.add_argument("--seed", type=int, help="of the moments of the kills")
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp(prefix="soak"))
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(args.seed)
    (folder / "saving").mkdir()

    def saving(folder: Path, n_kills: int, rng: random.Random) -> List[str]:
        # In a fork: what has computed here would be copied into all later ones
        return list(in_fork(lambda: kill_while_saving(things(small_models()), folder / "saving", n_kills, rng)))

    parts: Dict[str, Callable[[Path, int, random.Random], List[str]]] = {
        "saving": saving,
        "training": killed_trainings,
        "final save": killed_final_saves,
        "tuning": killed_searches,
        "ranks": killed_ranks,
    }
    problems: List[str] = []
    for name, part in parts.items():
        start = time.monotonic()
        found = part(folder, args.kills // len(parts), rng)
        print(f"{name}: {args.kills // len(parts)} kills, {len(found)} problems, {time.monotonic() - start:.0f} s", flush=True)
        problems += found
    if args.minutes > 0:
        problems += watch(folder, args.minutes)
    print(*problems, sep="\n")
    if not problems and args.folder is None:
        shutil.rmtree(folder)
    else:
        print(f"Everything is in {folder}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
