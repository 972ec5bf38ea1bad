"""Convolutions by Winograd's minimal filtering (Lavin & Gray 2015, arXiv:1509.09308).

    Y = A^T [(G g G^T) * (B^T d B)] A

computes a tile of m x m outputs from t x t inputs d and an r x r kernel g, t = m + r - 1.
Over all tiles and channels, the products in the middle are t^2 matrix products, with
(m r / t)^2 times fewer multiplications than the convolution has: 2.25 for m = 2 and r =
3, 2.8 for 2 and 5, 4 for 4 and 3.

The matrices interpolate polynomials (Cook & Toom) at t - 1 of the points 0, 1, -1, 2, -2
and at infinity. Their entries grow with t, and rounding errors with them: to 1e-5 of the
largest output for t = 6, where the convolution itself has 5e-7.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

# Products of fewer rows are summed in another order (below 64, measured), and an image's
# activations would depend on how many others are in its batch.
_LEAST_ROWS = 128
# Bytes of a batch's products that are made at once: what is written stays near the processor
# until it is read. (Bands of a single image gained nothing.)
_CACHE = 30_000_000


@functools.cache
def matrices(m: int, r: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns A^T `[m, t]`, G `[t, r]` and B^T `[t, t]`; t = m + r - 1 is at most 6."""
    points = np.array([0.0, 1, -1, 2, -2])[: m + r - 2]
    others = [np.delete(points, i) for i in range(len(points))]
    scale = [np.prod(p - rest) for p, rest in zip(points, others, strict=True)]
    outputs = np.vander(points, m, increasing=True).T
    kernel = np.vander(points, r, increasing=True) / np.array(scale)[:, None]
    inputs = [[*np.poly(rest)[::-1], 0] for rest in others]
    return (
        np.column_stack([outputs, np.eye(m)[-1]]),
        np.vstack([kernel, np.eye(r)[-1]]),
        np.array([*inputs, np.poly(points)[::-1]]),
    )


def filters(kernel: Array, m: int) -> Array:
    """Transforms kernels: `[r, r, inputs, outputs]` to `[t^2, inputs, outputs]`."""
    r = len(kernel)
    g = matrices(m, r)[1]
    rows = _mixed(g, _unstacked(kernel))
    return _mixed(g, _unstacked(rows, 1)).reshape(-1, *kernel.shape[2:])


