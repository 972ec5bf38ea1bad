"""Reads PyTorch weight files without PyTorch and without running their pickles.

A `.pth` file is a pickle that describes its tensors, beside their raw storages. The
stack machine here knows the opcodes that `torch.save` writes and builds nothing but
dicts, lists, tuples, scalars, strings and descriptions of tensors: a hostile file can
import and call nothing, and what it builds is in proportion to its length.
"""

import functools
import io
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Callable
from typing import IO, Any, NamedTuple

import ml_dtypes
import numpy as np

from nstvis.stored import PIECE, Shape, Tensor, as_shape, members, read_at, shown

_LEGACY_MAGIC = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
_WRAPPERS = ("state_dict", "model", "model_state_dict")
_MOST_OPCODES = 500_000  # that is 12,000 tensors
_DTYPES = {
    "torch DoubleStorage": np.dtype(np.float64),
    "torch FloatStorage": np.dtype(np.float32),
    "torch HalfStorage": np.dtype(np.float16),
    "torch BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch LongStorage": np.dtype(np.int64),
    "torch IntStorage": np.dtype(np.int32),
    "torch ShortStorage": np.dtype(np.int16),
    "torch CharStorage": np.dtype(np.int8),
    "torch ByteStorage": np.dtype(np.uint8),
    "torch BoolStorage": np.dtype(np.bool_),
}

# Reads bytes of a storage, as `Tensor.read` does.
Reader = Callable[[int, int], bytes]


def tensors(file: IO[bytes]) -> dict[str, Tensor]:
    """Finds the state dict in a `.pth` file, in either format of `torch.save`.

    Looks inside a checkpoint that keeps its weights under `state_dict`, `model` or
    `model_state_dict`, strips a `module.` that begins every name (`DataParallel`), and
    leaves out the `num_batches_tracked` counters.

    Args:
        file: The file; it must stay open as long as tensors are to be read.

    Returns:
        The tensors by name, with PyTorch's shapes.

    Raises:
        Exception: Of any kind, if the file is damaged, holds no plain state dict, or
            asks for anything that a state dict does not need.
    """
    start = file.read(2)
    file.seek(0)
    return _in_zip(file) if start == b"PK" else _in_legacy(file)


def _in_zip(file: IO[bytes]) -> dict[str, Tensor]:
    """Reads the format since PyTorch 1.6: a member for the pickle, one per storage."""
    try:
        archive = zipfile.ZipFile(file)
    except zipfile.BadZipFile as error:
        raise ValueError("the zip archive is damaged or cut short") from error
    infos = members(archive)
    pickles = [name for name in infos if name.endswith("/data.pkl")]
    if not pickles:
        raise ValueError("the zip archive has no data.pkl")
    root = pickles[0].removesuffix("data.pkl")
    order = b"little"
    if f"{root}byteorder" in infos:
        order = _whole(archive, infos[f"{root}byteorder"])
    if order not in (b"little", b"big"):
        raise ValueError("its byteorder is neither little nor big")
    content = _Pickle().load(io.BytesIO(_whole(archive, infos[f"{root}data.pkl"])))

    @functools.cache
    def reader(storage: _Storage) -> Reader:
        info = infos.get(f"{root}data/{storage.key}")
        if info is None or not info.file_size == storage.nbytes == _stored(info):
            raise ValueError(f"storage {shown(storage.key)} is not whole")
        begin = functools.cache(lambda: _begin(file, archive, info))
        if order == b"little":
            return lambda offset, size: read_at(file, begin() + offset, size)
        return lambda offset, size: _swapped(
            read_at(file, begin() + offset, size), storage.dtype.itemsize
        )

    return {n: v.tensor(reader(v.storage)) for n, v in _state_dict(content).items()}


def _stored(info: zipfile.ZipInfo) -> int:
    """Returns the bytes that a member has in the file; it must not be compressed."""
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError("the zip archive is compressed, as torch.save never does")
    return info.compress_size


