"""How units change from one time of a training to another, in numbers.

Each is one number for each unit, NaN where it would mean nothing.
"""

import numpy as np

from nstvis import correlation
from nstvis.units.table import RankedPatches


def activated(top: RankedPatches) -> np.ndarray:
    """The images that do activate a unit, int `[units, k]`, -1 where one does not.

    Where few do, the rest of the winners are at 0, and only the first ones of many.
    """
    return np.where(top.score > 0, top.image, -1)


def overlap(mine: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Share of each unit's images that are among the other ones.

    Args:
        mine: Images by number, int `[units, k]`, each once, -1 where there is none.
        other: Likewise.

    Returns:
        `[units]`, 0 to 1; NaN where either has none.
    """
    known = mine >= 0
    common = known & (mine[:, :, None] == other[:, None]).any(2)
    both = known.any(1) & (other >= 0).any(1)
    return np.where(both, common.sum(1) / np.maximum(known.sum(1), 1), np.nan)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's: the correlation of the ranks, equal values sharing their mean rank.

    Args:
        a: Activations, `[images, units]`.
        b: Others for the same images.

    Returns:
        `[units]`, -1 to 1; NaN where either is the same for all images.
    """
    return correlation.spearman(a, b, axis=0)


def mean(numbers: np.ndarray) -> float:
    """Over the units that have one; NaN if none has."""
    known = numbers[~np.isnan(numbers)]
    return float(known.mean()) if len(known) else float("nan")
