"""Reads PyTorch weight files without PyTorch and without running their pickles.

A `.pth` file is a pickle that describes its tensors, beside their raw storages. The
unpickler here maps the handful of globals that a state dict needs to inert stand-ins
and refuses all others, so a hostile file can call nothing.
"""

import os
import pickle
import sys
import zipfile
from collections.abc import Callable, Sequence
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

_LEGACY_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
_WRAPPERS = ("state_dict", "model", "model_state_dict")
_DTYPES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
    "IntStorage": np.dtype(np.int32),
    "ShortStorage": np.dtype(np.int16),
    "CharStorage": np.dtype(np.int8),
    "ByteStorage": np.dtype(np.uint8),
    "BoolStorage": np.dtype(np.bool_),
}


def read_torch(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the state dict of a `.pth` file, in either format of `torch.save`.

    Looks inside a checkpoint that keeps its weights under `state_dict`, `model` or
    `model_state_dict`, strips a `module.` that begins every name (`DataParallel`), and
    leaves out the `num_batches_tracked` counters.

    Args:
        path: The file.

    Returns:
        The tensors by name, with PyTorch's shapes and the dtypes of the file; each
        owns its memory.

    Raises:
        OSError: The file cannot be opened.
        ValueError: The file is damaged, holds no plain state dict, or asks for
            anything that a state dict does not need.
    """
    with open(path, "rb") as file:
        try:
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as archive:
                    return _read_zip(archive)
            file.seek(0)
            return _read_legacy(file)
        # A damaged pickle fails in any of a dozen ways, MemoryError among them.
        except Exception as error:
            raise ValueError(
                f"cannot read {path} as a PyTorch state dict: {error}"
            ) from error


def _read_zip(archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    """Reads the format since PyTorch 1.6: a member for the pickle, one per storage."""
    members = archive.namelist()
    pickles = [member for member in members if member.endswith("/data.pkl")]
    if not pickles:
        raise ValueError("the zip archive has no data.pkl")
    root = pickles[0].removesuffix("data.pkl")
    order = "little"
    if f"{root}byteorder" in members:
        order = archive.read(f"{root}byteorder").decode()
    with archive.open(f"{root}data.pkl") as file:
        tensors = _tensors(_Unpickler(file).load())
    storages = {tensor.storage for tensor in tensors.values()}
    data = {s: _checked(s, archive.read(f"{root}data/{s.key}")) for s in storages}
    return {name: _array(t, data[t.storage], order) for name, t in tensors.items()}


def _read_legacy(file: IO[bytes]) -> dict[str, np.ndarray]:
    """Reads the older format: pickles, then every storage, little-endian, in a row."""
    start = file.read(len(_LEGACY_MAGIC))
    if start.startswith(b"PK"):
        raise ValueError("the zip archive is cut short")
    if start != _LEGACY_MAGIC:
        raise ValueError("the file is in neither of PyTorch's formats")
    for _ in ("protocol version", "system information"):
        _Unpickler(file).load()
    unpickler = _Unpickler(file)
    tensors = _tensors(unpickler.load())
    data = {}
    for key in _Unpickler(file).load():
        storage = unpickler.storages[key]
        if int.from_bytes(file.read(8), "little") != storage.length:
            raise ValueError(f"storage {key!r} is damaged, or the file is cut short")
        data[storage] = _checked(storage, file.read(storage.nbytes))
    return {name: _array(t, data[t.storage], "little") for name, t in tensors.items()}


class _Storage(NamedTuple):
    """A run of `length` elements that tensors share, found in the file under `key`."""

    key: str
    dtype: np.dtype
    length: int

    @property
    def nbytes(self) -> int:
        """The size in bytes."""
        return self.length * self.dtype.itemsize


class _Tensor(NamedTuple):
    """A view of a storage; `offset` and `stride` count elements."""

    storage: _Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def _rebuild_tensor(
    storage: object, offset: int, size: Sequence[int], stride: Sequence[int], *_: object
) -> _Tensor:
    """Stands in for `_rebuild_tensor_v2`, whose arguments it checks."""
    if (
        not isinstance(storage, _Storage)
        or len(size) != len(stride)
        or not all(type(n) is int and n >= 0 for n in (offset, *size, *stride))
    ):
        raise ValueError("a tensor is malformed")
    end = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1
    if 0 not in size and end > storage.length:
        raise ValueError(
            f"a tensor of size {size}, stride {stride} and offset {offset} reaches "
            f"outside its storage of {storage.length} elements"
        )
    return _Tensor(storage, offset, tuple(size), tuple(stride))


class _StateDict(dict[Any, Any]):
    """Stands in for `OrderedDict`, without the attributes that pickles give it."""

    def __setstate__(self, state: object) -> None:
        """Ignores what the BUILD opcode would set."""


class _Callable:
    """A function that a pickle may call but not alter.

    The BUILD opcode would set attributes of a bare function, such as its defaults.
    """

    def __init__(self, function: Callable[..., object]) -> None:
        self._function = function

    def __call__(self, *args: object) -> object:
        return self._function(*args)

    def __setstate__(self, state: object) -> None:
        """Ignores what the BUILD opcode would set."""


_CALLABLES = {
    "collections.OrderedDict": _Callable(_StateDict),
    "torch._utils._rebuild_tensor_v2": _Callable(_rebuild_tensor),
    "torch._utils._rebuild_parameter": _Callable(lambda data, *_: data),
}


class _Unpickler(pickle.Unpickler):
    """Unpickles what state dicts are made of and nothing else.

    Attributes:
        storages: The storages that the pickle has named so far, by key.
    """

    def __init__(self, file: IO[bytes]) -> None:
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str, /) -> Any:
        """Returns our stand-in for a global: a `_Callable`, or a storage's name."""
        if f"{module}.{name}" in _CALLABLES:
            return _CALLABLES[f"{module}.{name}"]
        if module == "torch" and name in _DTYPES:
            return name
        raise ValueError(
            f"it asks for {module}.{name}, refused since it could run code; of a whole "
            "pickled module, save the state_dict() instead"
        )

    def persistent_load(self, pid: Any, /) -> _Storage:
        """Returns the storage that a reference out of the pickle describes."""
        match pid:
            # The legacy format adds a view, which no PyTorch since 0.4 has used.
            case ("storage", str(kind), str(key), str(), int(length), *view) if (
                kind in _DTYPES and length >= 0 and view in ([], [None])
            ):
                storage = _Storage(key, _DTYPES[kind], length)
            case _:
                raise ValueError(f"a storage is of an unknown form: {pid!r:.80}")
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"storage {key!r} has two descriptions")
        return storage


