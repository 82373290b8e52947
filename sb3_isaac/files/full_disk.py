"""Training goes on where a checkpoint or a log cannot be written: the disk is full, gone, or may not be written to."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import sys
import warnings
from typing import Any, Callable, Dict, Iterator, Optional, Set, TextIO, Tuple, cast

from stable_baselines3.common.callbacks import BaseCallback, CallbackList, CheckpointCallback, EvalCallback, EventCallback
from stable_baselines3.common.logger import HumanOutputFormat, TensorBoardOutputFormat

from sb3_isaac.files.atomic import FULL

OF_THE_DISK = {*FULL, *(getattr(errno, name) for name in "EIO EROFS EACCES EPERM ENOENT ENOTDIR ESTALE EMFILE ENFILE".split())}
"""Errors that say that a file cannot be written. A broken pipe to an environment's process is none of them."""

_reported: Set[Tuple[str, str]] = set()
"""Kinds of files that could not be written, and the folders."""


@contextlib.contextmanager
def training_goes_on(kind: str, path: Optional[Any] = None) -> Iterator[None]:
    """For a block that writes a file which training can do without: if the disk fails it, that is a warning.

    There is one warning for each kind of file in a folder.

    :param kind: what is written, as it is called in the warning
    :param path: of the file, if the error may not know it
    """
    try:
        yield
    except OSError as error:
        if error.errno not in OF_THE_DISK:
            raise
        name = error.filename if error.filename is not None else "" if path is None else os.fspath(path)
        key = kind, os.path.dirname(os.path.abspath(name))
        if key in _reported:
            return
        _reported.add(key)
        name = f" {name}" if name else ""
        advice = "make room on that disk" if error.errno in FULL else "see to that disk"
        warnings.warn(
            f"Cannot write the {kind}{name}: {error.strerror}. Training goes on without it, and what was written before is "
            f"as it was; {advice}. Further ones that fail are not reported.",
            stacklevel=4,
        )


class _Output:
    """A stream whose disk may be full."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with training_goes_on("output"):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with training_goes_on("output"):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def output_goes_on() -> Iterator[None]:
    """For a block whose ``print`` may go to a file on a full disk: what cannot be written is left out."""
    before = sys.stdout
    sys.stdout = cast(TextIO, _Output(before))
    try:
        yield
    finally:
        sys.stdout = before


def save_parts(parts: Dict[str, Callable[[], Any]]) -> None:
    """Save as much as there is room for.

    :param parts: functions that save, by what they save; the small ones first
    :raises OSError: some of it was not saved; the message says what and why, and what was
    """
    saved, failed = [], []
    for name, save in parts.items():
        try:
            save()
            saved.append(name)
        except OSError as error:
            failed.append(f"the {name} ({error.filename}: {error.strerror})" if error.strerror else f"the {name} ({error})")
            cause = error
    if failed:
        rest = f"; saved: the {', the '.join(saved)}" if saved else ""
        raise OSError(f"Not saved: {', '.join(failed)}{rest}. Files written before are as they were.") from cause


def outlive_a_full_disk(model: Any, callback: BaseCallback) -> BaseCallback:
    """Have checkpoints and logs of a training that begins written as :func:`training_goes_on` says.

    :param model: an SB3 model, whose logger is configured
    :param callback: of this training. SB3's CheckpointCallback and EvalCallback among them are meant, and what is called by
        an EvalCallback; callbacks of the user's own raise what they raise.
    :return: the callback
    """
    for output in model.logger.output_formats:
        path = getattr(getattr(output, "file", None), "name", None)
        if isinstance(output, TensorBoardOutputFormat):
            kind, path = "TensorBoard log", output.writer.log_dir
        else:
            kind = "printed log" if isinstance(output, HumanOutputFormat) else "training log"
        _guard(output, "write", kind, None, path)
    _guard_callbacks(callback)
    return callback


def _guard_callbacks(callback: Any, writes: bool = False) -> None:
    if isinstance(callback, CallbackList):
        for one in callback.callbacks:
            _guard_callbacks(one, writes)
    elif isinstance(callback, EventCallback):
        _guard_callbacks(callback.callback, writes)
        _guard_callbacks(getattr(callback, "callback_on_new_best", None), True)
    if isinstance(callback, (CheckpointCallback, EvalCallback)) or writes and callback is not None:
        _guard(callback, "_on_step", "evaluations or best model" if isinstance(callback, EvalCallback) else "checkpoint", True)


def _guard(thing: Any, method: str, kind: str, failed: Any, path: Optional[Any] = None) -> None:
    if method not in vars(thing):  # else of an earlier training
        guard: Any = functools.partial(_call, getattr(thing, method), kind, failed, path)
        guard.guards = True  # see is_patched
        setattr(thing, method, guard)


def _call(function: Callable[..., Any], kind: str, failed: Any, path: Optional[Any], *args: Any, **kwargs: Any) -> Any:
    with training_goes_on(kind, path):
        return function(*args, **kwargs)
    return failed
