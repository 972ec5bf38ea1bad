"""Attributions of top-activating patches: which pixels of a patch activated a unit.

A unit's activation depends on its receptive field alone, so it is attributed to a window
of the image that holds the field rather than to the whole image.
"""

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from nstvis import attribution, devices, images
from nstvis.hoisting import hoisted
from nstvis.models import Forward, Params
from nstvis.units.patches import Images, crop, drawn_side, fitted
from nstvis.units.receptive_fields import Fields
from nstvis.units.table import Layer, RankedPatches

OUTSIDE = 63  # grey of what is outside of the image or of the field

# From (images, units, positions) to attributions and activations.
_Attribute = Callable[..., tuple[Array, Array]]


class _Windows(NamedTuple):
    """Attributions to windows of images, one for each patch."""

    # Row and column of the image at which each window begins, `[n, 2]`.
    corners: np.ndarray
    # The attributions, around 0, `[n, side, side, 3]`.
    pixels: np.ndarray
    # The units' activations for the windows, `[n]`.
    scores: np.ndarray


class _Part(NamedTuple):
    """What a patch is attributed."""

    unit: int
    rank: int
    # Of a window, around 0, `[side, side, 3]`.
    pixels: np.ndarray
    # The receptive field in the window, and which of its rows and columns matter.
    box: np.ndarray
    rows: np.ndarray
    columns: np.ndarray


