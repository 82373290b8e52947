"""Domain randomisation: each cartpole is the one that its drawn parameters describe, and without it nothing has changed.

The Isaac Gym backend's part is in tests/isaacgym_standin/checks_backend.py.
"""

from __future__ import annotations

from typing import Any, Dict, List

import gymnasium as gym
import numpy as np
import pytest
import torch as th

from sb3_isaac import backends
from sb3_isaac.backends.base import StepResult
from sb3_isaac.backends.cartpole import RESET_WIDTH, CartpoleTask
from sb3_isaac.backends.physics import CartpolePhysics, integrate, integrate_each
from sb3_isaac.backends.randomize import Draws
from sb3_isaac.backends.torch_cartpole import TorchCartpole, advance, advance_randomized
from tests.conftest import CONTINUOUS, SyncGuard, make_env
from tests.reliability import resume_helpers

TORCH_2 = int(th.__version__.split(".")[0]) >= 2
ALL: Dict[str, Any] = {
    "cart_mass": (0.5, 2.0),
    "pole_mass": (0.5, 3.0),
    "pole_length": (0.5, 2.0),
    "angular_damping": (0.0, 1.0),
    "force_scale": (0.8, 1.2),
    "action_delay": (0, 3),
    "obs_noise": (0.01, 0.02),
    "push_velocity": (-1.5, 1.5),
    "push_interval": (0.1, 0.2),
}


def make(n_envs: int = 64, randomize: Any = None, seed: int = 0, **task: Any) -> TorchCartpole:
    return TorchCartpole(n_envs, "cpu", seed, randomize=randomize, **task)


def play(env: TorchCartpole, n_steps: int, seed: int = 1) -> List[StepResult]:
    generator = th.Generator().manual_seed(seed)
    actions = [(th.rand(env.n_envs, 1, generator=generator) * 2 - 1).sign() for _ in range(n_steps)]
    return [StepResult(*(tensor.clone() for tensor in env.step(action))) for action in actions]


def same(one: StepResult, other: StepResult) -> bool:
    return all(th.equal(x, y) for x, y in zip(one, other))


@pytest.mark.parametrize("off", [None, {}])
def test_off_is_what_it_was(off: Any) -> None:
    """The random numbers, the physics and the operations of a step are those of a cartpole that knows no randomisation."""
    env, task, width = make(32, off, seed=5), CartpoleTask(), th.tensor(RESET_WIDTH)
    generator = th.Generator().manual_seed(5)
    state, progress = (th.rand(32, 4, generator=generator) - 0.5) * width, th.zeros(32, dtype=th.int64)
    assert th.equal(env.reset(), state)
    actions = th.ones(32, 1)
    ended = 0
    for _ in range(60):
        expected, _ = advance(state, progress, actions, th.rand(32, 4, generator=generator), width, task)
        assert same(env.step(actions), expected)
        ended += int(expected.terminated.sum())
    assert ended > 32 and set(env.get_state()) == {"dof_state", "progress", "generator"} and env.own_parameters() == {}
    with SyncGuard() as plain:
        advance(state, progress, actions, th.rand(32, 4, generator=generator), width, task)
    with SyncGuard() as whole:
        env.step(actions)
    assert whole.kernels == plain.kernels


def test_the_physics_of_each_is_that_of_a_machine_built_so() -> None:
    """In float64, where only the order of operations is left; from anywhere, the rail's end and the speed limits included."""
    generator = th.Generator().manual_seed(0)
    n = 24
    own = {
        name: th.rand(n, generator=generator, dtype=th.float64) * (high - low) + low
        for name, (low, high) in list(ALL.items())[:4]
    }
    for given in (own, {"pole_length": own["pole_length"]}, {"cart_mass": own["cart_mass"]}):
        for fixed in ({}, {"pole_inertia": 0.1, "gravity": 3.7}):
            state = ((th.rand(n, 4, generator=generator) - 0.5) * th.tensor([8.2, 220.0, 7.0, 20.0])).double()
            force = (th.rand(n, generator=generator, dtype=th.float64) - 0.5) * 800.0
            found = integrate_each(state, force, given, 0.0166, 3, CartpolePhysics(**fixed))
            for i in range(n):
                physics = CartpolePhysics(**fixed, **{name: float(values[i]) for name, values in given.items()})
                alone = integrate(state[i : i + 1], force[i : i + 1], 0.0166, 3, physics)
                th.testing.assert_close(found[i : i + 1], alone, rtol=1e-9, atol=1e-9)
            assert (found[:, 0].abs() == 4.0).any() and (state[:, 3].abs() > 8.0).any()


