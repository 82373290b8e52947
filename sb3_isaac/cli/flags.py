"""Flags of all commands, rl_zoo3's included: held against the table of settings, and mistakes said in one line."""

from __future__ import annotations

import argparse
import contextlib
from typing import Any, Iterator

from sb3_isaac.settings import check


def check_flags(command: str, args: argparse.Namespace) -> None:
    """:raises ValueError: a number that makes no sense: which flag, what it may be"""
    check(f"sb3-isaac {command}", vars(args), flags=True)


@contextlib.contextmanager
def one_sentence(command: str) -> Iterator[None]:
    """While a command runs: a wrong flag is one line, without the usage of all the others, and numbers are checked.

    rl_zoo3's commands make their own parsers, so the class of all parsers is changed for a while.
    """
    parser_class: Any = argparse.ArgumentParser
    error, parse_args = parser_class.error, parser_class.parse_args

    def short_error(self: argparse.ArgumentParser, message: str) -> Any:
        self.exit(2, f"sb3-isaac {command}: {message} (sb3-isaac {command} --help lists the flags)\n")

    def checked(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> Any:
        namespace = parse_args(self, *args, **kwargs)
        check_flags(command, namespace)
        return namespace

    parser_class.error, parser_class.parse_args = short_error, checked
    try:
        yield
    finally:
        parser_class.error, parser_class.parse_args = error, parse_args
