"""Style losses against NumPy and SciPy in float64, their gradients, and their balance."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
import scipy.spatial
import small
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nstvis.synthesis import style, style_losses
from nstvis.synthesis.style_losses import moments, neighbours, swd, w2

NAMES = ["gram", "moments", "w2", "swd", "neighbours"]
KEY = jax.random.key(3)
ONE = np.ones(1, np.float32)
SHARES = np.array([0.75, 0.25], np.float32)
# Of canvas, first style and second style; the last maps have fewer positions than
# channels.
SHAPES = [
    ((1, 9, 11, 6), (1, 7, 8, 6), (1, 12, 10, 6)),
    ((1, 2, 3, 12), (1, 3, 3, 12), (1, 1, 5, 12)),
]


def draw(seed, shape=(1, 6, 7, 5)):
    """Correlated channels after a ReLU, like a layer's, about half of them 0."""
    random = np.random.default_rng(seed)
    mixed = random.standard_normal(shape) @ random.standard_normal((shape[-1],) * 2)
    return np.maximum(mixed + random.standard_normal(shape[-1]), 0).astype(np.float32)


def rows(activations):
    return np.asarray(activations, np.float64).reshape(-1, activations.shape[-1])


def made(name, styles, shares=ONE):
    """Returns a loss, and a function from activations and a key to its value."""
    kind = style_losses.find(name)
    statistics = kind.statistics or (lambda activations: activations)
    loss = kind.make([statistics(x) for x in styles], jnp.asarray(shares))
    return loss, lambda canvas, key: loss(statistics(canvas), key)


@functools.cache
def compiled(name):
    """Returns a function from canvas, styles and shares to the balanced loss."""

    @jax.jit
    def compiled(canvas, styles, shares):
        loss, value = made(name, styles, shares)
        return loss.scale * value(canvas, KEY)

    return compiled


def balanced(name, canvas, styles, shares=ONE):
    return compiled(name)(canvas, styles, shares)


def with_keys(name, canvas, painted, keys):
    """Returns the balanced loss for each key."""
    loss, value = made(name, [painted])
    value = jax.jit(value)
    return [float(loss.scale * value(canvas, key)) for key in keys]


# Oracles, for one style and for two.


def mixture(styles, shares, statistic):
    return sum(
        share * statistic(rows(x)) for share, x in zip(shares, styles, strict=True)
    )


def moments_oracle(canvas, styles, shares):
    """Of the mixture's positions: each style's have its share of the weight."""
    gram = mixture(styles, shares, lambda x: x.T @ x / len(x))
    mean = mixture(styles, shares, lambda x: x.mean(0))
    deviation = np.sqrt(np.diag(gram) - mean**2)
    x = rows(canvas)
    pairs = [(x.T @ x / len(x), gram), (x.mean(0), mean), (x.std(0), deviation)]
    errors = [((a - b) ** 2).sum() / (b**2).sum() for a, b in pairs]
    return np.average(errors, weights=[1, 0.1, 0.1])


def raised(covariance, mean=0):
    second = covariance + np.outer(mean, mean)
    floor = 1e-3 * np.linalg.norm(covariance) + 1e-6 * np.linalg.norm(second)
    return covariance + floor * np.eye(len(covariance))


def w2_oracle(canvas, styles, shares):
    mean = mixture(styles, shares, lambda x: x.mean(0))
    gram = mixture(styles, shares, lambda x: x.T @ x / len(x))
    t = raised(gram - np.outer(mean, mean), mean)
    x = rows(canvas)
    s = raised(np.cov(x.T, bias=True), x.mean(0))
    root = scipy.linalg.sqrtm(t)
    cross = scipy.linalg.sqrtm(root @ s @ root).real
    distance = ((x.mean(0) - mean) ** 2).sum() + np.trace(s + t - 2 * cross)
    return distance / (mean @ mean + np.trace(t))


def swd_oracle(canvas, styles, shares):
    *_, key = jax.random.split(KEY, 3)
    normal = np.asarray(jax.random.normal(key, (canvas.shape[-1], swd.DIRECTIONS)))
    directions = normal / np.linalg.norm(normal, axis=0)
    found = np.sort(rows(canvas) @ directions, 0)
    # The k-th of n sorted numbers is the quantile (k + 1/2) / n.
    levels = (np.arange(len(found)) + 0.5) / len(found)
    wanted = mixture(
        styles,
        shares,
        lambda x: np.quantile(x @ directions, levels, axis=0, method="hazen"),
    )
    square = mixture(styles, shares, lambda x: (x**2).mean())
    return 2 * ((found - wanted) ** 2).mean() / square


