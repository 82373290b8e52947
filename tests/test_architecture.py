"""The package's import rule, read from its source: imports go one way, and each outside library has its rooms."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Dict, List, Set

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = REPOSITORY / "sb3_isaac"
SOURCES = sorted(PACKAGE.rglob("*.py"))
SCRIPTS = sorted((REPOSITORY / "scripts").glob("*.py"))

# From the bottom up; a module imports from its own layer and from the layers below. A new module has to be placed here.
LAYERS = [
    {"_version", "_isaacgym_first"},
    {"backends", "backends.base", "backends.cartpole", "backends.torch_cartpole", "backends.isaacgym_cartpole",
     "backends.probe", "backends.probe_child"},
    # environments; buffers; and what algorithms are made of, which knows neither
    {"vec_env", "infos", "envs", "wrappers", "normalize", "vec_task", "rendering",
     "buffers", "replay_buffer", "replay_samples", "n_step", "storage",
     "running_mean_std", "fast_mlp", "flat_adam", "exploration", "cuda_graph", "host", "portable_pickle"},
    {"off_policy", "step_graph", "tensor_run", "replay_files", "training_log"},
    {"ppo", "ppo_loss", "ppo_policy", "ppo_rollout", "ppo_settings", "ppo_update"},
    {"dqn", "dqn_networks", "ddpg", "ddpg_networks"},
    {"evaluation", "video", "curves", "reward_log", "reference", "check"},
    {"zoo", "zoo_models", "zoo_optuna", "zoo_report", "zoo_spaces", "zoo_studies"},
    {"commands", "cli"},
]  # fmt: skip
LEVEL = {module: level for level, layer in enumerate(LAYERS) for module in layer}


def module_name(path: Path) -> str:
    """``backends/base.py`` -> "backends.base", ``backends/__init__.py`` -> "backends", ``__init__.py`` -> ""."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports_of(path: Path) -> Set[str]:
    """Full names of everything that a file imports, wherever in the file. ``from a import b`` counts as a.b."""
    found: Set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path.name}: write imports with the full name"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == "import_module":
            found |= {arg.value for arg in node.args if isinstance(arg, ast.Constant)}
    return found


def own_imports(path: Path) -> Set[str]:
    """Which modules of the package a file imports."""
    modules = set()
    for name in imports_of(path):
        parts = name.split(".")
        if parts[0] == "sb3_isaac":
            inside = [".".join(parts[1:stop]) for stop in range(len(parts), 1, -1)]
            modules |= set([module for module in inside if module in LEVEL][:1])
    return modules - {module_name(path)}


IMPORTS: Dict[str, Set[str]] = {module_name(path): own_imports(path) for path in SOURCES}


def libraries(path: Path) -> Set[str]:
    return {name.split(".")[0] for name in imports_of(path)}


def test_every_module_has_a_place() -> None:
    modules = {module_name(path) for path in SOURCES} - {""}
    assert modules == set(LEVEL), "LAYERS of this test and the files differ"


@pytest.mark.parametrize("module", sorted(LEVEL))
def test_imports_go_one_way(module: str) -> None:
    upwards = [other for other in IMPORTS[module] if LEVEL[other] > LEVEL[module]]
    assert not upwards, f"{module} imports {upwards}, which are built on it"


def test_no_import_cycles() -> None:
    # Importing a module imports its package's __init__ too, which is left out: it only collects names.
    done: Set[str] = set()

    def visit(module: str, path: List[str]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in IMPORTS[module] - {"backends"}:
                visit(other, [*path, module])
            done.add(module)

    for module in LEVEL:
        if module != "backends":
            visit(module, [])


def test_buffers_never_see_an_environment() -> None:
    environments = {m for m in LEVEL if m.startswith("backends")} | {
        "vec_env",
        "infos",
        "envs",
        "wrappers",
        "normalize",
        "vec_task",
    }
    for module in ("buffers", "replay_buffer", "storage"):
        assert not IMPORTS[module] & environments


def test_what_algorithms_are_made_of_knows_no_environment_and_no_buffer() -> None:
    for module in ("running_mean_std", "fast_mlp", "flat_adam", "exploration", "cuda_graph", "host", "portable_pickle"):
        assert not IMPORTS[module] & (LAYERS[1] | {"vec_env", "envs", "wrappers", "normalize", "buffers", "replay_buffer"})


def test_backends_know_neither_sb3_nor_gymnasium() -> None:
    for path in (PACKAGE / "backends").glob("*.py"):
        assert not libraries(path) & {"stable_baselines3", "gymnasium", "gym", "rl_zoo3", "optuna"}, path.name


def test_who_imports_what() -> None:
    for path in SOURCES:
        name, used = path.name, libraries(path)
        assert name.startswith("zoo") or not used & {"rl_zoo3", "optuna"}, f"{name}: only zoo*.py imports rl_zoo3 and optuna"
        assert name in ("isaacgym_cartpole.py", "_isaacgym_first.py") or "isaacgym" not in used, f"{name} imports isaacgym"


@pytest.mark.parametrize("path", [*SOURCES, *SCRIPTS], ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_files_stay_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


def test_the_readme_names_files_that_exist() -> None:
    text = (REPOSITORY / "README.md").read_text()
    named = re.findall(r"\]\(([^)#:]+)\)", text) + re.findall(r"`((?:sb3_isaac|scripts|tests)/[\w/]+(?:\.\w+)?)`", text)
    assert any(name.endswith(".png") for name in named) and len(named) > 15
    assert [name for name in named if not (REPOSITORY / name).exists()] == []


def test_importing_the_package_hooks_nothing() -> None:
    code = "import sys, sb3_isaac; print(*sorted({'rl_zoo3', 'optuna', 'pygame'} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=str(REPOSITORY))
    assert out.returncode == 0, out.stderr
    assert out.stdout.split() == []


def test_this_test_sees_imports(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        "import a.b as c\ndef f():\n    from sb3_isaac.zoo import x\n    from sb3_isaac import ppo\n"
        "    importlib.import_module('optuna.trial')\n"
    )
    assert imports_of(path) == {"a.b", "sb3_isaac.zoo.x", "sb3_isaac.ppo", "optuna.trial"}
    assert libraries(path) == {"a", "sb3_isaac", "optuna"}
