"""make_vec_env with bad input, and the environments behind gym.make and gym.make_vec."""

from __future__ import annotations

import itertools
import warnings
from typing import Any, Callable, Iterator

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env as gymnasium_check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

from sb3_isaac.envs.cartpole_env import CartpoleEnv, CartpoleVectorEnv
from sb3_isaac.envs.ids import ENV_KWARGS
from sb3_isaac.envs.make import make_vec_env
from tests.conftest import CONTINUOUS, DISCRETE, N_ENVS, make_env, some_actions

ENTRY_POINT, VECTOR_ENTRY_POINT = "sb3_isaac.envs:CartpoleEnv", "sb3_isaac.envs:CartpoleVectorEnv"

# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kwargs, error, message",
    [
        *(({"n_envs": n}, ValueError, "n_envs must be a whole number of at least 1") for n in (0, -1, True, 2.5, "4", None)),
        *(({"seed": s}, ValueError, "seed must be a whole number") for s in (-1, 1.5, True, "7", 2**63)),
        ({"backend": "isac"}, ValueError, "Unknown backend 'isac': choose one of isaacgym, torch or auto"),
        ({"device": "gpu"}, ValueError, "'gpu' cannot be used; devices found here: cpu"),
        ({"device": "cuda:99"}, ValueError, "'cuda:99' cannot be used"),
        ({"device": None}, ValueError, "'None' cannot be used"),
        ({"wind": 9.81}, TypeError, "Unknown task parameter wind: the cartpole has cart_mass, pole_mass"),
        ({"max_effort": -1.0}, ValueError, "max_effort must be a number greater than 0"),
        ({"max_episode_length": 10.5}, ValueError, "max_episode_length must be a whole number"),
        ({"render_mode": "ansi"}, ValueError, "Unknown render_mode 'ansi'"),
        ({"n_bins": 5}, ValueError, "n_bins needs Discrete actions"),
        *(({"env_id": DISCRETE, "n_bins": n}, ValueError, "n_bins must be a whole number") for n in (1, 0, 2.0, True)),
        ({"env_id": "CartPole-v1"}, ValueError, "CartPole-v1 is not an Isaac Gym environment: use one of IsaacGymCartpole-v0"),
        ({"env_id": "IsaacGymCartpol-v0"}, gym.error.UnregisteredEnv, "Did you mean: `IsaacGymCartpole`"),
        ({"monitor_dir": __file__}, OSError, "test_envs.py"),
    ],
)  # fmt: skip
def test_bad_arguments(kwargs: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        make_env(**kwargs)


def test_numpy_numbers_are_numbers() -> None:
    assert make_env(n_envs=np.int64(3), seed=np.int32(1)).num_envs == 3


@pytest.mark.parametrize(
    "actions, message",
    [
        (np.zeros(N_ENVS), r"shape \(8, 1\), got \(8,\)"),
        (np.zeros((N_ENVS - 1, 1)), r"got \(7, 1\)"),
        (np.zeros((N_ENVS, 2)), r"got \(8, 2\)"),
        (np.array([[0.0], [0.0], [np.nan], [0.0], [np.nan], *[[0.0]] * 3]), "NaN .first in environment 2"),
        ([["left"]] * N_ENVS, "could not convert string to float"),
    ],
)
def test_bad_actions(actions: Any, message: str) -> None:
    env = make_env()
    env.reset()
    with pytest.raises(ValueError, match=message):
        env.step(actions)
    env.step(np.full((N_ENVS, 1), np.inf))  # clipped, and the environment is still usable
    np.testing.assert_array_equal(env.tensor_env.force, 400.0)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "actions, message",
    [
        (np.full(N_ENVS, 3), "whole numbers from 0 to 2"),
        (np.full(N_ENVS, -1), "whole numbers from 0 to 2"),
        (np.zeros(N_ENVS), "float64"),
        (np.zeros(N_ENVS, bool), "bool"),
        (np.zeros(N_ENVS + 1, int), r"Expected 8 actions, one per environment, got .*\(9,\)"),
        (np.zeros((2, 4), int), r"\(2, 4\)"),
    ],
)
def test_bad_discrete_actions(actions: np.ndarray, message: str) -> None:
    env = make_env(DISCRETE)
    env.reset()
    with pytest.raises(ValueError, match=message):
        env.step(actions)


