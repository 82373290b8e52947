"""Files as the package wrote them before its layers became folders, and what was in them: tests/test_old_files.py reads them.

Run it with the commit named in README.md on the path, once with each Python:
    git worktree add /tmp/before 0442c54
    PYTHONPATH=/tmp/before OMP_NUM_THREADS=1 python tests/data/make_old_files.py
"""

from __future__ import annotations

import os
import pickle
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List

import sb3_isaac  # isort: skip
import numpy as np
import stable_baselines3
import torch as th
from stable_baselines3.common.noise import NormalActionNoise

N_ENVS = 4
OFF_POLICY: Dict[str, Any] = dict(
    buffer_size=400, batch_size=16, learning_starts=40, train_freq=1, gradient_steps=1, gamma=0.97, learning_rate=0.002
)


def small() -> Dict[str, Any]:
    """Options for each model; SB3 changes ``policy_kwargs``."""
    return dict(seed=0, device="cpu", policy_kwargs=dict(net_arch=[16]))


OBS = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)

# As the command sb3-isaac, but that the study does not hold the name of the machine
COMMAND = "import socket, sys; socket.gethostname = lambda: 'machine'; from sb3_isaac.cli import main; sys.exit(main())"
PPO_SMALL = (
    "n_envs:4 n_steps:16 n_minibatches:2 n_epochs:2 "
    "policy_kwargs:dict(net_arch=dict(pi=[16],vf=[16]),activation_fn='leaky_relu',log_std_init=-1.151)"
)


def make_env(env_id: str = "IsaacGymCartpole-v0") -> Any:
    """Episodes are cut off often, so that the buffers hold ends of both kinds."""
    return sb3_isaac.make_vec_env(env_id, N_ENVS, backend="torch", device="cpu", seed=0, max_episode_length=25)


def models() -> Dict[str, Any]:
    """One trained model per kind of file."""
    box, discrete = "IsaacGymCartpole-v0", "IsaacGymCartpoleDiscrete-v0"
    ppo = sb3_isaac.PPO("MlpPolicy", make_env(box), n_steps=16, batch_size=32, n_epochs=2, clip_range=0.25, **small())
    adaptive = sb3_isaac.PPO(
        "MlpPolicy",
        sb3_isaac.VecNormalize(make_env(box)),
        n_steps=16,
        n_minibatches=2,
        adaptive_lr_kl=0.01,
        adaptive_lr_max=0.005,
        spread_time_limits=True,
        **small(),
    )
    dqn = sb3_isaac.DQN(
        "MlpPolicy",
        make_env(discrete),
        n_steps=3,
        per_env_epsilon=(1.0, 0.01),
        reward_scale=0.1,
        double_q=True,
        target_update_interval=40,
        **OFF_POLICY,
        **small(),
    )
    noise = NormalActionNoise(np.zeros(1), np.full(1, 0.3))
    ddpg = sb3_isaac.DDPG(
        "MlpPolicy", make_env(box), n_steps=3, per_env_noise=(1.0, 0.1), action_noise=noise, **OFF_POLICY, **small()
    )
    # Stock algorithms name our buffer class in their files
    stock = stable_baselines3.DQN(
        "MlpPolicy", make_env(discrete), replay_buffer_class=sb3_isaac.DeviceReplayBuffer, **OFF_POLICY, **small()
    )
    stock_ppo = stable_baselines3.PPO(
        "MlpPolicy", make_env(box), n_steps=16, batch_size=32, rollout_buffer_class=sb3_isaac.DeviceRolloutBuffer, **small()
    )
    made = dict(ppo=ppo, ppo_adaptive=adaptive, dqn=dqn, ddpg=ddpg, stock_dqn=stock, stock_ppo=stock_ppo)
    for model in made.values():
        model.learn(192)
    return made


