"""A user's own task, examples/my_pendulum.py, through everything that makes environments, and mistakes in one."""

from __future__ import annotations

import warnings
from typing import Any, Callable

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_checker import check_env

import sb3_isaac
from sb3_isaac.envs import IsaacVecEnv, TaskEnv, TaskVectorEnv
from tests.conftest import some_actions

MY_PENDULUM = "MyPendulum-v0"
ON_CPU = {"device": "cpu"}


def make(env_id: str = MY_PENDULUM, n_envs: int = 4, **kwargs: Any) -> Any:
    return sb3_isaac.make_vec_env(env_id, n_envs, **{"seed": 1, **ON_CPU, **kwargs})


@pytest.mark.filterwarnings("ignore::UserWarning:pygame")
def test_it_is_gymnasiums_pendulum(my_pendulum: Any) -> None:
    theirs: Any = gym.make("Pendulum-v1").unwrapped
    ours = make(n_envs=1)
    ours.reset()
    for action in some_actions(ours, 50):
        theirs.reset()
        theirs.state = np.array([float(ours.tensor_env.angle), float(ours.tensor_env.speed)])
        obs, reward, _, _, _ = theirs.step(2.0 * action[0])
        mine = ours.step(action)
        np.testing.assert_allclose(mine[0][0], obs, atol=1e-5)
        assert mine[1][0] == pytest.approx(reward, abs=1e-4)


def test_every_way_to_make_it_makes_the_same(my_pendulum: Any) -> None:
    batch = make()
    single = gym.make(MY_PENDULUM, **ON_CPU)
    vector: Any = gym.make_vec(MY_PENDULUM, num_envs=4, **ON_CPU)
    assert isinstance(batch, IsaacVecEnv) and isinstance(single.unwrapped, TaskEnv) and isinstance(vector, TaskVectorEnv)
    assert batch.action_space == single.action_space == vector.single_action_space == spaces.Box(-1.0, 1.0, (1,))
    assert batch.observation_space == single.observation_space == spaces.Box(-np.inf, np.inf, (3,))
    one = make(n_envs=1)
    obs = batch.reset()
    np.testing.assert_array_equal(vector.reset(seed=1)[0], obs)
    np.testing.assert_array_equal(single.reset(seed=1)[0], one.reset()[0])
    ends = 0
    for action in some_actions(batch, 210):
        obs, reward, dones, infos = batch.step(action)
        v_obs, v_reward, terminated, truncated, v_info = vector.step(action)
        np.testing.assert_array_equal(v_obs, obs)
        np.testing.assert_array_equal(v_reward, reward)
        np.testing.assert_array_equal(truncated, dones)
        if ends == 0:
            s_obs, s_reward, _, s_truncated, _ = single.step(action[0])
            o_obs, o_reward, o_dones, o_infos = one.step(action[:1])
            assert s_reward == o_reward[0] and s_truncated == o_dones[0] == dones[0]
            np.testing.assert_array_equal(s_obs, o_infos[0].get("terminal_observation", o_obs[0]))
        if dones.any():
            ends += 1
            assert infos[2]["TimeLimit.truncated"] and infos[2]["episode"]["l"] == 200
            np.testing.assert_array_equal(v_info["final_obs"][2], infos[2]["terminal_observation"])
    assert ends == 1


def test_sb3s_checker_passes(my_pendulum: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*Box observation space m.*infinity")
        check_env(gym.make(MY_PENDULUM, **ON_CPU), skip_render_check=True)


def test_task_parameters(my_pendulum: Any) -> None:
    sb3_isaac.register("OnTheMoon-v0", "my_pendulum:Pendulum", kwargs={"gravity": 1.62})
    assert make("OnTheMoon-v0").tensor_env.gravity == 1.62
    assert make("OnTheMoon-v0", gravity=3.7).tensor_env.gravity == 3.7
    assert make("my_pendulum:OnTheMoon-v0").get_attr("gravity")[0] == 1.62
    with pytest.raises(
        TypeError, match=r"Pendulum\(.*\) cannot be called with n_envs=, device=, seed=, wind=, as a task is: .*wind"
    ):
        make(wind=1.0)
    with pytest.raises(TypeError, match="wind"):
        gym.make(MY_PENDULUM, wind=1.0)


@pytest.mark.parametrize("algo, kwargs", [("PPO", {}), ("DDPG", {}), ("DQN", {"discrete": True, "n_bins": 5})])
def test_algorithms_train_in_tensors(my_pendulum: Any, algo: str, kwargs: Any) -> None:
    env = make(n_envs=16, **kwargs)
    settings: Any = {"n_steps": 8, "n_minibatches": 2} if algo == "PPO" else {"learning_starts": 64, "batch_size": 32}
    model = getattr(sb3_isaac, algo)("MlpPolicy", env, seed=0, **ON_CPU, **settings)
    model.learn(16 * 210)
    assert model.path == "in tensors, without autograd"
    assert [info["l"] for info in model.ep_info_buffer] == [200] * 16
    assert -2000 < sb3_isaac.evaluate(model, make(n_envs=8, **kwargs), 8).mean < 0


def test_discrete_actions(my_pendulum: Any) -> None:
    sb3_isaac.register("Bins-v0", my_pendulum.Pendulum, action_space=spaces.Discrete(5))
    env = make("Bins-v0", n_envs=5)
    assert env.action_space == spaces.Discrete(5) and make("Bins-v0", n_bins=7).action_space == spaces.Discrete(7)
    torques = []
    env.tensor_env.step, step = lambda actions: torques.append(actions) or step(actions), env.tensor_env.step
    env.reset()
    env.step(np.arange(5))
    assert torques[0].squeeze(-1).tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]
    with pytest.raises(ValueError, match="n_bins needs Discrete actions"):
        make(n_bins=3)


