"""How the C library is made, kept and loaded, and what is said where it cannot be."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, Iterator

import pytest
import torch as th

from sb3_isaac import PPO, _native
from tests.conftest import make_env, run_python
from tests.native.conftest import needs_a_compiler


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """The library is looked for anew, and this process's own is used afterwards."""
    functions = (_native.library, _native.why_not_library)
    for function in functions:
        function.cache_clear()
    yield
    for function in functions:
        function.cache_clear()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the library is made, here without optimisation, which takes seconds."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(_native, "FLAGS", tuple("-O0" if flag == "-O3" else flag for flag in _native.FLAGS))
    return tmp_path / "sb3_isaac"


def compiler(folder: Path, script: str) -> str:
    """A stand-in for a C compiler, as CC names it."""
    path = folder / "compiler.py"
    path.write_text(script)
    return f"{sys.executable} {path}"


@needs_a_compiler
def test_it_is_made_once(cache: Path) -> None:
    first = _native.library()
    (made,) = cache.glob("*.so")
    assert made.suffix == ".so" and stat.S_IMODE(cache.stat().st_mode) == 0o700
    before = made.stat().st_mtime_ns
    _native.library.cache_clear()
    assert _native.library()._name == str(made) != first._name
    assert made.stat().st_mtime_ns == before


@needs_a_compiler
def test_a_damaged_one_is_made_again(cache: Path) -> None:
    _native.library()
    (made,) = cache.glob("*.so")
    content, names = made.read_bytes(), sorted(path.name for path in cache.iterdir())
    for damaged in (b"no library", content[: len(content) // 2], b""):  # half of it would end the process when it is loaded
        made.unlink()  # this process has it open
        made.write_bytes(damaged)
        _native.library.cache_clear()
        _native.library()
        assert len(made.read_bytes()) == len(content)
        assert sorted(path.name for path in cache.iterdir()) == names


@needs_a_compiler
@pytest.mark.skipif(not hasattr(os, "getuid"), reason="POSIX")
def test_a_folder_that_others_may_write_to_is_not_used(cache: Path) -> None:
    """Whoever can write there could put his own code into its place."""
    cache.mkdir()
    cache.chmod(0o777)
    _native.library()
    assert not list(cache.iterdir())


@needs_a_compiler
def test_a_cache_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert _native.library().net_memory


@pytest.mark.slow
@needs_a_compiler
def test_several_processes_at_once(cache: Path) -> None:
    code = "from sb3_isaac import _native; _native.library()"
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache.parent)}
    children = [subprocess.Popen([sys.executable, "-c", code], env=environment) for _ in range(3)]
    assert [child.wait() for child in children] == [0, 0, 0]
    assert len(list(cache.glob("*.so"))) == 1 == len(list(cache.glob("*.sha256")))


