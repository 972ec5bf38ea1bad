"""Pictures that units want to see: against closed forms, and through the launcher."""

import csv
import dataclasses
import logging
import signal

import jax
import jax.numpy as jnp
import launcher
import numpy as np
import pytest
from PIL import Image

from experiments import features as experiment
from nstvis import images, models
from nstvis.runs import config as configs
from nstvis.runs import workdir as workdirs
from nstvis.runs.progress import Interrupted
from nstvis.synthesis import canvas, features, starts
from nstvis.units import atlas, scan_file, table, unit_names
from nstvis.units import maxima as running
from nstvis.units.reference import Reference

STILL = features.Settings(
    canvas="pixels",
    size=6,
    steps=40,
    learning_rate=1.0,
    jitter=0,
    scale=0,
    rotate=0,
    tv=0,
)
NETWORK = """
from flax import nnx
from nstvis.layers import Chain, conv

def build(*, pooling, last, rngs, classes=3):
    layers = {"conv1": conv(3, 5, 3, stride=2, rngs=rngs), "conv2": conv(5, 7, 3, rngs=rngs)}
    return Chain(layers | {"logits": lambda x: x.mean((1, 2))[:, :3]}, last)
"""
QUICK = [
    "--config.weights=random",
    "--config.size=12",
    "--config.steps=3",
    "--config.chunk=3",
]


# Most searches here run the same program.


def settings(**changes):
    return dataclasses.replace(STILL, **changes)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """The path of a network of two convolutions."""
    path = tmp_path_factory.mktemp("models") / "two.py"
    path.write_text(NETWORK)
    return str(path)


def find(forward, params, layer, how, units, chunk):
    search = features.Search(forward, params, layer, how, chunk)
    *_, last = search.run(units)
    return search.found(last, units)


def linear(weights, images):
    """Units that are linear in the pixels: -100 at grey, before the ReLU."""
    flat = (images - 127.5).reshape(len(images), -1) @ weights.T - 100
    return {"lin_pre": flat, "lin": jax.nn.relu(flat), "dead": jax.nn.relu(flat)}


@pytest.fixture(scope="module")
def weights():
    return np.random.default_rng(0).normal(size=(3, 6 * 6 * 3)).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("kind", canvas.PLAIN)
def test_a_linear_unit_wants_its_weights_as_far_from_grey_as_the_penalty_lets_it(
    weights, kind
):
    """The optimum of w (x - 127.5) - l2 mean((x / 255 - 0.5)^2), for x in 0..255."""
    pixels, units = weights.shape[1], [2, 0]
    l2 = float(255 * pixels * abs(weights).max() / 0.6)
    how = settings(canvas=kind, l2=l2, steps=300, learning_rate=0.1)
    found = find(linear, weights, "lin", how, units, 2)
    for unit, (picture, activation) in zip(units, found):
        expected = 127.5 + 255 * 255 * pixels * weights[unit] / (2 * l2)
        np.testing.assert_allclose(picture.ravel(), expected, atol=3)
        # Of the picture as it is written, and after the ReLU.
        seen = (picture.ravel() - 127.5) @ weights[unit] - 100
        assert activation == pytest.approx(seen, rel=1e-4)


@pytest.mark.slow
def test_an_inactive_unit_has_a_gradient_before_its_relu_alone(weights):
    on, off = (
        find(linear, weights, name, settings(steps=10), [1], 3)[0].activation
        for name in ("lin", "dead")
    )
    assert on > 0
    assert off == 0


def conv_network(network):
    return models.load(network, "random")


def objective_of(network, layer, picture, unit, **changes):
    """The loss of a canvas that draws `picture`, whatever its numbers."""
    forward, params = conv_network(network)

    def draw(numbers):
        return jnp.asarray(picture) + 0 * numbers[0]

    drawing = canvas.Canvas((1,), draw, encode=lambda _: jnp.zeros(1))
    objectives = features.make_objectives(forward, layer, drawing, settings(**changes))
    data, keys = (params, jnp.int32([unit])), jax.random.split(jax.random.key(0), 1)
    losses, _ = jax.jit(objectives)(jnp.zeros((1, 1)), data, keys)
    seen = jax.jit(forward)(params, picture)
    return float(losses[0]), {name: np.asarray(x) for name, x in seen.items()}


