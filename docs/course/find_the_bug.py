"""Trains with a fault of bugs.py and without, and draws both learning curves.

python docs/course/find_the_bug.py --bug late_reset --seeds 5
python docs/course/find_the_bug.py --bug all --seeds 5 --save    (into find_the_bug.json; minutes)
python docs/course/find_the_bug.py --draw                        (pictures and tables from it)
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Sequence

import bugs
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import sync_envs_normalization

import sb3_isaac
from sb3_isaac.backends.torch_cartpole import TorchCartpole

HERE = Path(__file__).resolve().parent
RESULTS, TABLES, PICTURES = HERE / "find_the_bug.json", HERE / "find_the_bug.txt", HERE.parent / "images"

# --8<-- [start:settings]
PPO = dict(
    n_steps=16,
    n_minibatches=1,
    n_epochs=8,
    learning_rate=3e-3,
    adaptive_lr_kl=0.01,
    vf_coef=1.0,
    max_grad_norm=1.0,
    policy_kwargs=dict(net_arch=dict(pi=[32], vf=[64, 64])),
)
OFF_POLICY = dict(
    learning_rate=3e-3, n_steps=10, batch_size=256, train_freq=1, learning_starts=1280, tau=0.04, reward_scale=0.3
)
DDPG = dict(OFF_POLICY, buffer_size=100_000, policy_kwargs=dict(net_arch=[32, 32], activation_fn=th.nn.Tanh))
DDPG.update(learning_rate=lambda left: 0.006 * left, train_freq=2, gradient_steps=2)
DQN = dict(OFF_POLICY, buffer_size=30_000, gradient_steps=2, per_env_epsilon=(0.6, 0.01), target_update_interval=64)
# --8<-- [end:settings]


class Bug(NamedTuple):
    right: Any
    """Algorithm, or simulator, or curve: what stands in the place of ``fault``"""
    fault: Any
    settings: Dict[str, Any]
    n_envs: int = 128
    n_timesteps: int = 60_000
    task: Dict[str, Any] = {}
    label: str = "steps that the pole stands"


# --8<-- [start:switches]
BUGS = {
    "time_limits": Bug(TorchCartpole, bugs.CartpoleOfOldGym, PPO, task={"max_episode_length": 60}),
    "gae_across_ends": Bug(sb3_isaac.PPO, bugs.PPOWithFaultyGae, PPO),
    "log_prob": Bug(sb3_isaac.PPO, bugs.PPOWithClipping, PPO),
    "shared_noise": Bug(bugs.DDPGWithOwnNoise, bugs.DDPGWithFaultyNoise, DDPG, n_envs=32),
    "replayed_rewards": Bug(bugs.RightCurve, bugs.Curve, DQN, n_envs=64, label="return of finished episodes"),
    "late_reset": Bug(TorchCartpole, bugs.CartpoleOfIsaacGymEnvs, PPO),
}
# --8<-- [end:switches]


def make(simulator: Any, n_envs: int, seed: int, algorithm: Any, **task: Any) -> Any:
    action_space = spaces.Discrete(3) if algorithm is sb3_isaac.DQN else None
    env = sb3_isaac.IsaacVecEnv(simulator(n_envs, "cpu", seed, **task), action_space=action_space)
    return sb3_isaac.VecNormalize(env, norm_reward=issubclass(algorithm, sb3_isaac.PPO))


class Evaluations(BaseCallback):
    """How long 32 fresh cartpoles stand without exploration, ``n`` times in a training and at its end."""

    def __init__(self, env: Any, every: int) -> None:
        super().__init__()
        self.env, self.every, self.lengths = env, every, []  # type: ignore[var-annotated]

    def _on_step(self) -> bool:
        if self.num_timesteps // self.every > (self.num_timesteps - self.training_env.num_envs) // self.every:
            self.look()
        return True

    def look(self) -> None:
        sync_envs_normalization(self.model.get_env(), self.env)
        self.lengths.append(round(sb3_isaac.evaluate(self.model, self.env, 32).mean_length, 1))


def train(name: str, faulty: bool, seed: int, n_timesteps: int, n_points: int = 10) -> Dict[str, Any]:
    """One training: its curve, and what else tells the two apart."""
    bug = BUGS[name]
    part = bug.fault if faulty else bug.right
    is_algorithm, is_curve = hasattr(part, "learn"), issubclass(part, BaseCallback)
    algorithm = part if is_algorithm else sb3_isaac.DQN if is_curve else sb3_isaac.PPO
    simulator = TorchCartpole if is_algorithm or is_curve else part
    env = make(simulator, bug.n_envs, seed, algorithm, **bug.task)
    model = algorithm("MlpPolicy", env, seed=seed, device="cpu", **bug.settings)
    if is_curve:
        curve = part()
        model.learn(n_timesteps, callback=curve)
        groups = np.array_split(np.array(curve.points), n_points)
        return {"curve": [round(float(group.mean()), 4) for group in groups], "measures": {}}
    ratios_off = RatiosOff()
    evaluations = Evaluations(make(TorchCartpole, 32, seed + 1000, algorithm), n_timesteps // n_points)
    model.learn(n_timesteps, callback=[evaluations, ratios_off])
    return {"curve": evaluations.lengths[:n_points], "measures": measure(name, model, ratios_off)}


# --8<-- [start:ratios]
class RatiosOff(BaseCallback):
    """Share of the first rollout's rows whose probability ratio is not 1 before the first gradient step."""

    share = 0.0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        buffer: Any = getattr(self.model, "rollout_buffer", None)
        if buffer is not None and self.model._n_updates == 0:
            t, policy = buffer.tensors, self.model.policy
            with th.no_grad():
                log_probs = policy.evaluate_actions(t.observations.flatten(0, 1), t.actions.flatten(0, 1))[1]
            self.share = ((log_probs - t.log_probs.flatten()).abs() > 1e-3).float().mean().item()


