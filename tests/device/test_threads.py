"""How many threads, and that the results do not depend on it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import Any, Iterator

import pytest
import torch as th
from torch import nn

from sb3_isaac.device import fast_mlp, threads
from sb3_isaac.device.fast_mlp import FastMLP, parse_layers
from tests.conftest import REPOSITORY, make_env, parameters
from tests.off_policy.conftest import ALGOS


@pytest.fixture
def undecided(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if nobody had said anything about threads, on a machine where torch takes two."""
    before = th.get_num_threads()
    th.set_num_threads(2)
    monkeypatch.setattr(threads, "_asked_for", False)
    monkeypatch.setattr(threads, "_default", 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
    yield
    th.set_num_threads(before)


def run_python(code: str, **variables: str) -> str:
    env = {key: value for key, value in os.environ.items() if key not in threads.VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**env, **variables}, capture_output=True, text=True, cwd=str(REPOSITORY)
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.usefixtures("undecided")
@pytest.mark.parametrize("width, n_rows, expected", [(64, 4096, 1), (8, 10**6, 1)])
def test_small_work_gets_one_thread(width: int, n_rows: int, expected: int) -> None:
    net = nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 1))
    assert threads.choose(net, n_rows, th.device("cpu")) == expected
    assert th.get_num_threads() == 2


@pytest.mark.usefixtures("undecided")
@pytest.mark.parametrize("faster", [1, 2])
def test_large_work_gets_what_is_faster_now(faster: int, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]

    def seconds() -> float:  # called before and after each trial
        clock[0] += 1.0 if th.get_num_threads() == faster else 3.0
        return clock[0]

    monkeypatch.setattr(threads.time, "perf_counter", seconds)
    net = nn.Linear(512, 512)
    monkeypatch.setattr(threads, "SMALL_WORK", 1e6)
    assert threads.choose(net, 16, th.device("cpu")) == faster


@pytest.mark.slow
@pytest.mark.usefixtures("undecided")
def test_a_choice_of_the_user_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Linear(4, 4)
    assert threads.choose(net, 8, th.device("cpu")) == 1
    th.set_num_threads(3)  # later than the import of the package
    assert threads.choose(net, 8, th.device("cpu")) == 3
    threads.ask_for(2)
    assert threads.choose(net, 8, th.device("cpu")) == 2
    choice = "from sb3_isaac.device import threads; print(threads.is_asked_for())"
    assert run_python(choice, OMP_NUM_THREADS="2") == "True"
    assert run_python(f"{choice}; import torch; torch.set_num_threads(7); {choice}") == "False\nTrue"


@pytest.mark.usefixtures("undecided")
@pytest.mark.parametrize("algo", ["ppo", *ALGOS])
def test_the_number_of_threads_is_as_before_after_learning(algo: str, capsys: pytest.CaptureFixture[str]) -> None:
    import sb3_isaac

    seen = []
    env = make_env("IsaacGymCartpoleDiscrete-v0" if algo == "dqn" else "IsaacGymCartpole-v0")
    options = {"n_steps": 8, "batch_size": 32} if algo == "ppo" else {}
    model = getattr(sb3_isaac, algo.upper())("MlpPolicy", env, device="cpu", verbose=1, **options)
    model.learn(64, callback=lambda locals_, globals_: seen.append(th.get_num_threads()) is None)
    assert set(seen) == {1} and th.get_num_threads() == 2
    assert "on 1 thread (large minibatches on 2)" in capsys.readouterr().out
    model.learn(64, callback=lambda locals_, globals_: th.set_num_threads(3) is None)  # in a callback: it stays
    assert th.get_num_threads() == 3


def test_an_error_leaves_the_number_as_it_was() -> None:
    before = th.get_num_threads()
    with pytest.raises(ZeroDivisionError), threads.torch_threads(before + 1):
        raise ZeroDivisionError
    assert th.get_num_threads() == threads.available() == before


# -- lanes -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("undecided")
def test_jobs_run_on_several_threads_each_once() -> None:
    together, done, barrier = threads.Together(), [], threading.Barrier(2, timeout=60)

    def job(i: int) -> None:
        barrier.wait()  # passes only if two threads are here at once
        assert not th.is_grad_enabled() and th.get_num_threads() == 1
        done.append((i, threading.current_thread().name))

    for _ in range(3):  # later calls, after the helper went to sleep, too
        together._seconds = [None, None]  # the first call takes helpers
        together.run(job, 4)
    assert sorted(i for i, _ in done) == sorted([0, 1, 2, 3] * 3) and len({name for _, name in done}) == 2


@pytest.mark.usefixtures("undecided")
def test_as_many_threads_as_the_user_asks_for_share_the_jobs_out() -> None:
    threads.ask_for(3)
    together, seen, barrier = threads.Together(), set(), threading.Barrier(3, timeout=60)
    together._seconds = [1.0, 2.0]  # also where that has been slower

    def job(i: int) -> None:
        barrier.wait()
        seen.add((threading.get_ident(), th.get_num_threads()))

    together.run(job, 3)
    assert len(seen) == 3 and {n_threads for _, n_threads in seen} == {1}
    together.run(lambda i: seen.add(th.get_num_threads()), 1)  # nothing to share: torch shares the operations out
    assert 3 in seen
    assert threads.for_chunks(th.device("cpu"), in_lanes=True) == 1
    assert threads.for_chunks(th.device("cpu"), in_lanes=False) == 3


