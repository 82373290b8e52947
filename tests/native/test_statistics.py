"""VecNormalize's running statistics in C against the plain path."""

from __future__ import annotations

import pytest
import torch as th

from sb3_isaac import VecNormalize
from sb3_isaac.envs.running_mean_std import RunningMoments
from tests.conftest import DISCRETE, make_env
from tests.native.conftest import needs_a_compiler
from tests.off_policy.conftest import make_model as make_off_policy
from tests.ppo.conftest import learn, make_model

pytestmark = needs_a_compiler


@pytest.mark.parametrize("n_rows", [1, 3, 64])
def test_updates(n_rows: int) -> None:
    """Of columns of different size, one of them with NaN and infinity now and then."""
    plain, in_c = (RunningMoments(5, th.device("cpu"), 1e-8) for _ in range(2))
    in_c.in_c = True
    generator = th.Generator().manual_seed(0)
    factors = th.tensor([1.0, 1e-3, 1e6, 1.0, 0.0], dtype=th.float64).unsqueeze(1)
    for step in range(30):
        batch = th.randn(5, n_rows, dtype=th.float64, generator=generator) * factors + factors
        if step % 7 == 3:
            batch[3, 0] = th.nan if step % 2 else th.inf
        for moments in (plain, in_c):
            moments.update(batch.clone())
        for name in ("mean", "var", "count", "scale", "offset"):
            th.testing.assert_close(getattr(in_c, name), getattr(plain, name), rtol=1e-6, atol=1e-12)
    assert in_c.columns(slice(1, 3)).in_c and in_c.var[3].isfinite()


@pytest.mark.parametrize("algo", ["ppo", "dqn"])
def test_compile_asks_for_it(algo: str) -> None:
    models = []
    for compiled in (False, True):
        if algo == "ppo":
            model = learn(make_model(env=VecNormalize(make_env()), compile=compiled), 2)
        else:
            model = make_off_policy("dqn", VecNormalize(make_env(DISCRETE)), compile=compiled)
            model.learn(100)
        models.append(model)
    assert [model.env._state.moments.in_c for model in models] == [False, True]
    for name in ("mean", "var", "count"):
        one, other = (getattr(model.env.obs_rms, name) for model in models)
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)
