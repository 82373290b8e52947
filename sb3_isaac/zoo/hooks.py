"""The places where rl_zoo3 is changed, so that its commands find our environments and algorithms."""

from __future__ import annotations

import argparse
import ast
import functools
import keyword
import sys
from typing import Any, Callable, Dict, List, Optional, Type

import rl_zoo3.exp_manager
import rl_zoo3.utils
import torch as th
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_isaac.device import ranks
from sb3_isaac.envs.ids import register_named
from sb3_isaac.envs.make import is_isaac_env_id
from sb3_isaac.envs.vec_normalize import VecNormalize
from sb3_isaac.evaluation.callbacks import BatchedEvalCallback
from sb3_isaac.zoo.batched_vec_env import batched_vec_env
from sb3_isaac.zoo.frame_stack import LoadedVecNormalize, stack_frames
from sb3_isaac.zoo.manager import IsaacExperimentManager
from sb3_isaac.zoo.resume import CheckpointCallback
from sb3_isaac.zoo.run_folders import model_path
from sb3_isaac.zoo.run_settings import opening_safely


def _choose_manager(cls: Type[ExperimentManager], *args: Any, **kwargs: Any) -> ExperimentManager:
    env_id = kwargs.get("env_id", args[2] if len(args) > 2 else "")
    if cls is ExperimentManager and is_isaac_env_id(env_id):
        cls = IsaacExperimentManager
    if cls is ExperimentManager and ranks.world_size() > 1:
        raise ValueError(
            f"Several ranks train environments of sb3_isaac only, and {env_id} is none: start it without torchrun."
        )
    return object.__new__(cls)


def _store_dict(original: Callable[..., None]) -> Callable[..., None]:
    """rl_zoo3 evaluates ``--env-kwargs backend:torch`` as Python; a plain word is taken as a string here."""

    def call(self: Any, parser: Any, namespace: Any, values: List[str], option_string: Optional[str] = None) -> None:
        merged: Dict[str, Any] = {}
        for argument in values:
            key, colon, value = argument.partition(":")
            if not (key.strip() and colon and value.strip()):
                raise argparse.ArgumentError(self, f"{argument!r} must be NAME:VALUE, such as gamma:0.99")
            word = value.replace(":", "").isidentifier() and not keyword.iskeyword(value)
            if not word and _takes_for_ever(value):
                text = f"{argument!r} has a power that takes too long to compute: write the number"
                raise argparse.ArgumentError(self, text)
            try:
                original(self, parser, namespace, [f"{key}:{value!r}" if word else argument], option_string)
            except Exception as error:  # whatever evaluating it raised
                text = " ".join(str(error).split())
                raise argparse.ArgumentError(
                    self, f"the value of {argument!r} is no Python value ({type(error).__name__}: {text})"
                ) from error
            merged.update(getattr(namespace, self.dest))
        setattr(namespace, self.dest, merged)

    return call


def _takes_for_ever(text: str) -> bool:
    """Whether a Python expression has a power like 10**10**10, which Python computes for hours."""
    try:
        nodes = list(ast.walk(ast.parse(text.strip(), mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False  # which evaluating it says better
    exponents = [node.right for node in nodes if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Pow, ast.LShift))]
    numbers = [node.operand if isinstance(node, ast.UnaryOp) else node for node in exponents]
    return any(
        not isinstance(node, ast.Constant) or (isinstance(node.value, (int, float)) and node.value > 1000) for node in numbers
    )


def _open_runs_safely() -> None:
    """Put our ``get_model_path`` where rl_zoo3's scripts have theirs, also the one that is running and imports us."""
    original = rl_zoo3.utils.get_model_path
    ours = opening_safely(model_path)
    for name, module in list(sys.modules.items()):
        if name == "__main__" or name.partition(".")[0] == "rl_zoo3":
            if getattr(module, "get_model_path", None) is original:
                vars(module)["get_model_path"] = ours


def leave_out_dynamo() -> None:
    """Spare every command the two seconds in which torch loads its compiler, just to mark methods of optimizers for it.

    torch does so when the first optimizer is made. Whoever compiles something loads it then; optimizers are not among it.
    """
    if "torch._dynamo" in sys.modules:
        return
    for name in ("add_param_group", "zero_grad", "state_dict", "load_state_dict"):
        marked = getattr(getattr(th.optim.Optimizer, name), "__wrapped__", None)
        if marked is not None:
            setattr(marked, "__dynamo_disable", marked)


def install() -> None:
    """Hook rl_zoo3. Done once, when this module is imported."""
    leave_out_dynamo()
    register_named(sys.argv[1:])  # python -m rl_zoo3.train looks in the registry before it asks anything here
    ExperimentManager.__new__ = staticmethod(_choose_manager)
    rl_zoo3.utils.StoreDict.__call__ = _store_dict(rl_zoo3.utils.StoreDict.__call__)
    # What makes the environments of enjoy and record_video
    rl_zoo3.utils.SubprocVecEnv = functools.partial(batched_vec_env, otherwise=SubprocVecEnv)
    rl_zoo3.utils.DummyVecEnv = functools.partial(batched_vec_env, otherwise=DummyVecEnv)
    # On other environments these are SB3's.
    rl_zoo3.utils.VecNormalize, rl_zoo3.exp_manager.VecNormalize = LoadedVecNormalize, VecNormalize
    rl_zoo3.utils.VecFrameStack = rl_zoo3.exp_manager.VecFrameStack = stack_frames
    rl_zoo3.exp_manager.EvalCallback = BatchedEvalCallback
    _open_runs_safely()
    rl_zoo3.exp_manager.CheckpointCallback = CheckpointCallback
