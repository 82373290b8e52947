"""PPO with a shared backbone, and PPO with a scheduled standard deviation and a tanh around the mean."""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

import sb3_isaac


# --8<-- [start:variants]
class Backbone(BaseFeaturesExtractor):
    """Both networks begin with these layers, and both their gradients reach them."""

    def __init__(self, observation_space: Any, features_dim: int = 64) -> None:
        super().__init__(observation_space, features_dim)
        self.net = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, features_dim), nn.Tanh())

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.net(observations)  # type: ignore[no-any-return]


class ScheduledStd(BaseCallback):
    """The variance of the actions falls in a straight line from 0.1 to 0.01; the mean goes through a tanh."""

    def _on_training_start(self) -> None:
        policy: Any = self.model.policy
        policy.action_net = nn.Sequential(policy.action_net, nn.Tanh())
        policy.log_std.requires_grad_(False)

    def _on_rollout_start(self) -> None:
        left = 1.0 - self.num_timesteps / self.model._total_timesteps
        self.model.policy.log_std.data.fill_(0.5 * math.log(0.01 + 0.09 * left))  # type: ignore[union-attr, operator]

    def _on_step(self) -> bool:
        return True


SHARED = {"policy_kwargs": {"features_extractor_class": Backbone, "net_arch": []}}
# --8<-- [end:variants]


def train(n_timesteps: int, callback: Any = None, **more: Any) -> float:
    """Mean return of 64 episodes after training."""
    env = sb3_isaac.VecNormalize(sb3_isaac.make_vec_env("IsaacGymCartpole-v0", n_envs=128, seed=0))
    model = sb3_isaac.PPO("MlpPolicy", env, seed=0, n_steps=16, n_minibatches=1, n_epochs=8, learning_rate=3e-3, **more)
    model.learn(n_timesteps, callback=callback)
    return float(sb3_isaac.evaluate(model, env, n_episodes=64).mean)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n-timesteps", type=int, default=100_000)
    n = parser.parse_args().n_timesteps
    print(f"shared backbone: {train(n, adaptive_lr_kl=0.02, **SHARED):.0f}")
    print(f"scheduled standard deviation: {train(n, callback=ScheduledStd()):.0f}")


if __name__ == "__main__":
    main()
