"""What every unit sees of the image, read off the network function itself.

The jaxpr of `forward` is walked twice: for the rows of the image and for its columns.
Each array on the way has a `_Reach`, what its elements depend on, and a rule for each
primitive says how a result's reach follows from the operands'. Four things happen to a
reach: a window slides along a dimension, a dimension is merged, dimensions are
rearranged, or several reaches are united.

Where a primitive without a rule mixes elements, all of them depend on whatever any
operand depends on, and their field is the whole image: never too few pixels. The field is
the whole image, too, after sums over space, upsampling, and a reordering of positions.
Values are not looked at: a weight of 0 is a weight. A support that is no rectangle, as of
a sum of a wide and a high convolution, counts as the rectangle around it.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.extend.core import Jaxpr, JaxprEqn, Literal, jaxprs_in_params

from nstvis.models import Forward, Params

Shape = tuple[int, ...]


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
    program = jax.make_jaxpr(trace)(params, image)
    weights = [*map(_nothing, _shapes(program.jaxpr.invars[:-1]))]
    reaches = [
        _walk(program.jaxpr, [*weights, _pixels(axis, length)])
        for axis, length in ((1, height), (2, width))
    ]
    layers = zip(names, _shapes(program.jaxpr.outvars), *reaches, strict=True)
    return {name: Fields(both, shape, image.shape) for name, shape, *both in layers}


class Fields:
    """The receptive fields of a layer's units.

    Attributes:
        columns: Width of the layer's map; 1 for dense layers.
    """

    def __init__(self, reaches: Iterable["_Reach"], shape: Shape, image: Shape):
        order = range(4) if len(shape) == 4 else (0, None, None, 1)
        self._reaches = [_arranged(reach, order) for reach in reaches]
        self._image = image[1:3]
        self.columns = shape[2] if len(shape) == 4 else 1

    @property
    def stride(self) -> int:
        """Pixels from a field to the next, 0 where each is the whole image.

        The larger number where rows and columns differ.
        """
        return max(max(reach.step) for reach in self._reaches)

    def size(self, channel: int) -> tuple[int, int]:
        """Height and width of a unit's field, in pixels."""
        top, left, bottom, right = self.boxes(np.array(channel), np.zeros(2, int))
        return int(bottom - top), int(right - left)

    def boxes(self, channels: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Where units at positions have their fields, as if images had no borders.

        Args:
            channels: int [...].
            positions: int [..., 2], row and column in the map; 0, 0 for dense layers.

        Returns:
            int32 [..., 4]: top, left, bottom, right in pixels, the last two exclusive.
            May hang over the border; empty, all 0, where the image does not matter.
        """
        index = np.zeros_like(channels), positions[..., 0], positions[..., 1], channels
        firsts, ends = [], []
        for reach, pixels in zip(self._reaches, self._image, strict=True):
            before, end = np.moveaxis(_at(reach.bounds, index), -1, 0)
            shift = sum(step * i for step, i in zip(reach.step, index, strict=True))
            firsts.append(np.nan_to_num(shift - before, posinf=0, neginf=0))
            ends.append(np.nan_to_num(shift + end, posinf=pixels, neginf=0))
        return np.stack([*firsts, *ends], -1).astype(np.int32)

    def support(
        self, channel: int, row: int, column: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Which rows and columns of the image matter, bool [height] and bool [width]."""
        index = 0, row, column, channel
        rows, columns = (_at(reach.seen, index) for reach in self._reaches)
        height, width = self._image
        return np.broadcast_to(rows, height), np.broadcast_to(columns, width)


def _at(array: np.ndarray, index: Sequence[Any]) -> np.ndarray:
    pairs = zip(index, array.shape, strict=False)
    return array[tuple(i if n > 1 else 0 * i for i, n in pairs)]


@dataclasses.dataclass(frozen=True)
class _Reach:
    """What elements of an array `[*dims]` depend on, along one axis of the image.

    A length of 1 stands for any. Reaches are united by the maxima of both arrays.
    """

    # bool [*dims, pixels]: which ones matter.
    seen: np.ndarray
    # float [*dims, 2]: minus the first pixel of the field, and the one after its last,
    # at index 0 of the dimension that has a step. Infinite where the field is the whole
    # image, minus infinite where the image does not matter.
    bounds: np.ndarray
    # Pixels from a field to the next along each dimension, of those that are not the
    # whole image; there is only one dimension along which it is not 0.
    step: Shape

    @property
    def empty(self) -> bool:
        return bool((self.bounds == -np.inf).all())


def _nothing(shape: Shape) -> _Reach:
    ones = [1] * len(shape)
    bounds = np.full([*ones, 2], -np.inf)
    return _Reach(np.zeros([*ones, 1], bool), bounds, (0,) * len(shape))


def _pixels(axis: int, length: int) -> _Reach:
    """The image's own: each pixel sees itself."""
    step = tuple(int(d == axis) for d in range(4))
    seen = np.eye(length, dtype=bool).reshape(*(length**s for s in step), length)
    return _Reach(seen, np.array([[[[[0.0, 1.0]]]]]), step)


def _walk(jaxpr: Jaxpr, inputs: Sequence[_Reach]) -> list[_Reach]:
    known: dict[Any, _Reach] = dict(zip(jaxpr.invars, inputs, strict=True))

    def read(atom: Any) -> _Reach:
        if isinstance(atom, Literal) or atom not in known:
            return _nothing(*_shapes([atom]))
        return known[atom]

    for eqn in jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        if not all(x.empty for x in operands):
            known.update(zip(eqn.outvars, _results(eqn, operands), strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _shapes(atoms: Sequence[Any]) -> list[Shape]:
    return [atom.aval.shape for atom in atoms]


def _results(eqn: JaxprEqn, xs: list[_Reach]) -> list[_Reach]:
    name, params = eqn.primitive.name, eqn.params
    shapes, results = map(_shapes, (eqn.invars, eqn.outvars))
    if name in CALLS:
        return _walk(next(iter(jaxprs_in_params(params))), xs)
    if name in JOINS:
        return [JOINS[name](xs, shape, shapes, **params) for shape in results]
    if name in RULES and all(x.empty for x in xs[1:]):
        return [RULES[name](xs[0], shape, *shapes, **params) for shape in results]
    mixed = _union([_arranged(_merged(x, range(len(x.step))), ()) for x in xs])
    return [_arranged(mixed, [None] * len(shape)) for shape in results]


def _whole(x: _Reach) -> _Reach:
    bounds = np.where(x.bounds > -np.inf, np.inf, x.bounds)
    return _Reach(x.seen, bounds, (0,) * len(x.step))


def _merged(x: _Reach, dims: Iterable[int]) -> _Reach:
    """Lets each element see what any along these dimensions does, and be one of them."""
    dims = tuple(dims)
    x = _whole(x) if any(x.step[d] for d in dims) else x
    seen = x.seen.max(dims, keepdims=True, initial=False)
    return _Reach(seen, x.bounds.max(dims, keepdims=True, initial=-np.inf), x.step)


def _arranged(x: _Reach, order: Iterable[int | None]) -> _Reach:
    """Reorders dimensions. None is a new one; those left out were merged before."""
    order = tuple(order)
    kept = [d for d in order if d is not None]
    gone = [d for d in range(len(x.step)) if d not in kept]

    def arrange(a: np.ndarray) -> np.ndarray:
        lengths = [1 if d is None else a.shape[d] for d in order]
        return a.transpose(*kept, *gone, -1).reshape(*lengths, a.shape[-1])

    step = tuple(0 if d is None else x.step[d] for d in order)
    return _Reach(arrange(x.seen), arrange(x.bounds), step)


def _joined(xs: Sequence[_Reach], join: Callable) -> _Reach:
    seen, bounds = join([x.seen for x in xs]), join([x.bounds for x in xs])
    if not np.isfinite(bounds).any():
        return _Reach(seen, bounds, (0,) * len(xs[0].step))
    steps = {x.step for x in xs if np.isfinite(x.bounds).any()}
    if len(steps) > 1:
        strides = " and ".join(str(max(step)) for step in sorted(steps))
        raise ValueError(f"branches meet whose fields move by {strides} pixels")
    return _Reach(seen, bounds, *steps)


def _union(xs: Sequence[_Reach]) -> _Reach:
    return _joined(xs, functools.partial(functools.reduce, np.maximum))


def _window(
    x: _Reach, d: int, n: int, out: int, size=1, stride=1, space=1, low=0, base=1
):
    """Slides windows along a dimension.

    There are `out` windows, `stride` apart, of `size` elements, `space` apart, and the
    first one begins `low` before the dimension, of length `n`. With a `base` above 1,
    zeros lie between its elements: such windows are not told apart.
    """
    if base > 1:
        return _merged(x, [d])
    taps = stride * np.arange(out) - low + space * np.arange(size)[:, None]
    inside = (taps >= 0) & (taps < n)

    def slide(a: np.ndarray, nothing: float) -> np.ndarray:
        if a.shape[d] == 1 and inside.any(0).all():
            return a
        edge = [(0, int(i == d)) for i in range(a.ndim)]
        padded = np.pad(a, edge, constant_values=nothing)
        index = np.where(inside, taps if a.shape[d] > 1 else 0, a.shape[d])
        return functools.reduce(np.maximum, (padded.take(tap, d) for tap in index))

    if x.bounds.shape[d] > 1:
        bounds = slide(x.bounds, -np.inf)
    else:
        bounds = x.bounds + x.step[d] * np.array([low, space * (size - 1) - low])
    step = *x.step[:d], stride * x.step[d], *x.step[d + 1 :]
    return _Reach(slide(x.seen, False), bounds, step)


def _windows(
    x: _Reach, out: Sequence[int], own: Sequence[int], **windows: Sequence[int]
) -> _Reach:
    for d in range(len(own)):
        here = {name: value[d] for name, value in windows.items()}
        x = _window(x, d, own[d], out[d], **here)
    return x


def _convolution(x: _Reach, out: Shape, own: Shape, kernel: Shape, **params) -> _Reach:
    lhs, rhs, result = params["dimension_numbers"]
    x = _grouped(_arranged(x, lhs), params["feature_group_count"], out[result[1]])
    x = _merged(x, [0]) if params["batch_group_count"] > 1 else x
    after = [out[d] for d in result]
    x = _windows(
        x,
        after,
        [*after[:2], *(own[d] for d in lhs[2:])],
        size=[1, 1, *(kernel[d] for d in rhs[2:])],
        stride=[1, 1, *params["window_strides"]],
        space=[1, 1, *params["rhs_dilation"]],
        low=[0, 0, *(low for low, _ in params["padding"])],
        base=[1, 1, *params["lhs_dilation"]],
    )
    return _arranged(x, [result.index(d) for d in range(len(out))])


def _grouped(x: _Reach, groups: int, outputs: int) -> _Reach:
    """Lets output channels, dimension 1, see all input channels of their group."""
    if groups == 1 or x.step[1]:
        return _merged(x, [1])

    def group(a: np.ndarray) -> np.ndarray:
        if a.shape[1] == 1:
            return a
        parts = a.reshape(len(a), groups, -1, *a.shape[2:])
        return parts.max(2).repeat(outputs // groups, 1)

    return _Reach(group(x.seen), group(x.bounds), x.step)


def _pooling(x: _Reach, out: Shape, own: Shape, *_, **params) -> _Reach:
    return _windows(
        x,
        out,
        own,
        size=params["window_dimensions"],
        stride=params["window_strides"],
        space=params["window_dilation"],
        low=[low for low, _ in params["padding"]],
        base=params["base_dilation"],
    )


def _pad(x: _Reach, out: Shape, own: Shape, *_, padding_config) -> _Reach:
    lows, _, zeros = zip(*padding_config, strict=True)
    return _windows(x, out, own, low=lows, base=[1 + n for n in zeros])


def _slice(x: _Reach, out: Shape, own: Shape, *, start_indices, strides, **_) -> _Reach:
    strides = strides or [1] * len(own)
    return _windows(x, out, own, stride=strides, low=[-i for i in start_indices])


def _reduce(x: _Reach, *_, axes, **__) -> _Reach:
    return _arranged(_merged(x, axes), [d for d in range(len(x.step)) if d not in axes])


def _broadcast(x: _Reach, out: Shape, own: Shape, *_, broadcast_dimensions, **__):
    x = _merged(x, [d for d, i in enumerate(broadcast_dimensions) if own[d] != out[i]])
    order = {i: d for d, i in enumerate(broadcast_dimensions)}
    return _arranged(x, map(order.get, range(len(out))))


def _reshape(x: _Reach, out: Shape, own: Shape, **_) -> _Reach:
    """Keeps dimensions of the same length with as many elements before them."""
    old, new = ([(math.prod(s[:d]), n) for d, n in enumerate(s)] for s in (own, out))
    order = {key: d for d, key in enumerate(old) if key in new and key[1] > 1}
    x = _merged(x, {*range(len(old))} - {*order.values()})
    return _arranged(x, map(order.get, new))


def _gather(
    x: _Reach, out: Shape, own: Shape, *_, dimension_numbers, slice_sizes, **__
):
    """Keeps dimensions of which all is taken."""
    numbers = dimension_numbers
    gone = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    kept = [d for d in range(len(own)) if d not in gone]
    x = _merged(x, gone | {d for d in kept if own[d] != slice_sizes[d]})
    order = dict(zip(numbers.offset_dims, kept, strict=True))
    return _arranged(x, map(order.get, range(len(out))))


def _elementwise(xs: list[_Reach], out: Shape, shapes: list[Shape], **_) -> _Reach:
    stretched = []
    for x, own in zip(xs, shapes, strict=True):
        # Operands may have no dimensions, or some of length 1.
        x = _arranged(x, range(len(out)) if own else [None] * len(out))
        stretched.append(_merged(x, [d for d, n in enumerate(own) if n != out[d]]))
    return _union(stretched)


def _concatenate(xs: list[_Reach], _, shapes: list[Shape], *, dimension) -> _Reach:
    d: int = dimension
    xs = [_whole(x) for x in xs] if any(x.step[d] for x in xs) else xs

    def join(arrays: list[np.ndarray]) -> np.ndarray:
        rest = np.broadcast_shapes(*(a.any(d).shape for a in arrays))
        full = [(*rest[:d], own[d], *rest[d:]) for own in shapes]
        return np.concatenate(list(map(np.broadcast_to, arrays, full)), d)

    return _joined(xs, join)


def _dot(xs: list[_Reach], _, shapes: list[Shape], *, dimension_numbers, **__):
    summed, batch = dimension_numbers
    x, y = map(_merged, xs, summed)
    x_free, y_free = (
        [d for d in range(len(own)) if d not in (*gone, *first)]
        for own, gone, first in zip(shapes, summed, batch, strict=True)
    )
    x = _arranged(x, [*batch[0], *x_free, *[None] * len(y_free)])
    return _union([x, _arranged(y, [*batch[1], *[None] * len(x_free), *y_free])])


def _by_name(rules: dict[str, Callable[..., _Reach]]) -> dict[str, Callable]:
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
        "rev": lambda x, *_, dimensions: _merged(x, dimensions),
        "slice": _slice,
        "split": lambda x, *_, axis, **__: _merged(x, [axis]),
        "transpose": lambda x, *_, permutation: _arranged(x, permutation),
    }
)
