"""Optuna studies that several processes and machines share: where they are, what they are about, dead workers, seeds."""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import os
import random
import socket
import sys
import time
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Optional

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.samplers import BaseSampler
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, SQLAlchemyError

LOCK_TIMEOUT = 30
"""Seconds to wait for a storage that another process has locked, or for a server that does not answer."""
HEARTBEAT, GRACE = 15, 60
"""A trial in a database says every so many seconds that it is alive, and is failed when it was silent for so long."""
JOURNAL_START = b'{"op_code"'
"""What Optuna begins each line of a journal file with"""
STALE = 6 * 3600
"""Seconds after which a trial on another machine is failed that was not evaluated and has no heartbeat (in a journal file)."""
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
        cause = error.__cause__ or error
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
    if storage is None or storage.startswith("redis"):  # Optuna opens it
        return storage
    with explained(storage), warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        try:
            url = None if storage.endswith(".log") else make_url(storage)
            in_file = url is None or url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:")
            path = Path(storage if url is None else str(url.database))
            if in_file and must_exist and not path.is_file():
                raise StorageError(f"There is no study in {storage}: {path} does not exist.")
            if url is None:
                return _open_journal(path)
            if in_file and not path.absolute().parent.is_dir():
                raise StorageError(f"The study cannot be stored in {storage}: the folder {path.parent} does not exist.")
            return _open_database(url, storage)
        except ImportError as error:
            what = "psycopg2-binary and write postgresql+psycopg2://" if storage.startswith("postgresql") else "the driver"
            raise StorageError(f"Nothing installed opens {shown(storage)} ({error.__cause__}): install {what}.") from error
        except ArgumentError as error:
            raise StorageError(
                f"--storage {storage!r} is neither a journal file (NAME.log) nor the URL of a database (such as sqlite:///NAME.db)."
            ) from error


def _open_database(url: URL, storage: str) -> Any:
    engine_kwargs: Dict[str, Any] = {}  # how long to wait, in the words of each driver
    if url.get_backend_name() == "sqlite":
        engine_kwargs = {"connect_args": {"timeout": LOCK_TIMEOUT}}
    elif url.get_driver_name() in ("psycopg", "psycopg2", "pymysql", "mysqldb"):
        engine_kwargs = {"connect_args": {"connect_timeout": LOCK_TIMEOUT}, "pool_pre_ping": True}
    remaining = 9
    while True:
        try:
            return optuna.storages.RDBStorage(storage, engine_kwargs, heartbeat_interval=HEARTBEAT, grace_period=GRACE)
        except DBAPIError as error:
            # Workers that start together on a new database all want to make its tables, and all but one fail.
            if remaining == 0 or not any(text in str(error).lower() for text in ("already exists", "unique", "duplicate")):
                raise
        remaining -= 1
        time.sleep(random.uniform(0.1, 0.5))


class RepairingLock(JournalFileSymlinkLock):  # type: ignore[misc]
    """Optuna's lock on a journal file, whose holder finds the file whole: nobody else is writing, so a last line without end
    is of a process that died while it wrote, and would spoil the next line."""

    def acquire(self) -> bool:
        acquired: bool = super().acquire()
        try:
            cut = cut_last_line(self._lock_target_file)
        except BaseException:
            self.release()
            raise
        if cut:
            print(
                f"Repaired {self._lock_target_file}: its last line had been cut off when a process died, and was removed "
                f"({cut} bytes). The study goes on without it."
            )
        return acquired


def cut_last_line(path: str) -> int:
    """Remove the last line of a journal file if it has no end. Returns how many bytes that were.

    A file that is no journal is left alone.
    """
    with open(path, "rb+") as file:
        start = file.read(len(JOURNAL_START))
        size = end = file.seek(0, os.SEEK_END)
        if size == 0 or not JOURNAL_START.startswith(start):
            return 0
        tail = b""
        while end > 0 and b"\n" not in tail:
            file.seek(max(end - 4096, 0))
            tail = file.read(end - file.tell())
            end -= len(tail)
        keep = end + tail.rfind(b"\n") + 1
        if keep < size:
            file.truncate(keep)
            os.fsync(file.fileno())
        return size - keep


def _open_journal(path: Path) -> Any:
    # Absolute, for the lock is a link to it. A relative link would be looked up in the file's own folder.
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock = RepairingLock(str(path), JOURNAL_GRACE)
        if path.exists():
            with open(path, "rb") as file:
                first = file.readline()
                file.seek(-1 if first else 0, os.SEEK_END)
                whole = file.read() in (b"", b"\n")
            if not JOURNAL_START.startswith(first[: len(JOURNAL_START)]) or first.endswith(b"\n") and not json.loads(first):
                raise ValueError
            if not whole:
                lock.acquire()
                lock.release()
        return optuna.storages.JournalStorage(JournalFileBackend(str(path), lock))
    except (ValueError, TypeError, KeyError) as error:
        raise StorageError(f"{path} is not a journal file of Optuna, or is damaged: choose another --storage.") from error