# -- time limits -----------------------------------------------------------------------------------------------------


def steps_of_gym_make(env_id: str, **kwargs: Any) -> int:
    env = gym.make(env_id, **ON_CPU, **kwargs)
    env.reset(seed=0)
    return next(k for k in range(1, 1000) if env.step(np.zeros(1, np.float32))[3])


def steps_of_make_vec_env(env_id: str, **kwargs: Any) -> int:
    env = make(env_id, 2, **kwargs)
    env.reset()
    return next(k for k in range(1, 1000) if env.step(np.zeros((2, 1)))[3][1].get("TimeLimit.truncated"))


def steps_of_gym_make_vec(env_id: str, **kwargs: Any) -> int:
    env: Any = gym.make_vec(env_id, num_envs=2, **ON_CPU, **kwargs)
    env.reset(seed=0)
    return next(k for k in range(1, 1000) if env.step(np.zeros((2, 1), np.float32))[3].all())


@pytest.mark.parametrize("count_steps", [steps_of_gym_make, steps_of_make_vec_env, steps_of_gym_make_vec])
@pytest.mark.parametrize("as_argument", [False, True])
def test_time_limits(my_pendulum: Any, count_steps: Callable[..., int], as_argument: bool) -> None:
    class WithLimit(my_pendulum.Pendulum):  # type: ignore[misc, name-defined]
        def __init__(self, n_envs: int, device: Any, seed: int, max_episode_length: int = 201) -> None:
            super().__init__(n_envs, device, seed)
            self.max_episode_length = max_episode_length

    entry = WithLimit if as_argument else my_pendulum.Pendulum
    sb3_isaac.register("Short-v0", entry, max_episode_steps=7)
    sb3_isaac.register("Plain-v0", entry)
    assert (count_steps("Short-v0"), count_steps("Plain-v0")) == (7, 200)
    assert (count_steps("Short-v0", max_episode_steps=250), count_steps("Plain-v0", max_episode_steps=5)) == (250, 5)
    if as_argument:
        assert count_steps("Plain-v0", max_episode_length=12) == 11


# -- ids that others have registered ---------------------------------------------------------------------------------


@pytest.mark.parametrize("as_string", [False, True])
def test_a_gymnasium_id_whose_entry_point_is_a_tensor_env(my_pendulum: Any, as_string: bool) -> None:
    entry_point = "my_pendulum:Pendulum" if as_string else my_pendulum.Pendulum
    gym.register("Theirs-v0", entry_point=entry_point, max_episode_steps=9, kwargs={"gravity": 2.0})
    env = make("Theirs-v0")
    assert (env.tensor_env.gravity, env.tensor_env.max_episode_length) == (2.0, 10)
    assert isinstance(gym.make("Theirs-v0").unwrapped, TaskEnv)
    assert isinstance(gym.make_vec("Theirs-v0", num_envs=2), TaskVectorEnv)
    with pytest.raises(
        ValueError, match="CartPole-v1 is not an Isaac Gym environment: .*your own task from sb3_isaac.register"
    ):
        make("CartPole-v1")


