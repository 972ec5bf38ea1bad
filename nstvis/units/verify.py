"""Verifies a scan: top-activating patches are what their images give, fetched again."""

import functools
import pathlib
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from nstvis.models import Forward, Params
from nstvis.runs.files import write_text
from nstvis.runs.progress import track
from nstvis.units import maxima
from nstvis.units.patches import Images


class _Claims(NamedTuple):
    """Activations that a scan recorded, sorted by image; each `[claims]`."""

    image: np.ndarray
    # Row * width + column in the layer's map.
    position: np.ndarray
    # Number of the unit among those of all layers.
    unit: np.ndarray
    score: np.ndarray


def verify(
    forward: Forward,
    params: Params,
    layers: Mapping[str, int],
    best: maxima.Best,
    pictures: Images,
    batch: int,
    note: pathlib.Path | None = None,
) -> int:
    """Recomputes the activations of top-activating patches from their images.

    Args:
        forward: The network.
        params: Its parameters.
        layers: Layer to number of units.
        best: The patches, `[n, units]`, in NumPy.
        pictures: Where the images are.
        batch: Images in a batch.
        note: A file for the number of the batches that are verified: after an
            interruption, the others are.

    Returns:
        How many images were verified.

    Raises:
        ValueError: An activation is not what was recorded, within rounding.
        Interrupted: By a signal, between two batches.
    """
    claims = _claims(best)
    images, order = np.unique(claims.image, return_inverse=True)
    if not len(images):
        return 0
    compute = jax.jit(functools.partial(_activations, forward, layers))
    # Rounding is relative to a unit's largest activation.
    largest = np.abs(np.where(np.isfinite(best.score), best.score, 0)).max(0)
    tolerance = 1e-4 * largest + 1e-6
    starts = range(0, len(images), batch)
    borders = np.searchsorted(order, [*starts, len(images)])
    # All batches are of one shape, so that one program is compiled.
    count = int(np.diff(borders).max())
    blank = np.zeros_like(pictures[images[0]])
    done = int(note.read_text()) if note and note.exists() else 0
    rest = list(enumerate(starts))[done:]
    for number, start in track(rest, len(starts), "verifying", done=done):
        part = slice(*borders[number : number + 2])
        mine = _Claims(*(array[part] for array in claims))
        pixels = [pictures[i] for i in images[start : start + batch]]
        pixels += [blank] * (batch - len(pixels))
        places = [order[part] - start, mine.position, mine.unit]
        filled = [np.resize(place, count).astype(np.int32) for place in places]
        scores = np.asarray(compute(params, np.stack(pixels), *filled))
        _refuse_wrong(mine, scores[: len(mine.score)], tolerance, layers, pictures)
        if note:
            write_text(note, str(number + 1))
    return len(images)


def _claims(best: maxima.Best) -> _Claims:
    """Returns what was recorded, without the places where there are too few images."""
    rank, unit = np.nonzero(best.image != maxima.SENTINEL)
    order = np.argsort(best.image[rank, unit], kind="stable")
    rank, unit = rank[order], unit[order]
    image, position, score = (
        part[rank, unit] for part in (best.image, best.position, best.score)
    )
    return _Claims(image, position, unit, score)


def _activations(
    forward: Forward,
    layers: Mapping[str, int],
    params: Params,
    images: Array,
    rows: Array,
    positions: Array,
    units: Array,
) -> Array:
    """Computes single activations, `[claims]`.

    Args:
        forward: The network.
        layers: Layer to number of units.
        params: The network's parameters.
        images: `[batch, height, width, 3]`.
        rows: Which of the images, `[claims]`.
        positions: Where in the layer's map, `[claims]`.
        units: Numbers among the units of all layers, `[claims]`.
    """
    activations = forward(params, images.astype(jnp.float32))
    scores, first = jnp.zeros(rows.shape), 0
    for name, count in layers.items():
        x = activations[name].reshape(len(images), -1, count)
        here = (units >= first) & (units < first + count)
        # Claims of other layers may point outside of this one, where JAX clamps them.
        scores = jnp.where(here, x[rows, positions, units - first], scores)
        first += count
    return scores


def _refuse_wrong(
    claims: _Claims,
    scores: np.ndarray,
    tolerance: np.ndarray,
    layers: Mapping[str, int],
    pictures: Images,
) -> None:
    error = np.abs(scores - claims.score)
    wrong = np.flatnonzero(~(error <= tolerance[claims.unit]))  # NaN is wrong
    if not len(wrong):
        return
    first = wrong[0]
    layer, number = unit_name(layers, int(claims.unit[first]))
    raise ValueError(
        f"{layer}:{number} was {claims.score[first]:.6g} for"
        f" {pictures.id(int(claims.image[first]))} and is {scores[first]:.6g}"
        " now: the network is not a function of the image alone, or the data set has"
        " changed"
    )


def unit_name(layers: Mapping[str, int], unit: int) -> tuple[str, int]:
    """Returns the layer, and the number in it, of a unit among those of all layers."""
    for name, units in layers.items():
        if unit < units:
            return name, unit
        unit -= units
    raise IndexError(unit)
