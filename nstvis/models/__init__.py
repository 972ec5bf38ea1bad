"""Networks. A network is one pure function from images to named activations.

`forward(params, images)` maps float32 images `[batch, height, width, 3]`, RGB 0..255,
to a dict of every layer's activation in order, logits last. An activation is
`[batch, height, width, channels]` or `[batch, channels]`. Everything else in this
project only reads that function, so a network of your own works everywhere: put a file
beside this one (or anywhere: its path is a name too) that defines either

    def build(*, pooling, last, rngs, classes=1000) -> nnx.Module

whose module maps such images to such a dict, or, without Flax NNX, the function itself
and its parameters, nested in dicts and lists (Flax Linen: `Net().apply` and `.init`)

    def init(seed, classes=1000) -> params
    def forward(params, images) -> dict

`pooling` is what the user asked for (`max` or `average`); layers after `last`, if it is
given, are not needed and may be left out; `classes`, which both kinds may do without,
is the number of logits. Weights are read by the names of the parameters, joined by dots;
those of `random` are drawn by the scheme of He et al. for a module, and by `init`.
`TORCHVISION_NAMES` (layer, or module inside it, to the prefix in torchvision's files) and
`TORCHVISION_FILE` are optional, and so are `CAFFE_NAMES` and `CAFFE_FILE`. A network of
`nstvis.layers.Chain` preprocesses its images as its weights need; any other does that
in its one way. Training takes modules only.
"""

import functools
import hashlib
import inspect
import logging
import pathlib
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from nstvis import hosts, weight_files
from nstvis import weights as weights_io
from nstvis.layers import Chain
from nstvis.runs import registry
from nstvis.runs.registry import unknown

FOLDER = pathlib.Path(__file__).parent

logger = logging.getLogger(__name__)

Params = Mapping[str, Any]
Forward = Callable[[Params, Array], dict[str, Array]]


def names() -> list[str]:
    """Returns the names of the networks in this folder."""
    return registry.names(FOLDER)


def layers(name: str) -> list[str]:
    """Returns the names of a network's activations, in order.

    Raises:
        ValueError: No such network.
        FileNotFoundError: No such file.
    """
    return list((_layers_once if name in names() else _layers)(name))


def _layers(name: str) -> tuple[str, ...]:
    module = _find(name)
    if _is_plain(module):
        return tuple(_shapes(module.forward, module.init(seed=0), 224))
    return tuple(_shapes(*functional(_abstract(module, "max", None, {})), 224))


# Of a file of one's own, which may change, they are read again. Tracing takes a second.
_layers_once = functools.cache(_layers)


def load(
    name: str,
    weights: str = "bundled",
    *,
    preprocessing: str = "auto",
    pooling: str = "max",
    last: str | None = None,
    classes: int | None = None,
    seed: int = 0,
    precision: str = "float32",
) -> tuple[Forward, Params]:
    """Builds a network and loads its weights.

    Args:
        name: One of `names()`, or the path of a Python file like those.
        weights: `bundled`, `random` (from `seed`), `torchvision`, `caffe`, or a path:
            .pth, .pt, .safetensors, .npz, or an Orbax directory.
        preprocessing: Of the images: `torchvision`, `caffe`, or `auto` for what the name
            of the weights says.
        pooling: `max` or `average`.
        last: The last layer that is needed; deeper parameters are not loaded.
        classes: Number of logits; by default as many as the weights name, or the
            network's own number.
        seed: Seed of `random`.
        precision: `float32` or `bfloat16`, in which layers compute; parameters are
            float32.

    Returns:
        The function `forward(params, images)` and its `params`, nested by layer.

    Raises:
        ValueError: No such network or layer, or the weights or their preprocessing do
            not fit.
        FileNotFoundError: No such file.
    """
    options = {"last": last, "classes": classes, "seed": seed}
    module = _find(name)
    if _is_plain(module):
        _refuse_preprocessing(name, preprocessing)
        if precision != "float32":
            raise ValueError(
                f"{name} is a plain function, which computes as it is written: leave"
                " precision=float32"
            )
        return _plain(module, name, weights, **options)
    options |= {"preprocessing": preprocessing, "pooling": pooling}
    built = network(name, weights, **options)
    if precision != "float32":
        for _, layer in nnx.iter_graph(built):
            if isinstance(layer, nnx.Conv | nnx.Linear):
                layer.dtype = jnp.dtype(precision)
    return functional(built)


