"""What voids captured graphs; tests of the GPU are in tests/ppo and tests/off_policy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sb3_isaac import VecFrameStack, VecNormalize
from sb3_isaac.device.cuda_graph import Graphed
from sb3_isaac.envs.tensor_path import capturable
from tests.conftest import make_env, stand_in_for_graphs


class Owner:
    clip: Any = 1.0


@pytest.mark.parametrize("kind", [float, np.float32, np.float64, lambda x: (x, "a"), lambda x: np.bool_(x > 2.0)])
def test_numbers_of_every_kind_void_the_graphs(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_for_graphs(monkeypatch)
    owner = Owner()
    graphed = Graphed(lambda: None, True, [owner])
    for value in (1.0, 3.0, 2.0, 4.0):  # from the second on, not only where an attribute appears
        owner.clip = kind(value)
        graphed.begin()
        assert not graphed.graphs
        graphed()
        graphed()
        assert len(graphed.graphs) == 1
        graphed.begin()
        assert len(graphed.graphs) == 1


def test_wrappers_of_others_are_captured_if_they_say_so() -> None:
    class Own(VecFrameStack):
        pass

    class Says(VecFrameStack):
        capturable = True

    assert capturable(VecNormalize(VecFrameStack(make_env(), 2)))
    assert not capturable(VecNormalize(Own(make_env(), 2)))
    assert capturable(VecNormalize(Says(make_env(), 2)))
