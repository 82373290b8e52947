"""What the tests on other people's simulators share: the command line, and the model that comes out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import stable_baselines3

import sb3_isaac
from tests.conftest import REPOSITORY


def command(*words: str) -> str:
    """What ``sb3-isaac`` prints, which must succeed."""
    line = [sys.executable, "-m", "sb3_isaac.cli", *words]
    done = subprocess.run(line, cwd=str(REPOSITORY), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


def mean_return(output: str) -> float:
    """Of what ``sb3-isaac evaluate`` has printed."""
    return float(output.partition("mean return")[2].split()[0])


def check_in_stock_sb3(path: Path, obs_dim: int) -> None:
    """Stock SB3 loads a PPO model, which acts there as here."""
    obs = np.random.default_rng(0).normal(size=(32, obs_dim)).astype(np.float32)
    stock, ours = stable_baselines3.PPO.load(path, device="cpu"), sb3_isaac.PPO.load(path, device="cpu")
    assert np.array_equal(stock.predict(obs, deterministic=True)[0], ours.predict(obs, deterministic=True)[0])
