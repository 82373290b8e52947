"""What the stand-in has behind its API in place of PhysX: the embedded simulator's arithmetic (not its backend)."""

from sb3_isaac.backends.physics import CartpolePhysics, integrate  # imported at the first simulate(), long after torch


def step(state, force, dt, substeps, machine):
    """One control step. ``state`` (N, 4), ``force`` (N, 2), on cart and pole; ``machine`` as the asset describes it."""
    if force[:, 1].any():
        raise NotImplementedError("the stand-in's pole has no motor")
    return integrate(state, force[:, 0].contiguous(), dt, substeps, CartpolePhysics(**machine))
