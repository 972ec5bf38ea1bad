"""Occlusion against squares placed one at a time, and its experiment."""

import csv
import os
import signal

import jax
import jax.numpy as jnp
import launcher
import numpy as np
import pytest
from PIL import Image

from experiments import occlusion as experiment
from nstvis import attribution, images, layers, models
from nstvis.probes import occlusion
from nstvis.runs import workdir
from nstvis.runs.progress import Interrupted

# Sees one pixel; class 0 if it is light. Its second unit sees all pixels.
ONE_PIXEL = """
import jax, jax.numpy as jnp
from flax import nnx

class Network(nnx.Module):
    def __call__(self, images):
        light = jax.nn.relu(images[..., :1] - 200)
        pair = jnp.concatenate([0 * light, light], -1)
        pixel = light[:, 10, 20]
        logits = jnp.concatenate([pixel / 5, 0 * pixel + 1], 1)
        return {"conv1": pair, "fc": logits}

def build(*, pooling, last, rngs, classes=2):
    return Network()
"""


def noise(*shape, seed=0):
    return np.random.default_rng(seed).uniform(0, 255, shape).astype(np.float32)


def covered(image, row, column, square):
    """The image with a square, by slices."""
    result = image.copy()
    top, left = row - square // 2, column - square // 2
    rows = slice(max(0, top), max(0, top + square))
    result[rows, max(0, left) : max(0, left + square)] = layers.MEAN_COLOR
    return result


def one_pixel(params, images):
    light = images[:, 10, 20, 0]
    logits = jnp.stack([light / 20, jnp.full(len(images), 10.0)], 1)
    return {"conv1": images, "fc": logits}


def slid(forward, layer, image, square, stride, batch, unit=0, label=0, params=()):
    study = occlusion.Study(
        forward, params, layer, "gradient", square, stride=stride, batch=batch
    )
    *_, (done, maps) = study.slide(image, unit, label)
    assert done == maps.activity.size
    return maps


# The square.


@pytest.mark.slow
@pytest.mark.parametrize("square", [1, 4, 5, 21])
def test_the_square_is_where_it_should_be(square):
    image = noise(21, 30, 3)
    places = [(0, 0), (20, 29), (0, 15), (10, 29), (10, 15)]
    found = occlusion.occluded(image, np.array(places), square)
    for own, place in zip(found, places, strict=True):
        np.testing.assert_array_equal(own, covered(image, *place, square))


@pytest.mark.parametrize("square", [0, 22])
def test_a_square_that_does_not_fit_is_refused(square):
    with pytest.raises(ValueError, match=f"square={square} should be 1 to 21 pixels"):
        occlusion.occluded(noise(21, 30, 3), np.zeros((1, 2), int), square)


def test_the_places_are_all_that_fit_and_in_the_middle():
    for length in range(1, 30):
        for stride in range(1, 12):
            places = occlusion.centres(length, stride)
            before, after = places[0], length - 1 - places[-1]
            assert before >= 0
            assert 0 <= after - before <= 1
            assert before + after < stride
            np.testing.assert_array_equal(np.diff(places), stride)


# The maps.


@pytest.fixture(scope="module")
def network():
    """The bundled one, and two of its layers for one image."""
    forward, params = models.load("alexnet_small")
    alone = jax.jit(lambda x: [forward(params, x)[name] for name in ("conv5", "fc8")])
    return forward, params, alone


@pytest.mark.slow
@pytest.mark.parametrize(("square", "stride", "batch"), [(9, 5, 7), (4, 6, 64)])
def test_the_maps_are_those_of_squares_one_at_a_time(network, square, stride, batch):
    forward, params, alone = network
    image, unit, label = noise(48, 41, 3), 3, 7
    maps = slid(
        forward, "conv5", image, square, stride, batch, unit, label, params=params
    )
    places = [occlusion.centres(n, stride) for n in image.shape[:2]]
    assert maps.activity.shape == tuple(map(len, places))
    for i, row in enumerate(places[0]):
        for j, column in enumerate(places[1]):
            x, logits = map(
                np.asarray, alone(covered(image, row, column, square)[None])
            )
            odds = np.exp(logits[0].astype(float) - logits.max())
            expected = x[..., unit].astype(float).sum(), odds[label] / odds.sum()
            found = maps.activity[i, j], maps.probability[i, j]
            np.testing.assert_allclose(found, expected, rtol=1e-4)
            assert maps.prediction[i, j] == logits.argmax()
    assert maps.activity.std() > 0
    assert maps.probability.std() > 0


@pytest.mark.parametrize("square", [1, 6, 7])
def test_the_class_is_lost_exactly_where_its_pixel_is_hidden(square):
    image = np.zeros((30, 34, 3), np.float32)
    image[10, 20] = 255
    maps = slid(one_pixel, "conv1", image, square, stride=1, batch=100)
    rows, columns = np.indices((30, 34))
    hidden = (np.abs(rows - 10 + (square % 2 == 0) / -2) <= (square - 1) / 2) & (
        np.abs(columns - 20 + (square % 2 == 0) / -2) <= (square - 1) / 2
    )
    assert hidden.sum() == square**2
    np.testing.assert_array_equal(maps.prediction == 1, hidden)
    np.testing.assert_array_equal(maps.probability < 0.5, hidden)


def test_one_program_sees_batches_of_one_size():
    seen = []

    def forward(params, images):
        seen.append(images.shape)
        return one_pixel(params, images)

    study = occlusion.Study(forward, (), "conv1", "gradient", 3, stride=4, batch=5)
    for seed, unit, label in ((0, 0, 0), (1, 2, 1)):
        image = noise(23, 25, 3, seed=seed)
        done = [count for count, _ in study.slide(image, unit, label)]
        assert done == [*range(5, 42, 5), 42]
    assert seen == [(5, 23, 25, 3)]


