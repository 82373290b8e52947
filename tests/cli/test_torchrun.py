"""The command under torchrun: what its ranks do as one, and how they end."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import zipfile
from pathlib import Path
from typing import Any, List, Tuple

import pytest
import torch as th

from sb3_isaac import PPO
from sb3_isaac.device import ranks
from sb3_isaac.zoo import run_folders
from tests.conftest import CONTINUOUS, parameters
from tests.ranks_helpers import returned, run_ranks
from tests.zoo.conftest import call

STEPS = 4096
TRAIN = (
    f"train --algo ppo --env {CONTINUOUS} --device cpu --seed 1 -n {STEPS} --eval-freq 2048 --eval-episodes 4 --save-freq 512"
)
SMALL = "-params n_envs:8 n_steps:16 n_minibatches:2 policy_kwargs:dict(net_arch=[8])"
RUN = Path("logs", "ppo", f"{CONTINUOUS}_1")


def command(rank: int, folder: Path, argv: List[str], restarts: int = 0, dies_at: int = STEPS + 1) -> Tuple[Any, str, str]:
    """In a rank: the exit status, and what it has said.

    :param dies_at: timesteps after which the second rank is killed
    """
    os.chdir(folder)
    os.environ["TORCHELASTIC_RESTART_COUNT"] = str(restarts)
    train = PPO.train

    def killed(model: PPO) -> None:
        if rank == 1 and model.num_timesteps >= dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        train(model)

    PPO.train = killed  # type: ignore[method-assign]
    run_folders.PATIENCE = 0.1
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status: Any = call(argv)
        except SystemExit as error:
            status = error.code
    return status, out.getvalue(), err.getvalue()


@pytest.mark.slow
def test_ranks_that_are_started_again_come_to_what_others_come_to(tmp_path: Path) -> None:
    """Bit for bit. And the first one alone holds the run's folder, prints and saves."""
    argv = [*TRAIN.split(), *SMALL.split()]
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    (status, out, _), (other, silent, _) = returned(run_ranks(2, command, tmp_path / "whole", argv))
    assert (status, other) == (0, 0) and f"Saving to {RUN}" in out and silent == ""
    (_, (status, _, err)), victim = run_ranks(2, command, tmp_path / "killed", argv, 0, 2500)
    assert victim == ("died", None) and status == 1
    assert err.count("sb3-isaac train: ") == 1 and ranks.LOST in err
    assert not (tmp_path / "killed" / RUN / f"{CONTINUOUS}.zip").exists()
    (status, out, _), (other, *_) = returned(run_ranks(2, command, tmp_path / "killed", argv, 1))
    assert (status, other) == (0, 0) and f"torchrun has started the ranks again: {RUN} goes on" in out
    assert f"Training goes on at 2,048 of {STEPS:,} timesteps, as if it had not been interrupted" in out
    models = [PPO.load(tmp_path / name / RUN / f"{CONTINUOUS}.zip", device="cpu") for name in ("whole", "killed")]
    assert th.equal(*map(parameters, models)) and models[0].num_timesteps == models[1].num_timesteps == STEPS
    names = [sorted(path.name for path in Path(tmp_path, name, RUN).iterdir()) for name in ("whole", "killed")]
    assert names[0] == names[1]
    assert zipfile.is_zipfile(tmp_path / "whole" / RUN / "best_model.zip")
    (status, out, _), (other, *_) = returned(run_ranks(2, command, tmp_path / "killed", argv, 1))
    assert (status, other) == (0, 0) and "has finished" in out


@pytest.mark.parametrize(
    "flags, status, sentence",
    [
        (f"{TRAIN} --no-such-flag", 2, "unrecognized arguments: --no-such-flag"),
        (f"{TRAIN} -params n_envs:-3", 1, "n_envs"),
        (f"train --resume --env {CONTINUOUS}", 1, "Another process is training in"),
        (f"train --resume 7 --env {CONTINUOUS}", 1, "There is no run 7 of ppo"),
        ("compare", 1, "it trains in processes of its own: start it without torchrun."),
    ],
)
def test_what_is_wrong_is_said_once(tmp_path: Path, flags: str, status: int, sentence: str) -> None:
    fcntl = pytest.importorskip("fcntl")
    (tmp_path / RUN).mkdir(parents=True)
    other = os.open(tmp_path / RUN, os.O_RDONLY)  # as another process has it
    fcntl.flock(other, fcntl.LOCK_EX)
    found = returned(run_ranks(2, command, tmp_path, flags.split()))
    os.close(other)
    assert [one[0] for one in found] == [status, status]
    said = "".join(err for *_, err in found)
    assert said.count("sb3-isaac ") - said.count("(sb3-isaac ") == 1 and sentence in said