def _tensors(content: object) -> dict[str, _Tensor]:
    """Finds the state dict in a pickled object and normalises its names."""
    if not isinstance(content, dict):
        raise TypeError(f"it holds a {type(content).__name__}, not a dict")
    wrapped = (content.get(key) for key in _WRAPPERS)
    state = next((inner for inner in wrapped if isinstance(inner, dict)), content)
    state = {str(k): v for k, v in state.items()}
    state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    others = [name for name, value in state.items() if not isinstance(value, _Tensor)]
    if others:
        raise ValueError(
            f"it holds entries that are no tensors: {', '.join(others[:10])}"
        )
    if not state:
        raise ValueError("it holds no tensors")
    if all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): t for name, t in state.items()}
    return state


def _checked(storage: _Storage, data: bytes) -> bytes:
    """Returns the bytes of a storage, after a check that none are missing."""
    if len(data) < storage.nbytes:
        raise ValueError(
            f"storage {storage.key!r} has {len(data)} of its {storage.nbytes} bytes; "
            "the file is cut short"
        )
    return data


def _array(tensor: _Tensor, data: bytes, order: str) -> np.ndarray:
    """Copies a tensor out of its storage's bytes, of byte order `order`."""
    dtype = tensor.storage.dtype
    view = np.ndarray(
        tensor.size,
        dtype,
        buffer=data,
        offset=tensor.offset * dtype.itemsize,
        strides=[step * dtype.itemsize for step in tensor.stride],
    )
    return view.copy() if order == sys.byteorder else view.byteswap()
