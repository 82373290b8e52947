"""Models and replay buffers that SB3 saved, read without running what is in them.

SB3 unpickles every entry of a model's ``data`` with cloudpickle. Within :func:`reading_safely` its ``load`` and
``load_replay_buffer`` get what the functions of this module read.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import functools
import json
import pathlib
import re
import threading
import warnings
from typing import Any, Collection, Dict, Iterator, List, Optional, Set, Tuple

import torch as th
from stable_baselines3.common import base_class, off_policy_algorithm, utils
from stable_baselines3.common.save_util import open_path

from sb3_isaac.files import pickle_record, safe_pickle, safe_torch
from sb3_isaac.files.safe_zip import open_zip
from sb3_isaac.files.trust import UntrustedFileError, trusted

# Classes since SB3 2.7
ConstantSchedule: Any = getattr(utils, "ConstantSchedule", None) or utils.constant_fn
LinearSchedule: Any = getattr(utils, "LinearSchedule", None) or utils.get_linear_fn

SCHEDULES = ("learning_rate", "clip_range", "clip_range_vf")
"""Arguments that may be functions. SB3 2.4 saves clip_range as one, even where it was a number."""
DERIVED = ("lr_schedule", "exploration_schedule", "delta_std_schedule")
"""What SB3 makes anew of the arguments when it loads a model. (ARS, alone, needs the last.)"""
NEVER = (
    "env",
    "eval_env",
    "logger",
    "_logger",
    "_custom_logger",
    "_vec_normalize_env",
    "policy",
    "replay_buffer",
    "rollout_buffer",
)
"""Attributes that SB3 does not save. The name of an environment would import its module."""
NEEDED = (
    "observation_space action_space policy_class policy_kwargs replay_buffer_class replay_buffer_kwargs rollout_buffer_class "
    "rollout_buffer_kwargs action_noise train_freq target_entropy"
).split()
"""Without these a model would be another one; of what else is refused, SB3's default is as good."""
NOT_FOR_ACTING: Dict[str, Any] = {
    "learning_rate": 0.0,
    "lr_schedule": ConstantSchedule(0.0),
    "clip_range": ConstantSchedule(0.0),
    "clip_range_vf": None,
    "exploration_schedule": ConstantSchedule(0.0),
    "action_noise": None,
    "replay_buffer_class": None,
    "replay_buffer_kwargs": {},
    "rollout_buffer_class": None,
    "rollout_buffer_kwargs": {},
}
"""``custom_objects`` of SB3's ``load`` for a model that is only to act: it has no need of what the file says about them."""

_MEMBER = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)*\.pth")

Content = Tuple[Optional[Dict[str, Any]], Dict[str, Any], Optional[Dict[str, Any]]]


def read_zip(
    load_path: Any,
    load_data: bool = True,
    custom_objects: Optional[Dict[str, Any]] = None,
    device: Any = "auto",
    verbose: int = 0,
    print_system_info: bool = False,
    given: Collection[str] = (),
) -> Content:
    """In the place of SB3's ``load_from_zip_file``: the same arguments and results.

    :param given: attributes that the model gets from elsewhere
    :raises UntrustedFileError: an entry that the model needs wants to run something
    :raises ValueError: SB3's ``save`` has not written it, or not the whole of it
    """
    file = open_path(load_path, "r", verbose=verbose, suffix="zip")
    name = str(getattr(file, "name", load_path))
    try:
        with open_zip(file, name) as archive:  # type: ignore[arg-type]
            members = archive.namelist()
            if print_system_info and "system_info.txt" in members:
                print("== SAVED MODEL SYSTEM INFO ==\n" + archive.read("system_info.txt").decode(errors="replace"))
            params: Dict[str, Any] = {}
            variables: Optional[Dict[str, Any]] = None
            for member in members:
                if not _MEMBER.fullmatch(member):
                    continue  # not SB3's
                content = safe_torch.load(
                    archive.read(member), safe_pickle.load, f"{member} in {name}", utils.get_device(device)
                )
                if member in ("pytorch_variables.pth", "tensors.pth"):
                    variables = _variables(content, f"{member} in {name}")
                else:
                    params[member[: -len(".pth")]] = content
            data = None
            if load_data and "data" in members:
                data = _read_data(archive.read("data"), name, custom_objects or {}, params, given)
    finally:
        if isinstance(load_path, (str, pathlib.Path)):
            file.close()
    return data, params, variables


def read_pickle(path: Any, verbose: int = 0) -> Any:
    """In the place of SB3's ``load_from_pkl``.

    :raises UntrustedFileError: it wants to run something
    :raises ValueError: it is no pickle, or incomplete
    """
    file = open_path(path, "r", verbose=verbose, suffix="pkl")
    try:
        return safe_pickle.load(file, str(getattr(file, "name", path)))  # type: ignore[arg-type]
    finally:
        if isinstance(path, (str, pathlib.Path)):
            file.close()


def _variables(content: Any, what: str) -> Optional[Dict[str, Any]]:
    if content is None:
        return None
    if not isinstance(content, dict) or not all(
        isinstance(key, str)
        and _MEMBER.fullmatch(f"{key}.pth")
        and "__" not in key
        and isinstance(value, (th.Tensor, type(None)))
        for key, value in content.items()
    ):
        raise ValueError(f"{what} cannot be read: it must hold tensors by their names.")
    return content


