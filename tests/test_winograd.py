"""Winograd's convolutions: the convolutions they are, and when they are chosen."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from nstvis import devices, hoisting, layers, models, winograd

# As users' programs are compiled, and not as tests' are: see conftest.py.
SHIPPED: dict[str, bool | int] = {"xla_backend_optimization_level": 3}
if devices._is_option("xla_cpu_use_fusion_emitters"):
    SHIPPED["xla_cpu_use_fusion_emitters"] = True

# Side of a tile, side of a kernel.
KINDS = [(2, 3), (3, 3), (4, 3), (2, 5)]


@functools.partial(jax.jit, static_argnums=0)
def with_gradients(convolve, x, kernel, cotangent):
    y, pull = jax.vjp(convolve, x, kernel)
    return y, *pull(cotangent)


def xla(x, kernel):
    return lax.conv_general_dilated(
        *(x, kernel, (1, 1)),
        padding="SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


CONVOLVE = {
    (m, r): functools.partial(lambda x, kernel, m: winograd.convolve(x, kernel, m), m=m)
    for m, r in KINDS
}


def drawn(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize(("m", "r"), KINDS)
def test_the_matrices_make_a_correlation(m, r):
    """Y = A^T [(G g) * (B^T d)], in one dimension."""
    a, g, b = winograd.matrices(m, r)
    kernel, inputs = drawn(r), drawn(m + r - 1, 1)
    expected = np.correlate(inputs, kernel, "valid")
    np.testing.assert_allclose(a @ ((g @ kernel) * (b @ inputs)), expected, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(("m", "r"), KINDS)
@settings(max_examples=5, deadline=None)
@given(data=st.data())
def test_values_and_gradients_are_a_convolutions(m, r, data):
    """In float64, where rounding hides nothing: sides below a tile, borders, batches."""
    batch, height, width = (data.draw(st.integers(1, n)) for n in (3, 11, 11))
    inputs, outputs = (data.draw(st.integers(1, 3)) for _ in range(2))
    shapes = (batch, height, width, inputs), (r, r, inputs, outputs)
    with jax.enable_x64(True):
        arrays = [jnp.asarray(drawn(shape, i)) for i, shape in enumerate(shapes)]
        cotangent = jnp.asarray(drawn((batch, height, width, outputs), 2))
        found = with_gradients(CONVOLVE[m, r], *arrays, cotangent)
        expected = with_gradients(xla, *arrays, cotangent)
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-10 * np.abs(y).max())


@pytest.mark.parametrize(("batch", "parts"), [(6, 2), (7, 3), (8, 4)])
def test_parts_of_a_batch_are_the_batch(batch, parts, monkeypatch):
    """Of at most three images: alike, the last one incomplete, smaller to be alike."""
    x, kernel = drawn((batch, 7, 5, 3)), drawn((3, 3, 3, 4), 1)
    cotangent = drawn((batch, 7, 5, 4), 2)
    with jax.enable_x64(True):
        arrays = [jnp.asarray(array) for array in (x, kernel, cotangent)]
        expected = with_gradients(xla, *arrays)
        image = 4 * 36 * 2 * 2 * 4  # bytes of an image's products
        monkeypatch.setattr(winograd, "_CACHE", 3 * image)
        text = str(
            jax.make_jaxpr(lambda x: winograd.convolve(x, arrays[1], 4))(arrays[0])
        )
        assert f"length={parts}\n" in text
        found = with_gradients(lambda x, k: winograd.convolve(x, k, 4), *arrays)
    for x, y in zip(found, expected, strict=True):
        np.testing.assert_allclose(x, y, atol=1e-10 * np.abs(y).max())


@pytest.mark.parametrize(("m", "r"), KINDS)
def test_rounding_errors_are_what_the_docstring_says(m, r):
    x, kernel = drawn((2, 13, 9, 64)), drawn((r, r, 64, 32), 1)
    cotangent = drawn((2, 13, 9, 32), 2)
    with jax.enable_x64(True):
        expected = with_gradients(xla, *map(jnp.asarray, (x, kernel, cotangent)))
    narrow = (array.astype(np.float32) for array in (x, kernel, cotangent))
    for found, y in zip(with_gradients(CONVOLVE[m, r], *narrow), expected, strict=True):
        y = np.asarray(y)
        error = np.abs(found - y).max() / np.abs(y).max()
        assert error < (1e-5 if m + r > 5 else 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("side", "size", "inputs", "outputs"),
    [
        pytest.param(7, 3, 192, 384, marks=pytest.mark.exhaustive),
        pytest.param(13, 3, 256, 256, marks=pytest.mark.exhaustive),
        (15, 5, 64, 192),
    ],
)
def test_an_image_is_convolved_alike_in_any_batch(side, size, inputs, outputs):
    """What the promise of the maxima rests on, for the shapes of AlexNets."""
    x = jnp.float32(drawn((40, side, side, inputs)))
    kernel = jnp.float32(drawn((size, size, inputs, outputs), 1))
    assert layers.winograd_tile(x, kernel, 1, size // 2)
    convolve = jax.jit(
        lambda x: layers.convolve(x, kernel, 1, size // 2), compiler_options=SHIPPED
    )
    expected = np.asarray(convolve(x))
    for batch in (2, 33):
        np.testing.assert_array_equal(convolve(x[-batch:]), expected[-batch:])


@pytest.mark.parametrize(
    ("shape", "kernel", "stride", "tile"),
    [
        ((1, 192, 256, 128), (3, 3, 128, 128), 1, 4),  # VGG-19's conv2_2
        ((1, 384, 512, 64), (3, 3, 64, 64), 1, 0),  # exceeds the cache
        ((1, 192, 256, 3), (3, 3, 3, 64), 1, 0),  # few channels
        ((1, 6, 8, 512), (3, 3, 512, 512), 1, 0),  # few tiles for large filters
        ((1, 12, 16, 128), (3, 3, 128, 128), 1, 0),  # a small picture
        ((2, 7, 7, 192), (3, 3, 192, 384), 1, 4),  # alexnet_small's conv3
        ((128, 7, 7, 192), (3, 3, 192, 384), 1, 4),
        ((128, 5, 5, 192), (3, 3, 192, 384), 1, 3),  # tiles of 4 would hang over
        ((128, 15, 15, 64), (5, 5, 64, 192), 1, 2),
        ((128, 15, 15, 64), (5, 5, 64, 192), 2, 0),
        ((128, 15, 15, 64), (7, 7, 64, 192), 1, 0),
        ((128, 0, 7, 192), (3, 3, 192, 384), 1, 0),  # after pooling nothing is left
    ],
)
def test_the_algorithm_is_chosen_by_shape(shape, kernel, stride, tile):
    x, taps = (jax.ShapeDtypeStruct(s, jnp.float32) for s in (shape, kernel))
    assert layers.winograd_tile(x, taps, stride, kernel[0] // 2) == tile


def test_other_paddings_types_and_devices_have_xlas(monkeypatch):
    x = jax.ShapeDtypeStruct((2, 7, 7, 192), jnp.float32)
    taps = jax.ShapeDtypeStruct((3, 3, 192, 384), jnp.float32)
    assert not layers.winograd_tile(x, taps, 1, 0)
    with jax.default_matmul_precision("highest"):
        assert not layers.winograd_tile(x, taps, 1, 1)
    half = jax.ShapeDtypeStruct(x.shape, jnp.bfloat16)
    assert not layers.winograd_tile(half, taps, 1, 1)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not layers.winograd_tile(x, taps, 1, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["alexnet_small", "resnet18"])
def test_a_hoisted_network_is_the_network(name):
    forward, params = models.load(name, "random")
    images = jnp.float32(np.random.default_rng(0).uniform(0, 255, (2, 48, 48, 3)))
    prepare, rest = hoisting.hoisted(forward, params, images)
    prepared = jax.jit(prepare)(params)
    expected = jax.jit(forward)(params, images)
    found = jax.jit(rest)(prepared, images)
    assert list(found) == list(expected)
    for layer, x in expected.items():
        np.testing.assert_array_equal(found[layer], x)


def test_filters_are_hoisted():
    forward, params = models.load("alexnet_small", "random")
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    prepare, rest = hoisting.hoisted(forward, params, images)
    prepared = jax.eval_shape(prepare, params)
    assert (36, 64, 192) in [x.shape for x in prepared]  # conv2's filters
    assert (5, 5, 64, 192) not in [x.shape for x in prepared]
    text = str(jax.make_jaxpr(rest)(prepared, images))
    assert "[36,64,192]" in text
    assert "[6,5,64,192]" not in text  # half of their transform


def test_what_no_result_needs_is_left_out():
    forward, params = models.load("alexnet_small", "random")
    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    prepare, _ = hoisting.hoisted(
        lambda params, images: {"conv2": forward(params, images)["conv2"]},
        *(params, images),
    )
    shapes = [x.shape for x in jax.eval_shape(prepare, params)]
    assert (36, 64, 192) in shapes
    assert (36, 192, 384) not in shapes  # conv3's filters