def functional(network: nnx.Module) -> tuple[Forward, Params]:
    """Splits a network, whose state is all parameters, as `load` returns it."""
    graph, state = nnx.split(network)

    def forward(params: Params, images: Array) -> dict[str, Array]:
        return nnx.merge(graph, params)(images)

    return forward, nnx.to_pure_dict(state)


def units(forward: Forward, params: Params, size: int) -> dict[str, int]:
    """Returns each layer's number of units, in the network's order.

    Args:
        forward: The network.
        params: Its parameters, or their shapes.
        size: Side of the images, in pixels.
    """
    return {name: shape[-1] for name, shape in _shapes(forward, params, size).items()}


def network(
    name: str,
    weights: str,
    *,
    preprocessing: str = "auto",
    pooling: str = "max",
    last: str | None = None,
    classes: int | None = None,
    seed: int = 0,
) -> nnx.Module:
    """Builds the Flax module of which `load` makes a function, with its weights.

    Raises:
        ValueError: As for `load`, or the network is a plain function.
        FileNotFoundError: No such file.
    """
    module = _find(name)
    if _is_plain(module):
        raise ValueError(
            f"{name} is a plain function, which cannot be trained here: that takes a"
            " Flax module, from `build`"
        )
    _check_last(name, last)
    classes = _classes(name, weights, classes)
    options = _options(module.build, classes)
    whole = _abstract(module, pooling, None, options)
    wanted_part = _abstract(module, pooling, last, options)
    if isinstance(wanted_part, Chain):
        wanted_part.preprocessing = weights_io.preprocessing(weights, preprocessing)
        _log_preprocessing(module, name, weights, preprocessing)
    else:
        _refuse_preprocessing(name, preprocessing)
    graph, state = nnx.split(wanted_part)
    if classes and not options:
        _check_logits(name, *functional(whole), classes)
    wanted = nnx.to_pure_dict(state)
    params = nnx.to_pure_dict(nnx.state(whole))
    return nnx.merge(graph, _weights(module, name, weights, params, wanted, seed))


def _plain(
    module: ModuleType,
    name: str,
    weights: str,
    *,
    last: str | None,
    classes: int | None,
    seed: int,
) -> tuple[Forward, Params]:
    """Loads a network that is a function."""
    _check_last(name, last)
    classes = _classes(name, weights, classes)
    options = _options(module.init, classes)
    params = jax.tree.map(jnp.asarray, module.init(seed=seed, **options))
    if classes and not options:
        _check_logits(name, module.forward, params, classes)
    if weights != "random":
        params = _weights(module, name, weights, params, params, seed)
    return module.forward, params


def _find(name: str) -> ModuleType:
    module = registry.find("model", name, FOLDER)
    if not hasattr(module, "build") and not _is_plain(module):
        raise ValueError(
            f"{name} is no network: it defines neither `build` nor `init` and `forward`"
        )
    return module


def _is_plain(module: ModuleType) -> bool:
    return not hasattr(module, "build") and (
        hasattr(module, "init") and hasattr(module, "forward")
    )


def _check_last(name: str, last: str | None) -> None:
    if last is not None and last not in (known := layers(name)):
        raise ValueError(unknown(f"layer of {name}", last, known))


def _classes(name: str, weights: str, classes: int | None) -> int | None:
    if classes is None:
        return len(weights_io.classes(weights, pathlib.Path(name).stem)) or None
    return classes


