"""Finds a network's weights, and turns any of their formats into JAX's layout.

Parameters are named `layer.kind`. A file may hold them as `layer.kernel` (JAX: a
convolution is [height, width, in, out], a dense layer [in, out]) or as `layer.weight`
(PyTorch: [out, in, height, width] and [out, in]), the latter also under the names of
torchvision. `.bias` is the same in both.
"""

import contextlib
import difflib
import json
import logging
import math
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from safetensors import safe_open

from nstvis.runs import cache
from nstvis.torch_files import read_torch

TORCHVISION_URL = "https://download.pytorch.org/models/"
BUNDLED = Path(__file__).parent / "assets"

Shape = tuple[int, ...]

_ACCEPTED = (
    "random, bundled, torchvision, or a path: .pth, .pt, .safetensors, .npz, or an"
    " Orbax directory"
)
_LISTED = 10  # So many names of each complaint are spelled out.

logger = logging.getLogger(__name__)


def load(
    source: str,
    model: str,
    shapes: dict[str, Shape],
    *,
    torchvision_names: dict[str, str],
    torchvision_file: str | None = None,
    wanted: Collection[str] | None = None,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Loads the parameters of a network.

    Args:
        source: `random` (He et al. 2015), `bundled`, `torchvision`, or a path: .pth,
            .pt, .safetensors, .npz, or an Orbax directory.
        model: The network's name.
        shapes: The shape, in JAX's layout, of every parameter of the whole network.
        torchvision_names: Layer to prefix in torchvision's state dict.
        torchvision_file: The file that torchvision publishes, if it does.
        wanted: The parameters to return; all by default.
        seed: Seed of `random`. A parameter depends on it and on its name alone.

    Returns:
        The wanted parameters: float32, in JAX's layout.

    Raises:
        ValueError: There are no such weights, or they do not fit the network.
        OSError: The file does not exist, or the download failed.
    """
    names = [name for name in shapes if wanted is None or name in wanted]
    if source == "random":
        return {name: _he_normal(name, shapes[name], seed) for name in names}
    path = _locate(source, model, torchvision_file)
    aliases = _aliases(shapes, torchvision_names)
    keep = {alias for alias, name in aliases.items() if name in names}
    found, tensors = _read(path, keep)
    _refuse(path, model, _misfits(shapes, aliases, found))
    tensors = {aliases[alias]: _to_jax(alias, t) for alias, t in tensors.items()}
    _refuse(path, model, {"not floating point": _not_floating(tensors)})
    arrays = {name: _to_float32(tensors[name]) for name in names}
    _refuse(path, model, {"not finite": _not_finite(arrays)})
    return arrays


def classes(source: str, model: str) -> list[str]:
    """The names of the logits, in order, if the weights tell: those of `save` do.

    Args:
        source: As for `load`.
        model: The network's name.

    Raises:
        ValueError: There are no such weights, or the file is damaged.
    """
    path = _bundled(model) if source == "bundled" else Path(source)
    if path.suffix != ".safetensors" or not path.is_file():
        return []
    with _naming(path), safe_open(path, framework="numpy") as file:
        return json.loads((file.metadata() or {}).get("classes", "[]"))


def save(path: Path, params: Mapping[str, Any], classes: Sequence[str]) -> None:
    """Writes parameters as float16 to a .safetensors file, whole or not at all.

    Args:
        path: The file; an existing one is replaced.
        params: Nested by layer, as `models.load` returns them.
        classes: The names of the logits, in order, kept in the file's metadata.

    Raises:
        OSError: It cannot be written, for example on a full disk.
    """
    flat = {
        ".".join(keys): np.asarray(array, np.float16)
        for keys, array in flax.traverse_util.flatten_dict(dict(params)).items()
    }
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(
        safetensors.numpy.save(flat, {"classes": json.dumps(list(classes))})
    )
    partial.replace(path)


def _he_normal(name: str, shape: Shape, seed: int) -> np.ndarray:
    """Draws a kernel of standard deviation sqrt(2 / fan-in); norms do nothing."""
    if not name.endswith(".kernel"):
        ones = name.endswith((".scale", ".var"))
        return np.full(shape, ones, np.float32)
    random = np.random.default_rng([seed, zlib.crc32(name.encode())])
    deviation = np.float32(math.sqrt(2 / math.prod(shape[:-1])))
    return deviation * random.standard_normal(shape, np.float32)


# Where the file is.


def _locate(source: str, model: str, torchvision_file: str | None) -> Path:
    if source == "bundled":
        return _bundled(model)
    if source == "torchvision":
        if torchvision_file is None:
            raise ValueError(
                f"torchvision publishes no weights for {model}: use bundled, random"
                " or a path"
            )
        return _downloaded(torchvision_file)
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(
            f"no weights {source!r}{_nearest(path)}; weights are {_ACCEPTED}"
        )
    return path


def _nearest(path: Path) -> str:
    """Suggests what may have been meant by a path that does not exist."""
    known = {name: name for name in ("random", "bundled", "torchvision")}
    if path.parent.is_dir():
        known |= {entry.name: str(entry) for entry in path.parent.iterdir()}
    close = difflib.get_close_matches(path.name, known, n=1)
    return f" (did you mean {known[close[0]]!r}?)" if close else ""


def _bundled(model: str) -> Path:
    path = BUNDLED / f"{model}.safetensors"
    if not path.exists():
        others = sorted(other.stem for other in BUNDLED.glob("*.safetensors"))
        raise ValueError(
            f"no weights are bundled for {model}, only for: "
            f"{', '.join(others) or 'none'}; use random or a path"
        )
    return path


def _downloaded(file: str) -> Path:
    """Returns torchvision's file in the cache, where it is put if it is not there."""
    path = cache.cache_folder() / file
    if path.exists() and not cache.is_genuine(path):
        logger.warning("%s is damaged: downloading it again", path)
        path.unlink()
    if not path.exists():
        cache.download(TORCHVISION_URL + file, path)
    return path


# What the file holds. A reader returns the shapes of all its tensors, and those tensors
# that are to be kept.

_Contents = tuple[dict[str, Shape], dict[str, np.ndarray]]


def _read(path: Path, keep: Collection[str]) -> _Contents:
    if path.is_dir():
        return _read_orbax(path, keep)
    match path.suffix:
        case ".pth" | ".pt":
            return _read_pth(path, keep)
        case ".safetensors":
            return _read_safetensors(path, keep)
        case ".npz":
            return _read_npz(path, keep)
    raise ValueError(f"cannot tell the format of {path}: weights are {_ACCEPTED}")


def _read_pth(path: Path, keep: Collection[str]) -> _Contents:
    tensors = read_torch(path)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    return shapes, {name: tensors[name] for name in shapes if name in keep}


def _read_safetensors(path: Path, keep: Collection[str]) -> _Contents:
    with _naming(path), safe_open(path, framework="numpy") as file:
        shapes = {n: tuple(file.get_slice(n).get_shape()) for n in file.offset_keys()}
        return shapes, {n: file.get_tensor(n) for n in shapes if n in keep}


def _read_npz(path: Path, keep: Collection[str]) -> _Contents:
    # NumPy leaves a file that it opened itself open if it is damaged.
    with _naming(path), path.open("rb") as file, np.load(file) as arrays:
        shapes = {}
        for name in arrays.files:
            with arrays.zip.open(f"{name}.npy") as member:
                shapes[name] = _npy_shape(member)
        return shapes, {name: arrays[name] for name in shapes if name in keep}


def _npy_shape(file: IO[bytes]) -> Shape:
    """Reads the shape alone, where `NpzFile` would read the array."""
    if np.lib.format.read_magic(file) == (1, 0):
        return np.lib.format.read_array_header_1_0(file)[0]
    return np.lib.format.read_array_header_2_0(file)[0]


def _read_orbax(path: Path, keep: Collection[str]) -> _Contents:
    # Takes a second to import, which every other source is spared.
    from orbax.checkpoint import v1 as ocp

    def name_of(keys: tuple[Any, ...]) -> str:
        return jax.tree_util.keystr(keys, simple=True, separator=".")

    def request(keys: tuple[Any, ...], leaf: Any) -> Any:
        if name_of(keys) not in keep:
            return ocp.PLACEHOLDER
        # A NumPy array, for else Orbax wants the devices that the file was saved on.
        return np.broadcast_to(np.zeros((), leaf.dtype), leaf.shape)

    with _naming(path):
        folder = str(path.absolute())
        tree = ocp.metadata(folder).metadata
        shapes = {name_of(k): np.shape(v) for k, v in jax.tree.leaves_with_path(tree)}
        loaded = ocp.load(folder, jax.tree.map_with_path(request, tree))
    leaves = {name_of(k): v for k, v in jax.tree.leaves_with_path(loaded)}
    return shapes, {name: leaves[name] for name in shapes if name in keep}


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


# Whether it fits.


def _aliases(shapes: Collection[str], prefixes: dict[str, str]) -> dict[str, str]:
    """Maps every name that a file may use to the parameter that it means."""
    aliases = {}
    for name in shapes:
        layer, _, kind = name.rpartition(".")
        aliases[name] = name
        for prefix in (layer, prefixes.get(layer, layer)):
            aliases[f"{prefix}.{'weight' if kind == 'kernel' else kind}"] = name
    return aliases


def _misfits(
    shapes: dict[str, Shape], aliases: dict[str, str], found: dict[str, Shape]
) -> dict[str, list[str]]:
    """Lists all that keeps a file from fitting, by kind of complaint."""
    known = [aliases[alias] for alias in found if alias in aliases]
    expected = {a: _shape_as(a, shapes[aliases[a]]) for a in found if a in aliases}
    return {
        "missing": [name for name in shapes if name not in known],
        "unknown": [alias for alias in found if alias not in aliases],
        "given twice": [name for name in shapes if known.count(name) > 1],
        "wrong shape": [
            f"{alias} is {found[alias]} and should be {shape}"
            for alias, shape in expected.items()
            if found[alias] != shape
        ],
    }


def _refuse(path: Path, model: str, complaints: dict[str, list[str]]) -> None:
    """Raises one error with all complaints, if there are any."""
    lines = []
    for kind, names in complaints.items():
        more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
        if names:
            lines.append(f"{kind}: {', '.join(names[:_LISTED])}{more}")
    if lines:
        raise ValueError(f"{path} does not fit {model}: {'; '.join(lines)}")


def _shape_as(alias: str, shape: Shape) -> Shape:
    """Returns the shape that a parameter has in a file under the name `alias`."""
    if not alias.endswith(".weight"):
        return shape
    *space, inputs, outputs = shape
    return (outputs, inputs, *space)


def _to_jax(alias: str, tensor: np.ndarray) -> np.ndarray:
    """Turns [out, in, ...] into [..., in, out] if the name says that it is such."""
    return (
        np.moveaxis(tensor, (0, 1), (-1, -2)) if alias.endswith(".weight") else tensor
    )


def _to_float32(tensor: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # Refused right after, as not finite.
        return np.ascontiguousarray(tensor, np.float32)


def _not_floating(tensors: dict[str, np.ndarray]) -> list[str]:
    # NumPy's own issubdtype does not count bfloat16.
    return [
        name
        for name, tensor in tensors.items()
        if not jnp.issubdtype(tensor.dtype, np.floating)
    ]


def _not_finite(arrays: dict[str, np.ndarray]) -> list[str]:
    return [name for name, array in arrays.items() if not np.isfinite(array).all()]
