"""The adapter on Isaac Lab itself, without Isaac Sim, on the CPU: the contract, one simulator for all, and trainings."""

from __future__ import annotations

import pytest
import torch as th

from sb3_isaac.backends import isaaclab
from sb3_isaac.backends.base import StepResult, check_result
from tests.real_simulators import check_in_stock_sb3, command, mean_return

CARTPOLE = "Isaac-Cartpole-Direct"
LENGTH, MAX_CART_POS = 300, 3.0
"""Of the task: steps of an episode, and where the cart has failed."""
N = 64


def make(n_envs=N, task=CARTPOLE, **kwargs):
    return isaaclab.make(task, n_envs, th.device("cpu"), 0, **kwargs)


def some_actions(n_envs, generator):
    return 4.0 * th.rand(n_envs, 1, generator=generator) - 2.0  # beyond the bounds, too


@pytest.mark.parametrize("task", [CARTPOLE, "Isaac-Cartpole"])
def test_contract(task):
    """Of the direct workflow and of the manager-based one."""
    env = make(task=task)
    env.seed(0)
    check_result(env, "reset", env.reset())
    env.progress.copy_(4 * th.arange(N))  # time-outs at different times
    generator = th.Generator().manual_seed(0)
    n_failed = n_timed_out = 0
    previous = None
    cart = 0  # column of its position
    for _ in range(LENGTH):
        before = env.progress.clone()
        result = env.step(some_actions(N, generator))
        check_result(env, "step", result)
        kept = StepResult(*(tensor.clone() for tensor in result))
        done = result.terminated | result.truncated
        assert not (result.terminated & result.truncated).any()
        assert th.equal(result.obs[~done], result.final_obs[~done])
        assert th.equal(result.final_obs[:, cart].abs() > MAX_CART_POS, result.terminated)
        assert (result.obs[done, cart].abs() <= 1.0).all()
        assert th.equal((before == LENGTH - 1) & ~result.terminated, result.truncated)
        assert th.equal(env.progress, th.where(done, 0, before + 1))
        if previous is not None:  # nothing of the step before is written over
            assert all(th.equal(now, then) for now, then in zip(*previous))
        previous = result, kept
        n_failed, n_timed_out = n_failed + int(result.terminated.sum()), n_timed_out + int(result.truncated.sum())
    assert n_failed > 10 and n_timed_out > 10
    assert any("success_rate" in name for name in env.pop_metrics())
    env.close()


def test_bounds_are_kept():
    env = make()
    env.reset()
    state = env.get_state()
    inside = env.step(th.ones(N, 1)).final_obs
    env.set_state(state)
    assert th.equal(env.step(th.full((N, 1), 9.0)).final_obs, inside)
    env.close()


def test_seed():
    env = make()
    starts = []
    for seed in (1, 2, 1):
        env.seed(seed)
        starts.append(env.reset())
    assert th.equal(starts[0], starts[2]) and not th.equal(starts[0], starts[1])
    env.close()


def test_training_does_not_notice_an_evaluation():
    train = make()
    train.reset()
    generator = th.Generator().manual_seed(0)
    actions = [0.2 * some_actions(N, generator) for _ in range(6)]
    state = train.get_state()
    expected = [train.step(action).final_obs for action in actions]
    train.set_state(state)
    evaluation = make(16, max_episode_length=4)
    got = []
    for action in actions:
        got.append(train.step(action).final_obs)
        evaluation.reset()
        ends = [bool(evaluation.step(th.zeros(16, 1)).truncated.all()) for _ in range(3)]
        assert ends == [False, False, True]
    assert (th.stack(got) - th.stack(expected)).abs().max() < 1e-4
    larger = make(N + 16)  # a larger simulator takes the place of the first
    larger.reset()
    assert (train.step(th.zeros(N, 1)).final_obs[:, :2] - got[-1][:, :2]).abs().max() < 0.5
    for env in (train, evaluation, larger):
        env.close()


def test_training_solves(tmp_path):
    """The shipped entry of PPO, by the command line; then the model in stock SB3."""
    env_id = f"isaaclab:{CARTPOLE}"
    train = ["train", "--algo", "ppo", "--env", env_id, "-f", str(tmp_path), "--seed", "0", "--eval-freq", "-1", "-P"]
    command(*train, "-n", "500000")  # half of the entry's, which this seed can do without
    output = command("evaluate", "--algo", "ppo", "--env", env_id, "-f", str(tmp_path), "--n-episodes", "64")
    assert mean_return(output) >= 4.5, output
    (path,) = tmp_path.glob(f"ppo/*/*{CARTPOLE}.zip")
    check_in_stock_sb3(path, obs_dim=4)
