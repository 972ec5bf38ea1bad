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
    rows = _mixed(g, [kernel[i] for i in range(r)])
    return _mixed(g, [rows[:, j] for j in range(r)]).reshape(-1, *kernel.shape[2:])


def convolve(x: Array, kernel: Array, m: int) -> Array:
    """Convolves images with square kernels, padded so that they keep their size.

    Args:
        x: `[batch, height, width, inputs]`.
        kernel: `[r, r, inputs, outputs]`, r odd.
        m: Side of a tile of outputs, at least 2; m + r is at most 7.

    Returns:
        `[batch, height, width, outputs]`.
    """
    size, r = x.shape[1:3], len(kernel)
    tiles: Array = _inputs(x, size, m, r)
    count = tiles.shape[1]
    if len(x) > 1:
        tiles = jnp.pad(tiles, ((0, 0), (0, max(0, _LEAST_ROWS - count)), (0, 0)))
    taps = filters(kernel, m)
    # Copied, or the gradient's product would read them across their rows, at half the
    # speed; and here rather than in the gradient, where it could not be hoisted.
    transposed = lax.optimization_barrier(taps.swapaxes(1, 2))
    products = _product(tiles, taps, transposed)
    return _outputs(products[:, :count], size, m, r)


@jax.custom_vjp
def _product(tiles: Array, taps: Array, transposed: Array) -> Array:
    return tiles @ taps


def _product_forward(tiles, taps, transposed):
    return tiles @ taps, (tiles, transposed)


def _product_backward(residuals, gradient):
    tiles, transposed = residuals
    return gradient @ transposed, tiles.swapaxes(1, 2) @ gradient, None


_product.defvjp(_product_forward, _product_backward)


# Both transforms are linear, and their transposes are written out, as XLA's transpose of a
# strided slice is slow. Tiles are `[column in the tile, row in the tile, batch, rows of
# tiles, columns of tiles, channels]`.


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _inputs(x: Array, size: tuple[int, int], m: int, r: int) -> Array:
    """Computes B^T d B of all tiles, `[t^2, tiles, channels]`."""
    (bottom, right), border = (-n % m + r // 2 for n in size), r // 2
    x = jnp.pad(x, ((0, 0), (border, bottom), (border, right), (0, 0)))
    return _flat(_cut(matrices(m, r)[2], x, m))


def _inputs_forward(x, size, m, r):
    return _inputs(x, size, m, r), None


def _inputs_backward(size, m, r, _, gradient):
    """Computes B d B^T, and adds where tiles overlap."""
    tiles, b = _tiles(gradient, size, m, r), matrices(m, r)[2].T
    columns = _overlapped(_mixed(b, list(tiles)), m, axis=4)
    rows = _mixed(b, [columns[:, i] for i in range(len(b))])
    x = _joined(_overlapped(rows, m, axis=3))
    border = r // 2
    return (x[:, border : size[0] + border, border : size[1] + border],)


_inputs.defvjp(_inputs_forward, _inputs_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _outputs(products: Array, size: tuple[int, int], m: int, r: int) -> Array:
    """Computes A^T M A of all tiles, and joins them to `[batch, *size, channels]`."""
    tiles, a = _tiles(products, size, m, r), matrices(m, r)[0]
    columns = _mixed(a, list(tiles))
    rows = _mixed(a, [columns[:, i] for i in range(len(tiles))])
    return _joined(rows)[:, : size[0], : size[1]]


def _outputs_forward(products, size, m, r):
    return _outputs(products, size, m, r), None


def _outputs_backward(size, m, r, _, gradient):
    bottom, right = (-n % m for n in size)
    gradient = jnp.pad(gradient, ((0, 0), (0, bottom), (0, right), (0, 0)))
    return (_flat(_cut(matrices(m, r)[0].T, gradient, m)),)


_outputs.defvjp(_outputs_forward, _outputs_backward)


def _cut(matrix: np.ndarray, x: Array, m: int) -> Array:
    """Cuts an image into tiles, `m` pixels apart, and computes matrix tile matrix^T."""
    side = matrix.shape[1]
    rows, columns = ((n - side) // m + 1 for n in x.shape[1:3])
    mixed = _mixed(matrix, [x[:, i::m][:, :rows] for i in range(side)])
    return _mixed(matrix, [mixed[..., j::m, :][..., :columns, :] for j in range(side)])


def _joined(tiles: Array) -> Array:
    """Joins tiles that do not overlap to `[batch, height, width, channels]`."""
    m, _, batch, rows, columns, channels = tiles.shape
    # Without the barrier, the transposition would be done element by element above.
    x = lax.optimization_barrier(tiles).transpose(2, 3, 0, 4, 1, 5)
    return x.reshape(batch, rows * m, columns * m, channels)


def _overlapped(tiles: Array, m: int, *, axis: int) -> Array:
    """Adds rows (axis 3) or columns (4) beyond the m-th of a tile to those of the next."""
    total = jnp.zeros(())
    tiles = jnp.pad(tiles, [(0, -len(tiles) % m), *[(0, 0)] * 5])
    count = len(tiles) // m
    for i in range(count):
        edges = [(0, 0)] * tiles.ndim
        edges[axis] = (i, count - 1 - i)
        total += jnp.pad(tiles[i * m : (i + 1) * m], edges)
    return total


def _flat(tiles: Array) -> Array:
    return tiles.reshape(tiles.shape[0] * tiles.shape[1], -1, tiles.shape[-1])


def _tiles(flat: Array, size: tuple[int, int], m: int, r: int) -> Array:
    rows, columns = (-(-n // m) for n in size)
    t = m + r - 1
    batch = flat.shape[1] // max(1, rows * columns)
    return flat.reshape(t, t, batch, rows, columns, flat.shape[-1])


def _mixed(matrix: np.ndarray, parts: Sequence[Array]) -> Array:
    """Stacks the sums over i of matrix[:, i] parts[i], without the zeros.

    (XLA's own product with so small a matrix takes ten times as long on a CPU.)
    """
    mixed = []
    for row in matrix:
        terms = [float(n) * part for n, part in zip(row, parts, strict=True) if n]
        mixed.append(sum(terms[1:], terms[0]))
    return jnp.stack(mixed)
