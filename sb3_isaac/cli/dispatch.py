"""The console command ``sb3-isaac``: rl_zoo3's commands with our environments, and a few of our own."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import runpy
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from sb3_isaac.files.trust import trusting

COMMANDS: Dict[str, str] = {
    "train": "train an agent: the flags of python -m rl_zoo3.train, --until-solved",
    "enjoy": "watch a trained agent: the flags of python -m rl_zoo3.enjoy",
    "optimize": "search hyperparameters: the flags of python -m rl_zoo3.train, --trial-timeout and --write-yaml",
    "evaluate": "measure a trained agent over many episodes",
    "video": "film a trained agent, in a grid of environments",
    "record_video": "the flags of python -m rl_zoo3.record_video, which does not find our environments by itself",
    "plot": "draw learning curves of several runs",
    "export": "write a trained policy for a robot: ONNX or TorchScript, observations in, actions out",
    "compare": "train algorithms with several seeds and draw their learning curves",
    "check": "show versions, devices and which simulators can run here",
}
OWN_COMMANDS = {
    **dict.fromkeys(("evaluate", "video", "plot", "export"), "commands"),
    "compare": "compare",
    "check": "check",
}
"""Which module of this folder has the function of that name. The other commands are modules of rl_zoo3."""

EXTRAS: Dict[str, Dict[str, str]] = {
    "enjoy": {"pygame": "pygame"},
    "video": {"pygame": "pygame", "imageio_ffmpeg": "imageio-ffmpeg"},
    "record_video": {"pygame": "pygame", "moviepy": "moviepy", "imageio_ffmpeg": "imageio-ffmpeg"},  # which moviepy needs
    **dict.fromkeys(("plot", "compare"), {"matplotlib": "matplotlib", "scipy": "scipy"}),
}
"""Modules of the extra 'plots' that a command cannot do without, and what pip calls them. pygame is for our environments."""
TRUST = "--trust"
"""For all commands: files of runs may run code. Without it they cannot, see docs/threat_model.md."""
WATCHED_ENVS = 16
"""Environments that ``sb3-isaac enjoy`` shows in its window unless told otherwise."""

USER_ERRORS = (
    ValueError,
    TypeError,
    OSError,
    AssertionError,
    RuntimeError,
    ArithmeticError,
    MemoryError,
    ImportError,
)
"""What bad input raises, here and in SB3 and rl_zoo3. Anything else is a bug and keeps its traceback."""


def main(argv: Optional[List[str]] = None) -> int:
    """Run one command. Returns the exit status: 0, 1 after a run that failed, 2 for a wrong call.

    Errors that the user can mend are one sentence on stderr; ``--verbose 2`` shows the traceback.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started this: >&-
            setattr(sys, name, open(os.devnull, "w"))
    try:
        try:
            return _main(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        return 1


def _main(argv: Optional[List[str]]) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    lines = [f"  {name:13s}{text}" for name, text in COMMANDS.items()]
    more = f"sb3-isaac COMMAND --help lists the flags.\n{TRUST} lets the files of runs run code: for makers you trust."
    more += "\n--verbose 2 shows the traceback of an error."
    usage = "\n".join(["usage: sb3-isaac COMMAND [flags]", "", *lines, "", more])
    if not argv or argv[0] in ("-h", "--help"):
        print(usage)
        return 0 if argv else 2
    if argv[0] == "--version":
        from sb3_isaac._version import __version__

        print(f"sb3_isaac {__version__}")
        return 0
    command, flags = argv[0], [flag for flag in argv[1:] if flag != TRUST]
    if command not in COMMANDS:
        print(f"sb3-isaac: unknown command {command!r}\n{usage}", file=sys.stderr)
        return 2
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, "")  # as python -m has it: --gym-packages my_task finds my_task.py in this folder
    from sb3_isaac.cli.flags import one_sentence, several_ranks  # not for the help above

    verbose = 1
    try:
        with one_sentence(command), trusting(TRUST in argv):
            verbose, flags = _verbosity(command, flags)
            _check_extras(command, flags)
            return _run(command, flags)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return 1
        import gymnasium as gym  # not for the help above

        if several_ranks() and not _says_why(error):  # another one has said it
            return 1
        if not isinstance(error, (*USER_ERRORS, gym.error.Error)):
            raise
        if verbose >= 2:
            raise
        sentence = " ".join(str(error).split()) or type(error).__name__
        unknown = isinstance(error, gym.error.UnregisteredEnv) or "not found in gym registry" in sentence  # rl_zoo3's words
        if unknown and not _is_given("--gym-packages", flags):
            sentence += " If a module of yours registers it, name the module: --gym-packages my_task"
        print(f"sb3-isaac {command}: {sentence}{_own_place(error)}", file=sys.stderr)
        return 1