# -- gym.make and gym.make_vec ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("env_id", ENV_KWARGS)
def test_gym_make_passes_both_checkers(env_id: str) -> None:
    env = gym.make(env_id, backend="torch", device="cpu", render_mode="rgb_array")
    with warnings.catch_warnings():
        warnings.filterwarnings("error")
        warnings.filterwarnings("ignore", message=".*Box observation space m.*infinity")  # as the observations are
        sb3_check_env(env)
        gymnasium_check_env(env.unwrapped, skip_render_check=True)
    assert env.render().shape[-1] == 3
    env.close()


def test_single_environment() -> None:
    env = gym.make(CONTINUOUS, backend="torch", device="cpu", max_episode_length=6)
    unused = CartpoleEnv()
    for call in (lambda: unused.step([0.0]), unused.render):
        with pytest.raises(gym.error.ResetNeeded, match="reset"):
            call()
    first, info = env.reset(seed=3)
    assert info == {} and first.shape == (4,) and not np.array_equal(env.reset()[0], first)
    np.testing.assert_array_equal(env.reset(seed=3)[0], first)
    for k in range(1, 6):
        obs, reward, terminated, truncated, info = env.step(np.zeros(1, np.float32))
        assert (terminated, truncated, info) == (False, k == 5, {}) and isinstance(reward, float)
    # The true last observation, not the one after the batch's own reset.
    assert not np.array_equal(obs, env.unwrapped._batch_of_one.obs_tensor[0].numpy())  # type: ignore[attr-defined]
    env.reset()
    env.unwrapped._batch_of_one.tensor_env.dof_state[0, 2] = 2.0  # type: ignore[attr-defined]
    obs, reward, terminated, truncated, _ = env.step(np.zeros(1, np.float32))
    assert (terminated, truncated, reward) == (True, False, -2.0) and abs(obs[2]) > 1.5
    env.close()
    env.close()


def test_gym_make_vec() -> None:
    env: Any = gym.make_vec(DISCRETE, num_envs=5, backend="torch", device="cpu", n_bins=4, max_episode_length=8)
    twin = make_env(DISCRETE, n_envs=5, n_bins=4, max_episode_length=8)
    assert isinstance(env, CartpoleVectorEnv) and env.num_envs == 5 and env.spec.id == DISCRETE
    assert env.single_action_space == spaces.Discrete(4) and env.observation_space.shape == (5, 4)
    if hasattr(gym.vector, "AutoresetMode"):
        assert env.metadata["autoreset_mode"] == gym.vector.AutoresetMode.SAME_STEP
    twin.seed(9)
    obs, info = env.reset(seed=9)
    np.testing.assert_array_equal(obs, twin.reset())
    assert info == {} and env.observation_space.contains(obs)
    n_done = 0
    for action in some_actions(twin, 40):
        obs, reward, terminated, truncated, info = env.step(action)
        t_obs, t_reward, t_dones, t_infos = twin.step(action)
        np.testing.assert_array_equal(obs, t_obs)
        np.testing.assert_array_equal(reward, t_reward)
        np.testing.assert_array_equal(terminated | truncated, t_dones)
        assert not (terminated & truncated).any() and bool(info) == t_dones.any()
        for i in np.flatnonzero(t_dones):
            assert truncated[i] == t_infos[i]["TimeLimit.truncated"] and info["_final_obs"][i]
            np.testing.assert_array_equal(info["final_obs"][i], t_infos[i]["terminal_observation"])
        n_done += int(t_dones.sum())
    assert n_done >= 20
    env.close()
    with pytest.raises(ValueError, match="n_envs"):
        gym.make_vec(CONTINUOUS, num_envs=0, backend="torch", device="cpu")


# -- what an id can register -----------------------------------------------------------------------------------------


@pytest.fixture
def register() -> Iterator[Callable[..., str]]:
    """Register an id of one's own for a while, as users do."""

    def call(**kwargs: Any) -> str:
        entry_points = {"entry_point": ENTRY_POINT, "vector_entry_point": VECTOR_ENTRY_POINT}
        gym.register("Own-v0", **{**entry_points, **kwargs})
        return "Own-v0"

    yield call
    gym.registry.pop("Own-v0", None)


