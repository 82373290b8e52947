"""rl_zoo3's commands on our environments, typed as a user types them in a fresh directory, and what they say to mistakes."""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any, Dict

import numpy as np
import pytest
import stable_baselines3
import yaml
from stable_baselines3.common.monitor import load_results
from stable_baselines3.common.vec_env import VecNormalize

from sb3_isaac import PPO, evaluate
from sb3_isaac.envs import ENV_KWARGS, SIMULATORS
from sb3_isaac.zoo import entry_files, manager
from tests.conftest import CONTINUOUS, DISCRETE, make_env, run_python
from tests.reliability.broken_files import trained_run
from tests.zoo.conftest import call, start


def run(command: str, folder: Path) -> str:
    """Run ``python -m command`` in a folder, as a user does. Returns what it said."""
    done = run_python("-m", *command.split(), cwd=folder)
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def ppo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ppo")
    out = run(
        f"rl_zoo3.train --algo ppo --env {CONTINUOUS} --gym-packages sb3_isaac.zoo --seed 3 -n 81920 -tb tb --save-freq 20000 "
        "-P --eval-freq 20480 --n-eval-envs 8 --eval-episodes 8 --env-kwargs dt:0.0166 max_effort:400.0",
        folder,
    )
    assert "hyperparams/ppo.yml" in out.replace(os.sep, "/")
    return folder


def test_train_solves_and_writes_what_zoo_writes(ppo_run: Path) -> None:
    log = ppo_run / "logs" / "ppo" / f"{CONTINUOUS}_1"
    for name in (
        f"{CONTINUOUS}.zip",
        "best_model.zip",
        f"{CONTINUOUS}/config.yml",
        f"{CONTINUOUS}/args.yml",
        f"{CONTINUOUS}/vecnormalize.pkl",
    ):
        assert (log / name).is_file(), name
    assert list(log.glob("rl_model_*_steps.zip"))
    assert list((ppo_run / "tb").rglob("events.out.tfevents.*"))
    config = yaml.load((log / CONTINUOUS / "config.yml").read_text(), Loader=yaml.UnsafeLoader)
    assert config["policy_kwargs"]["activation_fn"] == "tanh"  # plain values, not objects
    evaluations = np.load(log / "evaluations.npz")
    assert evaluations["results"].shape[1] == 8
    frame = load_results(str(log))
    assert len(frame) > 200 and frame["l"].max() == 499

    # The stock SB3 API loads what was trained, and it stands.
    env = VecNormalize.load(str(log / CONTINUOUS / "vecnormalize.pkl"), make_env(n_envs=64, seed=9))
    env.training = env.norm_reward = False
    result = evaluate(stable_baselines3.PPO.load(log / f"{CONTINUOUS}.zip", device="cpu"), env, n_episodes=64)
    assert result.mean >= 475


