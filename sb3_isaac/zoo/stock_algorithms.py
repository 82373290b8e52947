"""SB3's own algorithms on the environments of this package: they save as ours do."""

from __future__ import annotations

import functools
from typing import Any, Dict, Iterable, Optional, Type

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback

from sb3_isaac.envs.model_files import save_whole
from sb3_isaac.files.full_disk import outlive_a_full_disk


class _SavesWhole(BaseAlgorithm):
    """Mixin: files are replaced only by complete new ones, and checkpoints that cannot be written do not end the training."""

    def save(self, path: Any, exclude: Optional[Iterable[str]] = None, include: Optional[Iterable[str]] = None) -> None:
        save_whole(lambda file: super(_SavesWhole, self).save(file, exclude, include), path, ".zip")

    def _init_callback(self, callback: Any, progress_bar: bool = False) -> BaseCallback:
        return outlive_a_full_disk(self, super()._init_callback(callback, progress_bar))


@functools.lru_cache(maxsize=None)
def saving_whole(algorithm: Type[BaseAlgorithm]) -> Type[BaseAlgorithm]:
    """A subclass of an algorithm of SB3 that trains as it does, and saves as said above."""
    attributes: Dict[str, Any] = {"__module__": algorithm.__module__}
    save_buffer = getattr(algorithm, "save_replay_buffer", None)
    if save_buffer is not None:
        attributes["save_replay_buffer"] = lambda model, path: save_whole(functools.partial(save_buffer, model), path, ".pkl")
    return type(algorithm.__name__, (_SavesWhole, algorithm), attributes)
