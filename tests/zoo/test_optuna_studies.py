"""Studies that several workers share, killed workers, databases, mistakes that damage nothing."""

from __future__ import annotations

import concurrent.futures
import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Iterator, List

import optuna
import pytest
import yaml

from sb3_isaac.zoo import entry_files, manager, report, studies
from sb3_isaac.zoo.studies import StorageError
from tests.conftest import CONTINUOUS, ENV_IDS, run_python
from tests.zoo.conftest import FAIL, LONG_SEARCH, RUNNING, call, make_manager, start


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_workers_of_one_seed_draw_different_numbers_and_one_worker_always_the_same() -> None:
    def draw(study: Any, n_trials: int) -> List[float]:
        sampler = studies.SeededByTrial(lambda seed: optuna.samplers.TPESampler(seed=seed, n_startup_trials=3), 7)
        study.sampler = sampler
        study.optimize(lambda trial: trial.suggest_float("x", 0.0, 1.0), n_trials=n_trials)
        return [trial.params["x"] for trial in study.trials]

    alone = draw(optuna.create_study(), 8)
    assert alone == draw(optuna.create_study(), 8) and len(set(alone)) == 8
    shared = optuna.create_study()
    draw(shared, 4)
    assert draw(shared, 4) == alone  # a second worker, with a sampler of its own


@pytest.mark.slow
def test_two_workers_share_a_study_and_one_is_killed(tmp_path: Path) -> None:
    doomed = start(f"{LONG_SEARCH} --storage s/study.log --study-name s", tmp_path)
    survivor = start(
        f"optimize --algo ppo --env {CONTINUOUS} --n-trials 2 -n 2000 --seed 0 --no-optim-plots --storage s/study.log "
        "--study-name s --trial-timeout 300 --write-yaml best.yml -params n_envs:32 --env-kwargs max_episode_length:40",
        tmp_path,
    )
    try:
        out, _ = survivor.communicate(timeout=300)
        assert survivor.returncode == 0, out
        deadline, running = time.monotonic() + 300, []
        while time.monotonic() < deadline and not any("hyperparams" in trial.user_attrs for trial in running):
            running = [trial for trial in studies.load_study("s/study.log", "s").trials if trial.state == RUNNING]
            time.sleep(0.1)
        assert doomed.poll() is None and len(running) == 1
    finally:
        doomed.send_signal(signal.SIGKILL)
        doomed.communicate()
    study = studies.load_study("s/study.log", "s")
    assert sorted(trial.state.name for trial in study.trials) == ["COMPLETE", "COMPLETE", "RUNNING"]
    assert len({trial.user_attrs["worker"]["pid"] for trial in study.trials}) == 2
    best = study.best_trial.user_attrs["hyperparams"]
    assert yaml.safe_load(Path("best.yml").read_text())[CONTINUOUS]["learning_rate"] == best["learning_rate"]
    # A worker that comes later gives up the lost trial, and only that.
    make_manager(storage="s/study.log", study_name="s", n_trials=1).hyperparameters_optimization()
    states = sorted(trial.state.name for trial in studies.load_study("s/study.log", "s").trials)
    assert states == ["COMPLETE", "COMPLETE", "COMPLETE", "FAIL"]


def test_workers_that_start_together_on_a_new_database() -> None:
    """All want to make its tables. Optuna alone fails here with 'table studies already exists' and the like."""
    purpose = {"algo": "ppo", "env": "x"}
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        for i in range(2):
            jobs = [pool.submit(studies.open_study, f"sqlite:///{i}.db", "s", purpose) for _ in range(4)]
            assert {job.result(300).user_attrs["purpose"]["env"] for job in jobs} == {"x"}


