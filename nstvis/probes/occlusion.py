"""Occlusion: what a network predicts while a grey square hides a part of an image.

Zeiler & Fergus 2013 (arXiv:1311.2901), section 4.2 and Figure 7: the class depends on
what the square hides where its probability drops.

    study = occlusion.Study(forward, params, "conv5", "deconvnet", 14, stride=2)
    results = study.run(images, workdir / "maps")
"""

import functools
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from nstvis import attribution, devices, models
from nstvis.layers import MEAN_COLOR
from nstvis.models import Forward, Params
from nstvis.probes.inputs import LabeledImage
from nstvis.runs import files
from nstvis.runs.progress import Progress
from nstvis.runs.registry import unknown


class Responses(NamedTuple):
    """The network's responses to images: arrays of one shape, JAX or NumPy."""

    # Sum of one unit's map, float32.
    activity: Any
    # Of one class, 0..1, float32.
    probability: Any
    # The class of the highest logit, int32.
    prediction: Any


class Result(NamedTuple):
    """An image's responses, as they are kept in a file: all are arrays."""

    # The unit's number, and the attribution [size, size, 3] of its highest activation.
    unit: np.ndarray
    attribution: np.ndarray
    # Without the square: the probability of the class, and the prediction.
    probability: np.ndarray
    prediction: np.ndarray
    # With the square at each position, as in `Responses`: [rows, columns].
    activities: np.ndarray
    probabilities: np.ndarray
    predictions: np.ndarray


def centres(length: int, stride: int) -> np.ndarray:
    """Returns the square's positions along a side, with equal margins at both ends."""
    count = 1 + (length - 1) // stride
    margin = length - 1 - (count - 1) * stride
    return margin // 2 + stride * np.arange(count)


def occluded(
    image: Array | np.ndarray, positions: Array | np.ndarray, square: int
) -> Array:
    """Copies an image, each time with a grey square.

    Args:
        image: `[height, width, 3]`, RGB 0..255.
        positions: int `[n, 2]`, row and column of the squares' middle pixels, of two in
            the middle the second. A square may extend beyond the border.
        square: Their side, in pixels.

    Returns:
        `[n, height, width, 3]`.

    Raises:
        ValueError: The square is larger than the image, or empty.
    """
    height, width, _ = image.shape
    if not 1 <= square <= min(height, width):
        raise ValueError(
            f"square={square} should be 1 to {min(height, width)} pixels, for an image"
            f" of {height} x {width}"
        )
    covered = []
    for axis, length in enumerate((height, width)):
        offset = jnp.arange(length)[None] - positions[:, axis, None] + square // 2
        covered.append((offset >= 0) & (offset < square))
    rows, columns = covered
    inside = rows[:, :, None, None] & columns[:, None, :, None]
    return jnp.where(inside, MEAN_COLOR[None, None, None], image[None])


def respond(
    forward: Forward,
    layer: str,
    square: int,
    params: Params,
    image: Array,
    positions: Array,
    unit: Array,
    label: Array,
) -> Responses:
    """Computes the responses to an image with the square at each of several positions.

    Args:
        forward: The network; the last of its activations are the logits.
        layer: The unit's.
        square: Side of the square, in pixels.
        params: The network's parameters.
        image: float32 `[height, width, 3]`, RGB 0..255.
        positions: int `[n, 2]`, as of `occluded`.
        unit: A channel of the layer.
        label: The class whose probability is wanted.

    Returns:
        Arrays `[n]`.
    """
    activations = forward(params, occluded(image, positions, square))
    logits = list(activations.values())[-1]
    maps = activations[layer][..., unit]
    activity = maps.reshape(len(maps), -1).sum(1)
    return Responses(activity, jax.nn.softmax(logits)[:, label], logits.argmax(1))


