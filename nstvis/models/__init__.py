"""Networks. A network is one pure function from images to named activations.

`forward(params, images)` maps float32 images `[batch, height, width, 3]`, RGB 0..255,
to a dict of every layer's activation in order, logits last. Everything else in this
project only reads that function, so a network of your own works everywhere: put a file
beside this one (or anywhere: its path is a name too) with

    def build(*, pooling, last, rngs, classes=1000) -> nnx.Module

whose module maps such images to such a dict. `pooling` is what the user asked for
(`max` or `average`); layers after `last`, if it is given, are not needed and may be
left out; `classes` is the number of logits. `TORCHVISION_NAMES` (layer to prefix in
torchvision's files) and `TORCHVISION_FILE` are optional.
"""

import pathlib
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import flax.traverse_util
import jax
from flax import nnx
from jax import Array

from nstvis import weights as weights_io
from nstvis.runs import registry
from nstvis.runs.registry import unknown

FOLDER = pathlib.Path(__file__).parent

Params = Mapping[str, Any]
Forward = Callable[[Params, Array], dict[str, Array]]


def names() -> list[str]:
    """The networks that `load` knows by name."""
    return registry.names(FOLDER)


def layers(name: str) -> list[str]:
    """The names of a network's activations, in order.

    Raises:
        ValueError: No such network.
        FileNotFoundError: No such file.
    """
    module, found = registry.find("model", name, FOLDER), []
    image = jax.ShapeDtypeStruct((1, 224, 224, 3), "float32")

    def trace(images: Array) -> None:
        network = module.build(pooling="max", last=None, rngs=nnx.Rngs(0))
        found.extend(network(images))  # here, as JAX returns dicts sorted by key

    jax.eval_shape(trace, image)
    return found


def load(
    name: str,
    weights: str = "bundled",
    *,
    pooling: str = "max",
    last: str | None = None,
    classes: int | None = None,
    seed: int = 0,
) -> tuple[Forward, Params]:
    """Builds a network and loads its weights.

    Args:
        name: One of `names()`, or the path of a Python file with a `build`.
        weights: `bundled`, `random` (He et al. 2015, from `seed`), `torchvision`, or a
            path: .pth, .pt, .safetensors, .npz, or an Orbax directory.
        pooling: `max` or `average`.
        last: The last layer that is needed; deeper parameters are not loaded.
        classes: Number of logits; by default as many as the weights tell, or the
            network's own number.
        seed: Seed of `random`.

    Returns:
        The function `forward(params, images)` and its `params`, nested by layer.

    Raises:
        ValueError: No such network or layer, or the weights do not fit.
        FileNotFoundError: No such file.
    """
    return functional(
        network(name, weights, pooling=pooling, last=last, classes=classes, seed=seed)
    )


def functional(network: nnx.Module) -> tuple[Forward, Params]:
    """Splits a network, whose state is all parameters, as `load` returns it."""
    graph, state = nnx.split(network)

    def forward(params: Params, images: Array) -> dict[str, Array]:
        return nnx.merge(graph, params)(images)

    return forward, nnx.to_pure_dict(state)


def units(forward: Forward, params: Params, size: int) -> dict[str, int]:
    """Layer to how many units it has, in the network's order, for images of a side."""
    counts: dict[str, int] = {}

    def trace(images: Array) -> None:  # JAX would return the layers sorted by name
        found = forward(params, images)
        counts.update({name: x.shape[-1] for name, x in found.items()})

    jax.eval_shape(trace, jax.ShapeDtypeStruct((1, size, size, 3), "float32"))
    return counts


def network(
    name: str,
    weights: str,
    *,
    pooling: str = "max",
    last: str | None = None,
    classes: int | None = None,
    seed: int = 0,
) -> nnx.Module:
    """Builds the Flax module that `load` makes a function of, with its weights."""
    if last is not None and last not in (known := layers(name)):
        raise ValueError(unknown(f"layer of {name}", last, known))
    module = registry.find("model", name, FOLDER)
    if classes is None:
        classes = len(weights_io.classes(weights, pathlib.Path(name).stem)) or None
    whole = _abstract(module, pooling, None, classes)
    wanted = _abstract(module, pooling, last, classes)
    graph, state = nnx.split(wanted)
    paths = {".".join(map(str, path)): path for path in _flat(state)}
    arrays = weights_io.load(
        weights,
        pathlib.Path(name).stem,
        {".".join(map(str, k)): v.shape for k, v in _flat(nnx.state(whole)).items()},
        torchvision_names=getattr(module, "TORCHVISION_NAMES", {}),
        torchvision_file=getattr(module, "TORCHVISION_FILE", None),
        wanted=paths.keys(),
        seed=seed,
    )
    flat = {paths[key]: array for key, array in jax.device_put(arrays).items()}
    return nnx.merge(graph, flax.traverse_util.unflatten_dict(flat))


def _abstract(
    module: ModuleType, pooling: str, last: str | None, classes: int | None
) -> nnx.Module:
    options = {} if classes is None else {"classes": classes}
    return nnx.eval_shape(
        lambda: module.build(pooling=pooling, last=last, rngs=nnx.Rngs(0), **options)
    )


def _flat(state: nnx.State) -> dict[tuple, Any]:
    return dict(flax.traverse_util.flatten_dict(nnx.to_pure_dict(state)))
