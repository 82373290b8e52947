"""SIGTERM and SIGHUP, which clusters and closed terminals send, end a training as Ctrl-C does: with everything saved."""

from __future__ import annotations

import os
import signal
import threading
from typing import Any, Callable, Dict, Optional

HANDLED = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGINT") if hasattr(signal, name)]


class Signals:
    """Handles signals from :meth:`install` to :meth:`restore`.

    The first one lets the rollout and its update end, then a checkpoint is written and training ends as with Ctrl-C. A second
    one waits for that, the third ends the process at once.
    """

    def __init__(self) -> None:
        self.received: Optional[int] = None
        """The first signal"""
        self._count = 0
        self._before: Dict[int, Any] = {}
        self._model: Any = None
        self._write: Optional[Callable[[], Any]] = None

    def install(self, model: Any, write: Callable[[], Any]) -> None:
        """Handle signals from now on.

        :param model: which trains
        :param write: writes a checkpoint of it
        """
        self._model, self._write = model, write
        if hasattr(model, "save_checkpoint"):  # also where another rank gets the signal
            model._checkpoints.at_end = write
        if threading.current_thread() is threading.main_thread():  # Python allows no other
            heard = [number for number in HANDLED if signal.getsignal(number) != signal.SIG_IGN]  # nohup, jobs of a shell
            self._before = {number: signal.signal(number, self._handle) for number in heard}

    def restore(self) -> None:
        """Leave signals to whom they were left before."""
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before = {}

    @property
    def status(self) -> Optional[int]:
        """The exit status that tells of the signal; None: none, or it was Ctrl-C, after which rl_zoo3 exits with 0."""
        return None if self.received in (None, signal.SIGINT) else 128 + int(self.received or 0)

    def _handle(self, number: int, frame: Any) -> None:
        self._count += 1
        name = signal.Signals(number).name
        if self._count >= 3:
            _say(f"{name}: killed while saving")
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if self._count == 2:
            _say(f"{name}: still saving; one more kills")
            return
        self.received = number
        if not hasattr(self._model, "save_checkpoint"):  # of others: as Ctrl-C
            _say(f"{name}: training ends")
            raise KeyboardInterrupt
        _say(f"{name}: training ends after this rollout and its update, with a checkpoint")
        if self._write is not None:
            self._model._checkpoints.end(self._write)


def _say(text: str) -> None:
    os.write(2, f"{text}\n".encode())  # print may be under way already
