"""A disk that is full: training goes on, says so once for each kind of file, and keeps what was written before."""

from __future__ import annotations

import errno
import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any, List

import pytest
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, CheckpointCallback, EvalCallback
from stable_baselines3.common.logger import configure

from sb3_isaac import DQN, PPO, VecNormalize
from sb3_isaac.cli import main
from sb3_isaac.evaluation import RewardLog
from sb3_isaac.evaluation.callbacks import BatchedEvalCallback
from sb3_isaac.files import full_disk
from sb3_isaac.files.full_disk import output_goes_on, save_parts, training_goes_on
from tests.conftest import make_env
from tests.reliability.faults import faulty_files
from tests.reliability.things_to_save import read_any

N_ENVS, N_STEPS = 8, 8
KINDS = ["checkpoint", "evaluations", "best model", "episode log", "reward log", "training log", "TensorBoard log"]


class DiskFills(BaseCallback):
    """The disk is full from one step on, and has room again from another on."""

    def __init__(self, folder: Path, full_from: int, until: int = 10**9) -> None:
        super().__init__()
        self.folder, self.full_from, self.until = folder, full_from, until
        self.layer: Any = None

    def _on_step(self) -> bool:
        if self.n_calls == self.full_from:
            self.layer = faulty_files(self.folder, 0, errno.ENOSPC, lasting=True)
            self.layer.__enter__()
        if self.n_calls == self.until:
            self.leave()
        return True

    def leave(self) -> None:
        if self.layer is not None:
            self.layer.__exit__(None, None, None)
            self.layer = None


class FailsToFlush:
    """A log's file that was open before the disk was full."""

    def __init__(self, file: Any, fills: DiskFills) -> None:
        self.file, self.fills, self.name = file, fills, file.name

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def flush(self) -> None:
        if self.fills.layer is not None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.file.flush()


def said(caught: List[warnings.WarningMessage]) -> List[str]:
    """Which kinds of files the warnings are about."""
    matches = [re.match(r"Cannot write the (.*?)( /.*)?: No space", str(warning.message)) for warning in caught]
    return [match.group(1) for match in matches if match]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_training_goes_on_and_warns_once_for_each_kind(tmp_path: Path) -> None:
    env = VecNormalize(make_env(n_envs=N_ENVS, max_episode_length=10, monitor_dir=str(tmp_path)))
    model = PPO("MlpPolicy", env, n_steps=N_STEPS, batch_size=64, n_epochs=1, seed=0, device="cpu")
    model.set_logger(configure(str(tmp_path), ["csv", "tensorboard"]))
    evaluation = BatchedEvalCallback(
        VecNormalize(make_env(n_envs=4, max_episode_length=10), training=False),
        n_eval_episodes=4,
        eval_freq=8,
        log_path=str(tmp_path),
        best_model_save_path=str(tmp_path),
        verbose=0,
    )
    fills = DiskFills(tmp_path, full_from=20, until=60)
    writer = env.unwrapped.results_writer
    writer.file_handler = FailsToFlush(writer.file_handler, fills)
    csv = model.logger.output_formats[0]
    csv.file = FailsToFlush(csv.file, fills)

    class AlwaysBetter(BaseCallback):
        def _on_step(self) -> bool:
            evaluation.best_mean_reward = -1e9
            return True

    callbacks = [fills, AlwaysBetter(), CheckpointCallback(8, str(tmp_path)), RewardLog(window=10), evaluation]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model.learn(80 * N_ENVS, callback=CallbackList(callbacks))
        finally:
            fills.leave()
    assert model.num_timesteps == 80 * N_ENVS
    assert sorted(said(caught)) == sorted(KINDS)
    checkpoint = next(str(warning.message) for warning in caught if "checkpoint" in str(warning.message))
    assert "rl_model_192_steps.zip" in checkpoint and "free" in checkpoint and "make room" in checkpoint
    saved = {path.name for path in tmp_path.glob("rl_model_*_steps.zip")}
    assert saved == {f"rl_model_{8 * n * N_ENVS}_steps.zip" for n in (1, 2, 8, 9, 10)}  # and again when there is room
    for path in tmp_path.iterdir():
        read_any(path)
    assert not list(tmp_path.glob(".*"))


def test_stock_callbacks_and_what_is_the_users_own(tmp_path: Path) -> None:
    class Mine(BaseCallback):
        def _on_step(self) -> bool:
            self.model.save(tmp_path / "mine")
            return True

    model = PPO("MlpPolicy", make_env(), n_steps=8, batch_size=64, n_epochs=1, device="cpu")
    evaluation = EvalCallback(make_env(n_envs=1, max_episode_length=5), eval_freq=8, n_eval_episodes=1, log_path=str(tmp_path))
    with faulty_files(tmp_path, 0, lasting=True):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.learn(16 * N_ENVS, callback=[CheckpointCallback(4, str(tmp_path)), evaluation])
        assert said(caught) == ["checkpoint", "evaluations or best model"]
        for own in (lambda: model.learn(N_ENVS, callback=Mine()), lambda: model.save(tmp_path / "mine")):
            with pytest.raises(OSError, match="No space left"):
                own()
    assert list(tmp_path.iterdir()) == []


