"""PPO with a network of one's own: layer normalisation between the layers."""

from __future__ import annotations

from typing import Any

import torch as th
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

import sb3_isaac


# --8<-- [start:network]
class Normalised(BaseFeaturesExtractor):
    """Features that both networks share."""

    def __init__(self, observation_space: Any, features_dim: int = 32) -> None:
        super().__init__(observation_space, features_dim)
        self.net = nn.Sequential(nn.Linear(4, features_dim), nn.LayerNorm(features_dim), nn.Tanh())

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.net(observations)  # type: ignore[no-any-return]


env = sb3_isaac.make_vec_env("IsaacGymCartpole-v0", n_envs=64, seed=0)
model = sb3_isaac.PPO(
    "MlpPolicy", env, n_steps=16, batch_size=1024, policy_kwargs={"features_extractor_class": Normalised, "net_arch": [32]}
)
model.learn(4096)
print(model.path)
# --8<-- [end:network]