@pytest.mark.usefixtures("undecided")
def test_an_error_of_a_job_is_raised_and_the_next_call_works() -> None:
    together = threads.Together()

    def job(i: int) -> None:
        if i == 1:
            raise ZeroDivisionError("of a job")

    for _ in range(2):
        together._seconds = [None, None]
        with pytest.raises(ZeroDivisionError, match="of a job"):
            together.run(job, 2)
    done = []
    together.run(done.append, 3)
    assert sorted(done) == [0, 1, 2]


@pytest.mark.usefixtures("undecided")
def test_what_is_slower_with_helpers_is_done_alone_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    together, taken = threads.Together(), []
    monkeypatch.setattr(threads, "_share_out", lambda job, n_jobs, n_helpers: taken.append(n_helpers))
    monkeypatch.setattr(threads.Together, "_note", lambda self, helped, seconds: None)
    together._seconds = [1.0, 2.0]
    for _ in range(threads.TRY_AGAIN):
        together.run(lambda i: None, 2)
    assert len(taken) == 1
    together._seconds = [2.0, 1.0]
    for _ in range(threads.TRY_AGAIN):
        together.run(lambda i: None, 2)
    assert len(taken) == threads.TRY_AGAIN


def test_how_many_lanes(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for cores in (1, 2, 4, 64):
        monkeypatch.setattr(fast_mlp, "_CORES", cores)
        found[cores] = [fast_mlp.n_lanes(n) for n in (1, 2048, 2049, 4096, 8192, 16_384, 65_536)]
    assert found == {
        1: [1, 1, 1, 1, 2, 4, 16],
        2: [1, 1, 2, 2, 2, 4, 16],
        4: [1, 1, 2, 2, 4, 4, 16],
        64: [1, 1, 2, 2, 4, 8, 32],
    }


@pytest.mark.usefixtures("undecided")
@pytest.mark.parametrize("cores", [1, 2, 3, 8])
@pytest.mark.parametrize("batch", [64, 100, 256, 300])
def test_lanes_give_the_same_on_any_number_of_threads_and_as_autograd(
    batch: int, cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast_mlp, "LANE_ROWS", 64)
    monkeypatch.setattr(fast_mlp, "_CORES", cores)
    net = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 8), nn.ELU(), nn.Linear(8, 2))
    x, weight = th.rand(batch, 4, requires_grad=True), th.rand(batch, 2)
    (net(x) * weight).sum().backward()
    expected = [p.grad.clone() for p in net.parameters()] + [x.grad]

    def passes(n_threads: int) -> Any:
        th.set_num_threads(n_threads)
        fast, found = FastMLP(parse_layers(net), 300, gradients={p: p.grad for p in net.parameters()}), []
        with th.no_grad():
            for _ in range(3):
                out = fast.forward(x.detach()).clone()
                grad_x = fast.backward(weight.clone(), inputs=True).clone()
                found.append([out, *(p.grad.clone() for p in net.parameters()), grad_x])
            before = [p.grad.clone() for p in net.parameters()]
            fast.forward(x.detach())
            fast.backward(weight.clone(), accumulate=True)
            for p, once in zip(net.parameters(), before):
                assert th.allclose(p.grad, 2 * once, rtol=1e-5)
        return found

    one, two = passes(1), passes(2)
    for found in (*one, *two):
        assert all(th.equal(a, b) for a, b in zip(found, one[0]))
    assert th.allclose(one[0][0], net(x), atol=1e-6)
    for a, b in zip(one[0][1:], expected):
        assert th.allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("undecided")
def test_training_is_the_same_on_one_and_two_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    import sb3_isaac

    monkeypatch.setattr(fast_mlp, "LANE_ROWS", 32)
    results = []
    for n_threads in (1, 2):
        th.set_num_threads(1)  # the QR decomposition of SB3's orthogonal initialisation depends on it
        model = sb3_isaac.PPO("MlpPolicy", make_env(n_envs=16), n_steps=8, batch_size=128, device="cpu", seed=0)
        th.set_num_threads(n_threads)
        model.learn(4 * 128)
        results.append(parameters(model))
    assert all(th.equal(a, b) for a, b in zip(*results))


def test_a_forked_child_and_the_end_of_a_program_work() -> None:
    code = (
        "import os, torch as th; th.set_num_threads(2)\n"
        "from sb3_isaac.device import threads\n"
        "def go():\n"
        "    done = []\n"
        "    for _ in range(2):\n"
        "        t = threads.Together(); t.run(done.append, 4)\n"
        "    assert sorted(done) == [0, 0, 1, 1, 2, 2, 3, 3]\n"
        "go()\n"
        "pid = os.fork()\n"
        "go()\n"
        "if pid == 0: os._exit(7)\n"
        "print(os.WEXITSTATUS(os.waitpid(pid, 0)[1]))\n"
    )
    assert run_python(code) == "7"
