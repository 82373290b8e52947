"""What ``sb3-isaac check`` does with torch: devices, one step of each simulator, their physics against recorded PhysX."""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import platform
import subprocess
import sys
import time
from typing import Dict, Optional

import numpy as np
import torch as th

from sb3_isaac import _native, backends
from sb3_isaac.backends import physx_reference, probe
from sb3_isaac.envs.ids import SIMULATORS
from sb3_isaac.files.atomic import write


def overview() -> None:
    """Print devices, simulators with the time of one step, and what "auto" means here."""
    devices = ["cpu"]
    print(f"Devices\n  cpu       {os.cpu_count()} cores, torch uses {th.get_num_threads()} threads")
    for i in range(th.cuda.device_count() if th.cuda.is_available() else 0):
        devices.append(f"cuda:{i}")
        properties = th.cuda.get_device_properties(i)
        memory = properties.total_memory / 2**30
        capability = f"compute capability {properties.major}.{properties.minor}"
        print(f"  cuda:{i}    {properties.name}, {capability}, {memory:.0f} GiB")
    print(f"  compile=True on cpu: {c_compiler()}")
    print(f"Simulators (one step of {probe.PROBE_ENVS} environments)")
    for device in devices:
        _print_report("torch", device, probe.measure("torch", device))
    problem = probe.import_problem()
    if problem is not None:
        _print_report("isaacgym", "", probe.Report(False, problem))
    else:
        for device in devices:
            # Isaac Gym may crash, and allows one simulator per process: it is tried in a child process.
            _print_report("isaacgym", device, probe.try_in_child("isaacgym", device))
    print("Simulators of others, whose tasks are --env NAME:TASK")
    for name in SIMULATORS:
        try:
            print(f"  {name:10s}{importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"  {name:10s}not installed: docs/howto/{name}.md")
    default = backends.resolve_device()
    name, why = probe.choose(default)
    print(f"backend='auto' is '{name}' on {default}: {why}")


def c_compiler() -> str:
    """Which one ``compile=True`` has on a CPU, or why it has none."""
    try:
        _, version = _native.compiler()
    except _native.NoNative as error:
        return f"no, {error}"
    return f"in C, by {version.splitlines()[0] if version else 'a compiler of unknown version'}"


def _print_report(backend: str, device: str, report: probe.Report) -> None:
    print(f"  {backend:10s}{device:8s}" + (f"{report.ms_per_step:.3f} ms" if report.ok else f"no: {report.reason}"))


def compare(backend: str, device: str, record: Optional[str], versions: Dict[str, str]) -> int:
    """Drive a simulator for 200 scripted steps and compare it with recorded PhysX; print "pass" or the first difference.

    :param backend: "torch", "isaacgym" or "auto"
    :param device: as for :func:`sb3_isaac.backends.make`
    :param record: file to write (.npz): forces, recorded and reached states, versions
    :param versions: of packages, for that
    """
    resolved = backends.resolve_device(device)
    if backend == "auto":
        backend, why = probe.choose(resolved)
        print(f"backend='auto' is '{backend}': {why}")
    if backend == "isaacgym" and os.environ.get(probe.CHILD_VARIABLE) is None and probe.import_problem() is None:
        return _compare_in_child(str(resolved), record)
    recorded = physx_reference.Reference.load()
    n_steps, n_envs = recorded.force.shape
    print(f"{backend} on {resolved}: {n_steps} steps of {n_envs} cartpoles against PhysX 5.3.1 ...", flush=True)
    env = backends.make(backend, n_envs, resolved, seed=0)
    start = time.perf_counter()
    reached = physx_reference.replay(env, recorded)
    seconds = time.perf_counter() - start
    env.close()
    error = np.abs(reached - recorded.next_state)
    difference = physx_reference.first_difference(reached, recorded)
    if record is not None:
        name = th.cuda.get_device_name(resolved) if resolved.type == "cuda" else f"cpu ({platform.machine()})"
        about = {**versions, "backend": backend, "device": name, "difference": str(difference)}
        file = io.BytesIO()
        np.savez_compressed(file, reached=reached, about=json.dumps(about), **recorded._asdict())
        write(record, file.getbuffer())
        print(f"written to {record}")
    single, rolling = error[:, ~recorded.rolls].max(), error[:, recorded.rolls].max()
    print(
        f"  largest error of one step {single:.1e} (allowed {physx_reference.ONE_STEP_TOLERANCE:.0e}), rolling by itself "
        f"{rolling:.1e} (allowed {physx_reference.ROLLING_TOLERANCE:.0e}), {seconds:.1f} s"
    )
    print(difference or "pass")
    return 0 if difference is None else 1


def _compare_in_child(device: str, record: Optional[str]) -> int:
    """The same in a child process, whose crash can be explained."""
    command = [sys.executable, "-m", "sb3_isaac.cli", "check", "--backend", "isaacgym", "--device", device]
    command += [] if record is None else ["--record", record]
    child = subprocess.run(command, env=probe.child_environment(), check=False)
    if child.returncode < 0:
        print(f"sb3-isaac check: {probe.explain_crash(child.returncode, '', device)}", file=sys.stderr)
        return 1
    return child.returncode
