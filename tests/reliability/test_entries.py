"""Entries of hyperparameter files, made up at random: they train or get one sentence, and the sentence names the bad value.

The training itself is left out: an entry that is accepted is made into a model, which shows that the table lets nothing pass
that SB3 or torch would fail on.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any, Dict

import pytest
import torch as th
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sb3_isaac.settings import SETTINGS, Setting, check, check_one
from sb3_isaac.zoo import entry_files, manager
from tests.conftest import ENV_IDS, make_env

LOOKED_AT = settings(max_examples=40, deadline=None, derandomize=True, database=None,
                     suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
ANYTHING: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**6) | st.floats() | st.text(max_size=8) | st.sampled_from(
        [math.nan, math.inf, -1, 0, 0.5, 2, "lin_0.001", "lin_x", "1e-3", [1, "episode"], [4, "step"], {}, 10**15]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip
NOT_AT_RANDOM = {"callback", "env_wrapper", "vec_env_wrapper", "write_yaml", "compile", "trial_timeout", "policy_kwargs"}
"""These name code or files, or take seconds."""
ALGOS = ("ppo", "dqn", "ddpg")


def start(algo: str) -> Dict[str, Any]:
    """An entry that trains."""
    sizes = {"n_steps": 8, "n_epochs": 1} if algo == "ppo" else {"buffer_size": 1000, "batch_size": 8}
    return {"policy": "MlpPolicy", "n_timesteps": 100, "n_envs": 2, "policy_kwargs": {"net_arch": [8]}, **sizes}


def read(algo: str, entry: Any, text: str = "", **more: Any) -> Any:
    """What rl_zoo3.train makes of an entry before it makes a folder: the arguments of the algorithm."""
    path = Path("entry.yml")
    path.write_text(text or yaml.safe_dump({ENV_IDS[algo]: entry}))
    options: Dict[str, Any] = {"config": str(path), "verbose": 0, "device": "cpu", "env_kwargs": {"backend": "torch"}}
    experiment = manager.ExperimentManager(argparse.Namespace(), algo, ENV_IDS[algo], "logs", **options, **more)
    hyperparams, _ = experiment.read_hyperparameters()
    return experiment, experiment._preprocess_hyperparams(hyperparams)[0]


@pytest.mark.parametrize("algo", ALGOS)
@pytest.mark.filterwarnings("ignore")
def test_an_entry_makes_a_model_or_a_sentence(algo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = sorted((entry_files.known_keys(manager.ALGOS[algo]) & set(SETTINGS["entry"])) - NOT_AT_RANDOM)

    @LOOKED_AT
    @given(st.dictionaries(st.sampled_from(names), ANYTHING, min_size=1, max_size=2))
    def look(changes: Dict[str, Any]) -> None:
        try:
            experiment, arguments = read(algo, {**start(algo), **changes})
            n_envs = min(experiment.n_envs, 64)
            env = make_env(ENV_IDS[algo], n_envs)
            arguments = experiment._preprocess_action_noise(arguments, {}, env)
            manager.ALGOS[algo](env=env, device="cpu", **arguments)
        except TypeError as error:  # as Python says it of arguments; that of another kind would be a fault
            assert "env_kwargs" in changes and str(error).startswith("Unknown task parameter"), error
        except (ValueError, MemoryError) as error:
            sentence = str(error)
            assert len(sentence.splitlines()) == 1 and len(sentence) < 500, sentence
            assert any(name in sentence for name in (*changes, "n_envs", "GB")), sentence
        assert not Path("logs").exists()

    look()


@pytest.mark.parametrize("algo", ALGOS)
def test_any_text_is_a_file_or_a_sentence(algo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut off, repeated or mixed with noise: YAML or not."""
    monkeypatch.chdir(tmp_path)
    good = yaml.safe_dump({ENV_IDS[algo]: start(algo)})
    noise = st.text("\t\n :-{}[]#&*!|>'\"%@`,?x1", max_size=6)

    @LOOKED_AT
    @given(st.integers(0, len(good)), st.integers(0, len(good)), noise)
    def look(begin: int, end: int, between: str) -> None:
        try:
            read(algo, None, text=good[:end] + between + good[begin:] or " ")
        except (ValueError, MemoryError) as error:
            assert len(str(error).splitlines()) == 1 and ("entry.yml" in str(error)), str(error)

    look()


NUMBERS = {(table, name): setting for table, rows in SETTINGS.items() for name, setting in rows.items()
           if setting.kind in ("whole", "count", "number", "schedule")}  # fmt: skip


@pytest.mark.parametrize("table, name", NUMBERS)
def test_the_ends_of_every_interval(table: str, name: str) -> None:
    """What an interval includes is taken, what lies beyond its ends is not, and not a number never."""
    setting = NUMBERS[table, name]
    low, high = setting.ends
    for end, includes, beyond in ((low, setting.interval[0] == "[", -1), (high, setting.interval[-1] == "]", 1)):
        inside = includes or end in setting.besides
        if not (math.isinf(end) and setting.kind in ("whole", "count")):
            assert takes(setting, end) == inside
        if not math.isinf(end):
            assert takes(setting, end + beyond) == (end + beyond in setting.besides)
    assert not takes(setting, math.nan) and not takes(setting, True) and not takes(setting, "zzz")
    assert takes(setting, None) == setting.optional


def takes(setting: Setting, value: Any) -> bool:
    try:
        check_one("x", value, setting)
    except ValueError as error:
        assert str(error).startswith("x must be a ") and "got" in str(error)
        return False
    return True