def outputs(model: Any) -> Dict[str, np.ndarray]:
    """What a model computes for OBS, and its numbers."""
    obs = th.from_numpy(OBS)
    with th.no_grad():
        if hasattr(model, "q_net"):
            values = model.q_net(obs)
        elif hasattr(model, "critic"):
            values = model.critic(obs, model.actor(obs))[0]
        else:
            values = model.policy.predict_values(obs)
    found = {
        "actions": model.predict(OBS, deterministic=True)[0],
        "values": values.numpy(),
        "num_timesteps": np.array(model.num_timesteps),
        "n_updates": np.array(model._n_updates),
        "adapted_lr": np.array(getattr(model, "adapted_lr", None) or 0.0),
    }
    parameters = model.get_parameters()
    found["policy"] = th.cat([tensor.flatten() for tensor in parameters["policy"].values()]).numpy()
    moments = [state["exp_avg_sq"] for name in sorted(parameters) for state in parameters[name].get("state", {}).values()]
    found["adam"] = th.cat([moment.flatten() for moment in moments]).numpy()
    return found


def transitions(buffer: Any) -> Dict[str, np.ndarray]:
    """The rows of a DeviceReplayBuffer."""
    names = ("observations", "next_observations", "actions", "rewards", "dones")
    found = {name: getattr(buffer, name)[: buffer.pos].numpy() for name in names}  # it is not full
    return {**found, "pos": np.array(buffer.pos)}


def write_models(folder: Path) -> None:
    expected: Dict[str, np.ndarray] = {"obs": OBS}

    def expect(name: str, found: Dict[str, np.ndarray]) -> None:
        expected.update({f"{name}/{key}": value for key, value in found.items()})

    made = models()
    for name, model in made.items():
        model.save(folder / f"{name}.zip")
        expect(name, outputs(model))
        if hasattr(model, "save_replay_buffer"):  # stock SB3 pickles our DeviceReplayBuffer itself
            model.save_replay_buffer(folder / f"{name}_buffer.pkl")
            expect(f"{name}_buffer", transitions(model.replay_buffer))
    normalize = made["ppo_adaptive"].get_vec_normalize_env()
    normalize.save(str(folder / "vecnormalize.pkl"))
    for name in ("obs_rms", "ret_rms"):
        rms = getattr(normalize, name)
        expect("vecnormalize", {f"{name}/{part}": np.array(getattr(rms, part)) for part in ("mean", "var", "count")})

    replay = made["dqn"].replay_buffer
    replay.generator = th.Generator().manual_seed(3)
    (folder / "device_replay_buffer.pkl").write_bytes(pickle.dumps(replay))
    expect("device_replay_buffer", transitions(replay))
    rollout = made["ppo"].rollout_buffer
    (folder / "device_rollout_buffer.pkl").write_bytes(pickle.dumps(rollout))
    expect("device_rollout_buffer", {key: value.numpy() for key, value in rollout.tensors._asdict().items()})
    samples = rollout._get_samples(np.arange(N_ENVS * 16))
    expect("device_rollout_buffer/samples", {key: getattr(samples, key).numpy() for key in samples._fields})
    np.savez_compressed(str(folder / "expected.npz"), **expected)


def command(folder: Path, words: List[str]) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", COMMAND, *words], cwd=folder, env=env, check=True)


def write_run(folder: Path) -> None:
    """What is needed of a run folder of ``sb3-isaac train``, and a study of three trials in both kinds of storage."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        words = "train --algo ppo --env IsaacGymCartpoleSeed-v0 -n 1280 --seed 1 --device cpu --eval-freq -1 -f runs"
        command(work, [*words.split(), "-params", *PPO_SMALL.split()])
        shutil.copytree(work / "runs", folder / "runs", ignore=shutil.ignore_patterns("command.txt"))
        # Databases are large, and Optuna 4 and 5 read each other's: one is enough
        for storage in ("study.log", "sqlite:///study.db") if sys.version_info < (3, 9) else ("study.log",):
            words = f"optimize --algo ppo --env IsaacGymCartpole-v0 --n-trials 3 -n 512 --seed 0 --storage {storage}"
            words += " --study-name old --no-optim-plots --device cpu --eval-episodes 4 --n-eval-envs 4"
            command(work, [*words.split(), "-params", "n_envs:4"])
            file = storage.split("/")[-1]
            shutil.copy(work / file, folder / file)


def main() -> None:
    version = ".".join(platform.python_version_tuple()[:2])
    folder = Path(__file__).parent / "before_folders" / f"python_{version}_sb3_{stable_baselines3.__version__}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_models(folder)
    write_run(folder)


if __name__ == "__main__":
    main()
