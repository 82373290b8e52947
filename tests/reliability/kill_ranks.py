"""Ranks of trainings under torchrun that are killed at random moments: ``python -m tests.reliability.kill_ranks``.

    [--kills 10] [--seed N] [--folder DIR]

torchrun starts the ranks again each time, and what they come to must be what a training comes to that nobody disturbs, bit for
bit: so nothing is lost but the time since the last checkpoint. soak.py runs this, too.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Dict, List, Optional, Set, Tuple

import numpy as np
import torch as th

from sb3_isaac import DDPG, DQN, PPO
from sb3_isaac.files import checkpoint as files
from tests.conftest import ENV_IDS, child_environment, parameters
from tests.ranks_helpers import free_port
from tests.reliability.killing import damaged

N_RANKS = 2
ALGOS: Dict[str, Any] = {"ppo": PPO, "dqn": DQN, "ddpg": DDPG}
OFF_POLICY = "n_envs:8 buffer_size:10000 batch_size:64 train_freq:4 gradient_steps:1 learning_starts:500"
FLAGS = {
    "ppo": "-n 120000 --save-freq 2048 -params n_envs:8 n_steps:16 n_minibatches:2 n_epochs:2",
    "dqn": f"-n 80000 --save-freq 2048 -params {OFF_POLICY}",
    "ddpg": f"-n 60000 --save-freq 2048 -params {OFF_POLICY}",
}
GOES_ON = re.compile(r"Training goes on at ([0-9,]+) of [0-9,]+ timesteps, as if it had not been interrupted")
SENTENCE = re.compile(r"^(?:\[.*?\]:)?sb3-isaac train: ", re.M)


def start(algo: str, folder: Path, name: str) -> Tuple[subprocess.Popen[bytes], Path]:
    """Start a training. Returns torchrun's process and the file with all output."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(N_RANKS), "--max-restarts", "1000"]
    command += ["--master-port", str(free_port()), "--rdzv-id", name]
    command += ["-m", "sb3_isaac.cli", "train", "--algo", algo, "--env", ENV_IDS[algo], "-f", str(folder), "--device", "cpu"]
    command += ["--eval-freq", "20000", "--seed", "1", "--keep-checkpoints", "3", *FLAGS[algo].split()]
    output = folder / f"{algo}.txt"
    folder.mkdir(parents=True, exist_ok=True)
    environment = {**child_environment(), "OMP_NUM_THREADS": "1"}
    with output.open("wb") as file:
        return subprocess.Popen(command, env=environment, stdout=file, stderr=subprocess.STDOUT), output


