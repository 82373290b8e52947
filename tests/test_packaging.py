"""A built wheel, installed elsewhere without the checkout, is complete."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from sb3_isaac._native import HEADERS, SOURCES
from tests.conftest import REPOSITORY


@pytest.mark.slow
def test_wheel_holds_its_data_and_finds_it(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("sb3_isaac", "hyperparams"):
        subprocess.run(["cp", "-r", str(REPOSITORY / name), str(source)], check=True)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        subprocess.run(["cp", str(REPOSITORY / name), str(source)], check=True)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(source),
    ]
    subprocess.run(command, check=True, cwd=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    data = ["py.typed", "hyperparams/ppo.yml", "hyperparams/dqn.yml", "hyperparams/ddpg.yml", "backends/cartpole.urdf"]
    for name in (*data, *SOURCES, *HEADERS):
        assert f"sb3_isaac/{name}" in names
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = (
        "import sb3_isaac, sb3_isaac.zoo as z; print(sb3_isaac.__file__); print((z.hyperparams_dir() / 'ppo.yml').is_file())"
    )
    out = subprocess.run([sys.executable, "-c", code], cwd=site, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    assert Path(out[0]).parent == site / "sb3_isaac" and out[1] == "True"
