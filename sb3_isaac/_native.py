"""C for a CPU: made by the machine's own compiler when ``compile=True`` asks for it, in some seconds, once; loaded by ctypes.

PyTorch's operations each pass over memory, and take a few microseconds before they begin. Here a block of rows goes through a
whole network and back in one call, see ``device/mlp.h``. Each C file lies beside the plain path that does the same, which
stays the default: it needs no compiler.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

PACKAGE = Path(__file__).resolve().parent
SOURCES = (
    "buffers/replay.c",
    "device/adam.c",
    "device/mlp.c",
    "ppo/gradients.c",
    "dqn/gradients.c",
    "ddpg/gradients.c",
    "envs/moments.c",
    "envs/episodes.c",
    "backends/cartpole.c",
)
HEADERS = ("device/mlp.h", "envs/normalize.h")
FLAGS = ("-std=gnu11", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fPIC", "-shared")
PROCESSOR = (("-march=native",), ("-mcpu=native",), ())
"""How compilers are told to make use of all that this processor has; the first that is understood"""
SECONDS = 300.0
"""The longest that the compiler may take"""
KINDS: Dict[str, Any] = {
    "p": ctypes.c_void_p,
    "i": ctypes.c_int64,
    "f": ctypes.c_float,
    "d": ctypes.c_double,
    "b": ctypes.c_int,
}
SIGNATURES: Dict[str, Tuple[Any, str]] = {
    "adam_step": (None, "ppppidddddd"),
    "cartpole_step": (None, "pi" + "p" * 11),
    "net_memory": (ctypes.c_int64, "pi"),
    "net_outputs": (None, "ppiipp"),
    "normalize_step": (None, "iippppbdff" + "p" * 10),
    "note_step": (ctypes.c_int64, "ii" + "p" * 8),
    "q_values": (None, "pppiipp"),
    "q_gradients": (ctypes.c_int64, "ppippiipp"),
    "td3_values": (None, "ppipipipp"),
    "critic_gradients": (None, "pipipiipiipp"),
    "actor_gradients": (None, "pppiiipp"),
    "ppo_memory": (ctypes.c_int64, "ii"),
    "ppo_gradients": (None, "ppppppiiippiiffffpp"),
    "ppo_scale": (None, "piipibpp"),
    "replay_pack": (None, "iii" + "p" * 7),
    "replay_samples": (ctypes.c_int64, "piiiiipiidibppfpf" + "p" * 6),
    "update_moments": (None, "pii" + "p" * 6),
}
"""Of the C functions: what they return and, letter by letter, what they take"""


class NoNative(Exception):
    """Why there is no compiled C."""


def compiler() -> Tuple[List[str], str]:
    """The C compiler's command, and what it says of its version.

    :raises NoNative: there is none
    """
    try:
        command = shlex.split(os.environ.get("CC", "")) or ["cc"]
    except ValueError as error:
        raise NoNative(f"CC={os.environ['CC']!r} names no C compiler: {error}") from error
    try:
        return command, _run([*command, "--version"])
    except FileNotFoundError as error:
        raise NoNative(f"there is no C compiler {command[0]!r} (install gcc or clang, or name one in CC)") from error
    except (OSError, subprocess.SubprocessError) as error:
        raise NoNative(f"the C compiler {' '.join(command)} failed: {error}") from error


@functools.lru_cache(maxsize=None)
def library() -> ctypes.CDLL:
    """The compiled functions.

    :raises NoNative: they cannot be had
    """
    command, version = compiler()
    sources = [PACKAGE / name for name in SOURCES]
    try:
        digest = hashlib.sha256("\n".join((version, _processor(), *command, *FLAGS)).encode())
        for path in (*sources, *(PACKAGE / name for name in HEADERS)):
            digest.update(path.read_bytes())
        name, folder = f"native-{digest.hexdigest()[:32]}.so", _cache()
        try:
            return _load(folder, name, command, sources)
        except OSError:
            if folder is None:
                raise
            return _load(None, name, command, sources)  # programs may not run from there
    except (OSError, AttributeError, subprocess.SubprocessError) as error:
        raise NoNative(f"the C compiler {' '.join(command)} failed: {error}") from error


def _run(command: Sequence[str]) -> str:
    """:raises OSError: it failed; the last line that it printed"""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=SECONDS, check=False)
    text = done.stdout.decode(errors="replace").strip()
    if done.returncode != 0:
        errors = [line for line in text.splitlines() if "error" in line] or text.splitlines() or [f"status {done.returncode}"]
        raise OSError(errors[0])
    return text


def _processor() -> str:
    """What the compiler makes use of: a home folder may be shared among machines that differ."""
    with suppress(OSError):
        block = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
        return "\n".join(
            line for line in block.splitlines() if line.startswith(("model", "vendor", "flags", "Features", "CPU"))
        )
    return "\n".join((platform.machine(), platform.processor(), platform.node()))


def _cache() -> Optional[Path]:
    """Where what was compiled is kept; None: nowhere that only this user can write to."""
    try:
        given = os.environ.get("XDG_CACHE_HOME", "")  # which counts if it is absolute
        folder = Path(given if os.path.isabs(given) else Path.home() / ".cache", "sb3_isaac")
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except (OSError, RuntimeError, KeyError):  # or nobody knows where the home folder is
        return None
    owned = not hasattr(os, "getuid") or (status.st_uid == os.getuid() and not status.st_mode & 0o022)
    return folder if owned and os.access(folder, os.W_OK) else None


def _load(folder: Optional[Path], name: str, command: Sequence[str], sources: Sequence[Path]) -> ctypes.CDLL:
    """The library of this name, from the folder or from the compiler.

    A file that was cut would end the process when it is loaded: a checksum vouches for it.
    """
    if folder is not None:
        with suppress(OSError):  # not there yet
            if (folder / f"{name}.sha256").read_text() == _checksum(folder / name):
                return _declared(ctypes.CDLL(os.fspath(folder / name)))
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        made = os.path.join(temporary, name)
        files = [word for path in sources for word in ("-x", "c", os.fspath(path))]  # g++ forgets it after each
        arguments = [*FLAGS, f"-I{PACKAGE / 'device'}", *files, "-x", "none", "-o", made, "-lm"]
        for i, flags in enumerate(PROCESSOR):
            try:
                _run([*command, *flags, *arguments])
                break
            except OSError:
                if i == len(PROCESSOR) - 1:
                    raise
        loaded = _declared(ctypes.CDLL(made))  # stays, whatever becomes of the file
        if folder is not None:
            with suppress(OSError):
                Path(f"{made}.sha256").write_text(_checksum(Path(made)))
                for suffix in ("", ".sha256"):
                    os.replace(made + suffix, folder / (name + suffix))
    return loaded


def _declared(loaded: ctypes.CDLL) -> ctypes.CDLL:
    """Tell ctypes of its functions.

    :raises AttributeError: one is missing
    """
    for name, (result, arguments) in SIGNATURES.items():
        function = getattr(loaded, name)
        function.restype, function.argtypes = result, [KINDS[letter] for letter in arguments]
    return loaded


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@functools.lru_cache(maxsize=None)
def why_not_library() -> Optional[str]:
    """What keeps C from this machine; None: nothing."""
    try:
        library()
    except NoNative as error:
        return str(error)
    return None


def in_c(compiled: bool, device: Any) -> bool:
    """Whether C is asked for, and can be had where tensors are on this torch device."""
    return compiled and device.type == "cpu" and why_not_library() is None
