"""The import order: torch must come later. Imported first by every module of the package, as in the real one."""

import sys

from isaacgym import failures

# Quoted in countless reports, for instance https://github.com/Toni-SM/skrl docs/source/conf.py.
if "torch" in sys.modules:
    raise ImportError("PyTorch was imported before isaacgym modules.  Please import torch after isaacgym modules.")
failures.at_import()
