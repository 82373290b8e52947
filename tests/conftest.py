"""What tests of several folders share: environments, comparisons, a guard against host synchronisation, child processes."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from torch.utils._python_dispatch import TorchDispatchMode

from sb3_isaac import make_vec_env
from sb3_isaac.device import cuda_graph

TESTS = Path(__file__).resolve().parent
REPOSITORY, DATA, STANDIN = TESTS.parent, TESTS / "data", TESTS / "isaacgym_standin"

CONTINUOUS, DISCRETE = "IsaacGymCartpole-v0", "IsaacGymCartpoleDiscrete-v0"
ENV_IDS = {"ppo": CONTINUOUS, "dqn": DISCRETE, "ddpg": CONTINUOUS}
N_ENVS = 8
HAS_ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime"))

# A shell starts in the background what ignores Ctrl-C, and nohup what ignores SIGHUP: nothing to test then
for _number, _handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)

# -- environments and models -----------------------------------------------------------------------------------------


def make_env(env_id: str = CONTINUOUS, n_envs: int = N_ENVS, **kwargs: Any) -> Any:
    return make_vec_env(env_id, n_envs, **{"backend": "torch", "device": "cpu", "seed": 1, **kwargs})


def some_actions(env: Any, n_steps: int, seed: int = 0) -> List[np.ndarray]:
    """Random actions for all environments, one array for each step."""
    generator = np.random.default_rng(seed)
    if isinstance(env.action_space, spaces.Discrete):
        return list(generator.integers(0, int(env.action_space.n), (n_steps, env.num_envs)))
    return list(generator.uniform(-1.0, 1.0, (n_steps, env.num_envs, 1)).astype(np.float32))


def parameters(model: Any) -> th.Tensor:
    """A copy of all parameters of the policy, target networks included, in one vector."""
    return th.cat([p.detach().flatten() for p in model.policy.parameters()])


def difference(one: Any, other: Any) -> float:
    """The largest difference between parameters of two models."""
    return float((parameters(one) - parameters(other)).abs().max())


# -- host synchronisation --------------------------------------------------------------------------------------------

SYNCS = ("_local_scalar_dense", "item", "nonzero", "masked_select", "unique", "is_nonzero", "equal")
"""Operations whose result, or its size, the host must know."""
VIEWS = set("select slice unsqueeze squeeze view as_strided unbind alias detach t expand split transpose permute".split())
"""Operations that only make a new view: no kernel runs."""


class SyncGuard(TorchDispatchMode):
    """Counts tensor operations and refuses those that make the host wait for the device.

    ``with SyncGuard() as guard: ...``; afterwards ``guard.kernels`` counts operations by name, views excluded.

    :param allowed: names of host synchronisations that are not refused
    """

    def __init__(self, allowed: Sequence[str] = ()) -> None:
        super().__init__()
        self.allowed = set(allowed)
        self.kernels: Counter[str] = Counter()
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Optional[dict] = None) -> Any:
        name = str(func).split(".")[1]
        if not self.paused:
            if name in SYNCS and name not in self.allowed:
                raise AssertionError(f"host synchronisation in a step: {func}")
            if name not in VIEWS:
                self.kernels[name] += 1
        return func(*args, **(kwargs or {}))

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Leave out what a simulator does by itself."""
        before, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = before


class QuietGym:
    """Isaac Gym's API object with the guard paused inside every call."""

    def __init__(self, gym: Any, guard: SyncGuard) -> None:
        self._gym, self._guard = gym, guard

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._gym, name)

        def call(*args: Any) -> Any:
            with self._guard.pause():
                return method(*args)

        return call


# -- CUDA graphs -----------------------------------------------------------------------------------------------------


class StandInGraph:
    """What replaying a CUDA graph does, for machines without one: the function again, on inputs that stay where they were."""

    def __init__(self, function: Callable[..., Any], inputs: Sequence[Any], owners: Any, generators: Any) -> None:
        self.function = function
        self.inputs = [x.clone() if isinstance(x, th.Tensor) else x for x in inputs]
        self.replays = 0

    def is_current(self) -> bool:
        return True

    def __call__(self, *inputs: Any) -> Any:
        self.replays += 1
        for captured, given in zip(self.inputs, inputs):
            if isinstance(captured, th.Tensor):
                captured.copy_(given)
            else:
                assert captured == given
        return self.function(*self.inputs)


def stand_in_for_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graph, "CudaGraph", StandInGraph)


# -- child processes -------------------------------------------------------------------------------------------------


def child_environment(standin: bool = False, **variables: str) -> Dict[str, str]:
    """Environment variables of a child process that finds the checkout and, if asked, the stand-in for Isaac Gym."""
    # what this process may have set must not leak into the child
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("SB3_ISAAC_", "ISAACGYM_"))}
    path = [str(REPOSITORY)] + [str(STANDIN)] * standin
    return {**inherited, "OMP_NUM_THREADS": "1", **variables, "PYTHONPATH": os.pathsep.join(path)}


def run_python(
    *arguments: str, cwd: Optional[Path] = None, standin: bool = False, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments; its standard error is in ``stdout``, too.

    :param standin: Isaac Gym must be imported before torch, and pytest's own process is too late for that
    """
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=child_environment(standin, **variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,  # it hangs: a busy machine may need minutes
        check=False,
    )


def save_for_stock_sb3(model: Any, folder: Path, name: str) -> None:
    """Write the model, its replay buffer if it has one, and what it predicts, for :func:`check_in_stock_sb3`."""
    obs = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    data = {"algo": type(model).__name__, "obs": obs, "actions": model.predict(obs, deterministic=True)[0]}
    model.save(folder / f"{name}.zip")
    if hasattr(model, "save_replay_buffer"):
        model.save_replay_buffer(folder / f"{name}.pkl")
        data["rows"] = model.replay_buffer.size()
    np.savez(folder / f"{name}.npz", **data)


def check_in_stock_sb3(folder: Path) -> None:
    """Whether stock SB3 loads all models in the folder, predicts the same, holds buffers of its own and trains on."""
    done = run_python(str(TESTS / "stock_process.py"), str(folder), cwd=folder)
    assert done.returncode == 0, done.stdout


# -- a user's own task -----------------------------------------------------------------------------------------------


@pytest.fixture
def my_pendulum(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of examples/, with its id MyPendulum-v0 registered for a while."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "examples"))
    before = dict(gym.registry)
    yield importlib.import_module("my_pendulum")
    sys.modules.pop("my_pendulum", None)
    gym.registry.clear()
    gym.registry.update(before)