def test_each_environment_is_the_one_that_it_has_drawn() -> None:
    """Through step(): machine, force and delay of every environment, against a simulator of its own with these constants."""
    names = ("cart_mass", "pole_mass", "pole_length", "angular_damping", "force_scale", "action_delay")
    env = make(8, {name: ALL[name] for name in names})
    env.reset()
    own = env.own_parameters()
    assert own["action_delay"].unique().numel() > 1
    actions = th.rand(12, 8, 1, generator=th.Generator().manual_seed(3)) * 0.1
    alone = []
    for i in range(8):
        constants = {name: float(own[name][i]) for name in names[:4]}
        alone.append(make(1, max_effort=400.0 * float(own["force_scale"][i]), **constants))
    for t in range(12):
        state = env.get_state()["dof_state"]
        result = env.step(actions[t])
        assert not result.terminated.any()
        for i, other in enumerate(alone):
            other.dof_state.copy_(state[i])
            sent = t - int(own["action_delay"][i])
            expected = other.step(actions[sent, i : i + 1] if sent >= 0 else th.zeros(1, 1))
            th.testing.assert_close(result.obs[i], expected.obs[0], rtol=1e-5, atol=1e-5)
            assert float(env.force[i]) == pytest.approx(float(other.force[0]), rel=1e-5)


def test_draws_are_uniform_and_those_of_the_resets_only() -> None:
    env = make(20_000, {**ALL, "action_delay": (1, 3), "force_scale": 0.9})
    env.reset()
    own = env.own_parameters()
    assert list(own) == [name for name in ALL if not name.startswith("push")]
    for name, (low, high) in ALL.items():
        if name in own and name not in ("action_delay", "force_scale"):
            u = (own[name] - low) / (high - low)
            assert u.min() >= 0.0 and u.max() <= 1.0 + 1e-6
            assert (th.histc(u, 10, 0.0, 1.0) - 2000).abs().max() < 250  # six standard deviations
    assert (own["force_scale"] == 0.9).all()
    values, counts = own["action_delay"].unique(return_counts=True)
    assert values.tolist() == [1.0, 2.0, 3.0] and (counts - 20_000 / 3).abs().max() < 450
    table = th.stack([own[name] for name in own if name != "force_scale"])
    correlation = th.from_numpy(np.corrcoef(table.numpy())) - th.eye(len(table), dtype=th.float64)
    assert correlation.abs().max() < 0.05
    done = th.zeros(20_000, dtype=th.bool)
    for result in play(env, 25):
        done |= result.terminated
    assert 100 < done.sum() < 20_000
    now = env.own_parameters()
    changed = th.stack([now[name] != own[name] for name in ("cart_mass", "pole_length")])
    assert th.equal(changed[0], done) and th.equal(changed[1], done)


def test_a_delay_begins_anew_with_every_episode() -> None:
    env = make(3, {"action_delay": 2}, max_episode_length=6)
    env.reset()
    forces = []
    for t in range(1, 10):
        env.step(th.full((3, 1), t / 100.0))
        forces.append(round(float(env.force[0]) / 4.0))
    assert forces == [0, 0, 1, 2, 3, 0, 0, 6, 7]  # five steps of an episode, then the next
    none = make(3, {"action_delay": 0})
    none.reset(), none.step(th.full((3, 1), 0.5))
    assert none.force.tolist() == [200.0] * 3


