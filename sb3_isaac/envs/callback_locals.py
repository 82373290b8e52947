"""What callbacks find in ``self.locals`` where training runs in tensors."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback, ProgressBarCallback

from sb3_isaac.device.eligibility import is_patched, package_of
from sb3_isaac.device.host import HostView, LazyLocals, Views
from sb3_isaac.envs.infos import Infos

KNOWN_PACKAGES = ("stable_baselines3", "sb3_isaac")
KNOWN_CALLBACKS = [("rl_zoo3.callbacks", "SaveVecNormalizeCallback")]


class RootCallback(CallbackList):
    """The user's callback, and a ``locals`` for it and all below it that copies from the device when it is looked at."""

    def on_training_start(self, locals_: Dict[str, Any], globals_: Dict[str, Any]) -> None:
        super().on_training_start(LazyLocals(locals_), globals_)


class StepLocals:
    """The device's part of a step's ``locals``, under SB3's names."""

    def __init__(self) -> None:
        self._views = Views()
        self._infos: Optional[Infos] = None

    def next_step(self) -> None:
        """The tensors of the last step are overwritten from now on."""
        if self._infos is not None:
            self._infos.expire()
        self._views.ended = True
        self._views = Views()

    def infos(self, infos: Infos, returns: Any, lengths: Any) -> Infos:
        """SB3's infos, which are not to be read for the first time when the step is over.

        :param returns: of the step's episodes (N,); the environment's own change when a callback steps or resets it
        :param lengths: likewise
        """
        infos.take(returns, lengths)
        self._infos = infos
        return infos

    def array(self, name: str, tensor: Any) -> HostView:
        """What SB3 has as a numpy array."""
        return HostView(name, tensor, self._views)

    def tensor(self, name: str, tensor: Any) -> HostView:
        """What SB3 has as a tensor."""
        return HostView(name, tensor, self._views, as_tensor=True)

    def changes(self, allowed: str) -> List[HostView]:
        """Views that callbacks have written into. Of what is learned from only one can be changed in this way.

        :param allowed: its name
        :raises RuntimeError: if another one was changed
        """
        if self._infos is not None and self._infos.changed():
            raise RuntimeError(
                "A callback has changed TimeLimit.truncated in locals['infos'], which does not reach what is learned from "
                "here: use a VecEnvWrapper, or stable_baselines3's own algorithm."
            )
        changed = [view for view in self._views.looked_at if view.changed()]
        for view in changed:
            if view.name not in (allowed, "clipped_actions"):  # the environment has taken its step: as in SB3, nothing happens
                raise RuntimeError(
                    f"A callback has changed locals[{view.name!r}] in place. Here only {allowed} reach what is learned from: "
                    "use a VecEnvWrapper, or stable_baselines3's own algorithm."
                )
        return [view for view in changed if view.name == allowed]


def is_known(callback: BaseCallback) -> bool:
    """Whether a callback, with all below it, is one of SB3's, rl_zoo3's or ours, which leave the model as it is."""
    kind = type(callback)
    known = package_of(kind) in KNOWN_PACKAGES or (kind.__module__, kind.__name__) in KNOWN_CALLBACKS
    if not known or is_patched(callback):
        return False
    if isinstance(callback, ConvertCallback):  # made of a function, or of no callback at all
        return callback.callback is None
    below = [value for name, value in vars(callback).items() if isinstance(value, BaseCallback) and name != "parent"]
    return all(map(is_known, [*below, *getattr(callback, "callbacks", [])]))


def looks_at_no_step(callback: BaseCallback) -> bool:
    """Whether all that a callback, with all below it, does at a step is to count it: there is none, or a progress bar."""
    if is_patched(callback):
        return False
    if type(callback) in (CallbackList, RootCallback):
        return all(map(looks_at_no_step, callback.callbacks))  # type: ignore[attr-defined]
    return type(callback) is ProgressBarCallback or type(callback) is ConvertCallback and callback.callback is None


def root_callback(callback: BaseCallback) -> BaseCallback:
    """:class:`RootCallback` over a callback that is initialised already."""
    root = RootCallback([callback])
    root.model = callback.model
    return root
