"""The loop on pixels: its updates, its resumption, and what it does when lost."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from nstvis.synthesis import minimize, optimizers
from nstvis.synthesis.canvas import cropped, framed
from nstvis.synthesis.layouts import Layout

KEY = jax.random.key(0)
TARGET = 100.0
EVERY_OPTIMIZER = pytest.mark.parametrize(
    "optimizer",
    [optax.adam(4.0), optax.sgd(0.1), optax.lbfgs(memory_size=3)],
    ids=["adam", "gd", "lbfgs"],
)


def test_a_smoothed_gradient_is_divided_by_its_frequencies():
    power, gradient = 0.5, np.random.default_rng(0).normal(size=(1, 12, 15, 3))
    smooth = optimizers.smooth_gradient(power, Layout((12, 15)))
    ours, _ = smooth.update(jnp.asarray(gradient, jnp.float32), smooth.init(None))
    frequencies = np.hypot(np.fft.fftfreq(12)[:, None], np.fft.fftfreq(15)[None])
    factors = np.maximum(frequencies * 15, 1) ** -power
    spectrum = np.fft.fft2(gradient, axes=(1, 2)) * factors[None, :, :, None]
    expected = np.fft.ifft2(spectrum, axes=(1, 2)).real
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_a_gradient_smoothed_by_nothing_is_itself():
    gradient = jax.random.normal(jax.random.key(0), (1, 5, 7, 3))
    smooth = optimizers.smooth_gradient(0.0, Layout((5, 7)))
    ours, _ = smooth.update(gradient, smooth.init(None))
    assert jnp.array_equal(ours, gradient)


def quadratic(canvas, weights, key):
    """Lowest where every pixel is `TARGET`."""
    loss = 0.5 * jnp.sum(weights * (canvas - TARGET) ** 2)
    return loss, {"brightness": canvas.mean()}


def noisy(canvas, weights, key):
    """Depends on the key, and so on the number of the step."""
    noise = jax.random.normal(key, canvas.shape)
    return quadratic(canvas + noise, weights, key)


def picture(height=4, width=5, seed=0):
    random = np.random.default_rng(seed)
    return jnp.asarray(random.integers(0, 256, (1, height, width, 3)), jnp.float32)


def run(objective, optimizer, canvas, steps, data=1.0):
    """Returns the last state and the metrics of all steps."""
    step = minimize.make_step(objective, optimizer)
    state = minimize.start(canvas, optimizer)
    return resume(step, state, range(steps), data)


def resume(step, state, steps, data=1.0):
    reports = []
    for moment in minimize.minimize(step, state, data, KEY, steps):
        state, metrics = moment
        reports.append(jax.device_get(metrics))
    return state, reports


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.slow
def test_gradient_descent_steps_down_the_gradient_within_0_and_255():
    canvas = picture()
    # Powers of two, so that no rounding blurs the comparison.
    for rate in (0.5, 4.0):
        state, _ = run(quadratic, optax.sgd(rate), canvas, 1, data=0.5)
        moved = canvas - rate * 0.5 * (canvas - TARGET)
        np.testing.assert_array_equal(state.canvas, jnp.clip(moved, 0, 255))
    assert moved.min() < 0 and moved.max() < 255
    far, _ = run(quadratic, optax.sgd(4.0), canvas, 1, data=2.0)
    assert far.canvas.max() == 255


def test_adam_is_optaxs():
    optimizer = optax.adam(4.0, b2=0.99)
    canvas = picture()
    found, _ = run(quadratic, optimizer, canvas, 5)
    moments = optimizer.init(canvas)
    for _ in range(5):
        updates, moments = optimizer.update(canvas - TARGET, moments, canvas)
        canvas = jnp.clip(optax.apply_updates(canvas, updates), 0, 255)
    np.testing.assert_allclose(found.canvas, canvas, rtol=1e-5)


def test_a_step_takes_over_the_memory_of_its_state():
    optimizer = optax.adam(1.0)
    step = minimize.make_step(quadratic, optimizer)
    state = minimize.start(picture(), optimizer)
    following, _ = step(state, 1.0, KEY)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(following))


def test_the_picture_that_a_run_starts_from_stays_whole():
    canvas = picture()
    run(quadratic, optax.adam(1.0), canvas, 2)
    assert not canvas.is_deleted()


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 9])
def test_every_step_is_reported_once_in_order(steps):
    state, reports = run(quadratic, optax.sgd(0.1), picture(), steps)
    assert [report["step"] for report in reports] == list(range(1, steps + 1))
    assert state.step == steps


def test_metrics_are_those_of_the_canvas_before_the_step():
    canvas = picture()
    _, reports = run(quadratic, optax.sgd(0.5), canvas, 2)
    expected = 0.5 * float(((canvas - TARGET) ** 2).sum())
    assert reports[0]["J"] == pytest.approx(expected, rel=1e-5)
    assert reports[1]["J"] == pytest.approx(expected / 4, rel=1e-5)
    assert reports[0]["brightness"] == pytest.approx(float(canvas.mean()), rel=1e-5)


@pytest.mark.slow
@EVERY_OPTIMIZER
def test_two_halves_are_one_run_bit_for_bit(optimizer):
    step = minimize.make_step(noisy, optimizer)
    whole, reports = resume(step, minimize.start(picture(), optimizer), range(6))
    half, first = resume(step, minimize.start(picture(), optimizer), range(3))
    saved = jax.tree.map(np.array, half)
    restored = jax.tree.map(jnp.array, saved)
    both, second = resume(step, restored, range(3, 6))
    assert_same(both, whole)
    assert first + second == reports


@pytest.mark.slow
def test_every_step_has_a_key_of_its_own():
    _, reports = run(noisy, optax.sgd(0.0), picture(), 5)
    assert len({float(report["J"]) for report in reports}) == 5


# When the loss is not finite.


def walled(canvas, weights, key):
    """Is no number where any pixel is above 200."""
    loss, metrics = quadratic(canvas, weights, key)
    return jnp.where(canvas.max() > 200, jnp.nan, loss), metrics


def test_a_loss_that_is_not_finite_is_stepped_back_from():
    canvas = jnp.zeros((1, 2, 2, 3))
    # From 0 to 255, beyond the wall; back to 0; half as far, to 150.
    optimizer = optax.sgd(3.0)
    step = minimize.make_step(walled, optimizer)
    state = minimize.start(canvas, optimizer)
    state, metrics = step(state, 1.0, KEY)
    assert np.all(state.canvas == 255) and metrics["damping"] == 1
    state, metrics = step(state, 1.0, KEY)
    assert np.isnan(metrics["J"]) and metrics["damping"] == 0.5
    np.testing.assert_array_equal(state.canvas, canvas)
    state, metrics = step(state, 1.0, KEY)
    assert np.all(state.canvas == 150)
    state, reports = resume(step, state, range(3, 40))
    np.testing.assert_allclose(state.best, TARGET, atol=1e-3)
    assert np.isfinite(reports[-1]["J"])
    assert state.damping == 0.5


def test_without_any_sound_step_there_is_no_picture():
    optimizer = optax.sgd(1e-3)
    step = minimize.make_step(walled, optimizer)
    state = minimize.start(jnp.full((1, 2, 2, 3), 255.0), optimizer)
    with pytest.raises(FloatingPointError, match="the loss is not finite"):
        resume(step, state, range(3))


def test_the_optimizer_keeps_the_moments_of_the_last_sound_canvas():
    optimizer = optax.adam(255.0)
    step = minimize.make_step(walled, optimizer)
    state, _ = step(minimize.start(jnp.zeros((1, 2, 2, 3)), optimizer), 1.0, KEY)
    before = jax.tree.map(np.array, state.optimizer)
    state, metrics = step(state, 1.0, KEY)
    assert np.isnan(metrics["J"])
    assert_same(state.optimizer, before)


def test_a_gradient_that_is_not_finite_is_stepped_back_from():
    def cusped(canvas, weights, key):
        # Finite everywhere, and no gradient at 255.
        root = jnp.sqrt(255 - canvas)
        return jnp.sum(jnp.where(canvas < 255, root, 0.0)), {}

    state, reports = run(cusped, optax.sgd(1e4), jnp.full((1, 2, 2, 3), 250.0), 30)
    assert all(np.isfinite(report["J"]) for report in reports)
    assert state.damping < 1
    assert np.isfinite(state.canvas).all()


def test_a_loss_that_is_never_finite_ends_the_run():
    def hopeless(canvas, weights, key):
        return jnp.sum(canvas) * jnp.nan, {}

    canvas, seen = picture(), []
    step = minimize.make_step(hopeless, optax.adam(1.0))
    start = minimize.start(canvas, optax.adam(1.0))
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        for state, metrics in minimize.minimize(step, start, 1.0, KEY, range(1000)):
            np.testing.assert_array_equal(state.best, canvas)
            seen.append(metrics["damping"])
    assert seen[:3] == [1 / 2, 1 / 4, 1 / 8]
    assert 10 < len(seen) < 50


def test_the_best_canvas_is_the_one_with_the_lowest_loss():
    def valley(canvas, weights, key):
        return jnp.sum(jnp.abs(canvas - 47)), {}

    # Steps of 20: losses per pixel 47, 27, 7, 13, 7, 13.
    state, reports = run(valley, optax.sgd(20.0), jnp.zeros((1, 2, 2, 3)), 6)
    assert [report["J"] / 12 for report in reports] == [47, 27, 7, 13, 7, 13]
    assert np.all(state.best == 40) and state.best_loss == 7 * 12
    state, _ = run(valley, optax.sgd(20.0), jnp.zeros((1, 2, 2, 3)), 5)
    assert np.all(state.best == 40) and np.all(state.canvas == 60)


# From one size to the next.


@pytest.mark.slow
def test_enlarge_carries_adams_moments():
    optimizer = optax.adam(4.0)
    state, _ = run(quadratic, optimizer, picture(), 3)
    larger = minimize.enlarge(state, optimizer, (8, 11))
    old, new = state.optimizer[0], larger.optimizer[0]
    assert new.count == old.count == 3
    for before, after in [(old.mu, new.mu), (old.nu, new.nu)]:
        expected = jax.image.resize(before, (1, 8, 11, 3), "linear")
        np.testing.assert_array_equal(after, expected)
    expected = jax.image.resize(state.canvas, (1, 8, 11, 3), "cubic")
    np.testing.assert_array_equal(larger.canvas, jnp.clip(expected, 0, 255))
    assert larger.step == 3 and larger.damping == state.damping
    assert larger.best_loss == jnp.inf


def test_enlarge_keeps_the_width_of_a_margin():
    optimizer = optax.adam(4.0)
    inner = picture()
    state = minimize.start(framed(inner, 3), optimizer)
    larger = minimize.enlarge(state, optimizer, (8 + 6, 11 + 6), 3)
    scaled = jnp.clip(jax.image.resize(inner, (1, 8, 11, 3), "cubic"), 0, 255)
    np.testing.assert_allclose(cropped(larger.canvas, 3), scaled, rtol=1e-6)
    np.testing.assert_allclose(larger.canvas, framed(scaled, 3), rtol=1e-6)


@pytest.mark.slow
@EVERY_OPTIMIZER
def test_an_enlarged_state_can_be_optimised(optimizer):
    step = minimize.make_step(quadratic, optimizer)
    state, _ = resume(step, minimize.start(picture(), optimizer), range(2))
    state = minimize.enlarge(state, optimizer, (6, 7))
    state, reports = resume(step, state, range(2, 30))
    assert [report["step"] for report in reports] == list(range(3, 31))
    assert reports[-1]["J"] < reports[0]["J"]
    assert state.best.shape == (1, 6, 7, 3)


@pytest.mark.slow
def test_enlarge_starts_lbfgs_anew():
    optimizer = optax.lbfgs(memory_size=3)
    state, _ = run(quadratic, optimizer, picture(), 3, data=jnp.float32(0.01))
    larger = minimize.enlarge(state, optimizer, (8, 11))
    assert_same(larger.optimizer, optimizer.init(larger.canvas))


@pytest.mark.slow
def test_lbfgs_beats_gradient_descent_on_an_ill_conditioned_quadratic():
    canvas = picture()
    weights = jnp.logspace(-3, 0, canvas.size).reshape(canvas.shape)
    # The longest step at which gradient descent is stable for certain.
    _, slow = run(quadratic, optax.sgd(1.0), canvas, 20, weights)
    _, fast = run(quadratic, optax.lbfgs(), canvas, 20, weights)
    assert slow[-1]["J"] < slow[0]["J"]
    assert fast[-1]["J"] < 0.1 * slow[-1]["J"]
