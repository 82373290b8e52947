"""A strict stand-in for NVIDIA Isaac Gym, for tests only: see the README one folder up."""

# The real package also loads gymapi at once, which is why "import isaacgym" before torch is enough (IsaacGymEnvs/issues/27).
from isaacgym import gymapi  # noqa: F401