def _verbosity(command: str, flags: List[str]) -> Tuple[int, List[str]]:
    """The number of ``--verbose``, and the flags that the command takes: rl_zoo3's have that one, too."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--verbose", type=int, default=1)
    args, rest = parser.parse_known_args(flags)
    return args.verbose, rest if command in OWN_COMMANDS else flags


def _own_place(error: Exception) -> str:
    """File and line of an error that the user's own code raises, or that a library it calls does; else nothing."""
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        module, path = frame.f_globals, Path(frame.f_code.co_filename)
        name = module.get("__package__") or module.get("__name__", "")  # rl_zoo3's scripts are called __main__
        package = name.partition(".")[0]
        if package in ("sb3_isaac", "stable_baselines3", "rl_zoo3"):
            break
        library = {"site-packages", "dist-packages"} & set(path.parts) or Path(os.__file__).parent in path.parents
        if not library and package != "torch" and path.suffix == ".py":
            return f" ({path.name}, line {line}; --verbose 2 shows all)"
    return ""


def _nobody_reads() -> bool:
    """Whether whoever read what is printed has left (``| head``). If so, the rest is printed nowhere."""
    try:
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _says_why(error: Exception) -> bool:
    """Part with the other ranks because of an error. Returns whether this one is to say why the run ends."""
    from sb3_isaac.device import ranks  # with torch, which only a training needs

    ranks.leave(error)
    return ranks.speaks()


def _meet_ranks(command: str, flags: List[str]) -> bool:
    """Meet the other ranks that torchrun has started, and let only the first print. Returns whether this is another one.

    :raises ValueError: a command that trains in processes of its own
    """
    if command not in ("train", "optimize", "compare") or {"-h", "--help"} & set(flags):
        return False
    from sb3_isaac.device import ranks  # with torch

    ranks.join()
    if command != "train":
        raise ValueError("it trains in processes of its own: start it without torchrun.")
    if ranks.rank() > 0:
        sys.stdout = open(os.devnull, "w")
        warnings.simplefilter("ignore")
    return ranks.rank() > 0


def _run(command: str, flags: List[str]) -> int:
    from sb3_isaac.cli.flags import several_ranks

    silent = several_ranks() and _meet_ranks(command, flags)
    if command in OWN_COMMANDS:
        module = importlib.import_module(f"sb3_isaac.cli.{OWN_COMMANDS[command]}")
        return int(getattr(module, command)(flags))
    importlib.import_module("sb3_isaac.zoo")
    from sb3_isaac.envs.ids import register_named
    from sb3_isaac.zoo.run_folders import let_go

    register_named(flags)  # rl_zoo3 looks in the registry
    own_flags: Dict[str, Any] = {
        "train": _train_flags,
        "optimize": _search_flags,
        "enjoy": _watch_flags,
        "record_video": _record_flags,
    }
    try:
        flags = own_flags.get(command, list)(flags)
        if silent:  # the first rank keeps records
            flags = [flag for flag in flags if flag not in ("--trac", "--track")]
        sys.argv = [f"sb3-isaac {command}", *flags]
        runpy.run_module("rl_zoo3.train" if command == "optimize" else f"rl_zoo3.{command}", run_name="__main__")
    finally:
        let_go()
    return 0