def test_what_sb3_takes_is_taken() -> None:
    """Numbers of numpy, whole numbers for others, schedules, and what SB3 has special values for."""
    import numpy as np

    taken: Dict[str, Any] = {
        "gamma": (0, 1, 1.0, np.float32(0.5), np.float64(0.9), np.int64(1)),
        "learning_rate": (0, 1e-3, np.float64(0.1), lambda left: left, 1),
        "clip_range": (0.2, lambda left: 0.1, np.float32(0.1)),
        "clip_range_vf": (None, 0.1, lambda left: 0.1),
        "n_steps": (np.int64(4), np.int32(4)),
        "train_freq": (1, (4, "step"), [1, "episode"], np.int64(2)),
        "gradient_steps": (-1, 0, 3),
        "max_grad_norm": (math.inf, 0.5),
        "buffer_size": (1e6, 1_000_000, np.int64(10)),
        "ent_coef": (-0.1, 0),
        "target_kl": (None, 0.01),
        "seed": (None, 0, 2**32 - 1, np.int64(3)),
        "tau": (0, 1),
        "compile": (True, False, np.bool_(True), 0, 1),
        "per_env_epsilon": (None, (1.0, 0.1), [0.5, 0.5], np.array([1.0, 0.1])),
        "policy_kwargs": (None, {}, "dict(net_arch=[64])"),
    }
    for name, values in taken.items():
        for value in values:
            check("algorithm", {name: value}, algo="ppo")
    check("learn", {"total_timesteps": 1e5, "log_interval": None})
    check("learn", {"total_timesteps": math.inf})


def test_an_entry_need_not_say_what_a_flag_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the sentence about a missing n_timesteps promises."""
    monkeypatch.chdir(tmp_path)
    entry = {name: value for name, value in start("ppo").items() if name != "n_timesteps"}
    with pytest.raises(ValueError, match="n_timesteps is missing .*: add it, or pass -n"):
        read("ppo", entry)
    experiment, arguments = read("ppo", entry, n_timesteps=64)
    assert experiment.n_timesteps == 64 and "n_timesteps" not in arguments


def test_networks_are_made_without_drawing_from_training() -> None:
    """An entry is tried before training, which draws the numbers that it would have drawn."""
    from sb3_isaac.zoo import entries

    env = make_env()
    before = th.get_rng_state()
    entries.check_networks(start("ppo"), manager.ALGOS["ppo"], env.observation_space, env.action_space, "here")
    assert th.equal(before, th.get_rng_state())


def test_folders_that_may_not_be_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root everything may be written to, so the answer is made up."""
    from sb3_isaac.zoo import entries

    entries.check_writable(tmp_path / "new" / "folders", "-f")
    monkeypatch.setattr(entries.os, "access", lambda path, mode: False)
    with pytest.raises(PermissionError, match=f"-f logs cannot be used: {tmp_path} may not be written to. Choose another"):
        monkeypatch.chdir(tmp_path)
        entries.check_writable("logs", "-f")


def test_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch's allocator holds unused counts as free."""
    from sb3_isaac.settings.memory import check_envs, check_memory

    monkeypatch.setattr(th.cuda, "memory_reserved", lambda device: 3_000_000)
    monkeypatch.setattr(th.cuda, "memory_allocated", lambda device: 1_000_000)
    monkeypatch.setattr(th.cuda, "mem_get_info", lambda device: (1_000_000, 9_000_000))
    check_memory({"a buffer": 3_000_000}, th.device("cuda"), "lower it")
    with pytest.raises(MemoryError) as raised:
        check_envs(10**9, th.device("cuda:0"), "--n-envs")
    assert str(raised.value) == (
        "This needs 300.00 GB on cuda:0, and 0.00 GB are free: 1000000000 environments 300.00 GB; lower --n-envs."
    )


@pytest.mark.parametrize(
    "algo, entry",
    [
        ("sac", {"ent_coef": "auto_0.1", "train_freq": [1, "episode"], "gradient_steps": -1, "learning_rate": "lin_0.001"}),
        ("sac", {"ent_coef": "auto", "target_entropy": "auto", "use_sde": True, "n_envs": 4}),
        ("td3", {"noise_type": "normal", "noise_std": 0.1, "policy_delay": 2, "n_envs": 1}),
        ("a2c", {"n_steps": 8, "use_rms_prop": True, "normalize": "dict(norm_obs=True, norm_reward=False)"}),
        ("ars", {"policy": "LinearPolicy", "n_delta": 8, "delta_std": 0.1}),
        ("ppo_lstm", {"policy": "MlpLstmPolicy", "policy_kwargs": "dict(lstm_hidden_size=8)"}),
        ("trpo", {"target_kl": 0.01, "cg_damping": 0.1}),
        ("tqc", {"buffer_size": 1000, "n_timesteps": 1e6, "policy_kwargs": {"n_critics": 2}}),
        ("ppo", {"use_sde": True, "policy_kwargs": {"squash_output": True}, "n_minibatches": 2, "n_steps": 8, "n_envs": 2}),
        ("ppo", {"normalize": None, "frame_stack": 2, "policy_kwargs": None, "clip_range": "lin_0.2", "batch_size": 1000}),
        (
            "ddpg",
            {"noise_type": "ornstein-uhlenbeck", "noise_std": 0.2, "policy_kwargs": {"net_arch": {"pi": [8], "qf": [8]}}},
        ),
    ],
)
def test_what_rl_zoo3_takes_is_taken(
    algo: str, entry: Dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(ENV_IDS, algo, ENV_IDS["ppo"])
    read(algo, {"policy": "MlpPolicy", "n_timesteps": 100, **entry})
    assert not Path("logs").exists()
