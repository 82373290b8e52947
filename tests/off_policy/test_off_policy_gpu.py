"""DQN and DDPG on a GPU: no host synchronisation, CUDA graphs, and files that go to machines without one."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import stable_baselines3
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_isaac import VecNormalize
from tests.conftest import ENV_IDS, make_env, parameters
from tests.off_policy.conftest import ALGOS, STOCK, assert_close, feed, random_samples, sb3_options, start

pytestmark = [
    pytest.mark.skipif(not th.cuda.is_available(), reason="needs an NVIDIA GPU"),
    pytest.mark.parametrize("algo", ["dqn", "ddpg"]),
]


def make(algo, n_envs=64, cls=None, device="cuda", normalized=False, **options):
    env = make_env(ENV_IDS[algo], n_envs, device=device)
    env = VecNormalize(env) if normalized else env
    extra = {} if cls is STOCK[algo] else dict(n_steps=3)
    options = sb3_options(algo, **{**extra, "device": device, "learning_starts": 2 * n_envs, **options})
    return (cls or ALGOS[algo])("MlpPolicy", env, **options)


@pytest.mark.parametrize("compile", [False, True])
def test_update_equals_sb3(algo, compile):
    samples = random_samples(algo, 12 * 24)
    samples = type(samples)(*(None if x is None else x.cuda() for x in samples))
    options = dict(n_envs=24, gamma=0.99)
    models = [start(make(algo, n_steps=1, compile=compile, **options)), start(make(algo, cls=STOCK[algo], **options))]
    feed(models[1], samples, 24)
    ours = models[0].replay_buffer  # where the samples are drawn from, in order
    for rows in th.arange(12 * 24, device="cuda").split(24):
        obs, actions, next_obs, dones, rewards, _ = (None if x is None else x[rows] for x in samples)
        ours.add_tensors(obs, next_obs, actions, rewards[:, 0], dones[:, 0] > 0, th.zeros_like(dones[:, 0] > 0))
    places = iter(th.arange(12 * 24, device="cuda").split(3 * 24))
    ours.draw = lambda n: next(places)
    for model in models:
        for _ in range(4):
            model.train(3, 24)
    if compile:
        assert len(models[0]._run.updates.graphed_update.graphs) == 1
    assert_close(models[0], models[1], atol=1e-5)


@pytest.mark.parametrize("normalized", [False, True])
def test_graphs_change_nothing(algo, normalized):
    models = []
    for compile in (False, True):  # one after the other: both are seeded when they are made
        models.append(make(algo, normalized=normalized, compile=compile, train_freq=2, gradient_steps=2))
        first = parameters(models[-1])
        models[-1].learn(64 * 24)
    assert models[1]._run.rollout.graphed_step.graphs
    assert models[0].replay_buffer.pos == models[1].replay_buffer.pos
    mine, theirs = (model.replay_buffer._storage for model in models)
    # The first steps, before rounding differences of graph and eager kernels grow
    assert th.allclose(mine[:12], theirs[:12], atol=1e-4)
    assert models[0]._n_updates == models[1]._n_updates == 22
    a, b = (parameters(model) for model in models)
    assert float((a - b).norm()) < 0.1 * float((a - first).norm())


@pytest.mark.parametrize("compile", [False, True])
def test_no_host_synchronisation(algo, compile):
    model = start(make(algo, compile=compile))
    callback = model._init_callback(None)

    def iteration():
        given = (model.train_freq, model.replay_buffer, model.action_noise, model.learning_starts, None)
        model.collect_rollouts(model.env, callback, *given)
        if model.num_timesteps > model.learning_starts:
            model.train(2, 32)

    for _ in range(8):  # random steps, first uses and captures
        iteration()
    th.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(30):
            iteration()
    finally:
        th.cuda.set_sync_debug_mode("default")


class Look(BaseCallback):
    def _on_step(self):
        for name in ("actions", "rewards", "dones", "new_obs"):
            assert len(np.asarray(self.locals[name])) == 64
        return all(isinstance(info, dict) for info in self.locals["infos"])


def test_learn_logs_and_same_seed_same_result(algo):
    results = []
    for _ in range(2):
        model = make(algo, compile=True)
        model.learn(64 * 150, callback=Look(), log_interval=1)
        assert len(model.ep_info_buffer) > 10
        results.append(parameters(model))
    assert th.equal(*results)


def test_saved_on_the_gpu_loaded_without_one(algo, tmp_path):
    model = make(algo, compile=True)
    model.learn(64 * 20)
    model.save(tmp_path / "model")
    model.save_replay_buffer(tmp_path / "buffer")
    data, _, _ = stable_baselines3.common.save_util.load_from_zip_file(tmp_path / "model.zip", device="cpu")
    assert not any(isinstance(value, th.Tensor) for value in data.values())
    stock = STOCK[algo].load(tmp_path / "model", device="cpu")
    obs = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    assert np.allclose(stock.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0], atol=1e-5)
    stock.load_replay_buffer(tmp_path / "buffer")
    assert stock.replay_buffer.size() == model.replay_buffer.size()
    ours = ALGOS[algo].load(tmp_path / "model", make_env(ENV_IDS[algo], 64), device="cpu")
    ours.load_replay_buffer(tmp_path / "buffer")
    assert ours.replay_buffer.storage_device.type == "cpu"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours.learn(64 * 5, reset_num_timesteps=False)


def test_env_and_model_on_different_devices(algo):
    env = make_env(ENV_IDS[algo])
    with pytest.raises(ValueError, match="give both the same device"):
        ALGOS[algo]("MlpPolicy", env, **sb3_options(algo, device="cuda")).learn(100)
