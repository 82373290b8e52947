"""What a training spends its time with, on one CPU thread: python docs/reference/where_time_goes.py

Writes where_time_goes.txt. Times are of the thread, so that other programs on the machine do not count.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence

import sb3_isaac  # isort: skip  # before torch, which Isaac Gym wants
import torch as th

HERE = Path(__file__).resolve().parent
N_ENVS = (64, 1024, 4096)


@th.no_grad()
def microseconds(work: Callable[[], Any], repeats: int) -> float:
    """Median time of one call."""
    work()
    times = []
    for _ in range(repeats):
        start = time.thread_time()
        work()
        times.append(time.thread_time() - start)
    return 1e6 * statistics.median(times)


# --8<-- [start:ppo]
def ppo(n_envs: int, repeats: int, compiled: bool) -> Dict[str, float]:
    """Microseconds of one step of all environments, by what is done; updates are shared out among the steps of a rollout."""
    env = sb3_isaac.make_vec_env("IsaacGymCartpole-v0", n_envs, seed=0, device="cpu")
    n_steps = 16
    net_arch = {"pi": [32], "vf": [64, 64]}
    settings: Dict[str, Any] = dict(n_steps=n_steps, n_minibatches=1, n_epochs=8, policy_kwargs={"net_arch": net_arch})
    model = sb3_isaac.PPO("MlpPolicy", env, seed=0, device="cpu", compile=compiled, **settings)
    model.learn(n_envs * n_steps)
    rollout, buffer, obs = model._run.rollout, model.rollout_buffer, env.obs_tensor
    with th.no_grad():
        actions, values, log_probs, _ = rollout._fast.act(obs)
    reward = th.zeros(n_envs)
    return {
        "stepping": microseconds(lambda: env.step_tensor(actions), repeats),
        "acting": microseconds(lambda: rollout._fast.act(obs), repeats),
        "storing": microseconds(lambda: buffer.put(0, obs, actions, reward, values, log_probs), repeats),
        "updating": microseconds(model.train, max(3, repeats // 20)) / n_steps,
    }


# --8<-- [end:ppo]


def off_policy(algorithm: Any, n_envs: int, repeats: int, compiled: bool) -> Dict[str, float]:
    """The same for DQN and DDPG, with one gradient step of 256 transitions for each step."""
    kind = "Discrete" if algorithm is sb3_isaac.DQN else ""
    env = sb3_isaac.make_vec_env(f"IsaacGymCartpole{kind}-v0", n_envs, seed=0, device="cpu")
    net_arch = [64, 64] if kind else [32, 32]
    settings: Dict[str, Any] = dict(learning_starts=n_envs, batch_size=256, train_freq=1, policy_kwargs={"net_arch": net_arch})
    settings["compile"] = compiled
    model = algorithm("MlpPolicy", env, seed=0, device="cpu", buffer_size=100 * n_envs, **settings)
    model.learn(4 * n_envs)
    obs, buffer, no = env.obs_tensor, model.replay_buffer, th.zeros(n_envs, dtype=th.bool)
    reward = th.zeros(n_envs)

    def act() -> th.Tensor:
        return model._act(obs, False)

    actions = act()
    return {
        "stepping": microseconds(lambda: env.step_tensor(actions), repeats),
        "acting": microseconds(act, repeats),
        "storing": microseconds(lambda: buffer.add_row(buffer.pack(obs, obs, actions, reward, no, no)), repeats),
        "updating": microseconds(lambda: model.train(1, 256), repeats),
    }


def table(n_envs: Sequence[int], repeats: int) -> str:
    """All of it in Markdown: shares of a step, and the whole of it."""
    lines: List[str] = []
    works = {"PPO": ppo, "DQN": partial(off_policy, sb3_isaac.DQN), "DDPG": partial(off_policy, sb3_isaac.DDPG)}
    for (algo, work), compiled in itertools.product(works.items(), (False, True)):
        name = f"{algo}, in C" if compiled else algo
        for n in n_envs:
            parts = work(n_envs=n, repeats=repeats, compiled=compiled)
            total = sum(parts.values())
            if not lines:
                lines += ["| | environments | " + " | ".join(parts) + " | one step, ms | steps/s |", "|---|" + "---|" * 7]
            shares = " | ".join(f"{part / total:.0%}" for part in parts.values())
            lines.append(f"| {name} | {n:,} | {shares} | {total / 1000:.2f} | {1e6 * n / total:,.0f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--n-envs", type=int, nargs="+", default=N_ENVS)
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--out", default=str(HERE / "where_time_goes.txt"), help="the file to write")
    args = parser.parse_args()
    th.set_num_threads(1)
    Path(args.out).write_text(table(args.n_envs, args.repeats))
    print(Path(args.out).read_text(), end="")
