"""Style transfer, end to end on a small network with random filters."""

import dataclasses
import gc
import json
import logging
import math
import re
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import style as experiment
from nstvis import devices, images, models
from nstvis.runs import config
from nstvis.synthesis import canvas, objective, programs, style, style_settings
from nstvis.synthesis.layouts import Layout
from nstvis.synthesis.optimizers import LEARNING_RATES, make_optimizer

# A whole transfer in a second: the first three layers, one size, a few steps.
QUICK = style.Settings(
    model="alexnet_small",
    weights="random",
    pooling="max",
    content_layers="conv2",
    style_layers="conv1,conv2",
    style_loss="gram",
    beta=1.5,
    gamma=1e-3,
    size=40,
    scales=1,
    steps=3,
    jitter=8,
    margin=0,
)


# Most transfers here run the same program.


def quick(**changes):
    return dataclasses.replace(QUICK, **changes)


def picture(width, height, seed=0, mode="RGB"):
    """Draws smooth random colours."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (6, 8, len(mode)), np.uint8)
    return Image.fromarray(small, mode=None).resize((width, height), Image.BICUBIC)


CONTENT, STYLE = picture(50, 40), picture(48, 36, seed=1)


def paint(content=CONTENT, styles=(STYLE,), **changes):
    return style.stylize(content, styles, quick(**changes))


def losses(content=CONTENT, styles=(STYLE,), **changes):
    painting = style.StyleTransfer(content, styles, quick(**changes))
    moments = [moment.metrics for moment in painting.run() if moment.metrics]
    return [{k: float(v) for k, v in metrics.items()} for metrics in moments]


@pytest.fixture(scope="module")
def network():
    return models.load("alexnet_small", "random", last="conv2")


def batch(image):
    return jnp.asarray(images.to_array(image))[None]


# The picture that comes out.


@pytest.mark.slow
@pytest.mark.parametrize(
    "size, expected", [((100, 80), (40, 32)), ((81, 101), (32, 40))]
)
def test_the_result_has_the_contents_aspect_ratio(size, expected):
    result = paint(picture(*size))
    assert (result.mode, result.size) == ("RGB", expected)


@pytest.mark.slow
def test_the_result_has_the_contents_transparency():
    content = picture(80, 64, mode="RGBA")
    content.putalpha(Image.linear_gradient("L").resize((80, 64)))
    result = paint(content)
    assert (result.mode, result.size) == ("RGBA", (40, 32))
    expected = content.getchannel("A").resize((40, 32), Image.LANCZOS)
    np.testing.assert_array_equal(result.getchannel("A"), expected)


@pytest.mark.slow
def test_sizes_go_from_coarse_to_fine():
    painting = style.StyleTransfer(CONTENT, [STYLE], quick(size=80, scales=2))
    moments = [(m.step, m.state.canvas.shape) for m in painting.run()]
    assert len(painting.costs) == 6
    coarse, fine = (1, 32, 40, 3), (1, 64, 80, 3)
    assert dict(moments) == {n: coarse if n <= 3 else fine for n in range(7)}


@pytest.mark.slow
def test_a_seed_decides_every_byte():
    first, again, other = (paint(seed=seed).tobytes() for seed in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.slow
@pytest.mark.parametrize("preserve_color", ["no", "luminance", "histogram"])
@pytest.mark.parametrize("name", ["black", "orange"])
def test_pictures_of_a_single_color_are_painted(name, preserve_color):
    plain, painted = (Image.new("RGB", x.size, name) for x in (CONTENT, STYLE))
    reports = losses(plain, [painted], preserve_color=preserve_color)
    assert all(np.isfinite(report["J"]) for report in reports)
    assert all(report["damping"] == 1 for report in reports)


# The objective.


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", LEARNING_RATES)
def test_every_optimizer_lowers_the_loss(optimizer):
    reports = losses(optimizer=optimizer, steps=20, jitter=0)
    assert reports[-1]["J"] < 0.8 * reports[0]["J"]


@pytest.mark.slow
def test_the_loss_is_the_weighted_sum_of_its_terms():
    weights = {"alpha": 3.0, "beta": 7.0, "gamma": 0.5}
    for report in losses(**weights):
        terms = [report[name] for name in ("J_content", "J_style", "TV")]
        assert min(terms) > 0
        expected = sum(w * t for w, t in zip(weights.values(), terms, strict=True))
        assert report["J"] == pytest.approx(expected, rel=1e-5)


def test_annealing_shortens_the_steps_of_each_size():
    """Of a gradient that stays the same, whose every step Adam makes as long."""
    gradient = jnp.ones((1, 2, 2, 3))
    state, found, expected = None, [], []
    for steps in (range(5), range(5, 12)):
        optimizer = make_optimizer("adam", 6.0, 0.0, Layout((2, 2)), annealed=steps)
        state = state or optimizer.init(gradient)
        for k in range(len(steps)):
            updates, state = optimizer.update(gradient, state)
            found.append(float(updates[0, 0, 0, 0]))
            expected.append(-3 * (1 + math.cos(math.pi * k / len(steps))))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def targets_of(network, settings, styles=(), content=None):
    forward, params = network
    content = batch(CONTENT) if content is None else content
    styles = list(styles) or [batch(STYLE)]
    layouts = [Layout(x.shape[1:3]) for x in (content, *styles)]
    make = objective.make_targets(forward, settings, layouts[0], layouts[1:])
    blend = style_settings.style_blend(settings.style_blend, len(styles))
    return jax.jit(make)(
        params,
        objective.Picture(content, {}),
        [objective.Picture(style, {}) for style in styles],
        {"": jnp.array(blend)},
        (settings.alpha, settings.beta, settings.gamma),
    )


def objective_of(forward, settings, height=40, width=50):
    return objective.make_objective(forward, settings, Layout((height, width)))


@pytest.mark.slow
def test_layers_have_the_weights_given(network):
    contributions = []
    for layers in ("conv1:2", "conv2:0.5", "conv1:2,conv2:0.5"):
        settings = quick(style_layers=layers)
        total = objective_of(network[0], settings)
        canvas, key = batch(picture(50, 40, 3)), jax.random.key(0)
        _, metrics = total(canvas, targets_of(network, settings), key)
        contributions.append(float(metrics["J_style"]))
    assert contributions[2] == pytest.approx(sum(contributions[:2]), rel=1e-4)


@pytest.mark.slow
def test_styles_are_blended_by_their_weights(network):
    styles = [batch(STYLE), batch(picture(40, 40, seed=2))]

    def grams(styles, blend):
        losses = targets_of(network, quick(style_blend=blend), styles).styles
        return {name: loss.target for name, loss in losses.items()}

    first, second = (grams([s], "") for s in styles)
    for blend, share in {"": 0.5, "3,1": 0.75, "0, 2": 0}.items():
        for name, gram in grams(styles, blend).items():
            expected = share * first[name] + (1 - share) * second[name]
            np.testing.assert_allclose(gram, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_jitter_rolls_canvas_and_content_alike(network):
    forward, _ = network
    rolling = quick(jitter=3, units="neural_style", beta=1.0, gamma=0.0)
    still = dataclasses.replace(rolling, jitter=0)
    # Noise, so that no two shifts have the same loss.
    canvas, content, painting = (
        jax.random.uniform(jax.random.key(i), (1, 40, 51, 3), maxval=255)
        for i in range(3)
    )

    def loss_of(settings):
        total = objective_of(forward, settings, 40, 51)
        return jax.jit(jax.value_and_grad(lambda *args: total(*args)[0]))

    key, fixed = jax.random.key(0), {}
    in_place, rolled = loss_of(still), loss_of(rolling)
    for shift in np.ndindex(3, 3):
        shifted = jnp.roll(content, shift, (1, 2))
        targets = targets_of(network, rolling, [painting], shifted)
        moved = jnp.roll(canvas, shift, (1, 2))
        loss, gradient = in_place(moved, targets, key)
        fixed[shift] = loss, jnp.roll(gradient, (-shift[0], -shift[1]), (1, 2))
    values = np.array([loss for loss, _ in fixed.values()])
    assert np.diff(np.sort(values)).min() > 1e-5 * values.mean()  # told apart
    targets, shifts = targets_of(network, rolling, [painting], content), set()
    for seed in range(12):
        loss, gradient = rolled(canvas, targets, jax.random.key(seed))
        shift = list(fixed)[np.abs(values - loss).argmin()]
        np.testing.assert_allclose(loss, fixed[shift][0], rtol=1e-5)
        error = np.linalg.norm(gradient - fixed[shift][1])
        assert error < 1e-4 * np.linalg.norm(gradient)
        shifts.add(shift)
    assert len(shifts) > 4


def test_jitter_leaves_the_variation_alone(network):
    settings = quick(jitter=8)
    targets = targets_of(network, settings)
    total = jax.jit(objective_of(network[0], settings))
    metrics = [total(batch(CONTENT), targets, jax.random.key(i))[1] for i in range(3)]
    assert len({float(x["J_style"]) for x in metrics}) == 3
    assert len({float(x["TV"]) for x in metrics}) == 1


@pytest.mark.slow
@pytest.mark.parametrize("style_loss", ["gram", "sliced"])
def test_lbfgs_has_the_same_objective_at_every_step(network, sliced, style_loss):
    path = sliced if style_loss == "sliced" else style_loss
    settings = quick(optimizer="lbfgs", jitter=8, style_loss=path)
    targets = targets_of(network, settings)
    total = jax.jit(objective_of(network[0], settings))
    canvas = batch(picture(50, 40, 3))
    values = {float(total(canvas, targets, jax.random.key(i))[0]) for i in range(3)}
    assert len(values) == 1


# Style losses.

# What a fork writes: the quantiles of projections on random directions.
SLICED = """
import jax
import jax.numpy as jnp
from nstvis.synthesis.style_losses import StyleLoss

