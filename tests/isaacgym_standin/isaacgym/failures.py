"""Known ways in which real installations fail, reproduced on demand with their own error messages."""

import os
import signal

ASKED_FOR = os.environ.get("ISAACGYM_STANDIN_FAIL", "")


def at_import():
    if ASKED_FOR == "libpython":  # docs:install, "For Anaconda Users"
        raise ImportError("libpython3.8.so.1.0: cannot open shared object file: No such file or directory")
    if ASKED_FOR == "python":  # https://github.com/leggedrobotics/legged_gym/issues/21
        raise RuntimeError("No gym module found for the active version of Python (3.11)")


def at_acquire_gym():
    if ASKED_FOR == "driver":  # https://github.com/isaac-sim/IsaacGymEnvs/issues/27
        raise RuntimeError("Failed to acquire interface: carb::gym::Gym (pluginName: nullptr)")


def at_import_of_gymtorch():
    if ASKED_FOR == "ninja":  # torch.utils.cpp_extension.verify_ninja_availability
        raise RuntimeError("Ninja is required to load C++ extensions")
    if ASKED_FOR == "compiler":  # https://github.com/Improbable-AI/pql/issues/6
        raise RuntimeError("Error building extension 'gymtorch'")


def at_create_sim():
    """Whether create_sim shall return None."""
    if ASKED_FOR == "segfault":  # https://github.com/isaac-sim/IsaacGymEnvs/issues/220 (H100)
        print("+++ Using GPU PhysX", flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    return ASKED_FOR == "create_sim"  # IsaacGymEnvs: vec_task.create_sim tests for None
