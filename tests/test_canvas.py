"""Canvases draw what they should, and movements move as they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from nstvis.synthesis import canvas, transforms

KEY = jax.random.key(0)
SIZES = [(8, 8), (7, 10), (12, 5)]
ROOT = np.array([[0.26, 0.09, 0.02], [0.27, 0, -0.05], [0.27, -0.09, 0.03]])


def noise(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def sigmoid(x):
    return 255 / (1 + np.exp(-np.asarray(x, np.float64)))


def colors(components):
    """RGB, by a loop over pixels."""
    root = ROOT / np.sqrt((ROOT**2).sum(0).max())
    flat = np.asarray(components, np.float64).reshape(-1, 3)
    return sigmoid([root @ pixel for pixel in flat]).reshape(components.shape)


def test_a_color_is_a_mixture_of_uncorrelated_components():
    x = noise(1, 4, 5, 3)
    np.testing.assert_allclose(canvas.colored(jnp.asarray(x)), colors(x), rtol=1e-5)
    np.testing.assert_allclose(canvas.colored(jnp.zeros((1, 2, 2, 3))), 127.5)


def test_the_colors_of_white_components_have_the_covariance_of_natural_images():
    drawn = np.asarray(canvas.colored(0.01 * jnp.asarray(noise(1, 300, 300, 3))))
    found = np.cov(drawn.reshape(-1, 3).T)
    expected = ROOT @ ROOT.T
    np.testing.assert_allclose(
        found / np.trace(found), expected / np.trace(expected), atol=0.005
    )


@pytest.mark.parametrize("height, width", SIZES)
def test_the_spectrum_is_scaled_by_one_over_the_frequency(height, width):
    scale = canvas.spectrum_scale(height, width)
    assert scale.shape == (height, width // 2 + 1)
    for row, column in np.ndindex(scale.shape):
        down, across = min(row, height - row) / height, column / width
        frequency = max((down**2 + across**2) ** 0.5, 1 / max(height, width))
        expected = (height * width) ** 0.5 / 4 / frequency
        assert scale[row, column] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("height, width", SIZES)
def test_a_fourier_canvas_is_a_sum_of_waves(height, width):
    drawing = canvas.fourier(height, width)
    numbers = np.zeros(drawing.shape, np.float32)
    row, column, amplitude = 2, 1, 0.3
    numbers[0, row, column, 0] = amplitude, 0  # light, a cosine
    factor = canvas.spectrum_scale(height, width)[row, column]
    y, x = np.mgrid[:height, :width]
    wave = np.cos(2 * np.pi * (row * y / height + column * x / width))
    components = np.zeros((1, height, width, 3))
    # With its mirror image, the negative frequency.
    components[0, ..., 0] = 2 * amplitude * factor * wave / (height * width)
    drawn = drawing.draw(jnp.asarray(numbers))
    np.testing.assert_allclose(drawn, colors(components), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", canvas.PLAIN)
def test_a_canvas_starts_nearly_grey_and_every_pixel_can_move(kind):
    height, width = 7, 10
    drawing = canvas.PLAIN[kind](height, width)
    start = jax.jit(drawing.start)(KEY)
    drawn, backward = jax.vjp(jax.jit(drawing.draw), start)
    assert start.shape == drawing.shape
    assert drawn.shape == (1, height, width, 3)
    assert abs(np.asarray(drawn) - 127.5).max() < 30
    assert np.any(jax.jit(drawing.start)(jax.random.key(1)) != start)

    # A wish for any one pixel reaches the canvas; for all pixels, every number of it.
    one = np.zeros(drawn.shape, np.float32)
    one[0, 1, 2, 1] = 1
    assert np.any(backward(jnp.asarray(one))[0] != 0)
    moving = np.asarray(backward(jnp.asarray(noise(*drawn.shape)))[0] != 0)
    if kind == "fourier":
        assert moving[:, :, 1:5, :, 1].all()
        moving = moving[..., 0]  # the mean, and other real coefficients, have no phase
    assert moving.all()


def picture(height, width, seed=0):
    """Random colours, none of which a canvas would clip."""
    return np.random.default_rng(seed).uniform(8, 247, (height, width, 3))


@pytest.mark.parametrize("kind", canvas.KINDS)
def test_a_canvas_draws_the_picture_that_it_encodes(kind):
    height, width = 7, 10
    given = picture(height, width)
    if kind == "maco":  # of which it has the magnitudes
        drawing = canvas.maco(canvas.mean_magnitudes([given]), width)
    else:
        drawing = canvas.PLAIN[kind](height, width)
    numbers = drawing.encode(jnp.asarray(given[None], jnp.float32))
    assert numbers.shape == drawing.shape
    np.testing.assert_allclose(drawing.draw(numbers)[0], given, atol=0.01)


def test_colors_beyond_what_a_sigmoid_reaches_are_the_nearest_it_starts_from():
    extreme = np.array([[[0.0, 255.0, 3.0]]])
    found = canvas.colored(canvas.components(extreme))
    np.testing.assert_allclose(found, [[[5.1, 249.9, 5.1]]], rtol=1e-4)


def test_phases_alone_change_whatever_is_painted():
    height, width = 8, 9
    given = [picture(height, width, seed) for seed in range(3)]
    magnitudes = canvas.mean_magnitudes(given)
    root = ROOT / np.sqrt((ROOT**2).sum(0).max())
    expected = [
        abs(np.fft.rfft2(np.log(x / (255 - x)) @ np.linalg.inv(root).T, axes=(0, 1)))
        for x in given
    ]
    np.testing.assert_allclose(magnitudes, np.mean(expected, 0), rtol=1e-4)
    magnitudes /= 3  # of colours that no canvas would clip
    drawing = canvas.maco(magnitudes, width)
    drawn = np.asarray(drawing.draw(drawing.start(KEY)))[0]
    found = np.abs(np.fft.rfft2(canvas.components(drawn), axes=(0, 1)))
    np.testing.assert_allclose(found[:, 1:], magnitudes[:, 1:], rtol=1e-3)
    # Of each frequency of the first column there are two phases.
    assert np.all(found[:, 0] <= magnitudes[:, 0] * 1.001)


@pytest.mark.parametrize("top, left, size", [(1, 2, 3), (-4, 3, 9), (2, -13, 20)])
def test_a_window_shows_the_image_reflected_beyond_its_borders(top, left, size):
    image, margin = picture(5, 4), 40
    around = (margin, margin), (margin, margin), (0, 0)
    padded = np.pad(image, around, "symmetric")
    expected = padded[margin + top :, margin + left :][:size, :size]
    np.testing.assert_array_equal(canvas.window(image, top, left, size), expected)


# A margin beyond the edges.


@pytest.mark.parametrize("margin", [0, 5, 14])
def test_a_margin_is_a_reflection_and_is_cropped(margin):
    picture = noise(1, 9, 7, 3)
    framed = canvas.framed(jnp.asarray(picture), margin)
    around = (0, 0), (margin, margin), (margin, margin), (0, 0)
    np.testing.assert_array_equal(framed, np.pad(picture, around, "reflect"))
    np.testing.assert_array_equal(canvas.cropped(framed, margin), picture)


# Colours.


@pytest.mark.parametrize("shares", [[1.0], [0.75, 0.25]])
def test_a_content_gets_the_style_s_mean_and_covariance(shares):
    content = 20 * noise(1, 30, 40, 3) @ ROOT.astype(np.float32) + 90
    mixtures = [ROOT[::-1], ROOT * [1, 3, 2]]
    styles = [
        (60 * noise(1, 25, 35 + i, 3)[..., ::-1] @ mixtures[i].T + 100 + 30 * i)
        for i in range(len(shares))
    ]
    found = np.asarray(canvas.recolored(content, styles, shares), np.float64)
    assert found.shape == content.shape
    means = [np.mean(style, (0, 1, 2)) for style in styles]
    expected = np.average(means, 0, shares)
    np.testing.assert_allclose(found.mean((0, 1, 2)), expected, rtol=1e-6)
    if len(styles) == 1:
        covariances = (
            np.cov(x.reshape(-1, 3).T, bias=True) for x in (found, styles[0])
        )
        np.testing.assert_allclose(*covariances, rtol=1e-6)


# Movements.

STILL = {
    "shift": jnp.zeros(2, int),
    "factor": jnp.float32(1),
    "degrees": jnp.float32(0),
}


def moved(images, **how):
    how = {name: jnp.asarray(value) for name, value in (STILL | how).items()}
    return np.asarray(jax.jit(transforms.moved)(jnp.asarray(images), **how))


def test_no_movement_is_the_picture_itself():
    images = noise(1, 7, 10, 3)
    np.testing.assert_array_equal(moved(images), images)
    none = transforms.Amplitudes(jitter=0, scale=0, rotate=0)
    move = jax.jit(lambda key: transforms.random(key, jnp.asarray(images), none))
    found = move(KEY)
    np.testing.assert_array_equal(found, images)


@pytest.mark.parametrize("shift", [(1, 0), (0, 3), (-4, 2), (11, -13)])
def test_a_shift_is_a_roll(shift):
    images = noise(1, 7, 10, 3)
    np.testing.assert_array_equal(
        moved(images, shift=shift), np.roll(images, shift, (1, 2))
    )


@pytest.mark.parametrize("degrees", [90.0, 30.0, -7.5])
@pytest.mark.parametrize("height, width", [(9, 9), (8, 8)])
def test_a_rotation_is_scipy_s(degrees, height, width):
    images = noise(1, height, width, 3)
    expected = ndimage.rotate(
        images[0], degrees, reshape=False, order=1, mode="grid-wrap"
    )
    np.testing.assert_allclose(moved(images, degrees=degrees)[0], expected, atol=1e-4)


def test_a_quarter_turn_is_counterclockwise():
    images = noise(1, 6, 6, 3)
    expected = np.rot90(images, 1, (1, 2))
    np.testing.assert_allclose(moved(images, degrees=90), expected, atol=1e-4)


@pytest.mark.parametrize("factor", [2.0, 1.25, 0.8])
def test_enlarging_is_interpolation_by_brute_force(factor):
    images = noise(1, 9, 7, 3)
    found, (height, width) = moved(images, factor=factor), images.shape[1:3]
    for row, column in np.ndindex(height, width):
        y = (row - 4) / factor + 4
        x = (column - 3) / factor + 3
        top, left = int(np.floor(y)), int(np.floor(x))
        expected = sum(
            abs(1 - abs(y - i)) * abs(1 - abs(x - j)) * images[0, i % height, j % width]
            for i in (top, top + 1)
            for j in (left, left + 1)
        )
        np.testing.assert_allclose(found[0, row, column], expected, atol=1e-5)


def test_shift_comes_before_rotation():
    images = noise(1, 8, 8, 3)
    rolled = np.roll(images, (2, -1), (1, 2))
    both = moved(images, shift=(2, -1), degrees=20.0, factor=1.2)
    after = moved(rolled, degrees=20.0, factor=1.2)
    np.testing.assert_allclose(both, after, atol=1e-4)


def test_jitter_is_a_roll_of_every_amount():
    images, seen = noise(1, 6, 7, 3), set()
    most = transforms.Amplitudes(jitter=1, scale=0, rotate=0)
    rolls = {s: np.roll(images, s, (1, 2)) for s in np.ndindex(6, 7)}
    move = jax.jit(lambda key: transforms.random(key, jnp.asarray(images), most))
    for i in range(60):
        found = move(jax.random.key(i))
        seen |= {shift for shift, roll in rolls.items() if np.array_equal(found, roll)}
    assert seen == {(i, j) for i in (0, 1, 5) for j in (0, 1, 6)}


@pytest.mark.parametrize("name, most", [("scale", 0.2), ("rotate", 10.0)])
def test_amplitudes_are_the_most_of_either_way(name, most):
    """Read off a picture whose pixels are their own coordinates."""
    size, found = 17, []
    y, x = np.mgrid[:size, :size] - 8.0
    images = jnp.asarray(np.stack([y, x, 0 * x], -1)[None], jnp.float32)
    amplitudes = {"jitter": 0, "scale": 0, "rotate": 0} | {name: most}
    move = jax.jit(
        lambda key: transforms.random(key, images, transforms.Amplitudes(**amplitudes))
    )
    for i in range(40):
        down, across, _ = np.asarray(move(jax.random.key(i)))[0, 8, 12] / 4
        scale, degrees = np.hypot(down, across), np.degrees(np.arctan2(down, across))
        found.append(1 / scale - 1 if name == "scale" else degrees)
        other = degrees if name == "scale" else 1 / scale - 1
        assert abs(other) < 1e-4
    assert most * 0.8 < max(found) <= most * 1.0001
    assert -most * 1.0001 <= min(found) < -most * 0.8
