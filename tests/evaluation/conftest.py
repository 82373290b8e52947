"""A policy that balances the pole without training."""

from __future__ import annotations

from typing import Any

import torch as th
from stable_baselines3 import PPO

GAINS = [0.02, 0.06, -0.5, -0.1]
"""A linear controller that balances the pole for a whole episode."""


def balancing_model(env: Any) -> PPO:
    """A PPO model whose deterministic policy is the linear controller."""
    model = PPO("MlpPolicy", env, policy_kwargs={"net_arch": []}, device="cpu", seed=0, n_steps=8, batch_size=8)
    with th.no_grad():
        model.policy.action_net.weight.copy_(th.tensor([GAINS]))
        model.policy.action_net.bias.zero_()
    return model
