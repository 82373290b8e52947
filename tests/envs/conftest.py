"""Environments and comparisons for the tests of VecNormalize and the other wrappers."""

from __future__ import annotations

from typing import Any, List

import numpy as np
import pytest
import stable_baselines3.common.vec_env as sb3
import torch as th
from stable_baselines3.common.running_mean_std import RunningMeanStd

from sb3_isaac import IsaacVecEnv, VecNormalize
from tests.conftest import make_env, some_actions

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
"""SB3 averages batches in float32 and we in float64."""


def short_env(**kwargs: Any) -> IsaacVecEnv:
    """Both kinds of end come often."""
    env: IsaacVecEnv = make_env(**{"max_episode_length": 25, **kwargs})
    return env


def assert_same_statistics(ours: VecNormalize, theirs: sb3.VecNormalize, returns: bool = True) -> None:
    for name in ("obs_rms", "ret_rms"):
        assert hasattr(ours, name) == hasattr(theirs, name)
        if hasattr(theirs, name):
            a, b = getattr(ours, name), getattr(theirs, name)
            assert isinstance(a, RunningMeanStd) and np.shape(a.mean) == np.shape(b.mean)
            np.testing.assert_allclose(a.mean, b.mean, **CLOSE)
            np.testing.assert_allclose(a.var, b.var, **CLOSE)
            assert a.count == pytest.approx(b.count, rel=1e-12)
    if returns:
        np.testing.assert_allclose(ours.returns, theirs.returns, **CLOSE)


def compare_steps(ours: Any, theirs: Any, actions: List[np.ndarray], device: str = "cpu") -> int:
    """Step ours in tensors and theirs in numpy; everything that they return must agree. Returns how many episodes ended."""
    n_done = 0
    for action in actions:
        result = ours.step_tensor(th.from_numpy(action).to(device))
        obs, rewards, dones, infos = theirs.step(action)
        np.testing.assert_allclose(result.obs.cpu().numpy(), obs, **CLOSE)
        np.testing.assert_allclose(ours.obs_tensor.cpu().numpy(), obs, **CLOSE)
        np.testing.assert_allclose(result.reward.cpu().numpy(), rewards, **CLOSE)
        assert (ours.dones.cpu().numpy() == dones).all()
        ours_infos = ours.make_infos(result)
        for i in np.flatnonzero(dones):
            mine, info = ours_infos[int(i)], infos[int(i)]
            np.testing.assert_allclose(mine["terminal_observation"], info["terminal_observation"], **CLOSE)
            np.testing.assert_allclose(result.final_obs[i].cpu().numpy(), info["terminal_observation"], **CLOSE)
            assert mine["TimeLimit.truncated"] == info["TimeLimit.truncated"]
            assert (mine["episode"]["r"], mine["episode"]["l"]) == (info["episode"]["r"], info["episode"]["l"])  # raw
        n_done += int(dones.sum())
    return n_done


def trained(cls: Any = VecNormalize) -> Any:
    env = cls(short_env(), gamma=0.97, clip_obs=5.0)
    env.action_space.seed(0)  # as an algorithm does: a numpy generator that has to be pickled
    env.reset()
    for action in some_actions(env, 40):
        env.step(action)
    if cls is VecNormalize:
        env.step_tensor(th.zeros(env.num_envs, 1))
    return env
