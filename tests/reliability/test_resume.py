"""Training that was interrupted and resumed is training that was not interrupted, to the last bit."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Tuple

import numpy as np
import pytest
import torch as th

from tests.conftest import run_python
from tests.reliability import resume_helpers as helpers
from tests.reliability.resume_helpers import ALGOS, TOTAL, differences, everything, learn, make, rows, vec_env


def uninterrupted(algo: str, wrapped: str, folder: Path, after: int, **options: Any) -> Tuple[Any, Any]:
    """A whole training that has saved a checkpoint on its way, and its callbacks."""
    model = make(algo, wrapped, **options)
    used = learn(model, algo, wrapped, folder, after, True, TOTAL[algo])
    return model, used


CASES = [(algo, wrapped) for algo in ALGOS for wrapped in ("", "normalized")] + [("ppo", "stacked-normalized")]


@pytest.mark.parametrize("algo, wrapped", CASES)
def test_resumed_is_uninterrupted(algo: str, wrapped: str, tmp_path: Path) -> None:
    after = 16 * 8 * 3 if algo == "ppo" else 800
    model, used = uninterrupted(algo, wrapped, tmp_path, after)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed = ALGOS[algo].resume(tmp_path / "saved", vec_env(algo, wrapped, seed=99), device="cpu")
    assert resumed.num_timesteps == after
    th.manual_seed(123)
    np.random.seed(123)
    used_again = learn(resumed, algo, wrapped, tmp_path / "resumed", after, False)
    assert differences(everything(model), everything(resumed)) == []
    assert rows(tmp_path, after) == rows(tmp_path / "resumed", after) != []
    assert used[0].seen == used_again[0].seen
    for name in ("best_mean_reward", "evaluations_results", "evaluations_timesteps", "n_calls"):
        assert getattr(used[1], name) == getattr(used_again[1], name)
