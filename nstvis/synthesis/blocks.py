"""Pictures cut into blocks, whose sums over positions and gradients are exact.

An objective is a function of sums over the positions of layers, as Gram matrices are:
J = f(sum over blocks b of s(b)), where s(b) are the sums over the positions that block b
owns. A first pass adds up s; the gradient of f is the cotangent of all s; a second pass
goes back through each block with it, and adds what it finds to the picture's gradient.

A block is larger than what it owns by half a receptive field on all sides, as the
positions that it owns must see what they see in the whole picture. Blocks start at
multiples of the network's stride, and their size is the picture's modulo that stride, so
that windows and zero padding lie where they do in the whole picture. All have one shape,
and so one program.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from nstvis import models
from nstvis.synthesis.losses import total_variation
from nstvis.units.receptive_fields import receptive_fields

SIDE = 512  # of a picture in which a layer's fields are as in any larger one
FAR = 2**30  # beyond any picture


class Field(NamedTuple):
    """What the positions of a layer see along one axis, in pixels.

    Attributes:
        step: From a position to the next.
        before: Pixels before the one at `step` times the position.
        end: Pixels from that one on, itself included.
    """

    step: int
    before: int
    end: int


# By layer, of rows and of columns.
Fields = Mapping[str, tuple[Field, Field]]


class Block(NamedTuple):
    """A block, or several along a first axis; each array has a row and a column.

    Attributes:
        start: Its first pixel, `[..., 2]`.
        first: The first that it owns.
        end: The one after the last that it owns.
    """

    start: Any
    first: Any
    end: Any

    def moved(self, rows: Array) -> "Block":
        """Returns the same blocks of a picture that begins so many rows higher."""
        by = jnp.stack([rows, jnp.int32(0)])
        return Block(*(x + by[None] for x in self))

    def owned(self, fields: tuple[Field, Field], shape: tuple[int, ...]) -> Array:
        """Returns 1 for the positions of a map that one block owns, and 0 for others.

        Args:
            fields: Of the map's layer.
            shape: Height and width of the map.
        """
        rows, columns = (
            (places >= self.first[axis]) & (places < self.end[axis])
            for axis, (field, length) in enumerate(zip(fields, shape, strict=True))
            for places in [self.start[axis] + field.step * jnp.arange(length)]
        )
        return (rows[:, None] & columns[None]).astype(jnp.float32)


def layer_fields(
    forward: models.Forward, params: models.Params, layers: Iterable[str]
) -> Fields:
    """Derives what layers see.

    Raises:
        ValueError: A layer sees the whole picture.
    """
    found = receptive_fields(forward, params, SIDE, SIDE)
    channels = models.units(forward, params, SIDE)
    result = {}
    for name in layers:
        if not found[name].stride:
            raise ValueError(
                f"{name} sees the whole picture, which cannot be painted in blocks: give"
                " block=0, or leave that layer out"
            )
        each = np.arange(channels[name])
        here, there = (
            found[name].boxes(each, np.full((len(each), 2), i)) for i in (0, 1)
        )
        steps, befores, ends = there - here, -here.min(0), here.max(0)
        rows, columns = (
            Field(int(steps[0, i]), int(befores[i]), int(ends[i + 2])) for i in (0, 1)
        )
        result[name] = rows, columns
    return result


class Grid(NamedTuple):
    """The blocks of a picture.

    Attributes:
        size: Height and width of each, in pixels.
        owned: The most of these that one owns.
        blocks: All of them, row by row, in NumPy's arrays `[blocks, 2]`.
        fields: Of the layers whose positions they own.
    """

    size: tuple[int, int]
    owned: tuple[int, int]
    blocks: Block
    fields: Fields

    def most_owned(self, layer: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns the most rows and columns of a layer's map, of `shape`, that any owns."""
        most = []
        for i, (field, length) in enumerate(
            zip(self.fields[layer], shape, strict=True)
        ):
            beyond = max(0, length - -(-self.size[i] // field.step))  # of padded layers
            most.append(min(length, -(-self.owned[i] // field.step) + beyond))
        return tuple(most)


def counts(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Returns the rows and columns of blocks that own squares of about a side.

    Args:
        size: Height and width of the picture, in pixels.
        side: Of the squares; 0 for a single block.
    """
    height, width = size
    return (-(-height // side), -(-width // side)) if side else (1, 1)


def cut(size: tuple[int, int], counts: tuple[int, int], fields: Fields) -> Grid:
    """Cuts a picture into blocks that own about as much as one another.

    Args:
        size: Height and width of the picture, in pixels.
        counts: Rows and columns of blocks.
        fields: Of all layers that are looked at.
    """
    axes = [
        _cut(length, count, [both[axis] for both in fields.values()])
        for axis, (length, count) in enumerate(zip(size, counts, strict=True))
    ]
    (height, *rows), (width, *columns) = axes
    pairs = (np.meshgrid(*x, indexing="ij") for x in zip(rows, columns, strict=True))
    blocks = (np.stack([x.ravel() for x in both], -1, dtype=np.int32) for both in pairs)
    found = Block(*blocks)
    within = np.minimum(found.end, found.start + [height, width]) - found.first
    most_rows, most_columns = within.max(0).tolist()
    return Grid((height, width), (most_rows, most_columns), found, fields)


def _cut(length: int, count: int, fields: Sequence[Field]) -> tuple:
    """Cuts an axis; returns the blocks' length, and what `Block` has of all of them."""
    stride = math.lcm(*(field.step for field in fields))
    edges = stride * (np.arange(count + 1) * -(-length // stride) // count)
    before = max(field.before for field in fields)
    # At least the next pixel, for the total variation.
    after = max(1, *(field.end - field.step for field in fields))
    size = int(np.diff(edges).max()) + before + after + stride - 1
    size = min(length, size + (length - size) % stride)
    starts = np.clip((edges[:-1] - before) // stride * stride, 0, length - size)
    # The last one owns whatever comes, as padded layers may exceed the picture.
    return size, starts, edges[:-1], np.append(edges[1:-1], FAR)


def piece(picture: Array, block: Block, size: tuple[int, int]) -> Array:
    """Takes a block, `[1, *size, channels]`, from a picture."""
    row, column = block.start
    shape = 1, *size, picture.shape[-1]
    return lax.dynamic_slice(picture, (0, row, column, 0), shape)


# From a block's pixels, the block, what is its own and what is common to all.
OfBlock = Callable[[Array, Any, Any, Any], Any]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def summed(
    sums: OfBlock,
    size: tuple[int, int],
    picture: Array,
    blocks: Block,
    each: Any,
    common: Any,
) -> Any:
    """Adds up sums over all blocks. Only the picture has a gradient.

    Args:
        sums: Sums over what a block owns, nested in any way.
        size: Height and width of the blocks, in pixels.
        picture: `[1, height, width, channels]`.
        blocks: All of them.
        each: Arrays with what belongs to each block along the first axis.
        common: Arrays that all blocks share.
    """

    def of_block(own: tuple[Block, Any]) -> Any:
        block, its = own
        return sums(piece(picture, block, size), block, its, common)

    def add(total: Any, own: tuple[Block, Any]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, of_block(own)), None

    first = jax.tree.map(lambda x: jnp.asarray(x)[0], (blocks, each))
    shapes = jax.eval_shape(of_block, first)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return lax.scan(add, zeros, (blocks, each))[0]


def _summed_forward(sums, size, picture, blocks, each, common):
    found = summed(sums, size, picture, blocks, each, common)
    return found, (picture, blocks, each, common)


def _summed_backward(sums, size, residuals, cotangent):
    """Goes through all blocks again, as nothing but the picture was kept."""
    picture, blocks, each, common = residuals

    def add(gradient: Array, own: tuple[Block, Any]) -> tuple[Array, None]:
        block, its = own
        pixels = piece(picture, block, size)
        _, pull = jax.vjp(lambda pixels: sums(pixels, block, its, common), pixels)
        place = (0, *block.start, 0)
        here = lax.dynamic_slice(gradient, place, pixels.shape) + pull(cotangent)[0]
        return lax.dynamic_update_slice(gradient, here, place), None

    gradient = lax.scan(add, jnp.zeros_like(picture), (blocks, each))[0]
    return gradient, None, None, None


summed.defvjp(_summed_forward, _summed_backward)


def mapped(
    function: OfBlock,
    size: tuple[int, int],
    picture: Array,
    blocks: Block,
    common: Any,
) -> Any:
    """Returns what a function returns of each block, stacked."""
    return lax.map(
        lambda block: function(piece(picture, block, size), block, None, common), blocks
    )


def own_variation(pixels: Array, block: Block, power: int) -> Array:
    """Computes the total variation of what a block owns, from its pixels."""
    pixel = Field(1, 0, 1), Field(1, 0, 1)
    return total_variation(pixels, power, block.owned(pixel, pixels.shape[1:3]))


def variation(
    size: tuple[int, int], picture: Array, blocks: Block, power: int
) -> Array:
    """Computes a picture's total variation block by block, in little memory."""

    def sums(pixels: Array, block: Block, _: Any, __: Any) -> Array:
        return own_variation(pixels, block, power)

    return summed(sums, size, picture, blocks, (), ())