def ranks_of(name: str, but: Set[int]) -> Dict[int, int]:
    """Process ids of the ranks of a torchrun, by number, without those that are known already."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            variables = dict(part.partition("=")[::2] for part in path.read_bytes().decode(errors="replace").split("\0"))
            if variables.get("TORCHELASTIC_RUN_ID") == name and int(path.parent.name) not in but:
                found[int(variables["RANK"])] = int(path.parent.name)
    return found


def newest(run: Optional[Path]) -> int:
    """Timesteps of the newest checkpoint of a run that all ranks have."""
    for name, steps in files.all_in(run) if run is not None else ():
        with suppress(files.IncompleteCheckpoint):
            parts = [files.read(files.of_rank(name, rank)) for rank in range(N_RANKS)]
            if all(part is not None and part.num_timesteps == steps for part in parts):
                return steps
    return 0


def newest_run(folder: Path, algo: str) -> Optional[Path]:
    runs = sorted((folder / algo).glob(f"{ENV_IDS[algo]}_*"), key=lambda path: int(path.name.rpartition("_")[2]))
    return runs[-1] if runs else None


def train(
    algo: str, folder: Path, name: str, rng: random.Random, n_kills: int, longest: float
) -> Tuple[int, List[str], float]:
    """Train, and kill a rank so many times. Returns how many were killed, what went wrong, and the seconds of it all.

    :param longest: seconds after a start within which a kill comes
    """
    process, output = start(algo, folder, name)
    problems, killed, known = [], 0, set()  # type: List[str], int, Set[int]
    began = time.monotonic()
    saved: List[Tuple[int, int]] = []
    """At each kill: timesteps of the newest checkpoint, and how often training had gone on before"""
    while process.poll() is None:
        present = ranks_of(name, known)
        if killed == n_kills or len(present) < N_RANKS:
            time.sleep(0.1)
            continue
        known |= set(present.values())
        seconds, rank = rng.uniform(0.0, longest), rng.randrange(N_RANKS)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            break
        saved.append((newest(newest_run(folder, algo)), len(GOES_ON.findall(output.read_text(errors="replace")))))
        with suppress(ProcessLookupError):
            os.kill(present[rank], signal.SIGKILL)
            killed += 1
            print(f"{name}: rank {rank} killed after {seconds:.1f} s, newest checkpoint: {saved[-1][0]} timesteps", flush=True)
    text = output.read_text(errors="replace")
    went_on = [int(number.replace(",", "")) for number in GOES_ON.findall(text)]
    if process.returncode != 0:
        problems.append(f"{name} ended with {process.returncode}, see {output}")
    for steps, times in saved:  # a rank killed in its start goes on nowhere
        if steps > 0 and "has finished" not in text and (went_on[times:] or [0])[0] < steps:
            problems.append(f"{name}: a checkpoint of {steps} timesteps was there, it went on at {went_on[times:]}")
    if "but not exactly as it would have" in text or "Traceback" in text.replace("Traceback : to enable", ""):
        problems.append(f"{name}: not exact, or a traceback, see {output}")
    if len(SENTENCE.findall(text)) > killed:
        problems.append(f"{name}: more than a sentence for each kill, see {output}")
    return killed, problems, time.monotonic() - began


def result(run: Optional[Path], algo: str) -> Dict[str, Any]:
    """What a run has come to, without times."""
    assert run is not None
    model = ALGOS[algo].load(run / f"{ENV_IDS[algo]}.zip", device="cpu")
    rows = np.genfromtxt(run / "0.monitor.csv", delimiter=",", skip_header=2, usecols=(0, 1))
    evaluations = np.load(run / "evaluations.npz")
    return {
        "parameters": parameters(model),
        "optimizers": [x for value in optimizer_tensors(model) for x in value],
        "timesteps": th.tensor(model.num_timesteps),
        "episodes": th.as_tensor(rows),
        "evaluations": th.as_tensor(evaluations["results"]),
    }


def optimizer_tensors(model: Any) -> List[List[th.Tensor]]:
    states = [state for name, state in sorted(model.get_parameters().items()) if "optimizer" in name]
    return [[x for _, one in sorted(state["state"].items()) for x in one.values() if th.is_tensor(x)] for state in states]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(th.equal(one, other))


def killed_ranks(folder: Path, n_kills: int, rng: random.Random) -> List[str]:
    """Kill ranks of trainings of each algorithm until there were so many kills. Returns what went wrong."""
    problems: List[str] = []
    wanted: Dict[str, Tuple[Dict[str, Any], float]] = {}
    number, left = 0, n_kills
    while left > 0:
        algo = list(ALGOS)[number % len(ALGOS)]
        if algo not in wanted:
            _, found, seconds = train(algo, folder / "ranks undisturbed", f"{algo}-undisturbed-{os.getpid()}", rng, 0, 0.0)
            problems += found
            wanted[algo] = result(newest_run(folder / "ranks undisturbed", algo), algo), seconds
        expected, seconds = wanted[algo]
        here = folder / f"ranks {number}"
        killed, found, _ = train(algo, here, f"{algo}-{number}-{os.getpid()}", rng, min(left, -(-n_kills // 3)), seconds)
        problems += found + damaged(here)
        if not found:
            got = result(newest_run(here, algo), algo)
            problems += [f"{algo}, run {number}: other {name}" for name in expected if not same(expected[name], got[name])]
        number, left = number + 1, left - killed
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of the moments of the kills")
    parser.add_argument("--folder", type=Path, help="to work in (default: a temporary one)")
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp(prefix="ranks"))
    print(f"seed {args.seed}, in {folder}", flush=True)
    problems = killed_ranks(folder, args.kills, random.Random(args.seed))
    print(*problems, sep="\n")
    print(f"{args.kills} kills, {len(problems)} problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
