"""Reads tensors by name from .pth, .safetensors and .npz files and Orbax directories.

Names are the file's own; those of nested ones are joined by dots.
"""

import contextlib
import dataclasses
import functools
import json
import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import jax
import ml_dtypes
import numpy as np

from nstvis import torch_files
from nstvis.stored import (
    MOST_TENSORS,
    PIECE,
    PieceReader,
    Tensor,
    as_shape,
    members,
    read_at,
    shown,
    strides_of,
)

FORMATS = ".pth, .pt, .safetensors, .npz, or an Orbax directory"
_SAFETENSORS_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """A file of which the headers are read, and tensors one at a time.

    Attributes:
        path: The file.
        tensors: What it says of each tensor, by name.
    """

    path: Path
    tensors: dict[str, Tensor]

    def read(self, name: str, out: np.ndarray) -> None:
        """Reads a tensor into an array of its shape.

        Raises:
            ValueError: The file is damaged.
            OSError: It cannot be read.
        """
        with _naming(self.path):
            self.tensors[name].copy_to(out)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[WeightFile]:
    """Opens a file, or an Orbax directory, and reads its headers alone.

    Raises:
        ValueError: The format is unknown, or the file is damaged.
        OSError: The file cannot be opened.
    """
    readers = {
        ".pth": torch_files.tensors,
        ".pt": torch_files.tensors,
        ".safetensors": lambda file: _safetensors(file)[0],
        ".npz": _npz,
    }
    if path.is_dir():
        with _naming(path):
            tensors = _orbax(path)
        yield WeightFile(path, tensors)
        return
    if path.suffix not in readers:
        raise ValueError(f"cannot tell the format of {path}: a path is {FORMATS}")
    with _open(path) as file:
        with _naming(path):
            tensors = readers[path.suffix](file)
        yield WeightFile(path, tensors)


def read_classes(path: Path) -> list[str]:
    """Returns the class names that `weights.save` wrote into a file, if it did.

    Raises:
        ValueError: The file is damaged.
    """
    if path.suffix != ".safetensors" or not path.is_file():
        return []
    with _open(path) as file, _naming(path):
        classes = json.loads(_safetensors(file)[1].get("classes", "[]"))
        if type(classes) is not list or not all(type(name) is str for name in classes):
            raise ValueError("its classes are no list of names")
        return classes