class Study:
    """A network, one of its units or the strongest of a layer, and a square."""

    def __init__(
        self,
        forward: Forward,
        params: Params,
        unit: str,
        rule: str,
        square: int,
        *,
        stride: int,
        batch: int = 64,
    ):
        """Prepares the programs, which are compiled on their first call.

        Args:
            forward: The network; the last of its activations are the logits.
            params: Its parameters.
            unit: `LAYER:NUMBER`, or a layer, of which each image's unit with the largest
                sum of its map is taken.
            rule: How the unit's activation is attributed, see `attribution.RULES`.
            square: Side of the square, in pixels.
            stride: Pixels from one position to the next.
            batch: Positions in a batch.
        """
        self._layer, _, self._number = unit.partition(":")
        self._forward, self._params = forward, params
        self._stride, self._batch = stride, batch
        self._respond = jax.jit(
            functools.partial(respond, forward, self._layer, square)
        )
        self._predict = jax.jit(self._activations_and_probabilities)
        ruled = attribution.ruled(forward, rule)
        self._attribute = jax.jit(
            functools.partial(attribution.attribute, ruled), static_argnums=1
        )

    def run(self, images: Sequence[LabeledImage], folder: pathlib.Path) -> list[Result]:
        """Slides the square over images, and keeps each image's result in a folder.

        Raises:
            ValueError: No such unit, or the square does not fit into the images.
            Interrupted: By a signal; the next call resumes after the last whole image.
        """
        self._check_unit(len(images[0].pixels))
        folder.mkdir(exist_ok=True)
        paths = [folder / f"{i}.npz" for i in range(len(images))]
        self._fill(images, paths)
        return [_read(path) for path in paths]

    def slide(
        self, image: np.ndarray, unit: int, label: int
    ) -> Iterator[tuple[int, Responses]]:
        """Slides the square over an image, its middle to all `centres` of both sides.

        Args:
            image: float32 `[height, width, 3]`, RGB 0..255.
            unit: A channel of the layer.
            label: The class whose probability is wanted.

        Yields:
            After each batch: the number of positions done, and the maps `[rows, columns]`,
            the same arrays each time, 0 at the positions to come.
        """
        sides = [centres(length, self._stride) for length in image.shape[:2]]
        positions = np.stack(np.meshgrid(*sides, indexing="ij"), -1).reshape(-1, 2)
        shape = [len(side) for side in sides]
        dtypes = (np.float32, np.float32, np.int32)
        maps = Responses(*(np.zeros(shape, dtype) for dtype in dtypes))
        for first in range(0, len(positions), self._batch):
            batch = positions[first : first + self._batch]
            padded = np.resize(batch, (self._batch, 2))  # of one shape for one program
            responses = self._respond(self._params, image, padded, unit, label)
            for whole, part in zip(maps, responses):
                whole.flat[first : first + len(batch)] = part[: len(batch)]
            yield first + len(batch), maps

    def _check_unit(self, size: int) -> None:
        counts = models.units(self._forward, self._params, size)
        if self._layer not in counts:
            raise ValueError(unknown("layer", self._layer, counts))
        last = counts[self._layer] - 1
        if self._number and self._number not in map(str, range(last + 1)):
            raise ValueError(
                f"no unit {self._layer}:{self._number}: there are 0 to {last}"
            )

    def _fill(
        self, images: Sequence[LabeledImage], paths: Sequence[pathlib.Path]
    ) -> None:
        """Writes the result of each image that has none yet."""
        missing = [i for i, path in enumerate(paths) if not path.exists()]
        done = len(paths) - len(missing)
        positions = len(centres(len(images[0].pixels), self._stride)) ** 2
        steps = math.ceil(positions / self._batch)
        unused = np.zeros((self._batch, 2), int)
        arguments = self._params, images[0].pixels, unused, 0, 0
        cost = devices.flops(self._respond, *arguments)
        with Progress([cost] * (steps * len(images)), steps * done) as progress:
            for number, i in enumerate(missing, done):
                image = images[i]
                unit, attributed, probabilities = self._unoccluded(image.pixels)
                slide = self.slide(image.pixels, unit, image.label)
                for step, (_, maps) in enumerate(slide, number * steps + 1):
                    progress.show(step, image.name)
                    if progress.interrupted:
                        return
                prediction = np.asarray(probabilities.argmax())
                probability = probabilities[image.label]
                result = Result(unit, attributed, probability, prediction, *maps)
                _write(paths[i], result)

    def _unoccluded(self, image: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray]:
        """Returns the unit, the attribution of its highest activation, probabilities."""
        activations, probabilities = map(np.asarray, self._predict(self._params, image))
        sums = activations.reshape(-1, activations.shape[-1]).sum(0)
        unit = np.array(int(self._number) if self._number else sums.argmax())
        maps = activations[..., unit]
        position = np.array(np.unravel_index(maps.argmax(), maps.shape) or (0, 0))
        attributions, _ = self._attribute(
            self._params, self._layer, image[None], unit[None], position[None]
        )
        return unit, np.asarray(attributions[0]), probabilities

    def _activations_and_probabilities(
        self, params: Params, image: Array
    ) -> tuple[Array, Array]:
        activations = self._forward(params, image[None])
        logits = list(activations.values())[-1]
        return activations[self._layer][0], jax.nn.softmax(logits[0])


def _write(path: pathlib.Path, result: Result) -> None:
    with files.replacing(path) as file:
        np.savez_compressed(file, **result._asdict())


def _read(path: pathlib.Path) -> Result:
    with files.reading(path), np.load(path) as arrays:
        return Result(**arrays)
