"""Search hyperparameters: the same as sb3-isaac optimize, with the flags of python -m rl_zoo3.train."""

from __future__ import annotations

import sys

from sb3_isaac.cli import main

sys.exit(main(["optimize", *sys.argv[1:]]))
