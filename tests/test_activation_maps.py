"""Activation maps are what a small network computes, and lie where it sees."""

import dataclasses

import jax
import numpy as np
import pytest
from jax import lax
from test_patches import Noise

from nstvis.units import activation_maps, patches
from nstvis.units.receptive_fields import receptive_fields
from nstvis.units.table import Layer, RankedPatches

SIZE, UNITS = 16, 5
KERNEL = np.random.default_rng(0).normal(size=(5, 5, 3, UNITS)).astype(np.float32)
PARAMS = {"conv": {"kernel": KERNEL}}


def forward(params, images):
    numbers = ("NHWC", "HWIO", "NHWC")
    conv = lax.conv_general_dilated(
        *(images, params["conv"]["kernel"], (2, 2), [(1, 1), (1, 1)]),
        dimension_numbers=numbers,
    )
    return {"conv": jax.nn.relu(conv)}


def layer_of(image):
    """A layer of which these images are the top, `[units, k]`."""
    image = np.array(image)
    pixels = np.stack([PICTURES[i] for i in range(3)]).astype(np.float32)
    maps = np.asarray(forward(PARAMS, pixels)["conv"])
    score = np.max(maps[image], (2, 3))[np.arange(UNITS), :, np.arange(UNITS)]
    top = RankedPatches(
        score=np.where(image >= 0, score, 0),
        image=image,
        position=np.zeros((*image.shape, 2), int),
        box=np.zeros((*image.shape, 4), int),
    )
    none = {field.name: np.zeros((UNITS, 1)) for field in dataclasses.fields(Layer)}
    return Layer(**none | {"top": top}), maps


PICTURES = patches.Images([Noise(3, size=SIZE)], SIZE)


@pytest.mark.parametrize("batch", [1, 4, 32])
def test_maps_are_the_activations_at_every_position(batch):
    image = [[0, 1], [2, 2], [-1, -1], [1, -1], [0, 2]]
    layer, maps = layer_of(image)
    found = [*activation_maps.project(forward, PARAMS, "conv", layer, PICTURES, batch)]
    assert len(found) == UNITS
    for unit, drawn in enumerate(found):
        assert drawn.shape == (2, 7, 7, 3) and drawn.dtype == np.uint8
        for slot, index in enumerate(image[unit]):
            wanted = np.zeros((7, 7))
            if index >= 0:
                highest = max(layer.top.score[unit].max(), 1e-30)  # 0 if dead
                wanted = 255 * maps[index, :, :, unit] / highest
            for channel in np.moveaxis(drawn[slot], -1, 0):
                np.testing.assert_allclose(channel, np.clip(wanted, 0, 255), atol=0.51)
    assert max(drawn.max() for drawn in found) == 255


def test_a_map_lies_where_its_fields_have_their_middles():
    layer, _ = layer_of([[0]] * UNITS)
    fields = receptive_fields(forward, PARAMS, SIZE, SIZE)["conv"]
    boxes = activation_maps.extent(layer, fields, 7)["box"]
    assert boxes.shape == (UNITS, 4)
    top, left, bottom, right = boxes[3]
    assert (bottom - top) / 7 == (right - left) / 7 == 2
    for row, column in [(0, 0), (3, 6)]:
        field = fields.boxes(np.array(3), np.array([row, column]))
        middle = (field[:2] + field[2:]) / 2
        cell = top + 2 * (row + 0.5), left + 2 * (column + 0.5)
        np.testing.assert_allclose(middle, cell)
