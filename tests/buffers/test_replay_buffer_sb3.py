"""DeviceReplayBuffer: memory, saving and loading, devices, and life inside stock SB3."""

from __future__ import annotations

import pickle

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DDPG, DQN, SAC, TD3
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.save_util import load_from_pkl, save_to_pkl
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecNormalize

from sb3_isaac import DeviceReplayBuffer
from sb3_isaac.buffers import storage
from sb3_isaac.buffers.replay_buffer import ReplaySamples
from tests.buffers.conftest import BOX, LOSSY, OBS, History, NStepReplayBuffer, ends, make_buffer


@pytest.mark.parametrize("obs_dim, action_dim", [(4, 1), (1, 1), (60, 8)])
@pytest.mark.parametrize("lossy", [{}, LOSSY])
def test_bytes_per_transition(obs_dim, action_dim, lossy):
    obs_space = spaces.Box(-1, 1, (obs_dim,), np.float32)
    buffer = DeviceReplayBuffer(1000, obs_space, spaces.Box(-1, 1, (action_dim,)), "cpu", n_envs=10, **lossy)
    observations = obs_dim if lossy else 2 * obs_dim
    least = 4 * (observations + action_dim + 1 + 1)
    assert buffer.bytes_per_transition == least
    held = sum(x.numel() * x.element_size() for x in vars(buffer).values() if isinstance(x, th.Tensor))
    assert held == buffer.nbytes == 1000 * least


def test_memory_is_checked_before_it_is_allocated(monkeypatch):
    assert storage.free_memory(th.device("cpu")) is None or storage.free_memory(th.device("cpu")) > 2**20
    monkeypatch.setattr(storage, "free_memory", lambda device: 32_000 if device.type == "cpu" else None)
    DeviceReplayBuffer(1000, OBS, BOX, "cpu")  # 28 bytes each
    DeviceReplayBuffer(2000, OBS, BOX, "cpu", storage_device="meta")
    with monkeypatch.context() as patch:
        patch.setattr(th, "zeros", lambda *args, **kwargs: pytest.fail("it was allocated"))
        needs = r"needs 0\.06 GB on cpu \(1000 rows x 2000 envs x 28 bytes\) and 0\.00 GB are free"
        with pytest.raises(MemoryError, match=needs):
            DeviceReplayBuffer(2_000_000, OBS, BOX, "cpu", n_envs=2000)
        with pytest.raises(MemoryError, match="lower buffer_size, or set storage_device"):
            DeviceReplayBuffer(2000, OBS, BOX, "meta", storage_device="cpu")


def equal_samples(x: ReplaySamples, y: ReplaySamples) -> bool:
    return all((a is None and b is None) or th.equal(a, b) for a, b in zip(x, y))


@pytest.mark.parametrize("steps", [0, 3, 5, 8])
@pytest.mark.parametrize("kwargs", [{}, LOSSY, dict(n_steps=3)])
def test_saving_and_loading_changes_nothing(steps, kwargs, tmp_path):
    history = History(np.random.default_rng(0).choice(3, (max(steps, 1), 2)))
    history.steps = steps
    buffer = make_buffer(history, 5, generator=th.Generator().manual_seed(7), **kwargs)
    if steps:
        buffer.sample_tensors(5)
    save_to_pkl(tmp_path / "buffer.pkl", buffer)
    loaded = load_from_pkl(tmp_path / "buffer.pkl")
    assert isinstance(loaded, DeviceReplayBuffer)
    assert th.equal(loaded._storage, buffer._storage)
    for name in ("pos", "full", "device", "storage_device"):
        assert getattr(loaded, name) == getattr(buffer, name), name
    for _ in range(3):  # both go on alike
        for b in (buffer, loaded):
            b.add(*history.step(0))
        assert equal_samples(loaded.sample_tensors(30), buffer.sample_tensors(30))


def test_only_rows_in_use_are_saved_and_no_tensors():
    buffer = DeviceReplayBuffer(100_000, OBS, BOX, "cpu", n_envs=2)
    history = History(ends("rr", "rr"))
    history.fill(buffer)
    data = pickle.dumps(buffer)
    assert len(data) < 5000
    assert b"_rebuild_tensor" not in data
    assert pickle.loads(data).buffer_size == 50_000


class SavedOnCuda(DeviceReplayBuffer):
    """Claims to have lived on the fourth GPU, storage and generator included."""

    def __getstate__(self):
        state = super().__getstate__()
        state["_device"] = state["_storage_device"] = "cuda:3"
        state["generator"] = {"device": "cuda", "state": np.zeros(16, dtype=np.uint8), "seed": 11}
        return state


def test_a_buffer_saved_on_a_gpu_loads_without_one(monkeypatch):
    history = History(ends("rrert", "rtrrr"))
    data = pickle.dumps(make_buffer(history, 4, SavedOnCuda))
    if th.cuda.is_available():
        assert pickle.loads(data).storage_device.type == "cuda"
    monkeypatch.setattr(th.cuda, "is_available", lambda: False)
    loaded = pickle.loads(data)
    assert loaded.device == loaded.storage_device == loaded.generator.device == th.device("cpu")
    assert loaded.generator.initial_seed() == 11
    assert th.equal(loaded._storage, make_buffer(history, 4)._storage)
    assert loaded.sample(3).observations.device.type == "cpu"


