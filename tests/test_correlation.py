"""Spearman's correlation against SciPy's, and in closed form."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from nstvis import correlation


@given(
    arrays.arrays(np.float32, (2, 6, 3), elements=st.integers(-3, 3)),
    st.sampled_from([0, 1]),
)
def test_it_is_scipy_s(pair, axis):
    a, b = pair
    computed = correlation.spearman(a, b, axis)
    columns = zip(*(np.moveaxis(x, axis, -1) for x in (a, b)), strict=True)
    for value, (x, y) in zip(computed, columns, strict=True):
        if len(set(x)) == 1 or len(set(y)) == 1:
            assert np.isnan(value)
        else:
            expected = stats.spearmanr(x, y).statistic
            assert value == pytest.approx(expected, abs=1e-12)


def test_ties_share_their_mean_rank():
    # Ranks 1 2 3 4 against 1.5 1.5 3.5 3.5: 4 / sqrt(5 * 4).
    x, tied = np.array([1, 2, 4, 8]), np.array([0, 0, 1, 1])
    assert correlation.spearman(x, tied, 0) == pytest.approx(4 / np.sqrt(20))
