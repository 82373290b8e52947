"""What is harmless loads as it ever did, also where files are not trusted."""

from __future__ import annotations

import threading
import warnings
from pathlib import Path
from typing import Any, Dict

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3 as sb3
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

import sb3_isaac
from sb3_isaac.files import safe_pickle, safe_text, safe_yaml
from sb3_isaac.files.safe_model import reading_safely
from sb3_isaac.files.trust import UntrustedFileError, trusted, trusting
from sb3_isaac.zoo import run_settings
from tests.conftest import CONTINUOUS, DISCRETE, difference, make_env
from tests.reliability.hostile import flags, make_run, with_config
from tests.zoo.conftest import call

SETTINGS: Dict[str, Any] = {
    "PPO": {
        "n_steps": 4,
        "clip_range_vf": 0.3,
        "policy_kwargs": {"net_arch": {"pi": [4], "vf": [8]}, "activation_fn": nn.ELU},
    },
    "A2C": {"use_rms_prop": False, "policy_kwargs": {"optimizer_class": th.optim.AdamW, "net_arch": [4]}},
    "SAC": {"learning_starts": 4, "train_freq": (2, "step"), "action_noise": NormalActionNoise(np.zeros(1), np.ones(1))},
    "TD3": {"learning_starts": 4, "action_noise": OrnsteinUhlenbeckActionNoise(np.zeros(1), np.ones(1))},
    "DQN": {"learning_starts": 4},
}


@pytest.mark.parametrize("algo", SETTINGS)
def test_models_of_stock_sb3_are_the_same_read_safely(algo: str, tmp_path: Path) -> None:
    env = make_env(DISCRETE if algo == "DQN" else CONTINUOUS, n_envs=2)
    of_off_policy = {} if algo in ("PPO", "A2C") else {"buffer_size": 50}
    cls = getattr(sb3, algo)
    model = cls("MlpPolicy", env, device="cpu", seed=3, **of_off_policy, **SETTINGS[algo]).learn(16)
    model.save(tmp_path / "model")
    with reading_safely(), warnings.catch_warnings():
        warnings.simplefilter("error")
        again = cls.load(tmp_path / "model", env=env, device="cpu")
    assert difference(model, again) == 0.0
    assert again.policy_kwargs == model.policy_kwargs and again.num_timesteps == model.num_timesteps
    assert repr(again.action_space) == repr(model.action_space) and again.lr_schedule(0.5) == model.lr_schedule(0.5)
    for name in ("clip_range", "clip_range_vf"):
        assert not hasattr(model, name) or getattr(again, name)(0.5) == pytest.approx(getattr(model, name)(0.5))
    assert getattr(again, "action_noise", None) is None or again.action_noise().dtype == np.float32
    for name in ("action_noise", "train_freq"):
        assert repr(getattr(again, name, None)) == repr(getattr(model, name, None))
    optimizers = [
        m.get_parameters()["policy.optimizer" if "policy.optimizer" in m.get_parameters() else "actor.optimizer"]
        for m in (model, again)
    ]
    states = [list(optimizer["state"].values())[0]["exp_avg"] for optimizer in optimizers]
    assert th.equal(*states)
    again.learn(8)


@pytest.mark.parametrize("algo", ["dqn", "ddpg"])
def test_buffers_and_statistics_are_the_same(algo: str, tmp_path: Path) -> None:
    env = sb3_isaac.VecNormalize(make_env(DISCRETE if algo == "dqn" else CONTINUOUS, n_envs=2))
    model = getattr(sb3_isaac, algo.upper())("MlpPolicy", env, learning_starts=4, buffer_size=50, batch_size=8, device="cpu")
    model.learn(16)
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    env.save(str(tmp_path / "statistics.pkl"))
    safe, unsafe = ([], [])  # type: ignore[var-annotated]
    for trust, found in ((False, safe), (True, unsafe)):
        model.load_replay_buffer(tmp_path / "buffer.pkl", trust=trust)
        rows = model.replay_buffer.size()
        found += [
            rows,
            *(np.asarray(getattr(model.replay_buffer, name))[:rows] for name in ("observations", "actions", "rewards")),
        ]
        statistics = sb3_isaac.VecNormalize.load(
            str(tmp_path / "statistics.pkl"), make_env(env_id(env), n_envs=2), trust=trust
        )
        found += [statistics.obs_rms.mean, statistics.ret_rms.var, statistics.clip_obs]
    for one, other in zip(safe, unsafe):
        np.testing.assert_array_equal(one, other)