def test_enjoy_and_continue(ppo_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(ppo_run)
    enjoy = f"--algo ppo --env {CONTINUOUS} -f logs --no-render -n 600"
    out = run(f"rl_zoo3.enjoy {enjoy} --gym-packages sb3_isaac.zoo", ppo_run)
    assert "Episode Length 499" in out
    assert call(f"enjoy {enjoy} --load-best".split()) == 0
    assert "499.00 +/- 0.00" in capsys.readouterr().out
    model = f"logs/ppo/{CONTINUOUS}_1/{CONTINUOUS}.zip"
    assert call(f"train --algo ppo --env {CONTINUOUS} -i {model} -n 4096 --eval-freq -1".split()) == 0
    out = capsys.readouterr().out
    assert "Loading pretrained agent" in out and "Loading saved VecNormalize stats" in out
    assert (ppo_run / "logs" / "ppo" / f"{CONTINUOUS}_2" / f"{CONTINUOUS}.zip").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("algo, env_id", [("dqn", DISCRETE), ("ddpg", CONTINUOUS)])
def test_off_policy_with_its_replay_buffer(
    tmp_path: Path, algo: str, env_id: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    command = f"train --algo {algo} --env {env_id} -n 12000 --save-replay-buffer --eval-freq -1 --seed 0"
    assert call((command + " -params n_envs:32 learning_starts:640 --env-kwargs backend:torch").split()) == 0
    log = tmp_path / "logs" / algo / f"{env_id}_1"
    assert (log / "replay_buffer.pkl").is_file()
    assert call((command + f" -i logs/{algo}/{env_id}_1/{env_id}.zip -params n_envs:32").split()) == 0
    assert "Loading replay buffer" in capsys.readouterr().out
    assert (tmp_path / "logs" / algo / f"{env_id}_2" / f"{env_id}.zip").is_file()


@pytest.mark.slow
def test_other_environments_stay_as_they_were(tmp_path: Path) -> None:
    out = run(
        "rl_zoo3.train --algo ppo --env CartPole-v1 --gym-packages sb3_isaac.zoo -n 300 --eval-freq 100 --eval-episodes 1 "
        "-params n_steps:64 n_envs:1 batch_size:64 --vec-env subproc",
        tmp_path,
    )
    assert "Evaluating" not in out and "rl_zoo3/hyperparams/ppo.yml" in out.replace(os.sep, "/")
    model = (tmp_path / "logs" / "ppo" / "CartPole-v1_1" / "CartPole-v1.zip").read_bytes()
    assert model and b"sb3_isaac" not in model
    run("rl_zoo3.enjoy --algo ppo --env CartPole-v1 --gym-packages sb3_isaac.zoo -f logs --no-render -n 50", tmp_path)


WITH_PPO = f"--algo ppo --env {CONTINUOUS}"
MISTAKES = {
    "dqn needs discrete actions, which IsaacGymCartpole-v0 has not: use --env IsaacGymCartpoleDiscrete-v0": (
        f"--algo dqn --env {CONTINUOUS}"
    ),
    "ddpg needs continuous actions": f"--algo ddpg --env {DISCRETE}",
    "not found in gym registry, you maybe meant IsaacGymCartpole-v0?": "--algo ppo --env IsaacGymCartpol-v0",
    "Unknown backend 'mujoco'": f"{WITH_PPO} --env-kwargs backend:mujoco",
    "Unknown task parameter wind": f"{WITH_PPO} --env-kwargs wind:1",
    "Device 'cuda:77' cannot be used": f"{WITH_PPO} --device cuda:77",
    "Hyperparameter file nowhere.yml does not exist": f"{WITH_PPO} --conf-file nowhere.yml",
    "Hyperparameters not found for ppo-IsaacGymCartpole-v0": f"{WITH_PPO} --conf-file other.yml",
    "Unknown hyperparameter 'lerning_rate' for ppo": f"{WITH_PPO} -params lerning_rate:0.1",
    "n_envs must be a whole number of at least 1": f"{WITH_PPO} -params n_envs:0",
    "Unknown activation_fn 'elo'": f"{WITH_PPO} -params policy_kwargs:dict(activation_fn='elo')",
    "valid path to a .zip file": f"{WITH_PPO} -i missing.zip",
}


@pytest.mark.parametrize("sentence", MISTAKES)
def test_mistakes_get_one_sentence_and_leave_no_model(
    sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("other.yml").write_text("CartPole-v1: {n_timesteps: 1}\n")
    assert call(["train", *MISTAKES[sentence].split()]) == 1
    message = capsys.readouterr().err
    assert sentence in message and len(message.strip().splitlines()) == 1
    assert not list(tmp_path.rglob("*.zip"))


def test_until_solved_ends_when_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Two evaluations in a row, one line each, and nothing else at --verbose 0 but where things are."""
    monkeypatch.chdir(tmp_path)
    train = f"train {WITH_PPO} --seed 0 -n 40960 --verbose 0 --until-solved -params reward_threshold:"
    assert call([*train.split()[:-1], "reward_threshold:5"]) == 0
    out = capsys.readouterr().out
    evaluations = np.load(f"logs/ppo/{CONTINUOUS}_1/evaluations.npz")
    assert list(evaluations["timesteps"]) == [2048, 4096] and out.count("Evaluation after") == 2
    first, second = evaluations["results"].mean(axis=1)
    assert f"Solved after 4,096 steps: mean returns {first:.1f} and {second:.1f} in two evaluations in a row, 5" in out
    assert PPO.load(f"logs/ppo/{CONTINUOUS}_1/{CONTINUOUS}.zip", device="cpu").num_timesteps == 4096
    assert len(out.splitlines()) <= 8

    assert call([*train.split()[:-1], "reward_threshold:500", "-n", "4096", "--eval-freq", "2048"]) == 0
    assert "Not solved in 4,096 steps: no two evaluations in a row reached 500" in capsys.readouterr().out
    assert call([*train.split()[:-1], "reward_threshold:5", "--eval-freq", "-1"]) == 1
    assert "--until-solved needs evaluations (leave out --eval-freq -1)" in capsys.readouterr().err


@pytest.mark.slow
def test_commands_do_not_load_torchs_compiler(tmp_path: Path) -> None:
    """It takes two seconds. With compile=True it is there."""
    code = (
        "import sys, sb3_isaac.cli, sb3_isaac.zoo, torch as th\n"
        f"sb3_isaac.cli.main('train {WITH_PPO} -n 2048 --eval-freq -1 --verbose 0'.split())\n"
        "assert 'torch._dynamo' not in sys.modules\n"
        "if hasattr(th, 'compile'):\n"
        "    f = th.compile(lambda x: x.sin() + 1.0, backend='eager')\n"
        "    assert th.allclose(f(th.zeros(3)), th.ones(3)) and 'torch._dynamo' in sys.modules\n"
    )
    done = run_python("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stdout


def test_log_folder_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("taken").write_text("a file, not a folder")
    assert call(["train", "--algo", "ppo", "--env", CONTINUOUS, "-f", "taken"]) == 1
    message = capsys.readouterr().err
    assert "taken" in message and Path("taken").read_text() == "a file, not a folder"


def test_enjoy_without_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(["enjoy", "--algo", "ppo", "--env", CONTINUOUS, "-f", "logs", "--no-render"]) == 1
    message = capsys.readouterr().err
    assert "was not found" in message


def test_unknown_command(capsys: Any) -> None:
    assert call(["trian"]) == 2
    assert "unknown command 'trian'" in capsys.readouterr().err
    assert call([]) == 2


def test_every_entry_of_our_files_is_plain_and_loads() -> None:
    for algo in ("ppo", "dqn", "ddpg"):
        text = (entry_files.hyperparams_dir() / f"{algo}.yml").read_text()
        assert "dict(" not in text and "nn." not in text
        known = entry_files.known_keys(manager.ALGOS[algo])
        for env_id, entry in yaml.safe_load(text).items():
            assert env_id in ENV_KWARGS or env_id.partition(":")[0] in SIMULATORS
            assert set(entry) <= known, (algo, env_id)


@pytest.mark.slow
def test_interrupted_run_saves_its_model(tmp_path: Path) -> None:
    # A shell that runs the tests in the background has them ignore Ctrl-C, and their children too
    hears_ctrl_c = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    process = start(f"train --algo ppo --env {CONTINUOUS} -n 100000000 --eval-freq -1", tmp_path, preexec_fn=hears_ctrl_c)
    assert process.stdout is not None
    for line in process.stdout:
        if "total_timesteps" in line:
            break
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=300)
    assert process.returncode == 0, rest
    assert (tmp_path / "logs" / "ppo" / f"{CONTINUOUS}_1" / f"{CONTINUOUS}.zip").is_file()


def test_a_manager_without_our_algorithms_trains_with_stock_sb3(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plain.yml").write_text(f"{CONTINUOUS}: {{n_timesteps: 1000, policy: MlpPolicy}}\n")
    options: Dict[str, Any] = {"config": "plain.yml", "eval_freq": -1, "device": "cpu"}
    models = []
    for algorithms in (manager.ALGOS, {}):
        experiment = manager.ExperimentManager(argparse.Namespace(), "ppo", CONTINUOUS, "logs", **options)
        experiment.algorithms = algorithms
        models.append(experiment.setup_experiment()[0])
    assert type(models[0]) is PPO
    assert isinstance(models[1], stable_baselines3.PPO) and not isinstance(models[1], PPO)  # of a class that saves whole files


@pytest.mark.filterwarnings("error:The model was trained on observations normalised")
@pytest.mark.parametrize("command", ["evaluate -n 4", "enjoy --no-render -n 20"])
def test_a_run_that_has_lost_its_settings(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The statistics beside the model are enough."""
    folder = trained_run(tmp_path) / CONTINUOUS
    shutil.rmtree(folder)
    assert call([*command.split(), "--algo", "ppo", "--env", CONTINUOUS, "-f", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert f"There is no {folder}/config.yml: the environment is made as by default" in out
    assert "Loading running average" in out
