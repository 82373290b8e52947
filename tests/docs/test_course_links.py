"""The chapters of the course say where a detail stands in the code: "`folder/file.py`, `function`". Is it there?"""

from __future__ import annotations

import ast
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any, Set

import pytest
import stable_baselines3
import torch as th

import sb3_isaac
from tests.conftest import REPOSITORY
from tests.docs.test_docs import PAGES, program

COURSE = REPOSITORY / "docs" / "course"

PAIR = re.compile(r"`(\w+/[\w/]+\.py)`,\s+`([\w.]+)`")
ROOTS = {"stable_baselines3": Path(stable_baselines3.__file__).parents[1]}
SB3 = tuple(int(number) for number in stable_baselines3.__version__.split(".")[:2])
WITH_PAIRS = [page for page in PAGES if page.parent == COURSE and PAIR.search(page.read_text())]


def names(tree: Any, prefix: str = "") -> Set[str]:
    """Of all functions and classes, methods as ``Class.method``."""
    found: Set[str] = set()
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found |= {prefix + node.name} | names(node, f"{prefix}{node.name}.")
    return found


@pytest.mark.parametrize("page", WITH_PAIRS, ids=[page.stem for page in WITH_PAIRS])
def test_functions_that_a_page_names_exist(page: Path) -> None:
    missing = []
    for file, name in PAIR.findall(page.read_text()):
        root = file.split("/")[0]
        if root in ROOTS and SB3 < (2, 7):
            continue  # the pages name what the newest SB3 has
        path = ROOTS.get(root, REPOSITORY) / file
        if not path.is_file() or name not in names(ast.parse(path.read_text())):
            missing.append((file, name))
    assert not missing


def test_files_of_sb3_become_links() -> None:
    links = program("hooks/links.py")
    name = "stable_baselines3/ppo/ppo.py"
    linked = links.link_sb3(f"<p><code>{name}</code>, <code>PPO.train</code>, <code>sb3_isaac/ppo/ppo.py</code></p>")
    assert linked.count("<a ") == 1 and f'<a href="{links.SB3}{name}"><code>{name}</code></a>' in linked
    assert links.link_sb3(linked) == linked
    if SB3 >= (2, 9):  # the newest, which the pages are about
        assert f"/v{SB3[0]}.{SB3[1]}." in links.SB3


def test_the_details_of_ppo_say_where_they_stand() -> None:
    text = (COURSE / "ppo.md").read_text().split("\n## Exercises\n")[0]
    details = re.split(r"\n### \d+\. ", text)[1:]
    assert len(details) >= 10
    for detail in details:
        roots = [file.split("/")[0] for file, _ in PAIR.findall(detail)]
        assert {"sb3_isaac", "stable_baselines3"} <= set(roots), detail.splitlines()[0]
    ablations = re.findall(r"<!-- ablation: (\S+) -->", "".join(details))
    assert len(ablations) == len(set(ablations)) and all(name.startswith("ppo/") for name in ablations)


def test_reinforce_prints_what_the_page_shows(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The same lines, with other numbers."""
    reinforce = program("course/reinforce.py")
    monkeypatch.setattr(th, "set_num_threads", lambda n: None)
    monkeypatch.setattr(reinforce, "noise", partial(reinforce.noise, n_groups=2))
    monkeypatch.setattr(sys, "argv", "reinforce.py --baseline --n-envs 8 --n-steps 4 --n-updates 1".split())
    reinforce.main()
    printed, shown = (
        [re.sub(r"\d+\.?\d*", "", line).split() for line in text.splitlines()]
        for text in (capsys.readouterr().out, (COURSE / "reinforce.txt").read_text())
    )
    assert printed == [shown[1], *shown[3:]]


def test_what_the_page_says_about_the_stages() -> None:
    """The agent learns, and each stage takes noise out of the gradient."""
    reinforce = program("course/reinforce.py")
    agent, untrained = (
        reinforce.learn("baseline", n_envs=256, n_updates=15),
        reinforce.learn("baseline", n_envs=1, n_updates=0),
    )
    trained_length, length = (float(reinforce.evaluate(each, n_envs=64).mean()) for each in (agent, untrained))
    assert trained_length > 3.0 * length
    noise = reinforce.noise(agent, n_groups=16)
    assert noise["gae"] < noise["baseline"] < noise["returns"]
    with pytest.raises(ValueError, match="1 to 498 steps"):
        reinforce.learn("gae", n_steps=499)


def test_gae_of_the_program_is_that_of_the_buffer() -> None:
    """The recursion, its end at the end of an episode, and the last value, on the same rollout."""
    reinforce = program("course/reinforce.py")
    th.manual_seed(0)
    agent, n_steps, n = reinforce.Agent(), 40, 16
    env = sb3_isaac.make_vec_env("IsaacGymCartpole-v0", n, seed=0, device="cpu")
    rollout = reinforce.play(agent, env, n_steps)
    assert (rollout.not_done == 0.0).any()
    buffer = sb3_isaac.buffers.DeviceRolloutBuffer(n_steps, env.observation_space, env.action_space, "cpu", 0.9, 0.99, n)
    with th.no_grad():
        buffer.tensors.values.copy_(agent.values(rollout.obs))
        buffer.tensors.rewards.copy_(rollout.rewards)
        buffer.tensors.episode_starts[1:] = 1.0 - rollout.not_done[:-1]
        buffer.compute_returns_and_advantage(agent.values(rollout.last_obs), 1.0 - rollout.not_done[-1])
    advantages = reinforce.estimate(agent, rollout, "gae", gamma=0.99, gae_lambda=0.9)
    th.testing.assert_close(advantages, buffer.tensors.advantages)


@pytest.mark.slow
def test_transfers_prints_what_the_page_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(th.distributions.Distribution, "_validate_args", True)  # torch.compile turns it off for good
    transfers = program("course/transfers.py")
    shown = (COURSE / "transfers.txt").read_text().split()
    counts = [transfers.count(module.PPO) for module in (stable_baselines3, sb3_isaac)]
    assert [text for count in counts for text in (str(count.waits), f"{count.megabytes:.2f}")] == shown[4:6] + shown[7:]
    assert counts[1].waits == 2
