"""A script of SB3's user, run with stock stable_baselines3 and with sb3_isaac, and all that can be compared of the two.

Why the two can be equal to the last digit although they draw random numbers differently:

- PPO: stock gets ``rollout_buffer_class=DeviceRolloutBuffer``, which draws the minibatches from torch's generator as ours does,
  and both draw the actions from there. Rows with ``stock_buffer=True`` leave stock's own buffer in place: those where sb3_isaac
  has to train as SB3 does, in numpy.
- DQN, DDPG: both get a DeviceReplayBuffer that draws the minibatches from a generator of its own, epsilon is 0 and the noise has
  no randomness. Rows in which chance cannot be taken out say so in ``inexact`` and compare counts, names and shapes.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple, Union

import numpy as np
import pytest
import stable_baselines3
import torch as th
from stable_baselines3.common.logger import KVWriter, Logger
from stable_baselines3.common.vec_env import VecFrameStack, VecNormalize

import sb3_isaac
from sb3_isaac.buffers.sb3_buffer import SB3_HAS_N_STEPS
from tests.conftest import CONTINUOUS, DISCRETE, make_env

ALL = ("ppo", "dqn", "ddpg")
OFF_POLICY = ("dqn", "ddpg")
N_STEP = OFF_POLICY if SB3_HAS_N_STEPS else ()
"""Before SB3 2.7 there is nothing to compare with"""
TOLERANCE = 2e-6

DEFAULTS: Dict[str, Dict[str, Any]] = {
    "ppo": {"n_steps": 4, "batch_size": 8, "n_epochs": 1},
    "dqn": {
        "buffer_size": 400, "batch_size": 16, "learning_starts": 0, "train_freq": 1, "target_update_interval": 8, "tau": 0.5,
        "exploration_initial_eps": 0.0, "exploration_final_eps": 0.0,
    },
    "ddpg": {"buffer_size": 400, "batch_size": 16, "learning_starts": 0, "train_freq": 1, "tau": 0.5},
}  # fmt: skip
"""Runs of a few milliseconds in which everything happens at least once."""
ENV = {"n_envs": 4, "max_episode_length": 5}
RESET_DIST = {"ppo": 0.2, "dqn": 0.25, "ddpg": 0.08}
"""Both failures and time limits within six to eight steps."""
STEPS = {"ppo": 64, "dqn": 24, "ddpg": 24}
"""Four rollouts of PPO, six of the others: a change at the third shows"""


class Library(NamedTuple):
    """What a script imports."""

    ours: bool
    PPO: Any
    DQN: Any
    DDPG: Any
    VecNormalize: Any
    VecFrameStack: Any


STOCK = Library(False, stable_baselines3.PPO, stable_baselines3.DQN, stable_baselines3.DDPG, VecNormalize, VecFrameStack)
OURS = Library(True, sb3_isaac.PPO, sb3_isaac.DQN, sb3_isaac.DDPG, sb3_isaac.VecNormalize, sb3_isaac.VecFrameStack)


class Row(NamedTuple):
    """One thing that users do."""

    name: str
    algos: Union[str, Tuple[str, ...]] = "ppo"
    options: Any = {}
    """Arguments of the constructor, or a function that makes them anew for each of the two"""
    policy: Any = "MlpPolicy"
    """A policy, or a dictionary of one for each algorithm"""
    env: Dict[str, Any] = {}
    """Arguments of make_vec_env"""
    wrap: Optional[Callable[[Any, Library], Any]] = None
    """What is put around the environment"""
    subclass: Optional[Callable[[Any, Any], Any]] = None
    """From the algorithm and the notes to a class of the user's"""
    before: Optional[Callable[[Any, Any], Any]] = None
    """Called with the model and the notes before it learns"""
    callback: Optional[Callable[[Any], Any]] = None
    """From the notes to a callback"""
    between: Optional[Callable[[Any, Any], Any]] = None
    """Called after the first of two calls of learn; what it returns, if anything, is the model that goes on"""
    after: Optional[Callable[[Any, Any], Any]] = None
    """Called at the end"""
    learn: Dict[str, Any] = {}
    """Arguments of learn"""
    discrete: bool = False
    """PPO with discrete actions"""
    stock_buffer: bool = False
    """Stock trains with its own buffer, because ours has to train in numpy, too"""
    inexact: Optional[str] = None
    """Why the values differ: only counts, shapes and names are compared"""
    refused: Optional[str] = None
    """Ours says that it cannot be done, in a sentence that matches this"""
    skip_keys: Tuple[str, ...] = ()
    """Of the record, what is not compared"""


