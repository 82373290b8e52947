"""DeviceRolloutBuffer against slow loops and against SB3's RolloutBuffer."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import set_random_seed

from sb3_isaac import DeviceReplayBuffer, DeviceRolloutBuffer
from sb3_isaac.buffers.rollout_buffer import RolloutTensors
from tests.buffers.conftest import DEVICES
from tests.conftest import SyncGuard

OBS = spaces.Box(-np.inf, np.inf, (3,), np.float32)
BOX = spaces.Box(-1, 1, (2,), np.float32)
NAMES = ("observations", "actions", "rewards", "episode_starts", "values", "log_probs", "advantages", "returns")


def rollout(n_steps, n_envs, obs_space=OBS, action_space=BOX, seed=0, dones=None):
    """Arguments of n_steps calls of add, and those of compute_returns_and_advantage."""
    rng = np.random.default_rng(seed)
    if dones is None:
        dones = rng.random((n_steps, n_envs)) < 0.3
    obs_space.seed(seed)
    action_space.seed(seed)
    steps = []
    for step in range(n_steps):
        steps.append(
            (
                np.array([obs_space.sample() for _ in range(n_envs)]),
                np.array([action_space.sample() for _ in range(n_envs)]),
                rng.normal(size=n_envs).astype(np.float32),
                dones[step - 1] if step else rng.random(n_envs) < 0.5,
                th.from_numpy(rng.normal(size=(n_envs, 1)).astype(np.float32)),
                th.from_numpy(rng.normal(size=n_envs).astype(np.float32)),
            )
        )
    return steps, th.from_numpy(rng.normal(size=(n_envs, 1)).astype(np.float32)), dones[-1]


def filled_pair(n_steps, n_envs, obs_space=OBS, action_space=BOX, device="cpu", **kwargs):
    """SB3's buffer and ours after the same rollout."""
    steps, last_values, dones = rollout(n_steps, n_envs, obs_space, action_space)
    pair = []
    for cls, dev in ((RolloutBuffer, "cpu"), (DeviceRolloutBuffer, device)):
        buffer = cls(n_steps, obs_space, action_space, device=dev, n_envs=n_envs, **kwargs)
        for step in steps:
            buffer.add(*step)
        buffer.compute_returns_and_advantage(last_values, dones)
        pair.append(buffer)
    return pair


