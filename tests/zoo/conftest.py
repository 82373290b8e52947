"""What the tests of rl_zoo3's commands and of hyperparameter searches share."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional

import optuna

from sb3_isaac.cli import dispatch as cli
from sb3_isaac.zoo import manager
from tests.conftest import CONTINUOUS, ENV_IDS, child_environment

LONG_SEARCH = f"optimize --algo ppo --env {CONTINUOUS} --n-trials 50 -n 1000000000"
"""Its first trial does not end while a test looks at it, however fast the machine."""
RUNNING, FAIL = optuna.trial.TrialState.RUNNING, optuna.trial.TrialState.FAIL


def make_manager(algo: str = "ppo", env_id: Optional[str] = None, **kwargs: Any) -> Any:
    """What rl_zoo3.train -optimize makes, ready to search, with trials of a fraction of a second."""
    settings: Dict[str, Any] = {
        "n_timesteps": 512,
        "eval_freq": -1,
        "n_eval_episodes": 8,
        "hyperparams": {"n_envs": 32},
        "env_kwargs": {"max_episode_length": 40},
        "optimize_hyperparameters": True,
        "n_evaluations": None,
        "n_trials": 2,
        "seed": 0,
        "verbose": 0,
        "device": "cpu",
        "no_optim_plots": True,
    }
    experiment = manager.ExperimentManager(
        argparse.Namespace(), algo, env_id or ENV_IDS[algo], "logs", **{**settings, **kwargs}
    )
    experiment.setup_experiment()
    return experiment


def start(flags: str, folder: Path, **options: Any) -> subprocess.Popen[str]:
    """Start the command sb3-isaac in a folder and do not wait for it."""
    command = [sys.executable, "-m", "sb3_isaac.cli", *shlex.split(flags)]
    pipes: Dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=folder, env=child_environment(), **pipes, **options)


def call(argv: List[str]) -> int:
    """Run the command sb3-isaac in this process. Returns its exit status."""
    before = list(sys.argv)
    try:
        return cli.main(argv)
    finally:
        sys.argv = before