@pytest.mark.slow
def test_the_objective_is_the_activation_at_the_middle_or_the_mean(network):
    picture = np.random.default_rng(1).uniform(0, 255, (1, 11, 14, 3)).astype("float32")
    loss, seen = objective_of(network, "conv2", picture, 4)
    assert seen["conv2"].shape[1:3] == (6, 7)
    assert loss == pytest.approx(-seen["conv2_pre"][0, 3, 3, 4], rel=1e-5)
    loss, seen = objective_of(network, "conv2", picture, 4, objective="channel")
    assert loss == pytest.approx(-seen["conv2_pre"][0, ..., 4].mean(), rel=1e-5)
    for objective in features.OBJECTIVES:
        loss, seen = objective_of(network, "logits", picture, 2, objective=objective)
        assert loss == pytest.approx(-seen["logits"][0, 2], rel=1e-5)


@pytest.mark.slow
def test_penalties_are_added(network):
    picture = np.random.default_rng(1).uniform(0, 255, (1, 9, 8, 3)).astype("float32")
    without, _ = objective_of(network, "conv1", picture, 0)
    both, _ = objective_of(network, "conv1", picture, 0, l2=100.0, tv=1000.0)
    small = picture / 255
    squares = sum((np.diff(small, axis=axis) ** 2).sum() for axis in (1, 2))
    expected = 100 * ((small - 0.5) ** 2).mean() + 1000 * squares / small.size
    assert both - without == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_a_unit_s_picture_depends_on_its_seed_and_on_nothing_beside_it(network):
    forward, params = conv_network(network)

    def paint(units, chunk, **changes):
        how = features.Settings(size=12, steps=4, **changes)
        return find(forward, params, "conv2", how, units, chunk)

    whole, padded = paint(range(3), 3), paint([2], 2)
    np.testing.assert_array_equal(padded[0].picture, whole[2].picture)
    assert padded[0].activation == whole[2].activation
    assert np.any(paint(range(3), 3, seed=1)[2].picture != whole[2].picture)
    assert len({found.picture.tobytes() for found in whole}) == 3


@pytest.mark.slow
def test_a_unit_without_a_finite_loss_spoils_no_other(weights):
    def broken(weights, images):
        no_number = jnp.array([[0, jnp.nan, 0]])
        return {name: x + no_number for name, x in linear(weights, images).items()}

    found = find(broken, weights, "lin", settings(steps=30), [0, 1, 2], 3)
    sound = find(linear, weights, "lin", settings(steps=30), [0, 1, 2], 3)
    for unit in (0, 2):
        np.testing.assert_array_equal(found[unit].picture, sound[unit].picture)
    assert np.isnan(found[1].activation)
    with pytest.raises(FloatingPointError, match="check the weights"):
        find(broken, weights, "lin", settings(steps=30), [1], 3)


@pytest.mark.slow
def test_a_search_climbs(network):
    forward, params = conv_network(network)
    how = features.Settings(size=12, steps=1)
    low, high = (
        find(forward, params, "conv2", dataclasses.replace(how, steps=n), range(3), 3)
        for n in (1, 40)
    )
    for before, after in zip(low, high):
        assert after.activation > before.activation


@pytest.mark.slow
def test_a_search_starts_from_the_pictures_it_is_given(weights):
    how = settings(steps=1, learning_rate=1e-5)
    given = np.random.default_rng(2).integers(10, 245, (2, 6, 6, 3), "uint8")
    search = features.Search(linear, weights, "lin", how, 3)
    *_, last = search.run([2, 0], given)
    for (picture, _), start in zip(search.found(last, [2, 0]), given):
        np.testing.assert_array_equal(picture, start)


def test_phases_alone_need_magnitudes(weights):
    with pytest.raises(ValueError, match="canvas=maco needs magnitudes"):
        features.Search(linear, weights, "lin", settings(canvas="maco"), 1)


