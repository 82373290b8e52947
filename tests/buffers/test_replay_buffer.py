"""DeviceReplayBuffer's samples against a slow loop and against SB3's ReplayBuffer and NStepReplayBuffer."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import VecNormalize

from sb3_isaac import DeviceReplayBuffer
from sb3_isaac._native import why_not_library
from sb3_isaac.buffers import storage
from sb3_isaac.buffers.sb3_buffer import as_stock_buffer
from tests.buffers.conftest import BOX, DEVICES, LOSSY, OBS, History, NStepReplayBuffer, ends, make_buffer
from tests.conftest import SyncGuard


@pytest.mark.parametrize("device, in_c", [*((device, False) for device in DEVICES), ("cpu", why_not_library() is None)])
@pytest.mark.parametrize("optimize_memory_usage", [False, True])
@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    steps=st.integers(1, 14),
    n_envs=st.integers(1, 3),
    rows=st.integers(2, 8),
    n_steps=st.integers(1, 5),
)
def test_samples_equal_a_slow_loop(device, in_c, optimize_memory_usage, data, steps, n_envs, rows, n_steps):
    history = History(data.draw(arrays(np.int64, (steps, n_envs), elements=st.integers(0, 2))))
    handle = not optimize_memory_usage and data.draw(st.booleans())
    buffer = make_buffer(
        history, rows, device=device, n_steps=n_steps, gamma=0.9, in_c=in_c,
        optimize_memory_usage=optimize_memory_usage, handle_timeout_termination=handle,
    )  # fmt: skip
    oldest = max(0, steps - rows)
    if optimize_memory_usage and steps >= rows:
        oldest += 1  # its observation is gone
    places = [(t, env) for t in range(oldest, steps) for env in range(n_envs)]
    index = th.tensor([t % rows * n_envs + env for t, env in places], dtype=th.int64, device=device)
    samples = buffer.at(index)
    for i, (t, env) in enumerate(places):
        obs, action, next_obs, done, reward, discount = history.expected(t, env, n_steps, 0.9, handle)
        np.testing.assert_array_equal(samples.observations[i].cpu(), obs)
        np.testing.assert_array_equal(samples.actions[i].cpu(), action)
        assert samples.dones[i].item() == done
        if not (optimize_memory_usage and done):  # then nobody looks at it
            np.testing.assert_array_equal(samples.next_observations[i].cpu(), next_obs)
        assert samples.rewards[i].item() == pytest.approx(reward, rel=1e-5, abs=1e-6)
        if n_steps > 1:
            assert samples.discounts[i].item() == pytest.approx(discount, rel=1e-6)
    assert (samples.discounts is None) == (n_steps == 1)


def vec_normalize():
    env = VecNormalize(make_vec_env("Pendulum-v1", n_envs=1), clip_obs=1.5, clip_reward=0.7, epsilon=0.5)
    env.obs_rms.mean, env.obs_rms.var = np.array([3.0, -2.0]), np.array([25.0, 0.25])
    env.ret_rms.var = np.float64(2.3)
    return env


@pytest.mark.parametrize("normalize", [None, "all", "obs", "reward"])
@pytest.mark.parametrize("handle", [True, False])
@pytest.mark.parametrize("kind", ["one step", "lossy"] + (["n steps"] if NStepReplayBuffer else []))
def test_same_samples_as_sb3(kind, handle, normalize, monkeypatch):
    rng = np.random.default_rng(0)
    history = History(rng.choice(3, (13, 3), p=[0.7, 0.15, 0.15]))
    kwargs = dict(n_steps=3, gamma=0.9) if kind == "n steps" else {}
    kwargs.update(LOSSY if kind == "lossy" else dict(handle_timeout_termination=handle))
    reference = make_buffer(history, 8, NStepReplayBuffer if kind == "n steps" else ReplayBuffer, **kwargs)
    buffer = make_buffer(history, 8, **kwargs)
    env = None
    if normalize:
        env = vec_normalize()
        env.norm_obs, env.norm_reward = normalize != "reward", normalize != "obs"
    rows, envs = (x.ravel() for x in np.meshgrid(np.arange(8), np.arange(3)))
    if kind == "lossy":
        rows, envs = rows[rows != buffer.pos], envs[rows != buffer.pos]
    monkeypatch.setattr(np.random, "randint", lambda *args, **kwargs: envs)
    monkeypatch.setattr(th, "randint", lambda *args, **kwargs: th.from_numpy(envs))
    expected, got = reference._get_samples(rows, env=env), buffer._get_samples(rows, env=env)
    assert type(got) is ReplayBufferSamples
    for name, x, y in zip(got._fields, got, expected):
        if y is None:
            assert x is None
            continue
        assert x.dtype == y.dtype and x.shape == y.shape, name
        if kind == "lossy" and name == "next_observations":
            x, y = x * (1 - got.dones), y * (1 - got.dones)
        th.testing.assert_close(x, y, rtol=1e-6, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize(
    "infos",
    [
        [{"TimeLimit.truncated": np.bool_(True)}, {}],
        ({"TimeLimit.truncated": 1}, {"TimeLimit.truncated": 0}),
        np.array([{"TimeLimit.truncated": np.array(True)}, {"other": 1}]),
        [{"TimeLimit.truncated": th.tensor(True)}],  # one for all
    ],
)
@pytest.mark.parametrize("done", [[False, True], np.ones(2), np.zeros(2, object), False])
def test_time_limits_are_told_as_to_sb3(infos, done):
    """Also where done is False; in every form that SB3 takes."""
    buffer, reference = (cls(4, OBS, BOX, "cpu", n_envs=2) for cls in (DeviceReplayBuffer, ReplayBuffer))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for b in (buffer, reference):
            b.add(np.zeros((2, 2)), np.ones((2, 2)), np.zeros((2, 1)), np.zeros(2), done, infos)
    stock = as_stock_buffer(buffer)
    np.testing.assert_array_equal(stock.timeouts, reference.timeouts)
    np.testing.assert_array_equal(stock.dones, reference.dones)


@pytest.mark.parametrize(
    "obs",
    [np.arange(8.0).reshape(4, 2)[::-2], np.broadcast_to(np.float16(3.0), (2, 2)), [[1, 2], [3, 4]], np.ones((2, 2), "u2")],
)
def test_arrays_that_torch_does_not_take(obs):
    """Negative strides, read-only memory, lists, numbers that torch does not know: all are fine for SB3."""
    buffer, reference = (cls(4, OBS, BOX, "cpu", n_envs=2) for cls in (DeviceReplayBuffer, ReplayBuffer))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for b in (buffer, reference):
            b.add(obs, obs, np.zeros((2, 1)), np.arange(2.0)[::-1], np.array([True, False])[::-1], [{}] * 2)
    for name in ("observations", "next_observations", "rewards", "dones"):
        np.testing.assert_array_equal(getattr(buffer, name), getattr(reference, name))


@pytest.mark.parametrize("n_steps", [np.int64(1), np.int32(3)])
@pytest.mark.parametrize("gamma", [np.float64(0.9), np.float32(0.9)])
def test_numbers_of_numpy(n_steps, gamma):
    history = History(ends("rrrrr", "rrerr"))
    buffer = DeviceReplayBuffer(np.int64(20), OBS, BOX, "cpu", n_envs=np.int32(2), n_steps=n_steps, gamma=gamma)
    plain = DeviceReplayBuffer(20, OBS, BOX, "cpu", n_envs=2, n_steps=int(n_steps), gamma=float(gamma))
    for b in (buffer, plain):
        history.fill(b)
    for x, y in zip(buffer.at(th.arange(10)), plain.at(th.arange(10))):
        assert (x is None and y is None) or (th.equal(x, y) and x.dtype == y.dtype == th.float32)
    assert len(buffer.sample_tensors(np.int64(7)).rewards) == 7


@pytest.mark.parametrize("n_steps", [1, 3])
def test_a_vec_normalize_with_tensors_is_asked_for_tensors(n_steps):
    """Its statistics are on the device already; SB3's would be fetched from the host for every sample."""

    class TensorNormalize:
        normalize_obs_tensor = staticmethod(lambda obs: obs + 100)
        normalize_reward_tensor = staticmethod(lambda reward: reward * 2)

    buffer = make_buffer(History(ends("rrrr")), 6, n_steps=n_steps)
    plain, normalized = (buffer.at(th.arange(4), env) for env in (None, TensorNormalize()))
    assert th.equal(normalized.observations, plain.observations + 100)
    assert th.equal(normalized.next_observations, plain.next_observations + 100)
    th.testing.assert_close(normalized.rewards, plain.rewards * 2)


