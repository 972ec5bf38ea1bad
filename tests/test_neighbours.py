"""Neighbours and matches: the most similar units, by brute force."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from atlases import example
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import compare
from nstvis import images
from nstvis.runs import config as configs
from nstvis.runs import files
from nstvis.units import atlas, matching, neighbours, profiles, responses, table
from nstvis.units.measurements import Layer, RankedPatches


def layer_of(rng, units, classes=6, k=3, images=8):
    shape = units, k
    top = RankedPatches(
        score=rng.choice([0.0, 1, -2], shape, p=[0.2, 0.4, 0.4]).astype(np.float32),
        image=rng.integers(-1, images, shape).astype(np.int32),
        position=np.zeros((*shape, 2), np.int32),
        box=np.zeros((*shape, 4), np.int32),
    )
    means = rng.normal(size=(units, classes)).astype(np.float32)
    if classes:
        means[:, 1] = np.nan  # a class without images
        means[0] = np.where(np.isnan(means[0]), np.nan, 2)  # a constant unit
    fields = dict.fromkeys([x.name for x in dataclasses.fields(Layer)], None)
    given: Any = fields | {"top": top, "mean": np.zeros(units), "class_mean": means}
    return Layer(**given)


def similarity(a, i, b, j):
    """That of a unit of one layer and a unit of another, in plain words."""
    tops = []
    for layer, unit in ((a, i), (b, j)):
        top = layer.top
        tops.append({x for x, s in zip(top.image[unit], top.score[unit]) if s} - {-1})
    either = tops[0] | tops[1]
    overlap = len(tops[0] & tops[1]) / len(either) if either else 0
    x, y = a.class_mean[i].astype(float), b.class_mean[j].astype(float)
    if not len(x):
        return overlap
    x, y = x[~np.isnan(x)], y[~np.isnan(y)]
    constant = np.ptp(x) == 0 or np.ptp(y) == 0
    return ((0 if constant else np.corrcoef(x, y)[0, 1]) + overlap) / 2


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([0, 4, 9]))
def test_neighbours_are_the_most_similar_units_of_the_layer_and_of_others(
    seed, classes
):
    rng = np.random.default_rng(seed)
    layers = {n: layer_of(rng, u, classes) for n, u in (("a", 7), ("b", 3), ("c", 2))}
    found = neighbours.find(layers)
    for name, layer in layers.items():
        for unit in range(len(layer.mean)):
            parts = [found[name][x][unit] for x in ("layer", "unit", "similarity")]
            others = {
                (other, i): similarity(layer, unit, layers[other], i)
                for other in layers
                for i in range(len(layers[other].mean))
                if (other, i) != (name, unit)
            }
            for half, own in ((slice(0, 4), True), (slice(4, 8), False)):
                wanted = [v for (n, _), v in others.items() if (n == name) == own]
                wanted = sorted([v for v in wanted if v > 1e-6])[::-1][:4]
                some = [part[half] for part in parts]
                near = [x for x in zip(*some) if x[0] and x[2] > 1e-6]
                np.testing.assert_allclose([x[2] for x in near], wanted, atol=1e-6)
                for other, number, value in near:
                    assert (other == name) == own
                    assert abs(others[other, number] - value) < 1e-6
                missing = some[0] == ""
                assert (some[1][missing] == -1).all() and np.isnan(
                    some[2][missing]
                ).all()


def test_parts_of_a_layer_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    layers = {n: layer_of(rng, u) for n, u in (("a", 11), ("b", 5))}
    whole = neighbours.find(layers), matching.match(*[profiles.of_layers(layers)] * 2)
    monkeypatch.setattr(profiles, "_ROWS", 3)
    parts = neighbours.find(layers), matching.match(*[profiles.of_layers(layers)] * 2)
    for one, other in zip(whole, parts):
        for name in layers:
            for field in one[name]:
                np.testing.assert_array_equal(one[name][field], other[name][field])


def test_units_of_a_network_are_found_in_its_shuffled_copy():
    rng = np.random.default_rng(0)
    scores = {"a": rng.normal(size=(50, 300)), "b": rng.normal(size=(50, 20))}
    scores["a"][:, 7] = 3  # a dead unit
    orders = {name: rng.permutation(x.shape[1]) for name, x in scores.items()}
    noisy = {
        name: 5 * x[:, orders[name]] + 0.1 * rng.normal(size=x.shape)
        for name, x in scores.items()
    }
    found = matching.match(profiles.of_responses(scores), profiles.of_responses(noisy))
    for name, order in orders.items():
        unit = np.argsort(order)
        alive = np.ptp(scores[name], 0) > 0
        assert (found[name]["unit"] == unit)[alive].all()
        assert (found[name]["layer"] == name)[alive].all()
        assert found[name]["mutual"][alive].all()
        expected = [
            np.corrcoef(scores[name][:, i], noisy[name][:, unit[i]])[0, 1]
            for i in np.flatnonzero(alive)
        ]
        got = found[name]["similarity"][alive]
        np.testing.assert_allclose(got, expected, atol=1e-5)
    dead = {name: x[7] for name, x in found["a"].items()}
    assert dead["layer"] == "" and dead["unit"] == -1 and not dead["mutual"]
    assert np.isnan(dead["similarity"])


def test_a_network_with_other_layers_is_matched_as_a_whole():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 30, 4))
    a = profiles.of_responses({"conv": x, "fc": y})
    b = profiles.of_responses({"first": y[:, ::-1], "second": x})
    found = matching.match(a, b)
    assert set(found["conv"]["layer"]) == {"second"}
    assert found["fc"]["unit"].tolist() == [3, 2, 1, 0]
    two = profiles.of_responses({"first": np.c_[x, x]})
    # One of two copies is the best match of both; it has only one of its own.
    assert matching.match(two, a)["first"]["mutual"].sum() == 4
    with pytest.raises(ValueError, match="30 and of 20 classes or images"):
        matching.match(a, profiles.of_responses({"first": x[:20]}))


def shuffled(layer, order):
    """The same layer with its units in another order."""

    def of(value):
        if not isinstance(value, RankedPatches):
            return value[order]
        return RankedPatches(**{k: x[order] for k, x in vars(value).items()})

    return Layer(**{name: of(value) for name, value in vars(layer).items()})


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Workdirs of two surveys, and how the units of the second are ordered."""
    folder = tmp_path_factory.mktemp("two")
    known, patches, pictures = example()
    orders = {n: np.argsort(-x.mean, kind="stable") for n, x in known.layers.items()}
    layers = {n: shuffled(x, orders[n]) for n, x in known.layers.items()}
    other = dataclasses.replace(known, layers=layers)
    of_other = {name: x[orders[name]] for name, x in patches.items()}
    for name, results, drawn in (("a", known, patches), ("b", other, of_other)):
        atlas.write(folder / name, results, drawn, pictures)
        table.save(folder / name / "units.npz", results)
    return folder, orders


