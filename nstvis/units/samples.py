"""The whole range of a unit: images at fixed quantiles of its activation.

The patches that activate a unit most say little of what it does for other images.
"""

import numpy as np

from nstvis.units.measurements import RankedPatches
from nstvis.units.receptive_fields import Fields
from nstvis.units.responses import columns

# Shares of the images that activate a unit less, or as much.
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)
_UNITS = 256  # that are sorted at once


def find(
    index: np.ndarray, score: np.ndarray, position: np.ndarray, fields: Fields
) -> RankedPatches:
    """Finds, for each unit of a layer, images at the quantiles of its activation.

    Args:
        index: Of the images, ascending, int32 `[images]`; at least one.
        score: The units' activations for them, float32 `[images, units]`.
        position: Where these are, row * columns + column, int32 `[images, units]`.
        fields: The layer's receptive fields.

    Returns:
        `[units, quantiles]`, the lowest first. Of images with equal activations, the
        order is that of the data set, backwards, as the highest activation comes last.
    """
    places = np.floor(np.array(QUANTILES) * (len(index) - 1)).astype(int)
    parts = []
    for first in range(0, score.shape[1], _UNITS):
        some = slice(first, first + _UNITS)
        known = columns(score, some)
        order = np.argsort(known[::-1], axis=0, kind="stable")
        rows = len(index) - 1 - order[places]
        of_rows = (known, columns(position, some))
        parts.append([rows, *(np.take_along_axis(x, rows, 0) for x in of_rows)])
    rows, scores, place = (np.concatenate(x, 1).T for x in zip(*parts, strict=True))
    units = np.broadcast_to(np.arange(score.shape[1])[:, None], rows.shape)
    found = np.stack(np.divmod(place, fields.columns), -1)
    return RankedPatches(
        score=scores,
        image=index[rows].astype(np.int32),
        position=found.astype(np.int32),
        box=fields.boxes(units, found),
    )
