"""Blocks and devices change nothing: the whole picture's objective and its gradient."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nstvis import devices, models
from nstvis.synthesis import blocks, divided, objective
from nstvis.synthesis.layouts import Layout
from nstvis.synthesis.objective import Picture
from nstvis.synthesis.style import Settings
from nstvis.synthesis.style_settings import layer_weights

KEY = jax.random.key(0)
# Content and style layers; the height and width of an odd picture; the side of its blocks.
NETWORKS = {
    "vgg_small": ("conv3_2", "conv1_1,conv2_1,conv3_1,conv4_1", (181, 150), 64),
    "alexnet_small": ("conv3", "conv1,conv2,conv3,conv4,conv5", (165, 190), 64),
    "alexnet": ("conv3", "conv1,conv2,conv3,conv4,conv5", (371, 330), 128),
    "vgg19": ("conv4_2", "conv1_1,conv2_1,conv3_1,conv4_1,conv5_1", (203, 230), 64),
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
    return dataclasses.replace(defaults, gamma=0.1, **changes)


def network(config):
    layers = layer_weights(config.content_layers) | layer_weights(config.style_layers)
    return *load(config.model, tuple(layers)), list(layers)


def computed(config, size, layout):
    """Returns J and its gradient, both as of the whole picture."""
    forward, params, _ = network(config)
    content, painted = (x[None] for x in pictures(size))
    canvas = pictures(size, 3)[2:]
    make = objective.make_targets(forward, config, layout, [Layout(size)])
    total = objective.make_objective(forward, config, layout)

    def program(canvas, content, painted, params):
        shown = Picture(content, {}), [Picture(painted, {})]
        weights = config.alpha, config.beta, config.gamma
        targets = make(params, *shown, {"": jnp.ones(1)}, weights)
        return jax.value_and_grad(total, has_aux=True)(canvas, targets, KEY)

    # Winograd's tiles lie elsewhere in blocks, and round otherwise.
    with jax.default_matmul_precision("highest"):
        (loss, _), gradient = jax.jit(program)(
            layout.spread(canvas), layout.spread(content), painted, params
        )
    return float(loss), np.asarray(layout.joined(gradient))


def difference(found, expected):
    """Returns the largest of the gradient's errors over its largest value."""
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    return np.abs(found[1] - expected[1]).max() / np.abs(expected[1]).max()


def cut(config, size, block, less=0):
    """Returns a layout of blocks whose margins are some pixels smaller than needed."""
    forward, params, layers = network(config)
    fields = blocks.layer_fields(forward, params, layers)
    smaller = {
        name: tuple(field._replace(before=field.before - less) for field in both)
        for name, both in fields.items()
    }
    counts = tuple(-(-n // block) for n in size)
    return Layout(size, blocks.cut(size, counts, smaller)._replace(fields=fields))


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_the_gradient_in_blocks_is_the_whole_pictures(name):
    *_, size, block = NETWORKS[name]
    config = configured(name)
    whole = computed(config, size, Layout(size))
    layout = cut(config, size, block)
    assert layout.count >= 6
    assert difference(computed(config, size, layout), whole) < 1e-6
    less = cut(config, size, block, less=8 if name != "alexnet" else 16)
    assert difference(computed(config, size, less), whole) > 2e-6
