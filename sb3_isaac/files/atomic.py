"""Files that are replaced only by complete new ones."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import time
import uuid
from typing import Any, Iterator, List, Optional, Sequence, Union

SUFFIX = ".part"
"""Of temporary files, whose names begin with a dot: nothing that looks for models, statistics or logs finds them."""
LEFT_OVER = 3600
"""Seconds after which a temporary file that nobody has written to is of a process that was killed, and is removed."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def replacing(path: Any) -> Iterator[str]:
    """The name of a file to write, which takes the place of ``path`` if the block ends without an error, else is removed.

    Whoever kills the process, or cuts the power, finds the old file or the new one. The name has another ending than ``path``:
    what chooses a format by it, or adds one that is missing (``np.savez``), needs an open file, or :func:`write`.

    :param path: a path. Folders are made where needed, a link stays one, and what is no regular file (such as /dev/null) is
        written as it is.
    :raises OSError: it cannot be written. The error has the name of the file, which is as it was, and on a full disk the size.
    """
    with replacing_all([path]) as (temporary,):
        yield temporary


@contextlib.contextmanager
def replacing_all(paths: Sequence[Any]) -> Iterator[List[str]]:
    """:func:`replacing` for files that belong together: none takes its place before all of them are on the disk."""
    files = [_File(os.fspath(path)) for path in paths]
    moved = [file for file in files if file.temporary != file.path]
    names = [file.temporary for file in files]
    try:
        for file in files:
            _prepare(file.path)
        with contextlib.ExitStack() as stack:
            for file in files:
                stack.enter_context(_errors_of(file.given, file.temporary))
            yield names
        for step in (_sync, _move):
            for file in moved:
                with _errors_of(file.given, file.temporary):
                    step(file)
        for folder in sorted({os.path.dirname(file.path) for file in moved}):
            _sync_folder(folder)
    finally:
        for file in moved:
            with contextlib.suppress(OSError):
                os.remove(file.temporary)


def write(path: Any, content: Union[bytes, bytearray, memoryview, str]) -> None:
    """Write a whole file (text as UTF-8), see :func:`replacing`.

    :raises OSError: see :func:`replacing`
    """
    data = content.encode() if isinstance(content, str) else content
    with replacing(path) as name, _errors_of(os.fspath(path), name, len(data)), open(name, "wb") as file:
        file.write(data)


def check_place(path: Any) -> None:
    """Find out whether a file can be written, by writing a little beside it: asked before the work whose result it is to hold.

    :raises OSError: see :func:`replacing`
    """
    file = _File(os.fspath(path))
    _prepare(file.path)
    if file.temporary == file.path:
        return
    content = bytes(4096)
    try:
        with _errors_of(file.given, file.temporary, len(content)), open(file.temporary, "wb") as opened:
            opened.write(content)
    finally:
        with contextlib.suppress(OSError):
            os.remove(file.temporary)


@contextlib.contextmanager
def staging(folder: str) -> Iterator[str]:
    """A folder for code that writes files by itself: each gets its place in ``folder`` if the block ends without an error.

    :raises OSError: see :func:`replacing`
    """
    with tempfile.TemporaryDirectory() as inside:
        yield inside
        for name in sorted(os.listdir(inside)):
            with open(os.path.join(inside, name), "rb") as file:
                write(os.path.join(folder, name), file.read())


def size_text(n_bytes: float) -> str:
    """``size_text(182_000)`` is "182 kB"."""
    for unit in ("bytes", "kB", "MB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:.3g} GB"


# -- the parts -------------------------------------------------------------------------------------------------------


class _File:
    """One that is written: its path as given and without links, and the name to write to, which may be the path itself."""

    def __init__(self, given: str) -> None:
        self.given = given
        self.path = self.temporary = os.path.realpath(given)
        folder, name = os.path.split(self.path)
        written_to = name.startswith(".") and name.endswith(SUFFIX)  # for another file, that will be replaced by it
        if not written_to and (os.path.isfile(self.path) or not os.path.exists(self.path)):
            # Other processes and threads may write the same file; a name has 255 bytes at most.
            self.temporary = os.path.join(folder, f".{name[:50]}.{uuid.uuid4().hex[:12]}{SUFFIX}")


def _prepare(path: str) -> None:
    """Make the folder, and remove from it what killed processes have left."""
    if os.path.isdir(path):
        raise IsADirectoryError(errno.EISDIR, "It is a folder, choose another name for the file", path)
    folder = os.path.dirname(path)
    try:
        os.makedirs(folder, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        above = folder
        while not os.path.exists(above):
            above = os.path.dirname(above)
        raise NotADirectoryError(errno.ENOTDIR, "It is a file where a folder must be, choose another name", above) from error
    if os.path.isfile(path) and not os.access(path, os.W_OK):  # os.replace would not mind
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    for entry in os.scandir(folder):
        if entry.name.startswith(".") and entry.name.endswith(SUFFIX):
            with contextlib.suppress(OSError):  # another process may remove it, too
                if time.time() - entry.stat().st_mtime > LEFT_OVER:
                    os.remove(entry.path)


def _sync(file: _File) -> None:
    with contextlib.suppress(OSError):  # who may read it stays as it was; there may be none
        shutil.copymode(file.path, file.temporary)
    with open(file.temporary, "rb+") as opened:
        os.fsync(opened.fileno())


def _move(file: _File) -> None:
    os.replace(file.temporary, file.path)


def _sync_folder(folder: str) -> None:
    """Have the new name on the disk, too. Not every system can, and the file is whole in any case."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _errors_of(path: str, temporary: str, n_bytes: Optional[int] = None) -> Iterator[None]:
    """Give errors of a temporary file the name of the file that was to be written, and on a full disk its size.

    :param n_bytes: that were to be written, if they are known
    """
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename in (None, temporary):
            error.filename = path
            if error.errno in FULL and " free" not in str(error.strerror):
                written = os.path.getsize(temporary) if os.path.exists(temporary) else 0
                needed = f"more than {size_text(written)}" if n_bytes is None else size_text(n_bytes)
                free = shutil.disk_usage(os.path.dirname(os.path.abspath(path))).free
                error.strerror = f"{error.strerror}: {needed} to write, {size_text(free)} free"
        raise