def test_only_dead_workers_of_this_machine_are_given_up() -> None:
    study = studies.open_study("sqlite:///study.db", "s", {"algo": "ppo", "env": "x"})
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    here = studies.this_worker()
    elsewhere, parent = {"host": "elsewhere", "pid": gone.pid}, {"host": here["host"], "pid": os.getppid()}
    workers = [here, {**here, "pid": gone.pid}, elsewhere, parent]
    for worker in workers:
        study.ask().set_user_attr("worker", worker)
    study.ask()  # has not said yet whose it is
    assert studies.fail_dead_trials(study) == 1
    assert [trial.state for trial in study.trials] == [RUNNING, FAIL, RUNNING, RUNNING, RUNNING]


@pytest.mark.slow
def test_isaac_gym_needs_one_simulator_for_all_trials(tmp_path: Path) -> None:
    script = (
        "import sb3_isaac, argparse, os\n"
        "from sb3_isaac.zoo import manager\n"
        "from sb3_isaac.backends import isaacgym_cartpole\n"
        f"os.chdir({str(tmp_path)!r})\n"
        "made, make = [], isaacgym_cartpole.Simulator\n"
        "isaacgym_cartpole.Simulator = lambda n, *args: made.append(n) or make(n, *args)\n"
        "options = dict(n_timesteps=512, eval_freq=-1, n_eval_episodes=8, optimize_hyperparameters=True, n_evaluations=2)\n"
        "options.update(n_trials=3, seed=0, verbose=0, device='cpu', hyperparams={'n_envs': [8, 32]}, no_optim_plots=True)\n"
        "options.update(env_kwargs={'backend': 'isaacgym', 'max_episode_length': 40})\n"
        f"experiment = manager.ExperimentManager(argparse.Namespace(), 'ppo', '{CONTINUOUS}', 'logs', **options)\n"
        "experiment.setup_experiment()\n"
        "experiment.hyperparameters_optimization()\n"
        "print('simulators', made)\n"
    )
    done = run_python("-c", script, standin=True)
    assert done.returncode == 0 and "simulators [32]" in done.stdout, done.stdout


def test_trial_id_trains_with_that_trial() -> None:
    storage = {"storage": "sqlite:///study.db", "study_name": "s"}
    make_manager("ddpg", **storage).hyperparameters_optimization()
    expected = studies.load_study(**{"storage": "sqlite:///study.db", "name": "s"}).trials[0].user_attrs["hyperparams"]
    found = make_manager("ddpg").load_trial("sqlite:///study.db", "s", 0)
    assert found == expected and "noise_type" not in found
    if "trial_id" not in manager.ExperimentManager.__init__.__code__.co_varnames:
        return  # rl_zoo3 < 2.6 has no --trial-id
    experiment = make_manager("ddpg", **storage, trial_id=0, optimize_hyperparameters=False, hyperparams={"tau": 0.5})
    _, saved = experiment.read_hyperparameters()
    assert dict(saved) == {**expected, "tau": 0.5}
    with pytest.raises(ValueError, match="has no trial 9: choose one from 0 to 1"):
        experiment.load_trial("sqlite:///study.db", "s", 9)
    with pytest.raises(ValueError, match="is not about ppo on IsaacGymCartpole-v0"):
        make_manager("ppo").load_trial("sqlite:///study.db", "s", 0)
    with pytest.raises(ValueError, match="--trial-id 0 needs --storage and --study-name"):
        make_manager("ddpg", trial_id=0)


# -- PostgreSQL ------------------------------------------------------------------------------------------------------