def env_id(env: Any) -> str:
    return DISCRETE if isinstance(env.action_space, gym.spaces.Discrete) else CONTINUOUS


class OwnPolicy(sb3.common.policies.ActorCriticPolicy):
    """Code of a user's own."""


class OwnBuffer(ReplayBuffer):
    """Code of a user's own."""


def test_classes_of_ones_own_need_trust(tmp_path: Path) -> None:
    env = make_env(n_envs=2)
    sb3_isaac.PPO(OwnPolicy, env, n_steps=4, batch_size=8, device="cpu").save(tmp_path / "model")
    with pytest.raises(
        UntrustedFileError, match="entry 'policy_class'.*wants to run .*test_safe_loading.OwnPolicy.*trust=True"
    ):
        sb3_isaac.load(tmp_path / "model", env, device="cpu")
    assert type(sb3_isaac.load(tmp_path / "model", env, device="cpu", trust=True).policy) is OwnPolicy
    assert type(sb3_isaac.PPO.load(tmp_path / "model", env, device="cpu").policy) is OwnPolicy  # as SB3's
    model = sb3_isaac.DDPG("MlpPolicy", env, replay_buffer_class=OwnBuffer, buffer_size=50, device="cpu")
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    with pytest.raises(UntrustedFileError, match="buffer.pkl wants to run .*OwnBuffer"):
        model.load_replay_buffer(tmp_path / "buffer.pkl")
    model.load_replay_buffer(tmp_path / "buffer.pkl", trust=True)
    assert type(model.replay_buffer) is OwnBuffer


def test_a_lambda_for_the_learning_rate_is_left_out_with_a_word(tmp_path: Path) -> None:
    env = make_env(n_envs=2)
    model = sb3_isaac.PPO("MlpPolicy", env, n_steps=4, batch_size=8, device="cpu", learning_rate=lambda left: 0.5 * left + 0.1)
    model.learn(16).save(tmp_path / "model")
    with pytest.warns(UserWarning, match="model.zip this was left out.*learning_rate.*stays as it was last.*trust=True"):
        again = sb3_isaac.load(tmp_path / "model", env, device="cpu")
    assert again.lr_schedule(0.1) == model.policy.optimizer.param_groups[0]["lr"] > 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = sb3_isaac.load(tmp_path / "model", env, device="cpu", learning_rate=0.25)
        assert again.lr_schedule(0.1) == 0.25
        assert sb3_isaac.load(tmp_path / "model", env, device="cpu", trust=True).lr_schedule(0.1) == pytest.approx(0.15)


GOOD_TEXTS = {
    "dict(log_std_init=-2, activation_fn=nn.ReLU, net_arch=[64, 64])": {
        "log_std_init": -2, "activation_fn": nn.ReLU, "net_arch": [64, 64],
    },
    " dict(\n  net_arch=dict(pi=[8], vf=[8]), ortho_init=False)": {"net_arch": {"pi": [8], "vf": [8]}, "ortho_init": False},
    "{'norm_obs': False, 'norm_reward': True}": {"norm_obs": False, "norm_reward": True},
    "dict(optimizer_class=th.optim.Adam, optimizer_kwargs=dict(eps=1e-5))": {
        "optimizer_class": th.optim.Adam, "optimizer_kwargs": {"eps": 1e-5},
    },
    "HerReplayBuffer": sb3.HerReplayBuffer,
    "[2 * 3, (1, None), 1 / 4, -1.5]": [6, (1, None), 0.25, -1.5],
}  # fmt: skip


@pytest.mark.parametrize("text", GOOD_TEXTS)
def test_texts_of_settings(text: str) -> None:
    assert safe_text.evaluate(text, "policy_kwargs") == GOOD_TEXTS[text]