def test_n_step_return_stops_at_the_end_and_at_the_write_head():
    """Three envs: one terminates, one is truncated, one goes on; after 6 steps in 4 rows, steps 2 to 5 are there."""
    history = History(ends("rrrerr", "rrrtrr", "rrrrrr"))
    buffer = make_buffer(history, 4, n_steps=3, gamma=0.5)
    assert (buffer.full, buffer.pos) == (True, 2)

    def sample(t, env):
        samples = buffer.at(th.tensor([t % 4 * 3 + env]))
        done, discount, reward = (getattr(samples, name).item() for name in ("dones", "discounts", "rewards"))
        return done, discount, samples.next_observations[0].numpy(), reward

    r = history.rewards
    for env, done in ((0, 1.0), (1, 0.0)):
        got = sample(2, env)
        assert got[:2] == (done, 0.25)
        np.testing.assert_array_equal(got[2], history.next_obs[3, env])  # the true final one, not the one after reset
        assert got[3] == pytest.approx(r[2, env] + 0.5 * r[3, env])
    done, discount, next_obs, reward = sample(5, 2)  # the next row holds step 2: of another time
    assert (done, discount, reward) == (0.0, 0.5, pytest.approx(r[5, 2]))
    np.testing.assert_array_equal(next_obs, history.next_obs[5, 2])
    assert sample(2, 2)[1] == 0.125
    assert sample(4, 2)[1] == 0.25