def test_noise_is_on_what_the_agent_sees_and_on_nothing_else() -> None:
    env, true = make(4096, {"obs_noise": [0.01, 0.2, 0.05, 0.0]}), make(4096)
    first = env.reset()
    state = env.get_state()
    deviations = th.tensor([0.01, 0.2, 0.05, 0.0])
    th.testing.assert_close((first - state["dof_state"]).std(0), deviations, rtol=0.05, atol=0.0)
    assert own_noise(env).tolist() == [1.0] * 4096
    state["progress"][:100] = env.max_episode_length - 2
    env.set_state(state)
    true.dof_state.copy_(state["dof_state"]), true.progress.copy_(state["progress"])
    result, expected = env.step(th.ones(4096, 1)), true.step(th.ones(4096, 1))
    assert th.equal(result.reward, expected.reward) and th.equal(result.terminated, expected.terminated)
    assert result.truncated[:100].all() and not result.truncated[100:].any()
    assert th.equal(result.obs[100:], result.final_obs[100:])
    th.testing.assert_close((result.final_obs - expected.final_obs).std(0), deviations, rtol=0.05, atol=1e-7)
    th.testing.assert_close((result.obs - env.dof_state)[:100].std(0), deviations, rtol=0.4, atol=1e-7)
    assert (result.final_obs[:100] - result.obs[:100]).abs().max() > 1.0  # speeds before and after the reset
    again = env.step(th.zeros(4096, 1)).obs - env.dof_state
    assert np.corrcoef(again[:, 2].numpy(), (result.final_obs - expected.final_obs)[:, 2].numpy())[0, 1] < 0.1


def own_noise(env: TorchCartpole) -> th.Tensor:
    return env.own_parameters()["obs_noise"]


def test_a_deviation_of_ones_own_is_that_of_the_episode() -> None:
    """The last observation has the old one's noise, the first of the new episode the new one's."""
    env = make(2, {"obs_noise": (0.0, 1.0)}, max_episode_length=2)
    env.reset()
    before = own_noise(env)
    same_numbers = th.Generator()
    same_numbers.set_state(env.get_state()["generator"])
    spec: Any = env.task.randomize
    normal: Any = Draws.make(spec, 2, 4, same_numbers).normal
    env.dof_state.zero_()
    result = env.step(th.zeros(2, 1))
    assert result.truncated.all() and not th.equal(own_noise(env), before)
    th.testing.assert_close(result.final_obs, normal * before.unsqueeze(-1))
    th.testing.assert_close(result.obs, env.dof_state + normal * own_noise(env).unsqueeze(-1))


def test_pushes() -> None:
    """Each at its time, drawn anew after every push and reset; before the physics of the step, on the pole alone."""
    env, plain = make(512, {"push_velocity": (0.5, 1.5), "push_interval": (0.05, 0.1)}, dt=0.01), make(512, dt=0.01)
    env.reset()
    times: List[List[int]] = [[] for _ in range(512)]
    velocities = []
    for t in range(1, 31):
        state = env.get_state()["dof_state"]
        result = env.step(th.zeros(512, 1))
        before = state.clone()
        plain.dof_state.copy_(state)
        unpushed = plain.step(th.zeros(512, 1)).final_obs
        pushed = (result.final_obs[:, 3] - unpushed[:, 3]).abs() > 0.1
        assert th.equal(result.final_obs[~pushed], unpushed[~pushed])
        for i in pushed.nonzero().view(-1).tolist():
            times[i].append(t)
        # what the change of velocity was follows from the state that leads to the same
        before[:, 3] += (result.final_obs[:, 3] - unpushed[:, 3]) * pushed
        th.testing.assert_close(integrate(before, th.zeros(512), 0.01)[:, :3], result.final_obs[:, :3], rtol=0.0, atol=5e-3)
        velocities.append((result.final_obs[:, 3] - unpushed[:, 3])[pushed])
        assert not (result.terminated | result.truncated).any()
    gaps = np.concatenate([np.diff([0, *steps]) for steps in times])
    assert set(gaps) == {5, 6, 7, 8, 9, 10} and all(len(steps) >= 2 for steps in times)
    found = th.cat(velocities)
    assert 0.45 < found.min() < 0.6 and 1.4 < found.max() < 1.65 and abs(float(found.mean()) - 1.0) < 0.1
    short = make(4, {"push_velocity": 1.0, "push_interval": 0.05}, dt=0.01, max_episode_length=4)
    short.reset()
    for _ in range(12):  # episodes of three steps end before their first push, in the fifth
        short.step(th.zeros(4, 1))
        assert short.get_state()["until_push"].min() > 1.9


