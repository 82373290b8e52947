"""A folder of good and broken files, for the table of bad input: hyperparameter files, models, runs."""

from __future__ import annotations

import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any, List

import numpy as np

import sb3_isaac
from sb3_isaac.files import checkpoint, plain_state
from tests.conftest import CONTINUOUS, DISCRETE, make_env

YAML_FILES = {
    "empty.yml": "",
    "comment.yml": "# nothing but a comment\n",
    "list.yml": "- a\n- b\n",
    "text.yml": "just some words\n",
    "number.yml": "3\n",
    "other.yml": "CartPole-v1: {n_timesteps: 1}\n",
    "null.yml": f"{CONTINUOUS}:\n",
    "entry_list.yml": f"{CONTINUOUS}: [n_envs, 4]\n",
    "entry_text.yml": f"{CONTINUOUS}: n_envs 4\n",
    "entry_empty.yml": f"{CONTINUOUS}: {{}}\n",
    "number_key.yml": "3: {n_timesteps: 1}\n",
    "number_name.yml": f"{CONTINUOUS}: {{3: 1}}\n",
    "tab.yml": f"{CONTINUOUS}:\n\tn_timesteps: 100\n",
    "unclosed.yml": f"{CONTINUOUS}: {{n_timesteps: 100\n",
    "indent.yml": f"{CONTINUOUS}:\n  n_timesteps: 100\n gamma: 1\n",
    "twice.yml": f"{CONTINUOUS}:\n  n_timesteps: 100\n  gamma: 0.9\n  gamma: 0.8\n",
    "entry_twice.yml": f"{CONTINUOUS}: {{n_timesteps: 1}}\n{CONTINUOUS}: {{n_timesteps: 2}}\n",
    "alias.yml": f"{CONTINUOUS}: *nowhere\n",
    "python.yml": f"{CONTINUOUS}: !!python/object/apply:os.getcwd []\n",
    "date.yml": f"{CONTINUOUS}: {{n_timesteps: 2024-99-99}}\n",
    "exponent.yml": f"{CONTINUOUS}: {{n_timesteps: 100, policy: MlpPolicy, gamma: 1e-1}}\n",
    "no_timesteps.yml": f"{CONTINUOUS}: {{policy: MlpPolicy}}\n",
    "no_policy.yml": f"{CONTINUOUS}: {{n_timesteps: 100}}\n",
    "null_value.yml": f"{CONTINUOUS}: {{n_timesteps: 100, policy: MlpPolicy, gamma: }}\n",
    "raises.py": "1 / 0\n",
    "syntax.py": "hyperparams = {\n",
    "nothing.py": "x = 1\n",
}


def trained_run(folder: Path) -> Path:
    """A run of PPO as rl_zoo3 leaves it, after a very short training."""
    run = folder / "ppo" / f"{CONTINUOUS}_1"
    (run / CONTINUOUS).mkdir(parents=True)
    env = sb3_isaac.VecNormalize(make_env(n_envs=2))
    model = sb3_isaac.PPO("MlpPolicy", env, n_steps=4, batch_size=8, n_epochs=1, device="cpu")
    model.learn(8)
    model.save(run / CONTINUOUS)
    env.save(str(run / CONTINUOUS / "vecnormalize.pkl"))
    (run / CONTINUOUS / "config.yml").write_text("{normalize: {norm_obs: true}, policy: MlpPolicy}\n")
    (run / CONTINUOUS / "args.yml").write_text("{env_kwargs: null}\n")
    np.savez(run / "evaluations.npz", timesteps=np.array([4, 8]), results=np.ones((2, 3)), ep_lengths=np.ones((2, 3)))
    (run / "0.monitor.csv").write_text('#{"t_start": 0.0, "env_id": "x"}\nr,l,t\n1.0,5,0.1\n')
    (run / "reward_rate.csv").write_text("window_first_step,window_last_step,mean_reward,n_envs\n0,1,0.5,2\n")
    return run


