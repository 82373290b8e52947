"""Files that cannot be read say so in one sentence, which names them: empty, cut off, damaged, of another kind."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import pickletools
import struct
import zipfile
import zlib
from typing import Any, Dict, Iterator, Optional

import yaml

from sb3_isaac.files.safe_zip import TightlyPackedError, open_zip

LOW_LEVEL = (
    EOFError,
    LookupError,
    AttributeError,
    UnicodeError,
    pickle.UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
    yaml.YAMLError,
)
"""What reading a damaged file raises, which tells a user nothing."""
ALGOS = ("ppo", "dqn", "ddpg")
AS_IT_IS = (OSError, MemoryError, NotImplementedError)
"""What is not the file's fault, or says itself what is wrong."""


@contextlib.contextmanager
def naming(path: Any, what: str, every_error: bool = False) -> Iterator[None]:
    """Within this block a file is read: what goes wrong becomes a ValueError that names it.

    :param path: of the file; open files have no name to give, and are read as they are
    :param what: what it should be: "a model"
    :param every_error: also what may be a sentence already, as in a ValueError; for pickles, where a damaged byte raises
        anything
    :raises ValueError: in the place of the error
    """
    try:
        yield
    except Exception as error:
        name = str(os.fspath(path)) if isinstance(path, (str, os.PathLike)) else ""
        low_level = isinstance(error, LOW_LEVEL)
        said = name in str(error) and not low_level
        if not name or said or isinstance(error, AS_IT_IS) or not (every_error or low_level):
            raise
        raise unreadable(name, what, error) from error


def unreadable(path: Any, what: str, error: Any = "") -> ValueError:
    """The sentence about a file that is not what it should be."""
    if os.path.isfile(path) and os.path.getsize(path) == 0:
        return ValueError(f"{path} is empty, and should be {what}: it was cut off when it was written, use another one.")
    text = " ".join(str(error).split()) or "it ends too early"
    kind = "" if isinstance(error, str) else f"{type(error).__name__}: "
    return ValueError(
        f"{path} cannot be read as {what} ({kind}{text[:200]}): it is damaged or of another kind, use another one."
    )


def read_settings(path: str) -> Dict[str, Any]:
    """What a model's file says about itself, without unpickling anything. The whole file is held against its checksums.

    :raises ValueError: it is no model's file, or damaged
    """
    what = "a model that SB3's save has written"
    with naming(path, what):
        try:
            with open(path, "rb") as file, open_zip(file, path) as archive:
                broken = archive.testzip()
                settings: Any = json.loads(archive.read("data"))
        except TightlyPackedError:
            raise
        except (KeyError, ValueError, RuntimeError) as error:  # no part of this name, no JSON, an encrypted part
            said = path in str(error)  # as open_zip has, of what went wrong before
            raise unreadable(path, what, error.__cause__ if said else error) from error
        if broken is not None or not isinstance(settings, dict):
            raise unreadable(path, what, f"its part {broken or 'data'} is damaged")
    return settings


def check_pickle(path: str, what: str) -> None:
    """Walk through a pickle without running anything of it.

    :raises ValueError: it is no pickle, or it is cut off
    """
    with open(path, "rb") as file, naming(path, what, every_error=True):
        for _ in pickletools.genops(file):
            pass


def check_mapping(path: str) -> None:
    """Whether a YAML file that a run has written holds names and values. Tags of Python are not looked at.

    :raises ValueError: it does not
    """
    what = "the settings of a run"
    with open(path, "rb") as file, naming(path, what):
        root = yaml.compose(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        if not isinstance(root, (yaml.MappingNode, yaml.SequenceNode)) or not root.value:
            raise unreadable(path, what, "it holds no names and values")


def algorithm_of(settings: Dict[str, Any]) -> Optional[str]:
    """Which algorithm a model is of: "ppo", "dqn" or "ddpg"; None: another.

    :param settings: what its file says, see :func:`read_settings`
    """
    # Others have these keys too: ask only who loads one of the three
    if "clip_range" in settings and "n_epochs" in settings:
        return "ppo"
    if "exploration_rate" in settings:
        return "dqn"
    if "target_noise_clip" in settings and settings["target_noise_clip"] == 0.0:
        return "ddpg"
    return None


def check_model(path: Any, algo: str) -> None:
    """Look at a model's file before SB3 loads it. Open files, and what is not there, are left to SB3.

    :param path: as for SB3's ``load``: with or without ".zip"
    :param algo: rl_zoo3's name of the algorithm that is to load it
    :raises ValueError: it is damaged, of another kind, or a model of another algorithm
    """
    if not isinstance(path, (str, os.PathLike)):
        return
    name = next((name for name in (str(path), f"{path}.zip") if os.path.isfile(name)), None)
    if name is None:
        return
    found = algorithm_of(read_settings(name))
    if algo in ALGOS and found not in (None, algo):
        raise ValueError(f"{name} is a model of {found}, not of {algo}: load it with that, or another file.")