def test_guarded_callbacks_do_not_slow_training_down(tmp_path: Path) -> None:
    """SB3's callbacks leave a model as it is, which lets DQN and DDPG look at it less often."""
    env = make_env("IsaacGymCartpoleDiscrete-v0")
    model = DQN("MlpPolicy", env, buffer_size=1000, learning_starts=8, batch_size=8, device="cpu")
    callback = CheckpointCallback(100, str(tmp_path))
    for _ in range(2):  # guarded once
        model.learn(16, callback=callback)
        assert model._run.undisturbed
        assert callback._on_step.args[0].__func__ is CheckpointCallback._on_step


def test_a_broken_pipe_is_no_full_disk() -> None:
    with pytest.raises(BrokenPipeError), training_goes_on("evaluations"):
        raise BrokenPipeError(errno.EPIPE, "the process of an environment is gone")
    with pytest.raises(OSError, match="no number"), training_goes_on("evaluations"):
        raise OSError("no number")


AGENT = ["--algo", "dqn", "--env", "IsaacGymCartpoleDiscrete-v0", "--device", "cpu"]
TRAIN = ["train", *AGENT, *"-n 256 --eval-freq -1 --save-freq 64 --verbose 0".split()]
PARAMS = ["-params", "n_envs:16", "buffer_size:2000", "learning_starts:32"]


def test_the_final_save_keeps_what_there_is_room_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def no_room(model: Any, path: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device: 4 GB to write, 1 MB free", str(path))

    monkeypatch.setattr(DQN, "save_replay_buffer", no_room)
    assert main([*TRAIN, "--save-replay-buffer", "-f", str(tmp_path), *PARAMS, "normalize:True"]) == 1
    err = capsys.readouterr().err
    assert re.search(
        r"Not saved: the replay buffer \(.*replay_buffer\.pkl: No space.*4 GB to write, 1 MB free\); saved: the model, the "
        r"statistics of VecNormalize\. Files written before are as they were\.",
        err,
    )
    run = tmp_path / "dqn" / "IsaacGymCartpoleDiscrete-v0_1"
    for name in ("IsaacGymCartpoleDiscrete-v0.zip", "IsaacGymCartpoleDiscrete-v0/vecnormalize.pkl"):
        read_any(run / name)


def test_a_disk_that_fills_during_a_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """What can be used afterwards is the last checkpoint."""
    with faulty_files(tmp_path) as layer:
        assert main([*TRAIN, "-f", str(tmp_path / "room"), *PARAMS, "normalize:False"]) == 0
    second = [number for number, step in enumerate(layer.done) if step == "replace rl_model_128_steps.new.zip"][0]
    with faulty_files(tmp_path, second, lasting=True), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert main([*TRAIN, "-f", str(tmp_path / "full"), *PARAMS, "normalize:False"]) == 1
    assert "checkpoint" in said(caught)
    assert "Not saved: the model (" in capsys.readouterr().err
    run = tmp_path / "full" / "dqn" / "IsaacGymCartpoleDiscrete-v0_1"
    assert [path.name for path in run.glob("*.zip")] == ["rl_model_64_steps.zip"]
    read_any(run / "rl_model_64_steps.zip")
    assert main(["evaluate", *AGENT, "-f", str(tmp_path / "full"), "--load-last-checkpoint", "-n", "4"]) == 0


def test_parts_are_saved_as_far_as_possible() -> None:
    done = []

    def fail() -> None:
        raise OSError(errno.EIO, "Input/output error", "x.pkl")

    with pytest.raises(OSError, match=r"Not saved: the b \(x.pkl: Input/output error\); saved: the a, the c\."):
        save_parts({"a": lambda: done.append("a"), "b": fail, "c": lambda: done.append("c")})
    assert done == ["a", "c"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_output_to_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_disk, "_reported", set())
    with open("/dev/full", "wb", buffering=0) as file, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")

        class Stream:
            name = "log.txt"

            def write(self, text: str) -> int:
                return file.write(text.encode()) or 0

            def flush(self) -> None:
                pass

        monkeypatch.setattr(sys, "stdout", Stream())
        with pytest.raises(OSError):
            print("as it is without")
        with output_goes_on():
            print("lost")
            print("lost too")
            assert sys.stdout.name == "log.txt"
        assert isinstance(sys.stdout, Stream)
    assert said(caught) == ["output"]
