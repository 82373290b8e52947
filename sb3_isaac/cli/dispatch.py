"""The console command ``sb3-isaac``: rl_zoo3's commands with our environments, and a few of our own."""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import Dict, List, Optional, Tuple

import sb3_isaac  # noqa: F401  # isort: skip  # first of all: Isaac Gym refuses to be imported after torch
import gymnasium as gym

COMMANDS: Dict[str, str] = {
    "train": "train an agent: the flags of python -m rl_zoo3.train",
    "enjoy": "watch a trained agent: the flags of python -m rl_zoo3.enjoy",
    "optimize": "search hyperparameters: the flags of python -m rl_zoo3.train, --trial-timeout and --write-yaml",
    "evaluate": "measure a trained agent over many episodes",
    "video": "film a trained agent, in a grid of environments",
    "record_video": "the flags of python -m rl_zoo3.record_video, which does not find our environments by itself",
    "plot": "draw learning curves of several runs",
    "check": "show versions, devices and which simulators can run here",
}
# Commands that are not rl_zoo3's: module and function
OWN_COMMANDS: Dict[str, Tuple[str, str]] = {
    "evaluate": ("sb3_isaac.cli.commands", "evaluate_main"),
    "video": ("sb3_isaac.cli.commands", "video_main"),
    "record_video": ("sb3_isaac.cli.commands", "record_video_main"),
    "plot": ("sb3_isaac.curves", "main"),
    "check": ("sb3_isaac.check", "main"),
}

USER_ERRORS = (
    ValueError,
    TypeError,
    OSError,
    AssertionError,
    RuntimeError,
    ArithmeticError,
    MemoryError,
    ImportError,
    gym.error.Error,
)
"""What bad input raises, here and in SB3, rl_zoo3 and Gymnasium. Anything else is a bug and keeps its traceback."""


def _usage() -> str:
    lines = [f"  {name:13s}{text}" for name, text in COMMANDS.items()]
    return "\n".join(["usage: sb3-isaac COMMAND [flags]", "", *lines, "", "sb3-isaac COMMAND --help lists the flags."])


def main(argv: Optional[List[str]] = None) -> int:
    """Run one command. Returns the exit status: 0, 1 after a run that failed, 2 for a wrong call.

    Errors that the user can mend are one sentence on stderr; ``--verbose 2`` shows the traceback.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0 if argv else 2
    command, flags = argv[0], argv[1:]
    if command not in COMMANDS:
        print(f"sb3-isaac: unknown command {command!r}\n{_usage()}", file=sys.stderr)
        return 2
    try:
        if command in OWN_COMMANDS:
            module, function = OWN_COMMANDS[command]
            return int(getattr(importlib.import_module(module), function)(flags))
        _run_zoo(command, flags)
    except USER_ERRORS as error:
        if "--verbose" in flags and flags[flags.index("--verbose") + 1 :][:1] >= ["2"]:
            raise
        print(f"sb3-isaac {command}: {_sentence(error)}", file=sys.stderr)
        return 1
    return 0


def _run_zoo(command: str, flags: List[str]) -> None:
    importlib.import_module("sb3_isaac.zoo")
    name = "train" if command == "optimize" else command
    run = getattr(importlib.import_module(f"rl_zoo3.{name}"), name)
    sys.argv = [f"sb3-isaac {command}", *(_search_flags(flags) if command == "optimize" else flags)]
    run()


def _search_flags(flags: List[str]) -> List[str]:
    """rl_zoo3.train's flags for a search, given those of ``sb3-isaac optimize``: its own go to ``-params``."""
    parser = argparse.ArgumentParser(prog="sb3-isaac optimize", add_help=False, allow_abbrev=False)
    parser.add_argument("--trial-timeout", type=float, metavar="SECONDS", help="prune a trial that takes longer")
    parser.add_argument("--write-yaml", metavar="FILE", help="add the best hyperparameters to this hyperparameter file")
    parser.add_argument("-params", "--hyperparams", nargs="+", default=[], help=argparse.SUPPRESS)
    args, rest = parser.parse_known_args(flags)
    if "-h" in rest or "--help" in rest:
        print(parser.format_help())
    params = list(args.hyperparams)
    if args.trial_timeout is not None:
        params.append(f"trial_timeout:{args.trial_timeout!r}")
    if args.write_yaml is not None:
        params.append(f"write_yaml:{args.write_yaml!r}")
    return ["-optimize", *rest, *(["-params", *params] if params else [])]


def _sentence(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
