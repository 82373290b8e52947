"""rl_zoo3's commands on our environments, typed as a user types them in a fresh directory, and what they say to mistakes."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import pytest
import yaml

import sb3_isaac
from sb3_isaac.cli import dispatch as cli

REPOSITORY = Path(__file__).resolve().parents[2]
PPO_ID, DQN_ID = "IsaacGymCartpole-v0", "IsaacGymCartpoleDiscrete-v0"


def run(command: str, folder: Path, ok: bool = True) -> str:
    """Run ``python -m command`` in a folder with the checkout importable. Returns stdout and stderr."""
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *command.split()],
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert (done.returncode == 0) == ok, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def ppo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ppo")
    out = run(
        f"rl_zoo3.train --algo ppo --env {PPO_ID} --gym-packages sb3_isaac.zoo --seed 3 -n 100000 -tb tb --save-freq 5000 "
        "-P --eval-freq 4096 --n-eval-envs 8 --eval-episodes 8 --env-kwargs dt:0.0166 max_effort:400.0",
        folder,
    )
    assert "hyperparams/ppo.yml" in out.replace(os.sep, "/")
    return folder


def test_train_solves_and_writes_what_zoo_writes(ppo_run: Path) -> None:
    from stable_baselines3 import PPO
    from stable_baselines3.common.monitor import load_results
    from stable_baselines3.common.vec_env import VecNormalize

    log = ppo_run / "logs" / "ppo" / f"{PPO_ID}_1"
    for name in (
        f"{PPO_ID}.zip",
        "best_model.zip",
        f"{PPO_ID}/config.yml",
        f"{PPO_ID}/args.yml",
        f"{PPO_ID}/vecnormalize.pkl",
    ):
        assert (log / name).is_file(), name
    assert list(log.glob("rl_model_*_steps.zip"))
    assert list((ppo_run / "tb").rglob("events.out.tfevents.*"))
    config = yaml.load((log / PPO_ID / "config.yml").read_text(), Loader=yaml.UnsafeLoader)
    assert config["policy_kwargs"]["activation_fn"] == "tanh"  # plain values, not objects
    evaluations = np.load(log / "evaluations.npz")
    assert evaluations["results"].shape[1] == 8
    frame = load_results(str(log))
    assert len(frame) > 200 and frame["l"].max() == 499

    # The stock SB3 API loads what was trained, and it stands.
    env = VecNormalize.load(str(log / PPO_ID / "vecnormalize.pkl"), sb3_isaac.make_vec_env(PPO_ID, 64, device="cpu", seed=9))
    env.training = env.norm_reward = False
    result = sb3_isaac.evaluate(PPO.load(log / f"{PPO_ID}.zip", device="cpu"), env, n_episodes=64)
    assert result.mean >= 475


def test_enjoy_and_continue(ppo_run: Path) -> None:
    enjoy = f"--algo ppo --env {PPO_ID} -f logs --no-render -n 600"
    out = run(f"rl_zoo3.enjoy {enjoy} --gym-packages sb3_isaac.zoo", ppo_run)
    assert "Episode Length 499" in out
    assert "499.00 +/- 0.00" in run(f"sb3_isaac.cli enjoy {enjoy} --load-best", ppo_run)
    model = f"logs/ppo/{PPO_ID}_1/{PPO_ID}.zip"
    out = run(f"sb3_isaac.cli train --algo ppo --env {PPO_ID} -i {model} -n 4096 --eval-freq -1", ppo_run)
    assert "Loading pretrained agent" in out and "Loading saved VecNormalize stats" in out
    assert (ppo_run / "logs" / "ppo" / f"{PPO_ID}_2" / f"{PPO_ID}.zip").is_file()


@pytest.mark.parametrize("algo, env_id", [("dqn", DQN_ID), ("ddpg", PPO_ID)])
def test_off_policy_with_its_replay_buffer(tmp_path: Path, algo: str, env_id: str) -> None:
    command = f"sb3_isaac.cli train --algo {algo} --env {env_id} -n 12000 --save-replay-buffer --eval-freq -1 --seed 0"
    run(command + " -params n_envs:32 learning_starts:640 --env-kwargs backend:torch", tmp_path)
    log = tmp_path / "logs" / algo / f"{env_id}_1"
    assert (log / "replay_buffer.pkl").is_file()
    out = run(command + f" -i logs/{algo}/{env_id}_1/{env_id}.zip -params n_envs:32", tmp_path)
    assert "Loading replay buffer" in out
    assert (tmp_path / "logs" / algo / f"{env_id}_2" / f"{env_id}.zip").is_file()


def test_other_environments_stay_as_they_were(tmp_path: Path) -> None:
    out = run(
        "rl_zoo3.train --algo ppo --env CartPole-v1 --gym-packages sb3_isaac.zoo -n 300 --eval-freq 100 --eval-episodes 1 "
        "-params n_steps:32 n_envs:2 batch_size:64 --vec-env subproc",
        tmp_path,
    )
    assert "Evaluating" not in out and "rl_zoo3/hyperparams/ppo.yml" in out.replace(os.sep, "/")
    model = (tmp_path / "logs" / "ppo" / "CartPole-v1_1" / "CartPole-v1.zip").read_bytes()
    assert model and b"sb3_isaac" not in model
    run("rl_zoo3.enjoy --algo ppo --env CartPole-v1 --gym-packages sb3_isaac.zoo -f logs --no-render -n 50", tmp_path)


def call(argv: List[str], capsys: Any) -> str:
    """Run a command in this process. It must fail with one sentence; returned."""
    before = list(sys.argv)
    try:
        status = cli.main(argv)
    finally:
        sys.argv = before
    assert status == 1
    return str(capsys.readouterr().err)


MISTAKES: Dict[str, List[str]] = {
    "dqn needs discrete actions, which IsaacGymCartpole-v0 has not: use --env IsaacGymCartpoleDiscrete-v0": [
        *f"--algo dqn --env {PPO_ID}".split()
    ],
    "ddpg needs continuous actions": [*f"--algo ddpg --env {DQN_ID}".split()],
    "not found in gym registry, you maybe meant IsaacGymCartpole-v0?": [*"--algo ppo --env IsaacGymCartpol-v0".split()],
    "Unknown backend 'mujoco'": [*f"--algo ppo --env {PPO_ID} --env-kwargs backend:mujoco".split()],
    "Unknown task parameter gravity": [*f"--algo ppo --env {PPO_ID} --env-kwargs gravity:1".split()],
    "Device 'cuda:77' cannot be used": [*f"--algo ppo --env {PPO_ID} --device cuda:77".split()],
    "Hyperparameter file nowhere.yml does not exist": [*f"--algo ppo --env {PPO_ID} --conf-file nowhere.yml".split()],
    "Hyperparameters not found for ppo-IsaacGymCartpole-v0": [*f"--algo ppo --env {PPO_ID} --conf-file other.yml".split()],
    "Unknown hyperparameter 'lerning_rate' for ppo": [*f"--algo ppo --env {PPO_ID} -params lerning_rate:0.1".split()],
    "n_envs must be a whole number of at least 1": [*f"--algo ppo --env {PPO_ID} -params n_envs:0".split()],
    "Unknown activation_fn 'elo'": [*f"--algo ppo --env {PPO_ID} -params".split(), "policy_kwargs:dict(activation_fn='elo')"],
    "valid path to a .zip file": [*f"--algo ppo --env {PPO_ID} -i missing.zip".split()],
}


@pytest.mark.parametrize("sentence", MISTAKES)
def test_mistakes_get_one_sentence_and_leave_no_model(
    sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("other.yml").write_text("CartPole-v1: {n_timesteps: 1}\n")
    message = call(["train", *MISTAKES[sentence]], capsys)
    assert sentence in message and len(message.strip().splitlines()) == 1
    assert not list(tmp_path.rglob("*.zip"))


def test_log_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").write_text("a file, not a folder")
    message = call(["train", "--algo", "ppo", "--env", PPO_ID, "-f", "taken"], capsys)
    assert "taken" in message and Path("taken").read_text() == "a file, not a folder"


def test_enjoy_without_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    message = call(["enjoy", "--algo", "ppo", "--env", PPO_ID, "-f", "logs", "--no-render"], capsys)
    assert "was not found" in message


def test_unknown_command(capsys: Any) -> None:
    assert cli.main(["trian"]) == 2
    assert "unknown command 'trian'" in capsys.readouterr().err
    assert cli.main([]) == 2


def test_every_entry_of_our_files_is_plain_and_loads() -> None:
    from sb3_isaac.zoo import entries, manager

    for algo in ("ppo", "dqn", "ddpg"):
        text = (entries.hyperparams_dir() / f"{algo}.yml").read_text()
        assert "dict(" not in text and "nn." not in text
        known = entries.known_keys(manager.ALGOS[algo])
        for env_id, entry in yaml.safe_load(text).items():
            assert env_id in sb3_isaac.envs.ENV_KWARGS
            assert set(entry) <= known, (algo, env_id)


def test_interrupted_run_saves_its_model(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "sb3_isaac.cli",
        "train",
        "--algo",
        "ppo",
        "--env",
        PPO_ID,
        "-n",
        "100000000",
        "--eval-freq",
        "-1",
    ]
    options: Dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    # A shell that runs the tests in the background has them ignore Ctrl-C, and their children too
    options["preexec_fn"] = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, cwd=tmp_path, env=env, **options)
    assert process.stdout is not None
    for line in process.stdout:
        if "total_timesteps" in line:
            break
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=60)
    assert process.returncode == 0, rest
    assert (tmp_path / "logs" / "ppo" / f"{PPO_ID}_1" / f"{PPO_ID}.zip").is_file()
