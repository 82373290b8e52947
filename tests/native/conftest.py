"""C on a CPU: where there is no C compiler, only what happens then is tested."""

import pytest

from sb3_isaac._native import why_not_library

WHY_NOT = why_not_library()
needs_a_compiler = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))
