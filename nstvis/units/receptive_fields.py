"""Receptive fields: what every unit sees of an image, derived from the network itself.

The jaxpr of `forward` is walked twice: for the rows of the image and for its columns.
Each array on the way has a `Reach`, what its elements depend on, and a rule for each
primitive says how a result's reach follows from the operands' (see `reach`).

Where a primitive without a rule mixes elements, all of them depend on whatever any
operand depends on, and their field is the whole image: never too few pixels. The field is
the whole image, too, after sums over space, upsampling, and a reordering of positions.
Values are not looked at: a weight of 0 is a weight. A support that is no rectangle, as of
a sum of a wide and a high convolution, counts as the rectangle around it.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.extend.core import Jaxpr, JaxprEqn, Literal, jaxprs_in_params

from nstvis.models import Forward, Params
from nstvis.units.reach import (
    Reach,
    Shape,
    arranged,
    joined,
    merged,
    nothing,
    pixels,
    slid_along_all,
    union,
    whole,
)


def receptive_fields(
    forward: Forward, params: Params, height: int, width: int
) -> dict[str, "Fields"]:
    """Derives the receptive fields of all layers, without computing an activation.

    Args:
        forward: The network; activations are `[batch, height, width, channels]` or
            `[batch, channels]`.
        params: Its parameters, or their shapes.
        height: Of the images, in pixels.
        width: Of the images, in pixels.

    Returns:
        Layer to fields, in the network's order.

    Raises:
        ValueError: Branches meet whose fields move by different strides.
    """
    names: list[str] = []

    def trace(params: Params, images: Array) -> list[Array]:
        activations = forward(params, images)
        names[:] = activations  # here, as JAX returns dicts sorted by key
        return list(activations.values())

    image = jax.ShapeDtypeStruct((1, height, width, 3), "float32")
    # Not Winograd's convolutions, whose tiles depend on more than their result does.
    with jax.default_matmul_precision("highest"):
        program = jax.make_jaxpr(trace)(params, image)
    weights = [*map(nothing, _shapes(program.jaxpr.invars[:-1]))]
    reaches = [
        _walk(program.jaxpr, [*weights, pixels(axis, length)])
        for axis, length in ((1, height), (2, width))
    ]
    layers = zip(names, _shapes(program.jaxpr.outvars), *reaches, strict=True)
    return {name: Fields(both, shape, image.shape) for name, shape, *both in layers}


class Fields:
    """The receptive fields of a layer's units.

    Attributes:
        columns: Width of the layer's map; 1 for dense layers.
    """

    def __init__(self, reaches: Iterable[Reach], shape: Shape, image: Shape):
        order = range(4) if len(shape) == 4 else (0, None, None, 1)
        self._reaches = [arranged(reach, order) for reach in reaches]
        self._image = image[1:3]
        self.columns = shape[2] if len(shape) == 4 else 1

    @property
    def stride(self) -> int:
        """Pixels from a field to the next; 0 where each is the whole image.

        The larger number where rows and columns differ.
        """
        return max(max(reach.step) for reach in self._reaches)

    def size(self, channel: int) -> tuple[int, int]:
        """Returns the height and width of a unit's field, in pixels."""
        top, left, bottom, right = self.boxes(np.array(channel), np.zeros(2, int))
        return int(bottom - top), int(right - left)

    def visible_size(self, channel: int) -> tuple[int, int]:
        """Returns the same, but no more than the image's own height and width."""
        height, width = np.minimum(self.size(channel), self._image)
        return int(height), int(width)

    def boxes(self, channels: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Returns the fields of units at positions, as if images had no borders.

        Args:
            channels: int [...].
            positions: int [..., 2], row and column in the map; 0, 0 for dense layers.

        Returns:
            int32 [..., 4]: top, left, bottom, right in pixels, the last two exclusive.
            May hang over the border; empty, all 0, where the image does not matter.
        """
        index = np.zeros_like(channels), positions[..., 0], positions[..., 1], channels
        firsts, ends = [], []
        for reach, length in zip(self._reaches, self._image, strict=True):
            before, end = np.moveaxis(_at(reach.bounds, index), -1, 0)
            shift = sum(step * i for step, i in zip(reach.step, index, strict=True))
            firsts.append(np.nan_to_num(shift - before, posinf=0, neginf=0))
            ends.append(np.nan_to_num(shift + end, posinf=length, neginf=0))
        return np.stack([*firsts, *ends], -1).astype(np.int32)

    def support(
        self, channel: int, row: int, column: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns which rows and columns matter, bool [height] and bool [width]."""
        index = 0, row, column, channel
        rows, columns = (_at(reach.seen, index) for reach in self._reaches)
        height, width = self._image
        return np.broadcast_to(rows, height), np.broadcast_to(columns, width)


def _at(array: np.ndarray, index: Sequence[Any]) -> np.ndarray:
    pairs = zip(index, array.shape, strict=False)
    return array[tuple(i if n > 1 else 0 * i for i, n in pairs)]


def _walk(jaxpr: Jaxpr, inputs: Sequence[Reach]) -> list[Reach]:
    known: dict[Any, Reach] = dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> Reach:
        if isinstance(atom, Literal) or atom not in known:
            return nothing(*_shapes([atom]))
        return known[atom]

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        if not all(x.empty for x in operands):
            known.update(zip(eqn.outvars, _results(eqn, operands), strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _shapes(atoms: Sequence[Any]) -> list[Shape]:
    return [atom.aval.shape for atom in atoms]


def _results(eqn: JaxprEqn, xs: list[Reach]) -> list[Reach]:
    name, params = eqn.primitive.name, eqn.params
    shapes, results = map(_shapes, (eqn.invars, eqn.outvars))
    if name in CALLS:
        return _walk(next(iter(jaxprs_in_params(params))), xs)
    if name in JOINS:
        return [JOINS[name](xs, shape, shapes, **params) for shape in results]
    if name in RULES and all(x.empty for x in xs[1:]):
        return [RULES[name](xs[0], shape, *shapes, **params) for shape in results]
    mixed = union([arranged(merged(x, range(len(x.step))), ()) for x in xs])
    return [arranged(mixed, [None] * len(shape)) for shape in results]


def _convolution(x: Reach, out: Shape, own: Shape, kernel: Shape, **params) -> Reach:
    lhs, rhs, result = params["dimension_numbers"]
    x = _grouped(arranged(x, lhs), params["feature_group_count"], out[result[1]])
    x = merged(x, [0]) if params["batch_group_count"] > 1 else x
    after = [out[d] for d in result]
    x = slid_along_all(
        x,
        after,
        [*after[:2], *(own[d] for d in lhs[2:])],
        size=[1, 1, *(kernel[d] for d in rhs[2:])],
        stride=[1, 1, *params["window_strides"]],
        space=[1, 1, *params["rhs_dilation"]],
        low=[0, 0, *(low for low, _ in params["padding"])],
        base=[1, 1, *params["lhs_dilation"]],
    )
    return arranged(x, [result.index(d) for d in range(len(out))])


def _grouped(x: Reach, groups: int, outputs: int) -> Reach:
    """Lets output channels, dimension 1, see all input channels of their group."""
    if groups == 1 or x.step[1]:
        return merged(x, [1])

    def group(a: np.ndarray) -> np.ndarray:
        if a.shape[1] == 1:
            return a
        parts = a.reshape(len(a), groups, -1, *a.shape[2:])
        return parts.max(2).repeat(outputs // groups, 1)

    return Reach(group(x.seen), group(x.bounds), x.step)


def _pooling(x: Reach, out: Shape, own: Shape, *_, **params) -> Reach:
    return slid_along_all(
        x,
        out,
        own,
        size=params["window_dimensions"],
        stride=params["window_strides"],
        space=params["window_dilation"],
        low=[low for low, _ in params["padding"]],
        base=params["base_dilation"],
    )


def _pad(x: Reach, out: Shape, own: Shape, *_, padding_config) -> Reach:
    lows, _, zeros = zip(*padding_config, strict=True)
    return slid_along_all(x, out, own, low=lows, base=[1 + n for n in zeros])


def _slice(x: Reach, out: Shape, own: Shape, *, start_indices, strides, **_) -> Reach:
    strides = strides or [1] * len(own)
    return slid_along_all(x, out, own, stride=strides, low=[-i for i in start_indices])


def _reduce(x: Reach, *_, axes, **__) -> Reach:
    return arranged(merged(x, axes), [d for d in range(len(x.step)) if d not in axes])


def _broadcast(x: Reach, out: Shape, own: Shape, *_, broadcast_dimensions, **__):
    x = merged(x, [d for d, i in enumerate(broadcast_dimensions) if own[d] != out[i]])
    order = {i: d for d, i in enumerate(broadcast_dimensions)}
    return arranged(x, map(order.get, range(len(out))))


def _reshape(x: Reach, out: Shape, own: Shape, **_) -> Reach:
    """Keeps dimensions of the same length with as many elements before them."""
    old, new = ([(math.prod(s[:d]), n) for d, n in enumerate(s)] for s in (own, out))
    order = {key: d for d, key in enumerate(old) if key in new and key[1] > 1}
    x = merged(x, {*range(len(old))} - {*order.values()})
    return arranged(x, map(order.get, new))


def _gather(x: Reach, out: Shape, own: Shape, *_, dimension_numbers, slice_sizes, **__):
    """Keeps dimensions of which all is taken."""
    numbers = dimension_numbers
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    kept = [d for d in range(len(own)) if d not in gone]
    x = merged(x, gone | {d for d in kept if own[d] != slice_sizes[d]})
    order = dict(zip(numbers.offset_dims, kept, strict=True))
    return arranged(x, map(order.get, range(len(out))))


def _elementwise(xs: list[Reach], out: Shape, shapes: list[Shape], **_) -> Reach:
    stretched = []
    for x, own in zip(xs, shapes, strict=True):
        # Operands may have no dimensions, or some of length 1.
        x = arranged(x, range(len(out)) if own else [None] * len(out))
        stretched.append(merged(x, [d for d, n in enumerate(own) if n != out[d]]))
    return union(stretched)


def _concatenate(xs: list[Reach], _, shapes: list[Shape], *, dimension) -> Reach:
    d: int = dimension
    xs = [whole(x) for x in xs] if any(x.step[d] for x in xs) else xs

    def join(arrays: list[np.ndarray]) -> np.ndarray:
        rest = np.broadcast_shapes(*(a.any(d).shape for a in arrays))
        full = [(*rest[:d], own[d], *rest[d:]) for own in shapes]
        return np.concatenate(list(map(np.broadcast_to, arrays, full)), d)

    return joined(xs, join)


def _dot(xs: list[Reach], _, shapes: list[Shape], *, dimension_numbers, **__):
    summed, batch = dimension_numbers
    x, y = map(merged, xs, summed)
    x_free, y_free = (
        [d for d in range(len(own)) if d not in (*gone, *first)]
        for own, gone, first in zip(shapes, summed, batch, strict=True)
    )
    x = arranged(x, [*batch[0], *x_free, *[None] * len(y_free)])
    return union([x, arranged(y, [*batch[1], *[None] * len(x_free), *y_free])])


def _by_name(rules: dict[str, Callable[..., Reach]]) -> dict[str, Callable]:
    return {name: rule for names, rule in rules.items() for name in names.split()}


CALLS = {
    *("checkpoint", "closed_call", "core_call", "jit", "pjit", "remat2"),
    *("custom_jvp_call", "custom_vjp_call"),
}

# Names of primitives to rule: all operands, the result's shape, the operands' shapes.
JOINS = _by_name(
    {
        """
        abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp
        convert_element_type copy copy_p cos cosh div eq erf erf_inv erfc exp exp2 expm1
        floor ge gt integer_pow is_finite le log log1p log2 logistic lt max min mul name
        ne neg not or pow reduce_precision rem round rsqrt select_n sharding_constraint
        sign sin sinh sqrt square stop_gradient sub tan tanh xor
        """: _elementwise,
        "concatenate": _concatenate,
        "dot_general": _dot,
    }
)

# The same with the first operand alone: no other one may depend on the image.
RULES = _by_name(
    {
        "argmax argmin reduce_max reduce_min reduce_prod reduce_sum": _reduce,
        "broadcast_in_dim": _broadcast,
        "conv_general_dilated": _convolution,
        "gather": _gather,
        "pad": _pad,
        "reduce_window reduce_window_max reduce_window_min reduce_window_sum": _pooling,
        "reshape squeeze": _reshape,
        "rev": lambda x, *_, dimensions: merged(x, dimensions),
        "slice": _slice,
        "split": lambda x, *_, axis, **__: merged(x, [axis]),
        "transpose": lambda x, *_, permutation: arranged(x, permutation),
    }
)