def test_flags_that_a_compiler_does_not_know(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = shutil.which("cc")
    if real is None:
        pytest.skip("there is no C compiler")
    script = "import subprocess, sys\nif '-march=native' in sys.argv:\n    sys.exit('error: unknown argument')\n"
    script += f"sys.exit(subprocess.call([{real!r}, *(flag for flag in sys.argv[1:] if flag != '-mcpu=native')]))"
    monkeypatch.setenv("CC", compiler(tmp_path, script))
    assert _native.library().adam_step


@pytest.mark.parametrize(
    "script, reason",
    [
        ("import sys; print('warning: w'); print('x.c:1: error: oh'); sys.exit(1)", "failed: x.c:1: error: oh"),
        ("import sys; sys.exit(3)", "failed: status 3"),
        ("import sys; open(sys.argv[sys.argv.index('-o') + 1], 'w') if '-o' in sys.argv else None", "failed: "),
        ("print('fine')", "failed: "),  # and has made nothing
    ],
)
def test_a_compiler_that_fails(script: str, reason: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", compiler(tmp_path, script))
    assert reason in str(_native.why_not_library())
    assert not cache.exists() or not list(cache.iterdir())


@pytest.mark.parametrize("given, reason", [("gcc 'x", "No closing quotation"), ("/no/such/cc", "no C compiler '/no/such/cc'")])
def test_what_cc_may_not_be(given: str, reason: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", given)
    assert reason in str(_native.why_not_library())


@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
def test_a_compiler_of_cpp_is_told_that_this_is_c(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "g++")
    assert _native.why_not_library() is None


@needs_a_compiler
def test_another_library_of_that_name(cache: Path) -> None:
    """Nothing but a whole one of ours is taken from the cache."""
    _native.library()
    (made,) = cache.glob("*.so")
    source = cache / "other.c"
    source.write_text("int other;")
    made.unlink()
    subprocess.run(["cc", "-shared", "-fPIC", str(source), "-o", str(made)], check=True)
    _native.library.cache_clear()
    assert _native.library().adam_step


@needs_a_compiler
def test_an_empty_cc_is_the_usual_one(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "  ")
    assert _native.compiler()[0] == ["cc"]


def test_without_a_compiler_training_takes_the_plain_path(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("CC", "no-such-compiler -O2")
    options: Any = {"n_steps": 8, "batch_size": 32, "seed": 0, "device": "cpu"}
    models = [PPO("MlpPolicy", make_env(), compile=on, verbose=int(on), **options).learn(64) for on in (False, True)]
    why = "there is no C compiler 'no-such-compiler' (install gcc or clang, or name one in CC)"
    path = f"in tensors, without autograd; networks not in C: {why}"
    assert models[1].path == path and path in capsys.readouterr().out
    assert all(th.equal(p, q) for p, q in zip(models[0].policy.parameters(), models[1].policy.parameters()))


@pytest.mark.slow
def test_the_plain_path_compiles_nothing(tmp_path: Path) -> None:
    code = """
        from sb3_isaac import DDPG, DQN, PPO, make_vec_env
        for cls, env_id in ((PPO, "IsaacGymCartpole-v0"), (DQN, "IsaacGymCartpoleDiscrete-v0"), (DDPG, "IsaacGymCartpole-v0")):
            model = cls("MlpPolicy", make_vec_env(env_id, 4), device="cpu")
            assert "in C" not in model.path, model.path
    """
    child = run_python("-c", textwrap.dedent(code), XDG_CACHE_HOME=str(tmp_path), CC="false")
    assert child.returncode == 0, child.stdout
    assert not (tmp_path / "sb3_isaac").exists()


@pytest.mark.slow
@needs_a_compiler
def test_nothing_that_c_leaves_undefined(tmp_path: Path) -> None:
    """Whose results would depend on the compiler: GCC's and Clang's own checks end the process instead."""
    code = """
        from sb3_isaac import DDPG, DQN, PPO, VecNormalize, _native, make_vec_env
        _native.FLAGS = tuple("-O0" if flag == "-O3" else flag for flag in _native.FLAGS)
        for cls, env_id in ((PPO, "IsaacGymCartpole-v0"), (DQN, "IsaacGymCartpoleDiscrete-v0"), (DDPG, "IsaacGymCartpole-v0")):
            env = VecNormalize(make_vec_env(env_id, 50))
            options = {"n_steps": 8} if cls is PPO else {"learning_starts": 8, "train_freq": 1}
            model = cls("MlpPolicy", env, device="cpu", batch_size=70, compile=True, **options)
            assert "in C" in model.path, model.path
            model.learn(800)
    """
    flags = "-fsanitize=undefined -fsanitize-undefined-trap-on-error"
    child = run_python("-c", textwrap.dedent(code), XDG_CACHE_HOME=str(tmp_path), CC=f"{os.environ.get('CC', 'cc')} {flags}")
    assert child.returncode == 0, child.stdout


def test_a_signature_for_each_function_and_none_else() -> None:
    """What ctypes is told has as many arguments as C's functions have, of the same kinds."""
    letters = {"float": "f", "double": "d", "int64_t": "i", "int": "b"}
    header = (_native.PACKAGE / "device" / "mlp.h").read_text()
    internal, found = re.findall(r"^SHARED \w+ \*?(\w+)\(", header, flags=re.M), {}
    assert "forward_block" in internal
    for name in _native.SOURCES:
        text = re.sub(r"/\*.*?\*/", "", (_native.PACKAGE / name).read_text(), flags=re.DOTALL)
        for result, function, arguments in re.findall(r"^(void|int64_t) (\w+)\((.*?)\) \{", text, flags=re.M | re.DOTALL):
            if function in internal:
                continue
            kinds = ["p" if "*" in one else letters[one.split()[0]] for one in arguments.split(",")]
            found[function] = (result, "".join(kinds))
    assert found == {
        name: ("void" if result is None else "int64_t", kinds) for name, (result, kinds) in _native.SIGNATURES.items()
    }
