"""Writes the tables of the reference pages that follow from the package: python docs/reference/tables.py

``settings_side_by_side.txt``, ``hyperparameters.txt`` and ``memory.txt``. A test holds them against the package.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Mapping, Sequence

import yaml

import sb3_isaac
from sb3_isaac.settings import defaults_of
from sb3_isaac.settings.memory import BYTES_PER_ENV, replay_bytes, rollout_bytes
from sb3_isaac.settings.table import ALGORITHM, CARTPOLE, ENTRY, ENV, NORMALIZE, RANDOMIZE, REPLAY, Setting

HERE = Path(__file__).resolve().parent
ENTRIES = HERE.parents[1] / "hyperparams"


def markdown(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [heads, ["---"] * len(heads), *[[str(cell).replace("|", "\\|") for cell in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def sections(tables: Mapping[str, str]) -> str:
    """Tables in one file, each between the marks by which a page includes it."""
    return "\n".join(f"--8<-- [start:{name}]\n{table}--8<-- [end:{name}]" for name, table in tables.items()) + "\n"


# -- settings side by side -------------------------------------------------------------------------------------------


def entry(algo: str, env_id: str) -> Dict[str, Any]:
    found: Dict[str, Any] = yaml.safe_load((ENTRIES / f"{algo}.yml").read_text())[env_id]
    return found


def network(entry: Mapping[str, Any]) -> str:
    kwargs = entry.get("policy_kwargs") or {}
    arch, activation = kwargs.get("net_arch"), kwargs.get("activation_fn", "SB3's")
    sizes = arch if isinstance(arch, list) else " and ".join(f"{name} {size}" for name, size in arch.items())
    return f"{sizes}, {activation}".replace("pi ", "policy ").replace("vf ", "value ")


def ours_ppo(env_id: str) -> Dict[str, str]:
    e = entry("ppo", env_id)
    normalize = e.get("normalize") or {}
    return {
        "environments": e["n_envs"],
        "steps of each in a rollout": e["n_steps"],
        "rows in a minibatch": e["n_envs"] * e["n_steps"] // e["n_minibatches"],
        "epochs": e["n_epochs"],
        "learning rate": e["learning_rate"],
        "adapted to a KL divergence of": e.get("adaptive_lr_kl", "no"),
        "gamma": e["gamma"],
        "lambda": e["gae_lambda"],
        "clip range": e["clip_range"],
        "clip range of values": e.get("clip_range_vf", "none"),
        "value loss, factor on the squared error": e.get("vf_coef", defaults_of(sb3_isaac.PPO)["vf_coef"]),
        "gradient norm": e["max_grad_norm"],
        "networks": network(e),
        "observations normalised": "yes" if normalize.get("norm_obs") else "no",
        "rewards": "divided by their running scale" if normalize.get("norm_reward") else "as they are",
        "steps in all": f"{e['n_timesteps']:,}",
    }


# What others have, read in the files that the page names. Only what stands there.
RL_GAMES: Dict[str, Any] = {
    "environments": 512,
    "steps of each in a rollout": 16,
    "rows in a minibatch": 8192,
    "epochs": 8,
    "learning rate": 0.0003,
    "adapted to a KL divergence of": 0.008,
    "gamma": 0.99,
    "lambda": 0.95,
    "clip range": 0.2,
    "clip range of values": "the same",
    "value loss, factor on the squared error": "2.0 (critic_coef 4, on half of it)",
    "gradient norm": 1.0,
    "networks": "one for both, [32, 32], elu",
    "observations normalised": "yes",
    "rewards": "times 0.1; values normalised",
    "steps in all": "819,200 (100 iterations)",
}
SKRL = dict(
    RL_GAMES,
    **{
        "clip range of values": 0.2,
        "value loss, factor on the squared error": 2.0,
        "steps in all": "819,200 (1,600 steps of each)",
    },
)
CLEANRL: Dict[str, Any] = {
    "environments": 4096,
    "steps of each in a rollout": 16,
    "rows in a minibatch": 32768,
    "epochs": 4,
    "learning rate": 0.0026,
    "adapted to a KL divergence of": "no",
    "gamma": 0.99,
    "lambda": 0.95,
    "clip range": 0.2,
    "clip range of values": "none",
    "value loss, factor on the squared error": "1.0 (vf-coef 2, on half of it)",
    "gradient norm": 1.0,
    "networks": "policy [256, 256] and value [256, 256], tanh",
    "observations normalised": "no",
    "rewards": "as they are",
    "steps in all": "30,000,000",
}
OFF_POLICY = {
    "environments": "n_envs",
    "learning rate": "learning_rate",
    "gamma": "gamma",
    "n-step returns": "n_steps",
    "buffer, transitions of all": "buffer_size",
    "batch": "batch_size",
    "steps of all environments between updates": "train_freq",
    "gradient steps then": "gradient_steps",
    "random transitions first": "learning_starts",
    "tau": "tau",
    "target update, transitions": "target_update_interval",
    "epsilon, first and last environment": "per_env_epsilon",
    "epsilon at first": "exploration_initial_eps",
    "epsilon at last": "exploration_final_eps",
    "noise, first and last environment": "per_env_noise",
    "noise": "noise_type",
    "its standard deviation": "noise_std",
    "one noise for all": "shared_noise",
    "Double DQN": "double_q",
    "gradient norm": "max_grad_norm",
    "factor on rewards": "reward_scale",
    "networks": "policy_kwargs",
    "steps in all": "n_timesteps",
}


def side_by_side() -> str:
    columns = {
        "`IsaacGymCartpole-v0`": ours_ppo("IsaacGymCartpole-v0"),
        "`IsaacGymCartpoleRlGames-v0`": ours_ppo("IsaacGymCartpoleRlGames-v0"),
        "rl_games in IsaacGymEnvs": RL_GAMES,
        "skrl": SKRL,
        "CleanRL": CLEANRL,
        "`IsaacGymCartpoleSeed-v0`": ours_ppo("IsaacGymCartpoleSeed-v0"),
    }
    tables = {"ppo": markdown(["", *columns], [[name, *[c[name] for c in columns.values()]] for name in RL_GAMES])}
    for algo, kind in (("dqn", "Discrete"), ("ddpg", "")):
        found = {
            f"`IsaacGymCartpole{middle}{kind}-v0`": entry(algo, f"IsaacGymCartpole{middle}{kind}-v0")
            for middle in ("", "Seed")
        }
        rows = []
        for name, key in OFF_POLICY.items():
            if any(key in e for e in found.values()):
                rows.append([name, *[network(e) if key == "policy_kwargs" else e.get(key, "") for e in found.values()]])
        tables[algo] = markdown(["", *found], rows)
    return sections(tables)


# -- hyperparameters -------------------------------------------------------------------------------------------------


def hyperparameters() -> str:
    defaults = [dict(defaults_of(algorithm)) for algorithm in (sb3_isaac.PPO, sb3_isaac.DQN, sb3_isaac.DDPG)]

    def rows(table: Mapping[str, Setting], with_defaults: bool) -> List[List[str]]:
        found = []
        for name, setting in sorted(table.items()):
            cells = [f"`{d[name]!r}`" if name in d else "" for d in defaults] if with_defaults else []
            found.append([f"`{name}`", setting.expected(), *cells])
        return found

    algorithm, own = ("PPO", "DQN", "DDPG"), {name: s for name, s in ENTRY.items() if name not in ALGORITHM}
    return sections(
        {
            "algorithm": markdown(["key", "what it may be", *algorithm], rows(ALGORITHM, True)),
            "entry": markdown(["key", "what it may be"], rows(own, False)),
            "normalize": markdown(["key", "what it may be"], rows(NORMALIZE, False)),
            "replay": markdown(["key", "what it may be"], rows(REPLAY, False)),
            "env": markdown(["key", "what it may be"], rows(ENV, False)),
            "cartpole": markdown(["key", "what it may be"], rows(CARTPOLE, False)),
            "randomize": markdown(["key", "what it may be"], rows(RANDOMIZE, False)),
        }
    )


# -- memory ----------------------------------------------------------------------------------------------------------


def megabytes(size: float) -> str:
    return f"{size / 1e6:,.2f}"


def memory() -> str:
    """Of the cartpole: 4 numbers of state, 1 action."""
    n_envs, n_steps, sizes = (128, 1024, 4096, 65_536), (16, 128), (100_000, 1_000_000, 10_000_000)
    environments = [
        [f"{n:,}", megabytes(n * BYTES_PER_ENV), *[megabytes(rollout_bytes(steps, n, 4, 1)) for steps in n_steps]]
        for n in n_envs
    ]
    heads = ["environments", "themselves, at least", *[f"PPO's rollouts of {steps} steps" for steps in n_steps]]
    return sections(
        {
            "environments": markdown(heads, environments),
            "replay": markdown(
                ["`buffer_size`", "replay buffer"], [[f"{n:,}", megabytes(replay_bytes(n, 4, 1))] for n in sizes]
            ),
        }
    )


FILES: Dict[str, Callable[[], str]] = {
    "settings_side_by_side.txt": side_by_side,
    "hyperparameters.txt": hyperparameters,
    "memory.txt": memory,
}

if __name__ == "__main__":
    for name, make in FILES.items():
        (HERE / name).write_text(make())
