"""``make test-isaaclab`` makes an environment with Isaac Lab in it. Elsewhere there is nothing here to collect."""

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("isaaclab") else ["test_*.py"]