def test_end_trajectories_cuts_n_step_returns_at_a_reset_from_outside():
    history = History(ends("rrr", "rre"))
    buffer = make_buffer(history, 6, n_steps=4, gamma=0.5)
    DeviceReplayBuffer(4, OBS, BOX).end_trajectories()  # nothing to end
    buffer.end_trajectories()
    assert buffer.dones[:3].tolist() == [[0, 0], [0, 0], [-1, 1]]
    history.fill(buffer)
    samples = buffer.at(th.tensor([2, 3]))  # both envs, step 1
    assert samples.discounts.flatten().tolist() == [0.25, 0.25]
    assert samples.dones.flatten().tolist() == [0, 1]
    np.testing.assert_array_equal(samples.next_observations[0], history.next_obs[2, 0])


def test_terminated_wins_over_truncated():
    buffer = DeviceReplayBuffer(4, OBS, BOX, "cpu", n_envs=1)
    zeros, true = th.zeros(1), th.ones(1, dtype=th.bool)
    buffer.add_tensors(th.zeros(1, 2), th.zeros(1, 2), zeros, zeros, true, true)
    assert buffer.sample(1).dones.item() == 1


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kwargs", [{}, LOSSY, dict(storage_device="cpu"), dict(n_steps=3, handle_timeout_termination=False)])
def test_add_tensors_equals_add_and_neither_keeps_references(device, kwargs):
    history = History(ends("rrerrtr", "trrrerr"))
    by_array, by_tensor = (DeviceReplayBuffer(20, OBS, BOX, device, n_envs=2, **kwargs) for _ in range(2))
    for t in range(history.steps):
        own = [np.array(x) for x in history.step(t)[:5]]
        tensors = history.tensors(t, device)
        by_array.add(*own, history.infos(t))
        by_tensor.add_tensors(*tensors)
        for x in own + tensors:
            x[:] = 0  # what a simulator does with its memory at the next step
    places = th.arange(14, device=by_array.storage_device)
    samples, others = by_array.at(places), by_tensor.at(places)
    assert all(th.equal(x, y) for x, y in zip(samples, others) if x is not None)
    np.testing.assert_array_equal(by_tensor.observations[:7].cpu(), history.obs)


