"""Zip files of saved agents, opened without trusting their sizes."""

from __future__ import annotations

import contextlib
import os
import zipfile
from typing import IO, Iterator

MOST_EXPANDED = 100
"""How many times larger than its file the content of one may be: numbers of a network hardly shrink at all."""
ALWAYS_FINE = 100 * 2**20
"""Bytes of content that may be packed as tightly as one likes."""


class TightlyPackedError(ValueError):
    """A zip file would become far larger than it is."""


@contextlib.contextmanager
def open_zip(file: IO[bytes], what: str) -> Iterator[zipfile.ZipFile]:
    """A zip file for reading. Members are only read, never written to a folder: their names cannot lead out of it.

    :param what: its name, for messages
    :raises TightlyPackedError: it would become far larger than it is
    :raises ValueError: it is no zip file, or an incomplete one
    """
    try:
        with zipfile.ZipFile(file) as archive:
            size = file.seek(0, os.SEEK_END)
            content = sum(member.file_size for member in archive.infolist())
            if content > max(ALWAYS_FINE, MOST_EXPANDED * size):
                raise TightlyPackedError(
                    f"{what} has {size:,} bytes and would become {content:,}: no saved agent is packed so tightly."
                )
            yield archive
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise ValueError(
            f"{what} cannot be read: it wasn't a zip-file that SB3's save has written whole ({error})."
        ) from error
