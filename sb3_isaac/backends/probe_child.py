"""What :func:`sb3_isaac.backends.probe.try_in_child` runs: python -m sb3_isaac.backends.probe_child BACKEND DEVICE"""

from __future__ import annotations

import json
import sys
import time
from typing import List

import torch as th

from sb3_isaac import backends
from sb3_isaac.backends import probe


def measure(backend: str, device: str, n_envs: int = probe.PROBE_ENVS, steps: int = probe.PROBE_STEPS) -> probe.Report:
    """Make N environments, step them and time it. What goes wrong is in the report."""
    try:
        env = backends.make(backend, n_envs, device, seed=0)
        env.reset()
        actions = th.zeros(n_envs, env.action_dim, device=env.device)
        obs = env.step(actions).obs  # the first step makes Isaac Gym's simulator
        start = time.perf_counter()
        for _ in range(steps):
            obs = env.step(actions).obs
        finite = bool(th.isfinite(obs).all())  # also waits for the device
        seconds = time.perf_counter() - start
        env.close()
    except Exception as error:
        return probe.Report(False, str(error).replace(probe.CANNOT, ""))
    return probe.Report(finite, "" if finite else "its observations are not finite.", 1e3 * seconds / steps)


def main(argv: List[str]) -> int:
    report = measure(argv[0], argv[1])
    print("\n" + probe.REPORT + json.dumps(report._asdict()), flush=True)
    return 0 if report.ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
