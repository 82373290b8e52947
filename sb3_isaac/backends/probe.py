"""Whether Isaac Gym can run here, and if not, why: in words that say what to do.

Isaac Gym fails in well-known ways, some of which end the process. Nothing in this file imports it: what must be tried out
is tried in a child process.
"""

from __future__ import annotations

import functools
import json
import os
import platform
import re
import signal
import subprocess
import sys
import sysconfig
import time
from typing import Dict, NamedTuple, Optional, Tuple

import torch as th

from sb3_isaac import _isaacgym_first

SIM_ENVS_VARIABLE = "SB3_ISAAC_SIM_ENVS"
"""Environment variable: Isaac Gym's simulator is made for at least so many environments."""
CHILD_VARIABLE = "SB3_ISAAC_CHILD"
"""Environment variable: this process was started to see whether Isaac Gym crashes."""
NEWEST_CAPABILITY = (8, 9)
"""Isaac Gym Preview 4 was built with CUDA 11 for GPUs up to the RTX 30 series and runs on the RTX 40 series (8.9). On newer
ones (H100: 9.0, RTX 50: 12.0) it crashes: https://github.com/isaac-sim/IsaacGymEnvs/issues/220."""
PROBE_ENVS, PROBE_STEPS = 64, 20
PROBE_SECONDS = 300.0
"""Isaac Gym compiles an extension when it is used for the first time."""
REPORT = "sb3-isaac-probe:"

CANNOT = "backend='isaacgym' cannot be used: "

TOO_LATE = (
    "torch was imported before sb3_isaac, and Isaac Gym must be imported before torch: use 'sb3-isaac train', 'sb3-isaac "
    "enjoy' or 'sb3-isaac optimize' in place of 'python -m rl_zoo3...', or put 'import sb3_isaac' above 'import torch'."
)
NOT_INSTALLED = (
    "Isaac Gym is not installed: download Preview 4 from https://developer.nvidia.com/isaac-gym (Python 3.8) and run 'pip "
    "install -e isaacgym/python'."
)

# (what the error looks like, what it means and what to do)
_KNOWN: Tuple[Tuple[str, str], ...] = (
    (r"imported before isaacgym", TOO_LATE),
    (
        r"libpython3\.\d+m?\.so",
        "Isaac Gym does not find Python's shared library: run 'export LD_LIBRARY_PATH={libdir}:$LD_LIBRARY_PATH' "
        "(conda, pyenv) or 'sudo apt install libpython3.8', and start again.",
    ),
    (r"No gym module found for the active version of Python", "Isaac Gym runs on Python 3.6 to 3.8, and this is {python}."),
    (
        r"has no attribute 'float'|np\.float",
        "isaacgym.torch_utils needs an older numpy: run 'pip install \"numpy<1.24\"'.",
    ),
    (
        r"[Nn]inja is required|building extension 'gymtorch'|No such file or directory: 'ninja'|gymtorch\.so|crypt\.h",
        "gymtorch, the extension that Isaac Gym compiles at its first use, could not be built: run 'pip install ninja', "
        "install a C++ compiler ('sudo apt install build-essential') and delete ~/.cache/torch_extensions.",
    ),
    (
        r"lavapipe|[Vv]ulkan|VK_|DRI3",
        "Isaac Gym's viewer found no usable Vulkan driver: run headless (leave SB3_ISAAC_HEADLESS unset), or set "
        "VK_ICD_FILENAMES=/usr/share/vulkan/icd.d/nvidia_icd.json.",
    ),
    (
        r"no kernel image|invalid device function|unsupported toolchain|gpu-architecture",
        "this GPU is newer than Isaac Gym Preview 4, whose CUDA build stops at the RTX 40 series: use backend='torch'.",
    ),
    (
        r"Failed to acquire interface|libcuda\.so",
        "Isaac Gym needs NVIDIA's driver (libcuda.so.1), also for its CPU pipeline, and does not find it: install the driver, "
        "or use backend='torch'.",
    ),
    (
        r"GLIBCXX_",
        "the C++ library of this Python environment is older than the one Isaac Gym needs: run 'conda install -c conda-forge "
        "libstdcxx-ng'.",
    ),
    (
        r"libmem_filesys\.so|libcarb|libPhysX",
        "Isaac Gym does not find its own libraries: add isaacgym/python/isaacgym/_bindings/linux-x86_64 to LD_LIBRARY_PATH.",
    ),
    (r"Foundation object exists", "PhysX allows one simulator per process, and this process has one that is not ours."),
)


class Report(NamedTuple):
    """What came of trying a backend."""

    ok: bool
    reason: str
    """Why not; empty where ``ok``."""
    ms_per_step: float = float("nan")
    """Milliseconds of one step of :data:`PROBE_ENVS` environments."""


def known_failure(error: str) -> Optional[str]:
    """One sentence on a known failure of Isaac Gym: what it means and what to do. None if it is not a known one.

    :param error: an error message, or everything that a process printed before it failed
    """
    for pattern, explanation in _KNOWN:
        if re.search(pattern, error):
            libdir = sysconfig.get_config_var("LIBDIR") or os.path.join(sys.prefix, "lib")
            return explanation.format(libdir=libdir, python=f"Python {platform.python_version()}")
    return None


