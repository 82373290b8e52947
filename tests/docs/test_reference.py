"""The reference pages against the package: tables are up to date, the logged keys are all there, the programs run."""

from __future__ import annotations

import json
import re
import runpy
import sys
from pathlib import Path
from typing import Any, Dict, Set

import pytest
import stable_baselines3
import torch as th
from stable_baselines3.common.logger import KVWriter, Logger

from sb3_isaac import DDPG, DQN, PPO
from sb3_isaac.buffers import DeviceReplayBuffer, DeviceRolloutBuffer
from sb3_isaac.evaluation.callbacks import BatchedEvalCallback
from sb3_isaac.settings.memory import replay_bytes, rollout_bytes
from tests.conftest import ENV_IDS, REPOSITORY, make_env, run_python
from tests.docs.test_docs import DOCS, program

REFERENCE = DOCS / "reference"
NEWEST = tuple(int(part) for part in stable_baselines3.__version__.split(".")[:2]) >= (2, 9)


@pytest.mark.parametrize("name", ["settings_side_by_side.txt", "hyperparameters.txt", "memory.txt"])
def test_generated_tables_are_up_to_date(name: str) -> None:
    if name == "hyperparameters.txt" and not NEWEST:
        pytest.skip("the page has the defaults of SB3 2.9")
    assert program("reference/tables.py").FILES[name]() == (REFERENCE / name).read_text(), "run docs/reference/tables.py"


def test_memory_is_what_the_buffers_take() -> None:
    env = make_env(n_envs=8)
    rollouts = DeviceRolloutBuffer(16, env.observation_space, env.action_space, "cpu", n_envs=8)
    held = [rollouts.rows, rollouts.tensors.rewards, rollouts.tensors.episode_starts]
    taken = sum(tensor.numel() * tensor.element_size() for tensor in held)
    # truncated, returns and lengths are kept elsewhere, by Rollout
    assert taken <= rollout_bytes(16, 8, 4, 1) <= 1.3 * taken
    assert DeviceReplayBuffer(800, env.observation_space, env.action_space, "cpu", n_envs=8).nbytes == replay_bytes(800, 4, 1)


class Keys(KVWriter):
    """An output of SB3's logger that keeps the names."""

    def __init__(self) -> None:
        self.keys: Set[str] = set()

    def write(self, key_values: Dict[str, Any], key_excluded: Dict[str, Any], step: int = 0) -> None:
        self.keys |= set(key_values)

    def close(self) -> None:
        pass


def keys_of(page: str, heading: str) -> Set[str]:
    section = page.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return set(re.findall(r"^\| `([\w/]+)` \|", section, re.MULTILINE))


@pytest.mark.parametrize("algorithm", [PPO, DQN, DDPG])
def test_every_logged_key_is_on_the_page(algorithm: Any) -> None:
    page, name = (REFERENCE / "metrics.md").read_text(), algorithm.__name__
    env_id = ENV_IDS[name.lower()]
    settings: Dict[str, Any] = dict(n_steps=8, batch_size=64, n_epochs=1) if algorithm is PPO else dict(learning_starts=8)
    model = algorithm("MlpPolicy", make_env(env_id, max_episode_length=10), seed=0, device="cpu", **settings)
    written = Keys()
    model.set_logger(Logger(None, [written]))
    evaluation = BatchedEvalCallback(make_env(env_id, max_episode_length=10), n_eval_episodes=8, eval_freq=50, verbose=0)
    model.learn(8 * 210, callback=evaluation, log_interval=1)
    assert written.keys == keys_of(page, "All algorithms") | keys_of(page, name) | keys_of(page, "Evaluation")


def test_where_time_goes_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, threads = tmp_path / "out.txt", th.get_num_threads()
    monkeypatch.setattr(sys, "argv", f"where_time_goes.py --n-envs 8 --repeats 2 --out {out}".split())
    try:
        runpy.run_path(str(REFERENCE / "where_time_goes.py"), run_name="__main__")
    finally:
        th.set_num_threads(threads)
    committed = (REFERENCE / "where_time_goes.txt").read_text().splitlines()
    assert out.read_text().splitlines()[0] == committed[0] and len(committed) == 2 + 6 * 3


def test_physics_prints_what_the_page_shows(capsys: pytest.CaptureFixture[str]) -> None:
    physics, shown = program("reference/physics.py"), (REFERENCE / "physics.txt").read_text()
    physics.main()
    printed = [line.split("|")[1] for line in capsys.readouterr().out.splitlines()]
    assert printed == [line.split("|")[1] for line in shown.splitlines()]
    rows = dict(re.findall(r"^\| (.+?) \| (\d\S+) \|$", shown, re.MULTILINE))
    assert physics.one_step_error() < 2 * float(rows.pop("one step, 2,000 states, PhysX (largest)"))
    assert float(rows.pop("log of real Isaac Gym, as it is")) < 1e-5
    assert list(rows) == list(physics.WRONG)
    name = "no damping"
    assert physics.log_error(**physics.WRONG[name]) == pytest.approx(float(rows[name]), rel=0.1)


@pytest.mark.parametrize("options", ["--algo ppo --normalize", "--algo dqn --eager"])
def test_the_timeline_lists_what_ran(options: str, tmp_path: Path) -> None:
    command = f"scripts/timeline.py --device cpu --n-envs 64 --iterations 3 {options} --trace {tmp_path}/trace.json"
    done = run_python(*command.split(), cwd=REPOSITORY)
    assert done.returncode == 0, done.stdout
    assert "64 environments" in done.stdout and re.search(r"\| \*\*all\*\* \| [1-9]", done.stdout)
    share = re.search(r"One iteration: [\d,]+ us, in [\d,]+ of them \((\d+)%\) something ran", done.stdout)
    assert share is not None and 0 < int(share.group(1)) <= 100
    assert "traceEvents" in json.loads((tmp_path / "trace.json").read_text())