def convolve(x: Array, kernel: Array, m: int) -> Array:
    """Convolves images with square kernels, padded so that they keep their size.

    Of a batch, as many images at once as fit into a processor's cache: conv2 of
    `alexnet_small` takes 48 ms so, and 130 ms otherwise.

    Args:
        x: `[batch, height, width, inputs]`.
        kernel: `[r, r, inputs, outputs]`, r odd.
        m: Side of a tile of outputs, at least 2; m + r is at most 7.

    Returns:
        `[batch, height, width, outputs]`.
    """
    r, (batch, height, width, _) = len(kernel), x.shape
    taps = filters(kernel, m)
    # Copied, or the gradient's product would read them across their rows, at half the
    # speed; and here rather than in the gradient, where it could not be hoisted.
    transposed = lax.optimization_barrier(taps.swapaxes(1, 2))

    def convolved(images: Array) -> Array:
        return _convolve(
            images, taps, transposed, m, r, _LEAST_ROWS if batch > 1 else 0
        )

    tiles = -(-height // m) * -(-width // m)
    image = 4 * len(taps) * tiles * max(kernel.shape[2:])  # bytes of its products
    parts, each = _divided(batch, _CACHE // image)
    if parts == 1:
        return convolved(x)
    x = jnp.pad(x, ((0, parts * each - batch), *[(0, 0)] * 3))
    y = lax.map(convolved, x.reshape(parts, each, *x.shape[1:]))
    return y.reshape(-1, *y.shape[2:])[:batch]


def _divided(count: int, most: int) -> tuple[int, int]:
    """Divides things into parts of at most so many; returns how many parts, and of each.

    Up to twice as many parts if that leaves none incomplete, which would cost a copy.
    """
    parts = -(-count // max(1, most))
    even = [n for n in range(parts, 2 * parts) if not count % n]
    parts = even[0] if even else parts
    return parts, -(-count // parts)


# The transforms' transposes are written out, as XLA's transpose of a strided slice is slow,
# and inputs are transformed again for the gradient, as that is faster than to keep them.
# Tiles are `[column in the tile, row in the tile, batch, rows of tiles, columns of tiles,
# channels]`.


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _convolve(
    x: Array, taps: Array, transposed: Array, m: int, r: int, least: int
) -> Array:
    """Convolves images, by products of so many rows at least."""
    a, _, b = matrices(m, r)
    cut = _cut(b, _framed(x, m, r), m)
    tiles = _flat(cut)
    count = tiles.shape[1]
    tiles = jnp.pad(tiles, ((0, 0), (0, max(0, least - count)), (0, 0)))
    products = (tiles @ taps)[:, :count].reshape(*cut.shape[:-1], taps.shape[2])
    columns = _mixed(a, _unstacked(products))
    y = _joined(_mixed(a, _unstacked(columns, 1)))
    return y[:, : x.shape[1], : x.shape[2]]


def _convolve_forward(x, taps, transposed, m, r, least):
    return _convolve(x, taps, transposed, m, r, least), (x, transposed)


def _convolve_backward(m, r, least, residuals, gradient):
    x, transposed = residuals
    a, _, b = matrices(m, r)
    bottom, right = (-n % m for n in x.shape[1:3])
    gradient = jnp.pad(gradient, ((0, 0), (0, bottom), (0, right), (0, 0)))
    cut = _cut(a.T, gradient, m)
    tiles = (_flat(cut) @ transposed).reshape(*cut.shape[:-1], transposed.shape[2])
    columns = _overlapped(_mixed(b.T, _unstacked(tiles)), m, axis=4)
    rows = _mixed(b.T, _unstacked(columns, 1))
    border, pixels = r // 2, _joined(_overlapped(rows, m, axis=3))
    by_x = pixels[:, border : border + x.shape[1], border : border + x.shape[2]]
    by_taps = _flat(_cut(b, _framed(x, m, r), m)).swapaxes(1, 2) @ _flat(cut)
    return by_x, by_taps, None


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _framed(x: Array, m: int, r: int) -> Array:
    """Adds zeros that kernels see beyond the border, up to whole tiles."""
    border, (bottom, right) = r // 2, (-n % m for n in x.shape[1:3])
    edges = (border, border + bottom), (border, border + right)
    return jnp.pad(x, ((0, 0), *edges, (0, 0)))


def _cut(matrix: np.ndarray, x: Array, m: int) -> Array:
    """Cuts an image into tiles, `m` pixels apart, and computes matrix tile matrix^T."""
    side = matrix.shape[1]
    for axis in (-3, -2):  # rows, and then columns
        last = (x.shape[axis] - side) // m * m  # where the last tile begins
        every = [lax.slice_in_dim(x, i, i + last + 1, m, axis) for i in range(side)]
        x = _mixed(matrix, every)
    return x


def _joined(tiles: Array) -> Array:
    """Joins tiles that do not overlap to `[batch, height, width, channels]`."""
    m, _, batch, rows, columns, channels = tiles.shape
    # Without the barrier, the transposition would be done element by element above.
    x = lax.optimization_barrier(tiles).transpose(2, 3, 0, 4, 1, 5)
    return x.reshape(batch, rows * m, columns * m, channels)


def _overlapped(tiles: Array, m: int, *, axis: int) -> Array:
    """Adds rows (axis 3) or columns (4) beyond the m-th of a tile to those of the next."""
    tiles = jnp.pad(tiles, [(0, -len(tiles) % m), *[(0, 0)] * 5])
    count, moved = len(tiles) // m, []
    for i in range(count):
        edges = [(0, 0, 0)] * tiles.ndim
        edges[axis] = (i, count - 1 - i, 0)
        part = lax.slice_in_dim(tiles, i * m, (i + 1) * m)
        moved.append(lax.pad(part, jnp.zeros((), tiles.dtype), edges))
    return functools.reduce(lax.add, moved)


def _flat(tiles: Array) -> Array:
    return tiles.reshape(tiles.shape[0] * tiles.shape[1], -1, tiles.shape[-1])


def _unstacked(x: Array, axis: int = 0) -> list[Array]:
    return [lax.index_in_dim(x, i, axis, False) for i in range(x.shape[axis])]


# In terms of `lax`: with NumPy's operators and indices, a network takes a quarter longer to
# trace.
def _mixed(matrix: np.ndarray, parts: Sequence[Array]) -> Array:
    """Stacks the sums over i of matrix[:, i] parts[i], without the zeros.

    (XLA's own product with so small a matrix takes ten times as long on a CPU.)
    """
    mixed = []
    for row in matrix:
        terms = [
            part if n == 1 else lax.mul(part, lax.full_like(part, n))
            for n, part in zip(row, parts, strict=True)
            if n
        ]
        mixed.append(functools.reduce(lax.add, terms))
    return jnp.stack(mixed)
