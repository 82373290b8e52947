"""What is used of Warp."""

from types import SimpleNamespace

LOG_INFO, LOG_WARNING = 20, 30
config = SimpleNamespace(log_level=LOG_INFO, kernel_cache_dir=None)


def init():
    print("Warp initialized")