@pytest.mark.parametrize("box", [(3, 1, 6, 4), (-2, 5, 1, 8)])
def test_a_patch_is_in_the_middle_of_what_a_search_starts_from(box):
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), "uint8")
    found = starts.around(image, box, (4, 5, 7, 8), 12)
    assert found.shape == (12, 12, 3)
    inside = [slice(max(0, first), min(8, end)) for first, end in zip(box, box[2:])]
    moved = [
        slice(x.start + d, x.stop + d) for x, d in zip(inside, (4 - box[0], 5 - box[1]))
    ]
    np.testing.assert_array_equal(found[*moved], image[*inside])


def test_a_patch_that_is_the_whole_image_is_the_whole_picture():
    image = np.full((8, 8, 3), 7, np.uint8)
    image[:, 4:] = 200
    found = starts.around(image, (0, 0, 8, 8), (0, 0, 12, 12), 12)
    assert found.shape == (12, 12, 3)
    assert np.all(found[:, :3] == 7) and np.all(found[:, -3:] == 200)


# The experiment.


def test_units_are_named_alone_or_by_layer():
    counts = {"conv1": 3, "a:b": 2}
    parse = unit_names.parse_list
    assert parse("conv1:1", counts) == {"conv1": [1]}
    assert parse("conv1:2, conv1:0,conv1:2", counts) == {"conv1": [0, 2]}
    assert parse("a:b:*,conv1:1", counts) == {"a:b": [0, 1], "conv1": [1]}
    several = {"conv1": [0, 2], "a:b": [0, 1]}
    assert parse("conv1:2,0, a:b:1 ,0", counts) == several


@pytest.mark.parametrize(
    "text, message",
    [
        ("conv1", "should be LAYER:NUMBER"),
        ("conv1:x", "should be LAYER:NUMBER"),
        ("", "should be LAYER:NUMBER"),
        ("cnv1:0", "did you mean 'conv1'"),
        ("1,conv1:1", "'1' should be LAYER:NUMBER"),
        ("conv1:1,3", "no unit 3 in conv1: there are 0 to 2"),
        ("conv1:3", "no unit 3 in conv1: there are 0 to 2"),
    ],
)
def test_wrong_units_are_refused_with_advice(text, message):
    with pytest.raises(ValueError, match=message):
        unit_names.parse_list(text, {"conv1": 3})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"objective": "chanel"}, "did you mean 'channel'"),
        ({"canvas": "pixel"}, "did you mean 'pixels'"),
        ({"steps": 0}, "steps should be at least 1"),
        ({"tv": -1.0}, "tv should be at least 0"),
        ({"scale": 1.0}, "scale should be at least 0 and below 1"),
        ({"learning_rate": 0.0}, "learning_rate should be above 0"),
        ({"rotate": 1e9}, "rotate should be at least 0 and at most 180"),
    ],
)
def test_a_wrong_setting_is_refused_with_advice(changes, message):
    with pytest.raises(ValueError, match=message):
        configs.check(settings(**changes))


def config(network, **changes):
    known = {"weights": "random", "size": 12, "steps": 3, "chunk": 3}
    return experiment.Config(model=network, **(known | {"units": "conv2:*"} | changes))


def rows(workdir):
    with (workdir / "features.csv").open() as file:
        return list(csv.DictReader(file))


def painted(workdir):
    """Layer to unit number to picture."""
    found = {}
    for file in (workdir / "features").glob("*/*.png"):
        picture = np.asarray(images.read(file))
        found.setdefault(file.parent.name, {})[int(file.stem)] = picture
    return found


