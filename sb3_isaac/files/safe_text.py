"""Settings that rl_zoo3 keeps as text and evaluates, such as ``"dict(net_arch=[64, 64], activation_fn=nn.ReLU)"``."""

from __future__ import annotations

import ast
import importlib
import operator
from typing import Any, Callable, Dict, Type

from sb3_isaac.files.safe_names import ACTIVATIONS
from sb3_isaac.files.trust import UntrustedFileError

NAMES: Dict[str, str] = {
    **{f"{torch_nn}.{name}": f"torch.nn.{name}" for torch_nn in ("nn", "th.nn", "torch.nn") for name in ACTIVATIONS.split()},
    **{
        f"{optim}.{name}": f"torch.optim.{name}"
        for optim in ("th.optim", "torch.optim", "optim")
        for name in ("Adam", "AdamW", "RMSprop", "SGD")
    },
    "RMSpropTFLike": "stable_baselines3.common.sb2_compat.rmsprop_tf_like.RMSpropTFLike",
    "HerReplayBuffer": "stable_baselines3.her.her_replay_buffer.HerReplayBuffer",
}
"""What such a text may name, and where it is."""

_BINARY: Dict[Type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_MOST_CHARACTERS = 2_000


def evaluate(text: str, what: str) -> Any:
    """The value of a text made of literals, ``dict(...)``, sums and products of numbers, and :data:`NAMES`.

    >>> evaluate("dict(net_arch=[64], log_std_init=-2)", "policy_kwargs")
    {'net_arch': [64], 'log_std_init': -2}

    :param what: where it stands, for messages
    :raises UntrustedFileError: it is made of more
    :raises ValueError: it is no Python
    """
    if len(text) > _MOST_CHARACTERS:
        raise ValueError(f"{what} is a text of {len(text):,} characters, which is no setting.")
    try:
        return _value(ast.parse(text.strip(), mode="eval").body, what)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"{what} is no Python: {text!r} ({error}).") from error


def _value(node: ast.AST, what: str) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, (ast.List, ast.Tuple, ast.Set)):
        kind: Any = {ast.List: list, ast.Tuple: tuple, ast.Set: set}[type(node)]
        return kind(_value(item, what) for item in node.elts)
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {_value(key, what): _value(value, what) for key, value in zip(node.keys, node.values) if key is not None}
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "dict" and not node.args:
        return {word.arg: _value(word.value, what) for word in node.keywords if word.arg is not None or _refuse(node, what)}
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        return (-1 if isinstance(node.op, ast.USub) else 1) * _number(node.operand, what)
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        return _BINARY[type(node.op)](_number(node.left, what), _number(node.right, what))
    path = NAMES.get(_source(node))
    if path is None:
        _refuse(node, what)
    module, _, name = str(path).rpartition(".")
    return getattr(importlib.import_module(module), name)


def _number(node: ast.AST, what: str) -> Any:
    value = _value(node, what)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        _refuse(node, what)
    return value


def _source(node: ast.AST) -> str:
    """``nn.ReLU`` as a text again; "" for anything but dotted names."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_source(node.value)}.{node.attr}"
    return ""


def _refuse(node: ast.AST, what: str) -> bool:
    wish = _source(node) or _source(getattr(node, "func", node)) or f"a Python expression ({type(node).__name__})"
    raise UntrustedFileError(what, wish)
