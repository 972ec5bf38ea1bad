"""Invariance: how features change when an image is moved, enlarged or turned.

Zeiler & Fergus 2013 (arXiv:1311.2901), Figure 5.

    study = invariance.Study(forward, params, ["conv1", "fc7"], batch=64)
    curves = study.run(images, workdir / "invariance.csv")
    curves["rotation"].relative  # [layers, images, amounts]
"""

import functools
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from PIL import Image
from PIL.Image import Resampling, Transform

from nstvis import devices
from nstvis.images import to_image
from nstvis.layers import MEAN_COLOR
from nstvis.models import Forward, Params
from nstvis.probes.inputs import LabeledImage
from nstvis.runs import files
from nstvis.runs.progress import Progress


class Curves(NamedTuple):
    """How features and probabilities change with one transformation of some images."""

    # Pixels down, factors, or degrees counter-clockwise, [amounts].
    amounts: np.ndarray
    # Euclidean distances of the features from the original's, over the length of these,
    # [layers, images, amounts].
    relative: np.ndarray
    # Of the images' classes, [images, amounts].
    probability: np.ndarray


def amounts(size: int) -> dict[str, np.ndarray]:
    """Returns the paper's amounts: pixels down, factors, degrees counter-clockwise.

    Args:
        size: Side of the images, in pixels; translations are 60 of 224 at most.
    """
    reach = size * 60 / 224
    pixels = np.rint(np.linspace(-reach, reach, 35)) + 0.0  # not -0
    return {
        "translation": np.unique(pixels),
        "scale": np.arange(20, 37) / 20,
        "rotation": np.arange(0.0, 360, 10),
    }


def transformed(image: Image.Image, transformation: str, amount: float) -> Image.Image:
    """Moves an image down, enlarges it, or turns it about its centre.

    Args:
        image: Of mode RGB.
        transformation: `translation`, `scale` or `rotation`.
        amount: Pixels, a factor, or degrees counter-clockwise.

    Returns:
        An image of the same size, interpolated bicubically; the mean colour of ImageNet
        fills what it leaves empty.
    """
    angle = math.radians(amount) if transformation == "rotation" else 0
    scale = amount if transformation == "scale" else 1
    down = amount if transformation == "translation" else 0
    # From the result's pixels to the image's; rounded, as cos(90 degrees) is not 0.
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    inverse = np.array([[cos, -sin], [sin, cos]]) / scale
    centre = np.array(image.size) / 2
    origin = centre - inverse @ (centre + [0, down])
    matrix = np.column_stack([inverse, origin]).ravel().tolist()
    color = tuple(np.rint(MEAN_COLOR).astype(int).tolist())
    return image.transform(
        image.size, Transform.AFFINE, matrix, Resampling.BICUBIC, fillcolor=color
    )


def compare(
    forward: Forward,
    layers: Sequence[str],
    params: Params,
    images: Array,
    label: Array,
) -> tuple[Array, Array, Array]:
    """Compares the features of images with those of the first one.

    Args:
        forward: The network; the last of its activations are the logits.
        layers: Whose features are compared.
        params: The network's parameters.
        images: `[1 + n, height, width, 3]`, RGB 0..255.
        label: The class whose probability is wanted.

    Returns:
        Euclidean distances of the features from the first image's `[layers, n]`, the
        lengths of the first image's `[layers]`, and probabilities `[n]`.
    """
    activations = forward(params, images.astype(jnp.float32))
    features = [activations[layer].reshape(len(images), -1) for layer in layers]
    distances = [jnp.linalg.norm(x[1:] - x[:1], axis=1) for x in features]
    lengths = [jnp.linalg.norm(x[0]) for x in features]
    probabilities = jax.nn.softmax(list(activations.values())[-1])[1:, label]
    return jnp.stack(distances), jnp.stack(lengths), probabilities