def explain(error: str) -> str:
    """As :func:`known_failure`; a failure that is not known is quoted."""
    last_line = (error.strip().splitlines() or ["no message"])[-1].strip()
    return known_failure(error) or f"Isaac Gym failed for a reason that sb3_isaac does not know: {last_line}"


def import_problem() -> Optional[str]:
    """Why Isaac Gym cannot be used in this process; None where it was imported in time."""
    if not _isaacgym_first.installed and _isaacgym_first.error is None:
        return NOT_INSTALLED
    if _isaacgym_first.skipped:
        return f"Isaac Gym is left alone because the environment variable {_isaacgym_first.SKIP_VARIABLE} is set."
    if _isaacgym_first.too_late:
        return TOO_LATE
    if _isaacgym_first.error is not None:
        return explain(str(_isaacgym_first.error))
    return None


def why_not(device: th.device) -> Optional[str]:
    """Why Isaac Gym cannot run on ``device`` in this process, or None. Starts a child process only on a very new GPU."""
    problem = import_problem()
    if problem is None and device.type not in ("cuda", "cpu"):
        problem = f"Isaac Gym runs on CUDA and on the CPU, not on {device.type}."
    in_child = os.environ.get(CHILD_VARIABLE) is not None  # this process is the one that may crash
    if problem is None and device.type == "cuda" and not in_child:
        if th.cuda.get_device_capability(device) > NEWEST_CAPABILITY:
            problem = try_in_child("isaacgym", str(device)).reason or None
    return problem


def choose(device: th.device) -> Tuple[str, str]:
    """What backend="auto" means on ``device``: the backend's name and why.

    Isaac Gym where it can be used and the device is CUDA (its CPU pipeline is slower than the embedded simulator).
    """
    problem = why_not(device) if device.type == "cuda" else f"the device is {device.type}"
    return ("isaacgym", "it is installed and the device is CUDA") if problem is None else ("torch", problem)


def reserved_envs() -> int:
    """For how many environments the user wants Isaac Gym's simulator to be made, at least.

    :raises ValueError: if the environment variable is not a number
    """
    text = os.environ.get(SIM_ENVS_VARIABLE, "1")
    if not text.isdigit():
        raise ValueError(f"The environment variable {SIM_ENVS_VARIABLE} must be a whole number, got {text!r}.")
    return int(text)


def child_environment() -> Dict[str, str]:
    """The environment variables of a child process that may crash: it finds the same modules and tries nothing out itself."""
    return {**os.environ, CHILD_VARIABLE: "1", "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def measure(backend: str, device: str) -> Report:
    """Make :data:`PROBE_ENVS` environments, step them and time it. What goes wrong is in the report."""
    from sb3_isaac import backends

    try:
        env = backends.make(backend, PROBE_ENVS, device, seed=0)
        env.reset()
        actions = th.zeros(PROBE_ENVS, env.action_dim, device=env.device)
        obs = env.step(actions).obs  # the first step makes Isaac Gym's simulator
        start = time.perf_counter()
        for _ in range(PROBE_STEPS):
            obs = env.step(actions).obs
        finite = bool(th.isfinite(obs).all())  # also waits for the device
        seconds = time.perf_counter() - start
        env.close()
    except Exception as error:
        return Report(False, str(error).replace(CANNOT, ""))
    return Report(finite, "" if finite else "its observations are not finite.", 1e3 * seconds / PROBE_STEPS)


def report() -> None:
    """What the child of :func:`try_in_child` runs: measure what the command line names, and print the answer."""
    print("\n" + REPORT + json.dumps(measure(*sys.argv[1:])._asdict()), flush=True)


@functools.lru_cache(maxsize=None)
def try_in_child(backend: str, device: str) -> Report:
    """Make a small simulator and step it in a child process: a crash there is an answer, not a disaster.

    :param backend: "torch" or "isaacgym"
    :param device: as for :func:`sb3_isaac.backends.make`
    """
    environment = {**child_environment(), "SB3_ISAAC_HEADLESS": "1", SIM_ENVS_VARIABLE: "1"}
    command = [sys.executable, "-c", "from sb3_isaac.backends.probe import report; report()", backend, device]
    try:
        child = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=PROBE_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return Report(False, f"{backend} did not answer within {PROBE_SECONDS:.0f} s.")
    output = child.stdout.decode(errors="replace")
    for line in output.splitlines():
        if line.startswith(REPORT):
            return Report(**json.loads(line[len(REPORT) :]))
    if child.returncode < 0:
        return Report(False, explain_crash(child.returncode, output, device))
    return Report(False, explain(output))


def explain_crash(returncode: int, output: str, device: str) -> str:
    """One sentence on a process that Isaac Gym has killed.

    :param returncode: negative, minus the signal's number
    """
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = f"signal {-returncode}"
    if "lavapipe" in output:
        return explain("lavapipe")
    gpu = ""
    if device.startswith("cuda") and th.cuda.is_available():
        gpu = f" on {th.cuda.get_device_name(device)}"
        if th.cuda.get_device_capability(device) > NEWEST_CAPABILITY:
            return f"Isaac Gym crashes{gpu} ({name}): {explain('no kernel image')}"
    return f"Isaac Gym crashed{gpu} ({name}): try its own examples (python/examples/joint_monkey.py), or use backend='torch'."
