"""Losses: the papers' closed forms; those of whole programs: test_neural_style.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nstvis.synthesis import losses
from nstvis.synthesis.style_losses import gram, moment_sums

SHAPE = (1, 5, 7, 4)
KEY = jax.random.key(0)
ONCE = settings(max_examples=25, deadline=None)
FACTORS = st.floats(0.125, 8, width=32)


def draw(seed, shape=SHAPE):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def gram_matrix(activations):
    return moment_sums(activations).gram


def gram_distance(f, p):
    return gram.distance(moment_sums(f), gram_matrix(p), KEY)


def matrix(activations):
    """Channels by positions in float64, as the papers write F."""
    return activations[0].reshape(-1, activations.shape[-1]).T.astype(np.float64)


def test_content_loss_is_the_papers_equation_1():
    f, p = draw(0), draw(1)
    expected = 0.5 * ((matrix(f) - matrix(p)) ** 2).sum()
    np.testing.assert_allclose(losses.content_loss(f, p), expected, rtol=1e-5)


def test_gram_is_the_papers_averaged_over_positions():
    f = draw(0)
    expected = matrix(f) @ matrix(f).T / (5 * 7)
    np.testing.assert_allclose(gram_matrix(f), expected, rtol=1e-4, atol=1e-6)


def test_style_loss_is_the_papers_equation_4():
    f, s = draw(0), draw(1)
    g, a = (matrix(x) @ matrix(x).T for x in (f, s))
    expected = ((g - a) ** 2).sum() / (4 * 4**2 * (5 * 7) ** 2)
    found = gram_distance(f, s)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


@pytest.mark.parametrize("power", [1, 2])
def test_total_variation_sums_differences_down_and_right(power):
    x = draw(0, (1, 4, 6, 3))
    y = x.astype(np.float64)
    expected = (np.abs(y[:, 1:] - y[:, :-1]) ** power).sum()
    expected += (np.abs(y[:, :, 1:] - y[:, :, :-1]) ** power).sum()
    found = losses.total_variation(x, power)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


# Units.


def in_units(name, f, p):
    """Returns the content loss and the style loss of F against P."""
    units = losses.UNITS[name]
    loss = gram.style_loss([moment_sums(p)], jnp.ones(1))
    content = units.content((p**2).sum(), p.size) * losses.content_loss(f, p)
    factor = units.style(p.shape[-1]) if units.style else loss.scale
    return content, factor * loss(moment_sums(f), KEY)


def test_units_of_neural_style_are_its_mean_squared_errors():
    f, p = draw(0), draw(1)
    content, style_ = in_units("neural_style", f, p)
    np.testing.assert_allclose(content, ((f - p) ** 2).mean(), rtol=1e-5)
    g, a = (matrix(x) @ matrix(x).T / x.size for x in (f, p))
    np.testing.assert_allclose(style_, ((g - a) ** 2).mean(), rtol=1e-4)


def test_units_of_ng_are_his_courses():
    f, p = draw(0), draw(1)
    content, style_ = in_units("ng", f, p)
    c, m = 4, 5 * 7
    expected = ((matrix(f) - matrix(p)) ** 2).sum() / (4 * c * m)
    np.testing.assert_allclose(content, expected, rtol=1e-5)
    g, a = (matrix(x) @ matrix(x).T for x in (f, p))
    expected = ((g - a) ** 2).sum() / (4 * c**2 * m**2)
    np.testing.assert_allclose(style_, expected, rtol=1e-4)


def test_units_of_gatys_are_canonical():
    f, p = draw(0), draw(1)
    content, style_ = in_units("gatys2015", f, p)
    assert content == losses.content_loss(f, p)
    assert style_ == gram_distance(f, p)


@ONCE
@given(scale=FACTORS, seed=st.integers(0, 99))
def test_balanced_losses_are_1_without_activations_at_any_scale(scale, seed):
    p = scale * draw(seed)
    for loss in in_units("balanced", jnp.zeros(SHAPE), p):
        np.testing.assert_allclose(loss, 1, rtol=1e-4)


def test_balanced_units_bear_an_all_zero_target():
    for loss in in_units("balanced", draw(0), jnp.zeros(SHAPE)):
        assert np.isfinite(loss)


@pytest.mark.parametrize("name", losses.UNITS)
def test_the_variation_is_averaged_in_balanced_units_only(name):
    expected = 1 / (4 * 6 * 3) if name == "balanced" else losses.UNITS[name].white / 255
    assert losses.UNITS[name].variation(4 * 6 * 3) == expected


# Invariances.


@ONCE
@given(scale=FACTORS, seed=st.integers(0, 99))
def test_losses_scale_with_the_activations(scale, seed):
    f, p = draw(seed), draw(seed + 100)
    content = losses.content_loss(scale * f, scale * p)
    expected = scale**2 * losses.content_loss(f, p)
    np.testing.assert_allclose(content, expected, rtol=1e-4)
    loss = gram_distance(scale * f, scale * p)
    expected = scale**4 * gram_distance(f, p)
    np.testing.assert_allclose(loss, expected, rtol=1e-3)


@ONCE
@given(scale=FACTORS, power=st.sampled_from([1, 2]), seed=st.integers(0, 99))
def test_total_variation_scales_and_ignores_brightness(scale, power, seed):
    x = draw(seed, (1, 4, 6, 3))
    found = losses.total_variation(scale * x + 7, power)
    expected = scale**power * losses.total_variation(x, power)
    np.testing.assert_allclose(found, expected, rtol=1e-3)


@ONCE
@given(rows=st.integers(1, 3), columns=st.integers(1, 3), seed=st.integers(0, 99))
def test_a_gram_matrix_knows_neither_size_nor_place(rows, columns, seed):
    x = draw(seed)
    tiled = np.roll(np.tile(x, (1, rows, columns, 1)), (1, 2), (1, 2))
    expected = gram_matrix(x)
    np.testing.assert_allclose(gram_matrix(tiled), expected, rtol=1e-4, atol=1e-6)
