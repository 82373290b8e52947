"""Where an environment stands: its wrappers, its VecEnv and its simulator, to be put back into another one like it."""

from __future__ import annotations

import time
import warnings
from typing import Any, Callable, Dict, List, Optional

import torch as th
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from sb3_isaac.backends.base import TensorEnv
from sb3_isaac.envs.vec_env import IsaacVecEnv
from sb3_isaac.files.plain_state import PLAIN, Packer, Unpacker

NO_STATE = (spaces.Space, VecEnv, BaseAlgorithm, Logger, EnvSpec, TensorEnv)
NOT_RESTORED = ("t_start", "metadata", "render_mode", "num_envs", "device", "reset_infos", "class_attributes")


def layers_inside_out(env: VecEnv) -> List[Any]:
    """From the simulator to the outermost wrapper."""
    found: List[Any] = [env]
    while isinstance(found[-1], VecEnvWrapper):
        found.append(found[-1].venv)
    if isinstance(found[-1], IsaacVecEnv):
        found.append(found[-1].tensor_env)
    return found[::-1]


def can_go_on(env: Any) -> bool:
    """Whether episodes can go on where they were: there is one simulator, and it can tell its state."""
    if not isinstance(env, VecEnv) or not isinstance(env.unwrapped, IsaacVecEnv):
        return False
    simulator = env.unwrapped.tensor_env
    if type(simulator).get_state is TensorEnv.get_state:
        return True  # its attributes tell
    try:
        simulator.get_state()
    except NotImplementedError:
        return False
    return True


def env_state(env: VecEnv, missing: List[str]) -> Dict[str, Any]:
    """The state of ``env`` in tensors and plain data. Attributes of other people's wrappers and tasks are taken as they are.

    :param missing: gets a name for whatever is not in it
    """
    goes_on = can_go_on(env)
    packer = Packer(NO_STATE)
    saved = []
    for layer in layers_inside_out(env):
        kind, state = type(layer), None
        tell: Optional[Callable[[Any], Any]] = getattr(kind, "state_dict", None)
        if isinstance(layer, TensorEnv):
            tell = None if kind.get_state is TensorEnv.get_state else kind.get_state
            if not layer.exact_state:
                missing.append(f"what the physics of {kind.__name__} keeps to itself (contacts, caches of its solver)")
        if goes_on or isinstance(layer, VecEnvWrapper):
            state = None if tell is None else tell(layer)
            if state is None:
                state = packer.attributes(layer, but=NOT_RESTORED)
            elif _is_ours(tell) and not _is_ours(kind):
                missing.append(f"what {kind.__name__} has of its own besides its base class: give it a method that tells")
        saved.append({"class": kind.__name__, "state": state})
    missing += packer.missing
    if not goes_on:
        missing.append(f"the running episodes of {type(env.unwrapped).__name__}: new ones begin")
    device = getattr(env.unwrapped, "device", th.device("cpu")).type
    seconds = time.time() - getattr(env.unwrapped, "t_start", time.time())
    return {
        "n_envs": env.num_envs,
        "goes_on": goes_on,
        "device": device,
        "seconds": seconds,
        "layers": saved,
        "arguments": _arguments(env),
    }


def _arguments(env: VecEnv) -> Dict[str, Any]:
    """What the environment's task was made with, as far as it is plain: numbers, words, None."""
    kwargs = getattr(getattr(env.unwrapped, "spec", None), "kwargs", None) or {}
    return {name: value for name, value in kwargs.items() if type(value) in PLAIN and name not in ("device", "render_mode")}


def _is_ours(thing: Any) -> bool:
    return str(thing.__module__).startswith("sb3_isaac.")


def set_env_state(env: VecEnv, saved: Dict[str, Any]) -> None:
    """Put ``env`` where another one was when :func:`env_state` was called.

    :raises ValueError: the two are not alike
    """
    layers = layers_inside_out(env)
    then, now = [layer["class"] for layer in saved["layers"]], [type(layer).__name__ for layer in layers]
    if then != now or saved["n_envs"] != env.num_envs:
        raise ValueError(
            f"The checkpoint is of {saved['n_envs']} environments ({' in '.join(then)}), and the environment given has "
            f"{env.num_envs} ({' in '.join(now)}): make it as it was."
        )
    before, given = saved.get("arguments"), _arguments(env)
    changed = set() if before is None else {name for name in {*before, *given} if before.get(name) != given.get(name)}
    unpacker = Unpacker()
    t_start = time.time() - saved["seconds"]
    for layer, entry in zip(layers, saved["layers"]):
        if "t_start" in vars(layer):
            layer.t_start = t_start
        state = entry["state"]
        if state is None:
            continue
        kind = type(layer)
        if isinstance(layer, TensorEnv) and kind.set_state is not TensorEnv.set_state:
            layer.set_state(_copied(state))
        elif hasattr(kind, "load_state_dict") and kind.state_dict(layer) is not None:  # type: ignore[attr-defined]
            layer.load_state_dict(_copied(state))
        else:
            left_out = {*NOT_RESTORED, *changed} if isinstance(layer, TensorEnv) else NOT_RESTORED
            unpacker.attributes(layer, {name: value for name, value in state.items() if name not in left_out})
            if changed and isinstance(layer, TensorEnv):
                names = ", ".join(sorted(changed))
                warnings.warn(
                    f"{type(layer).__name__} is made with other arguments than the checkpoint's ({names}): its attributes of "
                    "these names are new, what it made of the old arguments is as it was.",
                    stacklevel=3,
                )


def _copied(state: Dict[str, Any]) -> Dict[str, Any]:
    return {name: value.clone() if isinstance(value, th.Tensor) else value for name, value in state.items()}
