"""Profiles of units: what they have in common, in one network or in two.

Units are alike if they are active for the same things. The similarity of two is the mean
of

    the correlation of their activations, averaged over each class's images (-1 to 1), and
    the overlap of their top images: those in common, of all that are either's (0 to 1);

or the correlation alone, over single images, where units' responses to the same images
are known, as Li et al. 2016 (arXiv:1511.07543) match units of two networks. Without
classes it is the overlap alone.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from scipy import sparse

from nstvis.units.measurements import Layer

_ROWS = 256  # units that are compared with all others at once


@dataclasses.dataclass(frozen=True)
class Profiles:
    """The profiles of all units of some layers, in a row."""

    # Layer to where its units are.
    places: Mapping[str, slice]
    # float32 [units, classes or images], of mean 0 and length 1 for each unit, or 0.
    vectors: np.ndarray
    # Whether an image is among a unit's top, sparse [units, images]; None if unknown.
    top: Any = None

    def names(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the layers, <U, and units of numbers in the row; "" and -1 for -1."""
        counts = [place.stop - place.start for place in self.places.values()]
        layer = np.repeat([*self.places], counts)[numbers]
        unit = np.concatenate([*map(np.arange, counts)])[numbers]
        missing = numbers < 0
        return np.where(missing, "", layer), np.where(missing, -1, unit).astype(
            np.int32
        )


def of_layers(layers: Mapping[str, Layer]) -> Profiles:
    """Returns profiles of class means and top images."""
    means = np.concatenate([layer.class_mean for layer in layers.values()])
    image = np.concatenate([_activated(layer) for layer in layers.values()])
    unit, rank = np.nonzero(image >= 0)
    where, shape = (unit, image[unit, rank]), (len(means), 1 + max(image.max(), 0))
    top = sparse.csr_array((np.ones(len(unit), np.float32), where), shape)
    top.data[:] = 1  # an image may be there twice
    known = ~np.isnan(means).any(0)  # classes that have images
    counts = {name: len(layer.mean) for name, layer in layers.items()}
    return Profiles(_places(counts), _standardized(means[:, known]), top)


def _activated(layer: Layer) -> np.ndarray:
    """Returns the images that do activate a unit, -1 elsewhere.

    Where few do, a ReLU's other top images are at 0, and merely the first ones of many;
    a logit's may be below.
    """
    return np.where(layer.top.score != 0, layer.top.image, -1)


def of_responses(scores: Mapping[str, np.ndarray]) -> Profiles:
    """Returns profiles of activations for single images, by layer `[images, units]`."""
    vectors = [_standardized(np.transpose(x)) for x in scores.values()]
    counts = {name: x.shape[1] for name, x in scores.items()}
    return Profiles(_places(counts), np.concatenate(vectors))


def _places(counts: Mapping[str, int]) -> dict[str, slice]:
    ends = np.cumsum([0, *counts.values()]).tolist()
    return {name: slice(*ends[i : i + 2]) for i, name in enumerate(counts)}


def _standardized(x: np.ndarray) -> np.ndarray:
    """Gives rows a mean of 0 and a length of 1, or 0 if they are constant."""
    result = np.zeros(x.shape, np.float32)
    for start in range(0, len(x) if x.shape[1] else 0, _ROWS):
        part = x[start : start + _ROWS].astype(np.float64)
        largest = np.abs(part).max(1, keepdims=True)
        part -= part.mean(1, keepdims=True)
        length = np.sqrt((part**2).sum(1, keepdims=True))
        differs = length > 1e-6 * largest
        result[start : start + _ROWS] = part * differs / np.where(differs, length, 1)
    return result


def similarities(
    a: Profiles, b: Profiles, rows: slice, columns: slice
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields how similar units are to others, part by part.

    Args:
        a: Units.
        b: Others, for the same classes or images.
        rows: Which of the units.
        columns: Which of the others.

    Yields:
        Which of the units, and float32 `[part, columns]`, -1 to 1.
    """
    others = b.vectors[columns]
    for start in range(rows.start, rows.stop, _ROWS):
        part = slice(start, min(start + _ROWS, rows.stop))
        correlation = a.vectors[part] @ others.T
        if a.top is None or b.top is None:
            yield part, correlation
        elif not others.shape[1]:
            yield part, _overlap(a.top[part], b.top[columns])
        else:
            yield part, (correlation + _overlap(a.top[part], b.top[columns])) / 2


def _overlap(a: Any, b: Any) -> np.ndarray:
    """Returns the shares of images in common, `[units, others]`; 0 without any."""
    width = min(a.shape[1], b.shape[1])  # of the images that either may have
    common = (a[:, :width] @ b[:, :width].T).toarray()
    either = a.sum(1)[:, None] + b.sum(1)[None] - common
    return common / np.maximum(either, 1)