def _whole(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    if _stored(info) > PIECE:
        raise ValueError(f"{shown(info.filename)} is too long")
    return archive.read(info)


def _begin(file: IO[bytes], archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> int:
    """Returns where the bytes of a member begin, after a check of their CRC."""
    with archive.open(info) as member:
        while member.read(PIECE):
            pass
    header = read_at(file, info.header_offset, 30)
    return info.header_offset + 30 + sum(struct.unpack_from("<HH", header, 26))


def _swapped(data: bytes, itemsize: int) -> bytes:
    return np.frombuffer(data, f"u{itemsize}").byteswap().tobytes()


def _in_legacy(file: IO[bytes]) -> dict[str, Tensor]:
    """Reads the older format: pickles, then every storage, little-endian, in a row."""
    head = io.BytesIO(file.read(PIECE))
    if head.read(len(_LEGACY_MAGIC)) != _LEGACY_MAGIC:
        raise ValueError("the file is in neither of PyTorch's formats")
    for _ in ("protocol version", "system information"):
        _Pickle().load(head)
    pickled = _Pickle()
    views = _state_dict(pickled.load(head))
    keys = _Pickle().load(head)
    begins: dict[object, Reader] = {}
    position = head.tell()
    for key in keys if type(keys) is list else ():
        storage = pickled.storages.get(key) if type(key) is str else None
        length = int.from_bytes(read_at(file, position, 8), "little")
        if storage is None or storage.length != length:
            raise ValueError("its list of storages is damaged")
        begins[key] = functools.partial(_read_after, file, position + 8)
        position += 8 + storage.nbytes
    if position > file.seek(0, io.SEEK_END):
        raise ValueError("the file is cut short")
    return {n: v.tensor(begins[v.storage.key]) for n, v in views.items()}


def _read_after(file: IO[bytes], begin: int, offset: int, size: int) -> bytes:
    return read_at(file, begin + offset, size)


class _Storage(NamedTuple):
    """A run of `length` elements that tensors share, found in the file under `key`."""

    key: str
    dtype: np.dtype
    length: int

    @property
    def nbytes(self) -> int:
        """The size in bytes."""
        return self.length * self.dtype.itemsize


class _View(NamedTuple):
    """A tensor as a view of a storage; `offset` and `stride` count elements."""

    storage: _Storage
    offset: int
    size: Shape
    stride: Shape

    def tensor(self, read: Reader) -> Tensor:
        """Returns the tensor, given what reads its storage."""
        dtype = self.storage.dtype
        strides = tuple(step * dtype.itemsize for step in self.stride)
        return Tensor(self.size, dtype, strides, self.offset * dtype.itemsize, read)


class _Dict(list[tuple[Any, Any]]):
    """A dict as pairs, since keys that are nested tuples can take for ever to hash."""


class _Global(str):
    """The name of one of the globals that a state dict needs."""


def _rebuild_tensor(
    storage: object,
    offset: int,
    size: Any,
    stride: Any,
    _: object,
    hooks: object,
    *metadata: object,
) -> _View:
    """Stands in for `_rebuild_tensor_v2`, whose arguments it checks."""
    _refuse_extras(hooks, *metadata)
    size, stride, (offset,) = as_shape(size), as_shape(stride), as_shape((offset,))
    if type(storage) is not _Storage or len(size) != len(stride):
        raise ValueError("a tensor is malformed")
    end = 1
    if 0 not in size:
        for step, n in sorted(zip(stride, size, strict=True)):
            if n > 1 and step < end:
                raise ValueError("elements of a tensor overlap")
            end += (n - 1) * step
        if offset + end > storage.length:
            raise ValueError(
                f"a tensor of size {size}, stride {stride} and offset {offset} reaches"
                f" outside its storage of {storage.length} elements"
            )
    return _View(storage, offset, size, stride)


def _rebuild_parameter(data: object, _: object, hooks: object) -> object:
    _refuse_extras(hooks)
    return data


def _refuse_extras(hooks: object, *metadata: object) -> None:
    """Refuses what would change a tensor's values after it was read."""
    if type(hooks) is not _Dict or hooks:
        raise ValueError("a tensor has backward hooks")
    if any(extra is not None and extra != _Dict() for extra in metadata):
        raise ValueError(
            "a tensor is lazily conjugated or negated: save tensor.resolve_neg()"
        )


def _ordered_dict(pairs: Any = ()) -> _Dict:
    if type(pairs) not in (list, tuple) or any(
        type(pair) not in (list, tuple) or len(pair) != 2 for pair in pairs
    ):
        raise ValueError("a dict is malformed")
    return _Dict((key, value) for key, value in pairs)


_CALLABLES: dict[str, Callable[..., object]] = {
    "collections OrderedDict": _ordered_dict,
    "torch._utils _rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils _rebuild_parameter": _rebuild_parameter,
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_INTS = ("BININT", "BININT1", "BININT2", "LONG1")
# Python 2 wrote strings as bytes.
_STRINGS = ("BINUNICODE", "BINSTRING", "SHORT_BINSTRING")
_SCALARS = frozenset((*_INTS, *_STRINGS, "BINFLOAT"))


class _Pickle:
    """A stack machine for the pickles of `torch.save`.

    Attributes:
        storages: The storages that the pickle has named so far, by key.
    """

    def __init__(self) -> None:
        self.storages: dict[str, _Storage] = {}
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, object] = {}

    def load(self, file: io.BytesIO) -> object:
        """Reads one pickle to its end; returns what it holds."""
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if count == _MOST_OPCODES:
                raise ValueError("its pickle is too long")
            self._do(opcode.name, argument)
        return self._stack.pop()

    def _do(self, name: str, argument: Any) -> None:
        """Executes an opcode, in the names and the order of `pickletools`."""
        stack = self._stack
        if name in _SCALARS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name == "MARK":
            self._marks.append(len(stack))
        elif name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            stack.append(tuple(self._popped(name.removeprefix("TUPLE"))))
        elif name in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append(_Dict() if name == "EMPTY_DICT" else [])
        elif name in ("SETITEM", "SETITEMS"):
            items = self._popped("2" if name == "SETITEM" else "")
            if len(items) % 2:
                raise ValueError("its pickle is damaged")
            self._top(_Dict).extend(zip(items[::2], items[1::2], strict=True))
        elif name in ("APPEND", "APPENDS"):
            items = self._popped("1" if name == "APPEND" else "")
            self._top(list).extend(items)
        elif name == "BUILD":
            stack.pop()  # attributes of a dict, such as a state dict's versions
            self._top(_Dict)
        elif name == "GLOBAL":
            stack.append(_global(argument))
        elif name == "REDUCE":
            function, arguments = self._popped("2")
            stack.append(_called(function, arguments))
        elif name == "BINPERSID":
            stack.append(self._storage(stack.pop()))
        elif name not in ("PROTO", "STOP"):
            raise ValueError(f"its pickle has a {name}, as none of torch.save has")

    def _popped(self, count: str) -> list[Any]:
        """Pops so many objects, or if that is empty all down to the last mark."""
        begin = len(self._stack) - int(count) if count else self._marks.pop()
        if not 0 <= begin <= len(self._stack):
            raise ValueError("its pickle is damaged")
        items = self._stack[begin:]
        del self._stack[begin:]
        return items

    def _top(self, kind: type) -> Any:
        """Returns the object on top of the stack, which must be of a type."""
        if type(self._stack[-1]) is not kind:
            raise ValueError("its pickle would change what is no dict and no list")
        return self._stack[-1]

    def _storage(self, pid: Any) -> _Storage:
        """Returns the storage that a reference out of the pickle describes."""
        match pid:
            # The legacy format adds a view, which no PyTorch since 0.4 has used.
            case ("storage", _Global(kind), str(key), str(), int(length), *view) if (
                kind in _DTYPES and length >= 0 and view in ([], [None])
            ):
                storage = _Storage(key, _DTYPES[kind], length)
            case _:
                raise ValueError("a storage is of an unknown form")
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError(f"storage {shown(key)} has two descriptions")
        return storage


def _global(name: str) -> _Global:
    """Returns a global by name, after a check that state dicts need it."""
    if name not in _CALLABLES and name not in _DTYPES:
        raise ValueError(
            f"it asks for {shown(name.replace(' ', '.'))}, refused since it could run"
            " code; of a whole pickled module, save the state_dict() instead"
        )
    return _Global(name)


def _called(function: object, arguments: object) -> object:
    """Returns what our stand-in for a global makes of its arguments."""
    if type(function) is not _Global or type(arguments) is not tuple:
        raise ValueError("its pickle calls what is no function")
    try:
        return _CALLABLES[function](*arguments)
    except (KeyError, TypeError) as error:
        raise ValueError(f"its pickle calls {function} in another way") from error


def _state_dict(content: object) -> dict[str, _View]:
    """Finds the state dict in a pickled object and normalises its names."""
    if type(content) is not _Dict:
        raise ValueError(f"it holds a {type(content).__name__}, not a dict")
    outer = {key: value for key, value in content if type(key) is str}
    wrapped = (outer.get(key) for key in _WRAPPERS)
    pairs = next((inner for inner in wrapped if type(inner) is _Dict), content)
    if not all(type(key) is str for key, _ in pairs):
        raise ValueError("it holds names that are no strings")
    state = {k: v for k, v in pairs if not k.endswith("num_batches_tracked")}
    others = [shown(name) for name, v in state.items() if type(v) is not _View]
    if others:
        raise ValueError(
            f"it holds entries that are no tensors: {', '.join(others[:10])}"
        )
    if not state:
        raise ValueError("it holds no tensors")
    if all(name.startswith("module.") for name in state):
        return {name.removeprefix("module."): v for name, v in state.items()}
    return state
