"""A model's file, and beside it the statistics of VecNormalize, without which the model acts badly."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import Any, Callable, Optional

from stable_baselines3.common.vec_env import unwrap_vec_normalize

from sb3_isaac.device import ranks
from sb3_isaac.envs.last_finite import LOSS, check_model
from sb3_isaac.files.atomic import replacing, replacing_all, write

NOT_SAVED = "it is not saved. To keep it for a look at what went wrong: torch.save(model.policy.state_dict(), path)."


def statistics_path(path: Any) -> Path:
    """Where the statistics of VecNormalize are that belong to the model saved at ``path``, with or without its ".zip"."""
    model = Path(path)
    name = model.name[:-4] if model.name.endswith(".zip") else model.name
    return model.with_name(f"{name}_vecnormalize.pkl")


def save_model(model: Any, save: Callable[[Any], None], path: Any) -> None:
    """Save a model, and beside it the statistics of the VecNormalize that it was trained with, if there is one.

    :param model: an SB3 model
    :param save: writes the model to a path or an open file
    :param path: as for SB3's ``save``: a path, to which ".zip" is added if it has no suffix, or an open file, which gets no
        statistics. Of several processes that train one model (torchrun) only the first writes to a path
    :raises NotFiniteError: the model is not finite; files that are there stay as they are
    """
    normalize = None if model.env is None else unwrap_vec_normalize(model.env)
    if model.env is not None:
        model.observations_are_normalized = normalize is not None and normalize.norm_obs
    check_model(model, LOSS if getattr(model, "_last_finite", None) is not None else NOT_SAVED)
    name = _file_name(path, ".zip")
    if name is None:
        save(path)
        return
    if ranks.rank() > 0:
        return
    # In memory first: torch hides what a disk says, and many small writes take longer.
    file = io.BytesIO()
    save(file)
    with replacing_all([name] if normalize is None else [name, statistics_path(name)]) as temporaries:
        write(temporaries[0], file.getbuffer())
        if normalize is not None:
            normalize.save(temporaries[1])


def save_whole(save: Callable[[Any], None], path: Any, suffix: str) -> None:
    """Have SB3 save something so that it takes the place of an older file only when it is complete.

    :param save: writes to a path or an open file
    :param path: as SB3 takes it: a path, to which only the first of several processes (torchrun) writes, or an open file,
        which is written as it is
    :param suffix: what SB3 adds to a path without one
    """
    name = _file_name(path, suffix)
    if name is None:
        save(path)
        return
    if ranks.rank() > 0:
        return
    with replacing(name) as temporary:
        save(temporary)


def _file_name(path: Any, suffix: str) -> Optional[str]:
    """What SB3 calls the file; None for an open file, and for a folder, where SB3 warns and chooses another name."""
    if not isinstance(path, (str, os.PathLike)):
        return None
    name = os.fspath(path)
    name = name if os.path.splitext(name)[1] else name + suffix
    return None if os.path.isdir(name) else name


def warn_without_statistics(model: Any, env: Any, path: Optional[Any] = None, stacklevel: int = 3) -> None:
    """Warn if a model that was trained on normalised observations is about to act on others.

    :param env: a VecEnv
    :param path: of the model's file, if it is known
    """
    if not getattr(model, "observations_are_normalized", False) or unwrap_vec_normalize(env) is not None:
        return
    name = "the model's file" if path is None else repr(os.fspath(path))
    warnings.warn(
        "The model was trained on observations normalised by VecNormalize, and this environment does not normalise: it will "
        f"act badly. sb3_isaac.load({name}, env) wraps the environment in the statistics that were saved with the model.",
        stacklevel=stacklevel,
    )