@pytest.mark.parametrize("storage_device", [None, "cpu"])
def test_sb3_may_set_the_device_after_loading(storage_device):
    """The 'meta' device stands for a GPU: it has shapes and no data."""
    history = History(ends("rrert", "rtrrr"))
    buffer = make_buffer(history, 4, storage_device=storage_device)
    buffer.device = th.device("meta")
    assert buffer.storage_device.type == ("cpu" if storage_device else "meta")
    assert all(x.device.type == "meta" for x in buffer.sample(3)[:5])
    buffer.add_tensors(*history.tensors(0))  # from a third place


# Stock SB3

ALGORITHMS = [(DQN, "CartPole-v1"), (DDPG, "Pendulum-v1"), (TD3, "Pendulum-v1"), (SAC, "Pendulum-v1")]


class DrawsOfSB3(DeviceReplayBuffer):
    """Draws the transitions that SB3's buffers draw."""

    def draw(self, batch_size):
        if self.optimize_memory_usage and self.full:
            rows = (np.random.randint(1, self.buffer_size, size=batch_size) + self.pos) % self.buffer_size
        else:
            rows = np.random.randint(0, self.size(), size=batch_size)
        return th.from_numpy(rows * self.n_envs + np.random.randint(0, self.n_envs, size=batch_size))


def train(algorithm, env_id, buffer_class, buffer_kwargs=None, **kwargs):
    env = make_vec_env(lambda: gym.make(env_id, max_episode_steps=7), n_envs=2, seed=0)
    model = algorithm(
        "MlpPolicy", VecNormalize(env), seed=0, device="cpu", buffer_size=60, learning_starts=20, batch_size=16,
        train_freq=4, policy_kwargs=dict(net_arch=[16]), replay_buffer_class=buffer_class,
        replay_buffer_kwargs=buffer_kwargs, **kwargs,
    )  # fmt: skip
    return model.learn(160)


def assert_same_parameters(model, other):
    for name, parameter in model.policy.state_dict().items():
        th.testing.assert_close(other.policy.state_dict()[name], parameter, rtol=1e-3, atol=1e-5, msg=name)


@pytest.mark.parametrize("algorithm, env_id", ALGORITHMS)
def test_stock_sb3_learns_the_same(algorithm, env_id):
    reference = train(algorithm, env_id, ReplayBuffer)
    model = train(algorithm, env_id, DrawsOfSB3)
    assert_same_parameters(reference, model)
    assert train(algorithm, env_id, DeviceReplayBuffer).replay_buffer.full


@pytest.mark.filterwarnings("ignore:The last trajectory in the replay buffer will be truncated")
def test_stock_sb3_learns_the_same_with_observations_stored_once():
    kwargs = dict(optimize_memory_usage=True, buffer_kwargs=dict(handle_timeout_termination=False))
    models = []
    for buffer_class in (ReplayBuffer, DrawsOfSB3):
        model = train(DQN, "CartPole-v1", buffer_class, **kwargs)
        set_random_seed(1)
        models.append(model.learn(40))  # SB3 writes into dones to end the running episodes
    assert_same_parameters(*models)
    np.testing.assert_array_equal(models[1].replay_buffer.dones != 0, models[0].replay_buffer.dones != 0)


@pytest.mark.parametrize("algorithm, env_id", ALGORITHMS)
def test_stock_sb3_and_n_step_returns(algorithm, env_id):
    """The same as SB3's NStepReplayBuffer; before it existed, SB3 would have discounted wrongly: refused."""
    kwargs = dict(buffer_kwargs=dict(n_steps=3, gamma=0.99))
    if NStepReplayBuffer is None:
        with pytest.raises(RuntimeError, match="SB3 before 2.7 .* use n_steps=1"):
            train(algorithm, env_id, DeviceReplayBuffer, **kwargs)
    else:
        assert_same_parameters(*(train(algorithm, env_id, cls, **kwargs) for cls in (NStepReplayBuffer, DrawsOfSB3)))


def test_sample_tensors_has_discounts_on_every_version():
    buffer = make_buffer(History(ends("rrrr")), 6, n_steps=3, gamma=0.5)
    samples = buffer.sample_tensors(4)
    assert isinstance(samples, ReplaySamples) and samples.discounts.shape == (4, 1)


def test_stock_model_saves_and_loads_the_buffer(tmp_path):
    model = train(DQN, "CartPole-v1", DeviceReplayBuffer)
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    before = model.replay_buffer
    model.load_replay_buffer(tmp_path / "buffer.pkl")
    assert model.replay_buffer is not before and th.equal(model.replay_buffer._storage, before._storage)
    model.learn(40, reset_num_timesteps=False)
