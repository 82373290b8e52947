"""Changes of docs/ablations.yml that no hyperparameter makes."""

from __future__ import annotations

from typing import Any

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