def test_lazy_infos_are_not_looked_into():
    class LazyInfos:
        truncated = np.array([False, True, True])

        def __getitem__(self, index):
            raise AssertionError("this builds dicts")

        __iter__ = __len__ = __getitem__

    buffer = DeviceReplayBuffer(9, OBS, BOX, "cpu", n_envs=3)
    done = np.array([True, True, False])
    buffer.add(np.zeros((3, 2)), np.ones((3, 2)), np.zeros((3, 1)), np.zeros(3), done, LazyInfos())
    assert buffer.dones[0].tolist() == [1, 2, -1]


def test_large_storage_on_a_cpu_is_zeros_that_copy_and_train_as_any_other(monkeypatch):
    cpu, shape = th.device("cpu"), (storage.HUGE_PAGE // 4 // 8 + 1, 2, 4)
    rows = storage.zeros(shape, cpu)
    assert rows.shape == shape and rows.dtype == th.float32 and rows.is_contiguous() and not rows.any()
    rows[-1] = 1.0
    assert float(copy.deepcopy(rows).sum()) == float(rows.sum()) == 8.0
    assert storage.zeros((2, 3), cpu).shape == (2, 3)  # small ones are torch's

    def no_memory(*args, **kwargs):
        raise OSError("Cannot allocate memory")

    monkeypatch.setattr(storage.mmap, "mmap", no_memory)
    assert th.equal(storage.zeros(shape, cpu), th.zeros(shape))


def test_extend_reset_and_size():
    history = History(ends("rrerrtr", "trrrerr"))
    buffer, reference = (cls(12, OBS, BOX, "cpu", n_envs=2) for cls in (DeviceReplayBuffer, ReplayBuffer))
    for b in (buffer, reference):
        b.extend(*zip(*(history.step(t) for t in range(5))))
    assert buffer.size() == reference.size() == 5
    np.testing.assert_array_equal(buffer.observations, reference.observations)
    np.testing.assert_array_equal(buffer.next_observations, reference.next_observations)
    np.testing.assert_array_equal(buffer.actions, reference.actions)
    np.testing.assert_array_equal(buffer.rewards, reference.rewards)
    np.testing.assert_array_equal(buffer.dones != 0, reference.dones != 0)
    np.testing.assert_array_equal(buffer.dones == 2, reference.timeouts != 0)
    buffer.reset()
    assert buffer.size() == 0
    with pytest.raises(ValueError, match="empty"):
        buffer.sample(1)


@pytest.mark.parametrize("lossy, steps", [({}, 3), ({}, 9), (LOSSY, 3), (LOSSY, 5), (LOSSY, 9)])
def test_draws_are_uniform_over_what_is_valid(lossy, steps):
    """Rows not written yet never come, nor the row whose observation has been overwritten."""
    history = History(np.zeros((steps, 3), dtype=int))
    buffer = make_buffer(history, 5, **lossy)
    valid = [t % 5 for t in range(max(0, steps - 5), steps)]
    if lossy and steps >= 5:
        valid.remove(buffer.pos)
    expected = sorted(row * 3 + env for row in valid for env in range(3))
    th.manual_seed(0)
    places, counts = buffer.draw(1000 * len(expected)).unique(return_counts=True)
    assert places.tolist() == expected
    assert counts.min() > 850 and counts.max() < 1150


def test_draws_follow_sb3s_seed_or_the_own_generator():
    history = History(np.zeros((5, 3), dtype=int))
    buffer = make_buffer(history, 5)
    set_random_seed(3)
    first = buffer.sample(20)
    set_random_seed(3)
    assert th.equal(buffer.sample(20).observations, first.observations)
    buffer = make_buffer(history, 5, generator=th.Generator().manual_seed(5))
    state = th.get_rng_state()
    buffer.sample(20)
    buffer._get_samples(np.arange(5))
    assert th.equal(th.get_rng_state(), state), "the default generator was used"


@pytest.mark.parametrize("n_steps", [1, 3])
def test_nothing_waits_for_the_device(n_steps):
    history = History(ends("rrerrtr", "trrrerr"))
    buffer = make_buffer(history, 5, n_steps=n_steps)
    tensors = history.tensors(0)
    with SyncGuard():
        buffer.add_tensors(*tensors)
        buffer.sample_tensors(8)
    with pytest.raises(AssertionError, match="host synchronisation"), SyncGuard():
        tensors[3][0].item()  # the guard sees something


@pytest.mark.skipif(not th.cuda.is_available(), reason="torch only knows host syncs on CUDA")
@pytest.mark.parametrize("n_steps, storage_device", [(1, "cuda"), (3, "cuda"), (1, "cpu")])
def test_nothing_waits_for_cuda(n_steps, storage_device):
    history = History(ends("rrerrtr", "trrrerr"))
    buffer = make_buffer(history, 5, device="cuda", n_steps=n_steps, storage_device=storage_device)
    tensors = history.tensors(0, "cuda")
    th.cuda.set_sync_debug_mode("error")
    try:
        if storage_device == "cuda":
            buffer.add_tensors(*tensors)
        samples = buffer.sample_tensors(8)
    finally:
        th.cuda.set_sync_debug_mode("default")
    assert all(x.is_cuda for x in samples if x is not None)


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(7, start=-3),
        spaces.Discrete(2**24 + 1),
        spaces.MultiDiscrete([3, 2**20]),
        spaces.MultiBinary(4),
        spaces.Box(-1000, 1000, (2, 3), np.int16),
        spaces.Box(-(2**24), 2**24, (2,), np.int64),
    ],
)
def test_integers_survive_exactly(space):
    space.seed(0)
    buffer, reference = (cls(12, space, space, "cpu", n_envs=3) for cls in (DeviceReplayBuffer, ReplayBuffer))
    largest = np.asarray(2**24) if isinstance(space, spaces.Discrete) and space.n > 2**24 else space.sample()
    for _ in range(4):
        obs, next_obs, action = (np.array([space.sample(), space.sample(), largest]) for _ in range(3))
        for b in (buffer, reference):
            b.add(obs, next_obs, action, np.zeros(3), np.zeros(3), [{}] * 3)
    samples = buffer.at(th.arange(12))
    for name in ("observations", "actions", "next_observations"):
        expected = th.from_numpy(getattr(reference, name)).flatten(0, 1)
        assert getattr(samples, name).dtype == expected.dtype
        assert th.equal(getattr(samples, name), expected), name


