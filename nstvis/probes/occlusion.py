"""Occlusion: what a network says of an image while a grey square hides a part of it.

Zeiler & Fergus 2013 (arXiv:1311.2901), section 4.2 and Figure 7: where the square makes
the probability of a class drop is what the network knew the class by.

    look = jax.jit(functools.partial(occlusion.look, forward, "conv5", 14))
    for done, maps in occlusion.slide(look, params, image, unit, label, stride=2):
        ...
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from nstvis.layers import MEAN_COLOR
from nstvis.models import Forward, Params


class Seen(NamedTuple):
    """What is seen with the square at each place: arrays of one shape, JAX or NumPy."""

    # Sum of one unit's map, float32.
    activity: Any
    # Of one class, 0..1, float32.
    probability: Any
    # The class of the highest logit, int32.
    first: Any


def centres(length: int, stride: int) -> np.ndarray:
    """Pixels `stride` apart along a side, as far from its one end as from the other."""
    count = 1 + (length - 1) // stride
    margin = length - 1 - (count - 1) * stride
    return margin // 2 + stride * np.arange(count)


def hidden(image: Array | np.ndarray, places: Array | np.ndarray, square: int) -> Array:
    """Copies of an image, each with a grey square.

    Args:
        image: `[height, width, 3]`, RGB 0..255.
        places: int `[n, 2]`, row and column of the squares' middle pixels, of two in the
            middle the second. A square may hang over the border.
        square: Their side, in pixels.

    Returns:
        `[n, height, width, 3]`.

    Raises:
        ValueError: The square is larger than the image, or nothing.
    """
    height, width, _ = image.shape
    if not 1 <= square <= min(height, width):
        raise ValueError(
            f"square={square} should be 1 to {min(height, width)} pixels, for an image"
            f" of {height} x {width}"
        )
    covered = []
    for axis, length in enumerate((height, width)):
        distance = jnp.arange(length)[None] - places[:, axis, None] + square // 2
        covered.append((distance >= 0) & (distance < square))
    rows, columns = covered
    inside = rows[:, :, None, None] & columns[:, None, :, None]
    return jnp.where(inside, MEAN_COLOR[None, None, None], image[None])


def look(
    forward: Forward,
    layer: str,
    square: int,
    params: Params,
    image: Array,
    places: Array,
    unit: Array,
    label: Array,
) -> Seen:
    """Looks at an image with the square at each of several places.

    Args:
        forward: The network; the last of its activations are the logits.
        layer: The unit's.
        square: Side of the square, in pixels.
        params: The network's parameters.
        image: float32 `[height, width, 3]`, RGB 0..255.
        places: int `[n, 2]`, as of `hidden`.
        unit: A channel of the layer.
        label: The class whose probability is wanted.

    Returns:
        Arrays `[n]`.
    """
    activations = forward(params, hidden(image, places, square))
    logits = list(activations.values())[-1]
    own = activations[layer][..., unit]
    activity = own.reshape(len(own), -1).sum(1)
    return Seen(activity, jax.nn.softmax(logits)[:, label], logits.argmax(1))


def slide(
    look: Callable[..., Seen],
    params: Params,
    image: np.ndarray,
    unit: int,
    label: int,
    *,
    stride: int,
    batch: int = 64,
) -> Iterator[tuple[int, Seen]]:
    """Slides the square over an image; its middle comes to all `centres` of both sides.

    Args:
        look: The function of that name with the first three arguments given, compiled.
        params: The network's parameters.
        image: float32 `[height, width, 3]`, RGB 0..255.
        unit: A channel of the layer.
        label: The class whose probability is wanted.
        stride: Pixels from one place to the next.
        batch: Places that are looked at at once.

    Yields:
        After each batch: how many places are done, and the maps `[rows, columns]`, the
        same arrays each time, 0 where that is still to come.
    """
    sides = [centres(length, stride) for length in image.shape[:2]]
    places = np.stack(np.meshgrid(*sides, indexing="ij"), -1).reshape(-1, 2)
    shape, total = [len(side) for side in sides], len(places)
    types = (np.float32, np.float32, np.int32)
    maps = Seen(*(np.zeros(shape, dtype) for dtype in types))
    for first in range(0, total, batch):
        some = places[first : first + batch]
        padded = np.resize(some, (batch, 2))  # of one shape, so of one program
        found = look(params, image, padded, unit, label)
        for whole, part in zip(maps, found):
            whole.flat[first : first + len(some)] = part[: len(some)]
        yield first + len(some), maps
