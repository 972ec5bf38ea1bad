"""The two-alternative test: by brute force, and on units whose answers are known."""

import types

import jax.numpy as jnp
import numpy as np
import pytest
import small
from atlases import layer_of
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from PIL import Image
from scipy import stats

from experiments import scores as experiment
from nstvis.runs import config as configs
from nstvis.runs.files import read_csv
from nstvis.units import atlas, scores, survey, table
from nstvis.units.receptive_fields import receptive_fields
from nstvis.units.responses import Responses

BRIGHT = 250


def test_an_answer_is_the_patch_that_is_more_like_the_pictures():
    rng = np.random.default_rng(0)
    explanation, strong, weak = (rng.normal(size=(n, 5)) for n in (4, 30, 30))

    def likeness(patch):
        lengths = [np.linalg.norm(patch) * np.linalg.norm(x) for x in explanation]
        return np.mean([patch @ x / y for x, y in zip(explanation, lengths)])

    right = [likeness(a) > likeness(b) for a, b in zip(strong, weak)]
    assert scores.accuracy(explanation, strong, weak) == np.mean(right)
    assert scores.accuracy(explanation, weak, strong) == 1 - np.mean(right)
    assert scores.accuracy(explanation, strong, strong) == 0.5
    assert scores.accuracy(0 * explanation, strong, weak) == 0.5


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(1, 12))
def test_pairs_are_held_out_and_one_of_each_is_weak(seed, units, count):
    rng = np.random.default_rng(seed)
    table = rng.integers(0, 4, (rng.integers(2, 20), units)) * 1.0
    candidates = rng.permutation(len(table))[: rng.integers(1, len(table) + 1)]
    unit = int(rng.integers(units))
    pairs = scores.draw_pairs(table, unit, candidates, count, rng)
    assert len(pairs.strong) == len(pairs.weak) == len(pairs.others) <= count
    drawn = [*pairs.strong, *pairs.weak]
    assert set(drawn) <= set(candidates)
    assert np.all(table[pairs.strong, unit] > table[pairs.weak, unit])
    assert len(set(pairs.strong)) == len(pairs.strong)
    assert len({unit, *pairs.others}) == 1 + len(pairs.others)
    middle = np.median(table[candidates, unit])
    less = candidates[table[candidates, unit] <= middle]
    for weak, other in zip(pairs.weak, pairs.others):
        assert table[weak, unit] <= middle
        assert table[less, other].min() < table[weak, other]


def test_strong_images_are_the_highest_and_weak_ones_another_unit_s():
    table = np.array(
        [[9.0, 0, 0], [8, 0, 0], [7, 5, 5], [3, 1, 6], [2, 8, 1], [1, 2, 3]]
    )
    rng = np.random.default_rng(0)
    pairs = scores.draw_pairs(table, 0, np.arange(1, 6), 2, rng)
    assert list(pairs.strong) == [1, 2]
    assert dict(zip(pairs.others.tolist(), pairs.weak.tolist())) == {1: 4, 2: 5}


def test_the_interval_is_scipy_s():
    values = np.random.default_rng(0).uniform(0, 1, 60)
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=5000, method="percentile", rng=1
    ).confidence_interval
    np.testing.assert_allclose(scores.bootstrap(values, 0), theirs, atol=0.01)
    assert scores.bootstrap(np.full(9, 0.25), 0) == (0.25, 0.25)


# Units that want red, green and blue blocks of 4 x 4 pixels; the last one is dead.


def colours(params, images):
    window = 1, 4, 4, 1
    blocks = lax.reduce_window(images, 0.0, lax.add, window, window, "VALID") / 16
    own = blocks - blocks.mean(-1, keepdims=True)
    return {"colour": jnp.maximum(jnp.concatenate([own, 0 * own[..., :1]], -1), 0)}


def mean_colour(pictures):
    return np.array([np.mean(picture, (0, 1)) for picture in pictures], np.float32)


