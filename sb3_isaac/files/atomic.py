"""Files that are replaced only by complete new ones."""

from __future__ import annotations

import contextlib
import os
from typing import Iterator


@contextlib.contextmanager
def replacing(path: str) -> Iterator[str]:
    """The name of a file to write, which takes the place of ``path`` if the block ends without an error, else is removed.

    Whoever kills the process, or cuts the power, finds the old file or the new one.
    """
    root, suffix = os.path.splitext(path)
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    temporary = f"{root}.part{os.getpid()}{suffix}"  # other processes may write the same file
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        if os.path.isfile(temporary):
            os.remove(temporary)
