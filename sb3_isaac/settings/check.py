"""Values held against the table of settings."""

from __future__ import annotations

import inspect
import re
import reprlib
from numbers import Integral, Real
from typing import Any, Dict, List, Mapping, Optional

import numpy as np

from sb3_isaac.settings.table import RANGES, SETTINGS, Setting

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60
UNKNOWN_DEFAULT = object()


def check(
    table: str,
    values: Mapping[str, Any],
    *,
    where: str = "",
    flags: bool = False,
    algo: str = "",
    defaults: Optional[Mapping[str, Any]] = None,
) -> None:
    """Hold values against a table. What the table does not know is not looked at.

    :param table: a key of :data:`~sb3_isaac.settings.table.SETTINGS`
    :param values: by name
    :param where: where they stand, for the sentence: "ppo.yml or -params"
    :param flags: whether the sentence is to have --n-envs in the place of n_envs
    :param algo: rl_zoo3's name of the algorithm, for settings that mean other things elsewhere
    :param defaults: what the sentence recommends, see :func:`defaults_of`
    :raises ValueError: a value of the wrong kind, or out of its range: what, where, what it may be
    """
    for name, value in values.items():
        setting = SETTINGS[table].get(name)
        if setting is None or (setting.algos and algo not in setting.algos):
            continue
        shown = f"--{name.replace('_', '-')}" if flags else name
        check_one(shown, value, setting, where, (defaults or {}).get(name, UNKNOWN_DEFAULT))


def check_one(name: str, value: Any, setting: Setting, where: str = "", default: Any = UNKNOWN_DEFAULT) -> None:
    """:raises ValueError: ``value`` is not what ``setting`` may be"""
    if _fits(value, setting):
        return
    sentence = f"{name} must be {setting.expected()}, got {_shown(value)}" + (f" in {where}" if where else "")
    if isinstance(value, str) and setting.kind in ("whole", "count", "number", "schedule") and _is_number(value):
        sentence += ", which is a word: write it without quotes, and 1.0e-3 in the place of 1e-3"
    elif setting.kind in RANGES and _range(value, setting):  # its order alone is wrong
        sentence += ", which is the wrong way round"
    elif setting.kind in ("whole", "count") and isinstance(value, Integral) and value >= 2**63:  # type: ignore[operator]
        sentence += ", which is more than torch can count (2**63)"
    if isinstance(default, (bool, int, float)) or default is None and setting.optional:
        sentence += f"; the default is {default!r}"
    raise ValueError(sentence + ".")


def _shown(value: Any) -> str:
    try:
        return " ".join(_SHORT.repr(value).split())
    except ValueError:  # Python writes no whole numbers of thousands of digits
        return "thousands of digits"


def _fits(value: Any, setting: Setting) -> bool:
    if value is None:
        return setting.optional
    kind = setting.kind
    for special in setting.besides:
        if type(value) is type(special) and value == special:
            return True
    if kind == "choice":
        return False
    if kind == "flag":
        return isinstance(value, (bool, np.bool_)) or (isinstance(value, Integral) and value in (0, 1))
    if kind == "mapping":  # rl_zoo3 also takes a text that is one
        return isinstance(value, Mapping) or (isinstance(value, str) and any(c in value for c in "{("))
    if kind == "word":
        return isinstance(value, (str, type)) or (isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value))
    if kind == "names":
        return all(_is_name(name) for name in (value if isinstance(value, list) else [value]))
    if kind == "ends":
        if not isinstance(value, (list, tuple, np.ndarray)) or len(value) != 2:
            return False
        return all(_is_in(end, setting) for end in value)
    if kind in RANGES:
        numbers = _range(value, setting)
        return numbers is not None and (len(numbers) != 2 or numbers[0] <= numbers[1])
    if kind == "frequency":
        if isinstance(value, (list, tuple)):
            if len(value) != 2 or getattr(value[1], "value", value[1]) not in ("step", "episode"):
                return False
            value = value[0]
        return isinstance(value, Integral) and _is_in(value, setting)
    if kind == "schedule":
        if callable(value):
            return True
        if isinstance(value, str):  # rl_zoo3 knows the linear one, whatever it is called
            match = re.fullmatch(r"lin(?:ear)?_([^_]+)", value)
            return match is not None and _is_number(match.group(1)) and _is_in(float(match.group(1)), setting)
    if kind == "whole" and not isinstance(value, Integral):
        return False
    if kind == "count" and isinstance(value, Real) and not isinstance(value, Integral) and not float(value).is_integer():
        return False
    if kind in ("whole", "count") and isinstance(value, Real) and abs(value) >= 2**63:  # type: ignore[arg-type,operator]
        return False
    return _is_in(value, setting)


def _range(value: Any, setting: Setting) -> Optional[List[Any]]:
    """The numbers of a range, in whatever order; None: some is no number of the interval, or there are too many or too few."""
    if not isinstance(value, (list, tuple)) and not (isinstance(value, np.ndarray) and value.ndim == 1):
        numbers = [value]
    else:
        numbers = list(value)
        if len(numbers) != 2 and not (setting.kind == "noise" and len(numbers) == 4):
            return None
    whole = setting.kind != "whole range" or all(isinstance(number, Integral) for number in numbers)
    return numbers if whole and all(_is_in(number, setting) for number in numbers) else None


def _is_in(value: Any, setting: Setting) -> bool:
    """Whether a value is a number of the interval. True and False are none."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    return isinstance(value, Real) and not isinstance(value, (bool, np.bool_)) and setting.contains(value)  # type: ignore[arg-type]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_name(name: Any) -> bool:
    """ "module.Class", or {module.Class: {argument: value}}, or such a class or callback itself."""
    if isinstance(name, Mapping):
        return len(name) == 1 and all(_is_name(key) for key in name)
    return (
        re.fullmatch(r"\w+(\.\w+)+", name) is not None if isinstance(name, str) else not isinstance(name, (int, float, list))
    )


def defaults_of(cls: type) -> Dict[str, Any]:
    """The arguments of a class and their defaults, with its parents' where it hands on the rest.

    Those without a default have ``inspect.Parameter.empty``.
    """
    found: Dict[str, Any] = {}
    for parent in cls.__mro__:
        if "__init__" in parent.__dict__:
            parameters = inspect.signature(parent.__dict__["__init__"]).parameters
            found = {**{name: parameter.default for name, parameter in parameters.items()}, **found}
            if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
                break
    return {name: default for name, default in found.items() if name != "self"}


def check_learn(learn: Any, args: Any, kwargs: Any) -> None:
    """Look at the arguments of ``learn`` before it begins.

    :param learn: SB3's method, for its names
    :raises ValueError: timesteps below 0 or not a number, a log_interval below 1
    """
    check("learn", inspect.signature(learn).bind_partial(*args, **kwargs).arguments)