def test_two_atlases_are_compared_side_by_side(two, tmp_path, caplog):
    folder, orders = two
    config = compare.Config(a=str(folder / "a"), b=str(folder / "b"), pairs=4)
    with caplog.at_level("INFO"):
        assert compare.run(config, tmp_path) == ["compare.png", "compare.csv"]
    rows = files.read_csv(tmp_path / "compare.csv")
    assert len(rows) == sum(map(len, orders.values()))
    for layer, unit, other_layer, number, similarity, mutual in rows:
        if (layer, unit) == ("conv1", "3"):  # the dead unit
            assert (number, similarity, mutual) == ("-1", "", "False")
        else:
            assert (other_layer, mutual) == (layer, "True")
            assert orders[layer][int(number)] == int(unit)
            assert float(similarity) == 1
    assert "fc: median similarity 1.00, mutual best matches 100%" in caplog.text
    assert images.read(tmp_path / "compare.png").width > 4 * 6 * compare.SIDE


def test_responses_are_compared_where_there_are_any(two, tmp_path, monkeypatch, caplog):
    folder, orders = two
    rng = np.random.default_rng(0)
    scores = {name: rng.normal(size=(20, len(x))) for name, x in orders.items()}
    index = {"a": np.arange(20), "b": np.arange(20)}

    def load(workdir):
        # The other way round, which shows that class means are not what is compared.
        score = {
            name: x[:, ::-1] if workdir.name == "b" else x for name, x in scores.items()
        }
        return responses.Responses(index[workdir.name], index["a"], score, {})

    monkeypatch.setattr(responses, "load", load)
    config = compare.Config(a=str(folder / "a"), b=str(folder / "b"))
    with caplog.at_level("INFO"):
        compare.run(config, tmp_path)
    for layer, unit, other, number, similarity, _ in files.read_csv(
        tmp_path / "compare.csv"
    ):
        assert other == layer and float(similarity) == 1
        assert int(number) == len(orders[layer]) - 1 - int(unit)
    assert "compared by responses to 20 images" in caplog.text
    index["b"] = index["b"] + 1
    with pytest.raises(ValueError, match="responses to different images"):
        compare.run(config, tmp_path)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"images": 7}, r"different images \(600 and 7\)"),
        ({"classes": ["tabby"]}, r"different classes \(8 and 1\)"),
        ({"examples": {0: ("else", 0)}}, "different images$"),
    ],
)
def test_scans_of_other_images_are_not_compared(tmp_path, changes, line):
    known = example()[0]
    for name, results in (("a", known), ("b", dataclasses.replace(known, **changes))):
        (tmp_path / name).mkdir()
        table.save(tmp_path / name / "units.npz", results)
    config = compare.Config(a=str(tmp_path / "a"), b=str(tmp_path / "b"))
    with pytest.raises(ValueError, match=line):
        compare.run(config, tmp_path)
    with pytest.raises(ValueError, match="workdirs of two finished"):
        configs.check(compare.Config(a="runs/units"))