def cut(path: Path, size: float = 0.5) -> None:
    """Leave the first part of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * size)])


def with_damage(path: Path) -> None:
    """Change a few bytes in the middle."""
    data = bytearray(path.read_bytes())
    for i in range(len(data) // 3, len(data) // 3 + 40):
        data[i] ^= 0xFF
    path.write_bytes(bytes(data))


def statistics_files(run: Path) -> List[Path]:
    """Of the model, and of the run."""
    return [run / f"{CONTINUOUS}_vecnormalize.pkl", run / CONTINUOUS / "vecnormalize.pkl"]


def _checkpoint(run: Path, **writers: Any) -> None:
    """A run that was stopped, whose checkpoint holds its model and what ``writers`` write."""
    (run / CONTINUOUS / "args.yml").write_text(f"{{algo: ppo, env: {CONTINUOUS}, device: cpu, n_timesteps: 16}}\n")
    writers["model"] = lambda file: file.write((run / f"{CONTINUOUS}.zip").read_bytes())
    info = {"algo": "PPO", "num_timesteps": 8, "total_timesteps": 16, "logs": ["no", "sizes"]}
    checkpoint.write(run / "rl_model_8_steps", writers, info)


RUN_DAMAGES = {
    "model_empty": lambda run: (run / f"{CONTINUOUS}.zip").write_bytes(b""),
    "model_cut": lambda run: cut(run / f"{CONTINUOUS}.zip"),
    "model_damaged": lambda run: with_damage(run / f"{CONTINUOUS}.zip"),
    "model_text": lambda run: (run / f"{CONTINUOUS}.zip").write_text("not a zip"),
    "model_missing": lambda run: (run / f"{CONTINUOUS}.zip").unlink(),
    "config_empty": lambda run: (run / CONTINUOUS / "config.yml").write_text(""),
    "config_cut": lambda run: (run / CONTINUOUS / "config.yml").write_text("{normalize: {norm_obs: true}, pol"),
    "config_list": lambda run: (run / CONTINUOUS / "config.yml").write_text("just words"),
    "args_binary": lambda run: (run / CONTINUOUS / "args.yml").write_bytes(b"\x00\xff\x10"),
    "args_empty": lambda run: (run / CONTINUOUS / "args.yml").write_text(""),
    "args_text": lambda run: (_checkpoint(run), (run / CONTINUOUS / "args.yml").write_text("{env_kwargs: 'x:1'}\n")),
    "not_resumed": lambda run: _checkpoint(run),
    "no_state": lambda run: _checkpoint(run, state=lambda file: plain_state.save({"model": {}, "env": [1]}, file)),
    "infinite": lambda run: (run / "rl_model_8_steps.json").write_text(
        '{"format": 1, "files": {}, "num_timesteps": Infinity}'
    ),
    "stats_empty": lambda run: [path.write_bytes(b"") for path in statistics_files(run)],
    "stats_cut": lambda run: [cut(path, 0.9) for path in statistics_files(run)],
    "stats_text": lambda run: [path.write_text("not a pickle") for path in statistics_files(run)],
    "stats_number": lambda run: [path.write_bytes(pickle.dumps(3)) for path in statistics_files(run)],
    "stats_missing": lambda run: [path.unlink() for path in statistics_files(run)],
    "evaluations_empty": lambda run: (run / "evaluations.npz").write_bytes(b""),
    "evaluations_cut": lambda run: cut(run / "evaluations.npz"),
    "evaluations_text": lambda run: (run / "evaluations.npz").write_text("not an npz"),
    "evaluations_other": lambda run: np.savez(run / "evaluations.npz", a=np.ones(3)),
    "evaluations_none": lambda run: np.savez(run / "evaluations.npz", timesteps=np.ones(0), results=np.ones((0, 3))),
    "evaluations_uneven": lambda run: np.savez(run / "evaluations.npz", timesteps=np.ones(2), results=np.ones((3, 3))),
    "rewards_binary": lambda run: (run / "reward_rate.csv").write_bytes(b"\x00\xff\x10\n"),
    "monitor_empty": lambda run: (run / "0.monitor.csv").write_text(""),
    "monitor_text": lambda run: (run / "0.monitor.csv").write_text("what is this\n"),
    "monitor_header": lambda run: (run / "0.monitor.csv").write_text("#{broken\nr,l,t\n"),
    "monitor_columns": lambda run: (run / "0.monitor.csv").write_text('#{"t_start": 0.0}\na,b\n1,2\n'),
    "rewards_words": lambda run: (run / "reward_rate.csv").write_text(
        "window_first_step,window_last_step,mean_reward,n_envs\na,b,c,d\n"
    ),
    "rewards_empty": lambda run: (run / "reward_rate.csv").write_text(""),
}


def fill(folder: Path) -> None:
    """Write everything."""
    for name, text in YAML_FILES.items():
        (folder / name).write_text(text)
    (folder / "latin1.yml").write_bytes(f"{CONTINUOUS}: {{n_timesteps: 1}} # \xe4".encode("latin1"))
    (folder / "binary.yml").write_bytes(bytes(range(256)))
    (folder / "folder.yml").mkdir()
    (folder / "folder.zip").mkdir()
    (folder / "folder.pt").mkdir()
    (folder / "folder.png").mkdir()
    (folder / "taken").write_text("a file where a folder should be")
    (folder / "study.log").write_text("not a journal\n")

    run = trained_run(folder / "logs")
    good = run / f"{CONTINUOUS}.zip"
    shutil.copy(good, folder / "good.zip")
    statistics = run / CONTINUOUS / "vecnormalize.pkl"
    shutil.copy(statistics, folder / "good_vecnormalize.pkl")
    for name, damage in RUN_DAMAGES.items():
        shutil.copytree(folder / "logs", folder / "broken" / name)
        damage(folder / "broken" / name / "ppo" / run.name)

    (folder / "empty.zip").write_bytes(b"")
    (folder / "text.zip").write_text("not a zip")
    for name, change in (("cut", cut), ("damaged", with_damage)):
        shutil.copy(good, folder / f"{name}.zip")
        change(folder / f"{name}.zip")
    for name, data in (("no_data", None), ("no_json", "{"), ("list", "[1]")):
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            archive.writestr("other" if data is None else "data", data or "")
    dqn = sb3_isaac.DQN("MlpPolicy", make_env(DISCRETE, 2), buffer_size=10, device="cpu")
    dqn.save(folder / "dqn.zip")
    dqn.save_replay_buffer(folder / "buffer.pkl")
    for name, source in (("buffer", folder / "buffer.pkl"), ("stats", statistics)):
        shutil.copy(source, folder / f"{name}_cut.pkl")
        cut(folder / f"{name}_cut.pkl", 0.7)
    (folder / "empty.pkl").write_bytes(b"")
    (folder / "text.pkl").write_text("not a pickle")
    (folder / "number.pkl").write_bytes(pickle.dumps(3))