# --8<-- [end:ratios]


def measure(name: str, model: Any, ratios_off: RatiosOff) -> Dict[str, float]:
    """What tells more than the curve, by the heading of a column."""
    if name == "log_prob":
        return {"ratios that are not 1 at the start": ratios_off.share}
    if name == "shared_noise":
        noise = model._run.exploration.add_to(th.zeros(1000, 1))
        return {"spread of the noise over 1,000 environments": noise.std().item()}
    critic, played, fallen = values(model)
    explained = float(model.logger.name_to_value["train/explained_variance"])
    measures = {"critic's value of a start": critic, "what it brought": played, "explained variance": explained}
    return dict(measures, **{"critic's value of a fallen pole": fallen}) if name == "late_reset" else measures


@th.no_grad()
def values(model: Any, n_envs: int = 256, n_steps: int = 400) -> Sequence[float]:
    """The critic's mean value of fresh starts, the discounted return that followed, the critic's value of a failure."""
    normalize = model.get_env()
    scale = float(np.sqrt(normalize.ret_rms.var + normalize.epsilon))

    def normalized(obs: th.Tensor) -> th.Tensor:
        return th.as_tensor(normalize.normalize_obs(obs.numpy()))

    def critic(obs: th.Tensor) -> float:
        return float(model.policy.predict_values(normalized(obs)).mean()) * scale

    simulator = TorchCartpole(n_envs, "cpu", 7, max_episode_length=n_steps + 10)
    obs = simulator.reset()
    fallen = obs.clone()
    fallen[:, 2] = 1.6  # just beyond a right angle
    first, total, weight = critic(obs), th.zeros(n_envs), th.ones(n_envs)
    for _ in range(n_steps):
        result = simulator.step(model.policy.get_distribution(normalized(obs)).get_actions())
        total += weight * result.reward
        weight *= model.gamma * ~result.terminated
        obs = result.obs
    return first, total.mean().item(), critic(fallen)


def solved(curve: List[float], n_timesteps: int) -> float:
    """Steps until two evaluations in a row reach 475 (as sb3-isaac train --until-solved has it); infinite: never."""
    for i in range(1, len(curve)):
        if min(curve[i - 1 : i + 1]) >= 475:
            return n_timesteps * (i + 1) / len(curve)
    return float("inf")