def test_a_function_as_entry_is_asked_for_its_sizes(my_pendulum: Any) -> None:
    made = []

    def entry(n_envs: int, device: th.device, seed: int, **task: Any) -> Any:
        made.append((n_envs, device, seed))
        return my_pendulum.Pendulum(n_envs, device, seed, **task)

    sb3_isaac.register("Function-v0", entry)
    assert make("Function-v0", gravity=5.0).observation_space.shape == (3,)
    assert made == [(1, th.device("cpu"), 0), (4, th.device("cpu"), 1)]
    make("Function-v0", seed=None), make("Function-v0", seed=None)
    assert isinstance(made[3][2], int) and made[3][2] != made[5][2]
    made.clear()
    sb3_isaac.register(
        "Told-v0", entry, observation_space=spaces.Box(-9.0, 9.0, (3,)), action_space=spaces.Box(-1.0, 1.0, (1,))
    )
    assert gym.make("Told-v0").observation_space == spaces.Box(-9.0, 9.0, (3,)) and made == []


# -- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "entry, error, message",
    [
        ("my_pendulum", ImportError, "'my_pendulum' of a task must be 'module:name'"),
        ("my_pendulum:Pendulm", ImportError, r"module my_pendulum \(.*my_pendulum.py\) has no 'Pendulm'"),
        ("no_such_module:Pendulum", ImportError, "no_such_module"),
        ("my_pendulum:math", TypeError, "must be a TensorEnv class or a function"),
        (lambda n_envs, device, seed: gym.make("CartPole-v1"), ValueError, "a task is a subclass of sb3_isaac.TensorEnv"),
    ],
)
def test_bad_entries(my_pendulum: Any, entry: Any, error: Any, message: str) -> None:
    sb3_isaac.register("Bad-v0", entry)
    with pytest.raises(error, match=message):
        make("Bad-v0")


def test_what_cannot_be_an_entry() -> None:
    with pytest.raises(ValueError, match="The entry of Bad-v0 must be a TensorEnv class, a function or 'module:name', got 3"):
        sb3_isaac.register("Bad-v0", 3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "change, message",
    [
        (
            {"reward": lambda r: r.reward.unsqueeze(-1)},
            r"step returned a tensor \(4, 1\) of float32 on cpu as reward: .* \(4,\)",
        ),
        ({"obs": lambda r: r.obs.double()}, r"of float64 on cpu as obs: it must be a tensor \(4, 3\) of float32 on cpu"),
        ({"terminated": lambda r: 0 * r.reward}, "of float32 on cpu as terminated: it must be .* of bool"),
        ({"final_obs": lambda r: None}, "step returned NoneType None as final_obs"),
        ({"obs": lambda r: r.obs.numpy()}, "step returned ndarray "),
        (
            {"truncated": lambda r: r.truncated | True, "terminated": lambda r: r.terminated | True},
            "terminated and truncated at",
        ),
        ({"final_obs": lambda r: 0.0 * r.final_obs}, "environment 0 has another final_obs than obs"),
    ],
)
@pytest.mark.parametrize("good_steps", [0, 2])
def test_a_step_that_breaks_the_contract(my_pendulum: Any, change: Any, message: str, good_steps: int) -> None:
    class Broken(my_pendulum.Pendulum):  # type: ignore[misc, name-defined]
        n_steps = 0

        def step(self, actions: th.Tensor) -> Any:
            result = super().step(actions)
            self.n_steps += 1
            if self.n_steps <= good_steps:
                return result
            return result._replace(**{name: function(result) for name, function in change.items()})

    sb3_isaac.register("Broken-v0", Broken)
    env = make("Broken-v0")
    env.reset()
    for _ in range(good_steps):
        env.step(np.zeros((4, 1)))
    with pytest.raises(ValueError, match=f"Broken.*{message}"):
        env.step(np.zeros((4, 1)))


def not_reset(task: Any, result: Any) -> Any:
    return result._replace(obs=result.final_obs)


def progress_goes_on(task: Any, result: Any) -> Any:
    task.progress.fill_(3)
    return result


def too_long(task: Any, result: Any) -> Any:
    task.max_episode_length = 5  # which this step has not looked at
    return result


@pytest.mark.parametrize(
    "change, message",
    [
        (not_reset, "environment 0 has ended, and its obs is its final_obs: reset it"),
        (progress_goes_on, "environment 0 has ended, and its progress is not 0"),
        (too_long, "environment 0 goes on after max_episode_length=5 steps"),
    ],
)
def test_a_step_that_is_probably_wrong(my_pendulum: Any, change: Any, message: str) -> None:
    class Odd(my_pendulum.Pendulum):  # type: ignore[misc, name-defined]
        n_steps = 0

        def step(self, actions: th.Tensor) -> Any:
            self.max_episode_length, self.n_steps = 9, self.n_steps + 1
            self.progress.fill_(self.n_steps - 1)
            return change(self, super().step(actions))

    sb3_isaac.register("Odd-v0", Odd)
    env = make("Odd-v0")
    env.reset()
    with pytest.warns(UserWarning, match=f"Odd.step: {message}") as caught:
        for _ in range(9):
            env.step(np.zeros((4, 1)))
    assert len(caught) == 1