@pytest.fixture(scope="module")
def held_out():
    """Grey images, each with one block of one colour, and the responses to them."""
    rng = np.random.default_rng(0)
    images = np.full((60, 16, 16, 3), 100, np.uint8)
    for i, image in enumerate(images):
        row, column = 4 * rng.integers(0, 4, 2)
        image[row : row + 4, column : column + 4, i % 3] = BRIGHT - i
    maps = np.asarray(colours({}, jnp.asarray(images, jnp.float32))["colour"])
    flat = maps.reshape(60, 16, 4)
    responses = Responses(
        index=np.arange(60),
        label=np.full(60, -1),
        score={"colour": flat.max(1)},
        position={"colour": flat.argmax(1)},
    )
    layer = layer_of(0, 4, 9, 4, 1, 60)
    order = np.argsort(-flat.max(1), axis=0, kind="stable")[:9].T
    layer.top.image[:] = order
    places = flat.argmax(1)[order, np.arange(4)[:, None]]
    layer.top.position[:] = np.stack(np.divmod(places, 4), -1)
    return scores.HeldOut(
        responses, {"colour": layer}, receptive_fields(colours, {}, 16, 16), images
    )


def find(held_out, kinds, pairs=2, units=range(4), observe=mean_colour):
    arguments = {"colour": list(units)}, kinds, held_out, observe
    return scores.find(*arguments, pairs=pairs, seed=0)["colour"]


def painted(channel):
    picture = np.full((1, 8, 8, 3), 100, np.uint8)
    picture[..., channel] = BRIGHT
    return picture


def test_units_of_known_colours_are_told_by_their_patches_and_by_no_others(held_out):
    right = {unit: painted(unit) for unit in range(3)}
    wrong = {0: painted(1), 1: painted(0)}
    found = find(held_out, {"right": {"colour": right}, "wrong": {"colour": wrong}})
    assert list(found["pairs"]) == [2, 2, 2, 0]
    np.testing.assert_array_equal(found["patches"], [1, 1, 1, np.nan])
    np.testing.assert_array_equal(found["right"], [1, 1, 1, np.nan])
    assert found["wrong"][0] < 1 and np.isnan(found["wrong"][2])
    assert np.nanmax(found["others"]) <= 0.5
    assert np.isnan(found["random"][3]) and np.all(found["random"][:3] <= 1)


def test_a_test_depends_on_its_seed_alone_and_untested_units_have_no_number(held_out):
    some = find(held_out, {}, units=[2])
    np.testing.assert_array_equal(some["patches"], [np.nan, np.nan, 1, np.nan])
    assert np.isnan(some["others"]).all()  # there is none
    once, again = find(held_out, {}), find(held_out, {})
    for name, values in once.items():
        np.testing.assert_array_equal(values, again[name])
    dead = find(held_out, {}, units=[3])
    assert not dead["pairs"].any() and np.isnan(dead["patches"]).all()


def test_what_all_patches_have_in_common_makes_none_more_like_another(held_out):
    noise = np.random.default_rng(1).integers(0, 256, (3, 5, 8, 8, 3), "uint8")
    noise[..., 0] //= 4
    kinds = {"noise": {"colour": dict(enumerate(noise))}}

    def biased(pictures):
        return mean_colour(pictures) + np.float32([900, 20, -40])

    expected = find(held_out, kinds)
    for name, values in find(held_out, kinds, observe=biased).items():
        np.testing.assert_array_equal(values, expected[name])


def test_explanations_are_none_of_what_is_tested(held_out):
    seen = []

    def watching(pictures):
        seen.extend(pictures)
        return mean_colour(seen)

    arguments = {"colour": [0]}, {}, held_out, watching
    scores.find(*arguments, pairs=2, seed=0)
    assert [picture.shape for picture in seen] == 22 * [(4, 4, 3)]
    top = held_out.layers["colour"].top.image[0]
    best = np.argsort(-held_out.responses.score["colour"][:, 0], kind="stable")
    for picture, image in zip(seen[:2], best[9:11]):
        assert image not in top
        assert np.all(picture[..., 0] == BRIGHT - image)  # cut out at the block
    for picture, image in zip(seen[4:13], top):
        assert np.all(picture[..., 0] == BRIGHT - image)


