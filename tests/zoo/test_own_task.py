"""A user's own task, examples/my_pendulum.py, through rl_zoo3's commands: one batch, hyperparameters beside the task."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any, Iterator

import gymnasium as gym
import pytest
import yaml

import sb3_isaac
from sb3_isaac.envs import IsaacVecEnv
from sb3_isaac.zoo import entry_files, manager
from tests.conftest import REPOSITORY, run_python
from tests.zoo.conftest import call, make_manager

FLAGS = "--env MyPendulum-v0 --gym-packages my_pendulum --device cpu"


@pytest.fixture(autouse=True)
def in_a_folder_with_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The files of examples/ in a folder of their own, which is the current one; afterwards the id is forgotten."""
    for path in (REPOSITORY / "examples").iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = dict(gym.registry)
    yield tmp_path
    sys.modules.pop("my_pendulum", None)
    gym.registry.clear()
    gym.registry.update(before)


@pytest.mark.slow
def test_every_command(in_a_folder_with_the_task: Path, capfd: Any) -> None:
    done = run_python(
        *"-m rl_zoo3.train --algo ppo --env MyPendulum-v0 --gym-packages sb3_isaac.zoo my_pendulum --device cpu".split(),
        *"-n 100000 --seed 0 --eval-freq 50000".split(),
        cwd=in_a_folder_with_the_task,
    )
    assert done.returncode == 0, done.stdout
    assert "my_pendulum.ppo.yml" in done.stdout and "Training runs in tensors, without autograd" in done.stdout
    log = in_a_folder_with_the_task / "logs" / "ppo" / "MyPendulum-v0_1"
    assert (log / "MyPendulum-v0.zip").is_file() and (log / "best_model.zip").is_file()

    assert call(f"evaluate --algo ppo {FLAGS} -n 64".split()) == 0
    said = capfd.readouterr().out
    assert "MyPendulum-v0, 64 at once" in said and "time-outs                 64" in said
    mean = float(next(line for line in said.splitlines() if line.startswith("mean return")).split()[2])
    assert mean > -500  # an untrained one has about -1200
    assert call(f"enjoy --algo ppo {FLAGS} -f logs --no-render -n 200".split()) == 0
    assert "Episode Length 200" in capfd.readouterr().out
    assert call(f"video --algo ppo {FLAGS} -n 3".split()) == 1
    assert "Pendulum has no pictures" in capfd.readouterr().err
    assert call(f"optimize --algo ppo {FLAGS} --n-trials 1 -n 4000 --no-optim-plots --n-jobs 2".split()) == 0
    said = capfd.readouterr().out
    assert "Best trial: 0" in said and said.strip().endswith("--device cpu --gym-packages my_pendulum")


def test_a_task_that_draws_is_filmed(monkeypatch: pytest.MonkeyPatch, capfd: Any) -> None:
    pytest.importorskip("imageio_ffmpeg")
    Path("drawn.py").write_text(
        "import numpy as np, sb3_isaac\nfrom my_pendulum import Pendulum\n"
        "class Drawn(Pendulum):\n    render_fps = 20\n"
        "    def render(self, n_envs):\n        return np.full((n_envs, 16, 16, 3), 7, np.uint8)\n"
        "sb3_isaac.register('Drawn-v0', Drawn, hyperparams='my.yml')\n"
    )
    Path("my.yml").write_text("Drawn-v0: {n_envs: 8, n_timesteps: 64, policy: MlpPolicy, n_steps: 8, n_minibatches: 1}\n")
    flags = "--algo ppo --env Drawn-v0 --gym-packages drawn --device cpu"
    assert call(f"train {flags} --eval-freq -1".split()) == 0
    assert call(f"video {flags} -n 3 -o out.mp4".split()) == 0
    assert Path("out.mp4").stat().st_size > 0
    sys.modules.pop("drawn")


@pytest.mark.parametrize("algo, kwargs", [("ppo", ""), ("ddpg", ""), ("dqn", " --env-kwargs discrete:True n_bins:5")])
def test_without_an_entry_the_error_shows_one_that_trains(algo: str, kwargs: str, capfd: Any) -> None:
    Path("my_pendulum.ppo.yml").unlink()
    command = f"train --algo {algo} {FLAGS} -n 4096 --eval-freq -1{kwargs}"
    assert call(command.split()) == 1
    message = capfd.readouterr().err
    assert f"{Path.cwd() / 'my_pendulum'}.{algo}.yml, or in any file and add -conf FILE. A start: MyPendulum-v0: {{" in message
    start = message.split("A start: ")[1]
    assert set(yaml.safe_load(start)["MyPendulum-v0"]) <= entry_files.known_keys(manager.ALGOS[algo])
    Path("other.yml").write_text(start)
    assert call([*command.split(), "-conf", "other.yml"]) == 0  # in any file
    Path("other.yml").rename(f"my_pendulum.{algo}.yml")
    assert call(command.split()) == 0  # where it said
    assert f"my_pendulum.{algo}.yml" in capfd.readouterr().out
    Path(f"my_pendulum.{algo}.yml").write_text("Other-v0: {n_timesteps: 1}\n")
    assert call(command.split()) == 1
    assert f"put an entry in {Path.cwd() / 'my_pendulum'}.{algo}.yml. A start: MyPendulum-v0" in capfd.readouterr().err