def _train_flags(flags: List[str]) -> List[str]:
    """rl_zoo3.train's flags, given those of ``sb3-isaac train``."""
    parser = argparse.ArgumentParser(prog="sb3-isaac train", add_help=False, allow_abbrev=False)
    parser.add_argument(
        "--until-solved",
        action="store_true",
        default=None,
        help="stop when two evaluations in a row reach the reward_threshold of the hyperparameter entry or environment",
    )
    parser.add_argument(
        "--n-envs", type=int, metavar="N", help="number of environments, in place of the hyperparameter entry's"
    )
    parser.add_argument(
        "--keep-checkpoints", type=int, metavar="N", help="of the checkpoints that --save-freq writes, keep the newest N"
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="",
        metavar="RUN",
        help="go on with a run from its newest checkpoint, in its own folder: its number or folder, or the latest run of "
        "--algo and --env",
    )
    args, rest = parser.parse_known_args(flags)
    started_again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0 and args.resume is None
    if (args.resume is None and not started_again) or {"-h", "--help"} & set(rest):
        _note_default_env(rest)
        return _with_own_flags(parser, flags)
    which = argparse.ArgumentParser(prog="sb3-isaac train", add_help=False)
    which.add_argument("--algo")
    which.add_argument("--env")
    which.add_argument("-i", "--trained-agent")
    which.add_argument("-conf", "--conf-file")
    which.add_argument("-optimize", "--optimize-hyperparameters", action="store_true", default=None)
    which.add_argument("--trial-id")
    which.add_argument("-f", "--log-folder", default="logs")
    which.add_argument("-params", "--hyperparams", nargs="+", default=[])
    which.add_argument("--gym-packages", nargs="+", default=[])
    run, more = which.parse_known_args(rest)
    from sb3_isaac.device import ranks
    from sb3_isaac.zoo.agents import import_packages
    from sb3_isaac.zoo.resume import find_run, flags_of, run_before_restart
    from sb3_isaac.zoo.run_folders import hold

    for name in ("trained_agent", "conf_file", "optimize_hyperparameters", "trial_id"):
        if getattr(run, name) is not None and not started_again:
            raise ValueError(
                f"--resume and --{name.replace('_', '-')} exclude each other: a run goes on from its own checkpoint with its "
                "own hyperparameters. Leave one out; -params NAME:VALUE changes a hyperparameter."
            )
    import_packages(run)
    if started_again:
        args.resume = run_before_restart(run.log_folder, run.algo or "ppo", run.env or "")
        if args.resume is None:  # it had not come to its first checkpoint
            return _with_own_flags(parser, flags)
        print(f"torchrun has started the ranks again: {args.resume} goes on from its newest checkpoint")
    first = ranks.rank() == 0
    folder = ranks.from_first(find_run(args.resume or None, run.algo or "ppo", run.env, run.log_folder) if first else None)
    hold(str(folder))  # before its newest checkpoint is looked for
    saved = flags_of(folder, rest)
    if saved is None:
        print(f"The run {folder} has finished. Its agent can be trained on with -i FILE -n TIMESTEPS.")
        raise SystemExit(0)
    for name in ("algo", "env"):
        of_run = next((flag.partition("=")[2] for flag in saved if flag.startswith(f"--{name}=")), None)
        if getattr(run, name) not in (None, of_run):
            raise ValueError(
                f"--{name} {getattr(run, name)}: the run {folder} is of {of_run}. Leave the flag out, or name another run."
            )
    packages = ["--gym-packages", *run.gym_packages] if run.gym_packages else []
    if started_again:  # what else was typed is among the run's settings
        return [*saved, *packages, "-params", "resume:True"]
    own = [f"{name}:{value!r}" for name, value in vars(args).items() if name != "resume" and value is not None]
    return [*saved, *more, *packages, "-params", "resume:True", *run.hyperparams, *own]


def _without_packages(flags: List[str]) -> List[str]:
    """rl_zoo3.record_video's flags: it knows no ``--gym-packages``, so these are imported here."""
    parser = argparse.ArgumentParser(prog="sb3-isaac record_video", add_help=False, allow_abbrev=False)
    parser.add_argument("--gym-packages", nargs="+", default=[], help="modules to import, which register environments")
    args, rest = parser.parse_known_args(flags)
    from sb3_isaac.zoo.agents import import_packages  # which --help does not need

    import_packages(args)
    return rest


def _check_extras(command: str, flags: List[str]) -> None:
    """Whether a command finds what it draws with, asked before anything is loaded.

    :raises ImportError: something is missing; the message has the pip command
    """
    if {"-h", "--help"} & set(flags) or _is_given("--no-render", flags):
        return
    needed = EXTRAS.get(command, {})
    missing = [
        package
        for module, package in needed.items()
        if importlib.util.find_spec(module) is None
        and (module != "pygame" or _names_our_env(flags, but_simulators=command != "enjoy"))
    ]
    if missing:
        come = "comes" if len(missing) == 1 else "come"
        names = " and ".join(missing)
        raise ImportError(f"This needs {names}, which {come} with the extra 'plots': pip install {' '.join(missing)}")


