"""What a checkpoint holds of a model, its random numbers and its callbacks beside SB3's zip: how it is taken, and put back."""

from __future__ import annotations

import inspect
import random
import time
import warnings
from typing import Any, Dict, List

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, ProgressBarCallback
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from sb3_isaac.device.eligibility import package_of
from sb3_isaac.envs.env_state import NO_STATE, can_go_on, env_state, set_env_state
from sb3_isaac.files import plain_state
from sb3_isaac.files.plain_state import Packer, Unpacker
from sb3_isaac.files.readable import unreadable

COUNTERS = (
    "num_timesteps _total_timesteps _num_timesteps_at_start _episode_num _n_updates _n_calls _current_progress_remaining "
    "ep_info_buffer ep_success_buffer _last_episode_starts exploration_rate adapted_lr"
).split()
"""What algorithms count and remember, by SB3's names"""
HOLDERS = ("RootCallback", "CallbackList", "ConvertCallback")
"""Callbacks that hold others"""


# -- taking -----------------------------------------------------------------------------------------------------------


def model_state(model: Any, missing: List[str]) -> Dict[str, Any]:
    """Everything that the zip does not hold, and the counters once more."""
    packer = Packer(NO_STATE)
    checkpoints = model._checkpoints  # a Checkpoints
    learning = checkpoints.learning_state()
    last_obs, original = model._last_obs, None
    if getattr(model, "_run", None) is not None and hasattr(model._run, "log"):
        last_obs, original = model._run.rollout.last_obs(False)
    elif unwrap_vec_normalize(model.env) is not None:
        original = model._last_original_obs
    state: Dict[str, Any] = {
        "model": packer.attributes(model, COUNTERS),
        "observations": {"obs": packer.pack(last_obs), "original": packer.pack(original)},
        "seconds": time.time() - model.start_time / 1e9,
        "env": env_state(model.env, missing),
        "spaces": [packer.pack(getattr(owner.action_space, "_np_random", None)) for owner in (model, model.env)],
        "learning": learning,
        "run": model._run_state(packer),
        "random": _random_state(packer),
    }
    if learning is not None:
        names = ("name_to_value", "name_to_count", "name_to_excluded")
        state["log"] = packer.attributes(model.logger, names)
        if checkpoints.callback is not None:
            state["callbacks"] = [_callback_state(one, missing) for one in all_callbacks(checkpoints.callback)]
    missing += packer.missing
    return state


def _random_state(packer: Packer) -> Dict[str, Any]:
    cuda: Any = th.cuda
    return {
        "torch": th.get_rng_state(),
        "cuda": cuda.get_rng_state_all() if cuda.is_available() and cuda.is_initialized() else [],
        "numpy": packer.pack(np.random.get_state(legacy=False)),
        "python": packer.pack(random.getstate()),
    }


def all_callbacks(root: BaseCallback) -> List[BaseCallback]:
    """A callback and all below it, in a fixed order."""
    found = [root]
    for name, value in sorted(vars(root).items()):
        below = value if name == "callbacks" else [value]
        if name != "parent" and isinstance(below, list):
            found += [one for child in below if isinstance(child, BaseCallback) for one in all_callbacks(child)]
    return found


def _settings(callback: BaseCallback) -> List[str]:
    """Attributes that are no state: of SB3's, rl_zoo3's and our callbacks those that are named as arguments are."""
    names = ["model", "parent", "locals", "globals", "callbacks", "verbose", *getattr(callback, "no_state", ())]
    names += [name for name, value in vars(callback).items() if getattr(value, "guards", False)]  # see files/full_disk.py
    if package_of(callback) in ("stable_baselines3", "rl_zoo3", "sb3_isaac"):
        for cls in type(callback).__mro__:
            names += inspect.signature(cls.__init__).parameters if "__init__" in vars(cls) else ()  # type: ignore[misc]
    return names


def _callback_state(callback: BaseCallback, missing: List[str]) -> Dict[str, Any]:
    packer = Packer((*NO_STATE, BaseCallback, str), descend=False)
    saved: Dict[str, Any] = {"class": type(callback).__name__, "state": {}, "envs": {}}
    if not isinstance(callback, ProgressBarCallback):
        saved["state"] = packer.attributes(callback, but=_settings(callback))
    for name, value in vars(callback).items():
        if isinstance(value, VecEnv) and value is not callback.model.env:
            saved["envs"][name] = env_state(value, missing)
    missing += packer.missing
    return saved