def project(
    network: Forward,
    params: Params,
    name: str,
    layer: Layer,
    fields: Fields,
    pictures: Images,
    batch: int,
    first: int = 0,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Attributes the activations of a layer's top-activating patches to their pixels.

    Args:
        network: From `attribution.ruled`.
        params: Its parameters.
        name: The layer's.
        layer: With the patches that are wanted in `top`.
        fields: The layer's receptive fields.
        pictures: Where the images are.
        batch: Whole images that are attributed to together; of windows, as many more as
            they are smaller.
        first: The unit to begin with: with the whole batch that holds its first patch,
            as rounding may depend on a patch's place in its batch.

    Yields:
        Units `[n]`, ranks `[n]`, and their attributions as `patches.pick` draws patches,
        uint8 `[n, side, side, 3]`: `images.GREY` where a pixel does not matter, in full
        contrast where it is among the one in a hundred of all the unit's that matter
        most, `OUTSIDE` where there is none. All patches of a unit together.
    """
    units, ranks = np.nonzero(layer.top.image >= 0)
    small = _side(network, params, layer, fields, pictures.size)
    count = min(len(units), batch * (pictures.size // small) ** 2)
    side = drawn_side(layer, fields)

    attribute = _attributing(network, params, name, count)
    parts: list[_Part] = []
    begun = int(np.searchsorted(units, first)) // max(1, count)
    for start in range(begun * count, len(units), max(1, count)):
        some = slice(start, start + count)
        # The last batch repeats its last patch: one program takes one shape.
        padded = np.minimum(np.arange(start, start + count), len(units) - 1)
        unit, patches = units[padded], _flat(layer.top, units[padded], ranks[padded])
        through = functools.partial(
            _through_windows, attribute, unit, patches, pictures, fields.stride
        )
        windows = through(small)
        if not _agree(windows.scores, patches.score):
            # A network that is not the same at every place of the image.
            windows = through(pictures.size)
        for i, support in enumerate(_supports(fields, units[some], patches)):
            place = units[some][i], ranks[some][i]
            parts.append(_part(*place, windows, i, patches.box[i], support))
        ended = start + count >= len(units)
        done = [part for part in parts if ended or part.unit != parts[-1].unit]
        parts = parts[len(done) :]
        if done:
            yield _drawn(done, side)


def _attributing(
    network: Forward, params: Params, name: str, count: int
) -> Callable[[int], _Attribute]:
    """Returns the function from a side of windows to their program, `count` at once."""

    @functools.cache
    def attribute(side: int) -> _Attribute:
        shapes, structure = jax.tree.flatten(jax.eval_shape(lambda x: x, params))
        images = jax.ShapeDtypeStruct((count, side, side, 3), jnp.float32)
        prepare, attribute = _compiled(network, name, images, structure, *shapes)
        return functools.partial(attribute, prepare(params))

    return attribute


def cost(
    network: Forward,
    params: Params,
    name: str,
    layer: Layer,
    fields: Fields,
    size: int,
) -> float:
    """Returns the floating-point operations of a forward pass for one patch's window.

    The arguments are those of `project`.
    """
    side = _side(network, params, layer, fields, size)
    image = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return devices.flops(jax.jit(lambda *x: network(*x)[name]), params, image)


def _side(
    network: Forward, params: Params, layer: Layer, fields: Fields, size: int
) -> int:
    """Returns the side of the windows that hold the fields of a layer's units."""
    field = max(max(fields.size(unit)) for unit in range(len(layer.mean)))
    return window(network, params, field, fields.stride, size)


def _flat(top: RankedPatches, units: np.ndarray, ranks: np.ndarray) -> RankedPatches:
    """Returns the patches of those units and ranks in a row."""
    where = units, ranks
    return RankedPatches(
        score=top.score[where],
        image=top.image[where],
        position=top.position[where],
        box=top.box[where],
    )


def _agree(scores: np.ndarray, recorded: np.ndarray) -> bool:
    largest = np.abs(recorded).max()
    return np.allclose(scores, recorded, rtol=1e-3, atol=1e-3 * largest)


def _supports(
    fields: Fields, units: np.ndarray, patches: RankedPatches
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields which rows and columns matter to each of the units, at its patch."""
    for unit, position in zip(units, patches.position, strict=False):
        yield fields.support(unit, *position)


def _through_windows(
    attribute: Callable[[int], _Attribute],
    units: np.ndarray,
    patches: RankedPatches,
    pictures: Images,
    stride: int,
    side: int,
) -> _Windows:
    """Attributes patches' activations to windows of `side` pixels that hold the fields.

    Windows begin at multiples of the stride, at which the network is the same: what is
    at some position for the image is as many positions earlier for the window.
    """
    stride = max(1, stride)
    corners = patches.box[:, :2] // stride * stride
    corners = np.clip(corners, 0, pictures.size - side)
    pixels = [
        pictures[image][top : top + side, left : left + side]
        for image, (top, left) in zip(patches.image, corners, strict=True)
    ]
    positions = patches.position - corners // stride
    attributed = attribute(side)(np.stack(pixels), units, positions)
    return _Windows(corners, *map(np.asarray, attributed))


@functools.lru_cache(2)
def _compiled(
    network: Forward,
    layer: str,
    images: jax.ShapeDtypeStruct,
    structure: Any,
    *params: jax.ShapeDtypeStruct,
) -> tuple[Callable[[Params], Any], Callable[..., tuple[Array, Array]]]:
    """Returns what prepares a network for images of a shape, and what attributes to them.

    Kept for weights of the same shapes, such as those of another epoch.
    """

    def of_layer(params: Params, images: Array) -> dict[str, Array]:
        return {layer: network(params, images)[layer]}

    prepare, seen = hoisted(of_layer, jax.tree.unflatten(structure, params), images)

    def attribute(
        prepared: Any, images: Array, units: Array, positions: Array
    ) -> tuple[Array, Array]:
        images = images.astype(jnp.float32)
        return attribution.attribute(seen, prepared, layer, images, units, positions)

    options = devices.compile_options()
    return prepare, jax.jit(attribute, compiler_options=options)


def window(network: Forward, params: Params, field: int, stride: int, size: int) -> int:
    """Returns the side of a window that holds a field anywhere in an image of `size`.

    Windows begin at multiples of the stride, and the last one ends where the image ends.
    It is larger than it need be where deeper layers take no image that small, and the
    whole image where the field is larger than that.
    """
    side = field + stride - 1
    while stride and side < size:
        side += (size - side) % stride
        part = jax.ShapeDtypeStruct((1, side, side, 3), "float32")
        try:
            jax.eval_shape(network, params, part)
        except Exception:  # noqa: BLE001 - whatever a network of one's own raises
            side = side * 3 // 2
        else:
            return side
    return size


def _part(
    unit: int,
    rank: int,
    windows: _Windows,
    index: int,
    box: np.ndarray,
    support: tuple[np.ndarray, np.ndarray],
) -> _Part:
    pixels, corner = windows.pixels[index], windows.corners[index]
    height, width = pixels.shape[:2]
    rows = support[0][corner[0] :][:height]
    columns = support[1][corner[1] :][:width]
    return _Part(unit, rank, pixels, box - np.tile(corner, 2), rows, columns)


def _drawn(
    parts: Sequence[_Part], side: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Crops the attributions of whole units, in uint8 around grey.

    Returns:
        Units `[n]`, ranks `[n]`, and `[n, side, side, 3]`.
    """
    drawn = []
    for _, group in itertools.groupby(parts, lambda part: part.unit):
        unit = list(group)
        sizes = [np.abs(x.pixels[x.rows][:, x.columns]).ravel() for x in unit]
        every = np.concatenate(sizes)
        largest = np.quantile(every, 0.99) if every.size else 0
        for x in unit:
            scaled = np.clip(x.pixels / max(largest, 1e-30), -1, 1)
            picture = np.rint(images.GREY * (1 + scaled)).astype(np.uint8)
            cell = crop(picture, x.box.tolist(), x.rows, x.columns, OUTSIDE)
            drawn.append(fitted(cell, side, OUTSIDE))
    units, ranks = np.array([[x.unit, x.rank] for x in parts]).T
    return units, ranks, np.stack(drawn)
