"""What the tests of PPO share."""

from __future__ import annotations

import warnings
from typing import Any

import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import FlattenExtractor

from sb3_isaac import PPO
from tests.conftest import make_env


class OwnExtractor(FlattenExtractor):
    """Not SB3's, so the general path has to be taken."""


def make_model(cls: Any = PPO, env: Any = None, **options: Any) -> Any:
    settings = {"n_steps": 16, "batch_size": 64, "n_epochs": 2, "seed": 3, "device": "cpu", **options}
    if "n_minibatches" in options and "batch_size" not in options:
        del settings["batch_size"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of batch sizes that do not divide the rollout, and SB3's of GPUs
        return cls("MlpPolicy", make_env() if env is None else env, **settings)


class Looks(BaseCallback):
    """At each step, as far as training knows"""

    def _on_step(self) -> bool:
        return True


def learn(model: Any, rollouts: int, callback: Any = None) -> Any:
    """Train with random numbers that do not depend on what was made before."""
    th.manual_seed(5)
    return model.learn(rollouts * model.n_steps * model.n_envs, callback)
