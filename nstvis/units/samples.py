"""The whole range of a unit: images at fixed quantiles of its activation.

The patches that activate a unit most say little of what it does for other images.
"""

import numpy as np

from nstvis.units.measurements import RankedPatches
from nstvis.units.receptive_fields import Fields

# Shares of the images that activate a unit less, or as much.
QUANTILES = (0.999, 0.99, 0.95, 0.9, 0.75, 0.5, 0.25, 0.1)


def find(
    index: np.ndarray, score: np.ndarray, position: np.ndarray, fields: Fields
) -> RankedPatches:
    """Finds, for each unit of a layer, images at the quantiles of its activation.

    Args:
        index: Of the images, ascending, int32 `[images]`.
        score: The units' activations for them, float32 `[images, units]`.
        position: Where these are, row * columns + column, int32 `[images, units]`.
        fields: The layer's receptive fields.

    Returns:
        `[units, quantiles]`, from the highest to the lowest; of images with equal
        activations, the first ones.
    """
    places = np.floor(np.array(QUANTILES) * (len(index) - 1)).astype(int)
    # The order of maxima: higher activation first, then lower image.
    order = np.argsort(-score, axis=0, kind="stable")
    rows = order[len(index) - 1 - places].T
    units = np.broadcast_to(np.arange(score.shape[1])[:, None], rows.shape)
    found = np.stack(np.divmod(position[rows, units], fields.columns), -1)
    return RankedPatches(
        score=score[rows, units],
        image=index[rows].astype(np.int32),
        position=found.astype(np.int32),
        box=fields.boxes(units, found),
    )
