"""Moved, enlarged and turned pictures against slices, and what the layers make of it."""

import csv
import os
import signal

import jax
import jax.numpy as jnp
import launcher
import numpy as np
import pytest
from PIL import Image

from experiments import invariance as experiment
from nstvis import images, models
from nstvis.layers import MEAN_COLOR
from nstvis.probes import invariance
from nstvis.runs import files, workdir
from nstvis.runs.progress import Interrupted

# Its dense layer is the mean colour, whatever the place.
MEAN = """
import jax, jax.numpy as jnp
from flax import nnx

class Network(nnx.Module):
    def __call__(self, images):
        mean = images.mean((1, 2))
        return {"conv1_pre": images, "conv1": jax.nn.relu(images - 50), "pool": mean,
                "logits": mean / 50}

def build(*, pooling, last, rngs, classes=3):
    return Network()
"""
FILL = np.rint(MEAN_COLOR).astype(np.uint8)
COLUMNS = ["conv1_distance", "conv1_relative", "pool_distance", "pool_relative"]


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def changed(array, transformation, amount):
    found = invariance.transformed(Image.fromarray(array), transformation, amount)
    return np.asarray(found)


# The transformations.


@pytest.mark.parametrize(
    "nothing", [("translation", 0), ("scale", 1), ("rotation", 0), ("rotation", 360)]
)
@pytest.mark.parametrize("shape", [(20, 20, 3), (21, 33, 3)])
def test_no_change_changes_nothing(nothing, shape):
    np.testing.assert_array_equal(changed(noise(*shape), *nothing), noise(*shape))


@pytest.mark.parametrize("down", [1, 7, -1, -12, 21, -30])
def test_a_translation_is_a_slice(down):
    image, expected = noise(21, 33, 3), np.tile(FILL, (21, 33, 1))
    if down >= 0:
        expected[down:] = image[: max(0, 21 - down)]
    elif down > -21:
        expected[:down] = image[-down:]
    np.testing.assert_array_equal(changed(image, "translation", down), expected)


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("side", [20, 21])
def test_quarters_are_turned_exactly_and_counter_clockwise(turns, side):
    image = noise(side, side, 3)
    found = changed(image, "rotation", 90 * turns)
    np.testing.assert_array_equal(found, np.rot90(image, turns))


def test_a_picture_is_enlarged_about_its_middle():
    ramp = np.arange(60, dtype=float) * 4
    image = np.tile(ramp[:, None, None], (1, 60, 3)).astype(np.uint8)
    found = changed(image, "scale", 1.5)
    expected = (29.5 + (np.arange(60) - 29.5) / 1.5) * 4
    for column in (0, 30, 59):
        np.testing.assert_allclose(found[:, column, 0], expected, atol=1.5)
    image = noise(30, 31, 3)
    for flip in (np.flipud, np.fliplr):
        mirrored = flip(changed(flip(image), "scale", 1.5)).astype(float)
        np.testing.assert_allclose(mirrored, changed(image, "scale", 1.5), atol=1)


def test_what_is_turned_into_the_corners_is_grey():
    found = changed(noise(40, 40, 3), "rotation", 45)
    for row in (0, -1):
        for column in (0, -1):
            np.testing.assert_array_equal(found[row, column], FILL)


def test_the_amounts_are_the_paper_s():
    found = invariance.amounts(224)
    assert [found["translation"][i] for i in (0, 17, -1)] == [-60, 0, 60]
    assert [found["scale"][i] for i in (0, -1)] == [1, 1.8]
    assert [found["rotation"][i] for i in (0, 1, -1)] == [0, 10, 350]
    half = invariance.amounts(64)["translation"]
    np.testing.assert_array_equal(half, np.arange(-17, 18))


# The comparison.


@pytest.mark.slow
def test_distances_are_numpy_s():
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(75, 4)).astype(np.float32) / 100
    batch = noise(6, 5, 5, 3)

    def forward(params, x):
        logits = x.reshape(len(x), -1) @ params
        return {"image": x, "logits": logits}

    found = invariance.compare(
        forward, ["image", "logits"], jnp.asarray(weights), jnp.asarray(batch), 2
    )
    flat = batch.reshape(6, -1).astype(float)
    scores = flat @ weights
    for layer, x in enumerate((flat, scores)):
        expected = np.sqrt(((x[1:] - x[0]) ** 2).sum(1))
        np.testing.assert_allclose(found[0][layer], expected, rtol=1e-5)
        length = np.sqrt((x[0] ** 2).sum())
        np.testing.assert_allclose(found[1][layer], length, rtol=1e-5)
    odds = np.exp(scores)
    expected = odds[1:, 2] / odds[1:].sum(1)
    np.testing.assert_allclose(found[2], expected, rtol=1e-4)


@pytest.mark.slow
def test_a_mean_over_all_pixels_does_not_mind_where_things_are():
    image = np.tile(FILL, (40, 40, 1))
    image[15:25, 12:28] = noise(10, 16, 3)
    moved = [changed(image, "translation", down) for down in range(-12, 13)]
    turned = [changed(image, "rotation", angle) for angle in (0, 90, 180, 270)]

    def forward(params, x):
        return {"conv1": x, "mean": x.mean((1, 2)), "logits": x.mean((1, 2)) / 50}

    batch = jnp.asarray(np.stack([image, *moved, *turned]))
    distances, lengths, odds = invariance.compare(
        forward, ["conv1", "mean"], (), batch, 0
    )
    first, mean = np.asarray(distances / lengths[:, None])
    assert mean.max() < 1e-6
    assert first[12] == first[25] == 0
    assert np.delete(first, [12, 25]).min() > 0.05
    np.testing.assert_allclose(odds, odds[12], rtol=1e-5)


