"""Settings for hundreds of tiny runs."""

from __future__ import annotations

from typing import Iterator

import pytest
import torch as th


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """A second thread only costs time on tensors of a few numbers."""
    before = th.get_num_threads()
    th.set_num_threads(1)
    yield
    th.set_num_threads(before)