def test_an_optimised_picture_is_cut_out_where_its_unit_is_most_active():
    picture = np.full((16, 16, 3), 100, np.uint8)
    picture[8:12, 4:8, 1] = BRIGHT
    panel = scores.at_peaks(colours, {}, {"colour": {1: picture}})
    np.testing.assert_array_equal(panel["colour"][1], picture[None, 8:12, 4:8])


def test_a_table_has_each_kind_of_each_layer_where_there_are_numbers():
    known = {"pairs": np.array([4, 4, 0]), "patches": np.array([0.5, 1.0, np.nan])}
    none = {"pairs": np.array([0]), "patches": np.array([np.nan])}
    (row,) = scores.rows({"conv1": known, "conv2": none}, 0)
    assert row[:3] == ("patches", "conv1", 0.75) and row.units == 2
    assert 0.5 <= row.low <= row.high <= 1


@pytest.mark.parametrize(
    "observed, other", [("alexnet_small", "vgg_small"), ("vgg_small", "alexnet_small")]
)
def test_an_observer_is_another_network(observed, other, monkeypatch):
    def load(name, last):
        assert name == other
        return lambda params, images: {last: images}, {}

    monkeypatch.setattr(scores, "models", types.SimpleNamespace(load=load))
    pictures = [np.full((side, side, 3), side, np.uint8) for side in range(1, 131)]
    found = scores.observer(observed)(iter(pictures))  # more than a batch
    np.testing.assert_allclose(found, [[i] * 3 for i in range(1, 131)], rtol=1e-5)
    assert not len(scores.observer(observed)([]))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({}, "atlas: name the workdir"),
        ({"atlas": "a", "features": "x/maco,y/maco"}, "maco would be two kinds"),
        ({"atlas": "a", "features": "runs/patches"}, "patches would be two kinds"),
    ],
)
def test_a_test_without_an_atlas_or_with_two_kinds_of_a_name_is_refused(
    fields, message
):
    with pytest.raises(ValueError, match=message):
        configs.check(experiment.Config(**fields))


@pytest.mark.slow
def test_the_experiment_leaves_a_table_a_figure_and_the_atlas_s_finding(
    tmp_path, monkeypatch
):
    model, dataset = small.write(tmp_path)
    folder, painted = tmp_path / "units", tmp_path / "painted"
    folder.mkdir()
    how = {"model": model, "weights": "random", "dataset": dataset, "k": 3}
    survey.survey(survey.Settings(**how, size=32, batch=24, layers="conv2"), folder)
    picture = np.random.default_rng(0).integers(0, 256, (40, 40, 3), "uint8")
    (painted / "features" / "conv2").mkdir(parents=True)
    Image.fromarray(picture).save(painted / "features" / "conv2" / "4.png")
    monkeypatch.setattr(scores, "observer", lambda model: mean_colour)
    config = experiment.Config(
        atlas=str(folder), features=str(painted), images=90, batch=24, pairs=3
    )
    assert experiment.run(config, tmp_path) == ["scores.csv", "scores.png"]
    found = {(row[0], row[1]): row[2:] for row in read_csv(tmp_path / "scores.csv")}
    assert {kind for kind, _ in found} == {
        *("patches", "deconvnet", "painted", "random", "others")
    }
    assert found["painted", "conv2"][-1] == "1"
    (finding,) = table.load(folder / "units.npz").findings["scores"].values()
    mean = np.nanmean(finding["patches"])
    assert float(found["patches", "conv2"][0]) == pytest.approx(mean)
    unit = atlas.Atlas(folder).unit("conv2", 4)
    assert unit.findings["scores"]["painted"] == finding["painted"][4]