def test_a_right_task_is_not_warned_of(my_pendulum: Any) -> None:
    env = make(max_episode_steps=9)
    env.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(30):
            env.step(np.zeros((4, 1)))


@pytest.mark.parametrize("algo", ["PPO", "DDPG"])
def test_a_task_may_change_the_actions_in_place(my_pendulum: Any, algo: str) -> None:
    class InPlace(my_pendulum.Pendulum):  # type: ignore[misc, name-defined]
        def step(self, actions: th.Tensor) -> Any:
            actions.mul_(8.0)  # exact
            return super().step(actions / 8.0)

    found = []
    for task in (my_pendulum.Pendulum, InPlace):
        sb3_isaac.register(f"{task.__name__}-v7", task)
        options: Any = {"n_steps": 8, "batch_size": 32} if algo == "PPO" else {"learning_starts": 8, "batch_size": 32}
        model = getattr(sb3_isaac, algo)("MlpPolicy", make(f"{task.__name__}-v7"), seed=0, device="cpu", **options).learn(64)
        buffer = model.rollout_buffer if algo == "PPO" else model.replay_buffer
        found.append(np.asarray(buffer.actions[:8]))
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(
    "attributes, message",
    [
        ({"reset": lambda self: self.observe()[0]}, r"Broken.reset returned a tensor \(3,\) .* as obs"),
        (
            {"step": lambda self, actions: self.observe()},
            "Broken.step returned a tensor .*: it must be a StepResult, of obs, rew",
        ),
        ({"step": lambda self, actions: (None,) * 5}, "Broken.step returned tuple .*: it must be a StepResult"),
        ({"obs_dim": 2}, r"Broken.reset returned a tensor \(4, 3\) .* must be a tensor \(4, 2\)"),
        ({"n_envs": property(lambda self: 9, lambda self, value: None)}, "asked for n_envs=4 and has 9"),
        ({"max_episode_length": property(lambda self: 201)}, "time limit of Broken cannot be set: make max_episode_length an"),
        (
            {"progress": property(lambda self: self.none, lambda self, value: None)},
            "Broken has no attribute progress",
        ),
    ],
)
def test_other_broken_tasks(my_pendulum: Any, attributes: Any, message: str) -> None:
    sb3_isaac.register("Broken-v0", type("Broken", (my_pendulum.Pendulum,), attributes))
    with pytest.raises(ValueError, match=message):
        env = make("Broken-v0", max_episode_steps=9)
        env.reset()
        env.step(np.zeros((4, 1)))


def test_spaces_must_fit(my_pendulum: Any) -> None:
    sb3_isaac.register("Bad-v0", my_pendulum.Pendulum, observation_space=spaces.Box(-1.0, 1.0, (4,)))
    with pytest.raises(ValueError, match=r"Pendulum has observations of 3 numbers, .* Box of shape \(3,\)"):
        make("Bad-v0")
    sb3_isaac.register("Bad-v1", my_pendulum.Pendulum, action_space=spaces.Discrete(3, start=1))
    with pytest.raises(ValueError, match="must start at 0"):
        make("Bad-v1")
    sb3_isaac.register("Bad-v2", type("Two", (my_pendulum.Pendulum,), {"action_dim": 2}), kwargs={"discrete": True})
    with pytest.raises(ValueError, match="Discrete actions need a task with one action, Two has 2"):
        make("Bad-v2")


# -- pictures --------------------------------------------------------------------------------------------------------


def test_pictures_of_a_task_that_draws(my_pendulum: Any) -> None:
    class Drawn(my_pendulum.Pendulum):  # type: ignore[misc, name-defined]
        render_fps = 20

        def render(self, n_envs: int) -> Any:
            return np.full((n_envs, 8, 6, 3), 7, np.uint8)

    sb3_isaac.register("Drawn-v0", Drawn)
    env = make("Drawn-v0", n_envs=40, render_mode="rgb_array")
    env.reset()
    picture = env.render()
    assert picture.shape == (32, 24, 3) and (picture == 7).all()  # a grid of 4 x 4
    assert env.metadata["render_fps"] == 20
    single = gym.make("Drawn-v0", render_mode="rgb_array", **ON_CPU)
    single.reset()
    assert np.asarray(single.render()).shape == (8, 6, 3)