class Study:
    """A network, and the layers whose features are compared."""

    def __init__(
        self, forward: Forward, params: Params, layers: Sequence[str], batch: int
    ):
        """Prepares the program, which is compiled on its first call.

        Args:
            forward: The network; the last of its activations are the logits.
            params: Its parameters.
            layers: Whose features are compared.
            batch: Transformed images in a batch.
        """
        self._compare = jax.jit(functools.partial(compare, forward, layers))
        self._params, self._layers, self._batch = params, layers, batch

    def run(
        self, images: Sequence[LabeledImage], table: pathlib.Path
    ) -> dict[str, Curves]:
        """Transforms images of one size by all `amounts`.

        Args:
            images: Each with the class whose probability is wanted.
            table: A CSV file, with a row for each transformed image.

        Returns:
            Transformation to its curves.

        Raises:
            Interrupted: By a signal; the next call resumes after the last whole image.
        """
        size = len(images[0].pixels)
        changes = [
            (name, amount)
            for name, values in amounts(size).items()
            for amount in values.tolist()
        ]
        self._fill(images, changes, table)
        return read(table, size)

    def _fill(
        self,
        images: Sequence[LabeledImage],
        changes: Sequence[tuple[str, float]],
        table: pathlib.Path,
    ) -> None:
        """Adds the rows of each image that has none yet to the table."""
        header = ["image", "transformation", "amount"]
        for layer in self._layers:
            header += [f"{layer}_distance", f"{layer}_relative"]
        rows: list[Sequence[Any]] = [*files.read_csv(table)] if table.exists() else []
        done = len(rows) // len(changes)
        batches = [
            changes[first : first + self._batch]
            for first in range(0, len(changes), self._batch)
        ]
        costs = [self._flops(images[0])] * (len(batches) * len(images))
        with Progress(costs, len(batches) * done) as progress:
            for i, image in enumerate(images[done:], done):
                for step, batch in enumerate(batches, i * len(batches) + 1):
                    rows += self._rows(image, batch)
                    progress.show(step, image.name)
                    if progress.interrupted:
                        return
                files.write_csv(table, [*header, "probability"], rows)

    def _rows(
        self, image: LabeledImage, changes: Sequence[tuple[str, float]]
    ) -> Iterator[list[Any]]:
        original = to_image(image.pixels)
        batch = np.zeros((1 + self._batch, *image.pixels.shape), np.uint8)
        batch[0] = np.asarray(original)
        for i, change in enumerate(changes, 1):
            batch[i] = np.asarray(transformed(original, *change))
        distances, lengths, probabilities = map(
            np.asarray, self._compare(self._params, batch, image.label)
        )
        # A layer that is all 0 has no length to compare with.
        relative = distances / np.where(lengths > 0, lengths, np.nan)[:, None]
        for i, change in enumerate(changes):
            pairs = np.stack([distances[:, i], relative[:, i]], 1).ravel()
            yield [image.name, *change, *pairs, probabilities[i]]

    def _flops(self, image: LabeledImage) -> float:
        blank = np.zeros((1 + self._batch, *image.pixels.shape), np.uint8)
        return devices.flops(self._compare, self._params, blank, 0)


def read(table: pathlib.Path, size: int) -> dict[str, Curves]:
    """Reads the table of a study.

    Args:
        table: The CSV file.
        size: Side of the images, in pixels.

    Returns:
        Transformation to its curves.
    """
    rows = [[float(x or "nan") for x in row[2:]] for row in files.read_csv(table)]
    values = amounts(size)
    ends = np.cumsum([len(x) for x in values.values()])
    numbers = np.reshape(rows, (-1, ends[-1], len(rows[0]))).transpose(2, 0, 1)
    parts = np.split(numbers, ends[:-1], axis=2)
    return {
        name: Curves(values[name], part[2:-1:2], part[-1])
        for name, part in zip(values, parts, strict=True)
    }


def mean_change(curves: Curves, amount: float) -> np.ndarray:
    """Averages the relative distances over images, and over both signs of an amount.

    Returns:
        `[layers]`.
    """
    return curves.relative[..., np.abs(curves.amounts) == amount].mean((1, 2))


def summary(layers: Sequence[str], curves: Mapping[str, Curves]) -> str:
    """Tells what the smallest and the largest translations do, on average."""
    moved, parts = curves["translation"], []
    for pixels in np.unique(np.abs(moved.amounts))[[1, -1]]:
        changes = zip(layers, mean_change(moved, pixels), strict=True)
        listed = " and ".join(f"{layer} by {change:.0%}" for layer, change in changes)
        parts.append(f"moved by {pixels:.0f} px, {listed}")
    count = len(moved.probability)
    return f"{'; '.join(parts)} of its length (mean of {count} images)"
