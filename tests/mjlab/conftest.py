"""``make test-mjlab`` makes an environment with mjlab in it. Elsewhere there is nothing here to collect."""

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("mjlab") else ["test_*.py"]