# -- studies ---------------------------------------------------------------------------------------------------------


def load_study(storage: Optional[str], name: str) -> Any:
    """An existing study.

    :raises StorageError: there is none of that name, or its storage cannot be used
    """
    opened = open_storage(storage, must_exist=True)
    with explained(storage):
        try:
            return optuna.load_study(study_name=name, storage=opened)
        except KeyError as error:
            names = ", ".join(optuna.get_all_study_names(opened)) or "none"
            raise StorageError(f"There is no study {name!r} in {shown(storage)}; studies there: {names}.") from error


def open_study(storage: Optional[str], name: Optional[str], purpose: Dict[str, str], **options: Any) -> Any:
    """A study to add trials to, made if it does not exist.

    :param purpose: what the trials are about (algorithm, environment); kept with the study
    :param options: sampler and pruner
    :raises StorageError: the study holds other trials, which ours would spoil, or its storage cannot be used
    """
    opened = open_storage(storage)
    with explained(storage):
        study = optuna.create_study(storage=opened, study_name=name, direction="maximize", load_if_exists=True, **options)
        # In this order: another worker that starts at the same time says its purpose before its first trial.
        has_trials = len(study.get_trials(deepcopy=False)) > 0
        found = study.user_attrs.get("purpose")
        if list(study.directions) != [StudyDirection.MAXIMIZE] or (has_trials or found is not None) and found != purpose:
            about = " ".join((found or {"": "trials of another program"}).values())
            where = f"Study {name!r} in {shown(storage)}"
            raise StorageError(f"{where} is about something else ({about}): choose another --study-name.")
        if found is None:
            study.set_user_attr("purpose", purpose)
            command = (shown(storage) if word == storage else word for word in sys.argv)
            study.set_user_attr("command", " ".join(command))
    return study


# -- workers ---------------------------------------------------------------------------------------------------------


def this_worker() -> Dict[str, Any]:
    """Which process runs a trial: its number, since when, and the machine (or container) where these mean something."""
    namespace = ""
    with contextlib.suppress(OSError):
        namespace = os.readlink("/proc/self/ns/pid")
    pid = os.getpid()
    return {"host": f"{socket.gethostname()} {namespace}".strip(), "pid": pid, "started": _started(pid)}


def fail_dead_trials(study: Any) -> int:
    """Give up the trials whose worker was killed. Without this they would stay "running" for good.

    A worker of this machine is known by its process. Those of other machines are known by their heartbeats in a database, at
    which Optuna looks itself before each trial; elsewhere they are given up after :data:`STALE` seconds without an evaluation.

    :return: how many
    """
    here, n_failed, now = this_worker(), 0, datetime.datetime.now()
    has_heartbeats = hasattr(study._storage, "record_heartbeat")
    for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
        worker = trial.user_attrs.get("worker")
        if worker is None:  # its worker was killed before it could say who it is, or is about to say it
            dead = trial.datetime_start < now - datetime.timedelta(seconds=GRACE)
        elif worker["host"] == here["host"]:
            dead = not _is_alive(worker["pid"], worker.get("started"))
        else:
            seen = max(trial.datetime_start, datetime.datetime.fromtimestamp(trial.user_attrs.get("seen", 0)))
            dead = not has_heartbeats and seen < now - datetime.timedelta(seconds=STALE)
        if dead:
            with contextlib.suppress(ValueError, RuntimeError):  # another worker was faster
                study.tell(trial.number, state=TrialState.FAIL)
                n_failed += 1
    return n_failed


def _is_alive(pid: int, started: Optional[str]) -> bool:
    """Whether a process runs, and is the one that started then: numbers are used again, after a reboot the same ones soon."""
    try:
        os.getpgid(pid)
    except ProcessLookupError:
        return False
    now = _started(pid)
    return now != "ended" and (started is None or now is None or now == started)


def _started(pid: int) -> Optional[str]:
    """When a process started, as text to compare; "ended" if only its parent has not noticed yet; None if nobody tells."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return "ended" if state in "ZX" else f"{boot} {fields[18]}"


class SeededByTrial(BaseSampler):  # type: ignore[misc]
    """A sampler whose random numbers depend on the seed and the number of the trial, and not on the worker.

    With one sampler per worker, workers that were given the same seed would all try the same.

    :param make_sampler: makes a sampler that keeps nothing between trials (TPE, random), given a seed
    """

    def __init__(self, make_sampler: Callable[[int], BaseSampler], seed: int) -> None:
        @functools.lru_cache(maxsize=256)  # more than the threads of --n-jobs, each of which is in one trial
        def sampler_of(number: int) -> BaseSampler:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)  # said once is enough
                return make_sampler((seed + 1_000_003 * number) % 2**32)

        self._sampler_of = sampler_of

    def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
        return self._sampler_of(trial.number).infer_relative_search_space(study, trial)

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> Any:
        return self._sampler_of(trial.number).sample_relative(study, trial, search_space)

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        return self._sampler_of(trial.number).sample_independent(study, trial, param_name, param_distribution)