def neighbours_oracle(canvas, styles, shares):
    def to_nearest(x):
        cosines = scipy.spatial.distance.cdist(
            rows(canvas) - rows(canvas).mean(0), x - x.mean(0), "cosine"
        )
        return ((rows(canvas) - x[cosines.argmin(1)]) ** 2).sum(1).mean()

    square = mixture(styles, shares, lambda x: (x**2).sum(1).mean())
    return 0.5 * mixture(styles, shares, to_nearest) / square


ORACLES = {
    "moments": (moments_oracle, 1e-4),
    "w2": (w2_oracle, 1e-5),
    "swd": (swd_oracle, 1e-4),
    "neighbours": (neighbours_oracle, 1e-4),
}


@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("name", ORACLES)
def test_a_loss_is_its_oracle(name, shapes):
    canvas, *styles = (draw(seed, shape) for seed, shape in enumerate(shapes))
    oracle, tolerance = ORACLES[name]
    for blended, shares in ((styles[:1], ONE), (styles, SHARES)):
        expected = oracle(canvas, blended, shares)
        found = balanced(name, canvas, blended, shares)
        np.testing.assert_allclose(found, expected, rtol=tolerance)


def spectrum(eigenvalues, seed):
    """A covariance with these eigenvalues."""
    random = np.random.default_rng(seed)
    axes = np.linalg.qr(random.standard_normal((len(eigenvalues),) * 2))[0]
    return axes * eigenvalues @ axes.T


@pytest.mark.parametrize(
    "eigenvalues",
    [
        np.linspace(1, 3, 48),
        np.geomspace(1e-3, 1, 48),
        np.r_[np.zeros(40), np.linspace(1, 3, 8)],
        np.r_[np.zeros(63), 1],
    ],
    ids=["well-conditioned", "decaying", "rank 8", "rank 1"],
)
@pytest.mark.parametrize("size", [1e-6, 1, 1e6])
def test_newton_schulz_is_sqrtm(eigenvalues, size):
    """Of covariances, and of the product of two, whose condition is squared."""
    s, t = (raised(size * spectrum(eigenvalues, seed)) for seed in (0, 1))
    for matrix in (s, scipy.linalg.sqrtm(t) @ s @ scipy.linalg.sqrtm(t)):
        expected = scipy.linalg.sqrtm(matrix).real
        with jax.enable_x64():
            root, inverse = map(np.asarray, w2.roots(jnp.asarray(matrix)))
        np.testing.assert_allclose(root @ inverse, np.eye(len(s)), atol=1e-6)
        assert np.linalg.norm(root - expected) < 1e-9 * np.linalg.norm(expected)
        single, _ = w2.roots(jnp.asarray(matrix, jnp.float32))
        assert np.linalg.norm(single - expected) < 1e-4 * np.linalg.norm(expected)
        trace = w2.trace_of_root(jnp.asarray(matrix, jnp.float32))
        np.testing.assert_allclose(trace, np.trace(expected), rtol=1e-4)


# Gradients.


@pytest.mark.parametrize("shape", [(1, 6, 7, 5), (1, 2, 2, 5)])
@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_that_of_finite_differences(name, shape):
    with jax.enable_x64():
        canvas, *styles = (
            jnp.asarray(draw(seed, shape), jnp.float64) for seed in range(3)
        )
        # Positions of zeros alone are ties, at which sorting has two derivatives.
        keys = jax.random.split(jax.random.key(0))
        direction, noise = (jax.random.normal(k, shape, jnp.float64) for k in keys)
        canvas += 0.1 * noise
        _, loss = made(name, styles, jnp.asarray(SHARES, jnp.float64))
        along = jax.jit(lambda step: loss(canvas + step * direction, KEY))
        found = jax.grad(along)(0.0)
        expected = (along(1e-6) - along(-1e-6)) / 2e-6
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("value", [0.0, 0.1, 300.0])
@pytest.mark.parametrize("name", NAMES)
def test_constant_features_have_finite_losses_and_gradients(name, value):
    constant = jnp.full((1, 6, 7, 5), value)
    pairs = [(constant, draw(0)), (draw(0), constant), (constant, constant)]
    for canvas, painted in pairs:
        loss, value = made(name, [painted])
        found, gradient = jax.value_and_grad(value)(canvas, KEY)
        assert np.isfinite(found * loss.scale)
        assert np.isfinite(gradient * loss.scale).all()


@pytest.mark.parametrize("guided", [False, True])
def test_moments_of_narrow_numbers_are_summed_in_float32(guided):
    """Against the same numbers in float64."""
    x = jnp.asarray(draw(0, (1, 90, 80, 6)), jnp.bfloat16)
    guide = np.random.default_rng(0).random((90, 80), np.float32) if guided else None
    found = style_losses.moment_sums(x, guide)
    wide = rows(x)
    if guided:
        wide = rows(guide.astype(x.dtype)[..., None] * np.asarray(x[0]))
    first = wide.sum(0) if guide is None else np.float64(guide.ravel()) @ wide
    np.testing.assert_allclose(found.second, wide.T @ wide, rtol=1e-5)
    np.testing.assert_allclose(found.first, first, rtol=1e-5)
    assert found.first.dtype == found.second.dtype == jnp.float32