def table(name: str, result: Dict[str, Any]) -> str:
    """Both kinds of trainings in a few numbers, in Markdown."""
    n = result["n_timesteps"]
    rows = [[f"{len(result['right'])} seeds, {n:,} steps"], ["right"], ["with the fault"]]
    for row, runs in zip(rows[1:], (result["right"], result["fault"])):
        curves = [run["curve"] for run in runs]
        ends, digits = [curve[-1] for curve in curves], 3 if max(map(max, curves)) < 2 else 0
        halves = [_half_way(curve, n) for curve in curves]
        columns = {"at the end, mean": f"{np.mean(ends):.{digits}f}", "worst and best seed": ""}
        columns["worst and best seed"] = f"{min(ends):.{digits}f} to {max(ends):.{digits}f}"
        columns["steps until half of the rise, mean"] = f"{np.mean(halves):,.0f}"
        if name != "replayed_rewards":
            times = sorted(solved(curve, n) for curve in curves)
            there = [time for time in times if time < float("inf")]
            columns["solved (475)"] = f"{len(there)} of {len(times)}" + (f", {np.mean(there):,.0f} steps" if there else "")
        for key in runs[0]["measures"]:
            columns[key] = f"{np.mean([run['measures'][key] for run in runs]):.2f}"
        if len(rows[0]) == 1:
            rows[0] += columns
        row += columns.values()
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _half_way(curve: List[float], n_timesteps: int) -> float:
    half = (curve[0] + max(curve)) / 2
    return n_timesteps * (1 + int(np.argmax(np.array(curve) >= half))) / len(curve)


def draw(results: Dict[str, Any]) -> None:
    """Writes docs/images/bug_*.svg and the tables that the page includes."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "bugs"  # the same picture from the same numbers
    from matplotlib import pyplot

    for name, result in results.items():
        panels = 2 if name == "replayed_rewards" else 1
        figure, axes = pyplot.subplots(1, panels, figsize=(4.8 * panels, 2.8), layout="constrained", squeeze=False)
        labels = (("fault", "this code", "tab:red"), ("right", "right code", "tab:blue"))
        for i, (kind, label, color) in enumerate(labels):
            curves = np.array([run["curve"] for run in result[kind]])
            steps = np.linspace(0, result["n_timesteps"], curves.shape[1] + 1)[1:] / 1000
            plot = axes[0, i % panels]
            plot.fill_between(steps, curves.min(0), curves.max(0), color=color, alpha=0.15, linewidth=0)
            plot.plot(steps, curves.mean(0), color=color, label=label)
            shown = "reward" if panels == 2 and kind == "fault" else BUGS[name].label
            plot.set(xlabel="thousand steps of all environments", ylabel=shown)
            plot.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, frameon=False)  # above: bands reach each corner
        figure.savefig(PICTURES / f"bug_{name}.svg", metadata={"Date": None})
        pyplot.close(figure)
    TABLES.write_text(tables(results))


def tables(results: Dict[str, Any]) -> str:
    """What find_the_bug.txt holds: the tables, each between the marks by which the page includes it."""
    marked = (f"--8<-- [start:{name}]\n{table(name, result)}\n--8<-- [end:{name}]\n" for name, result in results.items())
    return "".join(marked)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--bug", choices=[*BUGS, "all"], help="which fault")
    parser.add_argument("--seeds", type=int, default=1, help="trainings with the fault, and as many without")
    parser.add_argument("--n-timesteps", type=int, help="of each training")
    parser.add_argument("--save", action="store_true", help="keep the curves in find_the_bug.json")
    parser.add_argument("--draw", action="store_true", help="pictures and tables from find_the_bug.json")
    args = parser.parse_args()
    for name in BUGS if args.bug == "all" else [args.bug] if args.bug else []:
        n_timesteps = args.n_timesteps or BUGS[name].n_timesteps
        result: Dict[str, Any] = {"n_timesteps": n_timesteps}
        for kind in ("right", "fault"):
            result[kind] = [train(name, kind == "fault", seed, n_timesteps) for seed in range(args.seeds)]
        print(f"{name}\n{table(name, result)}", flush=True)
        if args.save:
            saved = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
            saved[name] = result
            ordered = {bug: saved[bug] for bug in BUGS if bug in saved}
            RESULTS.write_text(json.dumps(ordered, indent=0) + "\n")
    if args.draw:
        draw(json.loads(RESULTS.read_text()))


if __name__ == "__main__":
    main()
