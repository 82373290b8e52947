"""dqn.py, ddpg.py and ppo.py of the course: each solves the task, and prints what its page shows."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest
import torch as th

import sb3_isaac
from sb3_isaac.buffers import DeviceReplayBuffer
from tests.docs.test_docs import DOCS, program

COURSE = DOCS / "course"
NAMES = ["dqn", "ddpg", "ppo"]


@pytest.fixture(autouse=True)
def course(monkeypatch: pytest.MonkeyPatch) -> None:
    """The programs import each other, and set the number of threads of their process."""
    monkeypatch.syspath_prepend(str(COURSE))
    monkeypatch.setattr(th, "set_num_threads", lambda n: None)


def wordings(text: str) -> Any:
    """Lines without numbers and bars."""
    return [" ".join(re.sub(r"-?\d[\d,.]*|#+|; median.*(?=;)", "", line).split()) for line in text.splitlines()]


@pytest.mark.parametrize("name", NAMES)
def test_it_solves_the_task(name: str) -> None:
    module = program(f"course/{name}.py")
    curve = module.trial.Curve(module.ENV, until_solved=True)
    module.learn(curve, seed=0)
    assert curve.solved_at < float("inf") and curve.returns[-1] >= 475.0


@pytest.mark.parametrize("name", [name for name in NAMES if (COURSE / f"{name}.txt").exists()])
def test_it_prints_what_the_page_shows(name: str, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    module = program(f"course/{name}.py")
    shown = (COURSE / f"{name}.txt").read_text()
    monkeypatch.setattr(module.trial, "EVERY", 256)
    monkeypatch.setattr(sys, "argv", f"{name}.py --total-timesteps 512 --n-envs 16 --learning-starts 256".split())
    if name == "ppo":
        sys.argv[-2:] = ["--n-steps", "8"]
    module.trial.main(module.learn, module.ENV, module.__doc__)
    first, *rows, last = wordings(capsys.readouterr().out)
    expected = wordings(shown)
    assert [first, rows[0], last] == [expected[0], expected[1], expected[-1]] and len(rows) == 2
    assert re.match(r"solved by (9|10) of 10 seeds", shown.splitlines()[-1])


def test_the_buffer_gives_what_the_package_s_gives() -> None:
    """Sums, discounts, last observations and flags, around ends of both kinds and after it has been filled."""
    dqn = program("course/dqn.py")
    env = sb3_isaac.make_vec_env(dqn.ENV, 8, seed=0, device="cpu", max_episode_length=25)
    buffer = dqn.Buffer(8 * 40, 8, th.zeros(8, dtype=th.int64))
    ours = DeviceReplayBuffer(8 * 40, env.observation_space, env.action_space, "cpu", n_envs=8, n_steps=5, gamma=0.9)
    obs = env.reset_tensor().clone()
    for _ in range(70):
        action = th.randint(3, (8,))
        result = env.step_tensor(action)
        buffer.store(obs, action, result)
        ours.add_tensors(obs, result.final_obs, action, result.reward, result.terminated, result.truncated)
        obs = result.obs.clone()
    drawn = buffer.draw(500, 5, 0.9)
    stored = ours.observations.reshape(-1, 4)
    at = ours.at((drawn.obs.unsqueeze(1) - stored).abs().sum(-1).argmin(1))
    th.testing.assert_close(drawn.obs, at.observations)
    th.testing.assert_close(drawn.action, at.actions[:, 0])
    th.testing.assert_close(drawn.rewards, at.rewards[:, 0], atol=1e-5, rtol=1e-5)
    th.testing.assert_close(drawn.discount, at.discounts[:, 0])
    th.testing.assert_close(drawn.last_obs, at.next_observations)
    assert th.equal(drawn.terminated.float(), at.dones[:, 0])
    assert drawn.terminated.any() and (drawn.discount > 0.9**5 + 1e-6).any()
