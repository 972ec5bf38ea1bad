"""Contributions: what single pre-activations consist of, channel by channel.

A pre-activation is a bias and what each channel of the layer's inputs contributes: the sum
over positions of its weights (the Jacobian, which is the same for all images, as the
layer is an affine function of them) times its activations.
"""

import functools
import logging
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from nstvis import devices
from nstvis.models import Params
from nstvis.units import kept_steps
from nstvis.units.affine import Program, Sum
from nstvis.units.measurements import Layer
from nstvis.units.patches import Images
from nstvis.units.scan import Target

logger = logging.getLogger(__name__)

# Bytes, at most, of all layers for a batch of images, and of one layer's Jacobians.
_ACTIVATIONS, _JACOBIANS = 64_000_000, 64_000_000
_MOST_JACOBIANS = 16


class Parts(NamedTuple):
    """What single pre-activations consist of."""

    # [n], which units of a layer.
    units: np.ndarray
    # [n, channels], of all inputs in a row.
    contributions: np.ndarray
    # [n].
    bias: np.ndarray
    total: np.ndarray


class Network:
    """A network whose layers are computed from images, or from the layers before.

    Attributes:
        sums: Layer to what it is a sum of, where it is one.
        fed: Those of them whose inputs are other layers, rather than the image.
        batch: Images in a batch.
    """

    def __init__(self, target: Target, names: Sequence[str], batch: int):
        self._target, self._names = target, names
        self._jacobians: dict[str, tuple[Callable, np.ndarray]] = {}
        self.sums: dict[str, Sum] = {}
        alone = self._program(1)
        for name in names:
            try:
                self.sums[name] = alone.sum(name, names)
            except ValueError as error:
                logger.warning("no connections: %s", error)
        self.fed = [n for n, x in self.sums.items() if all(i.layer for i in x.inputs)]
        sizes = [_bytes(x) for x in self.sums.values()] or [1]
        self.batch = int(np.clip(_ACTIVATIONS // sum(sizes), 1, batch))
        self._few = int(np.clip(_JACOBIANS // max(sizes), 1, _MOST_JACOBIANS))

    def _program(self, batch: int) -> Program:
        size, target = self._target.about.size, self._target
        shape = jax.ShapeDtypeStruct((batch, size, size, 3), "float32")
        return Program(target.forward, target.params, shape)

    def activations(
        self, images: Sequence[np.ndarray]
    ) -> dict[str, tuple[np.ndarray, list[np.ndarray]]]:
        """Computes each layer's pre-activations and inputs for a batch of images."""
        pixels = np.zeros((self.batch, *images[0].shape), np.float32)
        pixels[: len(images)] = np.stack(images)
        compute, places = self._images_to_layers
        values = [np.asarray(x) for x in compute(self._target.params, pixels)]
        return {
            name: (values[first], [values[i] for i in rest])
            for name, (first, *rest) in places.items()
        }

    @functools.cached_property
    def _images_to_layers(self) -> tuple[Callable, dict[str, list[int]]]:
        """Returns what computes values from images, and which are each layer's."""
        program, wanted, places = self._program(self.batch), {}, {}
        for name in self.fed:
            one = program.sum(name, self._names)
            variables = [one.pre_activation, *(x.variable for x in one.inputs)]
            places[name] = [wanted.setdefault(x, len(wanted)) for x in variables]
        function = program.function([program.images], list(wanted))
        return jax.jit(function, compiler_options=devices.compile_options()), places

    @functools.cached_property
    def _layers_to_layers(self) -> Program:
        return self._program(self._few)

    def _differentiated(self, layer: str) -> tuple[Callable, np.ndarray]:
        """Returns a layer's Jacobian, and its biases `[1, ..., units]`."""
        if layer in self._jacobians:
            return self._jacobians[layer]
        one = self._layers_to_layers.sum(layer, self._names)
        variables = [x.variable for x in one.inputs]
        function = self._layers_to_layers.function(variables, [one.pre_activation])
        zeros = [jnp.zeros(x.shape, x.variable.aval.dtype) for x in one.inputs]

        def jacobian(params: Params, units: Array, positions: Array) -> Any:
            def total(*inputs: Array) -> Array:
                (x,) = function(params, *inputs)
                return _at(x, np.arange(self._few), units, positions).sum()

            return jax.grad(total, range(len(zeros)))(*zeros)

        (biases,) = jax.jit(function)(self._target.params, *zeros)
        compiled = jax.jit(jacobian, compiler_options=devices.compile_options())
        self._jacobians[layer] = compiled, np.asarray(biases[:1])
        return self._jacobians[layer]

    def bias(self, layer: str, units: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Returns what single pre-activations are where all inputs are 0, `[n]`."""
        biases = self._differentiated(layer)[1]
        return _at(biases, np.zeros(len(units), int), units, positions)

    def weights(
        self, layer: str, units: np.ndarray, positions: np.ndarray
    ) -> Iterator[tuple[slice, list[np.ndarray]]]:
        """Yields the weights of single units at positions, part by part.

        Yields:
            Which part, and for each of the layer's inputs the weights `[part, ...]` of
            all its elements.
        """
        jacobian, _ = self._differentiated(layer)
        for start in range(0, len(units), self._few):
            # The last part repeats the last unit: one program takes one shape.
            some = np.minimum(np.arange(start, start + self._few), len(units) - 1)
            parts = jacobian(self._target.params, units[some], positions[some])
            count = min(self._few, len(units) - start)
            yield slice(start, start + count), [np.asarray(x)[:count] for x in parts]

    def middle(self, layer: str) -> np.ndarray:
        """Returns the position in the middle of a layer's map."""
        shape = self.sums[layer].pre_activation.aval.shape
        return np.array(shape[1:3] if len(shape) == 4 else (0, 0)) // 2


def _bytes(one: Sum) -> int:
    """Returns the bytes of a layer's pre-activations and inputs for an image."""
    variables = [one.pre_activation, *(x.variable for x in one.inputs)]
    return sum(x.aval.size * x.aval.dtype.itemsize for x in variables)


def _at(x: Any, rows: Any, units: Any, positions: Any) -> Any:
    """Takes single activations of a layer, `[n]`."""
    if x.ndim == 2:
        return x[rows, units]
    return x[rows, positions[:, 0], positions[:, 1], units]


def parts(
    network: Network,
    layers: Mapping[str, Layer],
    pictures: Images,
    remainder: int,
    text: str,
    sums: Mapping[str, np.ndarray],
    kept: pathlib.Path | None,
) -> Iterator[tuple[str, Parts]]:
    """Yields what pre-activations consist of, at every second patch of each unit.

    Args:
        network: The network.
        layers: Those whose units are wanted, with their patches.
        pictures: Where the images are.
        remainder: 0 for the patches of rank 1, 3 and so on, 1 for the others.
        text: What is shown meanwhile.
        sums: What the caller adds them to, before the next is asked for.
        kept: File of the sums that an interrupted call leaves for the next.
    """
    claims = {}
    for name, layer in layers.items():
        top, relu = layer.top, network.sums[name].relu
        active = (top.image >= 0) & ((top.score > 0) | (not relu))
        active[:, 1 - remainder :: 2] = False
        units, ranks = np.nonzero(active)
        order = np.argsort(top.image[units, ranks], kind="stable")
        claims[name] = units[order], ranks[order], top.image[units, ranks][order]
    images = np.unique(np.concatenate([x[2] for x in claims.values()] or [[]]))
    count = -(-len(images) // network.batch)
    for step in kept_steps.steps(kept, sums, count, text):
        some = images[step * network.batch :][: network.batch]
        values = network.activations([pictures[i] for i in some])
        for name, (units, ranks, image) in claims.items():
            here = slice(*np.searchsorted(image, [some[0], some[-1] + 1]))
            rows = np.searchsorted(some, image[here])
            where = units[here], layers[name].top.position[units[here], ranks[here]]
            for some_parts in _taken_apart(network, name, values[name], rows, *where):
                yield name, some_parts
        del values  # or two batches' were in memory at a time


def _taken_apart(
    network: Network,
    name: str,
    values: tuple[np.ndarray, list[np.ndarray]],
    rows: np.ndarray,
    units: np.ndarray,
    positions: np.ndarray,
) -> Iterator[Parts]:
    """Yields what a layer's pre-activations consist of, for some rows of a batch."""
    total, inputs = values
    for part, jacobians in network.weights(name, units, positions):
        where = rows[part], units[part], positions[part]
        contributions = [
            (x[rows[part]] * weights).reshape(len(weights), -1, x.shape[-1]).sum(1)
            for x, weights in zip(inputs, jacobians, strict=True)
        ]
        yield Parts(
            units[part],
            np.concatenate(contributions, 1),
            network.bias(name, *where[1:]),
            _at(total, *where),
        )
