"""Replay buffers for stock SB3 and from it: every option goes along, and both draw the same samples from them."""

from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_isaac.buffers.sb3_buffer import as_stock_buffer, from_stock_buffer
from tests.buffers.conftest import LOSSY, History, NStepReplayBuffer, make_buffer

N = 3


def told(seed=0, steps=13):
    """Episodes in which some time limits are told without an end."""
    history = History(np.random.default_rng(seed).choice(3, (steps, N), p=[0.7, 0.15, 0.15]), seed)
    cuts = np.random.default_rng(seed + 1).random((steps, N)) < 0.2
    infos = history.infos
    history.infos = lambda t: [{**info, "TimeLimit.truncated": True} if cut else info for info, cut in zip(infos(t), cuts[t])]
    return history


def assert_same_samples(ours, stock):
    """From every row and environment, but for the row that stock SB3 does not draw."""
    rows = np.arange(ours.size())
    lossy = ours.optimize_memory_usage
    rows = np.delete(rows, ours.pos) if lossy and ours.full else rows
    for env in range(N):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(np.random, "randint", lambda *args, **kwargs: np.full(len(rows), env))  # noqa: B023
            expected = stock._get_samples(rows)
        got = ours.at(th.from_numpy(rows * N + env))
        for name, y in expected._asdict().items():
            x = getattr(got, name)
            if lossy and name == "next_observations":  # where nobody looks at them
                x, y = x * (1 - got.dones), y * (1 - got.dones)
            assert (x is None and y is None) or x.shape == y.shape
            if y is not None:
                th.testing.assert_close(x, y, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


OPTIONS = [
    {},
    dict(handle_timeout_termination=False),
    LOSSY,
    dict(n_steps=3, gamma=0.9),
    dict(n_steps=3, gamma=0.5, handle_timeout_termination=False),
    dict(n_steps=50, gamma=0.9),
]
OPTIONS = [kwargs for kwargs in OPTIONS if NStepReplayBuffer is not None or "n_steps" not in kwargs]


@pytest.mark.parametrize("rows", [8, 20])
@pytest.mark.parametrize("kwargs", OPTIONS)
@pytest.mark.parametrize("added", ["arrays", "tensors", "cut"])
def test_stock_sb3_draws_the_same_from_our_buffer(kwargs, rows, added):
    """However the transitions came, full or not, and after a reset from outside."""
    history = told()
    ours = make_buffer(history, rows, **kwargs)
    if added == "cut" and kwargs.get("n_steps", 1) > 1 and "handle_timeout_termination" in kwargs:
        pytest.skip("stock SB3 has no cut that bootstraps there")
    if added == "tensors":
        ours.reset()
        for t in range(history.steps):
            ours.add_tensors(*history.tensors(t))
    elif added == "cut":
        ours.end_trajectories()
        history.fill(ours)
    stock = pickle.loads(pickle.dumps(as_stock_buffer(ours)))
    assert type(stock) is (NStepReplayBuffer if "n_steps" in kwargs else ReplayBuffer)
    assert {name: getattr(stock, name) for name in kwargs} == kwargs
    assert (stock.buffer_size, stock.n_envs, stock.pos, stock.full) == (rows, N, ours.pos, ours.full)
    assert_same_samples(ours, stock)
    back = from_stock_buffer(stock, dict(device="cpu"))
    assert_same_samples(back, stock)
    for b in (ours, back, stock):  # they go on alike
        history.fill(b)
    assert_same_samples(ours, stock)
    assert_same_samples(back, stock)


@pytest.mark.parametrize("rows", [8, 20])
@pytest.mark.parametrize("kwargs", OPTIONS)
def test_we_draw_the_same_from_a_stock_buffer(kwargs, rows):
    """Its own options are the ones that count, as in stock SB3, and not the model's."""
    cls = NStepReplayBuffer if "n_steps" in kwargs else ReplayBuffer
    stock = make_buffer(told(), rows, cls, **kwargs)
    options = dict(device="cpu", storage_device="cpu", handle_timeout_termination=LOSSY != kwargs)
    if "n_steps" in kwargs:
        options.update(n_steps=2, gamma=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours = from_stock_buffer(stock, options)
    assert {name: getattr(ours, name) for name in kwargs} == kwargs
    assert ours.optimize_memory_usage == stock.optimize_memory_usage and not ours._storage_follows_device
    assert ours.handle_timeout_termination == stock.handle_timeout_termination
    assert_same_samples(ours, stock)
    again = as_stock_buffer(ours)
    for name in ("dones", "timeouts", "rewards", "observations"):
        np.testing.assert_array_equal(getattr(again, name), getattr(stock, name))


@pytest.mark.parametrize(
    "kwargs", [dict(LOSSY, n_steps=3, gamma=0.5)] + [dict(n_steps=4, gamma=0.9)] * (NStepReplayBuffer is None)
)
@pytest.mark.parametrize("rows", [8, 20])
def test_where_stock_sb3_has_no_such_buffer(kwargs, rows):
    """It is told, the transitions are there, and we read all of it."""
    history = told()
    ours = make_buffer(history, rows, **kwargs)
    with pytest.warns(UserWarning, match=f"no replay buffer for n_steps={kwargs['n_steps']} .* one-step returns"):
        stock = pickle.loads(pickle.dumps(as_stock_buffer(ours)))
    assert type(stock) is ReplayBuffer
    one_step = {name: value for name, value in kwargs.items() if name not in ("n_steps", "gamma")}
    assert_same_samples(make_buffer(history, rows, **one_step), stock)
    back = from_stock_buffer(stock, dict(device="cpu", n_steps=1, gamma=0.99))
    assert {name: getattr(back, name) for name in kwargs} == kwargs
    for x, y in zip(back.at(th.arange(24)), ours.at(th.arange(24))):
        assert th.equal(x, y)


def test_a_stock_buffer_that_does_not_know_n_steps():
    """SB3 would go on with one-step returns, in silence."""
    stock = make_buffer(told(), 20, ReplayBuffer)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours = from_stock_buffer(stock, dict(device="cpu", n_steps=3, gamma=0.9))
    assert ours.n_steps == 3 and ours.gamma == 0.9
    # before 2.7 SB3 had no n-step returns that could be missed
    assert ["one-step returns" in str(w.message) for w in caught] == [True] * (NStepReplayBuffer is not None)


@pytest.mark.skipif(NStepReplayBuffer is None, reason="needs SB3 2.7")
def test_a_cut_that_stock_sb3_cannot_have_is_an_end():
    """SB3 without time limits never clears ``timeouts``: what stood there would come back when the row is written again."""
    ours = make_buffer(History(np.zeros((4, N), int)), 4, n_steps=3, handle_timeout_termination=False)
    ours.end_trajectories()
    stock = as_stock_buffer(ours)
    assert not stock.timeouts.any() and (stock.dones == [[0], [0], [0], [1]]).all()


def test_a_reset_from_outside_ends_nothing():
    """Also where time limits count as terminations: the episode was neither over nor at its time limit."""
    history = History(np.array([[0, 0, 1], [0, 1, 2]]))
    buffer = make_buffer(history, 6, handle_timeout_termination=False, n_steps=3, gamma=0.5)
    buffer.end_trajectories()
    history.fill(buffer)
    samples = buffer.at(th.arange(3, 6))
    assert samples.dones.flatten().tolist() == [0, 1, 1]
    np.testing.assert_array_equal(samples.next_observations, history.next_obs[1])
    assert samples.discounts.flatten().tolist() == [0.5] * 3