class Notes(List[Any]):
    """What a script writes down to be compared, and what its parts need to know of each other."""

    lib: Library
    folder: Path


class Collect(KVWriter):
    """A logger that keeps everything."""

    def __init__(self) -> None:
        self.dumps: List[Dict[str, Any]] = []

    def write(self, key_values: Dict[str, Any], key_excluded: Dict[str, Any], step: int = 0) -> None:
        self.dumps.append({"step": step, **key_values})

    def close(self) -> None:
        pass


class Recorder(Logger):
    """SB3's logger, which also keeps the names of all that was ever recorded."""

    def __init__(self) -> None:
        self.collect = Collect()
        super().__init__(None, [self.collect])
        self.names: set = set()

    def record(self, key: str, value: Any, exclude: Any = None) -> None:
        self.names.add(key)
        super().record(key, value, exclude)


def make_options(row: Row, algo: str, lib: Library) -> Dict[str, Any]:
    """The constructor's arguments."""
    given = dict(row.options() if callable(row.options) else row.options)
    policy_kwargs = {"net_arch": [8], **(given.pop("policy_kwargs", None) or {})}
    options = {"learning_rate": 1e-3, "seed": 0, "device": "cpu", **DEFAULTS[algo], **given, "policy_kwargs": policy_kwargs}
    if row.stock_buffer:
        return options
    if algo == "ppo" and not lib.ours and "rollout_buffer_class" not in options:
        options["rollout_buffer_class"] = sb3_isaac.DeviceRolloutBuffer
    if algo != "ppo" and "replay_buffer_class" not in options:
        kwargs = dict(options.get("replay_buffer_kwargs") or {})
        n_steps = options.get("n_steps", 1)
        if not lib.ours:
            options["replay_buffer_class"] = sb3_isaac.DeviceReplayBuffer
            if n_steps > 1:  # which stock hands on to its own buffers only
                kwargs.update(n_steps=options.pop("n_steps"), gamma=options.get("gamma", 0.99))
        options["replay_buffer_kwargs"] = kwargs
    return options


def make_row_env(row: Row, algo: str, lib: Library) -> Any:
    env = make_env(
        DISCRETE if algo == "dqn" or row.discrete else CONTINUOUS, **{**ENV, "reset_dist": RESET_DIST[algo], **row.env}
    )
    return env if row.wrap is None else row.wrap(env, lib)


def run(row: Row, algo: str, lib: Library, folder: Path) -> Dict[str, Any]:
    """The script with one of the libraries: everything about it that can be compared."""
    notes = Notes()
    notes.lib, notes.folder = lib, folder
    cls = getattr(lib, algo.upper())
    if row.subclass is not None:
        cls = row.subclass(cls, notes)
    policy = row.policy[algo] if isinstance(row.policy, dict) else row.policy
    logger = Recorder()
    out = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(out):
        warnings.simplefilter("ignore")
        model = cls(policy, make_row_env(row, algo, lib), **make_options(row, algo, lib))
        model.set_logger(logger)
        if isinstance(getattr(model, "replay_buffer", None), sb3_isaac.DeviceReplayBuffer):
            model.replay_buffer.generator = th.Generator().manual_seed(7)
        if row.before is not None:
            row.before(model, notes)
        arguments = {"total_timesteps": STEPS[algo], "log_interval": 1, **row.learn}
        callback = None if row.callback is None else row.callback(notes)
        th.manual_seed(5)
        model.learn(callback=callback, **arguments)
        if row.between is not None:
            model = row.between(model, notes) or model
            th.manual_seed(6)
            model.learn(callback=callback, **{"reset_num_timesteps": False, **arguments})
        if row.after is not None:
            row.after(model, notes)
    return record(model, algo, logger, notes)


