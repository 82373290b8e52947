"""A layer under Python's files that fails, or ends the process, at the n-th operation on files of one folder."""

from __future__ import annotations

import builtins
import contextlib
import errno
import io
import os
import signal
from pathlib import Path
from typing import Any, Callable, Iterator, List, Optional

import pytest


class FaultyFiles:
    """Counts what is done to files in a folder: open for writing, write, fsync, replace, remove.

    :param folder: files elsewhere are left alone
    :param fails_at: number of the operation that fails, the first is 0; None: none
    :param error: errno that it fails with, having written half of what was to be written; 0: the process is killed then
    :param lasting: so do all that follow, but for removing a file
    """

    def __init__(self, folder: Path, fails_at: Optional[int] = None, error: int = errno.ENOSPC, lasting: bool = False) -> None:
        self.folder = os.path.realpath(folder)
        self.fails_at, self.error, self.lasting = fails_at, error, lasting
        self.done: List[str] = []
        """Operations so far, with the names of the files."""

    def step(self, what: str, path: str, half: Callable[[], Any] = lambda: None) -> None:
        number, failed = len(self.done), False
        self.done.append(f"{what} {os.path.basename(path)}")
        if self.fails_at is not None:
            failed = number == self.fails_at or self.lasting and number > self.fails_at and what != "remove"
        if not failed:
            return
        half()
        if self.error == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(self.error, os.strerror(self.error))

    def inside(self, path: Any) -> bool:
        return not isinstance(path, int) and os.path.realpath(os.fsdecode(path)).startswith(self.folder + os.sep)


@contextlib.contextmanager
def faulty_files(
    folder: Path, fails_at: Optional[int] = None, error: int = errno.ENOSPC, **options: Any
) -> Iterator[FaultyFiles]:
    """:class:`FaultyFiles` under ``open``, ``io.open``, ``os.fsync``, ``os.replace`` and ``os.remove``, for a while."""
    layer = FaultyFiles(folder, fails_at, error, **options)
    plain = {name: getattr(os, name) for name in ("fsync", "replace", "remove")}
    plain_open = io.open

    class Raw(io.FileIO):
        def write(self, data: Any) -> int:
            layer.step("write", str(self.name), lambda: super(Raw, self).write(memoryview(data)[: len(data) // 2]))
            return super().write(data)

    def opened(path: Any, mode: str = "r", buffering: int = -1, *text: Any, opener: Any = None, **kwargs: Any) -> Any:
        if not layer.inside(path) or not set(mode) & set("wax+"):
            return plain_open(path, mode, buffering, *text, opener=opener, **kwargs)
        layer.step("open", os.fsdecode(path))
        raw = Raw(os.fsdecode(path), mode.replace("b", "").replace("t", ""))
        binary: Any = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return binary if "b" in mode else io.TextIOWrapper(binary, *text, **kwargs)

    def fsync(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        if layer.inside(path):
            layer.step("fsync", path)
        plain["fsync"](descriptor)

    def replace(old: Any, new: Any, **kwargs: Any) -> None:
        if layer.inside(new):
            layer.step("replace", os.fspath(new))
        plain["replace"](old, new, **kwargs)

    def remove(path: Any, **kwargs: Any) -> None:
        if layer.inside(path):
            layer.step("remove", os.fspath(path))
        plain["remove"](path, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        for module in (builtins, io):
            patch.setattr(module, "open", opened)
        for name, function in (("fsync", fsync), ("replace", replace), ("remove", remove)):
            patch.setattr(os, name, function)
        yield layer
