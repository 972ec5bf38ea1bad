"""Ranked lists: the best candidates of each unit, in a total order.

A higher activation comes first, then a lower image, then a lower position.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

# Sentinel index and position; sorts after every image.
SENTINEL = np.iinfo(np.int32).max

# JAX's on the devices, NumPy's once gathered.
Numbers = Any


class Best(NamedTuple):
    """Candidates in order, the best first: `[..., n, units]`."""

    score: Numbers
    image: Numbers
    # Row * width + column in the layer's map.
    position: Numbers


def empty(*shape: int) -> Best:
    """Returns lists without candidates, in NumPy."""
    image, position = (np.full(shape, SENTINEL, np.int32) for _ in range(2))
    return Best(np.full(shape, -np.inf, np.float32), image, position)


def insert(best: Best, candidate: Best) -> Best:
    """Inserts one candidate of each unit, `[..., units]`; the last one falls out."""
    candidate = Best(*(part[..., None, :] for part in candidate))
    behind = precedes(candidate, best)
    first = jnp.zeros_like(behind[..., :1, :])
    above = jnp.concatenate([first, behind[..., :-1, :]], -2)
    return Best(
        *(
            jnp.where(above, jnp.roll(old, 1, -2), jnp.where(behind, new, old))
            for old, new in zip(best, candidate, strict=True)
        )
    )


def precedes(a: Best, b: Best) -> Numbers:
    """Returns where a candidate comes before another."""
    earlier = (a.image < b.image) | ((a.image == b.image) & (a.position < b.position))
    tied = (a.score == b.score) & (a.score > -jnp.inf)
    return (a.score > b.score) | (tied & earlier)


class Peaks(NamedTuple):
    """Candidates of a batch, in the order of their images."""

    # [peaks, units]; -inf for none.
    score: Array
    position: Array
    # [peaks].
    image: Array


class _Strongest(NamedTuple):
    """The strongest of some peaks, of each unit; `[1, units]`."""

    row: Array
    peak: Best


def insert_batch(best: Best, peaks: Peaks) -> Best:
    """Inserts the peaks of a batch into the lists of their units, `[1, n, units]`.

    Each round inserts the strongest of the remaining peaks, until none of these is
    strong enough. After the first batches of a scan there are few rounds.
    """

    def unfinished(carry: tuple[Best, Peaks, _Strongest]) -> Array:
        best, _, strongest = carry
        last = Best(*(part[:, -1] for part in best))
        return precedes(strongest.peak, last).any()

    def insert_strongest(
        carry: tuple[Best, Peaks, _Strongest],
    ) -> tuple[Best, Peaks, _Strongest]:
        best, peaks, strongest = carry
        inserted = _rows(peaks) == strongest.row
        rest = peaks._replace(score=jnp.where(inserted, -jnp.inf, peaks.score))
        return insert(best, strongest.peak), rest, _strongest(rest)

    return lax.while_loop(
        unfinished, insert_strongest, (best, peaks, _strongest(peaks))
    )[0]


def _strongest(peaks: Peaks) -> _Strongest:
    """Finds the highest peak of each unit, the first one of equals."""
    score = peaks.score.max(0, keepdims=True)
    last = len(peaks.score) - 1
    rows = jnp.where(peaks.score == score, _rows(peaks), last)
    row = rows.min(0, keepdims=True)
    position = jnp.take_along_axis(peaks.position, row, 0)
    return _Strongest(row, Best(score, peaks.image[row], position))


def _rows(peaks: Peaks) -> Array:
    return jnp.arange(len(peaks.score))[:, None]


def merge(a: Best, b: Best) -> Best:
    """Returns the best of two lists of different images; in NumPy."""
    both = Best(*(np.concatenate(pair, -2) for pair in zip(a, b, strict=True)))
    order = np.lexsort((both.position, both.image, -both.score), axis=-2)
    order = order[..., : a.score.shape[-2], :]
    return Best(*(np.take_along_axis(part, order, -2) for part in both))


def highest(x: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Finds the highest numbers above 0 in each row; in NumPy.

    Returns:
        Their columns and themselves, `[rows, count]`, the highest first, and the first of
        equals; -1 and NaN where there are fewer.
    """
    rows, left = np.arange(len(x)), x.copy()
    columns, values = [], []
    for _ in range(count):
        column = left.argmax(1)
        value = left[rows, column]
        columns.append(np.where(value > 0, column, -1))
        values.append(np.where(value > 0, value, np.nan))
        left[rows, column] = 0
    return np.stack(columns, 1), np.stack(values, 1)
