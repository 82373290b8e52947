"""Stand-in for ``isaacgym.gymtorch``: descriptors to torch tensors and back, without a copy."""

import weakref

import torch

from isaacgym import failures, gymapi

failures.at_import_of_gymtorch()  # the real module compiles a C++ extension at import

# docs:tensors: float32 states, 32-bit indices. torch's int32 is passed as uint32.
_DTYPES = {
    torch.float32: gymapi.DTYPE_FLOAT32,
    torch.int32: gymapi.DTYPE_UINT32,
    torch.int64: gymapi.DTYPE_UINT64,
    torch.uint8: gymapi.DTYPE_UINT8,
    torch.int16: gymapi.DTYPE_INT16,
}


def wrap_tensor(gym_tensor):
    """The torch tensor over the memory that a descriptor from an ``acquire_*`` call points to."""
    if gym_tensor.kept is None:
        raise gymapi.Refused("wrap_tensor() needs a descriptor that an acquire_*_tensor() call returned")
    return gym_tensor.kept


def unwrap_tensor(torch_tensor):
    """A descriptor of the tensor: its address, not its data, and no reference to it (docs:tensors, "Tensor Lifetime")."""
    if not torch_tensor.is_contiguous():  # the real function raises the same plain Exception
        raise Exception("Input tensor must be contiguous")
    if torch_tensor.dtype not in _DTYPES:
        raise Exception("Unsupported Gym tensor dtype")
    gym_tensor = gymapi.Tensor()
    gym_tensor.device = -1 if torch_tensor.device.type == "cpu" else torch_tensor.device.index
    gym_tensor.dtype = _DTYPES[torch_tensor.dtype]
    gym_tensor.shape = list(torch_tensor.shape)
    gym_tensor.data_address = torch_tensor.data_ptr()
    # A view shares the memory of its base, which may well outlive it.
    gym_tensor.owner = weakref.ref(torch_tensor if torch_tensor._base is None else torch_tensor._base)
    gym_tensor.layout = (tuple(torch_tensor.shape), torch_tensor.stride(), torch_tensor.storage_offset())
    return gym_tensor
