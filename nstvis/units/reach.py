"""What elements of an array depend on, along one axis of the image.

Four things happen to a reach: a window slides along a dimension, a dimension is merged,
dimensions are rearranged, or several reaches are united.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence

import numpy as np

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Reach:
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
        """Whether the image does not matter."""
        return bool((self.bounds == -np.inf).all())


def nothing(shape: Shape) -> Reach:
    """Returns the reach of an array that does not depend on the image."""
    ones = [1] * len(shape)
    bounds = np.full([*ones, 2], -np.inf)
    return Reach(np.zeros([*ones, 1], bool), bounds, (0,) * len(shape))


def pixels(axis: int, length: int) -> Reach:
    """Returns the image's own reach: each pixel sees itself."""
    step = tuple(int(d == axis) for d in range(4))
    seen = np.eye(length, dtype=bool).reshape(*(length**s for s in step), length)
    return Reach(seen, np.array([[[[[0.0, 1.0]]]]]), step)


def whole(x: Reach) -> Reach:
    """Makes the whole image the field of all that depends on it."""
    bounds = np.where(x.bounds > -np.inf, np.inf, x.bounds)
    return Reach(x.seen, bounds, (0,) * len(x.step))


def merged(x: Reach, dims: Iterable[int]) -> Reach:
    """Lets each element see what any along these dimensions does, and be one of them."""
    dims = tuple(dims)
    x = whole(x) if any(x.step[d] for d in dims) else x
    seen = x.seen.max(dims, keepdims=True, initial=False)
    return Reach(seen, x.bounds.max(dims, keepdims=True, initial=-np.inf), x.step)


def arranged(x: Reach, order: Iterable[int | None]) -> Reach:
    """Reorders dimensions. None is a new one; those left out were merged before."""
    order = tuple(order)
    kept = [d for d in order if d is not None]
    gone = [d for d in range(len(x.step)) if d not in kept]

    def arrange(a: np.ndarray) -> np.ndarray:
        lengths = [1 if d is None else a.shape[d] for d in order]
        return a.transpose(*kept, *gone, -1).reshape(*lengths, a.shape[-1])

    step = tuple(0 if d is None else x.step[d] for d in order)
    return Reach(arrange(x.seen), arrange(x.bounds), step)


def joined(xs: Sequence[Reach], join: Callable) -> Reach:
    """Makes one reach of several, by a function that makes one array of several.

    Raises:
        ValueError: Their fields move by different strides.
    """
    seen, bounds = join([x.seen for x in xs]), join([x.bounds for x in xs])
    if not np.isfinite(bounds).any():
        return Reach(seen, bounds, (0,) * len(xs[0].step))
    steps = {x.step for x in xs if np.isfinite(x.bounds).any()}
    if len(steps) > 1:
        strides = " and ".join(str(max(step)) for step in sorted(steps))
        raise ValueError(f"branches meet whose fields move by {strides} pixels")
    return Reach(seen, bounds, *steps)


def union(xs: Sequence[Reach]) -> Reach:
    """Lets each element see what the same element of any of them does."""
    return joined(xs, functools.partial(functools.reduce, np.maximum))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Windows:
    """Windows that slide along a dimension."""

    # How many there are, and how long the dimension is, in elements.
    count: int
    length: int
    # Elements of a window, and from each of them to the next.
    size: int = 1
    space: int = 1
    # Elements from a window to the next.
    stride: int = 1
    # Elements by which the first window begins before the dimension.
    low: int = 0
    # With a base above 1, zeros lie between the dimension's elements.
    base: int = 1

    @property
    def taps(self) -> np.ndarray:
        """What each window covers, int `[size, count]`; padding is out of range."""
        firsts = self.stride * np.arange(self.count) - self.low
        return firsts + self.space * np.arange(self.size)[:, None]

    def united(self, a: np.ndarray, dim: int, nothing: float) -> np.ndarray:
        """Returns each window's maximum along `dim`, where padding is `nothing`."""
        taps = self.taps
        inside = (taps >= 0) & (taps < self.length)
        if a.shape[dim] == 1 and inside.any(0).all():
            return a  # the same for all windows, none of which is padding alone
        column = -1, *[1] * (a.ndim - dim - 1)
        # Tap by tap, as all at once would take too much memory.
        parts = (
            np.where(within.reshape(column), a.take(tap, dim, mode="clip"), nothing)
            for tap, within in zip(taps, inside, strict=True)
        )
        return functools.reduce(np.maximum, parts)


def slid(x: Reach, dim: int, windows: Windows) -> Reach:
    """Lets each window see what any of its elements does."""
    if windows.base > 1:  # such windows are not told apart
        return merged(x, [dim])
    if x.bounds.shape[dim] > 1:
        bounds = windows.united(x.bounds, dim, -np.inf)
    else:
        # The first window's: fields differ by their place alone, as if without borders.
        last = windows.space * (windows.size - 1) - windows.low
        bounds = x.bounds + x.step[dim] * np.array([windows.low, last])
    step = *x.step[:dim], windows.stride * x.step[dim], *x.step[dim + 1 :]
    return Reach(windows.united(x.seen, dim, False), bounds, step)


def slid_along_all(
    x: Reach, counts: Sequence[int], lengths: Sequence[int], **windows: Sequence[int]
) -> Reach:
    """Slides windows along every dimension.

    Args:
        x: What the elements depend on.
        counts: Windows of each dimension.
        lengths: Elements of each dimension.
        **windows: The other fields of `Windows`, a number for each dimension.
    """
    for dim, (count, length) in enumerate(zip(counts, lengths, strict=True)):
        here = {name: numbers[dim] for name, numbers in windows.items()}
        x = slid(x, dim, Windows(count=count, length=length, **here))
    return x
