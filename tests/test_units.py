"""A survey of units: exact, however it is interrupted, divided or told."""

import dataclasses
import json
import os
import shutil
import signal
import time

import jax
import numpy as np
import pytest
from PIL import Image
from test_runs import finish, signal_when, start, start_hosts

from nstvis import crops, data, devices, images, launcher, models
from nstvis.runs.progress import Interrupted
from nstvis.units import patches, scan, scan_file, survey, table
from nstvis.units.atlas import Atlas

pytestmark = pytest.mark.slow

SIZE, IMAGES, BATCH = 16, 200, 16
FORK = """
import jax
from flax import nnx


class Network(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 4, (3, 3), padding="VALID", rngs=rngs)
        self.deep = nnx.Conv(4, 8, (3, 3), 2, padding="VALID", rngs=rngs)
        self.dense = nnx.Linear(4, 5, rngs=rngs)

    def __call__(self, images):
        stem = jax.nn.relu(self.conv(images / 255))
        deep = jax.nn.relu(self.deep(stem))
        mean = stem.mean((1, 2))
        return {"stem/1": stem, "deep": deep, "mean": mean, "dense": self.dense(mean)}


def build(*, pooling, last, rngs, classes=10):
    return Network(rngs)
"""
NOISE = """
import io

import numpy as np
from PIL import Image

from nstvis.data import Example


class Noise:
    classes = tuple("abcde")

    def __init__(self, first, end):
        self.numbers = range(first, end)

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, index):
        number, file = self.numbers[index], io.BytesIO()
        shape = 18, 16 + number % 3, 3
        pixels = np.random.default_rng(number).integers(0, 256, shape, np.uint8)
        Image.fromarray(pixels).save(file, "PNG")
        return Example(f"noise/{number}", number % 5, file.getvalue())

    def index(self, id):
        return self.numbers.index(int(id.removeprefix("noise/")))


def load(argument, split, data_dir):
    return Noise(*map(int, split.split("-")))
"""
# As in this process, whose surveys are compared to those of others.
FOUR_DEVICES = {"JAX_NUM_CPU_DEVICES": "4"}


@pytest.fixture(scope="module")
def fork(tmp_path_factory):
    """The path of a network of one's own."""
    path = tmp_path_factory.mktemp("fork") / "fork.py"
    path.write_text(FORK)
    return path


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """The path of a data set of one's own."""
    path = tmp_path_factory.mktemp("data") / "noise.py"
    path.write_text(NOISE)
    return str(path)


def settings(fork, dataset, **others):
    return survey.Settings(
        **{
            "model": str(fork),
            "weights": "random",
            "dataset": dataset,
            "split": f"0-{IMAGES}",
            "size": SIZE,
            "batch": BATCH,
            "checkpoint_every": 0.0,
            "attribution": "",
            "explain": False,
        }
        | others
    )


@pytest.fixture(scope="module")
def known(fork, dataset):
    """The settings of a survey that others are compared to."""
    return settings(fork, dataset)


def command(known, workdir):
    """The same for the launcher."""
    flags = [f"--config.{name}={value}" for name, value in vars(known).items()]
    return ["--experiment=units", *flags, f"--workdir={workdir}"]


@pytest.fixture(scope="module")
def whole(known, tmp_path_factory):
    """The workdir of a run that nothing interrupted."""
    workdir = tmp_path_factory.mktemp("units") / "whole"
    finish(start(*command(known, workdir), environment=FOUR_DEVICES))
    return workdir