@pytest.fixture()
def postgres() -> Iterator[str]:
    """A server of its own in a folder of its own, reached through a socket there. Yields its URL."""
    pytest.importorskip("psycopg2", reason="psycopg2 is not installed")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) if os.name == "posix" else []
    if not found:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    as_user = []
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root
        import pwd

        if shutil.which("runuser") is None or "postgres" not in [user.pw_name for user in pwd.getpwall()]:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres to run it as")
        as_user = ["runuser", "-u", "postgres", "--"]
    folder = tempfile.mkdtemp(prefix="pg", dir="/tmp")  # short: a socket's path is limited to 107 characters
    if as_user:
        shutil.chown(folder, "postgres")
    data, bin_folder = os.path.join(folder, "data"), found[-1].parent
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": "/"}
    server = None
    try:
        initdb = [str(bin_folder / "initdb"), "-D", data, "-U", "tuner", "-A", "trust", "--no-sync"]
        subprocess.check_call([*as_user, *initdb], **quiet)
        server = subprocess.Popen([*as_user, str(bin_folder / "postgres"), "-D", data, "-k", folder, "-h", "", "-F"], **quiet)
        ready = [str(bin_folder / "pg_isready"), "-h", folder]
        deadline = time.monotonic() + 300
        while subprocess.call(ready, **quiet) != 0:
            assert server.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        yield f"postgresql+psycopg2://tuner@/postgres?host={folder}"
    finally:
        if server is not None:
            subprocess.call([*as_user, str(bin_folder / "pg_ctl"), "-D", data, "-m", "immediate", "stop"], **quiet)
            server.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_postgresql(postgres: str, tmp_path: Path) -> None:
    worker = start(f"{LONG_SEARCH} --storage {shlex.quote(postgres)} --study-name s", tmp_path)
    try:
        # Beside it, this process is the second worker.
        make_manager("ppo", storage=postgres, study_name="s", n_trials=2).hyperparameters_optimization()
        deadline, trials = time.monotonic() + 300, []
        while time.monotonic() < deadline and not any(trial.state == RUNNING and trial.user_attrs for trial in trials):
            trials = studies.load_study(postgres, "s").trials
            time.sleep(0.1)
        assert worker.poll() is None
    finally:
        worker.send_signal(signal.SIGKILL)
        out = worker.communicate()[0]
    assert sorted(trial.state.name for trial in trials) == ["COMPLETE", "COMPLETE", "RUNNING"], out
    make_manager("ppo", storage=postgres, study_name="s", n_trials=1).hyperparameters_optimization()
    states = sorted(trial.state.name for trial in studies.load_study(postgres, "s").trials)
    assert states == ["COMPLETE", "COMPLETE", "COMPLETE", "FAIL"]
    with pytest.raises(StorageError, match="There is no study 'other' in postgresql.*studies there: s"):
        studies.load_study(postgres, "other")


# -- mistakes --------------------------------------------------------------------------------------------------------


SEARCH = ["optimize", "--algo", "ppo", "--env", CONTINUOUS, "--n-trials", "1", "-n", "512", "--no-optim-plots"]
MISTAKES = {
    "neither a journal file .* nor the URL of a database": ["--storage", "study.sqlite", "--study-name", "s"],
    "the folder nowhere does not exist": ["--storage", "sqlite:///nowhere/study.db", "--study-name", "s"],
    "notes.log is not a journal file of Optuna": ["--storage", "notes.log", "--study-name", "s"],
    "file is not a database": ["--storage", "sqlite:///notes.db", "--study-name", "s"],
    "postgresql.*tuner:\\*\\*\\*@localhost:9/x cannot be used: .*(refused|Is the server running)": [
        "--storage",
        "postgresql+psycopg2://tuner:secret@localhost:9/x",
        "--study-name",
        "s",
    ],
    "is about something else .dqn": ["--storage", "sqlite:///dqn.db", "--study-name", "s"],
    "is about something else .trials of another program": ["--storage", "sqlite:///foreign.db", "--study-name", "s"],
    "database is locked .by another process, for more than 1 s": ["--storage", "sqlite:///locked.db", "--study-name", "s"],
    "trial_timeout must be a number greater than 0 .seconds., or None, got -1.0": ["--trial-timeout", "-1"],
    "cannot be written to nowhere/best.yml: its folder does not exist": ["--write-yaml", "nowhere/best.yml"],
    "cannot be written to notes.log: it is no hyperparameter file": ["--write-yaml", "notes.log"],
    "ppo.yml: its entry IsaacGymCartpole-v0 cannot be replaced": ["--write-yaml", "ppo.yml"],
    "n_envs must be a whole number of at least 1, or a list": ["-params", "n_envs:[0]"],
    "Unknown hyperparameter 'trial_timout'.*did you mean": ["-params", "trial_timout:5"],
}


