"""The stand-in for Isaac Gym is as strict as it says (tests/isaacgym_standin/README.md).

That it refuses to come after torch is in test_isaacgym_backend.py.
"""

from __future__ import annotations

from tests import standin


def test_refuses_what_the_real_one_refuses():
    standin.assert_passed("checks_standin", at_least=37)
