"""As isaaclab/app/sim_launcher.py, of a task that needs no Isaac Sim."""

import contextlib


@contextlib.contextmanager
def launch_simulation(cfg, launcher_args=None):
    assert launcher_args["headless"] and launcher_args["device"] == cfg.sim.device
    yield cfg.sim
