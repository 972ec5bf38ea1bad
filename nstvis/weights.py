"""Finds a network's weights and converts them to JAX's layout.

Parameters are named `layer.kind`. A file may have the kinds of JAX (Flax NNX) or those
of PyTorch, the latter also under torchvision's names of layers:

    kernel     weight        [height, width, in, out] or [in, out] in JAX,
                             [out, in, height, width] or [out, in] in PyTorch
    bias       bias          [out], of anything
    scale      weight        [channels], of batch, layer and group norms
    mean, var  running_mean, running_var   [channels], of batch norms
"""

import difflib
import json
import logging
import math
import re
import types
import zlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from nstvis import weight_files
from nstvis.runs import cache, files
from nstvis.stored import Shape, shown
from nstvis.weight_files import WeightFile

TORCHVISION_URL = "https://download.pytorch.org/models/"
# Simonyan & Zisserman's own networks, as neural-style-pt has them.
CAFFE_URL = "https://web.eecs.umich.edu/~justincj/models/"
BUNDLED = Path(__file__).parent / "assets"

_ACCEPTED = f"random, bundled, torchvision, caffe, or a path: {weight_files.FORMATS}"
# What the networks behind these names were trained with.
_TRAINED = {"bundled": "torchvision", "torchvision": "torchvision", "caffe": "caffe"}
_CAFFE_FILES = ("caffe", "vgg16-00b39a1b", "vgg19-d01eb7cb")
_LISTED = 10  # Names listed for each kind of mismatch.
_TORCH_KINDS = {
    "kernel": "weight",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
_COUNTER = "num_batches_tracked"  # PyTorch's batch norm counts its training steps

logger = logging.getLogger(__name__)


def load(
    source: str,
    model: str,
    shapes: Mapping[str, Shape],
    *,
    torchvision_names: Mapping[str, str],
    torchvision_file: str | None = None,
    caffe_names: Mapping[str, str] = types.MappingProxyType({}),
    caffe_file: str | None = None,
    wanted: Collection[str] | None = None,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Loads the parameters of a network.

    Args:
        source: `random` (He et al. 2015), `bundled`, `torchvision`, `caffe`, or a path:
            .pth, .pt, .safetensors, .npz, or an Orbax directory.
        model: The network's name.
        shapes: The shape, in JAX's layout, of every parameter of the whole network.
        torchvision_names: Layer, or module inside it, to prefix in torchvision's state
            dict. The longest that begins a parameter's name counts.
        torchvision_file: The file that torchvision publishes, if it does.
        caffe_names: Where names in the file converted from Caffe are others.
        caffe_file: That file, if there is one.
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
        return {name: _initial(name, shapes[name], seed) for name in names}
    path = _locate(source, model, torchvision_file, caffe_file)
    aliases = _aliases(shapes, torchvision_names, caffe_names)
    with weight_files.opened(path) as file:
        alias_of = _fitting(file, model, shapes, aliases, names)
        arrays = {}
        for name in names:
            arrays[name] = np.empty(shapes[name], np.float32)
            transposed = _is_transposed(alias_of[name], aliases)
            into = _in_torch_layout(arrays[name]) if transposed else arrays[name]
            file.read(alias_of[name], into)
    _refuse(path, model, {"not finite": _not_finite(arrays)})
    return arrays


def is_caffe(source: str) -> bool:
    """Whether weights call themselves Caffe's, by the name of the file."""
    return any(name in Path(source).name.lower() for name in _CAFFE_FILES)


def as_stored(source: str, asked: str = "auto") -> bool:
    """Whether images for weights are as their files store them, or as they are shown.

    Args:
        source: As for `load`.
        asked: `as_stored`, `as_shown`, or `auto`: as torchvision, which ignores EXIF
            orientation and colour profiles, did for its own weights.
    """
    published = re.search(r"-[0-9a-f]{8}\.pth$", source) and not is_caffe(source)
    torchvision = source == "torchvision" or bool(published)
    return asked == "as_stored" or (asked == "auto" and torchvision)


def preprocessing(source: str, asked: str = "auto") -> str:
    """Returns what images go through for weights: a key of `layers.PREPROCESSING`.

    Args:
        source: As for `load`.
        asked: `auto` for what the name of the weights says, torchvision's if nothing.

    Raises:
        ValueError: Weights of that name were trained with another.
    """
    trained = _TRAINED.get(source)
    if asked != "auto" and trained and asked != trained:
        raise ValueError(
            f"weights={source} were trained with preprocessing={trained}: leave"
            " preprocessing=auto"
        )
    if asked != "auto":
        return asked
    return trained or ("caffe" if is_caffe(source) else "torchvision")


def classes(source: str, model: str) -> list[str]:
    """Returns the names of the logits, in order, if the weights have them (see `save`).

    Args:
        source: As for `load`.
        model: The network's name.

    Raises:
        ValueError: There are no such weights, or the file is damaged.
    """
    path = _bundled(model) if source == "bundled" else Path(source)
    return weight_files.read_classes(path)


def save(path: Path, params: Mapping[str, Any], classes: Sequence[str]) -> None:
    """Writes parameters as float16 to a .safetensors file, whole or not at all.

    Args:
        path: The file; an existing one is replaced.
        params: Nested by layer, as `models.load` returns them.
        classes: The names of the logits, in order, kept in the file's metadata.

    Raises:
        OSError: It cannot be written, for example on a full disk.
    """
    flat = weight_files.named(params)
    flat = {name: np.asarray(array, np.float16) for name, array in flat.items()}
    content = safetensors.numpy.save(flat, {"classes": json.dumps(list(classes))})
    with files.replacing(path) as file:
        file.write(content)


def _initial(name: str, shape: Shape, seed: int) -> np.ndarray:
    """Draws a kernel of standard deviation sqrt(2 / fan-in); norms are the identity."""
    if not name.endswith(".kernel"):
        value = 1 if name.endswith((".scale", ".var")) else 0
        return np.full(shape, value, np.float32)
    random = np.random.default_rng([seed, zlib.crc32(name.encode())])
    deviation = np.float32(math.sqrt(2 / math.prod(shape[:-1])))
    return deviation * random.standard_normal(shape, np.float32)


# Where the file is.


def _locate(
    source: str, model: str, torchvision_file: str | None, caffe_file: str | None
) -> Path:
    if source == "bundled":
        return _bundled(model)
    if source == "torchvision":
        if torchvision_file is None:
            raise ValueError(
                f"torchvision publishes no weights for {model}: use bundled, random"
                " or a path"
            )
        return _downloaded(TORCHVISION_URL, torchvision_file)
    if source == "caffe":
        if caffe_file is None:
            raise ValueError(
                f"no weights of Caffe's are known for {model}, only for VGGs: use"
                " bundled, random or a path"
            )
        return _downloaded(CAFFE_URL, caffe_file)
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(
            f"no weights {source!r}{_nearest(path)}; weights are {_ACCEPTED}"
        )
    return path


def _nearest(path: Path) -> str:
    """Suggests what may have been meant by a path that does not exist."""
    known = {name: name for name in ("random", *_TRAINED)}
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


def _downloaded(url: str, file: str) -> Path:
    """Returns a published file in the cache, downloading it if it is not there."""
    path = cache.cache_folder() / file
    if path.exists() and not cache.is_genuine(path):
        logger.warning("%s is damaged: downloading it again", path)
        path.unlink()
    if not path.exists():
        cache.download(url + file, path)
    return path


# Whether it fits.


def _aliases(shapes: Collection[str], *published: Mapping[str, str]) -> dict[str, str]:
    """Maps every name that a file may use to the parameter that it means."""
    aliases = {name: name for name in shapes}
    for name in shapes:
        layer, dot, kind = name.rpartition(".")
        for prefix in (layer, *(_published_name(layer, names) for names in published)):
            aliases.setdefault(f"{prefix}{dot}{_TORCH_KINDS.get(kind, kind)}", name)
    return aliases


def _published_name(layer: str, names: Mapping[str, str]) -> str:
    outer = [p for p in names if f"{layer}.".startswith(f"{p}.")]
    longest = max(outer, key=len, default="")
    inside = layer.removeprefix(longest)
    return (names.get(longest, "") + inside).removeprefix(".")


def _fitting(
    file: WeightFile,
    model: str,
    shapes: Mapping[str, Shape],
    aliases: Mapping[str, str],
    names: Collection[str],
) -> dict[str, str]:
    """Returns what a file calls each parameter, after a check that all of it fits."""
    tensors = {a: t for a, t in file.tensors.items() if not a.endswith(_COUNTER)}
    in_file = {alias: tensor.shape for alias, tensor in tensors.items()}
    _refuse(file.path, model, _misfits(shapes, aliases, in_file))
    alias_of = {aliases[alias]: alias for alias in tensors}
    # NumPy's own issubdtype does not count bfloat16.
    others = [
        name
        for name in names
        if not jnp.issubdtype(tensors[alias_of[name]].dtype, np.floating)
    ]
    _refuse(file.path, model, {"not floating point": others})
    return alias_of


def _misfits(
    shapes: Mapping[str, Shape], aliases: Mapping[str, str], in_file: dict[str, Shape]
) -> dict[str, list[str]]:
    """Lists all that keeps a file from fitting, by kind of complaint."""
    given = [aliases[alias] for alias in in_file if alias in aliases]
    expected = {a: shapes[aliases[a]] for a in in_file if a in aliases}
    for alias, shape in expected.items():
        if _is_transposed(alias, aliases):
            expected[alias] = _to_torch(shape)
    return {
        "missing": [name for name in shapes if name not in given],
        "unknown": [shown(alias) for alias in in_file if alias not in aliases],
        "given twice": [name for name in shapes if given.count(name) > 1],
        "wrong shape": [
            f"{alias} is {shown(in_file[alias])} and should be {shape}"
            for alias, shape in expected.items()
            if in_file[alias] != shape
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


def _is_transposed(alias: str, aliases: Mapping[str, str]) -> bool:
    """Whether a file's tensor of that name is a kernel in PyTorch's layout."""
    name = aliases[alias]
    return alias != name and name.rpartition(".")[2] == "kernel"


def _to_torch(shape: Shape) -> Shape:
    *space, inputs, outputs = shape
    return (outputs, inputs, *space)


def _in_torch_layout(kernel: np.ndarray) -> np.ndarray:
    return np.moveaxis(kernel, (-1, -2), (0, 1))


def _not_finite(arrays: Mapping[str, np.ndarray]) -> list[str]:
    return [name for name, array in arrays.items() if not np.isfinite(array).all()]
