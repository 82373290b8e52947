"""PPO trained on one cartpole and on many different ones, both evaluated on cartpoles that are not as in training."""

from __future__ import annotations

import argparse
import time
import warnings
from typing import Any, Dict, List

import numpy as np
import torch as th

import sb3_isaac

# --8<-- [start:ranges]
RANGES = {
    "cart_mass": (0.5, 2.0),  # kg
    "pole_mass": (0.5, 2.0),  # kg
    "pole_length": (0.5, 2.0),  # m
    "angular_damping": (0.0, 1.0),  # 1/s
    "force_scale": (0.5, 1.5),  # times max_effort
    "action_delay": (0, 3),  # control steps
    "obs_noise": (0.0, 0.01),  # standard deviation
    "push_velocity": (-1.5, 1.5),  # rad/s, to the pole
    "push_interval": (1.0, 3.0),  # s
}
env = sb3_isaac.make_vec_env("IsaacGymCartpole-v0", n_envs=256, seed=0, randomize=RANGES)
# --8<-- [end:ranges]

WORLDS: Dict[str, Dict[str, Any]] = {
    "as it is": {},
    "pole of 2 m": {"pole_length": 2.0},
    "pole of 3 m, longer than any in training": {"pole_length": 3.0},
    "pole of 0.5 m": {"pole_length": 0.5},
    "actions 2 steps late": {"randomize": {"action_delay": 2}},
    "actions 3 steps late": {"randomize": {"action_delay": 3}},
    "force 1.5 times as strong, 2 steps late": {"randomize": {"force_scale": 1.5, "action_delay": 2}},
    "everything drawn from the ranges": {"randomize": RANGES},
}


def train(randomize: Any, seed: int, n_timesteps: int) -> Any:
    """The entry of hyperparams/ppo.yml on twice as many environments."""
    env = sb3_isaac.make_vec_env("IsaacGymCartpole-v0", n_envs=256, device="cpu", seed=seed, randomize=randomize)
    network = {"net_arch": {"pi": [32], "vf": [64, 64]}}
    model = sb3_isaac.PPO(
        "MlpPolicy", sb3_isaac.VecNormalize(env), seed=seed, device="cpu", n_steps=16, n_minibatches=1, n_epochs=8,
        learning_rate=0.0036, adaptive_lr_kl=0.01, vf_coef=1.0, max_grad_norm=1.0, policy_kwargs=network,
    )  # fmt: skip
    return model.learn(n_timesteps)


# --8<-- [start:evaluate]
def returns(model: Any, **world: Any) -> float:
    """Mean return of 64 episodes in another world, with the statistics of training."""
    env = sb3_isaac.make_vec_env("IsaacGymCartpole-v0", n_envs=64, device="cpu", seed=1000, **world)
    normalized = sb3_isaac.VecNormalize(env, training=False, norm_reward=False)
    normalized.obs_rms = model.get_vec_normalize_env().obs_rms
    return sb3_isaac.evaluate(model, normalized, n_episodes=64).mean


# --8<-- [end:evaluate]


def print_returns(n_seeds: int, n_timesteps: int) -> None:
    print("| evaluated on | trained on one cartpole | trained on many |\n|---|---|---|")
    models = [[train(ranges, seed, n_timesteps) for seed in range(n_seeds)] for ranges in (None, RANGES)]
    for name, world in WORLDS.items():
        cells = []
        for same_ranges in models:
            found = [returns(model, **world) for model in same_ranges]
            cells.append(f"{np.mean(found):.0f} ({min(found):.0f} to {max(found):.0f})")
        print(f"| {name} | {' | '.join(cells)} |")


def print_cost(n_rounds: int, n_steps: int = 50, n_envs: int = 4096) -> None:
    """Microseconds of a processor in one step of the simulator, in rounds of all by turns: others may be busy, too."""
    given: Dict[str, Any] = {"nothing": None, "nothing, once more": {}, "all": RANGES}
    for names in (("pole_length",), ("force_scale",), ("action_delay",), ("obs_noise",), ("push_velocity", "push_interval")):
        given[", ".join(f"`{name}`" for name in names)] = {name: RANGES[name] for name in names}
    envs = {what: make_simulator(n_envs, ranges) for what, ranges in given.items()}
    times: Dict[str, List[float]] = {what: [] for what in envs}
    actions = th.zeros(n_envs, 1)
    for _ in range(n_rounds):
        for what, simulator in envs.items():
            start = time.process_time()
            for _ in range(n_steps):
                simulator.step(actions)
            times[what].append((time.process_time() - start) / n_steps * 1e6)
    print(f"| randomised, {n_envs} cartpoles | microseconds | of nothing |\n|---|---|---|")
    for what, found in times.items():
        print(f"| {what} | {np.median(found):.0f} | {np.median(np.divide(found, times['nothing'])):.2f} |")


def make_simulator(n_envs: int, ranges: Any) -> Any:
    simulator = sb3_isaac.make_vec_env("IsaacGymCartpole-v0", n_envs, device="cpu", seed=0, randomize=ranges).tensor_env
    simulator.reset()
    return simulator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n-timesteps", type=int, default=800_000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=40, help="of the measurement of costs")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    print("--8<-- [start:cost]")
    print_cost(args.rounds)
    print("--8<-- [end:cost]\n\n--8<-- [start:returns]")
    print_returns(args.seeds, args.n_timesteps)
    print("--8<-- [end:returns]")


if __name__ == "__main__":
    main()
