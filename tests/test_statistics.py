"""Statistics by hand; and one of a fork's own, which appears wherever others do."""

import numpy as np
import pytest
from atlases import CLASSES, example, layer_of, patches_of, table_of
from hypothesis import given, settings, strategies
from hypothesis.extra import numpy as arrays

from nstvis.units import atlas, statistics, table
from nstvis.units.statistics import selectivity, statistic

NAN = np.nan


def layer(class_mean):
    """Units of which only the classes' means matter."""
    means = np.array(class_mean, np.float32)
    whole = layer_of(0, len(means), 9, 7, means.shape[1], 60)
    whole.class_mean[:] = means
    return whole


def test_selectivity_is_that_of_morcos_over_the_classes_that_have_images():
    units = layer([[3, 1, 2], [3, NAN, 1], [-1, -2, NAN], [4, NAN, NAN], [0, 0, 5]])
    wanted = [(3 - 1.5) / (3 + 1.5), (3 - 1) / (3 + 1), 0, 0, 1]
    assert selectivity(units).tolist() == pytest.approx(wanted)
    assert selectivity(layer(np.ones((2, 1)))).tolist() == [0, 0]


def test_without_classes_there_is_no_selectivity():
    assert np.isnan(selectivity(layer(np.zeros((2, 0))))).all()


@settings(max_examples=50, deadline=None)
@given(
    arrays.arrays(
        np.float32,
        arrays.array_shapes(min_dims=2, max_dims=2, max_side=4),
        elements=strategies.floats(-100, 100, width=32) | strategies.just(NAN),
    )
)
def test_selectivity_is_between_0_and_1(means):
    found = selectivity(layer(means))
    assert found.shape == means.shape[:1]
    assert ((found >= 0) & (found <= 1)).all()


def test_the_maximum_is_that_of_the_top_patch_if_there_is_one():
    units = layer(np.ones((3, 1)))
    units.top.image[1] = -1
    wanted = units.top.score[:, 0].copy()
    wanted[1] = NAN
    np.testing.assert_array_equal(statistics.compute(units)["maximum"], wanted)


@pytest.fixture
def registry(monkeypatch):
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(statistics, "_functions", dict(statistics._functions))


def test_a_statistic_of_one_s_own_is_one_function(registry, tmp_path):
    @statistic("spread", "deviation over the mean", percent=True)
    def spread(layer):
        return layer.std / layer.mean  # of unit 3, which is dead, 0 / 0

    results, patches, pictures = example()
    units = results.layers["conv1"]
    with np.errstate(invalid="ignore"):
        wanted = units.std / units.mean
    # In units.npz,
    table.save(tmp_path / "units.npz", results)
    with np.load(tmp_path / "units.npz") as file:
        np.testing.assert_array_equal(file["conv1.statistics.spread"], wanted)
    table.load(tmp_path / "units.npz")
    # and in the atlas; `test_atlas_page` and `test_description` look further.
    atlas.write(tmp_path, results, patches, pictures)
    read = atlas.Atlas(tmp_path)
    assert read.unit("conv1", 2).statistics["spread"] == pytest.approx(wanted[2])
    assert np.isnan(read.unit("conv1", 3).statistics["spread"])
    known = read.statistics["spread"]
    assert known.description == "deviation over the mean"
    assert known.text(0.5) == "50 %"


def test_an_atlas_keeps_statistics_that_are_no_longer_registered(registry, tmp_path):
    statistic("two", "always two")(lambda layer: np.full(len(layer.mean), 2))
    atlas.write(tmp_path, *example())
    del statistics._functions[statistics.registered()["two"]]
    read = atlas.Atlas(tmp_path)
    assert read.unit("fc", 1).statistics["two"] == 2
    assert read.statistics["two"].description == "always two"


def test_a_name_that_is_taken_is_refused(registry):
    with pytest.raises(ValueError, match="two statistics 'mean'"):
        statistic("mean", "another mean")


@pytest.mark.parametrize("wrong", [1.0, np.zeros(4), np.zeros((5, 1))])
def test_what_is_not_one_number_a_unit_is_refused(registry, wrong, tmp_path):
    statistic("wrong", "")(lambda layer: wrong)
    results = table_of({"conv1": layer_of(0, 5, 9, 7, 8, 60)}, CLASSES, 60)
    with pytest.raises(ValueError, match="'wrong' should be one number for each of 5"):
        table.save(tmp_path / "units.npz", results)
    with pytest.raises(ValueError, match="'wrong' should be one number for each of 5"):
        atlas.write(tmp_path, results, patches_of({"conv1": (5, 7)}, 9), {})
    assert not list(tmp_path.iterdir())