def test_a_file_that_is_named_must_exist(capfd: Any) -> None:
    assert call(f"train --algo ppo {FLAGS} -conf nowhere.yml".split()) == 1
    assert "Hyperparameter file nowhere.yml does not exist." in capfd.readouterr().err


def test_the_algorithm_needs_other_actions(capfd: Any) -> None:
    Path("my_pendulum.yml").write_text("MyPendulum-v0: {n_timesteps: 100, policy: MlpPolicy}\n")
    assert call(f"train --algo dqn {FLAGS}".split()) == 1
    message = capfd.readouterr().err
    assert "dqn needs discrete actions" in message and "add --env-kwargs discrete:True n_bins:5" in message
    Path("my_pendulum.ppo.yml").replace("my_pendulum.yml")
    assert call(f"train --algo dqn {FLAGS}".split()) == 1
    message = capfd.readouterr().err
    assert f"Entries for dqn alone belong in {Path.cwd() / 'my_pendulum'}.dqn.yml" in message


def test_where_hyperparameters_are_looked_for() -> None:
    import my_pendulum  # type: ignore[import-not-found]

    def timesteps(env_id: str = "MyPendulum-v0", **kwargs: Any) -> int:
        options = {"optimize_hyperparameters": False, "n_timesteps": -1, "hyperparams": None, "env_kwargs": None, **kwargs}
        return int(make_manager(env_id=env_id, log_interval=-1, **options).n_timesteps)

    def write(name: str, n_timesteps: int) -> None:
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("".join(f"{env_id}: {{n_timesteps: {n_timesteps}, policy: MlpPolicy}}\n" for env_id in ids))

    ids = ["MyPendulum-v0", "File-v0", "Folder-v0", "Lost-v0"]
    Path("my_pendulum.ppo.yml").unlink()
    for order, name in enumerate(("my_pendulum.yaml", "my_pendulum.yml", "my_pendulum.ppo.yml"), start=1):
        write(name, order)
        assert timesteps() == order
    write("mine.yml", 10), write("folder/ppo.yml", 20)
    sb3_isaac.register("File-v0", my_pendulum.Pendulum, hyperparams="mine.yml")
    sb3_isaac.register("Folder-v0", my_pendulum.Pendulum, hyperparams=Path("folder").absolute())
    sb3_isaac.register("Lost-v0", my_pendulum.Pendulum, hyperparams="lost.yml")
    assert (timesteps("File-v0"), timesteps("Folder-v0"), timesteps("File-v0", config="my_pendulum.yml")) == (10, 20, 2)
    with pytest.raises(FileNotFoundError, match="The hyperparameters of Lost-v0 are registered to be in .*lost.yml"):
        timesteps("Lost-v0")


def test_training_and_evaluation_are_batches() -> None:
    import my_pendulum  # noqa: F401

    hyperparams = {"n_envs": 6, "n_steps": 4, "n_minibatches": 1}
    experiment = make_manager(env_id="MyPendulum-v0", hyperparams=hyperparams, env_kwargs={"gravity": 3.0}, log_interval=-1)
    for env in (experiment.create_envs(6), experiment.create_envs(5, eval_env=True)):
        assert isinstance(env.unwrapped, IsaacVecEnv) and env.unwrapped.tensor_env.gravity == 3.0
    assert env.num_envs == 5


def test_a_tensor_env_that_gymnasium_has_registered() -> None:
    import my_pendulum

    gym.register("Theirs-v0", entry_point=my_pendulum.Pendulum)
    Path("my_pendulum.yml").write_text("Theirs-v0: {n_timesteps: 100, policy: MlpPolicy}\n")
    Path("my_pendulum.ppo.yml").unlink()
    experiment = make_manager(env_id="Theirs-v0", env_kwargs={}, log_interval=-1)
    assert isinstance(experiment.create_envs(3).unwrapped, IsaacVecEnv)
