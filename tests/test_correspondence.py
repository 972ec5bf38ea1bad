"""Correspondence of parts: the measure, the masks, the statistics, and the launcher."""

import csv
import dataclasses
import json
import os
import signal

import jax
import launcher
import numpy as np
import pytest
from PIL import Image

from experiments import correspondence as experiment
from nstvis import images, models
from nstvis.probes import correspondence, parts
from nstvis.runs import config as configs
from nstvis.runs import workdir
from nstvis.runs.progress import Interrupted


def some_signs(count, positions, chances):
    rng = np.random.default_rng(0)
    return rng.choice([-1, 0, 1], (count, positions), p=chances).astype(np.int8)


# The measure.


@pytest.mark.parametrize("chances", [(0.3, 0.4, 0.3), (0, 0.9, 0.1), (0.5, 0, 0.5)])
def test_the_distance_is_the_share_of_positions_that_differ(chances):
    signs = some_signs(7, 53, chances)
    expected = np.zeros((7, 7))
    for i in range(7):
        for j in range(7):
            expected[i, j] = sum(a != b for a, b in zip(signs[i], signs[j])) / 53
    np.testing.assert_allclose(correspondence.hamming(signs), expected, atol=1e-7)
    others = (expected.sum(1) - np.diag(expected)) / 6
    np.testing.assert_allclose(correspondence.sign_change(signs), others, atol=1e-6)


def test_images_that_change_alike_are_at_no_distance():
    signs = np.tile(some_signs(1, 1000, (0.2, 0.5, 0.3)), (5, 1))
    assert not np.asarray(correspondence.sign_change(signs)).any()


def test_opposite_changes_are_as_far_as_can_be():
    signs = np.array([[1, -1, 1, -1], [-1, 1, -1, 1]], np.int8)
    np.testing.assert_array_equal(correspondence.sign_change(signs), [1, 1])


@pytest.mark.parametrize("chances", [(1 / 3, 1 / 3, 1 / 3), (0.1, 0.7, 0.2)])
def test_independent_signs_differ_by_chance(chances):
    found = correspondence.sign_change(some_signs(20, 20_000, chances))
    expected = 1 - np.square(chances).sum()
    assert float(found.mean()) == pytest.approx(expected, abs=0.003)


# The masks.


def test_a_mask_hides_its_box_and_nothing_else():
    rng = np.random.default_rng(0)
    pictures = rng.uniform(130, 255, (4, 9, 12, 3)).astype(np.float32)
    boxes = [[0, 0, 9, 12], [2, 3, 5, 4], [0, 0, 0, 0], [8, 11, 9, 12]]
    found = np.asarray(correspondence.masked(pictures, np.array(boxes)))
    for picture, masked, (top, left, bottom, right) in zip(pictures, found, boxes):
        expected = picture.copy()
        expected[top:bottom, left:right] = 127
        np.testing.assert_array_equal(masked, expected)


@pytest.mark.parametrize("together", [False, True])
def test_random_masks_have_the_same_sizes_anywhere_in_the_image(together):
    boxes = np.array([[3, 4, 8, 6], [0, 0, 10, 10], [9, 2, 10, 9], [1, 2, 6, 4]])
    rng = np.random.default_rng(0)
    draws = [
        correspondence.elsewhere(boxes, 10, rng, together=together) for _ in range(300)
    ]
    for found in draws:
        assert (found[:, 2:] - found[:, :2] == boxes[:, 2:] - boxes[:, :2]).all()
    corners = np.stack(draws)
    assert (corners.min(0)[:, :2] == 0).all()
    assert (corners.max(0)[:, 2:] == 10).all()
    # Of the first and the last, which are of one size.
    same = (corners[:, 0] == corners[:, 3]).all(1).mean()
    assert same == 1 if together else same < 0.1


# The comparison.


def toy(params, pictures):
    """Two layers, one of which is not a map."""
    stem = jax.nn.relu(
        jax.lax.conv(pictures.transpose(0, 3, 1, 2), params, (2, 2), "SAME")
    )
    return {"stem": stem, "mean": stem.mean((2, 3))}


@pytest.fixture
def filters():
    return np.random.default_rng(1).normal(0, 0.1, (5, 3, 3, 3)).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [2, 3, 7, 100])
