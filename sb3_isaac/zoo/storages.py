"""Where Optuna keeps studies: journal files and databases, opened so that several workers can share them."""

from __future__ import annotations

import contextlib
import json
import random
import time
import warnings
from pathlib import Path
from typing import Any, Dict, Iterator, Optional

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

LOCK_TIMEOUT = 30
"""Seconds to wait for a storage that another process has locked, or for a server that does not answer."""
HEARTBEAT, GRACE = 15, 60
"""A trial in a database says every so many seconds that it is alive, and is failed when it was silent for so long."""
JOURNAL_GRACE = 15
"""Seconds after which the lock on a journal file is taken from a worker that was killed while writing."""


class StorageError(RuntimeError):
    """A study, or where it is stored, cannot be used. The message says why, in one sentence."""


def shown(storage: Optional[str]) -> str:
    """A storage's address without the password."""
    if storage is None:
        return "memory"
    try:
        return str(make_url(storage).render_as_string(hide_password=True))
    except ArgumentError:
        return storage


@contextlib.contextmanager
def explained(storage: Optional[str]) -> Iterator[None]:
    """Errors of a storage as one sentence.

    :raises StorageError: instead of what SQLAlchemy, Optuna and the database driver raise
    """
    try:
        yield
    except (SQLAlchemyError, StorageInternalError) as error:
        cause: BaseException = error
        while isinstance(cause, StorageInternalError) and cause.__cause__ is not None:
            cause = cause.__cause__
        text = " ".join(str(getattr(cause, "orig", None) or cause).split())
        if "locked" in text:
            text += f" (by another process, for more than {LOCK_TIMEOUT} s: stop it, or try again later)"
        raise StorageError(f"The study's storage {shown(storage)} cannot be used: {text}") from error


def open_storage(storage: Optional[str], must_exist: bool = False) -> Any:
    """Optuna's storage for zoo's ``--storage``: None (memory), ``FILE.log`` (a journal file) or the URL of a database.

    Databases get heartbeats, so that the trials of a killed worker do not stay unfinished.

    :param must_exist: do not make a file that does not exist
    :raises StorageError: locked, unreachable, not a study's storage, or no driver for it installed
    """
    if storage is None:
        return None
    path = _file_of(storage)
    if path is not None and must_exist and not path.is_file():
        raise StorageError(f"There is no study in {storage}: {path} does not exist.")
    if storage.endswith(".log"):
        return _open_journal(Path(storage))
    if storage.startswith("redis"):
        return storage  # Optuna opens it
    if path is not None and not path.absolute().parent.is_dir():
        raise StorageError(f"The study cannot be stored in {storage}: the folder {path.parent} does not exist.")
    with explained(storage), warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        try:
            return _open_database(storage)
        except ImportError as error:
            what = "psycopg2-binary and write postgresql+psycopg2://" if storage.startswith("postgresql") else "the driver"
            raise StorageError(f"Nothing installed opens {shown(storage)} ({error.__cause__}): install {what}.") from error
        except ArgumentError as error:
            raise StorageError(
                f"--storage {storage!r} is neither a journal file (NAME.log) nor the URL of a database (such as sqlite:///NAME.db)."
            ) from error


def _file_of(storage: str) -> Optional[Path]:
    """The file that a storage is in, if it is one."""
    if storage.endswith(".log"):
        return Path(storage)
    with contextlib.suppress(ArgumentError):
        url = make_url(storage)
        if url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:"):
            return Path(str(url.database))
    return None


def _open_database(storage: str) -> Any:
    url = make_url(storage)
    engine_kwargs: Dict[str, Any] = {}  # how long to wait, in the words of each driver
    if url.get_backend_name() == "sqlite":
        engine_kwargs = {"connect_args": {"timeout": LOCK_TIMEOUT}}
    elif url.get_driver_name() in ("psycopg", "psycopg2", "pymysql", "mysqldb"):
        engine_kwargs = {"connect_args": {"connect_timeout": LOCK_TIMEOUT}, "pool_pre_ping": True}
    for remaining in reversed(range(10)):
        try:
            return optuna.storages.RDBStorage(storage, engine_kwargs, heartbeat_interval=HEARTBEAT, grace_period=GRACE)
        except DBAPIError as error:
            # Workers that start together on a new database all want to make its tables, and all but one fail.
            if remaining == 0 or not any(text in str(error).lower() for text in ("already exists", "unique", "duplicate")):
                raise
            time.sleep(random.uniform(0.1, 0.5))
    raise AssertionError


def _open_journal(path: Path) -> Any:
    from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

    # Absolute, for the lock is a link to it. A relative link would be looked up in the file's own folder.
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        if path.exists():
            with open(path, "rb") as file:
                first = file.readline()
            if first and "op_code" not in json.loads(first):
                raise ValueError
        return optuna.storages.JournalStorage(JournalFileBackend(str(path), JournalFileSymlinkLock(str(path), JOURNAL_GRACE)))
    except (ValueError, TypeError, KeyError) as error:
        raise StorageError(f"{path} is not a journal file of Optuna, or is damaged: choose another --storage.") from error
