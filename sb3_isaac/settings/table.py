"""The table of settings: what each may be. Hyperparameter files, ``-params``, flags and arguments are held against it.

Defaults are not in it: they stand in the signatures of the constructors, where :func:`sb3_isaac.settings.defaults_of` reads
them, and in the parsers of the commands.
"""

from __future__ import annotations

import math
from typing import Any, Dict, NamedTuple, Tuple


class Setting(NamedTuple):
    """What one setting may be.

    As in mathematics, an interval's round bracket leaves the end out: "(0, 1]" is greater than 0 and at most 1. Not a number
    is in no interval, and infinity only in those that end with "inf]".
    """

    kind: str
    """"whole" (a whole number), "count" (the same, and 1e6 may be written for it), "number", "schedule" (a number, or what SB3
    and rl_zoo3 take for one that changes), "frequency" (SB3's train_freq), "ends" (two numbers), "range" (a number or two, the
    lower one first), "whole range", "noise" (a range, or a number for each of an observation's four), "flag" (True or False),
    "mapping" (names and values), "choice" (of ``besides``), "word", "names" (classes of rl_zoo3's files: "module.Class")"""
    interval: str = "(-inf, inf)"
    unit: str = ""
    optional: bool = False
    """Whether None says something too"""
    besides: Tuple[Any, ...] = ()
    """Values outside the interval that say something special"""
    means: str = ""
    """What these say, or None"""
    algos: Tuple[str, ...] = ()
    """rl_zoo3's names of the algorithms that it holds for; none: for all that have the setting"""

    @property
    def ends(self) -> Tuple[float, float]:
        low, high = (end.strip() for end in self.interval[1:-1].split(","))
        # Whole numbers stay whole: a float has not enough digits for 2**63 - 1
        return tuple(int(end) if end.lstrip("-").isdigit() else float(end) for end in (low, high))  # type: ignore[return-value]

    def contains(self, number: float) -> bool:
        """Whether the number lies in the interval. Python compares whole numbers of any size exactly."""
        low, high = self.ends
        above = number > low if self.interval[0] == "(" else number >= low
        below = number < high if self.interval[-1] == ")" else number <= high
        return above and below

    def expected(self) -> str:
        """In words: "a number greater than 0 and at most 1, or None"."""
        text = _NOUNS[self.kind]
        if self.kind in ("whole", "count", "number", "schedule", "ends", "frequency", *RANGES):
            text += self._range() + (f" ({self.unit})" if self.unit else "")
        text += _ALSO.get(self.kind, "")
        others = [*map(repr, self.besides), *(["None"] if self.optional else [])]
        if others:
            text += (", or " if text else "") + " or ".join(others) + (f" ({self.means})" if self.means else "")
        return text

    def _range(self) -> str:
        low, high = self.ends
        least, most = self.interval[0] == "[", self.interval[-1] == "]"
        if math.isinf(low) and math.isinf(high):
            return "" if self.kind in ("whole", "count") else " that is finite"
        above, below = f"{'of at least' if least else 'greater than'} {low}", f"{'at most' if most else 'below'} {high}"
        if math.isinf(high):
            return f" {above}"
        if math.isinf(low):
            return f" of {below}"
        return f" from {low} to {high}" if least and most else f" {above} and {below}"


RANGES = ("range", "whole range", "noise")

_NOUNS = {
    "whole": "a whole number",
    "count": "a whole number",
    "number": "a number",
    "schedule": "a number",
    "frequency": "a whole number",
    "ends": "two numbers (of the first and the last environment), each",
    "range": "a number, or two (low, high), each",
    "whole range": "a whole number, or two (low, high), each",
    "noise": "a number, two (low, high) or four (one for each value of an observation), each",
    "flag": "True or False",
    "mapping": "a mapping of names to values",
    "choice": "",
    "word": "a word",
    "names": "the name of a class, module.Class, or a list of such names",
}

_ALSO = {
    "frequency": " (steps), or a pair such as (4, 'step') or (1, 'episode')",
    "schedule": ", or a schedule (lin_0.001 in a file, a function in code)",
}

PRECISIONS = ("fp32", "tf32", "bf16")
"""Of the factors of matrix products: all of float32, 10 bits of its fraction, 7 bits. Sums and all else are float32."""
ON_POLICY = ("ppo", "a2c", "trpo", "ppo_lstm")
SEED = Setting("whole", "[0, 4294967295]")  # numpy takes no larger one
OPTIONAL_MAPPING, NAMES = Setting("mapping", optional=True), Setting("names", optional=True)
FLAG, COUNT, FRACTION = Setting("flag"), Setting("whole", "[1, inf)"), Setting("number", "[0, 1]")

