"""The package's import rule, read from its source: folders are layers, and each outside library has its rooms."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Dict, List, Set

import pytest

from tests.conftest import REPOSITORY

PACKAGE = REPOSITORY / "sb3_isaac"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# From the bottom up: a folder imports from itself and from the folders below. Those of one line do not see each other.
LAYERS = [
    {"files", "settings"},
    {"device", "buffers", "backends"},
    {"envs"},
    {"off_policy", "ppo"},
    {"dqn", "ddpg"},
    {"evaluation"},
    {"zoo"},
    {"cli"},
]
LEVEL = {folder: level for level, layer in enumerate(LAYERS) for folder in layer}
SHARED = {"_for_c", "_isaacgym_first", "_lazy", "_native", "_torchscript", "_version", "replay_buffer", "reward_log"}
"""Modules outside the folders."""


def module_name(path: Path) -> str:
    """``backends/base.py`` -> "backends.base", ``backends/__init__.py`` -> "backends", ``__init__.py`` -> ""."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


MODULES = {module_name(path): path for path in SOURCES}


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
    """Which modules of the package a file imports. "" is the package itself."""
    modules = set()
    for name in imports_of(path):
        parts = name.split(".")
        if parts[0] == "sb3_isaac":
            inside = [".".join(parts[1:stop]) for stop in range(len(parts), 0, -1)]
            modules |= set([module for module in inside if module in MODULES][:1])
    return modules - {module_name(path)}


IMPORTS: Dict[str, Set[str]] = {name: own_imports(path) for name, path in MODULES.items()}


def folder_of(module: str) -> str:
    return module.split(".")[0]


def libraries(path: Path) -> Set[str]:
    return {name.split(".")[0] for name in imports_of(path)}


def test_every_folder_has_a_layer() -> None:
    assert {folder_of(module) for module in MODULES} - {""} == set(LEVEL) | SHARED


@pytest.mark.parametrize("module", sorted(module for module in MODULES if folder_of(module) in LEVEL))
def test_a_folder_imports_from_lower_folders_only(module: str) -> None:
    own = folder_of(module)
    for other in IMPORTS[module]:
        folder = folder_of(other)
        if folder in LEVEL:
            assert folder == own or LEVEL[folder] < LEVEL[own], f"{module} imports {other}"
        else:  # the whole package is for the layers that use it as a user would
            assert folder in SHARED or own in ("zoo", "cli"), f"{module} imports sb3_isaac itself"


def test_no_import_cycles() -> None:
    # A package's __init__ only collects names of its modules, which may ask it for them: it is left out.
    packages = {module_name(path) for path in SOURCES if path.name == "__init__.py"}
    done: Set[str] = set()

    def visit(module: str, path: List[str]) -> None:
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            for other in IMPORTS[module] - packages:
                visit(other, [*path, module])
            done.add(module)

    for module in set(MODULES) - packages:
        visit(module, [])


def test_who_imports_what() -> None:
    for module, path in MODULES.items():
        folder, used = folder_of(module), libraries(path)
        assert folder == "zoo" or not used & {"rl_zoo3", "optuna"}, f"{module}: only zoo/ imports rl_zoo3 and optuna"
        outside = {"stable_baselines3", "gymnasium", "gym"} - ({"gymnasium"} if module == "backends.isaaclab" else set())
        assert folder not in ("backends", "device") or not used & outside, module  # Isaac Lab's tasks stand in its registry
        assert module in ("backends.isaacgym_cartpole", "_isaacgym_first") or "isaacgym" not in used, module
        assert module == "backends.mjlab" or not used & {"mjlab", "warp"}, module


def test_the_documents_name_files_that_exist() -> None:
    for document, least in (("README.md", 10), ("docs/architecture.md", 25)):
        text = (REPOSITORY / document).read_text()
        named = re.findall(r"\]\(([^)#:]+)\)", text) + re.findall(r"`((?:sb3_isaac|scripts|tests)/[\w/]+(?:\.\w+)?)`", text)
        assert len(set(named)) > least
        folders = REPOSITORY, (REPOSITORY / document).parent
        assert [name for name in named if not any((folder / name).exists() for folder in folders)] == []
    # In the table of rooms a file stands without its folder
    for row in re.findall(r"^\| (`sb3_isaac/.*)$", text, flags=re.M):
        folders = re.findall(r"`(sb3_isaac/\w+)`", row)
        for name in re.findall(r"`(\w+\.py)`", row):
            assert any((REPOSITORY / folder / name).exists() for folder in folders), name


