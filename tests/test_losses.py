"""Losses: the papers' closed forms, and neural-style-pt's whole objective."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nstvis import models
from nstvis.synthesis import losses, objective
from nstvis.synthesis.style_losses import gram
from nstvis.synthesis.style_settings import PRESETS, Settings

SHAPE = (1, 5, 7, 4)
KEY = jax.random.key(0)
ONCE = settings(max_examples=25, deadline=None)
FACTORS = st.floats(0.125, 8, width=32)


def draw(seed, shape=SHAPE):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


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
    np.testing.assert_allclose(gram.gram_matrix(f), expected, rtol=1e-4, atol=1e-6)


def test_style_loss_is_the_papers_equation_4():
    f, s = draw(0), draw(1)
    g, a = (matrix(x) @ matrix(x).T for x in (f, s))
    expected = ((g - a) ** 2).sum() / (4 * 4**2 * (5 * 7) ** 2)
    found = gram.gram_distance(f, gram.gram_matrix(s), KEY)
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
    units, loss = losses.UNITS[name], gram.style_loss([p], jnp.ones(1))
    content = units.content(p) * losses.content_loss(f, p)
    factor = units.style(p.shape[-1]) if units.style else loss.scale
    return content, factor * loss(f, KEY)


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
    assert style_ == gram.gram_distance(f, gram.gram_matrix(p), KEY)


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
    expected = 1 / (4 * 6 * 3) if name == "balanced" else 1
    assert losses.UNITS[name].variation(jnp.zeros((1, 4, 6, 3))) == expected


# Invariances.


@ONCE
@given(scale=FACTORS, seed=st.integers(0, 99))
def test_losses_scale_with_the_activations(scale, seed):
    f, p = draw(seed), draw(seed + 100)
    content = losses.content_loss(scale * f, scale * p)
    expected = scale**2 * losses.content_loss(f, p)
    np.testing.assert_allclose(content, expected, rtol=1e-4)
    loss = gram.gram_distance(scale * f, gram.gram_matrix(scale * p), KEY)
    expected = scale**4 * gram.gram_distance(f, gram.gram_matrix(p), KEY)
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
    expected = gram.gram_matrix(x)
    np.testing.assert_allclose(gram.gram_matrix(tiled), expected, rtol=1e-4, atol=1e-6)


# The whole objective.


def picture(height, width, seed):
    random = np.random.default_rng(seed)
    return random.uniform(0, 255, (1, height, width, 3)).astype(np.float32)


def torch_activations(torch, params, image):
    """VGG-19 up to conv5_1, in float64: every layer after its ReLU."""
    functional, activations = torch.nn.functional, {}
    mean = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64)
    std = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64)
    x = ((image / 255 - mean) / std).permute(0, 3, 1, 2)
    for block, depth in enumerate((2, 2, 4, 4, 1), 1):
        for i in range(depth):
            name = f"conv{block}_{i + 1}"
            layer = {k: np.array(v, np.float64) for k, v in params[name].items()}
            weight = torch.from_numpy(layer["kernel"].transpose(3, 2, 0, 1).copy())
            bias = torch.from_numpy(layer["bias"])
            x = activations[name] = functional.conv2d(x, weight, bias, padding=1).relu()
        x = functional.max_pool2d(x, 2)
    return activations


def neural_style_pt(torch, params, content, painting, canvas):
    """The loss of neural-style-pt at its defaults, and its gradient."""

    def gram(x):
        channels = x.flatten(2)[0]
        return channels @ channels.T / x.numel()

    content, painting, canvas = (
        torch.from_numpy(x).double() for x in (content, painting, canvas)
    )
    with torch.no_grad():
        p = torch_activations(torch, params, content)["conv4_2"]
        painted = torch_activations(torch, params, painting)
    canvas.requires_grad_()
    f = torch_activations(torch, params, canvas)
    mse = torch.nn.functional.mse_loss
    loss = 5 * mse(f["conv4_2"], p)
    for name in ("conv1_1", "conv2_1", "conv3_1", "conv4_1", "conv5_1"):
        loss = loss + 100 * mse(gram(f[name]), gram(painted[name]))
    down, right = canvas.diff(dim=1).abs().sum(), canvas.diff(dim=2).abs().sum()
    loss = loss + 1e-3 * (down + right)
    loss.backward()
    return loss.item(), canvas.grad.numpy()


@pytest.mark.slow
def test_the_preset_neural_style_is_neural_style_pt():
    torch = pytest.importorskip(
        "torch", reason="the oracle is PyTorch: pip install -r requirements-peers.txt"
    )
    preset = Settings(**PRESETS["neural_style"] | {"weights": "random"})
    forward, params = models.load(preset.model, preset.weights, last="conv5_1")
    content, painting = picture(192, 256, 0), picture(160, 208, 1)
    canvas = picture(192, 256, 2)
    targets = objective.make_targets(forward, preset)(params, content, [painting])
    total = jax.value_and_grad(objective.make_objective(forward, preset), has_aux=True)
    (loss, _), gradient = jax.jit(total)(canvas, targets, KEY)
    expected = neural_style_pt(torch, params, content, painting, canvas)
    np.testing.assert_allclose(loss, expected[0], rtol=1e-4)
    error = np.linalg.norm(gradient - expected[1]) / np.linalg.norm(expected[1])
    assert error < 1e-4
