"""sb3-isaac check: one screen about this machine, and a simulator held against recorded PhysX."""

from __future__ import annotations

import functools
import json
import os
import sys

import numpy as np
import pytest

from sb3_isaac import backends
from sb3_isaac.backends import TorchCartpole, physx_reference, probe
from sb3_isaac.cli import check, check_simulators, dispatch
from tests.conftest import DATA, STANDIN, run_python

ROWS = [0, 3, 6, 9, 10, 12, 18, 19]


def test_reference_is_an_extract_of_the_golden_data():
    recorded = physx_reference.Reference.load()
    with np.load(DATA / "golden.npz") as golden:
        for ours, theirs in {"state": "state", "force": "force", "next_state": "next", "reset": "reset"}.items():
            assert np.array_equal(getattr(recorded, ours), np.moveaxis(golden[f"traj_{theirs}"][ROWS], 1, 0)), ours
    assert recorded.rolls.tolist() == [row >= 10 for row in ROWS]
    assert os.path.getsize(physx_reference.PATH) < 100_000


def test_embedded_simulator_passes(capsys, tmp_path):
    out = tmp_path / "out.npz"
    assert check.check(["--backend", "torch", "--device", "cpu", "--record", str(out)]) == 0
    said = capsys.readouterr().out
    assert said.splitlines()[-1] == "pass" and "200 steps of 8 cartpoles" in said
    with np.load(out) as file:
        about = json.loads(str(file["about"]))
        assert about["backend"] == "torch" and about["difference"] == "None" and about["torch"]
        assert np.abs(file["reached"] - file["next_state"]).max() < physx_reference.ROLLING_TOLERANCE