# Properties.


@settings(max_examples=10, deadline=None)
@given(
    name=st.sampled_from(NAMES),
    size=st.sampled_from([0.25, 4.0, 32.0]),
    seed=st.integers(0, 99),
)
def test_balanced_losses_know_neither_scale_nor_place(name, size, seed):
    canvas, painted = draw(seed), draw(seed + 100)
    expected = balanced(name, canvas, [painted])
    rolled = np.roll(size * canvas, (2, 3), (1, 2))
    found = balanced(name, rolled, [size * painted])
    np.testing.assert_allclose(found, expected, rtol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_only_the_style_itself_is_at_no_distance(name):
    """Not even at another size, if its positions are the same, more often."""
    painted = draw(0)
    for same in (painted[:, ::-1], np.tile(painted, (1, 2, 3, 1))):
        assert abs(balanced(name, same, [painted])) < 1e-2
    assert balanced(name, draw(1), [painted]) > 0.05


@pytest.mark.parametrize(
    ("name", "expected"), [("gram", 1), ("moments", 1), ("w2", 1), ("swd", 2)]
)
def test_an_empty_canvas_is_at_distance_1_times_the_balance(name, expected):
    keys = jax.random.split(KEY, 8)  # `swd` is 1 on average
    painted = draw(0)
    losses = with_keys(name, 0 * painted, painted, keys)
    np.testing.assert_allclose(np.mean(losses), expected, rtol=0.1)


def test_directions_and_samples_are_new_with_each_key():
    large = draw(0, (1, 50, 60, 5)), draw(1, (1, 50, 50, 5))
    for name in ("swd", "neighbours"):
        assert len(set(with_keys(name, *large, _keys(5)))) > 1


def _keys(count):
    return list(jax.random.split(KEY, count))


def test_samples_of_large_maps_estimate_the_whole():
    """Means over keys against the oracles, which use every position."""
    canvas, painted = draw(0, (1, 64, 64, 5)), draw(1, (1, 50, 60, 5))
    found = with_keys("swd", canvas, painted, _keys(40))
    whole = swd_oracle(canvas, [painted], ONE)
    assert np.mean(found) == pytest.approx(whole, rel=0.15)


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 70), most=st.integers(1, 80), seed=st.integers(0, 999))
def test_a_sample_is_evenly_spaced(count, most, seed):
    numbers = jnp.arange(count)[:, None]
    found = np.ravel(style_losses.sample(numbers, most, jax.random.key(seed)))
    assert 1 <= len(found) <= most
    assert (found >= 0).all()
    assert len(set(np.diff(found))) <= 1
    if count <= most:
        assert len(found) == count


def test_every_row_is_sampled_some_time():
    numbers = jnp.arange(23)[:, None]
    sample = jax.jit(lambda key: style_losses.sample(numbers, 5, key))
    found = {int(i) for key in _keys(100) for i in np.ravel(sample(key))}
    assert found == set(range(23))


def test_a_constant_channels_deviation_is_nearly_0():
    sums = style_losses.moment_sums(jnp.full((1, 4, 4, 3), 7.0))
    assert moments.deviations(sums.mean, sums.gram).max() <= 1e-2


def test_no_gradient_goes_through_the_choice_of_neighbours():
    canvas, others = (jnp.asarray(rows(draw(seed)), jnp.float32) for seed in (0, 1))
    _, pull = jax.vjp(neighbours.nearest, canvas, others)
    assert all((x == 0).all() for x in pull(others[: len(canvas)]))


# In a transfer.

SETTINGS = style.Settings(
    weights="random",
    content_layers="",
    style_layers="conv1,conv2",
    gamma=0.0,
    size=40,
    scales=1,
    steps=20,
)


@pytest.mark.parametrize("name", NAMES[1:])
def test_other_units_are_refused(name):
    changed = dataclasses.replace(
        SETTINGS, model="alexnet_small", style_loss=name, units="ng"
    )
    with pytest.raises(ValueError, match="are those of style_loss=gram"):
        changed.check()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The path of a network that compiles soon."""
    return small.write(tmp_path_factory.mktemp("small"))[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES[1:])
def test_a_transfer_lowers_the_loss(name, model):
    random = np.random.default_rng(0)
    content, *styles = (
        Image.fromarray(random.integers(0, 256, (6, 8, 3), np.uint8)).resize((50, 40))
        for _ in range(3)
    )
    changed = dataclasses.replace(SETTINGS, model=model, style_loss=name)
    transfer = style.StyleTransfer(content, styles, changed)
    losses = [float(m.metrics["J_style"]) for m in transfer.run() if m.metrics]
    assert losses[-1] < 0.8 * losses[0]
