"""Attributions of patches, through windows and through the whole image alike."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from test_patches import Noise

from nstvis import attribution, images, models
from nstvis.units import patch_attributions, patches
from nstvis.units.receptive_fields import receptive_fields
from nstvis.units.table import Layer, RankedPatches

SIZE = 96


@functools.cache
def network(layer="conv2"):
    return models.load("alexnet_small", "bundled", last=layer)


def images_of(pictures, indices):
    return np.stack([pictures[i] for i in indices]).astype(np.float32)


def layer_of(forward, params, name, pictures, places, size=SIZE):
    """A layer whose patches are at those places, whether they are the top or not.

    The i-th place is in image i % 3; its unit is the strongest one there.
    """
    images, ranks = np.arange(len(places)) % 3, np.arange(len(places))
    maps = jax.jit(forward)(params, images_of(pictures, images))
    activations = np.asarray(maps[name])
    positions = np.array(places) % activations.shape[1]
    there = activations[ranks, *positions.T]
    units, shape = there.argmax(1), (there.shape[1], len(places))
    fields = receptive_fields(forward, params, size, size)[name]
    image = np.full(shape, -1, np.int32)
    score, position = np.zeros(shape, np.float32), np.zeros((*shape, 2), np.int32)
    image[units, ranks], score[units, ranks] = images, there.max(1)
    position[units, ranks] = positions
    box = fields.boxes(np.arange(shape[0])[:, None].repeat(shape[1], 1), position)
    top = RankedPatches(score=score, image=image, position=position, box=box)
    none = dict.fromkeys(
        [field.name for field in dataclasses.fields(Layer)], np.zeros((shape[0], 1))
    )
    return Layer(**none | {"top": top}), fields


@functools.cache
def gradient_of(forward, name):
    def activation(image, params, position, unit):
        return forward(params, image[None])[name][0, *position, unit]

    return jax.jit(jax.value_and_grad(activation))


def carried_back(forward, params, name, patch, pictures):
    """The gradient for the whole image, and where it matters."""
    unit, image, position, _, (rows, columns) = patch
    value, gradient = gradient_of(forward, name)(
        images_of(pictures, [image])[0], params, position, unit
    )
    return np.asarray(value * gradient), np.ix_(rows, columns)


def brute_force(forward, params, name, patch, pictures, unit=()):
    """Cut out of the whole image's gradient, and scaled as the unit's patches are."""
    gradient, seen = carried_back(forward, params, name, patch, pictures)
    parts = [
        carried_back(forward, params, name, other, pictures)
        for other in unit or [patch]
    ]
    every = np.concatenate([np.abs(x[where]).ravel() for x, where in parts])
    whole = np.full((3 * SIZE, 3 * SIZE, 3), 63.0)
    there = whole[SIZE:-SIZE, SIZE:-SIZE]
    there[seen] = 127 + 127 * np.clip(gradient[seen] / np.quantile(every, 0.99), -1, 1)
    top, left, bottom, right = np.array(patch[3]) + SIZE
    return whole[top:bottom, left:right]


def patch_of(layer, fields, unit, rank):
    place, image = layer.top.position[unit, rank], layer.top.image[unit, rank]
    box, support = layer.top.box[unit, rank], fields.support(unit, *place)
    return unit, image, place, box, support


PLACES = [(0, 0), (0, 7), (7, 7), (14, 14), (14, 3), (-1, 5), (9, 10), (3, 4)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["conv1", "conv2", "conv3"])
@pytest.mark.parametrize("rule", ["gradient", "deconvnet"])
def test_a_window_is_as_good_as_the_image(name, rule, monkeypatch):
    forward, params = network("conv3")
    ruled = attribution.ruled(forward, rule)
    pictures = patches.Images([Noise(3, size=SIZE)], SIZE)
    layer, fields = layer_of(forward, params, name, pictures, PLACES)
    field = max(max(fields.size(unit)) for unit in range(64))
    side = patch_attributions.window(ruled, params, field, fields.stride, SIZE)
    assert field <= side < SIZE and (SIZE - side) % fields.stride == 0
    sides, carried = [], patch_attributions._compiled

    def counted(ruled, layer, images, *params):
        sides.append(images.shape[1])
        return carried(ruled, layer, images, *params)

    monkeypatch.setattr(patch_attributions, "_compiled", counted)
    seen = []
    for found in patch_attributions.project(
        ruled, params, name, layer, fields, pictures, 1
    ):
        for unit, rank, cell in zip(*found, strict=True):
            seen.append((unit, rank))
            patch = patch_of(layer, fields, unit, rank)
            ranks = np.flatnonzero(layer.top.image[unit] >= 0)
            every = [patch_of(layer, fields, unit, other) for other in ranks]
            wanted = brute_force(ruled, params, name, patch, pictures, every)
            assert cell.shape == wanted.shape
            np.testing.assert_allclose(cell, wanted, atol=1)
    assert seen == [*zip(*np.nonzero(layer.top.image >= 0))]
    assert len({unit for unit, _ in seen}) < len(seen)
    assert len(seen) == len(PLACES)
    assert sides == [side]  # not one had to be carried through the whole image


@pytest.mark.slow
def test_other_weights_have_the_same_program_and_their_own_attributions():
    forward, params = network()
    ruled = attribution.ruled(forward, "gradient")
    pictures = patches.Images([Noise(3, size=SIZE)], SIZE)
    patch_attributions._compiled.cache_clear()
    found = []
    for weights in (params, jax.tree.map(lambda x: x[::-1], params)):
        layer, fields = layer_of(forward, weights, "conv2", pictures, [(9, 9)])
        parts = patch_attributions.project(
            ruled, weights, "conv2", layer, fields, pictures, 1
        )
        (((unit,), (rank,), (cell,)),) = parts
        patch = patch_of(layer, fields, unit, rank)
        wanted = brute_force(ruled, weights, "conv2", patch, pictures)
        np.testing.assert_allclose(cell, wanted, atol=1)
        found.append(cell)
    assert np.any(found[0] != found[1])
    assert patch_attributions._compiled.cache_info().misses == 1


def placed(forward, params, images):
    """Not the same network everywhere: brighter to the right of the image."""
    weight = jnp.linspace(0.5, 1.5, images.shape[2])[None, None, :, None]
    return forward(params, images * weight)


@pytest.mark.slow
def test_a_network_that_is_not_the_same_everywhere_gets_the_whole_image():
    forward, params = network()
    forward = functools.partial(placed, forward)
    ruled = attribution.ruled(forward, "guided")
    pictures = patches.Images([Noise(3, size=SIZE)], SIZE)
    layer, fields = layer_of(forward, params, "conv2", pictures, [(9, 9)])
    parts = patch_attributions.project(
        ruled, params, "conv2", layer, fields, pictures, 1
    )
    (((unit,), (rank,), (cell,)),) = parts
    patch = patch_of(layer, fields, unit, rank)
    wanted = brute_force(ruled, params, "conv2", patch, pictures)
    np.testing.assert_allclose(cell, wanted, atol=1)


@pytest.mark.slow
def test_a_dense_layer_sees_the_whole_image_and_a_dead_unit_is_grey():
    forward, params = models.load("alexnet_small", "bundled", last="fc6")
    ruled = attribution.ruled(forward, "deconvnet")
    pictures = patches.Images([Noise(3, size=40)], 40)
    fields = receptive_fields(forward, params, 40, 40)["fc6"]
    maps = jax.jit(forward)(params, images_of(pictures, [0]))
    scores = np.asarray(maps["fc6"])[0]
    count, dead = len(scores), int(scores.argmin())
    assert scores[dead] == 0
    none = np.zeros((count, 1))
    layer = Layer(
        **dict.fromkeys([field.name for field in dataclasses.fields(Layer)], none)
        | {
            "top": RankedPatches(
                score=scores[:, None],
                image=np.zeros((count, 1), np.int32),
                position=np.zeros((count, 1, 2), np.int32),
                box=np.tile(np.int32([0, 0, 40, 40]), (count, 1, 1)),
            )
        }
    )
    found = np.zeros((count, 40, 40, 3), np.uint8)
    parts = patch_attributions.project(
        ruled, params, "fc6", layer, fields, pictures, 32
    )
    for units, _, cells in parts:
        found[units] = cells
    assert (found[dead] == images.GREY).all()
    loud = found[int(scores.argmax())].astype(int) - images.GREY
    assert np.abs(loud).max() == 127


def test_where_the_field_is_larger_than_the_image_only_the_image_is_attributed_to():
    def forward(params, images):
        x = images.mean(-1, keepdims=True)
        total = lax.reduce_window(
            *(x, 0.0, lax.add, (1, 61, 61, 1), (1, 2, 2, 1)),
            padding=[(0, 0), (30, 30), (30, 30), (0, 0)],
        )
        return {"far": jax.nn.relu(total)}

    pictures = patches.Images([Noise(3, size=40)], 40)
    layer, fields = layer_of(forward, {}, "far", pictures, [(0, 0), (3, 3)], 40)
    assert patches.drawn_side(layer, fields) == 40
    ruled = attribution.ruled(forward, "deconvnet")
    parts = patch_attributions.project(ruled, {}, "far", layer, fields, pictures, 1)
    ((_, _, cells),) = parts
    # The sum's gradient is the same all over what field and image share; and of two
    # patches of a unit, the one with the lower activation is fainter.
    assert cells.shape == (2, 40, 40, 3)
    greys = cells[:, 0, 0, 0].astype(int)
    assert (cells == greys[:, None, None, None]).all()
    shares = layer.top.score[0] / layer.top.score[0].max()
    np.testing.assert_allclose(greys, 127 + 127 * shares, atol=1)
    assert abs(greys[0] - greys[1]) > 3


def test_networks_that_take_no_small_images_get_larger_windows():
    forward, params = models.load("alexnet_small", "random")
    side = patch_attributions.window(forward, params, 7, 2, SIZE)
    assert side < SIZE and side % 2 == 0
    with pytest.raises(ValueError, match="too small"):
        jax.eval_shape(forward, params, jax.ShapeDtypeStruct((1, 8, 8, 3), "float32"))

    def fixed(params, images):
        return {"all": images.reshape(-1, SIZE * SIZE * 3)}

    assert patch_attributions.window(fixed, {}, 7, 2, SIZE) == SIZE