@pytest.mark.parametrize(
    "picture, found",
    [
        (lambda n: [np.zeros((8, 6, 3))] * n, r"4 pictures, \(8, 6, 3\) float64"),
        (lambda n: [np.zeros((8, 6, 4), np.uint8)] * n, r"4 pictures, \(8, 6, 4\) uint8"),
        (lambda n: [np.zeros((3, 8, 6), np.uint8)] * n, r"4 pictures, \(3, 8, 6\) uint8"),
        (lambda n: np.zeros((8, 6, 3), np.uint8), r"8 pictures, \(6, 3\) uint8"),
        (lambda n: [np.zeros((8, 6, 3), np.uint8)] * 2, r"2 pictures, \(8, 6, 3\) uint8"),
        (lambda n: [np.zeros((8, 6 + i, 3), np.uint8) for i in range(n)], r"4 pictures, \(8, 6, 3\) uint8, \(8, 7, 3\) uint8"),
        (lambda n: [[[0]]] * n, r"4 pictures, \(\) list"),
        (lambda n: None, "0 pictures, nothing"),
    ],
)
def test_pictures_that_are_none(my_pendulum: Any, picture: Any, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(my_pendulum.Pendulum, "render", lambda self, n: picture(n))
    env = make(render_mode="rgb_array")
    env.reset()
    with pytest.raises(ValueError, match=rf"Pendulum.render\(4\) returned {found}.*: it must be 4 arrays \(height"):
        env.render()


def test_a_window_of_a_task_that_draws(my_pendulum: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pygame = pytest.importorskip("pygame")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    monkeypatch.setattr(my_pendulum.Pendulum, "render", lambda self, n: np.full((n, 8, 6, 3), 7, np.uint8))
    env = make(n_envs=1, render_mode="human")
    env.reset()
    assert env.render() is None
    assert (pygame.surfarray.array3d(pygame.display.get_surface()) == 7).all()
    env.close()
    assert pygame.display.get_surface() is None


def test_pictures_of_a_task_that_does_not(my_pendulum: Any) -> None:
    env = make(render_mode="rgb_array")
    env.reset()
    with pytest.raises(NotImplementedError, match=r"Pendulum has no pictures: .*--no-render.* render\(n_envs\)"):
        env.render()


def test_states_are_optional(my_pendulum: Any) -> None:
    with pytest.raises(NotImplementedError, match=r"Pendulum cannot tell its state: give it get_state\(\)"):
        make().tensor_env.get_state()


# -- the cartpole's own reward ---------------------------------------------------------------------------------------


def my_reward(obs: th.Tensor, actions: th.Tensor, terminated: th.Tensor, task: Any) -> th.Tensor:
    return th.cos(obs[:, 2]) - 0.1 * actions[:, 0].abs()


def leans(obs: th.Tensor, actions: th.Tensor, task: Any) -> th.Tensor:
    return obs[:, 2].abs() > 0.1


@pytest.mark.parametrize("env_id", ["IsaacGymCartpole-v0", "IsaacGymCartpoleDiscrete-v0"])
@pytest.mark.parametrize("functions", [(my_reward, leans), (f"{__name__}:my_reward", f"{__name__}:leans")])
def test_rewards_and_terminations_of_the_cartpole(env_id: str, functions: Any) -> None:
    kwargs = {"reward": functions[0], "termination": functions[1], "pole_length": 2.0, "backend": "torch"}
    env, single = make(env_id, 64, **kwargs), gym.make(env_id, **ON_CPU, **kwargs)
    single.reset(seed=0)
    env.reset()
    action: Any = np.zeros((64, 1)) if env_id == "IsaacGymCartpole-v0" else np.ones(64, int)
    obs, rewards, dones, infos = env.step(action)
    assert 0 < dones.sum() < 64
    last = np.array([infos[i].get("terminal_observation", obs[i]) for i in range(64)])
    np.testing.assert_allclose(rewards, np.cos(last[:, 2]), rtol=1e-6)
    np.testing.assert_array_equal(dones, np.abs(last[:, 2]) > 0.1)
    obs_1, reward_1, terminated, _, _ = single.step(action[0])
    assert reward_1 == pytest.approx(np.cos(obs_1[2]), rel=1e-6) and terminated == (abs(obs_1[2]) > 0.1)
    assert env.get_attr("pole_length") == [2.0] * 64
    with pytest.raises(ValueError, match="'reward' is built into the simulator"):
        env.set_attr("reward", my_reward)