def _options(maker: Callable, classes: int | None) -> dict[str, int]:
    takes_classes = "classes" in inspect.signature(maker).parameters
    return {"classes": classes} if classes and takes_classes else {}


def _log_preprocessing(module: ModuleType, name: str, weights: str, asked: str) -> None:
    """Says what a file was taken for, where there are two kinds that fit."""
    known = ("random", "bundled", "torchvision", "caffe")
    if weights in known or not hasattr(module, "CAFFE_FILE"):
        return
    if weights_io.is_caffe(weights):
        if asked == "torchvision":
            logger.warning("%s: used as torchvision's, named like Caffe's", weights)
        else:
            logger.info("%s: Caffe's, so images are BGR, less their mean", weights)
    elif asked == "auto" and not (
        pathlib.Path(weights).name == getattr(module, "TORCHVISION_FILE", None)
        or weights_io.classes(weights, name)  # as those that were trained here
    ):
        logger.warning(
            "%s: taken for torchvision's weights; if they are Caffe's, as"
            " neural-style's are, give --config.preprocessing=caffe",
            weights,
        )


def _refuse_preprocessing(name: str, asked: str) -> None:
    if asked != "auto":
        raise ValueError(
            f"{name} preprocesses its images itself, in its own way: leave"
            " preprocessing=auto"
        )


def _check_logits(name: str, forward: Forward, params: Params, classes: int) -> None:
    *_, logits = units(forward, params, 224).values()
    if logits != classes:
        raise ValueError(
            f"{name} has {logits} logits, and cannot have {classes}: it takes no"
            " `classes`"
        )


def _abstract(
    module: ModuleType, pooling: str, last: str | None, options: Mapping[str, int]
) -> nnx.Module:
    """Builds a network of shapes alone."""
    return nnx.eval_shape(
        lambda: module.build(pooling=pooling, last=last, rngs=nnx.Rngs(0), **options)
    )


def _weights(
    module: ModuleType, name: str, weights: str, whole: Any, wanted: Any, seed: int
) -> Any:
    """Loads parameters nested like `wanted`, which may be a part of the `whole`."""
    paths = weight_files.named(wanted)
    arrays = weights_io.load(
        weights,
        pathlib.Path(name).stem,
        {key: leaf.shape for key, leaf in weight_files.named(whole).items()},
        torchvision_names=getattr(module, "TORCHVISION_NAMES", {}),
        torchvision_file=getattr(module, "TORCHVISION_FILE", None),
        caffe_names=getattr(module, "CAFFE_NAMES", {}),
        caffe_file=getattr(module, "CAFFE_FILE", None),
        wanted=paths.keys(),
        seed=seed,
    )
    if hosts.several() and weights != "random":
        digest = hashlib.sha256()
        for key in paths:
            digest.update(np.asarray(arrays[key]).tobytes())
        what = f"the hash of {weights} for {name}, {len(paths)} arrays"
        hosts.agree({what: digest.hexdigest()[:16]})
    arrays = jax.device_put(arrays)
    return jax.tree.unflatten(
        jax.tree.structure(wanted), [arrays[key] for key in paths]
    )


def _shapes(forward: Forward, params: Params, size: int) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of all activations, in the network's order."""
    shapes = {}

    def trace(params: Params, images: Array) -> None:
        activations = forward(params, images)
        if not isinstance(activations, Mapping):
            raise ValueError(  # noqa: TRY004 - of the errors that are told in a line
                "a network returns a dict of activations by name, not"
                f" {type(activations).__name__}"
            )
        shapes.update({name: x.shape for name, x in activations.items()})

    jax.eval_shape(trace, params, jax.ShapeDtypeStruct((1, size, size, 3), "float32"))
    for name, shape in shapes.items():
        if len(shape) not in (2, 4):
            raise ValueError(
                f"the activation {name} is {shape}, neither [batch, height, width,"
                " channels] nor [batch, channels]"
            )
    return shapes