def steps_of_gym_make(env_id: str, **kwargs: Any) -> int:
    env = gym.make(env_id, backend="torch", device="cpu", **kwargs)
    env.reset(seed=0)
    for steps in itertools.count(1):
        env.unwrapped._batch_of_one.tensor_env.dof_state.zero_()  # type: ignore[attr-defined]  # it stands
        if env.step(np.zeros(1, np.float32))[3]:
            return steps
    raise AssertionError


def steps_of_make_vec_env(env_id: str, **kwargs: Any) -> int:
    env = make_env(env_id, n_envs=2, **kwargs)
    env.reset()
    for steps in itertools.count(1):
        env.tensor_env.dof_state.zero_()  # type: ignore[attr-defined]
        if env.step(np.zeros((2, 1)))[3][1].get("TimeLimit.truncated"):
            return steps
    raise AssertionError


def steps_of_gym_make_vec(env_id: str, **kwargs: Any) -> int:
    env: Any = gym.make_vec(env_id, num_envs=2, backend="torch", device="cpu", **kwargs)
    env.reset(seed=0)
    for steps in itertools.count(1):
        env._env.tensor_env.dof_state.zero_()
        if env.step(np.zeros((2, 1), np.float32))[3].all():
            return steps
    raise AssertionError


STEPS = (steps_of_gym_make, steps_of_make_vec_env, steps_of_gym_make_vec)


@pytest.mark.parametrize("count_steps", STEPS)
@pytest.mark.parametrize(
    "registered, kwargs, n_steps",
    [
        (20, {}, 20),
        (600, {}, 600),
        (20, {"max_episode_steps": 30}, 30),
        (20, {"max_episode_length": 11}, 10),
        (None, {"max_episode_steps": 15}, 15),
        (None, {"max_episode_length": 16}, 15),
        (None, {"max_episode_steps": 15, "max_episode_length": 16}, 15),
    ],
)
def test_time_limits_agree(register: Any, count_steps: Any, registered: Any, kwargs: dict, n_steps: int) -> None:
    assert count_steps(register(max_episode_steps=registered), **kwargs) == n_steps


@pytest.mark.parametrize("count_steps", STEPS)
def test_time_limits_that_differ(register: Any, count_steps: Any) -> None:
    with pytest.raises(ValueError, match="=100 ends episodes after 99 steps, but max_episode_steps.* after 20"):
        count_steps(register(max_episode_steps=20), max_episode_length=100)


def test_what_an_id_registers_is_the_default_of_make_vec_env(register: Any) -> None:
    env_id = register(kwargs={"device": "cpu", "backend": "torch", "render_mode": "rgb_array", "dt": 0.01})
    env: Any = make_vec_env(f"sb3_isaac:{env_id}")
    assert env.render_mode == "rgb_array" and env.tensor_env.task.dt == 0.01
    env = make_vec_env(env_id, render_mode="human", dt=0.02, max_episode_steps=7)
    assert (env.render_mode, env.tensor_env.task.dt) == ("human", 0.02)
    assert (env.spec.max_episode_steps, gym.spec(env_id).max_episode_steps) == (7, None)
    with pytest.raises(ValueError, match="'cuda:99' cannot be used"):
        make_vec_env(env_id, device="cuda:99")
    gym.registry[env_id].kwargs["device"] = "cuda:98"
    with pytest.raises(ValueError, match="'cuda:98' cannot be used"):
        make_vec_env(env_id)


def test_wrappers_of_an_id_are_not_dropped(register: Any) -> None:
    wrapper = gym.wrappers.RescaleAction.wrapper_spec(min_action=-2.0, max_action=2.0)
    with pytest.raises(ValueError, match=r"additional_wrappers \(RescaleAction\), which wrap single environments"):
        make_env(register(additional_wrappers=(wrapper,)))


@pytest.mark.parametrize("name", ["env_kwargs", "wrapper_class", "vec_env_cls", "monitor_kwargs"])
def test_arguments_of_sb3s_make_vec_env(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} is an argument of SB3's make_vec_env only: "):
        make_env(**{name: None})


def test_gym_make_vec_of_single_environments() -> None:
    env = gym.make_vec(CONTINUOUS, num_envs=2, vectorization_mode="sync", backend="torch", device="cpu")
    obs, _ = env.reset(seed=1)
    np.testing.assert_array_equal(obs[0], make_env(n_envs=1, seed=1).reset()[0])
    assert env.step(np.zeros((2, 1), np.float32))[0].shape == (2, 4)
    env.close()