def test_what_one_reads_for_an_algorithm() -> None:
    """docs/architecture.md, "To read an algorithm": no more than nine files for PPO, ten for DQN and for DDPG."""
    helpers = {"backends.base", "buffers.storage", "buffers.sb3_buffer",
               "envs.callback_locals", "envs.checkpoints", "envs.data_parallel", "envs.infos", "envs.last_finite",
               "envs.model_files", "envs.tensor_path",
               "device.finite", "device.host", "device.cuda_graph", "device.eligibility", "device.ranks", "device.one_host",
               "device.threads",
               # which do the same as other files, in Triton or in C
               "device.fused", "device.fused_mlp", "device.mlp_kernels", "buffers.fused", "buffers.kernels",
               "envs.fused", "envs.kernels",
               "ppo.fused", "ppo.fused_steps", "ppo.kernels", "dqn.fused", "dqn.kernels",
                   "ddpg.fused", "ddpg.kernels",
               "device.native_mlp", "buffers.native", "ppo.native", "dqn.native", "ddpg.native"}  # fmt: skip
    for module, most in (("ppo.ppo", 9), ("dqn.dqn", 10), ("ddpg.ddpg", 10)):
        reached, new = set(), {module}
        while new:
            reached |= new
            opened = new - {"envs.checkpoints"}  # for who wants to know how a training goes on
            found = {other for one in opened for other in IMPORTS[one] if MODULES[other].name != "__init__.py"}
            new = found - reached - SHARED
        helpers |= {name for name in reached if folder_of(name) in ("files", "settings")}
        assert len(reached - helpers) <= most, sorted(reached - helpers)


@pytest.mark.slow
@pytest.mark.parametrize(
    "module, unwanted",
    [
        ("sb3_isaac", ["torch", "stable_baselines3", "pygame", "sb3_isaac.ppo", "sb3_isaac.envs.make"]),
        ("sb3_isaac.cli.check", ["torch"]),
        ("sb3_isaac.cli.check_simulators", ["stable_baselines3", "rl_zoo3", "optuna", "sb3_isaac.envs.make"]),
        ("sb3_isaac.envs.make", ["rl_zoo3", "optuna", "pygame", "sb3_isaac.ppo", "sb3_isaac.evaluation"]),
        ("sb3_isaac.ppo.ppo", ["sb3_isaac.off_policy", "sb3_isaac.dqn", "sb3_isaac.buffers.replay_buffer"]),
        ("sb3_isaac.dqn.dqn", ["sb3_isaac.ppo", "sb3_isaac.ddpg", "sb3_isaac.buffers.rollout_buffer"]),
    ],
)
def test_importing_a_module_loads_no_more_than_it_needs(module: str, unwanted: List[str]) -> None:
    code = f"import sys, {module}; print(*sorted(set({unwanted}) & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=str(REPOSITORY))
    assert out.returncode == 0, out.stderr
    assert out.stdout.split() == []


PUBLIC = [
    "from sb3_isaac import *; DDPG, DQN, PPO, DeviceReplayBuffer, DeviceRolloutBuffer, IsaacVecEnv, VecFrameStack",
    "from sb3_isaac import *; VecNormalize, evaluate, make_vec_env, wrap_vec_task",
    "import sb3_isaac; sb3_isaac.__version__, sb3_isaac.PPO, sb3_isaac.envs.ENV_KWARGS, sb3_isaac.zoo.ALGOS",
    "from sb3_isaac.ppo import PPO",
    "from sb3_isaac.dqn import DQN",
    "from sb3_isaac.ddpg import DDPG",
    "from sb3_isaac.buffers import DeviceReplayBuffer, DeviceRolloutBuffer, ReplaySamples, RolloutTensors",
    "from sb3_isaac.backends import make, reserve, BACKENDS",
    "from sb3_isaac.evaluation import evaluate",
    "from sb3_isaac.envs import CartpoleEnv, CartpoleVectorEnv",
    "from sb3_isaac.zoo import ALGOS, hyperparams_dir",
    "from sb3_isaac.cli import main",
    "from sb3_isaac.reward_log import RewardLog",
]


@pytest.mark.parametrize("statement", PUBLIC)
def test_public_import_paths_stay(statement: str) -> None:
    exec(statement, {})
    if " import *" not in statement and statement.startswith("from"):
        module, names = re.match(r"from (\S+) import (.*)", statement).groups()  # type: ignore[union-attr]
        for name in names.split(", "):
            assert getattr(sys.modules[module], name) is not None and name in dir(sys.modules[module])


def test_this_test_sees_imports(tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(
        "import a.b as c\ndef f():\n    from sb3_isaac.zoo import x\n    from sb3_isaac import ppo\n"
        "    importlib.import_module('optuna.trial')\n"
    )
    assert imports_of(path) == {"a.b", "sb3_isaac.zoo.x", "sb3_isaac.ppo", "optuna.trial"}
    assert libraries(path) == {"a", "sb3_isaac", "optuna"}
