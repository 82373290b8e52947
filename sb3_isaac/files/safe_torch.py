"""Files of torch.save, read without torch's unpickler: tensors are numbers, a shape and strides.

``weights_only`` of older torch versions can be got round, and is missing in what SB3 2.4 calls.
"""

from __future__ import annotations

import io
import struct
from typing import Any, Callable, Dict, Tuple

import torch as th

from sb3_isaac.files.safe_zip import open_zip

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
"""How files of torch before 1.6 begin, and single storages still do."""

Unpickle = Callable[..., Any]


class Storage:
    """Numbers that tensors share: a tensor of one dimension."""

    def __init__(self, flat: th.Tensor) -> None:
        self.flat = flat


def rebuild_tensor(storage: Any, offset: int, size: Any, stride: Any, requires_grad: bool = False, *_: Any) -> th.Tensor:
    """The tensor of a storage. torch checks that it lies within."""
    if not isinstance(storage, Storage):
        raise ValueError(f"a tensor of a {type(storage).__name__}")
    tensor = th.as_strided(storage.flat, tuple(size), tuple(stride), int(offset))
    return tensor.requires_grad_() if requires_grad and tensor.is_floating_point() else tensor


def rebuild_parameter(data: Any, requires_grad: bool, *_: Any) -> th.nn.Parameter:
    """A parameter of a tensor."""
    return th.nn.Parameter(data, bool(requires_grad))


def load(data: bytes, unpickle: Unpickle, what: str = "a tensor's file", device: Any = "cpu") -> Any:
    """What ``torch.load(..., map_location=device)`` gives of a file that holds numbers, tensors and containers of them.

    :param unpickle: :func:`sb3_isaac.files.safe_pickle.load`
    :raises UntrustedFileError: it holds something else
    :raises ValueError: it is no such file
    """
    return _of_zip(data, unpickle, what, device) if data[:2] == b"PK" else _of_stream(data, unpickle, what, device)


def _numbers(raw: bytes, dtype: th.dtype, device: Any) -> th.Tensor:
    return th.frombuffer(bytearray(raw), dtype=dtype).to(device) if raw else th.empty(0, dtype=dtype, device=device)


def _of_zip(data: bytes, unpickle: Unpickle, what: str, device: Any) -> Any:
    with open_zip(io.BytesIO(data), what) as archive:
        pickles = [name for name in archive.namelist() if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise ValueError(f"{what} cannot be read: torch.save has not written it.")
        folder = pickles[0][: -len("data.pkl")]
        byteorder = folder + "byteorder"
        if byteorder in archive.namelist() and archive.read(byteorder) != b"little":
            raise ValueError(f"{what} cannot be read: it was written on a machine of another byte order.")
        storages: Dict[str, Storage] = {}

        def storage(pid: Any) -> Storage:
            _, dtype, key, _, numel = pid
            if key not in storages:
                raw = archive.read(f"{folder}data/{key}")
                storages[key] = Storage(_numbers(raw, dtype, device)[:numel])
            return storages[key]

        return unpickle(io.BytesIO(archive.read(pickles[0])), what, storage)


def _of_stream(data: bytes, unpickle: Unpickle, what: str, device: Any) -> Any:
    """The format before zip files: five pickles, and the storages."""
    stream = io.BytesIO(data)
    storages: Dict[str, Tuple[Storage, th.dtype]] = {}

    def storage(pid: Any) -> Storage:
        _, dtype, key, _, numel, view = (*pid, None)[:6]
        if view is not None or numel * th.empty(0, dtype=dtype).element_size() > len(data):
            raise ValueError("a storage that is larger than its file")
        if key not in storages:
            storages[key] = Storage(th.zeros(numel, dtype=dtype, device=device)), dtype
        return storages[key][0]

    def next_pickle() -> Any:
        return unpickle(stream, what, storage)

    if next_pickle() != _MAGIC or next_pickle() != _PROTOCOL:
        raise ValueError(f"{what} cannot be read: torch.save has not written it.")
    next_pickle()
    result, keys = next_pickle(), next_pickle()
    for key in keys:
        target, dtype = storages[key]
        (numel,) = struct.unpack("<q", stream.read(8))
        raw = stream.read(numel * target.flat.element_size())
        target.flat.copy_(_numbers(raw, dtype, device))
    return result