# -- putting back -----------------------------------------------------------------------------------------------------


def read_model_state(path: str) -> Dict[str, Any]:
    """What :func:`model_state` has made.

    :raises ValueError: the file holds something else
    """
    state = plain_state.load(path)
    kinds: Dict[str, Any] = {**dict.fromkeys(("model", "observations", "env", "run", "random"), dict), "spaces": list}
    kinds["seconds"] = (int, float)
    wrong = [name for name, kind in kinds.items() if not isinstance(state, dict) or not isinstance(state.get(name), kind)]
    if wrong or "learning" not in state or not state["env"].get("layers"):
        raise unreadable(path, "the state of a checkpoint", f"it has no {(wrong or ['learning or layers'])[0]}")
    return state


def set_counters(model: Any, state: Dict[str, Any]) -> None:
    saved, unpacker = dict(state["model"]), Unpacker()
    names = set(COUNTERS) & set(vars(model))  # a file sets nothing else; None is what learn has not made yet
    found = {name: unpacker.unpack(value) for name, value in saved.items() if name in names and value is not None}
    model.__dict__.update(found)
    for name in ("ep_info_buffer", "ep_success_buffer"):
        entries = getattr(model, name)
        if entries is not None:
            setattr(model, name, type(entries)(entries, maxlen=model._stats_window_size))
    observations = state["observations"]
    model._last_obs = unpacker.unpack(observations["obs"])
    model._last_original_obs = unpacker.unpack(observations["original"])


def restore(model: Any, state: Dict[str, Any], callback: BaseCallback, same_learn: bool) -> None:
    """Put everything back as it was at the boundary, after SB3 has begun to learn."""
    if "env" not in state:  # an old file
        return
    unpacker = Unpacker()
    planned, now = model._total_timesteps, (model._num_timesteps_at_start, model.start_time)
    last_obs = model._last_obs
    set_counters(model, state)
    model._total_timesteps = planned
    # Of a model that had not learned yet, learn has reset the environments meanwhile, as it would have then
    if state["goes_on"] and state["observations"]["obs"] is not None:
        set_env_state(model.env, state["env"])
    else:
        model._last_obs = last_obs
        if hasattr(model.env, "get_original_obs"):
            model._last_original_obs = model.env.get_original_obs()
        model._last_episode_starts = np.ones(model.env.num_envs, dtype=bool)
    for owner, saved in zip((model, model.env), state["spaces"]):
        if saved is not None:
            unpacker.unpack(saved, owner.action_space.np_random)
    same_learn = same_learn and state["learning"] is not None
    model._set_run_state(unpacker, state["run"], same_learn)
    if same_learn:
        model.start_time = int((time.time() - state["seconds"]) * 1e9)
        unpacker.attributes(model.logger, state["log"])
        _restore_callbacks(callback, state.get("callbacks", []))
    else:
        model._num_timesteps_at_start, model.start_time = now
    saved = state["random"]
    if saved is None:  # of another rank
        return
    random.setstate(unpacker.unpack(saved["python"]))
    np.random.set_state(unpacker.unpack(saved["numpy"]))
    th.set_rng_state(saved["torch"])
    if saved["cuda"] and th.cuda.is_available():
        th.cuda.set_rng_state_all(saved["cuda"][: th.cuda.device_count()])


def _restore_callbacks(root: BaseCallback, saved: List[Dict[str, Any]]) -> None:
    """Give callbacks what those of the same classes knew, in their order."""
    left = list(saved)
    unpacker = Unpacker()
    for callback in all_callbacks(root):
        entry = next((one for one in left if one["class"] == type(callback).__name__), None)
        if entry is None:
            continue
        left.remove(entry)
        settings = set(_settings(callback))  # where it writes is not the file's to say
        known = {name: value for name, value in entry["state"].items() if name not in settings and not isinstance(value, str)}
        unpacker.attributes(callback, known)
        for name, state in entry["envs"].items():
            env = getattr(callback, name, None)
            if isinstance(env, VecEnv) and state["goes_on"] and can_go_on(env):
                set_env_state(env, state)
    lost = [entry["class"] for entry in left if entry["state"].get("n_calls", 0) > 0 and entry["class"] not in HOLDERS]
    if lost:
        warnings.warn(
            f"The interrupted training had callbacks that this one has not: {', '.join(lost)}. Give learn the same ones.",
            stacklevel=2,
        )