@pytest.mark.parametrize(
    "obs_space, action_space, kwargs, message",
    [
        (spaces.Box(0, 255, (8, 8, 1), np.uint8), BOX, {}, "four times .* use SB3's own ReplayBuffer"),
        (spaces.Dict(a=OBS), BOX, {}, "observations of type Dict .* use SB3's own Dict buffers"),
        (OBS, spaces.Discrete(2**24 + 2), {}, r"actions go up to 16777217.* 2\*\*24"),
        (OBS, spaces.Box(-(2**25), 0, (1,), np.int64), {}, r"actions go up to 33554432.* 2\*\*24"),
        (OBS, BOX, dict(optimize_memory_usage=True), "pass handle_timeout_termination=False"),
        (OBS, BOX, dict(LOSSY, n_envs=3), r"buffer_size >= 2 \* n_envs, got 5"),
        (OBS, BOX, dict(n_steps=0), "n_steps must be a whole number of at least 1, got 0"),
        (OBS, BOX, dict(storage_device="meta", generator=th.Generator()), "is on cpu but the storage on meta"),
    ],
)
def test_what_cannot_work_is_refused(obs_space, action_space, kwargs, message):
    with pytest.raises(ValueError, match=message):
        DeviceReplayBuffer(5, obs_space, action_space, "cpu", **kwargs)


def test_add_refuses_the_wrong_number_of_envs():
    history = History(ends("r", "r", "r"))
    buffer = DeviceReplayBuffer(8, OBS, BOX, "cpu", n_envs=2)
    with pytest.raises(ValueError, match=r"obs has shape \(3, 2\), expected 2 x 2"):
        buffer.add(*history.step(0))
    with pytest.raises(RuntimeError, match="shape"):
        buffer.add_tensors(*history.tensors(0))