ALGORITHM: Dict[str, Setting] = {
    "learning_rate": Setting("schedule", "[0, inf)"),
    "gamma": FRACTION,
    "n_steps": COUNT,
    "batch_size": COUNT,
    "seed": SEED._replace(optional=True),
    "verbose": Setting("whole", "[0, inf)"),
    "stats_window_size": Setting("whole", "[0, inf)", "episodes"),
    "policy_kwargs": OPTIONAL_MAPPING,
    "max_grad_norm": Setting("number", "(0, inf]"),
    # PPO
    "n_epochs": COUNT,
    "gae_lambda": FRACTION,
    "clip_range": Setting("schedule", "[0, inf)", algos=("ppo", "ppo_lstm")),
    "clip_range_vf": Setting("schedule", "(0, inf)", optional=True, means="no clipping", algos=("ppo", "ppo_lstm")),
    "normalize_advantage": FLAG,
    "ent_coef": Setting("number", algos=ON_POLICY),  # below 0: some want less entropy
    "vf_coef": Setting("number", "[0, inf)"),
    "use_sde": FLAG,
    "sde_sample_freq": Setting("whole", "[1, inf)", "steps", besides=(-1, 0), means="once in a rollout"),
    "target_kl": Setting("number", "[0, inf)", optional=True, means="no early stopping", algos=("ppo", "ppo_lstm")),
    "rollout_buffer_kwargs": OPTIONAL_MAPPING,
    "n_minibatches": COUNT._replace(optional=True, means="batch_size says it"),
    "adaptive_lr_kl": Setting("number", "(0, inf)", optional=True, means="a fixed rate"),
    "adaptive_lr_factor": Setting("number", "(1, inf)"),
    "adaptive_lr_min": Setting("number", "(0, inf)"),
    "adaptive_lr_max": Setting("number", "(0, inf)"),
    "spread_time_limits": FLAG,
    "compile": FLAG,
    "precision": Setting("choice", optional=True, besides=PRECISIONS, means="not in Triton"),
    # DQN and DDPG
    "buffer_size": Setting("count", "[1, inf)", "transitions"),
    "learning_starts": Setting("count", "[0, inf)", "transitions"),
    "tau": FRACTION,
    "train_freq": Setting("frequency", "[1, inf)"),
    "gradient_steps": Setting("whole", "[0, inf)", besides=(-1,), means="as many as transitions were collected"),
    "replay_buffer_kwargs": OPTIONAL_MAPPING,
    "optimize_memory_usage": FLAG,
    "target_update_interval": Setting("count", "[1, inf)", "transitions"),
    "exploration_fraction": Setting("number", "(0, 1]", "of all timesteps"),
    "exploration_initial_eps": FRACTION,
    "exploration_final_eps": FRACTION,
    "reward_scale": Setting("number", "(0, inf)"),
    "double_q": FLAG,
    "per_env_epsilon": Setting("ends", "(0, 1]", optional=True),
    "per_env_noise": Setting("ends", "(0, inf)", optional=True),
    "shared_noise": FLAG,
}
"""Arguments of the algorithms. What SB3 takes and trains with is taken here."""

ENTRY: Dict[str, Setting] = {
    **ALGORITHM,
    "n_envs": COUNT,
    "n_timesteps": Setting("count", "[1, inf)"),
    "frame_stack": COUNT._replace(optional=True),
    "normalize": Setting("mapping", optional=True, besides=(True, False)),
    "env_kwargs": OPTIONAL_MAPPING,
    "monitor_kwargs": OPTIONAL_MAPPING,
    "policy": Setting("word"),
    "callback": NAMES,
    "env_wrapper": NAMES,
    "vec_env_wrapper": NAMES,
    "noise_type": Setting("word", optional=True),
    "noise_std": Setting("number", "[0, inf)"),
    "until_solved": FLAG,
    "keep_checkpoints": Setting("whole", "[1, inf)", optional=True),
    "reward_threshold": Setting("number", optional=True),
    "trial_timeout": Setting("number", "(0, inf)", "seconds", optional=True),
    "write_yaml": Setting("word", optional=True),
}
"""Keys of an entry in a hyperparameter file, and of -params."""

NORMALIZE: Dict[str, Setting] = {
    "norm_obs": FLAG,
    "norm_reward": FLAG,
    "training": FLAG,
    "clip_obs": Setting("number", "(0, inf]"),
    "clip_reward": Setting("number", "(0, inf]"),
    "gamma": FRACTION,
    "epsilon": Setting("number", "(0, inf)"),
    "norm_obs_keys": Setting("word", optional=True),
}
"""Arguments of VecNormalize, the key ``normalize`` of an entry."""

REPLAY: Dict[str, Setting] = {
    "n_steps": COUNT,
    "gamma": FRACTION,
    "handle_timeout_termination": FLAG,
    "storage_device": Setting("word", optional=True),
}
"""Arguments of DeviceReplayBuffer that an algorithm does not give itself, the key ``replay_buffer_kwargs`` of an entry."""

ENV: Dict[str, Setting] = {
    "n_envs": COUNT,
    "seed": Setting("whole", f"[0, {2**63 - 1}]", optional=True, means="a random one"),
    "max_episode_steps": COUNT._replace(optional=True, besides=(-1,), means="as the task says"),
    "n_bins": Setting("whole", "[2, 1000000]", optional=True, means="3"),
}
"""Arguments of make_vec_env and gym.make."""