def _read_data(
    text: bytes, name: str, custom_objects: Dict[str, Any], params: Dict[str, Any], given: Collection[str]
) -> Dict[str, Any]:
    """The attributes of a model: plain values as they are, pickled ones as far as they are on the list."""
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} cannot be read: its entry 'data' is no JSON ({error}).") from error
    if not isinstance(entries, dict):
        raise ValueError(f"{name} cannot be read: its entry 'data' holds no attributes of a model.")
    data: Dict[str, Any] = {}
    left_out: List[str] = []
    for key, entry in entries.items():
        if key in custom_objects:
            data[key] = custom_objects[key]
        elif key in NEVER or key.startswith("__"):
            continue
        elif not (isinstance(entry, dict) and ":serialized:" in entry):
            data[key] = entry
        else:
            try:
                data[key] = _unpickled(entry[":serialized:"], key, name)
            except (UntrustedFileError, safe_pickle.MissingClassError) as refused:
                if key in NEEDED:
                    raise
                schedule = _schedule(entry[":serialized:"])
                if schedule is not None and key in (*SCHEDULES, "delta_std_schedule"):
                    data[key] = schedule
                elif key not in DERIVED and key not in given:
                    left_out.append(f"{key} ({getattr(refused, 'wish', 'of another version')})")
    data.update(_instead(left_out, params))
    if left_out:
        warnings.warn(
            f"Of {name} this was left out, as it may be any code: {', '.join(left_out)}."
            + (" What is in the place of a function stays as it was last." if any(map(_is_schedule, left_out)) else "")
            + " Give it to load() by its name, or load with trust=True if you trust whoever made the file.",
            stacklevel=5,
        )
    return data


def _unpickled(encoded: Any, key: str, name: str) -> Any:
    what = f"{name} (in its entry {key!r})"
    try:
        pickled = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise ValueError(f"{what} cannot be read: it is no base64 ({error}).") from error
    return safe_pickle.loads(pickled, what)


def _is_schedule(left_out: str) -> bool:
    return left_out.partition(" ")[0] in SCHEDULES


def _instead(left_out: List[str], params: Dict[str, Any]) -> Dict[str, Any]:
    """Values for schedules that were functions: the learning rate that the optimizer had last."""
    found: Dict[str, Any] = {}
    names = {entry.partition(" ")[0] for entry in left_out}
    if "learning_rate" in names:
        groups = [
            content["param_groups"] for content in params.values() if isinstance(content, dict) and "param_groups" in content
        ]
        found["learning_rate"] = float(groups[0][0]["lr"]) if groups else 0.0
    return found


# -- schedules that are functions ----------------------------------------------------------------------------------------


def _schedule(encoded: Any) -> Any:
    """What SB3 and rl_zoo3 pickle as functions before 2.7, and as objects since, of the numbers in them; None: another one."""
    try:
        return _function_of(pickle_record.describe(base64.b64decode(encoded)))
    except Exception:  # of garbage: anything
        return None


def _function_of(record: Any) -> Any:
    if not isinstance(record, pickle_record.Record):
        return None
    module, _, name = record.name.rpartition(".")
    state: Any = record.state
    if module == "stable_baselines3.common.utils" and name.endswith("Schedule"):  # of SB3 2.7 and newer, read by an older one
        numbers = {
            "FloatSchedule": ["value_schedule"],
            "ConstantSchedule": ["val"],
            "LinearSchedule": ["start", "end", "end_fraction"],
        }
        values = [state[attribute] for attribute in numbers[name]]
        made: Dict[str, Any] = {
            "FloatSchedule": _function_of,
            "ConstantSchedule": ConstantSchedule,
            "LinearSchedule": LinearSchedule,
        }
        return made[name](*values)
    if record.name == "rl_zoo3.utils.SimpleLinearSchedule":
        return LinearSchedule(float(state["initial_value"]), 0.0, 1.0)
    if name != "_make_function":
        return None
    attributes = state[1]  # cloudpickle: (__dict__, the rest)
    cells = [cell.args[0] for cell in attributes["__closure__"] or ()]
    known = f"{attributes['__module__']}.{attributes['__qualname__']}"
    if known == "stable_baselines3.common.utils.constant_fn.<locals>.func":
        return ConstantSchedule(float(cells[0]))
    if known == "stable_baselines3.common.utils.get_schedule_fn.<locals>.<lambda>":
        return _function_of(cells[0])
    if known == "rl_zoo3.utils.linear_schedule.<locals>.func":
        return LinearSchedule(float(cells[0]), 0.0, 1.0)
    return None


# -- SB3's own functions ---------------------------------------------------------------------------------------------------

_lock = threading.RLock()


@contextlib.contextmanager
def reading_safely(trust: bool = False, given: Collection[str] = ()) -> Iterator[None]:
    """Within it, SB3's ``load`` and ``load_replay_buffer`` run nothing that is in files: of all algorithms, in this thread.

    :param trust: SB3's own way, which runs what is there
    :param given: attributes that are arguments of ``load``, whatever the file says
    """
    if trusted(trust):
        yield
        return
    ours = threading.get_ident()
    with _lock:
        swapped: Set[Any] = {
            (base_class, "load_from_zip_file", functools.partial(read_zip, given=given)),
            (off_policy_algorithm, "load_from_pkl", read_pickle),
        }
        before = [(module, name, getattr(module, name)) for module, name, _ in swapped]

        def only_here(safe: Any, original: Any) -> Any:
            def read(*args: Any, **kwargs: Any) -> Any:
                return (safe if threading.get_ident() == ours else original)(*args, **kwargs)

            return read

        for module, name, safe in swapped:
            setattr(module, name, only_here(safe, getattr(module, name)))
        try:
            yield
        finally:
            for module, name, original in before:
                setattr(module, name, original)
