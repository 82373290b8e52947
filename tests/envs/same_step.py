"""A step of an environment by other kernels than PyTorch's, in Triton or in C, against the plain path: what is compared."""

from __future__ import annotations

from typing import Any, Callable, Dict, List, Tuple

import numpy as np
import pytest
import torch as th

NORMALIZE: List[Dict[str, Any]] = [
    {},
    {"norm_obs": False},
    {"norm_reward": False},
    {"norm_obs": False, "norm_reward": False},
    {"training": False},
    {"clip_obs": 0.3, "clip_reward": 0.2, "gamma": 0.5, "epsilon": 1.0},
    {"clip_obs": np.float32(2.0), "clip_reward": 3, "gamma": np.float32(0.5), "training": np.bool_(False)},
]


def both(make: Callable[[], Any], **other: Any) -> Tuple[Any, Any]:
    """What ``make`` makes twice, stepped by PyTorch and, but for the simulator itself, by the other kernels.

    :param other: of ``compile_bookkeeping``
    """
    envs = make(), make()
    for env, options in zip(envs, ({"compiled": False}, other)):
        for layer in (env, env.unwrapped):
            layer.compile_bookkeeping(**options)
        env.reset_tensor()
    return envs


def check_steps(plain: Any, other: Any, n_steps: int = 40) -> None:
    """With their ends of episodes: observations, rewards, statistics and what is known of the episodes."""
    generator, device = th.Generator().manual_seed(0), plain.device
    n_done = 0
    for _ in range(n_steps):
        actions = (th.rand(plain.num_envs, 1, generator=generator) * 2.0 - 1.0).to(device)
        expected, found = plain.step_tensor(actions), other.step_tensor(actions)
        for name, want in expected._asdict().items():
            th.testing.assert_close(getattr(found, name), want, rtol=1e-5, atol=1e-6)
        for name in ("dones", "episode_returns", "episode_lengths", "obs_tensor"):
            th.testing.assert_close(getattr(other, name), getattr(plain, name), rtol=1e-5, atol=1e-6)
        for get in ("get_original_obs_tensor", "get_original_final_obs_tensor", "get_original_reward_tensor"):
            assert th.equal(getattr(other, get)(), getattr(plain, get)())
        assert other.returns == pytest.approx(plain.returns, rel=1e-12)
        assert other.obs_tensor is found.obs
        n_done += int(plain.dones.sum())
    assert n_done > 0
    for name in ("mean", "var", "count"):
        found, want = (getattr(env._state.moments, name) for env in (other, plain))
        th.testing.assert_close(found, want, rtol=1e-9, atol=1e-12)