def test_what_masks_change_is_brute_force_s(filters, batch):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (7, 12, 12, 3), np.uint8)
    boxes = np.sort(rng.integers(0, 13, (7, 2, 2)), 1).reshape(7, 4)
    compare = correspondence.Comparison(toy, filters, ["mean", "stem"], pictures, batch)
    found = compare(boxes)
    assert found.shape == (2, 7)
    masked = pictures.copy()
    for picture, (top, left, bottom, right) in zip(masked, boxes):
        picture[top:bottom, left:right] = 127
    for name, changes in zip(["mean", "stem"], found):
        before, after = (
            np.stack([toy(filters, x[None].astype(np.float32))[name][0] for x in some])
            for some in (pictures, masked)
        )
        change = (before - after).reshape(7, -1)
        signs = np.where(abs(change) < 1e-4, 0, np.sign(change))
        differ = (signs[:, None] != signs).mean(-1)
        np.testing.assert_allclose(changes, differ.sum(1) / 6, atol=1e-6)


@pytest.mark.slow
def test_what_a_mask_does_not_change_is_exactly_nothing():
    forward, params = models.load("alexnet_small")
    pictures = parts.drawn(6, 64).images.copy()
    boxes = np.tile([10, 10, 20, 20], (6, 1))
    pictures[:, 10:20, 10:20] = 127
    compare = correspondence.Comparison(forward, params, ["conv5", "fc7"], pictures, 4)
    assert not np.asarray(compare(boxes)).any()


def test_the_same_image_again_is_no_distance_away():
    forward, params = models.load("alexnet_small")
    faces = parts.drawn(2, 64)
    pictures, boxes = (
        np.repeat(x[:1], 4, 0) for x in (faces.images, faces.boxes["nose"])
    )
    compare = correspondence.Comparison(forward, params, ["conv5"], pictures, 4)
    assert not np.asarray(compare(boxes)).any()
    # Which is not because nothing changes.
    assert np.asarray(compare(np.concatenate([boxes[:2], 0 * boxes[:2]]))).any()


def test_features_that_are_not_finite_are_no_signs(filters):
    pictures = np.full((2, 4, 4, 3), 200, np.uint8)
    with pytest.raises(FloatingPointError, match="stem"):
        correspondence.Comparison(toy, np.inf * filters, ["stem"], pictures, 2)(
            np.array([[0, 0, 2, 2]] * 2)
        )


# The statistics.


def test_statistics_pool_random_masks_over_draws_and_sizes():
    boxes = np.zeros((2, 4), int)
    kinds = [("eye", "eye"), ("random", "eye"), ("random", "eye"), ("one place", "eye")]
    kinds += [("nose", "nose"), ("random", "nose"), ("one place", "nose")]
    masks = [correspondence.Mask(kind, part, boxes) for kind, part in kinds]
    changes = np.random.default_rng(0).random((len(masks), 3, 2))
    statistics = correspondence.statistics(masks, changes)
    pooled = {("eye", "eye"): [0], ("random", "eye"): [1, 2], ("random", ""): [1, 2, 5]}
    for key, rows in pooled.items():
        values = np.concatenate(changes[rows], -1)
        expected = np.stack([values.mean(-1), values.std(-1)], -1)
        np.testing.assert_allclose(statistics[key], expected)
    assert list(correspondence.rows(statistics)) == [
        "eye",
        "nose",
        "random",
        "one place",
    ]
    matched = correspondence.matched(statistics, "random")
    assert list(matched) == ["eye", "nose"]
    np.testing.assert_allclose(matched["nose"], changes[5].mean(-1))


def test_the_table_names_the_parts_that_are_more_consistent():
    numbers = {
        ("eye", "eye"): 0.2,
        ("nose", "nose"): 0.4,
        ("random", "eye"): 0.3,
        ("random", "nose"): 0.3,
        ("random", ""): 0.3,
        ("one place", "eye"): 0.1,
        ("one place", "nose"): 0.1,
        ("one place", ""): 0.1,
    }
    statistics = {key: np.array([[mean, 0.05]]) for key, mean in numbers.items()}
    lines = list(correspondence.table(["conv1"], statistics))
    assert lines[1].split() == ["eye", "0.200", "±", "0.050"]
    assert lines[-2].endswith("at random places: eye by 0.100 (1 of 2)")
    assert lines[-1].endswith("at one place in all images: no part (0 of 2)")


# The experiment.


def rows(workdir):
    with (workdir / "correspondence.csv").open() as file:
        return {
            (row["mask"], row["sizes_of"], row["layer"]): (
                float(row["mean"]),
                float(row["deviation"]),
            )
            for row in csv.DictReader(file)
        }


