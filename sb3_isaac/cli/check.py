"""``sb3-isaac check``: what is installed, which simulators run here and why not, and whether their physics is right."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
from typing import Dict, List

import sb3_isaac
from sb3_isaac import _isaacgym_first

PACKAGES = ("torch", "stable-baselines3", "rl_zoo3", "gymnasium", "numpy", "optuna", "isaacgym")
BACKENDS = ("torch", "isaacgym", "auto")


def check(argv: List[str]) -> int:
    """Run the check. Returns 0 if all went well, 1 if the physics differs or Isaac Gym crashed. Other errors are raised."""
    parser = argparse.ArgumentParser(
        prog="sb3-isaac check",
        description="Show versions, devices and simulators; with --backend, compare one simulator with recorded PhysX.",
    )
    parser.add_argument("--backend", choices=BACKENDS, help="drive this simulator for 200 steps")
    parser.add_argument("--device", default="auto", help="torch device (default: cuda where it works)")
    parser.add_argument("--record", metavar="OUT.npz", help="also write what the simulator did to this file")
    args = parser.parse_args(argv)
    if args.backend is None:
        if args.record is not None:
            parser.error("--record needs --backend torch, isaacgym or auto")
        found = versions()
        print(f"sb3_isaac {found['sb3_isaac']} on Python {found['python']}, {platform.platform()}")
        # At once: torch takes seconds, or cannot be imported
        print("  " + ", ".join(f"{package} {found[package]}" for package in PACKAGES), flush=True)
    from sb3_isaac.cli import check_simulators

    if args.backend is None:
        check_simulators.overview()
        return 0
    return check_simulators.compare(args.backend, args.device, args.record, versions())


def versions() -> Dict[str, str]:
    """Installed versions by package name."""
    found = {"sb3_isaac": sb3_isaac.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    if found["isaacgym"] == "not installed" and _isaacgym_first.installed:
        found["isaacgym"] = "of unknown version"  # on PYTHONPATH, not installed by pip
    return found