@pytest.fixture(scope="module")
def activations(fork, dataset):
    source = data.load(dataset, f"0-{IMAGES}")
    images = [np.asarray(crops.centered(source[i], SIZE)) for i in range(IMAGES)]
    forward, params = models.load(str(fork), "random")
    forward = jax.jit(forward)
    batched = np.stack(images).astype(np.float32).reshape(-1, BATCH // 2, SIZE, SIZE, 3)
    found = [forward(params, batch) for batch in batched]
    names = "stem/1", "deep", "mean", "dense"
    return {name: np.concatenate([x[name] for x in found]) for name in names}


def test_top_activating_patches_are_brute_force_s(whole, activations):
    scan, _ = scan_file.load(whole / "scan.npz")
    first = 0
    for x in activations.values():
        flat = x.reshape(IMAGES, -1, x.shape[-1])
        highest, units = flat.max(1), slice(first, first + x.shape[-1])
        first += x.shape[-1]
        best = [part[0, :, units] for part in scan.top]
        order = np.argsort(-highest, 0, kind="stable")[: len(best[0])]
        expected = np.take_along_axis(highest, order, 0)
        if x.ndim == 2:  # dense layers are rounded differently for other batches
            np.testing.assert_allclose(best[0], expected, rtol=1e-4, atol=1e-4)
            continue
        np.testing.assert_array_equal(best[0], expected)
        np.testing.assert_array_equal(best[1], order)
        places = np.take_along_axis(flat.argmax(1), order, 0)
        np.testing.assert_array_equal(best[2], places)


def test_the_table_says_what_was_found(whole, activations, dataset):
    found = table.load(whole / "units.npz")
    assert list(found.layers) == list(activations)
    assert found.images == IMAGES
    assert len(found.classes) == 5
    assert found.findings["class"]["dense"]["name"].tolist() == [*"abcde"]
    source = data.load(dataset, f"0-{IMAGES}")
    for name, layer in found.layers.items():
        highest = activations[name].reshape(IMAGES, -1, len(layer.mean)).max(1)
        np.testing.assert_allclose(layer.mean, highest.mean(0), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(layer.std, highest.std(0), rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(layer.sparsity, (highest <= 0).mean(0))
        assert (layer.histogram.sum(1) == IMAGES).all()
        assert (np.diff(layer.top.score) <= 0).all()
        assert (np.diff(layer.least.score) >= 0).all()
    index = int(found.layers["deep"].top.image[5, 0])
    assert found.examples[index] == (source[index].id, source[index].label)


def assert_same_end(workdir, whole):
    for name in ("scan.npz", "units.npz"):
        with np.load(workdir / name) as mine, np.load(whole / name) as other:
            assert set(mine) == set(other)
            for key in mine:
                np.testing.assert_array_equal(mine[key], other[key], err_msg=key)
    for sheet in (whole / "sheets").iterdir():
        assert (workdir / "sheets" / sheet.name).read_bytes() == sheet.read_bytes()
    assert (workdir / "index.html").read_bytes() == (whole / "index.html").read_bytes()
    mine, other = (
        {x.relative_to(y): x.read_bytes() for x in y.rglob("*") if x.is_file()}
        for y in (workdir / "atlas", whole / "atlas")
    )
    assert mine == other


def kill_at(process, how, workdir, step):
    """Waits for a checkpoint of that step or a later one."""
    while process.poll() is None:
        found = (workdir / "checkpoints").glob("*")
        if any(path.name.isdecimal() and int(path.name) >= step for path in found):
            process.send_signal(how)
            return
        time.sleep(0.01)


def test_the_workdir_tells_what_it_holds(whole):
    assert json.loads((whole / "run.json").read_text())["experiment"] == "units"
    found = table.load(whole / "units.npz")
    assert {name: tuple(found.fields[name]) for name in found.layers} == {
        "stem/1": (3, 3, 1),
        "deep": (5, 5, 2),
        "mean": (SIZE, SIZE, 0),
        "dense": (SIZE, SIZE, 0),
    }
    assert (whole / "sheets/stem_1.png").exists()


def test_whatever_interrupts_it_it_ends_the_same(known, whole, tmp_path):
    workdir = tmp_path / "run"
    run = command(known, workdir)

    def interrupted(how, step, status):
        process = start(*run, environment=FOUR_DEVICES)
        kill_at(process, how, workdir, step)
        return finish(process, status)

    interrupted(signal.SIGKILL, 1, -signal.SIGKILL)
    out = finish(start(*run), 1)  # on one device
    assert "started on another number of devices" in out.splitlines()[-1]
    out = interrupted(signal.SIGTERM, 6, 128 + signal.SIGTERM)
    assert f"rerun with --workdir={workdir} to resume" in out
    assert not (workdir / "scan.npz").exists()
    # While it draws: then it neither scans again, nor draws again what is there.
    times = []
    for name in ("scan.npz", "atlas.partial/work/1-0.json"):
        process = start(*run, environment=FOUR_DEVICES)
        signal_when(process, signal.SIGKILL, (workdir / name).exists)
        finish(process, -signal.SIGKILL)
        times.append((workdir / name).stat().st_mtime_ns)
    sprite = (workdir / "atlas.partial/0-0.webp").stat().st_mtime_ns
    finish(start(*run, environment=FOUR_DEVICES))
    assert (workdir / "scan.npz").stat().st_mtime_ns == times[0]
    assert (workdir / "atlas/0-0.webp").stat().st_mtime_ns == sprite
    assert_same_end(workdir, whole)


def test_a_signal_while_it_draws_interrupts_it(known, whole, tmp_path, monkeypatch):
    original = patches.fitted

    def fitted(*patch):
        os.kill(os.getpid(), signal.SIGTERM)
        monkeypatch.setattr(patches, "fitted", original)
        return original(*patch)

    monkeypatch.setattr(patches, "fitted", fitted)
    with pytest.raises(Interrupted, match="SIGTERM"):
        survey.survey(known, tmp_path)
    assert not (tmp_path / "index.html").exists()
    names = survey.survey(known, tmp_path)
    assert names == ["index.html", "sheets", "units.npz", "scan.npz"]
    assert all((tmp_path / name).exists() for name in names)
    assert_same_end(tmp_path, whole)


def assert_same_patches(a, b):
    (mine, _), (other, _) = (scan_file.load(path / "scan.npz") for path in (a, b))
    for name in ("top", "least", "by_class", "inactive", "histogram", "class_images"):
        pairs = zip(
            jax.tree.leaves(getattr(mine, name)),
            jax.tree.leaves(getattr(other, name)),
            strict=True,
        )
        for x, y in pairs:
            np.testing.assert_array_equal(x, y)
    np.testing.assert_allclose(mine.mean, other.mean, rtol=1e-5, atol=1e-6)


def test_the_table_has_each_class_s_best_of_every_layer(whole):
    state, about = scan_file.load(whole / "scan.npz")
    expected = scan.layers(scan.target_of(about), state)
    written = table.load(whole / "units.npz").layers
    assert len(written) > 1
    for name, layer in written.items():
        assert layer.by_class.score.any()
        for part, array in vars(layer.by_class).items():
            same = getattr(expected[name].by_class, part)
            np.testing.assert_array_equal(array, same)


def test_experiments_on_atlases_run(whole, tmp_path, monkeypatch):
    """Through the launcher; what they find is tested elsewhere."""
    monkeypatch.setattr(devices, "connect", lambda: None)  # this process is
    atlas = tmp_path / "atlas"
    shutil.copytree(whole, atlas)
    units = "--config.units=deep:0,1", "--config.images=40", "--config.pairs=2"
    for name, *flags in (
        ("compare", f"--config.a={atlas}", f"--config.b={whole}"),
        ("scores", f"--config.atlas={atlas}", *units),
    ):
        workdir = tmp_path / name
        command = ["launch.py", f"--experiment={name}", *flags]
        assert launcher.main([*command, f"--workdir={workdir}"]) == 0
        assert {f"{name}.csv", f"{name}.png"} <= {x.name for x in workdir.iterdir()}
    assert Atlas(atlas).unit("deep", 0).findings["scores"]["pairs"]


def test_halves_merge_to_the_whole(known, whole, tmp_path):
    halves = f"0-{IMAGES // 2}", f"{IMAGES // 2}-{IMAGES}"
    folders = [tmp_path / "a", tmp_path / "b", tmp_path / "merged"]
    for folder in folders:
        folder.mkdir()
    scan_alone = dataclasses.replace(known, attribution="", explain=False)
    for folder, split in zip(folders, halves, strict=False):
        survey.survey(dataclasses.replace(scan_alone, split=split), folder)
    parts = ", ".join(map(str, folders[:2]))
    survey.survey(settings("none", "none", merge=parts), folders[2])
    assert_same_patches(folders[2], whole)
    mine, other = (table.load(path / "units.npz") for path in (folders[2], whole))
    assert mine.examples == other.examples


def test_two_hosts_of_two_devices_find_the_same(known, whole, tmp_path):
    hosts = start_hosts(*command(known, tmp_path / "run"))
    for host in hosts:
        finish(host)
    conv = scan_file.load(whole / "scan.npz")[0]
    mine = scan_file.load(tmp_path / "run" / "scan.npz")[0]
    units = slice(0, 4 + 8)  # the dense layer is rounded differently
    for x, y in zip(conv.top, mine.top, strict=True):
        np.testing.assert_array_equal(x[..., units], y[..., units])


def scaled_weights(path, factor, model="alexnet_small"):
    """Writes random weights, made larger."""
    _, params = models.load(str(model), "random")
    arrays = {f"{a}.{b}": x for a, ab in params.items() for b, x in ab.items()}
    np.savez(path, **{name: factor * x for name, x in arrays.items()})


def test_weights_that_have_changed_are_refused(fork, dataset, tmp_path):
    file = tmp_path / "weights.npz"
    scaled_weights(file, 1, fork)
    changed = settings(fork, dataset, weights=str(file), split="0-40")
    survey.survey(changed, tmp_path)
    (tmp_path / "scan.npz").unlink()  # as if it had been interrupted
    scaled_weights(file, 2, fork)
    with pytest.raises(ValueError, match="began with other files: network was"):
        survey.survey(changed, tmp_path)


def test_a_network_without_a_rule_is_refused_before_the_scan(dataset, tmp_path):
    (tmp_path / "fork.py").write_text(FORK.replace("jax.nn.relu", "jax.nn.gelu"))
    (tmp_path / "run").mkdir()
    wanted = settings(tmp_path / "fork.py", dataset, attribution="deconvnet")
    with pytest.raises(ValueError, match="--config.attribution= does without$"):
        survey.survey(wanted, tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())


def test_attributions_are_beside_the_patches(fork, dataset, tmp_path):
    how = {"attribution": "guided", "split": "0-40", "k": 4}
    survey.survey(settings(fork, dataset, layers="deep", **how), tmp_path)
    atlas = Atlas(tmp_path)
    assert dict(atlas.layers) == {"deep": 8}
    for layer, count in atlas.layers.items():
        for number in range(count):
            unit = atlas.unit(layer, number)
            cropped, attributed = unit.patches(), unit.panels()["guided"]
            assert [x.size for x in attributed] == [x.size for x in cropped]
            pixels = np.abs(np.stack(attributed).astype(int) - images.GREY)
            contrast, scores = pixels.max((1, 2, 3)), [x.score for x in unit.top]
            np.testing.assert_array_equal(contrast > 0, np.array(scores) > 0)
            assert (contrast.max() > 100) == (max(scores) > 0)
        with Image.open(tmp_path / f"sheets/{layer}.png") as sheet:
            # Two blocks of 2 x 2 patches of 64 pixels for each unit.
            assert sheet.width > min(count, 3) * 2 * 2 * 64


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ({"layers": "conv11"}, "did you mean 'conv1'?"),
        ({"layers": "conv1, conv1"}, "conv1 is given twice"),
        ({"layers": "conv1,"}, "nothing between two commas"),
        ({"dataset": "folder:nowhere"}, "nowhere"),
        ({"k": 0}, "k should be at least 1"),
        ({"k": 171}, "k should be at least 1 and at most 170, not 171"),
        ({"size": 8}, "too small"),
        ({"size": 0}, "size should be at least 1"),
        ({"batch": 0}, "batch should be at least 1"),
        ({"workers": -1}, "workers should be at least 0"),
        ({"patches_per_image": 0}, "patches_per_image should be at least 1"),
        ({"attribution": "guidde"}, "did you mean 'guided'?"),
        ({"per_class": 0}, "per_class should be at least 1"),
        ({"merge": "nowhere"}, "nowhere: holds no finished scan"),
        ({"merge": "a,a"}, "a is given twice"),
    ],
)
def test_mistakes_are_refused_before_any_work(mistake, message, dataset, tmp_path):
    how = {"weights": "bundled", "size": 32, "dataset": dataset} | mistake
    with pytest.raises((ValueError, OSError)) as refused:
        survey.survey(settings("alexnet_small", **how), tmp_path)
    assert message in str(refused.value)
    assert not list(tmp_path.glob("c*"))  # no checkpoints


def test_the_atlas_has_room_for_the_largest_k():
    assert 170 * patches.DRAWN <= 16383 < 171 * patches.DRAWN  # WebP's limit


def test_infinite_activations_are_refused(fork, dataset, tmp_path):
    scaled_weights(tmp_path / "weights.npz", 1e30, fork)
    how = {"weights": str(tmp_path / "weights.npz"), "split": "0-40"}
    with pytest.raises(FloatingPointError, match="is not a finite number"):
        survey.survey(settings(fork, dataset, layers="deep", **how), tmp_path)


def test_damaged_images_are_skipped_and_listed(fork, dataset, tmp_path, caplog):
    folder, workdir = tmp_path / "set", tmp_path / "run"
    source = data.load(dataset, "0-12")
    folder.mkdir()
    workdir.mkdir()
    for i in range(12):
        encoded = source[i].encoded
        (folder / f"{i:02}.png").write_bytes(encoded[: 60 if i in (3, 7) else None])
    survey.survey(settings(fork, f"folder:{folder}", split="train"), workdir)
    listed = (workdir / "damaged.txt").read_text().splitlines()
    assert sorted(line.split("\t")[0] for line in listed) == ["03.png", "07.png"]
    assert "2 damaged images were skipped" in caplog.text
    found = table.load(workdir / "units.npz")
    assert found.images == 10
    assert not {3, 7} & set(found.layers["stem/1"].top.image.ravel())
