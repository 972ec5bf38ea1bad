"""Samples of a unit's whole range, by brute force."""

import jax
import numpy as np
from hypothesis import given, settings, strategies
from jax import lax

from nstvis.units import samples
from nstvis.units.receptive_fields import receptive_fields

UNITS, SIDE = 3, 4


def forward(params, images):
    numbers = ("NHWC", "HWIO", "NHWC")
    maps = lax.conv_general_dilated(
        images, params, (2, 2), "VALID", dimension_numbers=numbers
    )
    return {"conv": jax.nn.relu(maps)}


FIELDS = receptive_fields(forward, np.ones((3, 3, 3, UNITS), np.float32), 9, 9)["conv"]


@settings(max_examples=30, deadline=None)
@given(images=strategies.integers(1, 50), seed=strategies.integers(0, 99))
def test_samples_are_those_of_a_sorted_list(images, seed):
    rng = np.random.default_rng(seed)
    index = np.sort(rng.choice(1000, images, replace=False)).astype(np.int32)
    score = rng.integers(0, 5, (images, UNITS)).astype(np.float32)  # with equal ones
    position = rng.integers(0, SIDE * SIDE, (images, UNITS)).astype(np.int32)
    found = samples.find(index, score, position, FIELDS)
    assert found.score.shape == (UNITS, len(samples.QUANTILES))
    for unit in range(UNITS):
        # Rising; of equal ones the first image last, as the ranks of maxima have it.
        order = sorted(range(images), key=lambda i: (score[i, unit], -index[i]))
        for slot, quantile in enumerate(samples.QUANTILES):
            row = order[int(quantile * (images - 1))]
            assert found.image[unit, slot] == index[row]
            assert found.score[unit, slot] == score[row, unit]
            place = divmod(int(position[row, unit]), SIDE)
            assert tuple(found.position[unit, slot]) == place
            top, left = 2 * place[0], 2 * place[1]
            box = found.box[unit, slot].tolist()
            assert box == [top, left, top + 3, left + 3]
    low = (score <= found.score[:, 4]).mean(0)
    assert (low >= 0.9 * (images - 1) / images).all()
