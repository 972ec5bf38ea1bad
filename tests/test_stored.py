"""Tensors as they lie in a file: any strides, in pieces, in order."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nstvis import stored


@settings(max_examples=30, deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    axes=st.permutations(range(4)),
    step=st.integers(1, 3),
    piece=st.integers(64, 600),
)
def test_reads_any_strides_in_pieces_that_do_not_overlap(shape, axes, step, piece):
    grid = np.arange(math.prod(shape) * step, dtype="f4").reshape(*shape, step)
    expected = grid[..., step - 1].transpose([a for a in axes if a < len(shape)])
    raw, reads = grid.tobytes(), []

    def read(offset, size):
        reads.append((offset, offset + size))
        return raw[offset : offset + size]

    offset = 4 * (step - 1)
    tensor = stored.Tensor(
        expected.shape, expected.dtype, expected.strides, offset, read
    )
    found = np.empty(expected.shape, np.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored, "PIECE", piece)
        tensor.copy_to(found)
    np.testing.assert_array_equal(found, expected)
    assert all(end - begin <= piece for begin, end in reads)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(reads))


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4), (1, 5)])
def test_strides_without_gaps_are_numpys(shape, order):
    expected = np.empty(shape, "f4", order).strides
    assert stored.strides_of(shape, np.dtype("f4"), order) == expected


def test_a_reader_refuses_more_than_a_piece(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "PIECE", 10)
    (tmp_path / "x").write_bytes(b"0123456789a")
    for size in (11, -1, None, 2**62):
        with (
            stored.PieceReader(open(tmp_path / "x", "rb", buffering=0)) as file,
            pytest.raises(ValueError, match="too long"),
        ):
            file.read(size)
    with stored.PieceReader(open(tmp_path / "x", "rb", buffering=0)) as file:
        assert file.read(10) + file.read() == b"0123456789a"


def test_names_are_shown_in_one_line_and_cut():
    assert stored.shown("features.0.weight") == "features.0.weight"
    assert stored.shown("a\n\033[2J\ud800") == r"a\n\x1b[2J\ud800"
    assert stored.shown("x" * 999) == "x" * 60 + "..."