def record(model: Any, algo: str, logger: Recorder, notes: Notes) -> Dict[str, Any]:
    """All that a user can see of a trained model."""
    found: Dict[str, Any] = {
        "notes": list(notes),
        "counts": {name: getattr(model, name) for name in ("num_timesteps", "_n_updates", "_total_timesteps")},
        "parameters": {name: value.detach().clone() for name, value in model.policy.state_dict().items()},
        "gradients wanted": {name: p.requires_grad for name, p in model.policy.named_parameters()},
        "progress": model._current_progress_remaining,
        "last_obs": np.array(model._last_obs),
        "episodes": [(episode["r"], episode["l"]) for episode in model.ep_info_buffer],
        "logged names": {name for name in logger.names if not name.startswith("time/")},
    }
    optimizers = {"optimizer": model.policy.optimizer} if algo != "ddpg" else {}
    if algo == "ddpg":
        optimizers = {"actor": model.actor.optimizer, "critic": model.critic.optimizer}
    found["optimizers"] = {name: optimizer_state(optimizer) for name, optimizer in optimizers.items()}
    if algo == "ppo":
        found["episode_starts"] = np.array(model._last_episode_starts)
        buffer = model.rollout_buffer
        names = ("observations", "actions", "rewards", "episode_starts", "values", "log_probs", "advantages", "returns")
        # SB3's own buffer was flattened env by env
        found["buffer"] = {name: as_steps(getattr(buffer, name), buffer).reshape(-1) for name in names}
        found["logged"] = [
            {k: v for k, v in dump.items() if not k.startswith("time/") or k in ("time/iterations", "time/total_timesteps")}
            for dump in logger.collect.dumps
        ]
    else:
        found["episode_num"] = model._episode_num
        found["buffer"] = transitions(model.replay_buffer)
    if algo == "dqn":
        found["n_calls"], found["exploration_rate"] = model._n_calls, model.exploration_rate
    return found


def as_steps(array: Any, buffer: Any) -> np.ndarray:
    """(n_steps, N, ...)"""
    array = np.asarray(array)
    n_steps, n = buffer.buffer_size, buffer.n_envs
    if array.shape[:2] == (n_steps, n):
        return array
    return array.reshape(n, n_steps, -1).swapaxes(0, 1)


def transitions(buffer: Any) -> Dict[str, Any]:
    """What a replay buffer holds, whichever it is."""
    rows = buffer.size() if hasattr(buffer, "size") else 0
    names = ["observations", "actions", "rewards", "dones"]
    names += [] if buffer.optimize_memory_usage else ["next_observations"]
    found = {name: np.array(getattr(buffer, name)[:rows], dtype=np.float64) for name in names}
    found["dones"] = found["dones"] > 0  # ours keeps the kind of the end there
    if not buffer.handle_timeout_termination:
        timeouts = np.zeros(0)
    elif hasattr(buffer, "timeouts"):
        timeouts = np.array(buffer.timeouts[:rows]) > 0
    else:
        timeouts = np.array(buffer.dones[:rows]) == 2
    return {**found, "timeouts": timeouts, "pos": buffer.pos, "full": buffer.full}


def optimizer_state(optimizer: Any) -> Dict[str, Any]:
    saved = optimizer.state_dict()
    groups = [
        {k: v for k, v in group.items() if k in ("lr", "betas", "eps", "weight_decay")} for group in saved["param_groups"]
    ]
    state = {i: {k: th.as_tensor(v) for k, v in one.items() if v is not None} for i, one in saved["state"].items()}
    # no step yet is the same as no state yet
    state = {i: one for i, one in state.items() if float(one.get("step", 1.0)) > 0.0}
    return {"groups": groups, "state": state}


