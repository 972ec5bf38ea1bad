"""Spearman's rank correlation."""

import numpy as np
from scipy import stats


def spearman(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
    """Computes Spearman's correlation along an axis; ties share their mean rank.

    Args:
        a: Numbers of any shape.
        b: Others of the same shape.
        axis: The axis along which the numbers are ranked.

    Returns:
        Correlations from -1 to 1, without that axis; NaN where either is constant.
    """
    # Newer SciPy ranks in the precision of the numbers.
    ranks = [stats.rankdata(np.asarray(x, float), axis=axis) for x in (a, b)]
    a, b = (x - x.mean(axis, keepdims=True) for x in ranks)
    norm = np.sqrt((a**2).sum(axis) * (b**2).sum(axis))
    return (a * b).sum(axis) / np.where(norm > 0, norm, np.nan)
