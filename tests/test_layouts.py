"""Blocks and devices change nothing: the whole picture's objective and its gradient."""

import dataclasses
import functools
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small as small_files
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_runs import finish, signal_at, start_hosts, steps

from nstvis import devices, images, models
from nstvis.runs.checkpoints import Checkpoints
from nstvis.synthesis import blocks, divided, fitting, losses, objective, style
from nstvis.synthesis.layouts import Layout
from nstvis.synthesis.objective import Picture
from nstvis.synthesis.offloaded import Offloaded
from nstvis.synthesis.optimizers import LEARNING_RATES
from nstvis.synthesis.style import Settings
from nstvis.synthesis.style_settings import layer_weights

KEY = jax.random.key(0)
# Content and style layers; the height and width of an odd picture; the side of its blocks.
NETWORKS = {
    "vgg_small": ("conv3_2", "conv1_1,conv4_1", (181, 100), 64),
    "alexnet_small": ("conv3", "conv1,conv2,conv3,conv4,conv5", (250, 60), 64),
    "alexnet": ("conv3", "conv1,conv2,conv3,conv4,conv5", (400, 64), 128),
    # Only what sees far, as random filters hardly look as far as that.
    "vgg19": ("conv4_2", "conv5_1", (267, 34), 64),
}


def pictures(size, count=2):
    random = np.random.default_rng(0)
    shape = count, *(-(-n // 8) for n in size), 3
    large = random.integers(0, 256, shape).repeat(8, 1).repeat(8, 2)
    return jnp.asarray(large[:, : size[0], : size[1]], jnp.float32)


@functools.cache
def load(name, layers):
    names = models.layers(name)
    return models.load(name, "random", last=max(layers, key=names.index))


def configured(name, **changes):
    content_layers, style_layers, *_ = NETWORKS[name]
    defaults = Settings(
        model=name, content_layers=content_layers, style_layers=style_layers
    )
    # Of a style loss that compiles sooner, but for one.
    loss = "w2" if name == "vgg_small" else "gram"
    return dataclasses.replace(defaults, gamma=0.1, style_loss=loss, **changes)


def network(config):
    layers = layer_weights(config.content_layers) | layer_weights(config.style_layers)
    return *load(config.model, tuple(layers)), list(layers)


def guides(config, layout, regions):
    """Returns random guidance of the regions, the same whatever the layout."""
    forward, params, _ = network(config)
    seen, whole = (
        jax.eval_shape(forward, params, jax.ShapeDtypeStruct(shape, "float32"))
        for shape in (layout.seen, (1, *layout.size, 3))
    )
    random = np.random.default_rng(1)
    return {
        layer: {
            region: layout.cut(
                random.random(whole[layer].shape[1:3], np.float32),
                layer,
                seen[layer].shape[1:3],
            )
            for region in regions
        }
        for layer in (layer_weights(config.style_layers) if regions else ())
    }


def computed(config, size, layout, regions=(), others=()):
    """Returns J and its gradient, both as of the whole picture.

    Args:
        config: The settings.
        size: Of the picture.
        layout: Its layout.
        regions: Colours of regions, with random guidance.
        others: Other blocks of the same size, for each of which there is a result, too.
    """
    forward, params, _ = network(config)
    content, painted = (x[None] for x in pictures(size))
    canvas = pictures(size, 3)[2:]
    of_content, of_style = (guides(config, x, regions) for x in (layout, Layout(size)))
    shares = dict.fromkeys(regions or [""], jnp.ones(1))

    def program(canvas, content, painted, params, of_content, of_style, cut):
        here = layout
        if others:
            here = Layout(size, layout.grid._replace(blocks=cut))
        make = objective.make_targets(forward, config, here, [Layout(size)])
        shown = Picture(content, of_content), [Picture(painted, of_style)]
        weights = config.alpha, config.beta, config.gamma
        targets = make(params, *shown, shares, weights)
        total = objective.make_objective(forward, config, here)
        return jax.value_and_grad(total, has_aux=True)(canvas, targets, KEY)

    spread = layout.spread(canvas), layout.spread(content)
    arguments = *spread, painted, params, of_content, of_style
    results = []
    # Winograd's tiles lie elsewhere in blocks, and round otherwise.
    with jax.default_matmul_precision("highest"):
        run = jax.jit(program)
        for cut in (layout.grid and layout.grid.blocks, *others):
            (loss, _), gradient = run(*arguments, cut)
            results.append((float(loss), np.asarray(layout.joined(gradient))))
    return results if others else results[0]


def difference(found, expected):
    """Returns the largest of the gradient's errors over its largest value."""
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-4)
    return np.abs(found[1] - expected[1]).max() / np.abs(expected[1]).max()


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_the_gradient_in_blocks_is_the_whole_pictures(name):
    *_, size, block = NETWORKS[name]
    config = configured(name)
    whole = computed(config, size, Layout(size))
    forward, params, layers = network(config)
    fields = blocks.layer_fields(forward, params, layers)
    layout = Layout(size, blocks.cut(size, tuple(-(-n // block) for n in size), fields))
    assert layout.count >= 4
    # The same blocks, nearer to what they own by a stride, at multiples of which they begin.
    cut, less = layout.grid.blocks, max(field.step for field, _ in fields.values())
    start = np.minimum(cut.start + less * (cut.start > 0), cut.start.max(0))
    [exact, narrow] = computed(config, size, layout, others=[cut._replace(start=start)])
    assert difference(exact, whole) < 1e-6
    assert difference(narrow, whole) > 2e-6


# On several devices.

SMALL = {"model": "alexnet", "content_layers": "conv2", "style_layers": "conv1,conv2"}


@pytest.fixture(scope="module")
def small():
    config = dataclasses.replace(configured("alexnet"), **SMALL, jitter=7)
    size = 301, 90
    return config, size, computed(config, size, Layout(size), ("#000000", "#ffffff"))


def division(config, size, count, block=0, host=False):
    forward, params, layers = network(config)
    fields = blocks.layer_fields(forward, params, layers)
    down, across = (-(-n // block) if block else 1 for n in size)
    grid = blocks.cut(size, (-(-down // count) * count, across), fields)
    if host:
        return Offloaded(size, grid, jax.devices()[1])
    if count == 1:
        return Layout(size, grid)
    mesh = devices.mesh(count)
    return divided.Divided(size, grid, mesh, config.jitter)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "block", "host"),
    [(1, 50, False), (4, 0, False), (2, 50, False), (1, 50, True)],
)
def test_the_gradient_on_devices_is_the_whole_pictures(small, count, block, host):
    """With two regions, and rolled."""
    config, size, whole = small
    layout = division(config, size, count, block, host)
    found = computed(config, size, layout, ("#000000", "#ffffff"))
    assert difference(found, whole) < 1e-6


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Settings of a transfer through a network that compiles soon."""
    path, _ = small_files.write(tmp_path_factory.mktemp("files"))
    return Settings(
        model=path,
        weights="random",
        content_layers="conv2",
        style_layers="conv1,conv2",
        style_loss="gram",
        scales=1,
        margin=4,
    )


@pytest.mark.slow
def test_a_transfer_on_devices_is_that_on_one(tiny, tmp_path):
    """Through two sizes, only the second of which is divided; and resumed there."""
    how = {"size": 84, "scales": 2, "steps": 3, "jitter": 20}
    config = dataclasses.replace(tiny, **how)
    tall, wide = (Image.fromarray(np.uint8(x)) for x in pictures((84, 84)))
    transfer = style.StyleTransfer(tall, [wide], config)
    small, large = (program.layout for program in transfer._programs)
    assert type(small) is Layout
    assert isinstance(large, divided.Divided)
    moments = [(m.metrics, m.step, transfer.array(m.state)) for m in transfer.run()]
    with jax.default_device(jax.devices()[0]):
        alone = style.StyleTransfer(tall, [wide], config)
        for found, expected in zip(moments, alone.run(), strict=True):
            for name, value in (expected.metrics or {}).items():
                np.testing.assert_allclose(found[0][name], value, rtol=1e-4)
            error = np.abs(found[2] - alone.array(expected.state))
            assert error.max() < 0.05

    checkpoints = Checkpoints(tmp_path, 0)
    for moment in transfer.run():
        if moment.step == 4:
            with checkpoints:  # which waits until it is saved
                checkpoints.save(4, moment.state)
            break
    *_, last = style.StyleTransfer(tall, [wide], config).run(4, checkpoints.restore)
    np.testing.assert_array_equal(transfer.array(last.state), moments[-1][2])
    with (
        jax.default_device(jax.devices()[0]),
        pytest.raises(ValueError, match="another number of devices"),
    ):
        next(alone.run(4, checkpoints.restore))


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", LEARNING_RATES)
def test_a_transfer_in_blocks_is_that_of_the_whole(tiny, optimizer, tmp_path):
    """With two styles and jitter, whatever the optimiser; and resumed bit for bit."""
    how = {"optimizer": optimizer, "size": 100, "steps": 4, "jitter": 5}
    config = dataclasses.replace(tiny, **how)
    content, *styles = (Image.fromarray(np.uint8(x)) for x in pictures((70, 100), 3))
    with jax.default_device(jax.devices()[0]):
        whole = style.StyleTransfer(content, styles, config)
        cut = style.StyleTransfer(
            content, styles, dataclasses.replace(config, block=40)
        )
        [program] = cut._programs
        assert program.layout.count == 6
        checkpoints, ends = Checkpoints(tmp_path, 0), []
        for found, expected in zip(cut.run(), whole.run(), strict=True):
            for name, value in (expected.metrics or {}).items():
                np.testing.assert_allclose(found.metrics[name], value, rtol=1e-3)
            ends.append(cut.array(found.state))
            if found.step == 2:
                with checkpoints:  # which waits until it is saved
                    checkpoints.save(2, found.state)
        *_, last = cut.run(2, checkpoints.restore)
        np.testing.assert_array_equal(cut.array(last.state), ends[-1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "scales"),
    [pytest.param("adam", 2, marks=pytest.mark.exhaustive), ("lbfgs", 1)],
)
def test_a_transfer_on_the_host_is_that_on_the_device(
    tiny, optimizer, scales, monkeypatch
):
    """Beside a device too small for it, where nothing lies that is as large."""
    how = {"optimizer": optimizer, "size": 200, "scales": scales, "steps": 2}
    config = dataclasses.replace(tiny, **how)
    content, *styles = (Image.fromarray(np.uint8(x)) for x in pictures((150, 200), 3))
    small, cpu = jax.devices()[1], jax.local_devices(backend="cpu")[0]
    with jax.default_device(small):
        device = style.StyleTransfer(content, styles, config)
        moments = [(m.metrics, device.array(m.state)) for m in device.run()]
        room = {small: 0.6 * device._programs[-1].memory, None: 0}
        monkeypatch.setattr(devices, "free_memory", lambda d=None: room.get(d, 1e12))
        monkeypatch.setattr(fitting, "_accelerator", lambda _: small)
        host = style.StyleTransfer(content, styles, config)
        for found, (metrics, expected) in zip(host.run(), moments, strict=True):
            for name, value in (metrics or {}).items():
                np.testing.assert_allclose(found.metrics[name], value, rtol=1e-3)
            assert np.abs(host.array(found.state) - expected).max() < 0.1
            assert found.state.canvas.devices() == {cpu}
            there = [x for x in jax.live_arrays() if x.devices() == {small}]
            assert max(x.size for x in there) < found.state.canvas.size
    layouts = [program.layout for program in host._programs]
    assert [type(layout) for layout in layouts] == [Offloaded] * scales
    assert layouts[-1].count > 1
    assert host.costs[-1] >= device.costs[-1]


@pytest.mark.slow
def test_two_hosts_paint_one_picture_and_stop_together(tiny, tmp_path):
    """As four devices of one host do, with a stop in between, of which one is told."""
    tall, wide = (Image.fromarray(np.uint8(x)) for x in pictures((160, 60)))
    tall.save(tmp_path / "tall.png")
    wide.save(tmp_path / "wide.png")
    config = dataclasses.replace(tiny, size=160, steps=40)
    changed = vars(config).items() - vars(Settings()).items()
    command = ["--experiment=style", f"--workdir={tmp_path / 'run'}"]
    command += [f"--config.{name}={value}" for name, value in changed]
    command += [f"--config.content={tmp_path / 'tall.png'}"]
    command += [f"--config.style={tmp_path / 'wide.png'}"]
    lead, other = start_hosts(*command)
    signal_at(other, signal.SIGTERM, tmp_path / "run", 2)
    finish(other, 128 + signal.SIGTERM)
    assert "to resume" in finish(lead, 128 + signal.SIGTERM)
    done = len(steps(tmp_path / "run"))
    assert done in (10, 20, 30)  # where hosts agree
    lead, other = start_hosts(*command)
    assert f"resuming after step {done} of 40" in finish(lead)
    finish(other)
    transfer = style.StyleTransfer(tall, [wide], config)
    assert len(transfer._programs[0].layout.of_pictures.device_set) == 4
    *_, last = transfer.run()
    found = images.to_array(images.read(tmp_path / "run" / "G.png"))
    expected = images.to_array(transfer.picture(last.state))
    assert np.abs(found - expected).max() <= 2


@pytest.mark.slow
def test_a_step_exchanges_rows_once_in_each_direction_and_gathers_none():
    how = {"style_loss": "gram", "size": 2000, "scales": 1, "margin": 0}
    config = dataclasses.replace(configured("vgg_small"), **how)
    tall, wide = (Image.fromarray(np.uint8(x)) for x in pictures((120, 20)))
    with jax.default_device(jax.devices()[0]):
        [alone] = style.StyleTransfer(tall, [wide], config)._programs
    [program] = style.StyleTransfer(tall, [wide], config)._programs
    text = program.step.as_text()
    assert "all-gather" not in text
    # Above and below; the gradients back.
    assert len(re.findall(r"= .* collective-permute\(", text)) == 4
    assert program.memory < 0.35 * alone.memory  # on four devices, with what they share


def test_what_is_spread_is_joined_again():
    """And its variation and its spectrum are the whole picture's."""
    height, count = 97, 4
    field = blocks.Field(4, 3, 8)
    grid = blocks.cut((height, 6), (count, 1), {"conv": (field, field)})
    layout = divided.Divided((height, 6), grid, devices.mesh(count))
    picture = np.random.default_rng(0).random((1, height, 6, 3), np.float32)
    spread = layout.spread(picture)
    assert spread.shape == layout.shape
    assert len(spread.addressable_shards) == count
    np.testing.assert_array_equal(layout.joined(spread), picture)
    for power in (1, 2):
        sums = functools.partial(layout.total, lambda *_: 0.0, each=(), common=())
        _, found = jax.jit(functools.partial(sums, power=power))(spread)
        expected = losses.total_variation(picture, power)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    smoothed = layout.filtered(
        spread, lambda down, across: down[:, None] + across[None]
    )
    expected = Layout((height, 6)).filtered(
        picture, lambda down, across: down[:, None] + across[None]
    )
    np.testing.assert_allclose(layout.joined(smoothed), expected, atol=1e-5)


def test_too_few_rows_take_fewer_devices():
    fields = {"conv": (blocks.Field(4, 30, 34),) * 2}

    def layouts(height):
        return divided.make_layouts((height, 8), 0, [(50, 8), (400, 8)], fields, 0)

    for height, count in {50: 1, 160: 2, 400: 4}.items():
        canvas, small, large = layouts(height)
        for layout in (canvas, small, large):
            where = layout.of_pictures
            assert (len(where.device_set) if where else 1) == count
        assert type(small) is Layout
        assert isinstance(large, divided.Divided) == (count > 1)
    with jax.default_device(jax.devices()[1]):
        assert all(type(layout) is Layout for layout in layouts(400))


# The blocks themselves.


@settings(max_examples=8, deadline=None)
@given(
    length=st.integers(30, 300),
    count=st.integers(1, 9),
    steps=st.lists(st.sampled_from([1, 2, 4, 8]), min_size=1, max_size=3),
    reach=st.integers(0, 40),
)
def test_each_position_is_owned_once_and_sees_its_field(length, count, steps, reach):
    """Of maps whose positions start at every multiple of their step."""
    fields = {
        str(i): (blocks.Field(n, reach, reach + n),) * 2 for i, n in enumerate(steps)
    }
    grid = blocks.cut((length, 16), (count, 1), fields)
    assert grid.size[0] % max(steps) == length % max(steps)
    for name, (field, _) in fields.items():
        owners = np.zeros(length // field.step + 1, int)
        for i, start in enumerate(grid.blocks.start[:, 0]):
            assert start % field.step == 0
            block = blocks.Block(*(x[i] for x in grid.blocks))
            shape = grid.size[0] // field.step + 1, 16 // field.step
            rows = np.flatnonzero(block.owned(fields[name], shape)[:, 0])
            places = start // field.step + rows
            owners[places[places < len(owners)]] += 1
            first, end = places * field.step - reach, (places + 1) * field.step + reach
            assert (first.clip(0) >= start).all()
            assert (end.clip(None, length) <= start + grid.size[0]).all()
        assert (owners == 1).all()
