"""YAML that rl_zoo3 writes, read without running what is in it."""

from __future__ import annotations

import collections
import importlib
from typing import Any, List

import yaml

from sb3_isaac.files.safe_names import VALUES
from sb3_isaac.files.trust import UntrustedFileError, trusted

ORDERED_DICT = "tag:yaml.org,2002:python/object/apply:collections.OrderedDict"


class Unread:
    """Stands for what only Python code could make.

    :param wish: what that is
    """

    def __init__(self, wish: str) -> None:
        self.wish = wish

    def __repr__(self) -> str:
        return f"<{self.wish}, not read>"


class _Loader(yaml.SafeLoader):
    """Knows the tags of ordered dictionaries, tuples and listed classes; other Python tags become :class:`Unread`."""


def _ordered_dict(loader: _Loader, node: yaml.Node) -> Any:
    # rl_zoo3 writes [[[key, value], ...]]
    pairs: List[Any] = loader.construct_sequence(node, deep=True)  # type: ignore[arg-type]
    return collections.OrderedDict(pairs[0] if pairs else [])


def _tuple(loader: _Loader, node: yaml.Node) -> Any:
    return tuple(loader.construct_sequence(node, deep=True))  # type: ignore[arg-type]


def _named(loader: _Loader, suffix: str, node: yaml.Node) -> Any:
    module, _, name = suffix.rpartition(".")
    if (module, name) in VALUES:
        return getattr(importlib.import_module(module), name)
    return Unread(suffix)


def _unread(loader: _Loader, suffix: str, node: yaml.Node) -> Any:
    return Unread(suffix.partition(":")[2] or suffix)


_Loader.add_constructor(ORDERED_DICT, _ordered_dict)
_Loader.add_constructor("tag:yaml.org,2002:python/tuple", _tuple)
_Loader.add_multi_constructor("tag:yaml.org,2002:python/name:", _named)
_Loader.add_multi_constructor("tag:yaml.org,2002:python/", _unread)
_Loader.add_multi_constructor("!", _unread)


def load(path: str, trust: bool = False) -> Any:
    """What a YAML file says, with :class:`Unread` objects where only code could say it.

    :param trust: run that code
    :raises ValueError: it is no YAML
    """
    try:
        with open(path, encoding="utf-8") as file:
            return yaml.load(file, Loader=yaml.UnsafeLoader if trusted(trust) else _Loader)
    except (yaml.YAMLError, UnicodeDecodeError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, UntrustedFileError):
            raise
        raise ValueError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from error


def check_read(value: Any, what: str) -> None:
    """:raises UntrustedFileError: there is something :class:`Unread` in it"""
    if isinstance(value, Unread):
        raise UntrustedFileError(what, value.wish)
    if isinstance(value, dict):
        for key, item in value.items():
            check_read(key, what)
            check_read(item, what)
    elif isinstance(value, (list, tuple)):
        for item in value:
            check_read(item, what)
