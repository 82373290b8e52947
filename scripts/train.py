"""Train an agent: the same as sb3-isaac train, with the flags of python -m rl_zoo3.train."""

from __future__ import annotations

import sys

from sb3_isaac.cli import main

sys.exit(main(["train", *sys.argv[1:]]))