def _names_our_env(flags: List[str], but_simulators: bool = False) -> bool:
    """Whether an id of this package is among them (``--env ID`` or ``--env=ID``).

    :param but_simulators: leave out other simulators' tasks, whose pictures they make themselves
    """
    from sb3_isaac.envs.ids import split
    from sb3_isaac.envs.make import is_isaac_env_id

    ids = [flag.rpartition("=")[2] for flag in flags]
    return any(is_isaac_env_id(name) and not (but_simulators and split(name)) for name in ids)


def _is_given(name: str, flags: List[str]) -> bool:
    """Whether a flag of rl_zoo3 is given, which argparse takes abbreviated too, and with its value after ``=``."""
    given = (flag.partition("=")[0] for flag in flags)
    return any(len(flag) > 4 and name.startswith(flag) for flag in given)


def _watch_flags(flags: List[str]) -> List[str]:
    """rl_zoo3.enjoy's flags, with other defaults for our environments: two episodes of one cartpole show little."""
    if "-h" in flags or "--help" in flags:
        print(
            f"With the environments of sb3_isaac the default folder is logs, and the window shows {WATCHED_ENVS} of them.\n"
            "With --no-render there is one, whose 1000 timesteps are two whole episodes: -n 10000 for twenty, or sb3-isaac "
            "evaluate.\n"
        )
    if not _names_our_env(flags):
        which = argparse.ArgumentParser(prog="sb3-isaac enjoy", add_help=False, allow_abbrev=False)
        which.add_argument("--env")
        env_id = which.parse_known_args(flags)[0].env
        if env_id and ":" not in env_id and not _is_given("--gym-packages", flags):  # module:id names its module
            import gymnasium as gym

            gym.spec(env_id)  # before rl_zoo3 looks for an agent of it, in the folder and then on the internet
        return flags
    # In front: argparse takes the last of what is given twice.
    return [*([] if _is_given("--no-render", flags) else ["--n-envs", str(WATCHED_ENVS)]), "-f", "logs", *flags]


def _record_flags(flags: List[str]) -> List[str]:
    """rl_zoo3's flags, with the default folder of rl_zoo3.train for our environments: nobody else has agents of them."""
    flags = _without_packages(flags)
    return ["-f", "logs", *flags] if _names_our_env(flags) else flags


def _search_flags(flags: List[str]) -> List[str]:
    """rl_zoo3.train's flags for a search, given those of ``sb3-isaac optimize``."""
    parser = argparse.ArgumentParser(prog="sb3-isaac optimize", add_help=False, allow_abbrev=False)
    parser.add_argument("--trial-timeout", type=float, metavar="SECONDS", help="prune a trial that takes longer")
    parser.add_argument("--write-yaml", metavar="FILE", help="add the best hyperparameters to this hyperparameter file")
    _note_default_env(flags)
    return ["-optimize", *_with_own_flags(parser, flags)]


def _note_default_env(flags: List[str]) -> None:
    """Without ``--env`` rl_zoo3 has an environment of its own, which who calls this command may not have meant."""
    if not _is_given("--env", flags) and not {"-h", "--help"} & set(flags):
        ours = "--env IsaacGymCartpole-v0"
        print(f"No --env is given: this is CartPole-v1, rl_zoo3's default. This package's: {ours}", flush=True)


def _with_own_flags(parser: argparse.ArgumentParser, flags: List[str]) -> List[str]:
    """rl_zoo3's flags: those of ``parser``, which it does not know, go to ``-params``, as in a hyperparameter file."""
    parser.add_argument("-params", "--hyperparams", nargs="+", default=[], help=argparse.SUPPRESS)
    args, rest = parser.parse_known_args(flags)
    if "-h" in rest or "--help" in rest:
        print(parser.format_help())
    own = {name: value for name, value in vars(args).items() if name != "hyperparams" and value is not None}
    params = args.hyperparams + [f"{name}:{value!r}" for name, value in own.items()]
    return [*rest, *(["-params", *params] if params else [])]
