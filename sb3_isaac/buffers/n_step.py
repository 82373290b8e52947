"""N-step returns (Sutton and Barto 2018, chapter 7) over a batch of windows of transitions."""

from __future__ import annotations

import functools

import torch as th

RUNNING = 0.0
"""The flag of a transition after which the episode goes on."""


@functools.lru_cache(maxsize=8)
def steps_and_powers(n_steps: int, gamma: float, device: th.device) -> tuple[th.Tensor, th.Tensor]:
    """0 to n_steps - 1 as (n_steps, 1) int64, and gamma to the powers 0 to n_steps as (n_steps + 1,) float32."""
    steps = th.arange(n_steps, device=device).view(-1, 1)
    return steps, gamma ** th.arange(n_steps + 1, dtype=th.float32, device=device)


def n_step_returns(
    rewards: th.Tensor, flags: th.Tensor, until_newest: th.Tensor, gamma: float
) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
    """Sum rewards up to the end of the window, of the episode, or of what is known, whichever comes first.

    :param rewards: (n_steps, B), first the transition that a sample starts with
    :param flags: (n_steps, B), :data:`RUNNING` where the episode goes on after the transition
    :param until_newest: (B,) int64, how many steps from the first transition to the newest one that is known
    :param gamma: discount
    :return: returns (B,), discounts (B,), which are gamma to the number of rewards summed, and that number minus one (B,)
    """
    steps, powers = steps_and_powers(len(rewards), gamma, rewards.device)
    not_done = (flags[:-1] == RUNNING) & (steps[1:] <= until_newest)
    weights = (not_done * gamma).cumprod(0)  # (n_steps - 1, B), of the steps after the first
    returns = (weights * rewards[1:]).sum(0).add_(rewards[0])
    extra = (weights > 0.0).sum(0)
    return returns, powers.index_select(0, extra + 1), extra
