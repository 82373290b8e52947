"""A callback for runs of the command line, which sends their own process a signal."""

from __future__ import annotations

import os
import signal

from stable_baselines3.common.callbacks import BaseCallback

VARIABLE = "SB3_TEST_SIGNAL"
"""Environment variable: the name of the signal and after how many steps it comes, such as SIGTERM:37. None: no signal"""


class SignalOnce(BaseCallback):
    def _on_step(self) -> bool:
        name, _, step = os.environ.get(VARIABLE, "").partition(":")
        if name and self.n_calls == int(step):
            os.kill(os.getpid(), getattr(signal, name))
        return True