# -- comparing -------------------------------------------------------------------------------------------------------


def differences(ours: Any, stock: Any, where: str, exact: bool = True) -> List[str]:
    """What differs, in words. Not ``exact``: kinds, lengths, names, shapes and whole numbers only."""
    if isinstance(stock, dict):
        if not isinstance(ours, dict):
            return [f"{where}: ours is a {type(ours).__name__}"]
        found = [f"{where}: ours lacks {key!r}" for key in stock if key not in ours]
        found += [f"{where}: ours has {key!r} besides" for key in ours if key not in stock and not is_extra(key)]
        for key in stock:
            if key in ours:
                found += differences(ours[key], stock[key], f"{where}.{key}", exact)
        return found
    if isinstance(stock, (set, frozenset)):
        missing, more = sorted(stock - ours), sorted(key for key in ours - stock if not is_extra(key))
        return [f"{where}: ours lacks {missing}"] * bool(missing) + [f"{where}: ours has {more} besides"] * bool(more)
    if isinstance(stock, (list, tuple)):
        if not isinstance(ours, (list, tuple)) or len(ours) != len(stock):
            return [f"{where}: ours has length {len(ours) if hasattr(ours, '__len__') else ours}, stock {len(stock)}"]
        return [d for i, (a, b) in enumerate(zip(ours, stock)) for d in differences(a, b, f"{where}[{i}]", exact)]
    if isinstance(stock, (np.ndarray, th.Tensor, float, np.floating)):
        a, b = (np.asarray(x.detach() if isinstance(x, th.Tensor) else x) for x in (ours, stock))
        if a.shape != b.shape:
            return [f"{where}: ours has shape {a.shape}, stock {b.shape}"]
        if a.dtype == object or b.dtype == object:
            return [] if (a == b).all() else [f"{where}: ours {a}, stock {b}"]
        if not exact:
            return []
        a, b = a.astype(np.float64), b.astype(np.float64)
        if not np.allclose(a, b, rtol=2e-5, atol=TOLERANCE, equal_nan=True):
            return [f"{where}: differs by {np.nanmax(np.abs(a - b)):.2e}, ours {a.ravel()[:3]}, stock {b.ravel()[:3]}"]
        return []
    return [] if ours == stock else [f"{where}: ours {ours!r}, stock {stock!r}"]


EXTRA = ("time/rollout", "time/env", "time/update", "train/replay_ratio", "observations_are_normalized")


def is_extra(key: Any) -> bool:
    """Names that ours logs, or keeps in a file, besides those of SB3."""
    return key in EXTRA


def compare(row: Row, algo: str, folder: Path) -> None:
    """Run a row with both and fail where they differ."""
    (folder / "stock").mkdir()
    (folder / "ours").mkdir()
    theirs = run(row, algo, STOCK, folder / "stock")
    if row.refused is not None:
        with pytest.raises(Exception, match=row.refused):
            run(row, algo, OURS, folder / "ours")
        return
    ours = run(row, algo, OURS, folder / "ours")
    if row.inexact is not None:  # chance decides when episodes end
        for name in ("episodes", "episode_num", "optimizers", "logged"):
            theirs.pop(name, None), ours.pop(name, None)
    for name in row.skip_keys:
        theirs.pop(name, None), ours.pop(name, None)
    found = differences(ours, theirs, "", row.inexact is None)
    assert not found, f"{len(found)} differences:\n" + "\n".join(found[:12])


def table(rows: List[Row]) -> Any:
    """Parametrise a test with rows, each once for each of its algorithms."""
    found, ids = [], set()
    for row in rows:
        for algo in (row.algos,) if isinstance(row.algos, str) else row.algos:
            key = f"{algo}-{row.name}"
            assert key not in ids, f"two rows are called {key}"
            ids.add(key)
            found.append(pytest.param(row, algo, id=key))
    return pytest.mark.parametrize(("row", "algo"), found)
