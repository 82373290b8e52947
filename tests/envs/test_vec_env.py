"""IsaacVecEnv against SB3's VecEnv interface, its infos and its monitor files."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any, List

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.monitor import Monitor, load_results
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from sb3_isaac import IsaacVecEnv
from sb3_isaac.backends.base import StepResult
from sb3_isaac.backends.torch_cartpole import TorchCartpole
from sb3_isaac.envs.cartpole_env import CartpoleEnv
from sb3_isaac.envs.infos import Infos
from sb3_isaac.envs.tensor_path import supports_tensors
from tests.conftest import CONTINUOUS, DISCRETE, N_ENVS, SyncGuard, make_env, some_actions

# -- the same as single environments in a DummyVecEnv ----------------------------------------------------------------


@pytest.mark.parametrize("env_id", [CONTINUOUS, DISCRETE])
def test_steps_and_infos_equal_a_dummy_vec_env(env_id: str) -> None:
    batch = make_env(env_id, max_episode_length=20)
    singles = DummyVecEnv([lambda: Monitor(CartpoleEnv("torch", "cpu", env_id == DISCRETE, max_episode_length=20))] * N_ENVS)
    assert (batch.observation_space, batch.action_space) == (singles.observation_space, singles.action_space)
    assert batch.env_is_wrapped(Monitor) == singles.env_is_wrapped(Monitor) == [True] * N_ENVS

    def give_singles_our_state() -> None:
        state = batch.tensor_env.get_state()
        for i, env in enumerate(singles.envs):
            simulator = env.unwrapped._batch_of_one.tensor_env
            simulator.dof_state.copy_(state["dof_state"][i : i + 1])
            simulator.progress.copy_(state["progress"][i : i + 1])

    a, b = batch.reset(), singles.reset()
    assert a.shape == b.shape and a.dtype == b.dtype
    kinds = set()
    for action in some_actions(batch, 80):
        give_singles_our_state()
        obs, rewards, dones, infos = batch.step(action)
        s_obs, s_rewards, s_dones, s_infos = singles.step(action)
        for mine, theirs in ((obs, s_obs), (rewards, s_rewards), (dones, s_dones)):
            assert mine.shape == theirs.shape and mine.dtype == theirs.dtype
        np.testing.assert_array_equal(dones, s_dones)
        # A batch may round as no single environment does, and the last digit of a velocity is 1e-6
        np.testing.assert_allclose(rewards, s_rewards, atol=1e-5)
        np.testing.assert_allclose(obs[~dones], s_obs[~dones], atol=1e-5)
        assert len(infos) == len(s_infos) == N_ENVS
        for i, (info, s_info) in enumerate(zip(infos, s_infos)):
            assert info.get("TimeLimit.truncated", False) == s_info["TimeLimit.truncated"]
            assert ("terminal_observation" in info) == ("terminal_observation" in s_info) == bool(dones[i])
            if dones[i]:
                kinds.add(info["TimeLimit.truncated"])
                np.testing.assert_allclose(info["terminal_observation"], s_info["terminal_observation"], atol=1e-5)
                assert info["terminal_observation"].shape == s_info["terminal_observation"].shape
                assert info["episode"].keys() == s_info["episode"].keys()
                assert info["episode"]["r"] == pytest.approx(s_info["episode"]["r"], abs=1e-4)
                assert info["episode"]["l"] == s_info["episode"]["l"]
                assert isinstance(info["episode"]["r"], float) and isinstance(info["TimeLimit.truncated"], bool)
    assert kinds == {False, True}  # failures and time limits


def test_stock_algorithms_train() -> None:
    for cls, env_id, kwargs in (
        (PPO, CONTINUOUS, {"n_steps": 8, "batch_size": 16}),
        (A2C, DISCRETE, {}),
        (DQN, DISCRETE, {"learning_starts": 10}),
    ):
        env = make_env(env_id, max_episode_length=10)
        model = cls("MlpPolicy", env, device="cpu", seed=0, **kwargs).learn(200)
        assert model.ep_info_buffer and model.ep_info_buffer[0]["l"] <= 9


# -- the VecEnv interface --------------------------------------------------------------------------------------------


def test_get_attr() -> None:
    env = make_env(max_effort=100.0)
    assert env.get_attr("max_episode_length") == [500] * N_ENVS  # the simulator's
    assert env.get_attr("max_effort", [0, 2]) == [100.0, 100.0]  # the task's
    assert env.get_attr("render_mode", 1) == [None] and env.get_attr("spec", -1)[0].id == CONTINUOUS  # the VecEnv's
    with pytest.raises(AttributeError, match="Neither IsaacVecEnv nor TorchCartpole has an attribute 'gravitas'"):
        env.get_attr("gravitas")
    with pytest.raises(IndexError):
        env.get_attr("max_effort", N_ENVS)
    if hasattr(DummyVecEnv, "has_attr"):  # SB3 2.5
        assert env.has_attr("max_effort") and not env.has_attr("gravitas")


def test_set_attr() -> None:
    env = make_env()
    env.set_attr("note", "mine")
    assert env.get_attr("note", 3) == ["mine"]
    env.set_attr("render_mode", "rgb_array", range(N_ENVS))
    assert env.render_mode == "rgb_array"
    env.tensor_env.extra = 1  # type: ignore[attr-defined]
    env.set_attr("extra", 2)
    assert env.tensor_env.extra == 2 and "extra" not in vars(env)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="shared by all 8 environments"):
        env.set_attr("note", "yours", indices=[0, 1])
    with pytest.raises(IndexError):
        env.set_attr("note", "yours", indices=[9])
    for name in ("max_effort", "max_episode_length"):  # set in vain, they would mislead
        with pytest.raises(ValueError, match=f"make_vec_env\\(..., {name}="):
            env.set_attr(name, 10)


def test_env_method_and_env_is_wrapped() -> None:
    env = make_env()
    state = env.env_method("get_state", indices=[0, 1])
    assert len(state) == 2 and state[0]["dof_state"].shape == (N_ENVS, 4)
    calls = []
    env.count = lambda *args, **kwargs: calls.append((args, kwargs)) or len(calls)  # type: ignore[attr-defined]
    assert env.env_method("count", 1, two=2) == [1] * N_ENVS and calls == [((1,), {"two": 2})]
    with pytest.raises(AttributeError, match="Neither"):
        env.env_method("fly")
    assert env.env_is_wrapped(Monitor, indices=[0, 1]) == [True, True]
    assert env.env_is_wrapped(gym.wrappers.TimeLimit) == [False] * N_ENVS
    assert env.unwrapped is env and supports_tensors(env) and not supports_tensors(VecMonitor(DummyVecEnv([CartpoleEnv])))


def test_seed() -> None:
    env = make_env()
    assert env.seed(11) == list(range(11, 11 + N_ENVS))
    first = env.reset()
    assert not np.array_equal(env.reset(), first)
    env.seed(11)
    np.testing.assert_array_equal(env.reset(), first)
    np.testing.assert_array_equal(make_env(seed=11).reset(), first)
    env.seed(12)
    assert not np.array_equal(env.reset(), first)
    np.random.seed(0)
    drawn = env.seed()
    np.random.seed(0)
    assert env.seed(None) == drawn and len(set(drawn)) == N_ENVS
    assert not np.array_equal(make_env(seed=None).reset(), make_env(seed=None).reset())
    env.seed(np.int64(11))  # type: ignore[arg-type]
    np.testing.assert_array_equal(env.reset(), first)


def test_options_are_used_once() -> None:
    env = make_env()
    env.set_options({"a": 1})
    assert env._options == [{"a": 1}] * N_ENVS
    env.reset()
    assert env._options == [{}] * N_ENVS and env._seeds == [None] * N_ENVS
    assert env.reset_infos == [{}] * N_ENVS


def test_step_wait_needs_step_async() -> None:
    env = make_env()
    env.reset()
    for _ in range(2):
        with pytest.raises(RuntimeError, match="step_async"):
            env.step_wait()
        env.step_async(np.zeros((N_ENVS, 1)))
        env.step_wait()


def test_close_twice(tmp_path: Path) -> None:
    env = make_env(monitor_dir=str(tmp_path), render_mode="rgb_array")
    env.reset()
    env.render()
    assert env.results_writer is not None
    file = env.results_writer.file_handler
    env.close()
    env.close()
    assert file.closed and env.results_writer is None and env._renderer is None


def test_pictures() -> None:
    env = make_env(render_mode="rgb_array", n_envs=3)
    env.reset()
    images = env.get_images()
    assert len(images) == 3 and all(i is not None and i.dtype == np.uint8 and i.shape[-1] == 3 for i in images)
    picture = env.render()
    assert picture is not None and picture.shape[0] >= 2 * images[0].shape[0]  # type: ignore[union-attr]  # a grid of 2 x 2
    assert env.metadata["render_modes"] == ["rgb_array", "human"]
    assert len(make_env(n_envs=40).get_images()) == 16
    with pytest.warns(UserWarning, match="render_mode"):
        assert make_env().render() is None


def test_spread_time_limits() -> None:
    env = make_env(n_envs=2000, max_episode_length=50)
    address = env.tensor_env.progress.data_ptr()
    env.reset()
    env.spread_time_limits(th.Generator().manual_seed(0))
    age = env.tensor_env.progress
    assert age.data_ptr() == address and age.min() == 0 and 45 < age.max() <= 48 and len(age.unique()) > 40
    env.step(np.zeros((2000, 1)))  # nobody is beyond the limit
    _, _, dones, infos = env.step(np.zeros((2000, 1)))
    assert 0 < dones.sum() < 200 and infos[int(dones.argmax())]["episode"]["l"] == 2


def test_discrete_actions_need_one_degree_of_freedom() -> None:
    simulator = TorchCartpole(2)
    simulator.action_dim = 2
    with pytest.raises(ValueError, match="one action, this one has 2"):
        IsaacVecEnv(simulator, action_space=spaces.Discrete(3))


@pytest.mark.parametrize(
    "n_bins, expected", [(2, [-1, 1]), (3, [-1, 0, 1]), (4, [-1, -1 / 3, 1 / 3, 1]), (5, [-1, -0.5, 0, 0.5, 1])]
)
def test_bins(n_bins: int, expected: List[float]) -> None:
    env = make_env(DISCRETE, n_envs=n_bins, n_bins=n_bins)
    assert env.action_space == spaces.Discrete(n_bins)
    env.reset()
    for actions in (np.arange(n_bins), np.arange(n_bins)[:, None]):
        env.step(actions)
        np.testing.assert_allclose(env.tensor_env.force, 400.0 * np.array(expected), rtol=1e-6)  # type: ignore[attr-defined]
    env.step_tensor(th.arange(n_bins))
    np.testing.assert_allclose(env.tensor_env.force, 400.0 * np.array(expected), rtol=1e-6)  # type: ignore[attr-defined]
    assert make_env(DISCRETE).action_space == spaces.Discrete(3)


# -- numpy results are copies ----------------------------------------------------------------------------------------


class ReusingCartpole(TorchCartpole):
    """Returns the same tensors at every step, as the contract allows and Isaac Gym does; obs is the state itself."""

    def reset(self) -> th.Tensor:
        super().reset()
        return self.dof_state

    def step(self, actions: th.Tensor) -> StepResult:
        result = super().step(actions)
        if not hasattr(self, "result"):
            self.result = StepResult(self.dof_state, *(tensor.clone() for tensor in result[1:]))
        for mine, new in zip(self.result, result):
            mine.copy_(new)
        return self.result


def make_reusing() -> IsaacVecEnv:
    return IsaacVecEnv(ReusingCartpole(N_ENVS, "cpu", 1, max_episode_length=8))


def test_results_never_change_later() -> None:
    env = make_reusing()
    kept = [env.reset()]
    copies = copy.deepcopy(kept)
    for action in some_actions(env, 30):
        obs, rewards, dones, infos = env.step(action)
        new = [obs, rewards, dones, list(infos), infos.truncated]  # type: ignore[attr-defined]
        kept += new
        copies += copy.deepcopy(new)
    np.testing.assert_equal(kept, copies)


def test_infos_are_complete_when_a_step_returns() -> None:
    env = make_reusing()
    env.reset()
    for _ in range(6):
        env.step(np.zeros((N_ENVS, 1)))
    infos: Any = env.step(np.zeros((N_ENVS, 1)))[3]  # all time out
    env.step(np.zeros((N_ENVS, 1)))
    assert infos.truncated.all() and [info["episode"]["l"] for info in infos] == [7] * N_ENVS


def test_writing_into_results_does_not_reach_the_simulator() -> None:
    env, other = make_reusing(), make_env(max_episode_length=8)
    obs = env.reset()
    other.reset()
    for action in some_actions(env, 30):
        obs[:] = 1e9
        mine, given = env.step(action), action.copy()
        theirs = other.step(action)
        for a, b in zip(mine[:3], theirs[:3]):
            np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(action, given)
        for array in (*mine[:3], mine[3].truncated):  # type: ignore[attr-defined]
            array[:] = 1
        for info in mine[3]:
            if info:
                info["terminal_observation"][:] = 1e9
        obs = mine[0]


# -- infos -----------------------------------------------------------------------------------------------------------


def test_infos_cost_nothing_until_read() -> None:
    env = make_env(max_episode_length=3)
    env.reset_tensor()
    actions = th.zeros(N_ENVS, 1)
    env.step_tensor(actions)
    result = env.step_tensor(actions)  # all time out
    with SyncGuard() as guard:
        infos = env.make_infos(result)
        assert len(infos) == N_ENVS
    assert not guard.kernels
    with pytest.raises(AssertionError, match="host synchronisation"), SyncGuard():
        list(infos)
    assert sorted(infos.filled) == list(range(N_ENVS))


def test_infos_of_running_environments_are_not_built() -> None:
    env = make_env(n_envs=1000)
    env.reset_tensor()
    env.tensor_env.dof_state[[3, 700], 0] = 5.0  # type: ignore[attr-defined]  # off the rail: these two end
    infos = env.make_infos(env.step_tensor(th.zeros(1000, 1)))
    assert infos[3]["episode"]["l"] == 1 and infos[4] == {} and infos[-1] == {}
    assert "_list" not in vars(infos) and sorted(infos.filled) == [3, 4, 700, 999]
    assert infos[700]["TimeLimit.truncated"] is False and infos[700]["terminal_observation"].shape == (4,)


def test_infos_behave_as_a_list() -> None:
    env = make_env(max_episode_length=3)
    env.reset()
    env.step(np.zeros((N_ENVS, 1)))
    infos: Any = env.step(np.zeros((N_ENVS, 1)))[3]
    assert isinstance(infos, Infos)
    infos[1]["note"] = "kept"
    as_list = list(infos)
    assert as_list[1]["note"] == "kept" and infos[1] is as_list[1] and infos[-1] is as_list[-1]
    assert infos[:] == as_list and infos[2:4] == as_list[2:4] and infos.copy() == as_list
    assert [info["episode"]["l"] for info in infos] == [2] * N_ENVS and len(infos) == N_ENVS
    infos[0] = {"replaced": True}
    assert infos[0] == {"replaced": True} and next(iter(infos)) == {"replaced": True}
    with pytest.raises(IndexError):
        infos[N_ENVS]
    assert infos[np.int64(2)] is as_list[2]
    copied = copy.deepcopy(infos)
    assert copied[0] == infos[0] and copied[2]["episode"] == infos[2]["episode"] and copied[2] is not infos[2]


# -- monitor files ---------------------------------------------------------------------------------------------------


def test_monitor_file(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "on_the_way"
    env = make_env(monitor_dir=str(folder), max_episode_length=12)
    env.reset()
    episodes = []
    for action in some_actions(env, 60):
        episodes += [info["episode"] for info in env.step(action)[3] if info]
    results = load_results(str(folder))  # while it is being written
    assert len(episodes) == len(results) > 2 * N_ENVS
    np.testing.assert_allclose(sorted(results["r"]), sorted(e["r"] for e in episodes), atol=1e-6)
    assert sorted(results["l"]) == sorted(e["l"] for e in episodes)
    assert results["t"].is_monotonic_increasing and 0 <= results["t"].min() and results["t"].max() < 600
    header = json.loads((folder / "0.monitor.csv").read_text().splitlines()[0][1:])
    assert header == {"t_start": env.t_start, "env_id": CONTINUOUS}
    env.log_episodes(np.array([1.5]), np.array([7]))  # what an algorithm does that steps in tensors
    env.log_episodes([], [])
    env.close()
    env.log_episodes([1.0], [1])
    assert (load_results(str(folder))[["r", "l"]].iloc[-1] == [1.5, 7]).all() and len(load_results(str(folder))) == len(
        episodes
    ) + 1


def test_monitor_file_is_sb3s_own_format(tmp_path: Path) -> None:
    single = Monitor(CartpoleEnv("torch", "cpu", max_episode_length=5), str(tmp_path / "theirs"))
    single.reset()
    while not any(single.step(np.zeros(1, np.float32))[2:4]):
        pass
    single.close()
    env = make_env(n_envs=1, monitor_dir=str(tmp_path), max_episode_length=5)
    env.reset()
    for _ in range(4):
        env.step(np.zeros((1, 1)))
    env.close()
    mine, theirs = ((tmp_path / name).read_text().splitlines() for name in ("0.monitor.csv", "theirs.monitor.csv"))
    assert len(mine) == len(theirs) == 3 and mine[1] == theirs[1] == "r,l,t"
    assert [len(row.split(",")[2].split(".")[1]) <= 6 for row in (mine[2], theirs[2])] == [True, True]
    assert len(load_results(str(tmp_path))) == 2
