"""The Isaac Gym backend: most of it runs in one child process on the stand-in, see conftest.py."""

from __future__ import annotations

import importlib.util
import logging
import sys

import numpy as np
import pytest
import torch as th

from sb3_isaac import backends
from sb3_isaac.backends import probe
from tests.conftest import ENV_IDS, STANDIN, run_python

ISAACGYM_INSTALLED = probe.import_problem() != probe.NOT_INSTALLED


@pytest.mark.slow
@pytest.mark.parametrize("algo", ["ppo", "dqn", "ddpg"])
def test_training_and_evaluation_share_the_one_simulator(algo, tmp_path):
    """As a user types it. A second simulator, or a larger one, would end the run."""
    env_id = ENV_IDS[algo]
    flags = ["--algo", algo, "--env", env_id, "--env-kwargs", "backend:isaacgym", "device:cpu", "max_episode_length:40"]
    flags += ["-n", "6144", "--eval-freq", "2048", "--n-eval-envs", "16", "-f", str(tmp_path), "--device", "cpu"]
    done = run_python("-m", "sb3_isaac.cli", "train", *flags, standin=True)
    assert done.returncode == 0, done.stdout
    evaluations = np.load(tmp_path / algo / f"{env_id}_1" / "evaluations.npz")
    assert len(evaluations["timesteps"]) >= 2 and evaluations["ep_lengths"].max() <= 40


TORCH_FIRST = """
import torch
try:
    import isaacgym
except ImportError as error:
    print("ISAACGYM:", error)
import sb3_isaac
from sb3_isaac import backends
assert backends.make("auto", 2, "cpu").reset().shape == (2, 4)
try:
    backends.make("isaacgym", 2, "cpu")
except RuntimeError as error:
    print("WE:", error)
"""


def test_torch_first_is_explained():
    output = run_python("-c", TORCH_FIRST, standin=True).stdout
    assert "ISAACGYM: PyTorch was imported before isaacgym modules." in output  # the stand-in is as strict as the real one
    assert "WE: backend='isaacgym' cannot be used: torch was imported before sb3_isaac" in output
    assert "sb3-isaac train" in output


def import_first(monkeypatch, torch_is_there):
    """Run sb3_isaac/_isaacgym_first.py once more, as in a process that has imported torch already or has not."""
    spec = importlib.util.spec_from_file_location("isaacgym_first_again", probe._isaacgym_first.__file__)
    module = importlib.util.module_from_spec(spec)
    hidden = [name for name in sys.modules if name.split(".")[0] == "isaacgym"] + ([] if torch_is_there else ["torch"])
    modules = {name: sys.modules.pop(name) for name in hidden}
    try:
        spec.loader.exec_module(module)
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "isaacgym"]:
            del sys.modules[name]
        sys.modules.update(modules)
    monkeypatch.setattr(probe, "_isaacgym_first", module)
    return module


class TestImportOrder:
    @pytest.fixture(autouse=True)
    def standin_on_path(self, monkeypatch):
        monkeypatch.syspath_prepend(str(STANDIN))

    def test_in_time(self, monkeypatch):
        first = import_first(monkeypatch, torch_is_there=False)
        assert first.installed and not first.too_late and first.error is None
        assert probe.import_problem() is None

    def test_too_late(self, monkeypatch):
        first = import_first(monkeypatch, torch_is_there=True)
        assert first.installed and first.too_late and probe.import_problem() == probe.TOO_LATE

    def test_skipped(self, monkeypatch):
        monkeypatch.setenv("SB3_ISAAC_SKIP_ISAACGYM", "1")
        first = import_first(monkeypatch, torch_is_there=False)
        assert first.installed and "SB3_ISAAC_SKIP_ISAACGYM is set" in probe.import_problem()

    def test_a_broken_installation_breaks_nothing_else(self, monkeypatch):
        monkeypatch.setenv("ISAACGYM_STANDIN_FAIL", "libpython")
        first = import_first(monkeypatch, torch_is_there=False)
        assert isinstance(first.error, ImportError)
        with pytest.raises(RuntimeError, match="does not find Python's shared library.*LD_LIBRARY_PATH=/"):
            backends.make("isaacgym", 2, "cpu")
        assert backends.make("torch", 2, "cpu").reset().shape == (2, 4)

    def test_another_python(self, monkeypatch):
        monkeypatch.setenv("ISAACGYM_STANDIN_FAIL", "python")
        import_first(monkeypatch, torch_is_there=False)
        assert "runs on Python 3.6 to 3.8" in probe.import_problem()


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ("PyTorch was imported before isaacgym modules.  Please import torch after", "import sb3_isaac"),
        ("libpython3.7m.so.1.0: cannot open shared object file: No such file or directory", "LD_LIBRARY_PATH"),
        ("No gym module found for the active version of Python (3.11)", "Python 3.6 to 3.8, and this is Python 3."),
        ("module 'numpy' has no attribute 'float'.\n`np.float` was a deprecated alias", "numpy<1.24"),
        ("Ninja is required to load C++ extensions", "ninja"),
        ("Error building extension 'gymtorch': [1/2] c++ -MMD", "build-essential"),
        ("WARNING: lavapipe is not a conformant vulkan implementation, testing use only.", "headless"),
        ("vulkan: No DRI3 support detected - required for presentation", "VK_ICD_FILENAMES"),
        ("CUDA error: no kernel image is available for execution on the device", "newer than Isaac Gym"),
        ("nvrtc: error: invalid value for --gpu-architecture (-arch)", "backend='torch'"),
        ("Failed to acquire interface: [carb::gym::Gym v0.1], by client: carb.gym.python.gym_38", "driver"),
        ("version `GLIBCXX_3.4.20' not found (required by gym_38.so)", "libstdcxx-ng"),
        ("Error: libmem_filesys.so: cannot open shared object file", "_bindings/linux-x86_64"),
        ("Foundation object exists already", "one simulator per process"),
        ("Traceback\n  File x\nKeyError: 'slider'\n", "does not know: KeyError: 'slider'"),
        ("", "no message"),
    ],
)
def test_known_failures_have_an_explanation(message, says):
    """Messages as users have reported them."""
    explanation = probe.explain(message)
    assert says in explanation and "{" not in explanation and "\n" not in explanation


