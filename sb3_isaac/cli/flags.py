"""Flags of all commands, rl_zoo3's included: held against the table of settings, and mistakes said in one line."""

from __future__ import annotations

import argparse
import contextlib
import os
from typing import Any, Iterator, Optional

from sb3_isaac.files.atomic import check_place
from sb3_isaac.settings import SETTINGS, check
from sb3_isaac.settings.memory import check_envs


def several_ranks() -> bool:
    """Whether torchrun has started this process as one of several. Asked without loading torch."""
    return "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", 1)) > 1


def _once(sentence: str) -> Optional[str]:
    """The sentence, unless another rank has said it."""
    if not several_ranks():
        return sentence
    from sb3_isaac.device import ranks  # with torch

    return sentence if ranks.speaks() else None


def check_flags(command: str, args: argparse.Namespace) -> None:
    """Look at what argparse has read.

    :raises ValueError: a number that makes no sense: which flag, what it may be; a device that does not exist
    :raises FileNotFoundError: no model to go on training
    :raises MemoryError: more environments than there is memory for
    """
    flags = vars(args)
    if f"sb3-isaac {command}" not in SETTINGS:
        return
    check(f"sb3-isaac {command}", flags, flags=True)
    agent = flags.get("trained_agent")
    if agent and not (agent.endswith(".zip") and os.path.isfile(agent)):
        raise FileNotFoundError(f"There is no model {agent}: -i takes a valid path to a .zip file that a training has saved.")
    if flags.get("n_envs"):  # before rl_zoo3 makes a list of so many functions
        from sb3_isaac import backends

        check_envs(flags["n_envs"], backends.resolve_device(flags.get("device", "auto")), "--n-envs")


def check_output(path: str) -> None:
    """Whether the file of ``-o``, or its default, can be written: asked before it takes time to make.

    :raises OSError: it cannot
    """
    try:
        check_place(path)
    except OSError as error:
        raise type(error)(f"Cannot write {path}: {error.strerror or error}. Name another file with -o.") from error


@contextlib.contextmanager
def one_sentence(command: str) -> Iterator[None]:
    """While a command runs: a wrong flag is one line, without the usage of all the others, and numbers are checked.

    rl_zoo3's commands make their own parsers, so the class of all parsers is changed for a while.
    """
    parser_class: Any = argparse.ArgumentParser
    error, parse_args = parser_class.error, parser_class.parse_args
    if parse_args.__module__ == __name__:  # a command that runs within another, in this process
        yield
        return

    def short_error(self: argparse.ArgumentParser, message: str) -> Any:
        self.exit(2, _once(f"sb3-isaac {command}: {message} (sb3-isaac {command} --help lists the flags)\n"))

    def checked(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> Any:
        namespace = parse_args(self, *args, **kwargs)
        check_flags(command, namespace)
        return namespace

    parser_class.error, parser_class.parse_args = short_error, checked
    try:
        yield
    finally:
        parser_class.error, parser_class.parse_args = error, parse_args
