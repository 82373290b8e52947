"""Sets of files that count together or not at all, and objects as plain data."""

from __future__ import annotations

import io
import os
import pickle
import random
from collections import deque
from pathlib import Path
from typing import Any, Dict

import numpy as np
import pytest
import torch as th

from sb3_isaac.files import checkpoint, plain_state


def write(path: Path, text: str, steps: int, **more: Any) -> checkpoint.Checkpoint:
    writers = {key: lambda file, key=key: file.write(f"{key} {text}".encode()) for key in ("model", "state")}
    return checkpoint.write(path, writers, {"num_timesteps": steps, **more})


def content(found: Any) -> Dict[str, str]:
    return {key: Path(path).read_text() for key, path in found.files.items()}


def test_a_set_is_read_back(tmp_path: Path) -> None:
    write(tmp_path / "a.zip", "one", 100, total_timesteps=500)
    for path in ("a", "a.zip", "a.json", "a_state.pt"):
        found = checkpoint.read(tmp_path / path)
        assert found is not None and content(found) == {"model": "model one", "state": "state one"}
        assert (found.num_timesteps, found.info["total_timesteps"]) == (100, 500)
    assert sorted(os.listdir(tmp_path)) == ["a.json", "a.zip", "a_state.pt"]
    assert checkpoint.read(tmp_path / "b") is None


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", range(8))
def test_killed_anywhere(at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At every replacement of a file: what is read is one whole set, the old or the new one, under the same name."""
    write(tmp_path / "a", "old", 100)
    calls, replace = [0], os.replace

    def die(*args: Any) -> None:
        calls[0] += 1
        if calls[0] == at + 1:
            raise Killed
        replace(*args)

    monkeypatch.setattr(os, "replace", die)
    monkeypatch.setattr(os, "remove", lambda path: None)  # a killed process does not tidy up
    try:
        write(tmp_path / "a", "new", 200)
    except Killed:
        pass
    found = checkpoint.read(tmp_path / "a")
    assert found is not None
    texts = {text.split()[1] for text in content(found).values()}
    assert texts == {"new" if found.num_timesteps == 200 else "old"}
    assert found.num_timesteps == (100 if at < 3 else 200)  # the third file is the manifest
    monkeypatch.undo()
    before = content(found)
    settled = checkpoint.settle(found)
    assert settled == checkpoint.read(tmp_path / "a") and content(settled) == before
    assert settled.files == {"model": str(tmp_path / "a.zip"), "state": str(tmp_path / "a_state.pt")}
    assert content(write(tmp_path / "a", "next", 300)) == {"model": "model next", "state": "state next"}


def test_the_newest_complete_one(tmp_path: Path) -> None:
    for steps in (100, 900, 1000):
        write(tmp_path / f"rl_model_{steps}_steps", str(steps), steps)
    (tmp_path / "rl_model_1000_steps_state.pt").write_text("cut")
    (tmp_path / "other.json").write_text("[1]")
    said: list = []
    found = checkpoint.newest(tmp_path, said.append)
    assert found is not None and found.num_timesteps == 900
    assert len(said) == 1 and "rl_model_1000_steps is not complete" in said[0]
    with pytest.raises(checkpoint.IncompleteCheckpoint, match="missing, cut or another file"):
        checkpoint.read(tmp_path / "rl_model_1000_steps")
    (tmp_path / "rl_model_900_steps.json").write_text("{")
    with pytest.raises(checkpoint.IncompleteCheckpoint, match="no manifest"):
        checkpoint.read(tmp_path / "rl_model_900_steps")
    found = checkpoint.newest(tmp_path, said.append)
    assert found is not None and found.num_timesteps == 100
    assert checkpoint.newest(tmp_path / "nothing") is None


def test_prune_and_note(tmp_path: Path) -> None:
    for steps in (5, 90, 1000):
        write(tmp_path / f"rl_model_{steps}_steps", "x", steps)
    os.replace(tmp_path / "rl_model_5_steps.zip", tmp_path / "rl_model_5_steps.new.zip")  # as a killed writer leaves it
    write(tmp_path / "mine", "x", 1)
    checkpoint.prune(tmp_path, 2, "rl_model_")
    assert [os.path.basename(name) for name, _ in checkpoint.all_in(tmp_path)] == [
        "rl_model_1000_steps",
        "rl_model_90_steps",
        "mine",
    ]
    assert not list(tmp_path.glob("rl_model_5*"))
    checkpoint.note(tmp_path / "mine", finished=True)
    found = checkpoint.read(tmp_path / "mine")
    assert found is not None and found.info["finished"] and found.num_timesteps == 1


def test_a_full_disk_leaves_the_old_set(tmp_path: Path) -> None:
    write(tmp_path / "a", "old", 100)

    def full(file: Any) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        checkpoint.write(tmp_path / "a", {"model": lambda file: file.write(b"new"), "state": full}, {"num_timesteps": 200})
    found = checkpoint.read(tmp_path / "a")
    assert found is not None and found.num_timesteps == 100
    assert sorted(os.listdir(tmp_path)) == ["a.json", "a.zip", "a_state.pt"]


class Part:
    def __init__(self) -> None:
        self.values = [1, 2.5]


class Owner:
    def __init__(self, number: float) -> None:
        self.number, self.text, self.none = number, "words", None
        self.tensor = th.full((3,), number)
        self.view = self.tensor[:2]
        self.array = np.full(2, number, np.uint32)
        self.generators = [th.Generator().manual_seed(int(number)), np.random.default_rng(int(number))]
        self.legacy, self.python = np.random.RandomState(int(number)), random.Random(number)
        self.window = deque([{"r": number}], maxlen=2)
        self.part, self.function, self.file = Part(), len, io.StringIO()
        self.net = th.nn.Linear(1, 1)
        self.numpy_number = np.float32(number)

    def draws(self) -> Any:
        return (
            th.rand(2, generator=self.generators[0]).tolist(), self.generators[1].random(2).tolist(), self.legacy.rand(),
            self.python.random(),
        )  # fmt: skip


def test_objects_as_plain_data(tmp_path: Path) -> None:
    one, other = Owner(3.0), Owner(4.0)
    one.part.values.append(7)
    packer = plain_state.Packer()
    with open(tmp_path / "state.pt", "wb") as file:
        plain_state.save(packer.attributes(one), file)
    assert packer.missing == ["Owner.file (StringIO)"]
    tensor, window = other.tensor, other.window
    plain_state.Unpacker().attributes(other, plain_state.load(str(tmp_path / "state.pt")))
    assert other.tensor is tensor and other.window is window and other.view.tolist() == [3.0, 3.0]
    assert other.array.dtype == np.uint32 and other.array.tolist() == [3, 3] and other.number == 3.0
    assert type(other.numpy_number) is np.float32 and other.window[0] == {"r": 3.0} and other.window.maxlen == 2
    assert other.part.values == [1, 2.5, 7] and th.equal(one.net.weight, other.net.weight)
    assert one.draws() == other.draws()


class Evil:
    def __reduce__(self) -> Any:
        return os.mkdir, ("ran",)


def test_a_state_runs_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    th.save({"model": Evil()}, "evil.pt")
    Path("pickle.pt").write_bytes(pickle.dumps({"model": Evil()}))
    Path("empty.pt").write_bytes(b"")
    for name in ("evil.pt", "pickle.pt", "empty.pt"):
        with pytest.raises(ValueError, match=f"{name} is not the state of a checkpoint"):
            plain_state.load(name)
    assert not os.path.exists("ran")