CARTPOLE: Dict[str, Setting] = {
    "cart_mass": Setting("number", "(0, inf)", "kg"),
    "pole_mass": Setting("number", "(0, inf)", "kg"),
    "pole_length": Setting("number", "(0, inf)", "m"),
    "pole_inertia": Setting("number", "(0, inf)", "kg m^2", optional=True, means="that of a box of 1000 kg/m^3"),
    "gravity": Setting("number", "(0, inf)", "m/s^2"),
    "angular_damping": Setting("number", "[0, inf)", "1/s"),
    "max_cart_speed": Setting("number", "(0, inf)", "m/s"),
    "max_pole_speed": Setting("number", "(0, inf)", "rad/s"),
    "track_limit": Setting("number", "(0, inf)", "m"),
    "dt": Setting("number", "(0, inf)", "s"),
    "substeps": Setting("whole", "[1, 10000]"),
    "max_effort": Setting("number", "(0, inf)", "N"),
    "reset_dist": Setting("number", "(0, inf)", "m"),
    "reset_angle": Setting("number", "(0, inf)", "rad"),
    "max_episode_length": Setting("whole", f"[2, {2**62}]", "steps, one more than an episode has"),
}
"""Task parameters of the cartpole, --env-kwargs."""

RANDOMIZE: Dict[str, Setting] = {
    "cart_mass": Setting("range", "[0.001, 1000000]", "kg"),
    "pole_mass": Setting("range", "[0.001, 1000000]", "kg"),
    "pole_length": Setting("range", "[0.001, 1000]", "m"),
    "angular_damping": Setting("range", "[0, 1000]", "1/s"),
    "force_scale": Setting("range", "[0, 1000]", "times max_effort"),
    "action_delay": Setting("whole range", "[0, 100]", "control steps"),
    "obs_noise": Setting("noise", "[0, 1000]", "standard deviation: m, m/s, rad, rad/s"),
    "push_velocity": Setting("range", "[-1000, 1000]", "rad/s"),
    "push_interval": Setting("range", "(0, 1000000]", "s"),
}
"""Names in the task parameter ``randomize`` of the cartpole. Bounds that float32 can hold."""

LEARN: Dict[str, Setting] = {
    "total_timesteps": Setting("number", "[0, inf]"),
    "log_interval": Setting("whole", "[1, inf)", optional=True, means="no log"),
}
"""Arguments of ``learn``."""

_THREADS = COUNT._replace(besides=(-1,), means="torch's default")
_AGENT: Dict[str, Setting] = {
    "n_envs": COUNT._replace(optional=True),
    "n_timesteps": COUNT,
    "n_episodes": COUNT,
    "exp_id": Setting("whole", "[1, inf)", besides=(0, -1), means="the latest, no run folder"),
    "load_checkpoint": Setting("whole", "[0, inf)", "timesteps", optional=True),
    "seed": SEED,
    "num_threads": _THREADS,
    "push": Setting("number", "[0, inf)", "seconds", optional=True),
    "verbose": Setting("whole", "[0, inf)"),
}
_TRAIN: Dict[str, Setting] = {
    "n_timesteps": COUNT._replace(besides=(-1,), means="as the hyperparameter file says"),
    "num_threads": _THREADS,
    "log_interval": COUNT._replace(besides=(-1, -2), means="SB3's, none"),
    "eval_episodes": COUNT,
    "n_eval_envs": COUNT,
    "eval_freq": Setting("whole"),  # 0 or less: none
    "save_freq": Setting("whole"),
    "seed": Setting("whole", "(-inf, 4294967295]"),  # below 0: a random one
    "n_trials": COUNT,
    "max_total_trials": COUNT._replace(optional=True),
    "n_jobs": COUNT._replace(besides=(-1,), means="one for each core"),
    "n_startup_trials": Setting("whole", "[0, inf)"),
    "n_evaluations": COUNT._replace(optional=True),
    "trial_id": Setting("whole", "[0, inf)", optional=True),
    "trial_timeout": Setting("number", "(0, inf)", "seconds", optional=True),
    "verbose": Setting("whole", "[0, inf)"),
}
FLAGS: Dict[str, Dict[str, Setting]] = {
    "train": _TRAIN,
    "optimize": _TRAIN,
    **dict.fromkeys(("evaluate", "video", "export", "enjoy", "record_video"), _AGENT),
    "plot": {
        "exp_id": Setting("whole", "[0, inf)", optional=True, means="all runs"),
        "window": COUNT,
        "max_timesteps": Setting("number", "(0, inf)", optional=True),
    },
    "compare": {"seeds": COUNT, "jobs": COUNT, "n_timesteps": _TRAIN["n_timesteps"]},
}
"""Flags of the commands, by argparse's names: ``n_envs`` is --n-envs."""

SETTINGS: Dict[str, Dict[str, Setting]] = {
    "algorithm": ALGORITHM,
    "entry": ENTRY,
    "normalize": NORMALIZE,
    "replay_buffer_kwargs": REPLAY,
    "rollout_buffer_kwargs": {},
    "env": ENV,
    "cartpole": CARTPOLE,
    "randomize": RANDOMIZE,
    "learn": LEARN,
    **{f"sb3-isaac {command}": flags for command, flags in FLAGS.items()},
}
"""All of it, by what has the settings."""
