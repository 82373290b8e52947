"""The stand-in for Isaac Gym is as strict as it says (tests/isaacgym_standin/README.md).

That it refuses to come after torch is in test_isaacgym_backend.py.
"""

from __future__ import annotations

from tests.backends.conftest import assert_passed_on_standin


def test_refuses_what_the_real_one_refuses():
    assert_passed_on_standin("checks_standin", at_least=37)