@pytest.mark.parametrize("wrong", [{"gravity": 9.8}, {"angular_damping": 0.49}, {"pole_inertia": 0.2}])
def test_wrong_physics_does_not_pass(capsys, monkeypatch, wrong):
    monkeypatch.setitem(backends.BACKENDS, "torch", functools.partial(TorchCartpole, **wrong))
    assert check.check(["--backend", "torch", "--device", "cpu"]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith("differs first at step ") and "allowed 5e-06" in last


def test_first_difference():
    recorded = physx_reference.Reference.load()
    reached = recorded.next_state.copy()
    assert physx_reference.first_difference(reached, recorded) is None
    reached[7, 5, 1] += 9e-5  # a cartpole that rolls by itself may be off by that much
    assert physx_reference.first_difference(reached, recorded) is None
    reached[9, 2, 3] = np.nan
    reached[30, 0, 0] += 1.0
    found = physx_reference.first_difference(reached, recorded)
    assert found.startswith("differs first at step 9, cartpole 2, pole velocity: nan where PhysX has ")


def test_what_rolls_is_not_corrected():
    """Each rolling cartpole gets a new state at its recorded resets only; an error in between stays visible."""
    recorded = physx_reference.Reference.load()
    env = backends.make("torch", 8, "cpu", 0)
    step, rolling = env.step, {"steps": 0}

    def drifting(actions):
        rolling["steps"] += 1
        if rolling["steps"] == 200 + 3:  # in the second pass, which is the rolling ones'
            env.dof_state[:, 0] += 0.01
        return step(actions)

    env.step = drifting
    reached = physx_reference.replay(env, recorded)
    error = np.abs(reached - recorded.next_state)[:, :, 0]
    resets = [int(np.nonzero(recorded.reset[:, i])[0][0]) for i in range(4, 8)]
    for i, first_reset in zip(range(4, 8), resets):
        assert (error[2 : first_reset + 1, i] > 0.009).all()
        assert error[first_reset + 1 :, i].max() < 1e-4
    assert error[:, :4].max() < 5e-6


def test_replay_needs_the_right_number_of_environments():
    with pytest.raises(ValueError, match="make it with n_envs=8"):
        physx_reference.replay(backends.make("torch", 3, "cpu", 0), physx_reference.Reference.load())


@pytest.mark.skipif(probe.import_problem() != probe.NOT_INSTALLED, reason="isaacgym is installed here")
def test_overview_without_isaacgym(capsys):
    assert check.check([]) == 0
    said = capsys.readouterr().out
    assert len(said.splitlines()) <= 24
    for text in ("sb3_isaac ", "torch ", "stable-baselines3 ", "cpu ", " ms", "isaacgym", "not installed: download", "auto"):
        assert text in said, text


def test_versions_come_before_torch(tmp_path):
    """Which takes seconds to import, and where that fails they are what one has to know."""
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise ImportError('libcudart.so.13: cannot open shared object file')")
    first = f"import sys; sys.path.insert(0, {str(tmp_path)!r})"
    done = run_python("-c", f"{first}; from sb3_isaac.cli import dispatch; sys.exit(dispatch.main(['check']))")
    assert done.returncode == 1
    first, second, last = done.stdout.splitlines()
    assert first.startswith("sb3_isaac ") and second.startswith("  torch ")
    assert last == "sb3-isaac check: libcudart.so.13: cannot open shared object file"
    assert set(check.BACKENDS) == {*backends.BACKENDS, "auto"}


def test_the_compiler_is_named_or_missed(monkeypatch, capsys):
    monkeypatch.setenv("CC", "no-such-compiler")
    check_simulators.overview()
    assert "  compile=True on cpu: no, there is no C compiler 'no-such-compiler'" in capsys.readouterr().out
    monkeypatch.setenv("CC", f"{sys.executable} -c \"print('cc 1.2')\"")
    assert check_simulators.c_compiler() == "in C, by cc 1.2"


def test_isaacgym_without_isaacgym(capsys):
    if probe.import_problem() is None:
        pytest.skip("isaacgym works here")
    assert dispatch.main(["check", "--backend", "isaacgym", "--device", "cpu"]) == 1
    assert "sb3-isaac check: backend='isaacgym' cannot be used" in capsys.readouterr().err


def test_wrong_calls(capsys):
    for argv in (["--record", "out.npz"], ["--backend", "mujoco"]):
        with pytest.raises(SystemExit) as stop:
            check.check(argv)
        assert stop.value.code == 2
    assert dispatch.main(["check", "--backend", "torch", "--device", "cuda:77"]) == 1
    assert "cuda:77" in capsys.readouterr().err


class TestOnTheStandin:
    """Isaac Gym runs in a child process of the check, which finds the stand-in on its path."""

    @pytest.fixture(autouse=True)
    def standin_on_path(self, monkeypatch):
        monkeypatch.syspath_prepend(str(STANDIN))
        monkeypatch.setattr(probe, "import_problem", lambda: None)
        probe.try_in_child.cache_clear()
        yield
        probe.try_in_child.cache_clear()

    def test_overview(self, capsys):
        check_simulators.overview()
        said = capsys.readouterr().out
        line = next(line for line in said.splitlines() if line.startswith("  isaacgym"))
        assert line.split()[1] == "cpu" and line.endswith(" ms"), said

    def test_comparison(self, capfd, tmp_path):
        out = tmp_path / "out.npz"
        code = check.check(["--backend", "isaacgym", "--device", "cpu", "--record", str(out)])
        said = capfd.readouterr()
        assert (code, said.out.splitlines()[-1]) == (0, "pass"), said
        assert out.exists()

    def test_a_crash_is_explained(self, capfd, monkeypatch):
        """A segmentation fault in Isaac Gym is a sentence and an exit status."""
        monkeypatch.setenv("ISAACGYM_STANDIN_FAIL", "segfault")
        assert check.check(["--backend", "isaacgym", "--device", "cpu"]) == 1
        assert "Isaac Gym crashed (SIGSEGV)" in capfd.readouterr().err.splitlines()[-1]
