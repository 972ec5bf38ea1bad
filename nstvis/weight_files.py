"""Reads tensors by name from .pth, .safetensors and .npz files and Orbax directories.

Names are the file's own; those of nested ones are joined by dots.
"""

import contextlib
import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO, Any

import jax
import numpy as np
from safetensors import safe_open

from nstvis.torch_files import read_torch

FORMATS = ".pth, .pt, .safetensors, .npz, or an Orbax directory"

Shape = tuple[int, ...]
# The shapes of all tensors in a file, and the tensors that were asked for.
Contents = tuple[dict[str, Shape], dict[str, np.ndarray]]


def read(path: Path, wanted: Collection[str]) -> Contents:
    """Reads the wanted tensors of a file and the shapes of all.

    Args:
        path: The file, or an Orbax directory.
        wanted: Names of tensors; the file need not have all of them.

    Raises:
        ValueError: The format is unknown, or the file is damaged.
        OSError: The file cannot be opened.
    """
    if path.is_dir():
        return _read_orbax(path, wanted)
    match path.suffix:
        case ".pth" | ".pt":
            return _read_pth(path, wanted)
        case ".safetensors":
            return _read_safetensors(path, wanted)
        case ".npz":
            return _read_npz(path, wanted)
    raise ValueError(f"cannot tell the format of {path}: a path is {FORMATS}")


def read_classes(path: Path) -> list[str]:
    """Returns the class names that `weights.save` wrote into a file, if it did.

    Raises:
        ValueError: The file is damaged.
    """
    if path.suffix != ".safetensors" or not path.is_file():
        return []
    with _naming(path), safe_open(path, framework="numpy") as file:
        return json.loads((file.metadata() or {}).get("classes", "[]"))


def named(tree: Any) -> dict[str, Any]:
    """Flattens nested parameters: the leaf at `["layer1"][0]["bias"]` is `layer1.0.bias`."""
    return {_name(path): leaf for path, leaf in jax.tree.leaves_with_path(tree)}


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _read_pth(path: Path, wanted: Collection[str]) -> Contents:
    tensors = read_torch(path)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    return shapes, {name: tensors[name] for name in shapes if name in wanted}


def _read_safetensors(path: Path, wanted: Collection[str]) -> Contents:
    with _naming(path), safe_open(path, framework="numpy") as file:
        shapes = {n: tuple(file.get_slice(n).get_shape()) for n in file.offset_keys()}
        return shapes, {n: file.get_tensor(n) for n in shapes if n in wanted}


def _read_npz(path: Path, wanted: Collection[str]) -> Contents:
    # NumPy leaves a file that it opened itself open if it is damaged.
    with _naming(path), path.open("rb") as file, np.load(file) as arrays:
        shapes = {}
        for name in arrays.files:
            with arrays.zip.open(f"{name}.npy") as member:
                shapes[name] = _npy_shape(member)
        return shapes, {name: arrays[name] for name in shapes if name in wanted}


def _npy_shape(file: IO[bytes]) -> Shape:
    """Reads the shape alone, where `NpzFile` would read the array."""
    if np.lib.format.read_magic(file) == (1, 0):
        return np.lib.format.read_array_header_1_0(file)[0]
    return np.lib.format.read_array_header_2_0(file)[0]


def _read_orbax(path: Path, wanted: Collection[str]) -> Contents:
    # Takes a second to import, which every other source is spared.
    from orbax.checkpoint import v1 as ocp

    def request(keys: tuple[Any, ...], leaf: Any) -> Any:
        if _name(keys) not in wanted:
            return ocp.PLACEHOLDER
        # A NumPy array, or Orbax would want the devices that the file was saved on.
        return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)

    with _naming(path):
        folder = str(path.absolute())
        tree = ocp.metadata(folder).metadata
        shapes = {name: np.shape(leaf) for name, leaf in named(tree).items()}
        tensors = named(ocp.load(folder, jax.tree.map_with_path(request, tree)))
    return shapes, {name: tensors[name] for name in shapes if name in wanted}


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turns whatever a library says of a damaged file into one line with its path."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"cannot read weights from {path}: {reason}") from error