@pytest.mark.slow
def test_the_launcher_leaves_a_table_and_a_picture_once(tmp_path):
    run, fields = tmp_path / "run", {"count": 4, "draws": 2}
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    done = launcher.launch("--experiment=correspondence", f"--workdir={run}", *flags)
    names = ("correspondence.png", "correspondence.txt", "correspondence.csv")
    launcher.assert_left(done, run, names)
    table = (run / "correspondence.txt").read_text()
    assert table in done.stderr
    statistics, faces = rows(run), parts.drawn(4, 64)
    forward, params = models.load("alexnet_small")
    forward = jax.jit(forward)
    masked = faces.images.copy()
    for image, (top, left, bottom, right) in zip(masked, faces.boxes["nose"]):
        image[top:bottom, left:right] = 127
    before, after = (
        forward(params, x.astype("float32")) for x in (faces.images, masked)
    )
    for layer in ("conv5", "fc7"):
        signs = np.sign(np.asarray(before[layer] - after[layer]).reshape(4, -1))
        distances = (signs[:, None] != signs).mean(-1).sum(1) / 3
        mean, deviation = statistics["nose", "nose", layer]
        # Other programs round differently, and so a few signs.
        assert mean == pytest.approx(distances.mean(), abs=2e-3)
        assert deviation == pytest.approx(distances.std(), abs=2e-3)
        assert f"{mean:.3f} ± {deviation:.3f}" in table
        for row in ("random", "one place"):
            means = [statistics[row, part, layer][0] for part in faces.boxes]
            pooled = statistics[row, "all", layer][0]
            assert pooled == pytest.approx(np.mean(means), abs=1e-5)
    assert images.read(run / "correspondence.png").width > 800
    results = workdir.claim(run, "correspondence", experiment.Config(**fields))
    assert results == [run / name for name in names]


FORK = """
import jax
from flax import nnx


class Network(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), strides=2, rngs=rngs)

    def __call__(self, images):
        stem = jax.nn.relu(self.conv(images / 255 - 0.5))
        return {"stem": stem, "mean": stem.mean((1, 2))}


def build(*, pooling, last, rngs, classes=10):
    return Network(rngs)
"""


@pytest.fixture
def config(tmp_path):
    """A network and images of one's own, with two parts."""
    (tmp_path / "fork.py").write_text(FORK)
    rng, listed = np.random.default_rng(0), {}
    for name in ("a.png", "b.png", "c.jpg"):
        noise = rng.integers(0, 256, (30, 40, 3), np.uint8)
        Image.fromarray(noise).save(tmp_path / name)
        listed[name] = {"hub": [3, 8, 12, 20], "rim": [14, 10, 28, 30]}
    (tmp_path / "parts.json").write_text(json.dumps(listed))
    return experiment.Config(
        model=str(tmp_path / "fork.py"),
        weights="random",
        parts=str(tmp_path / "parts.json"),
        layers="stem",
        size=24,
        draws=2,
        batch=2,
    )


@pytest.mark.slow
def test_interrupted_it_resumes_and_ends_the_same(config, tmp_path, monkeypatch):
    measured = correspondence.Comparison.__call__
    calls = []

    def interrupted(self, boxes):
        calls.append(boxes)
        if len(calls) == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return measured(self, boxes)

    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    experiment.run(config, tmp_path / "whole")
    monkeypatch.setattr(correspondence.Comparison, "__call__", interrupted)
    with pytest.raises(Interrupted) as stopped:
        experiment.run(config, tmp_path / "stopped")
    assert stopped.value.signum == signal.SIGTERM
    assert len(calls) == 4
    assert not (tmp_path / "stopped/correspondence.csv").exists()
    experiment.run(config, tmp_path / "stopped")
    # Two parts, each with two draws at random and two at one place.
    assert len(calls) == 2 * (1 + 2 + 2)
    for name in ("correspondence.csv", "correspondence.txt", "correspondence.png"):
        whole, stopped = (tmp_path / folder / name for folder in ("whole", "stopped"))
        assert whole.read_bytes() == stopped.read_bytes()
    assert {row for row, _, _ in rows(tmp_path / "whole")} == {
        *("hub", "rim", "random", "one place")
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": "stern"}, "did you mean 'stem'"),
        ({"layers": "stem,stem"}, "layers=stem,stem: stem is given twice"),
        ({"layers": ""}, "layers should name at least one layer"),
        ({"draws": 0}, "draws should be at least 1"),
        ({"count": 1}, "count should be at least 2"),
        ({"parts": "nowhere.json"}, "nowhere.json: no such file"),
    ],
)
def test_mistakes_are_said_in_a_line(config, changes, message, tmp_path):
    changed = dataclasses.replace(config, **changes)
    with pytest.raises((ValueError, OSError), match=message):
        configs.check(changed)
        experiment.run(changed, tmp_path)


def test_no_part_may_be_called_random(config, tmp_path):
    listed = json.loads((tmp_path / "parts.json").read_text())
    for boxes in listed.values():
        boxes["random"] = boxes.pop("hub")
    (tmp_path / "parts.json").write_text(json.dumps(listed))
    with pytest.raises(ValueError, match="no part can be called 'random'"):
        experiment.run(config, tmp_path)
