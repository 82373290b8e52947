"""PPO's models as files: to stock SB3 and back, and training that goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import stable_baselines3
import torch as th

from sb3_isaac import PPO, DeviceRolloutBuffer, VecNormalize
from tests.conftest import (
    CONTINUOUS,
    DISCRETE,
    check_in_stock_sb3,
    difference,
    make_env,
    parameters,
    save_for_stock_sb3,
)
from tests.ppo.conftest import make_model


def test_a_stock_model_loads_and_trains_on(tmp_path: Path) -> None:
    stock = make_model(stable_baselines3.PPO)
    stock.learn(8 * 16)
    stock.save(tmp_path / "stock.zip")
    env = make_env(seed=5)
    ours = PPO.load(tmp_path / "stock.zip", env, device="cpu")
    assert th.equal(parameters(ours), parameters(stock)) and isinstance(ours.rollout_buffer, DeviceRolloutBuffer)
    options = {"device": "cpu", "rollout_buffer_class": DeviceRolloutBuffer}  # which draws the same minibatches
    again = stable_baselines3.PPO.load(tmp_path / "stock.zip", make_env(seed=5), **options)
    for model in (ours, again):
        th.manual_seed(0)
        model.learn(8 * 16, reset_num_timesteps=False)
    assert difference(ours, again) < 2e-6
    assert not th.equal(parameters(ours), parameters(stock))


def test_training_goes_on_from_a_file(tmp_path: Path) -> None:
    """As if it had not been interrupted: Adam's state, the adapted learning rate, counters, the last observation."""
    results = []
    for interrupted in (False, True):
        env = make_env(max_episode_length=9)
        th.manual_seed(1)
        model = make_model(env=env, adaptive_lr_kl=0.01, learning_rate=2e-3, seed=None)
        model.learn(2 * 8 * 16)
        if interrupted:
            model.save(tmp_path / "model.zip")
            model = PPO.load(tmp_path / "model.zip", env, device="cpu", force_reset=False)
            assert 1e-4 < model.adapted_lr != 2e-3
        th.manual_seed(0)
        model.learn(2 * 8 * 16, reset_num_timesteps=False)
        results.append((parameters(model), model.num_timesteps, model._n_updates, model.adapted_lr, model._last_obs))
    assert all(np.array_equal(one, other) for one, other in zip(*results))


def test_parameters_and_environments_can_be_exchanged(tmp_path: Path) -> None:
    one, other = make_model(), make_model(seed=4)
    for model in (one, other):
        model.learn(8 * 16)
    one.set_parameters(other.get_parameters())
    assert th.equal(parameters(one), parameters(other))
    new_env = make_env(seed=9)
    one.set_env(new_env)
    other.set_env(make_env(seed=9))
    for model in (one, other):
        th.manual_seed(0)
        model.learn(8 * 16)
    assert one._run.rollout.env is new_env
    assert th.equal(parameters(one), parameters(other))  # so Adam's state went along

    one.save(tmp_path / "model.zip")
    without_env = PPO.load(tmp_path / "model.zip", device="cpu")
    without_env.predict(np.zeros((8, 4), np.float32))
    without_env.set_env(make_env())
    without_env.learn(8 * 16)
    assert isinstance(without_env.rollout_buffer, DeviceRolloutBuffer)
    other_number = PPO.load(tmp_path / "model.zip", make_env(n_envs=4), device="cpu", n_minibatches=2)
    assert other_number.learn(4 * 16).batch_size == 32


@pytest.mark.slow
def test_saved_models_load_in_stock_sb3_without_this_package(tmp_path: Path) -> None:
    for name, env_id in (("box", CONTINUOUS), ("discrete", DISCRETE)):
        env = VecNormalize(make_env(env_id))
        model = make_model(env=env, n_minibatches=1, adaptive_lr_kl=0.01, spread_time_limits=True)
        model.learn(2 * 8 * 16)
        save_for_stock_sb3(model, tmp_path, name)
    check_in_stock_sb3(tmp_path)
