"""VecFrameStack in tensors against SB3's own, and the check for wrappers that would make training slow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3.common.vec_env as sb3
from stable_baselines3.common.vec_env.base_vec_env import VecEnvWrapper

from sb3_isaac import DDPG, PPO, VecFrameStack, VecNormalize
from sb3_isaac.envs.tensor_path import FORWARDED, TensorVecEnv, supports_tensors, wrapper_without_tensors
from tests.conftest import N_ENVS, some_actions
from tests.envs.conftest import CLOSE, assert_same_statistics, compare_steps, short_env

# -- frame stacking -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [False, True])
def test_frame_stack_equals_sb3(normalize: bool) -> None:
    ours: Any = VecFrameStack(VecNormalize(short_env()) if normalize else short_env(), 3)
    theirs: Any = sb3.VecFrameStack(sb3.VecNormalize(short_env()) if normalize else short_env(), 3)
    assert ours.observation_space == theirs.observation_space and supports_tensors(ours)
    for _ in range(2):
        np.testing.assert_allclose(ours.reset_tensor().numpy(), theirs.reset(), **CLOSE)
        assert compare_steps(ours, theirs, some_actions(ours, 40)) > N_ENVS
    for action in some_actions(ours, 30):  # the numpy path goes on from there
        mine, expected = ours.step(action), theirs.step(action)
        for a, b in zip(mine[:3], expected[:3]):
            np.testing.assert_allclose(a, b, **CLOSE)
        for i in np.flatnonzero(expected[2]):
            np.testing.assert_allclose(mine[3][i]["terminal_observation"], expected[3][i]["terminal_observation"], **CLOSE)
        np.testing.assert_allclose(ours.obs_tensor.numpy(), expected[0], **CLOSE)
    compare_steps(ours, theirs, some_actions(ours, 20))
    np.testing.assert_allclose(ours.reset(), theirs.reset(), **CLOSE)
    compare_steps(ours, theirs, some_actions(ours, 5))


def test_frame_stack_under_normalize_and_on_other_environments() -> None:
    ours, theirs = VecNormalize(VecFrameStack(short_env(), 2)), sb3.VecNormalize(sb3.VecFrameStack(short_env(), 2))
    np.testing.assert_allclose(ours.reset_tensor().numpy(), theirs.reset(), **CLOSE)
    compare_steps(ours, theirs, some_actions(ours, 40))
    assert_same_statistics(ours, theirs)
    other = VecFrameStack(sb3.DummyVecEnv([lambda: gym.make("CartPole-v1")]), 2)
    assert other.reset().shape == (1, 8) and other.step(np.array([0]))[0].shape == (1, 8) and not supports_tensors(other)
    with pytest.raises(RuntimeError, match="no tensor path"):
        other.reset_tensor()


# -- slow wrappers ------------------------------------------------------------------------------------------------------


class SomebodysWrapper(VecEnvWrapper):
    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        return self.venv.step_wait()


@pytest.mark.parametrize(
    "wrap, way_out",
    [
        (sb3.VecNormalize, "use sb3_isaac.VecNormalize"),
        (lambda env: sb3.VecFrameStack(env, 2), "use sb3_isaac.VecFrameStack"),
        (sb3.VecMonitor, "monitor_dir"),
        (sb3.VecCheckNan, "leave it out"),
        (lambda env: sb3.VecVideoRecorder(env, "unused", lambda step: False), "separate environment"),
        (SomebodysWrapper, "tensor_path = True"),
    ],
)
@pytest.mark.filterwarnings("ignore:The environment is already wrapped with a `Monitor`")
def test_a_slow_wrapper_is_named(wrap: Any, way_out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    env = short_env(render_mode="rgb_array")
    slow = wrap(env)
    for wrapped in (slow, VecNormalize(slow), VecFrameStack(VecNormalize(slow), 2)):
        sentence = wrapper_without_tensors(wrapped)
        assert sentence is not None and way_out in sentence
        assert sentence.startswith(f"{type(slow).__name__} has no tensor path")


def test_no_wrapper_is_in_the_way() -> None:
    dummy = sb3.DummyVecEnv([lambda: gym.make("CartPole-v1")])
    for env in (short_env(), VecFrameStack(VecNormalize(short_env()), 2), dummy, sb3.VecMonitor(dummy), None):
        assert wrapper_without_tensors(env) is None


def test_wrappers_have_what_the_environment_inside_has() -> None:
    inside = short_env()
    for env in (VecNormalize(inside), VecFrameStack(VecNormalize(inside), 2)):
        # As attributes: VecEnvWrapper.__getattr__ is slow, and refuses what more than one of the layers inside has
        assert {*TensorVecEnv.__annotations__, *FORWARDED} <= set(vars(env))
        for name in FORWARDED:
            mine, its = getattr(env, name), getattr(inside, name)
            assert mine is its or mine == its, name  # bound methods are equal and not the same


@pytest.mark.filterwarnings("ignore:The environment is already wrapped with a `Monitor`")
def test_algorithms_warn_of_what_is_slow_and_train_with_all() -> None:
    for cls, kwargs in ((PPO, {"n_steps": 4, "batch_size": 32}), (DDPG, {"learning_starts": 32, "batch_size": 32})):
        model = cls("MlpPolicy", sb3.VecMonitor(short_env()), device="cpu", **kwargs)
        with pytest.warns(UserWarning, match="in numpy as in SB3.*VecMonitor has no tensor path"):
            model.learn(100)
        env = VecNormalize(VecFrameStack(short_env(), 2))
        cls("MlpPolicy", env, device="cpu", **kwargs).learn(128)
        assert env.obs_rms.count > 128 and env.ret_rms.count > 100
    model = DDPG("MlpPolicy", VecFrameStack(VecNormalize(short_env()), 2), device="cpu")
    with pytest.raises(ValueError, match="put VecNormalize outside"):  # SB3 fails there, too, with a numpy message
        model.learn(100)
