"""Checkpoints: sets of files that count together or not at all.

A set NAME is NAME.zip and the like, and NAME.json, the manifest, with sizes and SHA-256 checksums of the others. The
manifest is written last: what it does not vouch for is no checkpoint. So whoever kills the process, at any moment, leaves
the set before whole, also where the new one has its name.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Callable, Dict, Iterator, List, Mapping, Optional, Tuple

from sb3_isaac.files.atomic import replacing

FORMAT = 1
SUFFIXES = {"model": ".zip", "statistics": "_vecnormalize.pkl", "replay_buffer": "_replay_buffer.pt", "state": "_state.pt"}
"""What the files of a set hold, and what their names end in"""
Writer = Callable[[IO[bytes]], None]


@dataclass(frozen=True)
class Checkpoint:
    """A complete set."""

    name: str
    """Path without a suffix"""
    files: Mapping[str, str]
    """Path of each file, by the keys of :data:`SUFFIXES`"""
    info: Mapping[str, Any]
    """What else the manifest says: ``num_timesteps``, ``total_timesteps``, ``finished``, ..."""

    @property
    def num_timesteps(self) -> int:
        return int(self.info.get("num_timesteps", 0))


class IncompleteCheckpoint(ValueError):
    """A manifest without the files that it vouches for."""


def set_name(path: Any) -> str:
    """The name of the set, given it, its model's file, its manifest or its state."""
    name = str(os.fspath(path))
    for suffix in (*sorted(SUFFIXES.values(), key=len, reverse=True), ".json"):
        if name.endswith(suffix):
            return name[: -len(suffix)]
    return name


def of_rank(path: Any, rank: int) -> str:
    """The name of the set that one of several processes writes beside that of the first: in a folder of its own."""
    folder, name = os.path.split(set_name(path))
    return os.path.join(folder, f"rank{rank}", name) if rank > 0 else set_name(path)


def write(path: Any, writers: Mapping[str, Writer], info: Mapping[str, Any], make_folder: bool = False) -> Checkpoint:
    """Write a set. It takes the place of one of the same name only when it is complete.

    :param path: see :func:`set_name`
    :param writers: write each file, by the keys of :data:`SUFFIXES`
    :param info: more for the manifest, as JSON has it
    :param make_folder: where there is none
    :raises OSError: a file cannot be written; nothing has changed then
    """
    name = set_name(path)
    if make_folder:
        os.makedirs(os.path.dirname(os.path.abspath(name)), exist_ok=True)
    files: Dict[str, Any] = {}
    written: List[str] = []
    try:
        for key, writer in writers.items():
            new = _new(name, key)
            with replacing(new) as temporary, open(temporary, "wb") as file:
                writer(file)
            written.append(new)
            files[key] = {"name": os.path.basename(name) + SUFFIXES[key], **_fingerprint(new)}
        _write_manifest(name, {"format": FORMAT, **info, "files": files})  # the commit point
    except BaseException:
        for new in written:
            if os.path.isfile(new):
                os.remove(new)
        raise
    return settle(Checkpoint(name, {key: _new(name, key) for key in writers}, info))


def settle(found: Checkpoint) -> Checkpoint:
    """Give the files of a set their names, which a writer that was killed after the manifest has not done.

    For the process that goes on writing beside the set: whoever only reads finds the files under either name.
    """
    for key, path in found.files.items():
        if path != found.name + SUFFIXES[key]:
            os.replace(path, found.name + SUFFIXES[key])
    for key in set(SUFFIXES) - set(found.files):  # of an older set
        _remove(found.name + SUFFIXES[key])
    return Checkpoint(found.name, {key: found.name + SUFFIXES[key] for key in found.files}, found.info)


def read(path: Any) -> Optional[Checkpoint]:
    """A set, whose files are those that were written; None: there is no manifest.

    :param path: see :func:`set_name`
    :raises IncompleteCheckpoint: a file is missing or another one, or the manifest cannot be read
    """
    name = set_name(path)
    manifest = Path(f"{name}.json")
    if not manifest.is_file():
        return None
    try:
        info = json.loads(manifest.read_text())
        files, version = info.pop("files"), info["format"]
        if version > FORMAT:
            raise IncompleteCheckpoint(f"{manifest} is of a newer sb3_isaac (format {version}): update the package.")
        found = {key: _find(name, key, files[key]) for key in files if key in SUFFIXES}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        if isinstance(error, IncompleteCheckpoint):
            raise
        raise IncompleteCheckpoint(f"{manifest} is no manifest of a checkpoint ({error}).") from error
    return Checkpoint(name, found, info)


def all_in(folder: Any) -> List[Tuple[str, int]]:
    """Names and timesteps of the sets in a folder, the newest first. Their files have not been looked at."""
    found = []
    for manifest in Path(folder).glob("*.json"):
        try:
            info = json.loads(manifest.read_text())
            found.append((int(info["num_timesteps"]), manifest.stat().st_mtime, os.fspath(manifest)[: -len(".json")]))
        except (ValueError, KeyError, TypeError, OSError, OverflowError, RecursionError):
            continue
    return [(name, steps) for steps, _, name in sorted(found, reverse=True)]


def newest(folder: Any, warn: Callable[[str], Any] = print) -> Optional[Checkpoint]:
    """The newest complete set in a folder; None: there is none.

    :param warn: is told of those that do not count
    """
    for name, _ in all_in(folder):
        try:
            return read(name)
        except IncompleteCheckpoint as error:
            warn(f"{error} The checkpoint before it is looked for.")
    return None


def note(path: Any, **info: Any) -> None:
    """Add to the manifest of a set."""
    name = set_name(path)
    manifest = json.loads(Path(f"{name}.json").read_text())
    _write_manifest(name, {**manifest, **info})


def prune(folder: Any, keep: int, prefix: str = "") -> List[str]:
    """Remove all sets of a folder but the newest ``keep``, if the newest is complete. Returns their names.

    :param prefix: what names must begin with
    """
    old = [name for name, _ in all_in(folder) if os.path.basename(name).startswith(prefix)][keep:]
    for name in old:
        _remove(f"{name}.json")  # first: what is left over is no checkpoint
        for key, suffix in SUFFIXES.items():
            _remove(name + suffix)
            _remove(_new(name, key))
    return old


def _new(name: str, key: str) -> str:
    """Where a file waits for the manifest."""
    return f"{name}.new{SUFFIXES[key]}"


def _find(name: str, key: str, wanted: Mapping[str, Any]) -> str:
    """A file of a set, which a killed process may have left under its waiting name.

    :raises IncompleteCheckpoint: it is not there, or not as it was
    """
    candidates = (name + SUFFIXES[key], _new(name, key))
    for path in (*candidates, candidates[0]):  # its writer may just be giving it its name
        same_size = os.path.isfile(path) and os.path.getsize(path) == wanted["size"]
        if same_size and _fingerprint(path)["sha256"] == wanted["sha256"]:
            return path
    raise IncompleteCheckpoint(f"The checkpoint {name} is not complete: {candidates[0]} is missing, cut or another file.")


def _write_manifest(name: str, manifest: Mapping[str, Any]) -> None:
    with replacing(f"{name}.json") as temporary, open(temporary, "w") as file:
        json.dump(manifest, file, indent=1)


def _fingerprint(path: str) -> Dict[str, Any]:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in _blocks(file):
            digest.update(block)
    return {"size": os.path.getsize(path), "sha256": digest.hexdigest()}


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    return iter(lambda: file.read(1 << 20), b"")


def _remove(path: str) -> None:
    if os.path.isfile(path):
        os.remove(path)