def test_state_round_trip() -> None:
    env = make(32, ALL)
    env.reset()
    play(env, 20)
    saved = env.get_state()
    frozen = {name: tensor.clone() for name, tensor in saved.items()}
    first = play(env, 40, seed=2)
    assert any(result.terminated.any() for result in first)
    other = make(32, ALL, seed=99)
    other.set_state(saved)
    assert all(same(x, y) for x, y in zip(play(other, 40, seed=2), first))
    assert all(th.equal(saved[name], frozen[name]) for name in saved)
    assert all(th.equal(env.get_state()[name], other.get_state()[name]) for name in saved)
    for stranger in (make(32), make(32, {"cart_mass": (1.0, 2.0)}), make(32, {**ALL, "action_delay": 1})):
        with pytest.raises(ValueError, match="another randomize=: make the environment as it was"):
            stranger.set_state(saved)
    with pytest.raises(ValueError, match="another randomize="):
        env.set_state(make(32).get_state())


def test_a_training_goes_on_bit_for_bit(tmp_path: Any) -> None:
    """Killed in the middle of an episode, with actions on their way."""

    def env(seed: int) -> Any:
        return make_env(CONTINUOUS, 8, seed=seed, max_episode_length=40, randomize=ALL)

    ask = resume_helpers.Ask(tmp_path / "saved", 16 * 8 * 2 + 8 * 5)
    model = resume_helpers.make("ppo", env=env(1))
    model.learn(16 * 8 * 4, callback=ask)
    resumed = resume_helpers.ALGOS["ppo"].resume(tmp_path / "saved", env(99), device="cpu")
    resumed.learn(callback=resume_helpers.Ask(None, 0))
    one, other = resume_helpers.everything(model), resume_helpers.everything(resumed)
    assert {"env.parameters", "env.sent", "env.until_push"} <= set(one)
    assert resume_helpers.differences(one, other) == []


def test_a_step_does_not_wait_for_the_device_and_stays_at_its_addresses() -> None:
    env = make(16, ALL)
    env.reset()
    assert env.drawn is not None
    addresses = [tensor.data_ptr() for tensor in (*env.drawn, env.dof_state)]
    with SyncGuard() as guard:
        for _ in range(30):
            env.step(th.ones(16, 1))
    assert sum(guard.kernels.values()) > 100
    env.reset()
    env.set_state(env.get_state())
    assert [tensor.data_ptr() for tensor in (*env.drawn, env.dof_state)] == addresses


@pytest.mark.skipif(not TORCH_2, reason="torch.compile came with torch 2")
def test_compiles_into_one_graph() -> None:
    step = th.compile(advance_randomized, fullgraph=True, backend="eager")
    env, compiled = make(8, ALL, max_episode_length=6), make(8, ALL, max_episode_length=6)
    compiled._advance = step
    assert th.equal(env.reset(), compiled.reset())
    for x, y in zip(play(env, 8), play(compiled, 8)):
        assert all(th.allclose(a.double(), b.double(), rtol=0.0, atol=1e-4) for a, b in zip(x, y))
    assert th.equal(env.get_state()["parameters"], compiled.get_state()["parameters"])


