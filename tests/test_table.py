"""`units.npz`: read as it was written, of any age; favourite classes by hand."""

import dataclasses

import numpy as np
import pytest
from atlases import example, layer_of
from hypothesis import given, settings, strategies

from nstvis.units import statistics, table
from nstvis.units.table import Layer, RankedPatches

NAN = np.nan


def layer(class_mean):
    """Units of which only the classes' means are known."""
    means = np.array(class_mean, np.float32)
    none = {field.name: np.zeros(len(means)) for field in dataclasses.fields(Layer)}
    return Layer(**none | {"class_mean": means})


def test_a_class_without_images_is_nobody_s_favourite():
    units = layer([[NAN, -3, -1], [2, NAN, 1], [NAN, NAN, NAN]])
    assert units.favourite().tolist() == [2, 0, -1]


def test_a_unit_that_is_the_same_for_all_classes_has_no_favourite():
    assert layer([[0, 0, 0], [2, 2, 2]]).favourite().tolist() == [-1, -1]
    assert layer(np.zeros((2, 0))).favourite().tolist() == [-1, -1]


def test_a_dead_unit_is_0_for_every_image():
    units = layer(np.zeros((4, 0)))
    units.sparsity[:], units.std[:] = [1, 1, 0.5, 0], [0, 1, 0, 0]
    assert units.dead().tolist() == [True, False, False, False]


def arrays(results):
    """All arrays of a table, by where they are."""
    found = {}
    for name, units in results.layers.items():
        for field in dataclasses.fields(units):
            value = getattr(units, field.name)
            parts = dataclasses.asdict(value) if "Ranked" in str(field.type) else {}
            for part, array in (parts or {"": value}).items():
                found[name, field.name, part] = array
    return found


def assert_same(a, b):
    assert arrays(a).keys() == arrays(b).keys()
    for key, array in arrays(a).items():
        np.testing.assert_array_equal(array, arrays(b)[key], err_msg=str(key))
        assert array.dtype == arrays(b)[key].dtype
    for field in dataclasses.fields(a):
        if field.name not in ("layers", "fields"):
            assert getattr(a, field.name) == getattr(b, field.name)
    assert {k: [*v] for k, v in a.fields.items()} == {
        k: [*v] for k, v in b.fields.items()
    }


@pytest.fixture(scope="module")
def results():
    return example()[0]


def test_findings_are_read_as_they_were_written(results, tmp_path):
    names = {"concept": np.array([*"abcde"]), "auroc": np.linspace(0, 1, 5)}
    inputs = {"unit": np.zeros((6, 2), int)}
    given = {"name": {"conv1": names}, "inputs": {"fc": inputs, "conv1": names}}
    changed = dataclasses.replace(results, findings=given)
    table.save(tmp_path / "units.npz", changed)
    read = table.load(tmp_path / "units.npz")
    assert_same(dataclasses.replace(read, findings={}), results)
    np.testing.assert_equal(read.findings, given)
    with np.load(tmp_path / "units.npz") as file:
        assert file["conv1.name.concept"].tolist() == [*"abcde"]


def test_it_is_read_as_it_was_written(results, tmp_path):
    table.save(tmp_path / "units.npz", results)
    assert_same(table.load(tmp_path / "units.npz"), results)
    assert [path.name for path in tmp_path.iterdir()] == ["units.npz"]
    # And by numpy alone.
    with np.load(tmp_path / "units.npz") as file:
        conv1 = results.layers["conv1"]
        np.testing.assert_array_equal(file["conv1.top.image"], conv1.top.image)
        for name, values in statistics.compute(conv1).items():
            np.testing.assert_array_equal(file[f"conv1.statistics.{name}"], values)


def test_one_of_an_earlier_version_is_read(results, tmp_path):
    table.save(tmp_path / "new.npz", results)
    with np.load(tmp_path / "new.npz") as file:
        older = {key: file[key] for key in file if ".statistics." not in key}
    for name in results.layers:
        older[f"{name}.silent"] = older.pop(f"{name}.sparsity")
    np.savez(tmp_path / "old.npz", **older)
    assert_same(table.load(tmp_path / "old.npz"), results)


def test_damage_gets_one_clear_line(results, tmp_path):
    path = tmp_path / "units.npz"
    with pytest.raises(FileNotFoundError):
        table.load(path)
    table.save(path, results)
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"units\.npz is damaged, or no table of"):
        table.load(path)
    np.savez(path, about="{}")
    with pytest.raises(ValueError, match=r"units\.npz is damaged, or no table of"):
        table.load(path)


def test_arrays_that_do_not_fit_one_another_are_damage(results, tmp_path):
    path = tmp_path / "units.npz"
    table.save(path, results)
    with np.load(path) as file:
        arrays = dict(file)
    name = next(iter(results.layers))
    for key in ("mean", "histogram", "top.score", "top.box", "least.position"):
        shorter = arrays[f"{name}.{key}"][:-1]
        np.savez(path, **arrays | {f"{name}.{key}": shorter})
        with pytest.raises(ValueError, match=r"units\.npz is damaged, or no table of"):
            table.load(path)


@settings(max_examples=50, deadline=None)
@given(
    strategies.lists(
        strategies.lists(strategies.integers(0, 8), max_size=4, unique=True),
        min_size=3,
        max_size=3,
    )
)
def test_picked_patches_are_those_of_the_ranks(ranks):
    top = layer_of(0, 3, 9, 7, 0, 60).top
    picked = top.picked(ranks, 4)
    for unit, kept in enumerate(ranks):
        for part in dataclasses.fields(RankedPatches):
            found = getattr(picked, part.name)
            wanted = getattr(top, part.name)[unit][kept]
            np.testing.assert_array_equal(found[unit, : len(kept)], wanted)
        assert (picked.image[unit, len(kept) :] == -1).all()
        assert (picked.score[unit, len(kept) :] == 0).all()
