"""The places where rl_zoo3 is changed, so that its commands find our environments and algorithms."""

from __future__ import annotations

import keyword
from typing import Any, Callable, List, Optional, Type

import rl_zoo3.utils
from rl_zoo3.exp_manager import ExperimentManager

from sb3_isaac.envs.make import is_isaac_env_id
from sb3_isaac.envs.vec_normalize import VecNormalize
from sb3_isaac.zoo.batched_vec_env import BatchedDummyVecEnv, BatchedVecEnv
from sb3_isaac.zoo.manager import IsaacExperimentManager


def _choose_manager(cls: Type[ExperimentManager], *args: Any, **kwargs: Any) -> ExperimentManager:
    env_id = kwargs.get("env_id", args[2] if len(args) > 2 else "")
    if cls is ExperimentManager and is_isaac_env_id(env_id):
        cls = IsaacExperimentManager
    return object.__new__(cls)


def _store_dict(original: Callable[..., None]) -> Callable[..., None]:
    """rl_zoo3 evaluates ``--env-kwargs backend:torch`` as Python; a plain word is taken as a string here."""

    def call(self: Any, parser: Any, namespace: Any, values: List[str], option_string: Optional[str] = None) -> None:
        quoted = []
        for argument in values:
            key, _, value = argument.partition(":")
            word = value.replace(":", "").isidentifier() and not keyword.iskeyword(value)
            quoted.append(f"{key}:{value!r}" if word else argument)
        original(self, parser, namespace, quoted, option_string)

    return call


def install() -> None:
    """Hook rl_zoo3. Done once, when this module is imported."""
    ExperimentManager.__new__ = staticmethod(_choose_manager)
    rl_zoo3.utils.StoreDict.__call__ = _store_dict(rl_zoo3.utils.StoreDict.__call__)
    # enjoy asks for the default class, record_video and rl_zoo3 < 2.6 for these two.
    rl_zoo3.utils.SubprocVecEnv = BatchedVecEnv
    rl_zoo3.utils.DummyVecEnv = BatchedDummyVecEnv
    rl_zoo3.utils.VecNormalize = VecNormalize  # over other environments it is SB3's