BAD_TEXTS = (
    "nn.Module|nn.functional.relu|os.system|dict(a=open)|[x for x in (1,)]|(lambda: 1)()|'a'.join(['b'])|dict(**{})|{**{}}|"
    "2**9|'a'*9|f'{1}'|a.b.c()|dict([(1,2)])|nn.ReLU.__init__|__import__('os')|nn.ReLU()|().__class__|1 if 1 else 2|dict("
).split("|")


@pytest.mark.parametrize("text", BAD_TEXTS)
def test_texts_that_are_more(text: str) -> None:
    with pytest.raises(ValueError, match="setting wants to run|setting is no Python"):
        safe_text.evaluate(text, "setting")


def test_yaml_of_rl_zoo3(tmp_path: Path) -> None:
    path = tmp_path / "config.yml"
    path.write_text(
        "!!python/object/apply:collections.OrderedDict\n- - - a\n    - !!python/tuple [1, step]\n"
        "  - - b\n    - !!python/name:torch.nn.modules.activation.ReLU ''\n  - - c\n    - !!python/name:os.system ''\n"
    )
    content = safe_yaml.load(str(path))
    assert content["a"] == (1, "step") and content["b"] is nn.ReLU
    with pytest.raises(UntrustedFileError, match="config.yml wants to run os.system"):
        safe_yaml.check_read(content, str(path))
    path.write_text("a: [1")
    with pytest.raises(ValueError, match="config.yml cannot be read as YAML"):
        safe_yaml.load(str(path))


def test_trust_is_for_a_while() -> None:
    assert not trusted() and trusted(True)
    with trusting(True):
        assert trusted()
        with trusting(False):
            assert not trusted()
    assert not trusted()


@pytest.mark.parametrize("content", [b"", b"\x80", b"no pickle at all", b"\x80\x04]q\x00(K\x01K\x02e", b"\x80\x04K\x01a."])
def test_what_is_no_pickle_says_so(content: bytes) -> None:
    with pytest.raises(ValueError, match="stats.pkl cannot be read: it is no complete pickle"):
        safe_pickle.loads(content, "stats.pkl")


class MyWrapper(gym.ActionWrapper):
    """Of a user's own."""

    used = 0

    def action(self, action: Any) -> Any:
        MyWrapper.used += 1
        return action


@pytest.mark.slow
def test_wrappers_of_runs(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of rl_zoo3 as they are, one's own with the module named in --gym-packages, or with --trust."""
    run = make_run(tmp_path / "logs", "ppo")
    with_config(run, env_wrapper="rl_zoo3.wrappers.ActionNoiseWrapper")
    assert call(flags(run, "evaluate")) == 0
    with_config(run, env_wrapper=f"{__name__}.MyWrapper")
    monkeypatch.setattr(run_settings, "named_packages", set())
    assert call(flags(run, "evaluate")) == 1
    assert "wants to run tests.reliability.test_safe_loading.MyWrapper" in capsys.readouterr().err and MyWrapper.used == 0
    assert call([*flags(run, "evaluate"), "--n-envs", "1", "--trust"]) == 0 and MyWrapper.used > 0
    MyWrapper.used = 0
    assert call([*flags(run, "evaluate"), "--n-envs", "1", "--gym-packages", __name__]) == 0 and MyWrapper.used > 0
    with_config(run, env_wrapper=f"{__name__}.make_env")
    assert call([*flags(run, "evaluate"), "--n-envs", "1", "--gym-packages", __name__]) == 1  # no wrapper


def test_other_threads_load_as_they_like(tmp_path: Path) -> None:
    sb3.PPO(OwnPolicy, DummyVecEnv([lambda: gym.make("CartPole-v1")]), n_steps=4, batch_size=4, device="cpu").save(
        tmp_path / "model"
    )
    found = []
    thread = threading.Thread(target=lambda: found.append(sb3.PPO.load(tmp_path / "model", device="cpu")))
    with reading_safely():
        thread.start()
        thread.join()
        with pytest.raises(UntrustedFileError):
            sb3.PPO.load(tmp_path / "model", device="cpu")
    assert type(found[0].policy) is OwnPolicy and type(sb3.PPO.load(tmp_path / "model", device="cpu").policy) is OwnPolicy
