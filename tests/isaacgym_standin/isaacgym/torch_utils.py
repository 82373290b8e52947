"""Stand-in for ``isaacgym.torch_utils``, for its known failure: it needs numpy < 1.24.

https://github.com/isaac-sim/IsaacGymEnvs/issues/183
"""

import numpy as np


def get_axis_params(value, axis_idx, x_value=0.0, dtype=np.float, n_dims=3):
    """A vector with ``value`` on one axis (stubs have no docstring; this signature is in many tracebacks)."""
    vector = np.zeros((n_dims,))
    vector[axis_idx] = value
    vector[0] = x_value if axis_idx != 0 else value
    return list(vector.astype(dtype))