@pytest.mark.parametrize("sentence", MISTAKES)
def test_mistakes_get_one_sentence_and_damage_nothing(sentence: str, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if "psycopg2" in str(MISTAKES[sentence]):
        pytest.importorskip("psycopg2", reason="psycopg2 is not installed")
    monkeypatch.setattr(studies, "LOCK_TIMEOUT", 1)
    Path("notes.log").write_text("a note of mine\n")
    Path("notes.db").write_text("a note of mine, too" * 100)
    shutil.copy(entry_files.hyperparams_dir() / "ppo.yml", "ppo.yml")
    if "dqn" in sentence:
        studies.open_study("sqlite:///dqn.db", "s", {"algo": "dqn", "env": ENV_IDS["dqn"]})
    if "another program" in sentence:
        study = optuna.create_study(storage="sqlite:///foreign.db", study_name="s", direction="maximize")
        study.add_trial(optuna.trial.create_trial(value=1.0))
    lock = None
    if "locked" in sentence:
        studies.open_study("sqlite:///locked.db", "s", {"algo": "ppo", "env": CONTINUOUS})
        lock = sqlite3.connect("locked.db")
        lock.execute("BEGIN EXCLUSIVE")
    before = {path: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    try:
        assert call([*SEARCH, *MISTAKES[sentence]]) == 1
    finally:
        if lock is not None:
            lock.close()
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sb3-isaac")]
    assert len(error) == 1 and re.search(sentence, error[0]), error
    assert {path: path.read_bytes() for path in before} == before
    assert "secret" not in error[0]


def test_unknown_study_of_trial_id(capsys: Any) -> None:
    if "trial_id" not in manager.ExperimentManager.__init__.__code__.co_varnames:
        pytest.skip("this rl_zoo3 has no --trial-id")
    flags = ["train", "--algo", "ppo", "--env", CONTINUOUS, "--trial-id", "0", "--study-name", "s", "--storage"]
    assert call([*flags, "sqlite:///missing.db"]) == 1
    assert "missing.db does not exist" in capsys.readouterr().err and not Path("missing.db").exists()
    studies.open_study("study.log", "other", {"algo": "ppo", "env": CONTINUOUS})
    assert call([*flags, "study.log"]) == 1
    assert "There is no study 's' in study.log; studies there: other" in capsys.readouterr().err


def test_entries_are_replaced_only_where_that_is_safe() -> None:
    first = "# about a\n# and more\nA-v0: &a\n  n_envs: 1\n  # inside\n\n  x: {y: [1, 2]}\n\n"
    text = f"# head\n\n{first}B-v0:\n  <<: *a\n  n_envs: 2\n"
    with pytest.raises(ValueError, match="cannot be replaced"):
        report.compose(text, "A-v0", {"n_envs": 5}, comment="new")
    new = report.compose(text, "B-v0", {"n_envs": 5}, comment="new")
    assert new == text[: text.index("B-v0")] + "# new\nB-v0: {n_envs: 5}\n"
    new = report.compose(text.replace(" &a", "").replace("  <<: *a\n", ""), "A-v0", {"n_envs": 5}, comment="new")
    assert new == "# head\n\n# new\nA-v0: {n_envs: 5}\n\nB-v0:\n  n_envs: 2\n"
    assert report.compose("", "A-v0", {"n_envs": 5}, comment="new") == "# new\nA-v0: {n_envs: 5}\n"
    assert report.compose("C-v0: {}", "A-v0", {}, comment="new") == "C-v0: {}\n\n# new\nA-v0: {}\n"
