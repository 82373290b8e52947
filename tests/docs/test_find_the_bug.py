"""Each fault of "Find the bug" changes what the page says and nothing else; the right code is the package's."""

from __future__ import annotations

import json
import sys
from typing import Any, Tuple

import pytest
import torch as th

from sb3_isaac import PPO, IsaacVecEnv
from sb3_isaac.backends.torch_cartpole import TorchCartpole
from sb3_isaac.buffers import DeviceReplayBuffer, DeviceRolloutBuffer
from tests.docs.test_docs import DOCS, program


@pytest.fixture(scope="module")
def puzzle() -> Any:
    """The program, which has imported bugs.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(DOCS / "course"))
        yield program("course/find_the_bug.py")


def test_an_old_done_makes_a_failure_of_a_time_limit(puzzle: Any) -> None:
    right, faulty = (kind(4, "cpu", 0, max_episode_length=3) for kind in (TorchCartpole, puzzle.bugs.CartpoleOfOldGym))
    right.reset(), faulty.reset()
    for step in range(2):
        one, other = right.step(th.zeros(4, 1)), faulty.step(th.zeros(4, 1))
        assert th.equal(one.obs, other.obs) and th.equal(one.reward, other.reward)
        assert one.truncated.all() == other.terminated.all() == (step == 1)
        assert not one.terminated.any() and not other.truncated.any()


def test_advantages_differ_where_an_episode_ended_later_in_the_rollout(puzzle: Any) -> None:
    draw = th.Generator().manual_seed(0)
    n_steps, n = 6, 3
    rewards, values = th.rand(n_steps, n, generator=draw), th.rand(n_steps, n, generator=draw)
    last_values, dones = th.rand(n, generator=draw), th.zeros(n_steps, n)
    dones[2, 0] = dones[5, 1] = 1.0
    env = IsaacVecEnv(TorchCartpole(n, "cpu", 0))
    buffer = DeviceRolloutBuffer(n_steps, env.observation_space, env.action_space, "cpu", 0.95, 0.99, n)
    buffer.tensors.rewards.copy_(rewards)
    buffer.tensors.values.copy_(values)
    buffer.tensors.episode_starts[1:] = dones[:-1]
    buffer.compute_returns_and_advantage(last_values, dones[-1])
    arguments = (rewards, values, last_values, dones, 0.99, 0.95)
    assert th.allclose(puzzle.bugs.right_gae(*arguments), buffer.tensors.advantages, atol=1e-6)
    off = (puzzle.bugs.gae(*arguments) - buffer.tensors.advantages).abs() > 1e-6
    assert off[:3, 0].all() and not off[3:, 0].any() and off[:, 1].all() and not off[:, 2].any()


def rollout(algorithm: Any) -> Tuple[Any, Any]:
    """A model and the tensors of its first rollout."""
    env = IsaacVecEnv(TorchCartpole(64, "cpu", 0, max_episode_length=6))
    model = algorithm("MlpPolicy", env, n_steps=8, n_epochs=1, batch_size=512, seed=0)
    model.learn(512)
    return model, model.rollout_buffer.tensors


def test_own_advantages_are_those_that_ppo_learns_from(puzzle: Any) -> None:
    models = {kind: rollout(kind) for kind in (PPO, puzzle.bugs.PPOWithOwnGae, puzzle.bugs.PPOWithFaultyGae)}
    advantages = [tensors.advantages for _, tensors in models.values()]
    assert th.allclose(advantages[0], advantages[1], atol=1e-5) and not th.allclose(advantages[0], advantages[2], atol=1e-2)


@pytest.mark.parametrize("faulty", [False, True], ids=["right", "faulty"])
def test_the_stored_action_is_the_sampled_one(puzzle: Any, faulty: bool) -> None:
    ratios_off, actions = puzzle.RatiosOff(), []

    class Look(puzzle.RatiosOff):
        def _on_rollout_end(self) -> None:
            actions.append(self.model.rollout_buffer.tensors.actions.clone())

    env = IsaacVecEnv(TorchCartpole(64, "cpu", 0))
    algorithm = puzzle.bugs.PPOWithClipping if faulty else PPO
    algorithm("MlpPolicy", env, n_steps=8, n_epochs=1, batch_size=512, seed=0).learn(512, callback=[ratios_off, Look()])
    outside = (actions[0].abs() >= 1.0).float().mean().item()
    assert 0.2 < outside < 0.4  # of a standard normal
    assert (actions[0].abs().max().item() == 1.0) == faulty
    assert ratios_off.share == pytest.approx(outside if faulty else 0.0, abs=1e-2)


def test_noise_is_one_number_or_one_for_each_environment(puzzle: Any) -> None:
    actions = th.zeros(1000, 1)
    assert puzzle.bugs.Noise().add_to(actions).unique().numel() == 1
    assert puzzle.bugs.RightNoise().add_to(actions).unique().numel() > 500
    for kind in (puzzle.bugs.DDPGWithOwnNoise, puzzle.bugs.DDPGWithFaultyNoise):
        model = kind("MlpPolicy", IsaacVecEnv(TorchCartpole(8, "cpu", 0)), learning_starts=0, batch_size=8, seed=0)
        model.learn(16)
        stored = model.replay_buffer.actions[:2, :, 0]
        greedy = model.actor(model.replay_buffer.observations[:1].reshape(8, 4))[:, 0]  # tau and lr have hardly moved it
        spread = (stored[0] - greedy.detach()).std()
        assert (spread < 0.05) == (kind is puzzle.bugs.DDPGWithFaultyNoise)


def test_one_curve_is_of_what_was_stored_and_the_other_of_what_ended(puzzle: Any) -> None:
    class Model:
        env = IsaacVecEnv(TorchCartpole(2, "cpu", 0, max_episode_length=3))
        replay_buffer = DeviceReplayBuffer(20, env.observation_space, env.action_space, "cpu", n_envs=2)

        def get_env(self) -> Any:
            return self.env

    model: Any = Model()
    obs = model.env.reset_tensor()
    stored, ended = puzzle.bugs.Curve(), puzzle.bugs.RightCurve()
    stored.model = ended.model = model
    returns = th.zeros(2)
    for _ in range(2):
        no = th.zeros(2, dtype=th.bool)
        model.replay_buffer.add_tensors(obs, obs, th.zeros(2, 1), th.full((2,), -7.0), no, no)  # long ago
        returns += model.env.step_tensor(th.zeros(2, 1)).reward
        stored._on_step(), ended._on_step()
    assert stored.points == [-7.0, -7.0]
    assert ended.points == pytest.approx(returns.tolist())


def test_a_late_reset_costs_a_step_whose_action_does_nothing(puzzle: Any) -> None:
    right, *late = (kind(4, "cpu", 0) for kind in (TorchCartpole, *[puzzle.bugs.CartpoleOfIsaacGymEnvs] * 2))
    start = right.reset()
    assert all(th.equal(start, env.reset()) for env in late)
    for _ in range(200):
        results = [env.step(th.ones(4, 1)) for env in (right, *late)]
        assert all(th.equal(results[0].final_obs, result.obs) for result in results[1:])
        assert all(th.equal(results[0].reward, result.reward) for result in results[1:])
        if results[0].terminated.any():
            break
    fell = results[0].terminated
    assert fell.any() and th.equal(fell, results[1].terminated)
    assert (results[0].obs[fell] != results[1].obs[fell]).all()
    one, other = (env.step(action) for env, action in zip(late, (th.ones(4, 1), -th.ones(4, 1))))
    assert th.equal(one.obs[fell], other.obs[fell])  # whatever was done
    assert (one.obs[fell].abs() <= 0.25).all() and (one.reward[fell] > 0.8).all() and not one.terminated[fell].any()


@pytest.mark.parametrize(
    ("name", "faulty"),
    [("gae_across_ends", False), ("late_reset", True), ("shared_noise", True), ("replayed_rewards", True)],
)
def test_trainings_end_with_a_curve_and_measures(puzzle: Any, name: str, faulty: bool) -> None:
    run = puzzle.train(name, faulty, seed=0, n_timesteps=2048, n_points=1)
    assert len(run["curve"]) == 1 and all(value == value for value in [*run["curve"], *run["measures"].values()])


def test_the_command_trains_both(puzzle: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Whether the switch reaches the right place; the trainings themselves are tested above."""
    trained = []

    def train(name: str, faulty: bool, seed: int, n_timesteps: int) -> Any:
        trained.append((name, faulty, seed, n_timesteps))
        return {"curve": [20.0, 480.0, 490.0 + seed], "measures": {"x": 1.0}}

    monkeypatch.setattr(puzzle, "train", train)
    monkeypatch.setattr(sys, "argv", "find_the_bug.py --bug late_reset --seeds 5".split())
    puzzle.main()
    assert trained == [("late_reset", faulty, seed, 60_000) for faulty in (False, True) for seed in range(5)]
    printed = capsys.readouterr().out
    assert "| right | 492 | 490 to 494 | 40,000 | 5 of 5, 60,000 steps | 1.00 |" in printed and "| with the fault |" in printed


def test_tables_and_pictures_are_of_the_saved_curves(puzzle: Any) -> None:
    results = json.loads(puzzle.RESULTS.read_text())
    assert list(results) == list(puzzle.BUGS)
    assert puzzle.TABLES.read_text() == puzzle.tables(results)
    page = (DOCS / "course" / "find_the_bug.md").read_text()
    for name, result in results.items():
        assert len(result["right"]) == len(result["fault"]) >= 5 and result["n_timesteps"] == puzzle.BUGS[name].n_timesteps
        assert f"find_the_bug.txt:{name}" in page and f"bug_{name}.svg" in page
        assert (puzzle.PICTURES / f"bug_{name}.svg").stat().st_size < 60_000
