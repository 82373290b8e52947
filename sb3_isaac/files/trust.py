"""Whether files may run code: no, unless their maker is trusted."""

from __future__ import annotations

import contextlib
from typing import Iterator

_everything = False


class UntrustedFileError(ValueError):
    """A file wants to run something, and nobody has said that its maker is trusted.

    :param what: the file, and where in it
    :param wish: what it wants to run
    """

    def __init__(self, what: str, wish: str) -> None:
        super().__init__(
            f"{what} wants to run {wish}, which is no part of a saved agent: your own code, or harmful code of others. "
            "If you trust whoever made the file, add --trust to the command (trust=True in Python)."
        )
        self.what, self.wish = what, wish


@contextlib.contextmanager
def trusting(everything: bool) -> Iterator[None]:
    """Within it, all files are trusted (``--trust``), or only those that are loaded with ``trust=True``."""
    global _everything
    before, _everything = _everything, everything
    try:
        yield
    finally:
        _everything = before


def trusted(trust: bool = False) -> bool:
    """Whether a file may run code that was loaded with this ``trust``."""
    return trust or _everything
