"""Layers: forwards and backwards as XLA and PyTorch compute them.

Integers small enough to be exact in float32 let most comparisons be exact, too.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from nstvis import layers

WINDOWS = [(2, 2, 0), (3, 2, 0), (3, 2, 1), (3, 3, 0), (5, 2, 2), (2, 3, 0)]
SHAPE = (2, 16, 9, 2)  # an even and an odd side
CONVS = [(11, 4, 2), (7, 2, 3), (7, 2, 1), (5, 2, 0), (5, 3, 0), (3, 2, 1), (1, 2, 0)]


@pytest.fixture(scope="module")
def torch():
    reason = "the oracle is PyTorch: pip install -r requirements-peers.txt"
    return pytest.importorskip("torch", reason=reason)


def integers(shape, most, seed=0):
    random = np.random.default_rng(seed)
    return random.integers(-most, most, shape, endpoint=True).astype(np.float32)


def nchw(torch, array):
    return torch.from_numpy(np.moveaxis(array, -1, 1).copy())


def nhwc(tensor):
    return np.moveaxis(tensor.detach().numpy(), 1, -1)


def xla_max_pool(x, size, stride, padding):
    window, strides = (1, size, size, 1), (1, stride, stride, 1)
    edges = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, edges)


# Compiled once for each function and shape, whichever tests share them.
@functools.partial(jax.jit, static_argnums=0)
def pull_back(function, arguments, cotangent):
    """Returns the value of a function and its gradients."""
    y, pull = jax.vjp(function, *arguments)
    return y, *pull(cotangent)


POOLS = {
    window: [
        lambda x, pool=pool, window=window: pool(x, *window)
        for pool in (layers.max_pool, xla_max_pool)
    ]
    for window in WINDOWS
}


def check_max_pool(x, ours, xlas):
    cotangent = integers(jax.eval_shape(xlas, x).shape, 9, seed=1)
    found = pull_back(ours, (x,), cotangent)
    for mine, reference in zip(found, pull_back(xlas, (x,), cotangent), strict=True):
        np.testing.assert_array_equal(mine, reference)


# Few distinct values make ties, which must go the same way.
@pytest.mark.slow
@pytest.mark.parametrize("most", [1, 10**6], ids=["ties", "no ties"])
@pytest.mark.parametrize("window", WINDOWS)
def test_max_pool_and_its_gradient_are_xlas(window, most):
    check_max_pool(integers(SHAPE, most), *POOLS[window])


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_max_pool_and_its_gradient_are_xlas_at_any_shape(data):
    size = data.draw(st.integers(1, 5), "size")
    stride = data.draw(st.integers(1, 4), "stride")
    padding = data.draw(st.integers(0, size // 2), "padding")
    side = st.integers(size, 14)
    few = st.integers(1, 3)
    shape = data.draw(st.tuples(few, side, side, few), "shape")
    check_max_pool(
        integers(shape, 2),
        lambda x: layers.max_pool(x, size, stride, padding),
        lambda x: xla_max_pool(x, size, stride, padding),
    )


@pytest.mark.parametrize("window", WINDOWS)
def test_max_pool_and_its_gradient_are_pytorchs(torch, window):
    x = integers(SHAPE, 1)
    theirs = nchw(torch, x).requires_grad_()
    pooled = torch.nn.functional.max_pool2d(theirs, *window)
    cotangent = integers(nhwc(pooled).shape, 9, seed=1)
    y, gradient = pull_back(POOLS[window][0], (x,), cotangent)
    pooled.backward(nchw(torch, cotangent))
    np.testing.assert_array_equal(y, nhwc(pooled))
    np.testing.assert_array_equal(gradient, nhwc(theirs.grad))


@pytest.mark.slow
def test_a_tie_goes_to_the_first_maximum():
    x = jnp.full((1, 5, 5, 1), -3.0)
    gradient = jax.grad(lambda x: layers.max_pool(x, 2, 2).sum())(x)
    first = np.zeros((5, 5))
    first[:4:2, :4:2] = 1
    np.testing.assert_array_equal(gradient[0, :, :, 0], first)
    # With padding, the first pixel of a window may lie outside the image.
    gradient = jax.grad(lambda x: layers.max_pool(x, 3, 2, 1).sum())(x)
    rows = np.array([1, 1, 0, 1, 0])
    np.testing.assert_array_equal(gradient[0, :, :, 0], np.outer(rows, rows))


@pytest.mark.slow
@pytest.mark.parametrize("size, stride, padding", CONVS)
def test_a_strided_conv_and_its_gradients_are_xlas(size, stride, padding):
    shape = (2, 31, 22, 2)  # most windows fit in one direction and not in the other
    window = {"size": size, "stride": stride, "padding": padding}
    graph, _ = nnx.split(layers.conv(shape[-1], 5, **window, rngs=nnx.Rngs(0)))

    def ours(x, kernel, bias):
        return nnx.merge(graph, {"kernel": kernel, "bias": bias})(x)

    def xlas(x, kernel, bias):
        edges = [(padding, padding)] * 2
        names = ("NHWC", "HWIO", "NHWC")
        y = lax.conv_general_dilated(
            x, kernel, (stride, stride), edges, dimension_numbers=names
        )
        return y + bias.reshape(1, 1, 1, -1)

    kernel = integers((size, size, shape[-1], 5), 9, 2)
    arguments = integers(shape, 9), kernel, integers((5,), 9, 3)
    cotangent = integers(jax.eval_shape(xlas, *arguments).shape, 9, seed=1)
    found = pull_back(ours, arguments, cotangent)
    expected = pull_back(xlas, arguments, cotangent)
    for mine, reference in zip(found, expected, strict=True):
        np.testing.assert_array_equal(mine, reference)


@pytest.mark.slow
def test_a_conv_keeps_the_size_unless_told_otherwise():
    x = jnp.zeros((1, 9, 12, 2))
    for size in (3, 5):
        assert layers.conv(2, 4, size, rngs=nnx.Rngs(0))(x).shape == (1, 9, 12, 4)
    without_bias = layers.conv(2, 4, 3, bias=False, rngs=nnx.Rngs(0))
    assert set(nnx.to_pure_dict(nnx.state(without_bias))) == {"kernel"}


@pytest.mark.parametrize("window", WINDOWS)
def test_average_pooling_is_pytorchs(torch, window):
    x = integers(SHAPE, 100)
    theirs = torch.nn.functional.avg_pool2d(nchw(torch, x), *window)
    ours = layers.pool("average", *window)(x)
    np.testing.assert_allclose(ours, nhwc(theirs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("window", [(2, 2, 0), (3, 3, 0)])
def test_the_gradient_of_average_pooling_is_xlas(window):
    size, stride, _ = window
    x = integers(SHAPE, 100)
    sides = (1, size, size, 1), (1, stride, stride, 1)

    def xlas(x):
        return lax.reduce_window(x, 0.0, lax.add, *sides, "VALID") / size**2

    pool = layers.pool("average", *window)
    cotangent = integers(jax.eval_shape(xlas, x).shape, 9, 1)
    for ours, theirs in zip(
        pull_back(pool, (x,), cotangent), pull_back(xlas, (x,), cotangent), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_pool_knows_max_and_average_only():
    x = integers((1, 6, 6, 2), 100)
    pooled = layers.pool("max", 3, 2, 1)(x)
    np.testing.assert_array_equal(pooled, layers.max_pool(x, 3, 2, 1))
    with pytest.raises(ValueError, match="'max' or 'average', not 'median'"):
        layers.pool("median", 2, 2)


@pytest.mark.slow
@pytest.mark.parametrize("grid", [3, 6])
@pytest.mark.parametrize("size", [(6, 6), (1, 1), (2, 5), (7, 13), (18, 3)])
def test_the_cells_of_a_dense_layer_are_pytorchs(torch, grid, size):
    x = integers((2, *size, 4), 100)
    layer = layers.GridLinear(4, grid, 4 * grid**2, rngs=nnx.Rngs(0))
    layer.kernel[...] = jnp.eye(4 * grid**2)
    cells = torch.nn.functional.adaptive_avg_pool2d(nchw(torch, x), grid).flatten(1)
    np.testing.assert_allclose(layer(x), cells, rtol=1e-4, atol=1e-4)


def test_local_response_norm_is_pytorchs(torch):
    # Activations so large that the squares matter beside the constant 2.
    x = integers((2, 5, 7, 9), 500)
    layer = torch.nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=2)
    ours = layers.local_response_norm(x)
    np.testing.assert_allclose(ours, nhwc(layer(nchw(torch, x))), rtol=1e-5)
