"""Changes of docs/ablations.yml that no hyperparameter makes."""

from __future__ import annotations

from typing import Any, List, Optional

import torch as th

import sb3_isaac


class TimeLimitIsFailurePPO(sb3_isaac.PPO):
    """Does not bootstrap at time limits: what comes after them counts as nothing, as after a failure."""

    def _setup_model(self) -> None:
        super()._setup_model()
        assert self.env is not None
        tensor_env: Any = self.env.unwrapped.tensor_env  # type: ignore[attr-defined]
        step = tensor_env.step

        def step_without_time_limits(actions: th.Tensor) -> Any:
            result = step(actions)
            over = result.terminated | result.truncated
            return result._replace(terminated=over, truncated=th.zeros_like(over))

        tensor_env.step = step_without_time_limits


class ActsLatePPO(sb3_isaac.PPO):
    """Acts with the parameters of before the last update, as it would have to if a rollout ran beside an update."""

    _before: Optional[List[th.Tensor]] = None
    _acted_with: th.Tensor
    """The standard deviations' logarithms"""

    def collect_rollouts(self, env: Any, callback: Any, *args: Any, **kwargs: Any) -> bool:
        start = callback.on_rollout_start

        def start_late() -> None:
            start()  # whoever evaluates there sees the newest parameters
            self._exchange()

        callback.on_rollout_start = start_late
        try:
            return super().collect_rollouts(env, callback, *args, **kwargs)
        finally:
            del callback.on_rollout_start
            self._exchange()

    def _exchange(self) -> None:
        """The newest parameters for those of before, or back."""
        policy: Any = self.policy
        self._acted_with = policy.log_std.detach().clone()
        if self._before is not None:
            for parameter, other in zip(policy.parameters(), self._before):
                now = parameter.detach().clone()
                parameter.data.copy_(other)
                other.copy_(now)

    def train(self) -> None:
        self._before = [parameter.detach().clone() for parameter in self.policy.parameters()]
        update: Any = self._run.update
        if update is None:  # the first rollout is of the newest parameters
            super().train()
            return
        begin = update._look_again

        def begin_late(settings: Any) -> None:
            begin(settings)
            update._old_log_std.copy_(self._acted_with)  # it takes the policy's, as the rollout's is always the same

        update._look_again = begin_late
        try:
            super().train()
        finally:
            del update._look_again
