"""Triton's kernels: ``make test-triton`` runs them in its interpreter on a CPU, ``pytest tests/triton`` on a GPU.

Elsewhere there is nothing here to collect.
"""

import importlib.util
import os

import pytest
import torch as th
from torch import nn

from tests.conftest import ENV_IDS, difference, make_env, parameters
from tests.off_policy.conftest import make_model

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
ACTIVATIONS = (nn.Tanh, nn.ReLU, nn.ELU, nn.LeakyReLU)
SMOOTH = {nn.ReLU: nn.ELU, nn.LeakyReLU: nn.Tanh}
"""In the place of those with a kink, where rounding would choose the side"""

_runs = importlib.util.find_spec("triton") is not None and (INTERPRETED or th.cuda.is_available())
collect_ignore_glob = [] if _runs else ["test_*.py"]


if INTERPRETED and _runs:
    # Triton 3.9's interpreter takes the bits of bfloat16 for whole numbers in a matrix product.
    import numpy as np
    from triton.language import bfloat16, float32
    from triton.runtime import interpreter

    _dot_of_float32 = interpreter.InterpreterBuilder.create_dot

    def _dot(self, a, b, *rest):
        if a.dtype.scalar == bfloat16:
            a, b = (interpreter.TensorHandle((x.data.astype(np.uint32) << 16).view(np.float32), float32) for x in (a, b))
        return _dot_of_float32(self, a, b, *rest)

    interpreter.InterpreterBuilder.create_dot = _dot


def mlp(n_inputs, hidden, n_outputs, activation):
    """A network on :data:`DEVICE`."""
    layers, width = [], n_inputs
    for units in hidden:
        layers += [nn.Linear(width, units), activation()]
        width = units
    return nn.Sequential(*layers, nn.Linear(width, n_outputs)).to(DEVICE)


def check_training(algo, options, losses):
    """Training in the kernels comes to what the plain path comes to.

    :param losses: names of those that it logs
    """
    models = []
    for precision in (None, "fp32"):
        env = make_env(ENV_IDS[algo], 16, device=DEVICE, max_episode_length=12)
        given = {"policy_kwargs": {"net_arch": [32, 24]}, **options, "compile": DEVICE == "cuda"}
        models.append(make_model(algo, env, device=DEVICE, precision=precision, **given))
    before = parameters(models[0])
    for model in models:
        th.manual_seed(5)
        model.learn(16 * 20)
    assert models[0]._run.fast.fused is None and models[1]._run.fast.fused is not None
    assert models[1].path.endswith("in Triton's kernels (fp32)")
    assert float((parameters(models[0]) - before).abs().max()) > 1e-3
    assert difference(*models) < (1e-5 if DEVICE == "cpu" else 1e-3)
    found = [[model.logger.name_to_value[f"train/{name}"] for name in losses] for model in models]
    assert found[1] == pytest.approx(found[0], rel=1e-3)