def test_a_dense_layer_s_unit_is_its_own_sum():
    image = noise(16, 24, 3)
    maps = slid(one_pixel, "fc", image, 3, stride=5, batch=4, unit=1)
    np.testing.assert_array_equal(maps.activity, 10)


# The experiment.


@pytest.fixture
def pictures(tmp_path):
    """A picture that is light at the network's pixel, another one, and the network."""
    light = np.zeros((40, 40, 3), np.uint8)
    light[10, 20] = 255
    Image.fromarray(light).save(tmp_path / "light.png")
    Image.fromarray(noise(50, 40, 3).astype(np.uint8)).save(tmp_path / "b.png")
    (tmp_path / "toy.py").write_text(ONE_PIXEL)
    return tmp_path


def toy(folder, **options):
    values = {"size": 40, "square": 5, "stride": 3, "batch": 50, "unit": "conv1:1"}
    values |= {"image": f"{folder}/light.png,{folder}/b.png"}
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
    with (workdir / "occlusion.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_it_finds_the_pixel_of_a_network_of_one_s_own(pictures, undrawn):
    assert run(toy(pictures, label="0"), pictures / "run") == [
        "occlusion.png",
        "occlusion.csv",
    ]
    found = rows(pictures / "run")
    places = occlusion.centres(40, 3)
    assert len(found) == 2 * len(places) ** 2
    for row in found[: len(places) ** 2]:
        assert row["image"].endswith("light.png")
        place = int(row["row"]), int(row["column"])
        hidden = abs(place[0] - 10) <= 2 and abs(place[1] - 20) <= 2
        assert row["class"] == ("class 1" if hidden else "class 0")
        assert (float(row["probability"]) < 0.5) == hidden
        assert float(row["activity"]) == (0 if hidden else 55)


@pytest.mark.slow
def test_what_it_keeps_is_the_strongest_unit_s(pictures, undrawn):
    run(toy(pictures, unit="conv1", rule="guided"), pictures / "run")
    for file in ("0.npz", "1.npz"):
        with np.load(pictures / "run/maps" / file) as found:
            assert found["unit"] == 1
            forward, params = models.load(f"{pictures}/toy.py", "random")
    with np.load(pictures / "run/maps/0.npz") as found:
        image = images.to_array(images.read(pictures / "light.png"))[None]
        network = attribution.ruled(forward, "guided")
        expected, _ = attribution.attribute(
            network, params, "conv1", image, np.array([1]), np.array([[10, 20]])
        )
        np.testing.assert_array_equal(found["attribution"], expected[0])
        assert np.flatnonzero(found["attribution"]).tolist() == [3 * (10 * 40 + 20)]
        assert found["prediction"] == 0
        assert found["probability"] == pytest.approx(1 / (1 + np.exp(-10)))


@pytest.mark.slow
def test_interrupted_it_resumes_and_ends_the_same(pictures, undrawn, monkeypatch):
    config, write = toy(pictures), occlusion._write
    run(config, pictures / "whole")

    def stop(*arguments):
        write(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched, pytest.raises(Interrupted) as stopped:
        patched.setattr(occlusion, "_write", stop)
        run(config, pictures / "run")
    assert stopped.value.signum == signal.SIGTERM
    first = pictures / "run/maps/0.npz"
    kept = first.stat().st_mtime_ns
    assert not (pictures / "run/maps/1.npz").exists()
    run(config, pictures / "run")
    assert first.stat().st_mtime_ns == kept
    assert rows(pictures / "run") == rows(pictures / "whole")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"square": 41}, "square=41 should be 1 to 40 pixels"),
        ({"stride": 0}, "stride should be at least 1"),
        ({"batch": 0}, "batch should be at least 1"),
        ({"unit": "conv1:2"}, "no unit conv1:2: there are 0 to 1"),
        ({"unit": "conv1:x"}, "no unit conv1:x"),
        ({"unit": "conv2"}, "no layer 'conv2': did you mean 'conv1'"),
        ({"label": "dog"}, "no class 'dog' among the network's 2"),
        ({"label": "2"}, "no class '2' among the network's 2"),
        ({"label": "0,1,0"}, "label has 3 classes for 2 images"),
        ({"rule": "magic"}, "no rule 'magic'"),
        ({"image": "nowhere.png"}, "nowhere.png: no such file"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(pictures, options, message):
    with pytest.raises((ValueError, OSError)) as error:
        run(toy(pictures, **options), pictures / "run")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# Through the launcher.


@pytest.mark.slow
def test_it_runs_offline_and_is_then_finished(tmp_path):
    Image.fromarray(noise(60, 50, 3).astype(np.uint8)).save(tmp_path / "a$_$.png")
    names, run = f"demo,{tmp_path / 'a$_$.png'}", tmp_path / "run"
    fields = {"image": names, "size": 48, "square": 11, "stride": 10, "batch": 7}
    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    done = launcher.launch("--experiment=occlusion", f"--workdir={run}", *flags)
    launcher.assert_left(done, run, ["occlusion.png", "occlusion.csv"])
    assert "demo: " in done.stderr
    assert "(predicted): " in done.stderr
    assert len(rows(run)) == 2 * 5 * 5
    assert {row["image"] for row in rows(run)} == set(names.split(","))
    assert images.read(run / "occlusion.png").width > 1000
    results = workdir.claim(run, "occlusion", experiment.Config(**fields))
    assert results == [run / "occlusion.png", run / "occlusion.csv"]