@pytest.fixture(scope="module")
def whole(network, tmp_path_factory):
    """The workdir of a run of the launcher that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("features") / "whole"
    arguments = [*QUICK, f"--config.model={network}", "--config.units=conv2:*"]
    done = launcher.launch("--experiment=features", *arguments, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    assert str(workdir / "conv2.png") in done.stderr
    return workdir


@pytest.mark.slow
def test_every_unit_gets_a_picture_a_place_on_the_sheet_and_a_row(whole):
    found = painted(whole)
    assert {name: sorted(units) for name, units in found.items()} == {
        "conv2": list(range(7))
    }
    assert all(picture.shape == (12, 12, 3) for picture in found["conv2"].values())
    assert images.read(whole / "conv2.png").width > 3 * 12
    table = rows(whole)
    assert [row["unit"] for row in table] == [f"conv2:{i}" for i in range(7)]
    for i, row in enumerate(table):
        settings = images.read_settings(whole / f"features/conv2/{i}.png")
        assert float(row["activation"]) == pytest.approx(
            settings["activation"], rel=1e-5
        )
        assert row["activated"] == ("yes" if settings["activation"] > 0 else "no")
        assert (row["maximum"], row["ratio"]) == ("", "")


@pytest.mark.slow
def test_activations_are_those_of_the_pictures_in_the_files(whole, network):
    forward, params = conv_network(network)
    forward = jax.jit(forward)
    for unit, picture in painted(whole)["conv2"].items():
        seen = forward(params, jnp.asarray(picture, jnp.float32)[None])["conv2"]
        expected = float(seen[..., unit].max())
        assert float(rows(whole)[unit]["activation"]) == pytest.approx(expected, 1e-4)


def assert_same_end(workdir, whole):
    for name in ["features.csv", *(f"features/conv2/{i}.png" for i in range(7))]:
        if name.endswith(".png"):
            ours, theirs = (images.read(path / name) for path in (workdir, whole))
            assert ours.tobytes() == theirs.tobytes()
        else:
            assert (workdir / name).read_text() == (whole / name).read_text()


@pytest.mark.slow
def test_interrupted_it_resumes_with_the_pictures_that_are_missing(
    network, whole, tmp_path, monkeypatch
):
    found = features.Search.found

    def stop(self, state, units):
        signal.raise_signal(signal.SIGTERM)
        return found(self, state, units)

    with monkeypatch.context() as patch, pytest.raises(Interrupted) as interrupted:
        patch.setattr(features.Search, "found", stop)
        experiment.run(config(network), tmp_path)
    assert interrupted.value.signum == signal.SIGTERM
    assert sorted(painted(tmp_path)["conv2"]) == [0, 1, 2]
    assert not (tmp_path / "features.csv").exists()
    kept = tmp_path / "features/conv2/1.png"
    written = kept.stat().st_mtime_ns
    (tmp_path / "features/conv2/0.png").unlink()  # other chunks than the first time
    assert experiment.run(config(network), tmp_path) == ["features.csv", "conv2.png"]
    assert kept.stat().st_mtime_ns == written
    assert_same_end(tmp_path, whole)


def test_patches_to_start_from_take_an_atlas(network):
    with pytest.raises(ValueError, match="start=patch: the patches are those of"):
        configs.check(config(network, start="patch"))


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"start": "patch"}, {"canvas": "maco"}])
def test_pictures_start_from_patches_or_have_the_magnitudes_of_images(
    network, whole, tmp_path, monkeypatch, changes
):
    folder = tmp_path / "atlas"
    folder.mkdir()
    atlas_of(network, folder, np.ones(7))
    shown = np.random.default_rng(0).integers(5, 250, (20, 9, 9, 3), "uint8")

    class Shown:
        size = 9

        def __getitem__(self, index):
            if index == 3:
                raise ValueError("damaged")
            return shown[index]

    monkeypatch.setattr(Reference, "images", lambda reference: (Shown(), 20))
    still = {"steps": 1, "learning_rate": 1e-4} | changes
    experiment.run(config(network, atlas=str(folder), **still), tmp_path / "run")
    for unit, picture in painted(tmp_path / "run")["conv2"].items():
        if "start" in changes:  # the box is no smaller part than the whole of image 0
            start = np.asarray(Image.fromarray(shown[0]).resize((12, 12)))
            assert abs(picture - np.clip(start, 5.1, 249.9)).max() <= 1
        else:
            found = canvas.mean_magnitudes([np.clip(picture, 5, 250)])
            sound = [shown[i] for i in range(20) if i != 3]
            windows = [canvas.window(image, -2, -2, 12) for image in sound]
            expected = canvas.mean_magnitudes(windows)
            ratio = found[:, 1:-1].sum() / expected[:, 1:-1].sum()
            assert ratio == pytest.approx(1, abs=0.1), unit


@pytest.mark.slow
def test_finished_it_says_so(whole, network):
    results = workdirs.claim(whole, "features", config(network))
    assert results == [whole / "features.csv", whole / "conv2.png"]


def atlas_of(network, folder, maxima):
    """A finished scan of conv2, as far as its maxima go."""
    forward, params = conv_network(network)
    about = scan_file.About(
        model=network,
        weights="random",
        network=scan_file.network_hash(forward, params, 12),
        layers={"conv2": 7},
        size=12,
        pool=1,
        k=1,
        per_class=1,
        patches=1,
        deduplicate=False,
        classes=[],
        parts=[],
    )
    none = np.zeros(7, np.float32)
    score = np.asarray(maxima, np.float32)[:, None]
    place = np.zeros((7, 1), np.int32)
    top = table.RankedPatches(
        score=score,
        image=place,
        position=np.zeros((7, 1, 2), np.int32),
        box=np.zeros((7, 1, 4), np.int32),
    )
    layer = table.Layer(
        top=top,
        least=top,
        by_class=top,
        mean=none,
        std=none,
        sparsity=none,
        histogram=np.zeros((7, 1), np.int64),
        class_mean=np.zeros((7, 0), np.float32),
    )
    found = table.Table(
        layers={"conv2": layer},
        fields={"conv2": (1, 1, 1)},
        classes=[],
        examples={0: ("first", -1)},
        edges=[0.0, 1.0],
        images=1,
        size=12,
        about={},
    )
    whole = np.zeros((7, 1, 8, 8, 3), np.uint8)
    atlas.write(folder, found, {"conv2": whole}, {})
    state = running.start(7, pool=1, k=1, classes=0, per_class=1)
    scan_file.save(folder / "scan.npz", jax.tree.map(np.asarray, state), about)
    table.save(folder / "units.npz", found)


@pytest.mark.slow
def test_activations_are_compared_with_the_data_set_s_maxima(
    network, whole, tmp_path, caplog
):
    activations = np.array([float(row["activation"]) for row in rows(whole)])
    alive = np.flatnonzero(activations > 0)
    assert len(alive) >= 2
    maxima = 2 * abs(activations) + 1
    maxima[alive[0]], maxima[alive[1]] = activations[alive[0]] / 4, 0
    folder = tmp_path / "atlas"
    folder.mkdir()
    atlas_of(network, folder, maxima)
    both = config(network, atlas=str(folder), units="conv2:*,conv1:0")
    with caplog.at_level(logging.INFO):
        experiment.run(both, tmp_path / "run")
    assert "maximum for 1 of 6 live units" in caplog.text
    assert f"atlas={folder} has no conv1" in caplog.text
    found = rows(tmp_path / "run")
    assert float(found[alive[0]]["ratio"]) == pytest.approx(4, rel=1e-4)
    assert found[alive[1]]["ratio"] == ""
    pictures = painted(tmp_path / "run")["conv2"]
    for unit, picture in pictures.items():
        (shown,) = atlas.Atlas(folder).unit("conv2", unit).panels()["features"]
        assert np.array_equal(np.asarray(shown), picture)  # lossless, as it is small
    other = config(network, atlas=str(folder), seed=1)
    with pytest.raises(ValueError, match="is of another network"):
        experiment.run(other, tmp_path / "other")


def test_dead_units_are_named(network, tmp_path, caplog):
    _, params = conv_network(network)
    flat = {
        f"{layer}.{kind}": np.array(array)
        for layer, kinds in params.items()
        for kind, array in kinds.items()
    }
    flat["conv2.bias"][[2, 5]] = -1e6
    np.savez(tmp_path / "weights.npz", **flat)
    weights = str(tmp_path / "weights.npz")
    with caplog.at_level(logging.WARNING):
        experiment.run(config(network, weights=weights), tmp_path / "run")
    dead = {row["unit"] for row in rows(tmp_path / "run") if row["activated"] == "no"}
    assert {"conv2:2", "conv2:5"} <= dead
    line = next(m for m in caplog.messages if "could not be activated" in m)
    assert line.startswith(f"{len(dead)} of 7 units of conv2")
    assert all(f"{unit} (" in line for unit in dead)