class TestWithoutIsaacGym:
    pytestmark = pytest.mark.skipif(ISAACGYM_INSTALLED, reason="isaacgym is installed here")

    def test_asking_for_it(self):
        with pytest.raises(RuntimeError, match="Isaac Gym is not installed: download"):
            backends.make("isaacgym", 2, "cpu")

    def test_auto(self, caplog):
        backends._log_once.cache_clear()
        with caplog.at_level(logging.INFO):
            for _ in range(2):
                assert type(backends.make("auto", 2, "cpu")) is backends.TorchCartpole
        assert [record.getMessage() for record in caplog.records] == ["backend='auto' is 'torch' here: the device is cpu"]


class TestChoice:
    """What "auto" means on machines that we do not have."""

    @pytest.fixture(autouse=True)
    def machine(self, monkeypatch):
        for name, value in {"installed": True, "too_late": False, "skipped": False, "error": None}.items():
            monkeypatch.setattr(probe._isaacgym_first, name, value)
        monkeypatch.setattr(th.cuda, "get_device_capability", lambda device: (8, 6))
        self.probed = []

        def try_in_child(*args):
            self.probed.append(args)
            return probe.Report(False, "it crashes there")

        monkeypatch.setattr(probe, "try_in_child", try_in_child)
        self.monkeypatch = monkeypatch

    def test_isaacgym_on_cuda(self):
        assert probe.choose(th.device("cuda:0"))[0] == "isaacgym"
        assert probe.why_not(th.device("cpu")) is None
        assert self.probed == []

    def test_torch_on_the_cpu(self):
        assert probe.choose(th.device("cpu")) == ("torch", "the device is cpu")
        assert "not on mps" in probe.why_not(th.device("mps"))

    @pytest.mark.parametrize("capability", [(9, 0), (12, 0)])
    def test_a_gpu_that_is_too_new_is_tried_in_a_child(self, capability):
        self.monkeypatch.setattr(th.cuda, "get_device_capability", lambda device: capability)
        assert probe.choose(th.device("cuda:1")) == ("torch", "it crashes there")
        assert self.probed == [("isaacgym", "cuda:1")]
        self.monkeypatch.setattr(probe, "try_in_child", lambda *args: probe.Report(True, "", 0.1))
        assert probe.choose(th.device("cuda:1"))[0] == "isaacgym"

    def test_the_child_does_not_try_it_out_again(self):
        self.monkeypatch.setattr(th.cuda, "get_device_capability", lambda device: (9, 0))
        self.monkeypatch.setenv(probe.CHILD_VARIABLE, "1")
        assert probe.why_not(th.device("cuda:0")) is None and self.probed == []
        assert probe.child_environment()[probe.CHILD_VARIABLE] == "1"

    def test_too_late(self):
        self.monkeypatch.setattr(probe._isaacgym_first, "too_late", True)
        assert probe.choose(th.device("cuda:0")) == ("torch", probe.TOO_LATE)

    def test_import_error(self):
        self.monkeypatch.setattr(probe._isaacgym_first, "error", ImportError("libpython3.8.so.1.0: cannot open"))
        assert "LD_LIBRARY_PATH" in probe.choose(th.device("cuda:0"))[1]


def test_crashes_are_explained(monkeypatch):
    assert "crashed (SIGSEGV)" in probe.explain_crash(-11, "+++ Using GPU PhysX", "cpu")
    assert "crashed (signal 99)" in probe.explain_crash(-99, "", "cpu")
    assert "headless" in probe.explain_crash(-11, "WARNING: lavapipe is not a conformant", "cpu")
    monkeypatch.setattr(th.cuda, "is_available", lambda: True)
    monkeypatch.setattr(th.cuda, "get_device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(th.cuda, "get_device_capability", lambda device: (9, 0))
    assert "crashes on NVIDIA H100 (SIGSEGV): this GPU is newer" in probe.explain_crash(-11, "", "cuda:0")


def test_a_child_that_hangs(monkeypatch):
    monkeypatch.setattr(probe, "PROBE_SECONDS", 0.05)
    probe.try_in_child.cache_clear()
    report = probe.try_in_child("torch", "cpu")
    probe.try_in_child.cache_clear()
    assert not report.ok and "did not answer within" in report.reason