def named(tree: Any) -> dict[str, Any]:
    """Flattens nested parameters: the leaf at `["layer1"][0]["bias"]` is `layer1.0.bias`."""
    return {_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _open(path: Path) -> PieceReader:
    """Opens a regular file; another, such as a pipe, could keep a reader waiting."""
    if path.exists() and not path.is_file():
        raise ValueError(f"cannot read weights from {path}: it is no regular file")
    return PieceReader(open(path, "rb", buffering=0))


def _safetensors(file: IO[bytes]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads the header: the tensors, and the metadata.

    The library's own reader maps the file into memory, where its pages stay, and takes
    a header of any kind of up to 100 MB.
    """
    length = int.from_bytes(read_at(file, 0, 8), "little")
    if length > PIECE:
        raise ValueError("its header is too long")
    header = json.loads(read_at(file, 8, length))
    metadata = header.pop("__metadata__", {})
    if len(header) > MOST_TENSORS or type(metadata) is not dict:
        raise ValueError("its header is malformed")
    end = file.seek(0, 2)
    return {n: _entry(file, 8 + length, end, header[n]) for n in header}, metadata


def _entry(file: IO[bytes], begin: int, end: int, entry: Any) -> Tensor:
    """Returns the tensor of an entry in the header of a .safetensors file."""
    match entry:
        case {"dtype": str(kind), "shape": shape, "data_offsets": offsets} if (
            kind in _SAFETENSORS_DTYPES
        ):
            dtype, shape = _SAFETENSORS_DTYPES[kind], as_shape(shape)
            first, last = as_shape(offsets)
        case _:
            raise ValueError("its header has an entry of an unknown form")
    if last - first != _nbytes(shape, dtype) or begin + last > end:
        raise ValueError(
            "a tensor is not as long as its shape, or the file is cut short"
        )
    strides = strides_of(shape, dtype)
    return Tensor(
        shape, dtype, strides, begin + first, functools.partial(read_at, file)
    )


def _npz(file: IO[bytes]) -> dict[str, Tensor]:
    """Reads the headers of all arrays."""
    archive = zipfile.ZipFile(file)
    infos = members(archive)
    return {n.removesuffix(".npy"): _npy(archive, infos[n]) for n in infos}


def _npy(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> Tensor:
    """Reads the header of one array; `np.load` would read as much as it declares."""
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError("it is compressed as np.savez_compressed never does")
    with archive.open(info) as member:
        if np.lib.format.read_magic(member) != (1, 0):
            raise ValueError("it is no array of np.savez, or one of records")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(member)
        shape, begin = as_shape(shape), member.tell()
    if dtype.hasobject:
        raise ValueError("it has arrays of objects, which could run code")
    if info.file_size != begin + _nbytes(shape, dtype):
        raise ValueError("an array is not as long as its shape says")
    stream = functools.cache(lambda: archive.open(info))
    strides = strides_of(shape, dtype, "F" if fortran else "C")
    return Tensor(shape, dtype, strides, begin, lambda at, n: read_at(stream(), at, n))


def _nbytes(shape: tuple[int, ...], dtype: np.dtype) -> int:
    return math.prod(shape) * dtype.itemsize


def _orbax(path: Path) -> dict[str, Tensor]:
    """Reads the metadata of an Orbax directory."""
    # Takes a second to import, which every other source is spared.
    from orbax.checkpoint import v1 as ocp

    _refuse_odd_files(path)
    folder = str(path.absolute())
    context = ocp.Context()
    context.checkpoint_layout = ocp.options.CheckpointLayout.ORBAX
    with context:
        tree = ocp.metadata(folder).metadata

    @functools.lru_cache(1)
    def values(wanted: str) -> np.ndarray:
        def request(keys: tuple[Any, ...], leaf: Any) -> Any:
            if _name(keys) != wanted:
                return ocp.PLACEHOLDER
            # A NumPy array, or Orbax would want the devices that it was saved on.
            return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)

        with context:
            loaded = named(ocp.load(folder, jax.tree.map_with_path(request, tree)))
        return np.ascontiguousarray(loaded[wanted]).reshape(-1).view(np.uint8)

    def tensor(name: str, leaf: Any) -> Tensor:
        shape = as_shape(getattr(leaf, "shape", ()))
        dtype = np.dtype(getattr(leaf, "dtype", object))
        # As large as its chunks are the arrays that are made when it is read.
        chunk = getattr(getattr(leaf, "storage_metadata", None), "chunk_shape", None)
        if chunk and any(c > max(n, 1) for c, n in zip(chunk, shape, strict=True)):
            raise ValueError(f"{shown(name)} is stored in chunks larger than itself")

        def read(at: int, n: int) -> bytes:
            return values(name)[at : at + n].tobytes()

        return Tensor(shape, dtype, strides_of(shape, dtype), 0, read)

    return {name: tensor(name, leaf) for name, leaf in named(tree).items()}


def _refuse_odd_files(path: Path) -> None:
    """Refuses pipes, which would keep Orbax waiting, and metadata that is too long."""
    for entry in path.rglob("*"):
        if not entry.is_file() and not entry.is_dir():
            raise ValueError(f"{shown(entry.name)} is no regular file")
        described = f"{entry.parent.name}/{entry.name}".lower()
        metadata = "metadata" in described or entry.name.startswith((".", "_"))
        if (metadata or entry.suffix == ".json") and entry.stat().st_size > PIECE:
            raise ValueError(f"{shown(entry.name)} is too long")


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turns whatever is said of a damaged file into one line with its path."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0]
        if not isinstance(error, ValueError):
            reason = f"it is damaged ({type(error).__name__}: {reason})"
        raise ValueError(f"cannot read weights from {path}: {reason:.300}") from error
