"""Watch a trained agent: the same as sb3-isaac enjoy, with the flags of python -m rl_zoo3.enjoy."""

from __future__ import annotations

import sys

from sb3_isaac.cli import main

sys.exit(main(["enjoy", *sys.argv[1:]]))