@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    n_steps=st.integers(1, 7),
    n_envs=st.integers(1, 4),
    gamma=st.floats(0, 1),
    gae_lambda=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_gae_equals_its_definition(data, n_steps, n_envs, gamma, gae_lambda, seed):
    """The sum over later TD errors until the episode ends, in float64, env by env."""
    dones = data.draw(arrays(bool, (n_steps, n_envs)))
    steps, last_values, last_dones = rollout(n_steps, n_envs, seed=seed, dones=dones)
    buffer = DeviceRolloutBuffer(n_steps, OBS, BOX, "cpu", gae_lambda=gae_lambda, gamma=gamma, n_envs=n_envs)
    for step in steps:
        buffer.add(*step)
    buffer.compute_returns_and_advantage(last_values, last_dones)
    values = np.array([step[4].numpy().ravel() for step in steps] + [last_values.numpy().ravel()], dtype=np.float64)
    rewards = np.array([step[2] for step in steps], dtype=np.float64)
    for env in range(n_envs):
        for start in range(n_steps):
            advantage = 0.0
            for t in range(start, n_steps):
                next_value = 0.0 if dones[t, env] else values[t + 1, env]
                delta = rewards[t, env] + gamma * next_value - values[t, env]
                advantage += (gamma * gae_lambda) ** (t - start) * delta
                if dones[t, env]:
                    break
            assert buffer.advantages[start, env] == pytest.approx(advantage, rel=1e-4, abs=1e-5)
            assert buffer.returns[start, env] == pytest.approx(advantage + values[start, env], rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "obs_space, action_space",
    [
        (OBS, BOX),
        (OBS, spaces.Discrete(4)),
        (spaces.Discrete(5), spaces.Discrete(2)),
        (spaces.Box(0, 255, (3, 4, 4), np.uint8), spaces.MultiDiscrete([3, 2])),
        (spaces.MultiBinary(3), spaces.MultiBinary(2)),
    ],
)
def test_same_contents_as_sb3(obs_space, action_space, device):
    sb3, ours = filled_pair(5, 3, obs_space, action_space, device, gamma=0.9, gae_lambda=0.8)
    for name in NAMES:
        got = getattr(ours, name)
        assert isinstance(got, np.ndarray), "SB3's own code calls numpy functions on it"
        np.testing.assert_allclose(got, getattr(sb3, name), rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("batch_size", [None, 4, 7, 1000, np.int64(4), np.int32(7)])
@pytest.mark.parametrize("action_space", [BOX, spaces.Discrete(3)])
def test_same_minibatches_as_sb3_for_the_same_permutation(batch_size, action_space, device, monkeypatch):
    n_steps, n_envs = 5, 3
    sb3, ours = filled_pair(n_steps, n_envs, action_space=action_space, device=device)
    order = np.random.default_rng(1).permutation(n_steps * n_envs)
    monkeypatch.setattr(np.random, "permutation", lambda n: order[:n])
    monkeypatch.setattr(th, "randperm", lambda n, device, generator: th.from_numpy(order[:n]).to(device))
    for _ in range(2):  # epochs: the first must leave the storage as it was
        batches = list(ours.get(batch_size))
        expected = list(sb3.get(batch_size))
        assert len(batches) == len(expected)
        for batch, reference in zip(batches, expected):
            assert batch._fields == reference._fields
            for field, x, y in zip(batch._fields, batch, reference):
                assert x.device.type == device and x.shape == y.shape, field
                th.testing.assert_close(x.cpu(), y, msg=field)
    assert ours.values.shape == (n_steps, n_envs)


def test_every_transition_comes_once_per_epoch_in_a_new_order():
    _, buffer = filled_pair(6, 5)
    epochs = [th.cat([batch.returns for batch in buffer.get(7)]) for _ in range(2)]
    expected = buffer.tensors.returns.flatten().sort().values
    for epoch in epochs:
        assert th.equal(epoch.sort().values, expected)
    assert not th.equal(*epochs)


def test_the_order_follows_sb3s_seed_or_the_own_generator():
    _, buffer = filled_pair(6, 5)

    def order():
        return next(buffer.get()).returns

    set_random_seed(3)
    first = order()
    set_random_seed(3)
    assert th.equal(order(), first)
    buffer.generator = th.Generator().manual_seed(5)
    state = th.get_rng_state()
    first = order()
    assert th.equal(th.get_rng_state(), state), "the default generator was used"
    buffer.generator.manual_seed(5)
    assert th.equal(order(), first)


@pytest.mark.parametrize("device", DEVICES)
def test_add_tensors_equals_add_and_neither_keeps_references(device):
    steps, last_values, dones = rollout(4, 3)
    by_array, by_tensor = (DeviceRolloutBuffer(4, OBS, BOX, device, n_envs=3) for _ in range(2))
    for step in steps:
        tensors = [th.as_tensor(x).clone().to(device) for x in step]
        own = [np.array(x) for x in step[:4]] + [x.clone() for x in step[4:]]
        by_tensor.add_tensors(*tensors)
        by_array.add(*own)
        for x in own + tensors:
            x[:] = 0  # what a simulator does with its memory at the next step
    by_array.compute_returns_and_advantage(last_values, dones)
    by_tensor.compute_returns_and_advantage(last_values.to(device), th.from_numpy(dones).to(device))
    for name, x, y in zip(RolloutTensors._fields, by_array.tensors, by_tensor.tensors):
        assert th.equal(x, y), name
        assert x.abs().sum() > 0, name


def test_storage_is_written_in_place():
    """A CUDA graph needs the addresses to stay; and a second rollout leaves nothing of the first."""
    (first, *_), (second, last_values, dones) = rollout(4, 3, seed=1), rollout(4, 3, seed=2)
    buffer, fresh = (DeviceRolloutBuffer(4, OBS, BOX, "cpu", n_envs=3) for _ in range(2))
    addresses = [tensor.data_ptr() for tensor in buffer.tensors]
    for steps in (first, second):
        buffer.reset()
        for step in steps:
            buffer.add(*step)
        buffer.compute_returns_and_advantage(last_values, dones)
        list(buffer.get(5))
    for step in second:
        fresh.add(*step)
    fresh.compute_returns_and_advantage(last_values, dones)
    assert [tensor.data_ptr() for tensor in buffer.tensors] == addresses
    assert all(th.equal(x, y) for x, y in zip(buffer.tensors, fresh.tensors))


def test_nothing_waits_for_the_device():
    steps, last_values, dones = rollout(4, 3)
    buffer = DeviceRolloutBuffer(4, OBS, BOX, "cpu", n_envs=3)
    tensors = [[th.as_tensor(x) for x in step] for step in steps]
    with SyncGuard():
        for step in tensors:
            buffer.add_tensors(*step)
        buffer.compute_returns_and_advantage(last_values, th.from_numpy(dones))
        list(buffer.get(5))
    with pytest.raises(AssertionError, match="host synchronisation"), SyncGuard():
        last_values[0].item()  # the guard sees something


def test_errors_say_what_to_do():
    steps, *_ = rollout(2, 3)
    buffer = DeviceRolloutBuffer(2, OBS, BOX, "cpu", n_envs=3)
    buffer.add(*steps[0])
    with pytest.raises(RuntimeError, match="1 of n_steps=2"):
        next(buffer.get())
    with pytest.raises(ValueError, match=r"obs has shape \(2, 3\), expected 3 x 3"):
        buffer.add(steps[1][0][:2], *steps[1][1:])
    buffer.add(*steps[1])
    before = [tensor.clone() for tensor in buffer.tensors]
    with pytest.raises(RuntimeError, match=r"full after n_steps=2 steps, call reset\(\)"):
        buffer.add(*steps[0])
    assert all(th.equal(x, y) for x, y in zip(before, buffer.tensors))
    with pytest.raises(ValueError, match="SB3's own Dict buffers"):
        DeviceRolloutBuffer(2, spaces.Dict(a=OBS), BOX)
    for buffer_class in (DeviceRolloutBuffer, DeviceReplayBuffer):
        with pytest.raises(ValueError, match=r"observations go up to 16777217, float32 is exact only to 2\*\*24"):
            buffer_class(2, spaces.Discrete(2**24 + 2), BOX)


class KeepRollout(BaseCallback):
    """Keeps what the buffer held after each rollout."""

    def _on_training_start(self):
        self.rollouts = []

    def _on_rollout_end(self):
        self.rollouts.append({name: np.array(getattr(self.model.rollout_buffer, name)) for name in NAMES})

    def _on_step(self):
        return True


@pytest.mark.parametrize("algorithm", [PPO, A2C])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_stock_sb3_learns_the_same(algorithm, env_id, monkeypatch):
    """Discrete and Box; short time limits, so that SB3 bootstraps; the same permutations for both."""
    monkeypatch.setattr(th, "randperm", lambda n, **kwargs: th.from_numpy(np.random.permutation(n)))
    results = []
    for buffer_class in (None, DeviceRolloutBuffer):
        env = make_vec_env(lambda: gym.make(env_id, max_episode_steps=7), n_envs=3, seed=0)
        kwargs = dict(batch_size=16, n_epochs=2) if algorithm is PPO else {}
        policy_kwargs = dict(net_arch=[16])
        model = algorithm(
            "MlpPolicy", env, n_steps=16, seed=0, device="cpu", gae_lambda=0.9, policy_kwargs=policy_kwargs,
            rollout_buffer_class=buffer_class, **kwargs,
        )  # fmt: skip
        keep = KeepRollout()
        model.learn(3 * 16 * 3, callback=keep)
        results.append((keep.rollouts, model.policy.state_dict()))
    (rollouts, parameters), (our_rollouts, our_parameters) = results
    assert len(rollouts) == len(our_rollouts) == 3
    for name in NAMES:
        np.testing.assert_allclose(our_rollouts[0][name], rollouts[0][name], rtol=1e-5, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(our_rollouts[2][name], rollouts[2][name], rtol=1e-3, atol=1e-3, err_msg=name)
    for name, parameter in parameters.items():
        th.testing.assert_close(our_parameters[name], parameter, rtol=1e-3, atol=1e-4)
