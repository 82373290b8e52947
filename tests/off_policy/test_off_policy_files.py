"""Models and replay buffers of DQN and DDPG as files: to stock SB3 and back, and training that goes on."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import stable_baselines3
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.save_util import save_to_pkl

from sb3_isaac import DeviceReplayBuffer
from sb3_isaac.buffers.sb3_buffer import SB3_HAS_N_STEPS
from tests.conftest import ENV_IDS, check_in_stock_sb3, make_env, parameters, save_for_stock_sb3
from tests.off_policy.conftest import ALGOS, STOCK, assert_close, feed, make_model, random_samples, sb3_options, start

both = pytest.mark.parametrize("algo", ["dqn", "ddpg"])


@pytest.mark.slow
def test_saved_models_load_in_stock_sb3_without_this_package(tmp_path):
    for name in ("dqn", "ddpg"):
        extra = dict(per_env_epsilon=(1.0, 0.01), double_q=True) if name == "dqn" else dict(per_env_noise=(1.0, 0.1))
        kwargs = dict(storage_device="cpu")
        model = make_model(name, n_steps=3, replay_buffer_kwargs=kwargs, reward_scale=0.1, **extra)
        model.learn(400)
        save_for_stock_sb3(model, tmp_path, name)
    check_in_stock_sb3(tmp_path)


@both
def test_stock_models_load_here_and_train_on(algo, tmp_path):
    stock = make_model(algo, cls=STOCK[algo])
    stock.learn(160)
    stock.save(tmp_path / "stock.zip")
    stock.save_replay_buffer(tmp_path / "stock.pkl")
    ours = ALGOS[algo].load(tmp_path / "stock.zip", make_env(ENV_IDS[algo]), device="cpu")
    assert th.equal(parameters(ours), parameters(stock))
    ours.load_replay_buffer(tmp_path / "stock.pkl")
    assert type(ours.replay_buffer) is DeviceReplayBuffer and ours.replay_buffer.pos == 20
    assert np.allclose(ours.replay_buffer.rewards[:20].numpy(), stock.replay_buffer.rewards[:20])
    assert ours.num_timesteps == 160
    ours.learn(160, reset_num_timesteps=False)
    assert ours.num_timesteps == 320 and ours._run.fast is not None and ours.replay_buffer.pos == 40


@both
def test_training_goes_on_from_files(algo, tmp_path):
    """As if it had not been interrupted, but for the reset that SB3 makes too."""
    first = make_model(algo, n_steps=3)
    first.learn(400)
    first.save(tmp_path / "model")
    first.save_replay_buffer(tmp_path / "buffer")
    loaded = ALGOS[algo].load(tmp_path / "model", make_env(ENV_IDS[algo]), device="cpu")
    loaded.load_replay_buffer(tmp_path / "buffer")
    assert loaded.n_steps == 3 and type(loaded.replay_buffer) is DeviceReplayBuffer
    first.set_env(first.get_env())  # SB3 resets the env at the next learn(), as after load()
    for model in (first, loaded):
        model.set_random_seed(5)
        model.learn(400, reset_num_timesteps=False)
    assert th.equal(parameters(first), parameters(loaded))
    assert first.num_timesteps == loaded.num_timesteps == 800


@both
@pytest.mark.parametrize("given", [{}, dict(n_steps=3)] if SB3_HAS_N_STEPS else [{}])
def test_the_loaded_buffer_keeps_its_own_options(algo, given, tmp_path):
    """As in SB3: whatever the model that loads it would have made."""
    stock = make_model(
        algo, cls=STOCK[algo], buffer_size=480, replay_buffer_kwargs=dict(handle_timeout_termination=False), **given
    )
    stock.learn(160)
    stock.save_replay_buffer(tmp_path / "stock.pkl")
    other = make_model(algo, n_steps=5 if given else 1)
    for model in (other, make_model(algo, cls=STOCK[algo])):
        model.load_replay_buffer(tmp_path / "stock.pkl")
        buffer = model.replay_buffer
        assert (buffer.buffer_size, buffer.handle_timeout_termination, buffer.pos) == (60, False, 20)
        assert getattr(buffer, "n_steps", 1) == given.get("n_steps", 1)
    other.learn(400, reset_num_timesteps=False)
    assert other.replay_buffer is not None and other.replay_buffer.n_steps == given.get("n_steps", 1)


@both
@pytest.mark.skipif(not SB3_HAS_N_STEPS, reason="before SB3 2.7 there was no gamma to lose")
def test_a_buffer_with_its_own_gamma_keeps_it(algo, tmp_path):
    for n_steps in (dict(n_steps=3), dict(replay_buffer_kwargs=dict(n_steps=3))):
        kwargs = {**n_steps, "replay_buffer_kwargs": {"gamma": 0.5, **n_steps.get("replay_buffer_kwargs", {})}}
        model = make_model(algo, **kwargs)
        model.learn(80)
        model.save(tmp_path / "model")
        for cls in (STOCK[algo], ALGOS[algo]):
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                loaded = cls.load(tmp_path / "model", make_env(ENV_IDS[algo]), device="cpu")
            assert (loaded.replay_buffer.n_steps, loaded.replay_buffer.gamma, loaded.gamma) == (3, 0.5, 0.99)
        loaded.save(tmp_path / "again")
        again = STOCK[algo].load(tmp_path / "again", make_env(ENV_IDS[algo]), device="cpu")
        assert (again.replay_buffer.n_steps, again.replay_buffer.gamma) == (3, 0.5)


@both
def test_a_loaded_model_keeps_its_storage_device(algo, tmp_path, monkeypatch):
    model = make_model(algo, replay_buffer_kwargs=dict(storage_device="cpu"))
    model.save(tmp_path / "model")
    loaded = ALGOS[algo].load(tmp_path / "model", make_env(ENV_IDS[algo]), device="cpu")
    assert not loaded.replay_buffer._storage_follows_device
    loaded.storage_device = "cuda:7"  # as from a machine with more of them
    monkeypatch.setattr(th.cuda, "is_available", lambda: False)
    loaded.save(tmp_path / "elsewhere")
    assert (
        ALGOS[algo].load(tmp_path / "elsewhere", make_env(ENV_IDS[algo]), device="cpu").replay_buffer.storage_device.type
        == "cpu"
    )
    assert make_model(algo).replay_buffer._storage_follows_device


class OwnBuffer(ReplayBuffer):
    pass


@both
def test_a_loaded_buffer_of_another_class_is_not_replaced_in_silence(algo, tmp_path):
    env = make_env(ENV_IDS[algo])
    buffer = OwnBuffer(160, env.observation_space, env.action_space, "cpu", n_envs=env.num_envs)
    save_to_pkl(tmp_path / "own.pkl", buffer)
    model = make_model(algo, env)
    model.load_replay_buffer(tmp_path / "own.pkl", trust=True)
    assert type(model.replay_buffer) is OwnBuffer
    with pytest.warns(UserWarning, match="OwnBuffer works in numpy"):
        model.learn(80)
    assert model.replay_buffer is not buffer and type(model.replay_buffer) is OwnBuffer and model.replay_buffer.pos == 10


@both
def test_models_load_without_an_environment(algo, tmp_path):
    model = make_model(algo, n_steps=3)
    model.learn(400)
    model.save(tmp_path / "model")
    loaded = ALGOS[algo].load(tmp_path / "model", device="cpu")
    obs = np.random.default_rng(0).normal(size=(9, 4)).astype(np.float32)
    assert np.array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])
    loaded.set_env(make_env(ENV_IDS[algo]))
    loaded.learn(400, reset_num_timesteps=False)
    assert type(loaded.replay_buffer) is DeviceReplayBuffer and loaded.replay_buffer.n_steps == 3
    loaded.save(tmp_path / "again")
    assert ALGOS[algo].load(tmp_path / "again", device="cpu").num_timesteps == loaded.num_timesteps


@both
def test_parameters_can_be_exchanged_in_the_middle(algo):
    """set_parameters replaces the optimizer's state, to which the flat Adam has to be bound anew."""
    samples = random_samples(algo, 8 * 16)
    ours, stock = start(make_model(algo)), start(make_model(algo, cls=STOCK[algo]))
    for model in (ours, stock):
        feed(model, samples, 16)
        model.train(4, 16)
    saved = ours.get_parameters()
    other = make_model(algo, seed=3)
    ours.set_parameters(other.get_parameters())
    ours.set_parameters({key: value for key, value in stock.get_parameters().items()})
    for model in (ours, stock):
        model.train(4, 16)
    assert_close(ours, stock)
    assert saved.keys() == stock.get_parameters().keys()


@both
def test_the_saved_observation_is_the_present_one(algo, tmp_path):
    model = make_model(algo)
    model.learn(80)
    model.save(tmp_path / "model")
    data, _, _ = stable_baselines3.common.save_util.load_from_zip_file(tmp_path / "model.zip", device="cpu")
    assert isinstance(data["_last_obs"], np.ndarray)
    assert np.array_equal(data["_last_obs"], model.env.obs_tensor.numpy())
    assert not any(isinstance(value, th.Tensor) for value in data.values())
    assert sb3_options(algo)["batch_size"] == data["batch_size"]
