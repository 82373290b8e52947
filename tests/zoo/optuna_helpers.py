"""What the tests of hyperparameter searches share."""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional

import optuna

from sb3_isaac.cli import dispatch as cli
from sb3_isaac.zoo import manager

REPOSITORY = Path(__file__).resolve().parents[2]
ENV_IDS = {"ppo": "IsaacGymCartpole-v0", "dqn": "IsaacGymCartpoleDiscrete-v0", "ddpg": "IsaacGymCartpole-v0"}
PPO_ID = ENV_IDS["ppo"]
LONG_SEARCH = f"optimize --algo ppo --env {PPO_ID} --n-trials 50 -n 10000000"
RUNNING, FAIL, PRUNED = optuna.trial.TrialState.RUNNING, optuna.trial.TrialState.FAIL, optuna.trial.TrialState.PRUNED


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


def start(flags: str, folder: Path) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "sb3_isaac.cli", *shlex.split(flags)]
    return subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def call(argv: List[str]) -> int:
    before = list(sys.argv)
    try:
        return cli.main(argv)
    finally:
        sys.argv = before