@pytest.mark.parametrize(
    "randomize, message",
    [
        (
            ["cart_mass"],
            r"randomize must be a mapping of names to ranges.*got \['cart_mass'\]; the names: cart_mass, pole_mass",
        ),
        ({"damping": (0.0, 1.0)}, "randomize has no 'damping': it may have cart_mass, .*push_interval"),
        ({"cart_mass": (2.0, 0.5)}, r"cart_mass must .*\(kg\), got \(2.0, 0.5\) in randomize, which is the wrong way round"),
        ({"pole_mass": (-1.0, 1.0)}, r"pole_mass must be a number, or two \(low, high\), each from 0.001 to 1000000 \(kg\)"),
        ({"pole_length": 0.0}, r"pole_length must .* \(m\), got 0.0"),
        ({"pole_length": (1.0, float("nan"))}, r"pole_length must .*, got \(1.0, nan\)"),
        ({"angular_damping": (0.0, float("inf"))}, "angular_damping must"),
        ({"force_scale": (0.8, 1.0, 1.2)}, "force_scale must be a number, or two"),
        ({"force_scale": "strong"}, "force_scale must be a number, or two .* got 'strong'"),
        ({"action_delay": (0.5, 2)}, r"action_delay must be a whole number, or two .* from 0 to 100 \(control steps\)"),
        ({"action_delay": -1}, "action_delay must be a whole number"),
        ({"obs_noise": (0.1, 0.1, 0.1)}, "obs_noise must be a number, two .* or four"),
        ({"obs_noise": True}, "obs_noise must be"),
        ({"push_velocity": 1.0}, "pushes without push_interval: give push_velocity"),
        ({"push_interval": 1.0}, "pushes without push_velocity"),
        ({"push_velocity": 1.0, "push_interval": 0.0}, r"push_interval must .* greater than 0 and at most 1000000 \(s\)"),
    ],
)
def test_bad_input_is_one_sentence(randomize: Any, message: str) -> None:
    for makes in (
        lambda: backends.make("torch", 2, "cpu", randomize=randomize),
        lambda: gym.make(CONTINUOUS, randomize=randomize),
    ):
        with pytest.raises(ValueError, match=message) as raised:
            makes()
        assert len(str(raised.value).splitlines()) == 1


def test_a_parameter_that_is_given_and_drawn() -> None:
    with pytest.raises(ValueError, match=r"pole_length=2.0 and randomize=\{'pole_length': ...\} say the same thing twice"):
        make(2, {"pole_length": (0.5, 1.0)}, pole_length=2.0)
    assert make(2, {"pole_length": (0.5, 1.0)}, cart_mass=2.0).task.cart_mass == 2.0


def test_through_gymnasium_and_with_numbers_of_numpy() -> None:
    given = {"pole_length": np.array([0.5, 2.0]), "action_delay": [np.int64(1), 2], "obs_noise": np.float32(0.1)}
    env = gym.make(CONTINUOUS, backend="torch", device="cpu", randomize=given)
    assert np.isfinite(env.reset(seed=0)[0]).all() and np.isfinite(env.step(np.zeros(1, np.float32))[0]).all()
    batch = make_env(CONTINUOUS, 4, randomize=given)
    batch.reset()
    (own,) = batch.env_method("own_parameters", indices=[0])
    assert 0.5 <= own["pole_length"].min() and own["pole_length"].unique().numel() == 4
    with pytest.raises(ValueError, match="'randomize' is built into the simulator"):
        batch.set_attr("randomize", None)


def test_pictures_show_the_pole_that_there_is() -> None:
    pytest.importorskip("pygame")
    env = make_env(CONTINUOUS, 2, randomize={"pole_length": (0.3, 1.0)}, render_mode="rgb_array")
    env.reset()
    assert np.array_equal(env.tensor_env.render_state()["pole_length"], env.tensor_env.own_parameters()["pole_length"].numpy())
    env.tensor_env.dof_state.zero_()
    assert not np.array_equal(*env.get_images())
    env.tensor_env.drawn.parameters.fill_(1.0)
    assert np.array_equal(*env.get_images())