# The experiment.


@pytest.fixture
def pictures(tmp_path):
    for i in range(2):
        Image.fromarray(noise(30, 30, 3, seed=i)).save(tmp_path / f"{i}.png")
    (tmp_path / "toy.py").write_text(MEAN)
    return tmp_path


def toy(folder, **options):
    values = {"size": 30, "batch": 20, "image": f"{folder}/0.png,{folder}/1.png"}
    values |= {"model": f"{folder}/toy.py", "weights": "random"} | options
    return experiment.Config(**values)


@pytest.fixture
def undrawn(monkeypatch):
    """Leaves the page out, which takes longer than all the rest."""
    monkeypatch.setattr(experiment, "_draw", lambda *_: None)


def run(config, workdir):
    workdir.mkdir(exist_ok=True)
    return experiment.run(config, workdir)


def rows(workdir):
    with (workdir / "invariance.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_the_table_has_every_change_of_every_picture(pictures, undrawn):
    assert run(toy(pictures, label="1,0"), pictures / "run") == [
        "invariance.png",
        "invariance.csv",
    ]
    forward, params = models.load(f"{pictures}/toy.py", "random")
    forward = jax.jit(forward)
    found, expected = rows(pictures / "run"), []
    for name, label in (("0.png", 1), ("1.png", 0)):
        image = np.asarray(images.read(pictures / name))
        one = forward(params, image[None].astype(np.float32))
        for transformation, amounts in invariance.amounts(30).items():
            for amount in amounts:
                x = changed(image, transformation, amount)[None].astype(np.float32)
                other, numbers = forward(params, x), []
                for layer in ("conv1", "pool"):
                    distance = np.linalg.norm(other[layer] - one[layer])
                    numbers += [distance, distance / np.linalg.norm(one[layer])]
                odds = jax.nn.softmax(other["logits"][0])[label]
                expected.append((name, transformation, amount, *numbers, odds))
    assert len(found) == len(expected)
    assert list(found[0])[3:] == [*COLUMNS, "probability"]
    for row, own in zip(found, expected, strict=True):
        assert row["image"].endswith(own[0])
        assert (row["transformation"], float(row["amount"])) == own[1:3]
        numbers = [float(row[name]) for name in (*COLUMNS, "probability")]
        np.testing.assert_allclose(numbers, own[3:], rtol=1e-4, atol=1e-4)


def test_interrupted_it_resumes_and_ends_the_same(pictures, undrawn, monkeypatch):
    config, write = toy(pictures), files.write_csv
    run(config, pictures / "whole")

    def stop(*arguments):
        write(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched, pytest.raises(Interrupted) as stopped:
        patched.setattr(files, "write_csv", stop)
        run(config, pictures / "run")
    assert stopped.value.signum == signal.SIGTERM
    assert len(rows(pictures / "run")) == len(rows(pictures / "whole")) / 2
    compared, compute = set(), invariance.Study._rows

    def remember(study, image, changes):
        compared.add(image.name)
        return compute(study, image, changes)

    monkeypatch.setattr(invariance.Study, "_rows", remember)
    run(config, pictures / "run")
    assert compared == {f"{pictures}/1.png"}
    assert rows(pictures / "run") == rows(pictures / "whole")


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("conv1", "layers=conv1 should be two, such as conv1,fc7"),
        ("conv1,fc7", "no layer 'fc7': choose from conv1_pre, conv1, pool, logits"),
    ],
)
def test_other_layers_are_refused_in_a_line(pictures, layers, message):
    with pytest.raises(ValueError) as error:
        run(toy(pictures, layers=layers), pictures / "run")
    assert str(error.value) == message


@pytest.mark.slow
def test_it_runs_offline_and_is_then_finished(tmp_path):
    run, fields = tmp_path / "run", {"image": "demo", "size": 32, "batch": 16}
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    done = launcher.launch("--experiment=invariance", f"--workdir={run}", *flags)
    launcher.assert_left(done, run, ["invariance.png", "invariance.csv"])
    assert "moved by 1 px, conv1 by " in done.stderr
    assert " and fc7 by " in done.stderr
    found = rows(run)
    assert len(found) == sum(map(len, invariance.amounts(32).values()))
    nothing = [
        row
        for row in found
        if float(row["amount"]) in (0, 1)
        and (row["transformation"], float(row["amount"])) != ("translation", 1)
    ]
    assert len(nothing) == 3
    for row in nothing:
        assert float(row["conv1_distance"]) == 0
        assert float(row["fc7_relative"]) < 1e-5
        assert float(row["probability"]) == pytest.approx(
            float(nothing[0]["probability"]), rel=1e-5
        )
    assert images.read(run / "invariance.png").width > 1000
    results = workdir.claim(run, "invariance", experiment.Config(**fields))
    assert results == [run / "invariance.png", run / "invariance.csv"]