def style_loss(styles, shares):
    def quantiles(activations, directions):
        projected = activations.reshape(-1, activations.shape[-1]) @ directions
        return jnp.quantile(projected, jnp.linspace(0, 1, 9), axis=0)

    def distance(activations, target, key):
        directions = jax.random.normal(key, (activations.shape[-1], 4))
        blend = sum(
            share * quantiles(style, directions)
            for style, share in zip(target["styles"], target["shares"])
        )
        return jnp.mean((quantiles(activations, directions) - blend) ** 2)

    squares = [jnp.mean(style**2) * style.shape[-1] for style in styles]
    scale = 1 / sum(s * x for s, x in zip(shares, squares))
    return StyleLoss({"styles": list(styles), "shares": shares}, scale, distance)
"""


@pytest.fixture(scope="module")
def sliced(tmp_path_factory):
    """The path of a file with a style loss."""
    path = tmp_path_factory.mktemp("losses") / "sliced.py"
    path.write_text(SLICED)
    return str(path)


@pytest.mark.slow
def test_a_style_loss_has_its_own_target_key_and_scale(network, sliced):
    """Against NumPy, for a blend of two styles of different sizes."""
    forward, params = network
    settings = quick(style_loss=sliced, style_blend="3,1", style_layers="conv1:2,conv2")
    styles = [batch(STYLE), batch(picture(40, 40, seed=2))]
    canvas = batch(picture(50, 40, 3))
    targets = targets_of(network, settings, styles)
    key = jax.random.key(5)
    total = jax.jit(objective_of(forward, dataclasses.replace(settings, jitter=0)))
    found = [float(total(canvas, targets, k)[1]["J_style"]) for k in (key, key)]
    other = float(total(canvas, targets, jax.random.key(6))[1]["J_style"])
    assert found[0] == found[1] != other
    seen = [
        {k: np.asarray(x, float).reshape(-1, x.shape[-1]) for k, x in layers.items()}
        for layers in (jax.jit(forward)(params, x) for x in [*styles, canvas])
    ]
    expected = 0
    for name, weight in {"conv1": 2, "conv2": 1}.items():
        first, second, painted = (layers[name] for layers in seen)
        layer_key = jax.random.fold_in(key, zlib.crc32(name.encode()))
        directions = np.asarray(jax.random.normal(layer_key, (first.shape[1], 4)))
        a, b, g = (
            np.quantile(x @ directions, np.linspace(0, 1, 9), axis=0)
            for x in (first, second, painted)
        )
        scale = 1 / (0.75 * (first**2).mean() + 0.25 * (second**2).mean())
        distance = ((g - 0.75 * a - 0.25 * b) ** 2).mean()
        expected += weight * scale / first.shape[1] * distance
    assert found[0] == pytest.approx(expected, rel=1e-3)


def test_a_style_loss_is_found_by_its_name():
    with pytest.raises(ValueError, match="did you mean 'gram'"):
        paint(style_loss="grm")


@pytest.mark.slow
def test_a_run_has_a_style_loss_of_ones_own(sliced, tmp_path, caplog):
    for name, image in {"content": CONTENT, "style": STYLE}.items():
        image.save(tmp_path / f"{name}.png")
    files = {name: str(tmp_path / f"{name}.png") for name in ("content", "style")}
    fields = vars(QUICK) | files | {"style_loss": sliced}
    with caplog.at_level(logging.INFO):
        experiment.run(experiment.Config(**fields), tmp_path)
    assert "sliced(conv1)" in caplog.text
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    styles = [json.loads(line)["J_style"] for line in lines]
    same = [report["J_style"] for report in losses(style_loss=sliced)]
    assert styles == pytest.approx(same, rel=1e-3)
    assert styles[0] != pytest.approx(losses()[0]["J_style"], rel=0.1)


def test_other_units_are_those_of_gram_losses(sliced):
    with pytest.raises(ValueError, match="are those of style_loss=gram"):
        paint(style_loss=sliced, units="ng")


@pytest.mark.slow
def test_narrow_features_have_nearly_the_same_losses():
    wide, narrow = (
        losses(precision=precision, steps=20, jitter=0)[0]  # `adam` is compiled so
        for precision in ("float32", "bfloat16")
    )
    assert narrow["J_style"] != wide["J_style"]
    for key in ("J_content", "J_style"):
        assert narrow[key] == pytest.approx(wide[key], rel=0.02)


# Masks.


def halves(folder, name, size, first="red", second="blue"):
    mask = Image.new("RGB", size, first)
    mask.paste(second, (size[0] // 2, 0, *size))
    mask.save(folder / name)
    return str(folder / name)


@pytest.mark.slow
def test_each_region_has_the_statistics_of_its_own_style(tmp_path):
    """Left and right, which are the other way around in the second style."""
    smooth = picture(64, 48, 6)
    blocks = np.random.default_rng(0).integers(0, 256, (16, 22, 3), np.uint8)
    rough = Image.fromarray(blocks.repeat(3, 0).repeat(3, 1)[:, :64])
    both = Image.new("RGB", (64, 48))
    both.paste(rough.crop((0, 0, 32, 48)), (32, 0))
    both.paste(smooth.crop((32, 0, 64, 48)), (0, 0))
    content = picture(64, 48, 3)
    masked = {
        "content_masks": halves(tmp_path, "content.png", (64, 48)),
        "style_masks": halves(tmp_path, "style.png", (64, 48), "blue", "red"),
    }
    how = style.Settings(
        content_layers="",
        style_layers="conv1_1,conv2_1",
        style_loss="gram",
        size=64,
        scales=1,
        steps=100,
        start="mean",
        margin=8,
        **masked,
    )
    painted = images.to_array(style.stylize(content, [both], how))

    def roughness(array):
        return np.abs(np.diff(array, axis=1)).mean()

    sides = (
        (slice(0, 26), rough.crop((0, 0, 32, 48))),
        (
            slice(38, 64),
            smooth.crop((32, 0, 64, 48)),
        ),
    )
    for columns, style_part in sides:
        found, expected = painted[:, columns], images.to_array(style_part)
        assert roughness(found) == pytest.approx(roughness(expected), rel=0.3)
        np.testing.assert_allclose(found.mean((0, 1)), expected.mean((0, 1)), atol=40)


@pytest.mark.slow
def test_regions_are_shared_by_the_styles_that_have_them(tmp_path):
    """A mask of one colour for all is no mask; a style without a region has no say."""
    plain = quick(steps=1, jitter=0, style_blend="1,3")
    names = [str(tmp_path / f"{i}.png") for i in range(3)]
    styles = [STYLE, picture(40, 40, seed=2)]
    for name, image in zip(names, [CONTENT, *styles], strict=True):
        Image.new("RGB", image.size, "red").save(name)
    masked = {"content_masks": names[0], "style_masks": ",".join(names[1:])}
    masked = dataclasses.replace(plain, **masked)
    found, expected = (losses_of(styles, how)["J_style"] for how in (masked, plain))
    assert found == pytest.approx(expected, rel=1e-4)


def losses_of(styles, settings):
    *_, last = style.StyleTransfer(CONTENT, styles, settings).run()
    return {name: float(value) for name, value in last.metrics.items()}


def test_masks_are_refused_in_one_line(tmp_path):
    wrong = halves(tmp_path, "content.png", CONTENT.size)
    other = halves(tmp_path, "style.png", STYLE.size, "red", "green")
    with pytest.raises(ValueError, match="give both"):
        paint(content_masks=wrong)
    with pytest.raises(ValueError, match="#0000ff is in .*content.png but not in"):
        paint(content_masks=wrong, style_masks=other)
    with pytest.raises(ValueError, match="swd compares positions"):
        paint(content_masks=wrong, style_masks=other, style_loss="swd")
    with pytest.raises(ValueError, match="swd compares positions"):
        paint(block=64, style_loss="swd")


# Sizes, starts and colours.


@pytest.mark.slow
def test_style_scale_is_the_size_of_the_style(monkeypatch):
    sides, resize = [], images.resize

    def spy(image, side):
        sides.append(side) if image.size == STYLE.size else None
        return resize(image, side)

    monkeypatch.setattr(images, "resize", spy)
    assert CONTENT.size != STYLE.size
    narrow = math.ceil(style_settings.SHORTEST_SIDE * max(STYLE.size) / min(STYLE.size))
    for scale, side in {2.0: 80, 0.1: narrow}.items():
        sides.clear()
        next(style.StyleTransfer(CONTENT, [STYLE], quick(style_scale=scale)).run())
        assert set(sides) == {side}


@pytest.mark.slow
def test_the_canvas_starts_as_asked(tmp_path):
    content = batch(CONTENT)

    def start(name, seed=0, **changes):
        key = jax.random.key(seed)
        settings = quick(start=name, **changes)
        return style.first_canvas(content, [batch(STYLE)], settings, key)

    np.testing.assert_array_equal(start("content"), content)
    noise = start("noise")
    assert noise.shape == content.shape
    assert noise.min() >= 0 and noise.max() <= 255
    assert abs(noise.mean() - 128) < 2 and abs(noise.std() - 40) < 2
    assert np.any(noise != start("noise", seed=1))
    STYLE.save(tmp_path / "start.png")
    expected = batch(STYLE.resize(CONTENT.size))
    np.testing.assert_array_equal(start(str(tmp_path / "start.png")), expected)
    np.testing.assert_array_equal(start("content", start_noise=1.0), noise)
    mixed = start("content", start_noise=0.25)
    np.testing.assert_allclose(mixed, 0.75 * content + 0.25 * noise, atol=1e-4)
    colored = canvas.recolored(content, [batch(STYLE)], [1])
    found = start("content", start_colors="style")
    np.testing.assert_array_equal(found, np.clip(colored, 0, 255))
    assert np.abs(found - content).mean() > 10


def test_luminance_keeps_the_contents_chroma():
    settings = quick(preserve_color="luminance")
    painting = style.StyleTransfer(CONTENT, [STYLE], settings)
    *_, last = painting.run()
    content = images.to_array(images.resize(CONTENT, 40))
    # Rows I and Q of the matrix from RGB to YIQ.
    chroma = np.array([[0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]]).T
    found = painting.array(last.state)
    np.testing.assert_allclose(found @ chroma, content @ chroma, atol=0.05)
    luma = np.array([0.299, 0.587, 0.114])
    painted = np.asarray(last.state.best[0])
    np.testing.assert_allclose(found @ luma, painted @ luma, atol=0.05)
    assert np.abs(painted @ chroma - content @ chroma).max() > 10


@pytest.mark.slow
def test_histogram_recolors_the_style():
    arrays = images.to_array(STYLE), images.to_array(CONTENT)
    recolored = images.to_image(images.match_colors(*arrays))
    found = paint(preserve_color="histogram")
    assert found.tobytes() == paint(styles=[recolored]).tobytes()
    assert found.tobytes() != paint().tobytes()


# What the user is told.


def test_layer_weights_are_1_unless_given():
    assert style_settings.layer_weights("conv1:0.5, conv2") == {
        "conv1": 0.5,
        "conv2": 1.0,
    }
    assert style_settings.layer_weights("conv1:1e3,") == {"conv1": 1000.0}
    assert style_settings.layer_weights("") == {}
    with pytest.raises(ValueError, match="'much' in 'conv1:much' should be a number"):
        style_settings.layer_weights("conv1:much")


def test_style_blend_sums_to_1():
    assert style_settings.style_blend("", 4) == [0.25] * 4
    assert style_settings.style_blend("2,1,1", 3) == [0.5, 0.25, 0.25]


@pytest.mark.parametrize("blend", ["1", "1,2,3", "-1,2", "0,0", "1,", "a,b"])
def test_a_style_blend_that_does_not_fit_is_refused(blend):
    with pytest.raises(ValueError, match="number"):
        style_settings.style_blend(blend, 2)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model": "alexnet_smal"}, "did you mean 'alexnet_small'"),
        ({"content_layers": "cnv2"}, "did you mean 'conv2'"),
        ({"style_layers": "conv1,convv5"}, "did you mean 'conv5'"),
        ({"units": "balance"}, "did you mean 'balanced'"),
        ({"optimizer": "adm"}, "did you mean 'adam'"),
        ({"preserve_color": "histgram"}, "did you mean 'histogram'"),
        ({"pooling": "median"}, "choose from average, max"),
        ({"alpha": 0.0, "beta": 0.0, "gamma": 0.0}, "nothing is minimised"),
        ({"content_layers": "conv3:1e300"}, "at most 1e6"),
        ({"size": 39}, "short side is below 32 pixels"),
        ({"style_blend": "1,1"}, "should be 1 number"),
        ({"start_noise": 0.5}, "are for start=content, not noise"),
        ({"start_colors": "style"}, "are for start=content, not noise"),
        ({"style_scale": 0.0}, "style_scale should be at least 0.05"),
        ({"scales": 0}, "scales should be at least 1"),
        ({"steps": 0}, "steps should be at least 1"),
        ({"tv_power": 3}, "tv_power should be 2 or 1, not 3"),
        ({"alpha": -1.0}, "alpha should be at least 0"),
        ({"beta": -1.0}, "beta should be at least 0"),
        ({"gamma": -1.0}, "gamma should be at least 0"),
        ({"gamma": math.inf}, "gamma=inf should be a finite number"),
        ({"learning_rate": -1.0}, "learning_rate should be at least 0"),
        ({"smoothing": 100.0}, "smoothing should be at least 0 and at most 4"),
        ({"style_scale": 1e-9}, "style_scale should be at least 0.05"),
        ({"style_scale": 1e9}, "at most 10, not 1000000000.0"),
        ({"size": 10**6}, "size should be at least 32 and at most 16384"),
        ({"seed": 2**64}, "should fit in 64 bits"),
        ({"content_layers": "conv3:-1"}, "should be a number above 0"),
        ({"style_layers": "conv1,conv1:2"}, "conv1 is given twice"),
        ({"content_layers": "", "style_layers": " "}, "are both empty"),
        ({"optimizer": "gd", "units": "ng"}, "give gd a learning_rate"),
        ({"start": "noisy"}, "did you mean 'noise'"),
        ({"style_loss": "nowhere/wasserstein.py"}, "no such style_loss file"),
        ({"style_blend": "nan"}, "should be a number"),
        ({"pooling": "maxx"}, "did you mean 'max'"),
    ],
)
def test_a_wrong_setting_is_refused_with_advice(changes, message):
    with pytest.raises((ValueError, OSError), match=re.escape(message)):
        paint(**changes)


@pytest.mark.slow
def test_a_margin_is_painted_and_cropped(tmp_path):
    """Steps too small to see: at both sizes, the picture stays where it began."""
    start = tmp_path / "start.png"
    CONTENT.save(start)
    how = {"size": 80, "scales": 2, "steps": 1, "jitter": 0, "margin": 16}
    with jax.default_device(jax.devices()[0]):
        painted = paint(start=str(start), learning_rate=1e-9, **how)
    assert painted.size == (80, 64)
    difference = images.to_array(painted) - images.to_array(CONTENT.resize((80, 64)))
    assert np.abs(difference).mean() < 2
    assert np.abs(difference).max() < 20


def test_presets_are_within_the_bounds():
    for preset in style_settings.PRESETS.values():
        config.check(style.Settings(**preset))


def test_a_transfer_needs_a_style():
    with pytest.raises(ValueError, match="at least one style"):
        paint(styles=[])


@pytest.mark.slow
def test_nothing_as_large_as_the_picture_stays_but_state_and_content():
    gc.collect()
    before = jax.live_arrays()
    moments = style.StyleTransfer(CONTENT, [STYLE], quick()).run()
    state = [moment.state for moment, _ in zip(moments, range(2), strict=False)][1]
    held = [x for x in jax.live_arrays() if x.shape == state.canvas.shape]
    leaves = [x for x in jax.tree.leaves(state) if x.shape == state.canvas.shape]
    assert len(leaves) == 4  # the canvas, the best, and Adam's two moments
    ours = [x for x in held if all(x is not y for y in before)]
    assert len(ours) == 5  # and the content, which is rolled like the canvas


@pytest.mark.slow
def test_a_picture_too_large_for_the_memory_is_refused_with_advice(monkeypatch):
    needs = [10**6]
    monkeypatch.setattr(devices, "free_memory", lambda: needs[-1])
    with pytest.raises(MemoryError, match=r"40 x 32 pixels.*lower the size$"):
        paint()
    needed_memory = devices.needed_memory
    monkeypatch.setattr(
        devices, "needed_memory", lambda p: needs.append(needed_memory(p)) or needs[-1]
    )
    monkeypatch.setattr(devices, "free_memory", lambda: 0.6 * max(needs))
    with jax.default_device(jax.devices()[0]):
        with pytest.raises(MemoryError, match="or leave block=-1") as refusal:
            paint(size=320, margin=16, block=0)
        *_, fits = re.findall(r"\d+ should fit", str(refusal.value))
        paint(size=int(fits.split()[0]), steps=1, margin=16, block=0)


@pytest.mark.slow
def test_a_picture_too_large_for_the_memory_is_painted_in_blocks(monkeypatch, caplog):
    with jax.default_device(jax.devices()[0]):
        whole, needs = paint(size=400, steps=1, jitter=0), []
    programs._compiled.cache_clear()
    needed_memory = devices.needed_memory
    monkeypatch.setattr(
        devices, "needed_memory", lambda p: needs.append(needed_memory(p)) or needs[-1]
    )
    monkeypatch.setattr(devices, "free_memory", lambda: 0.9 * max(needs))
    with jax.default_device(jax.devices()[0]), caplog.at_level(logging.INFO):
        painted = paint(size=400, steps=1, jitter=0)
    assert re.search(r"400 x 320 pixels needs .* in \d+ blocks", caplog.text)
    assert re.search(r"1 steps in \d+ blocks: about [\d.]+ minutes", caplog.text)
    assert needs[-1] < 0.9 * max(needs)
    difference = np.abs(images.to_array(painted) - images.to_array(whole))
    assert difference.max() <= 1


def test_random_filters_are_said_aloud(caplog):
    with caplog.at_level(logging.WARNING):
        paint(seed=5)
    assert "random (seed 5), not trained" in caplog.text


@pytest.mark.slow
def test_the_log_tells_the_objective_in_canonical_units(caplog):
    with caplog.at_level(logging.INFO):
        settings = {"units": "ng", "alpha": 10.0, "beta": 40.0, "gamma": 0.5}
        paint(**settings, style_layers="conv1:0.2,conv2", steps=1)
    line = next(m for m in caplog.messages if "J_content" in m)
    assert line.startswith("40 x 32: J = ")
    # conv2 has 192 channels at 10 x 8 positions, of which Ng takes half the mean.
    alpha = f"{10 / (2 * 192 * 9 * 7):.3g}"
    assert line.endswith(
        f"{alpha} J_content(conv2) + 8 E(conv1) + 40 E(conv2) + 0.5 TV"
    )


FIVE = "conv1,conv2,conv3,conv4,conv5"


@pytest.mark.slow
def test_the_flop_of_a_step_are_those_of_its_convolutions():
    settings = quick(size=64, jitter=0, style_layers=FIVE)
    with jax.default_matmul_precision("highest"):  # not Winograd's, which are fewer
        painting = style.StyleTransfer(CONTENT, [STYLE], settings)
    # alexnet_small at 64 x 51 pixels: positions, inputs, window and outputs of each.
    layers = {
        "conv1": (32 * 26, 3 * 49 * 64),
        "conv2": (15 * 12, 64 * 25 * 192),
        "conv3": (7 * 5, 192 * 9 * 384),
        "conv4": (7 * 5, 384 * 9 * 256),
        "conv5": (7 * 5, 256 * 9 * 256),
    }
    forward = sum(2 * places * weights for places, weights in layers.values())
    assert 1.8 * forward < painting.costs[0] < 3 * forward  # there and back
