"""A scan is drawn chunk by chunk: in little memory, each image read once, resumable."""

import collections
import contextlib
import io
import itertools
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from PIL import Image

from nstvis.data import Example
from nstvis.units import maxima, report, scan, scan_file, table
from nstvis.units.atlas import Atlas
from nstvis.units.kept_images import KeptImages

SIZE, IMAGES, CLASSES = 16, 300, 5
LAYERS = {"conv": 20, "dense": 34}


class Noise:
    """A data set that counts how often each of its images is read."""

    classes = tuple("abcde")

    def __init__(self):
        rng = np.random.default_rng(0)
        self.images = rng.integers(0, 256, (IMAGES, SIZE, SIZE, 3), np.uint8)
        self.reads = collections.Counter()

    def __len__(self):
        return IMAGES

    def __getitem__(self, index):
        self.reads[index] += 1
        file = io.BytesIO()
        Image.fromarray(self.images[index]).save(file, "PNG")
        return Example(self.id_of(index), index % CLASSES, file.getvalue())

    def id_of(self, index):
        return f"noise/{index}"


def forward(params, images):
    stride = (2, 2)
    x = lax.conv_general_dilated(
        images,
        params["conv"],
        stride,
        "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    conv = jax.nn.relu(x)
    dense = jax.nn.relu(conv.reshape(len(conv), -1) @ params["dense"])
    return {"conv": conv, "dense": dense}


@pytest.fixture(scope="module")
def scanned(tmp_path_factory):
    return scan_in(tmp_path_factory.mktemp("scan"))


def scan_in(folder):
    """A folder with a scan, and what was scanned."""
    rng = np.random.default_rng(1)
    side = (SIZE - 5) // 2 + 1
    params = {
        "conv": jnp.asarray(rng.normal(size=(5, 5, 3, 20)) / 255, jnp.float32),
        "dense": jnp.asarray(rng.normal(size=(side * side * 20, 34)), jnp.float32),
    }
    source = Noise()
    part = {"dataset": "noise", "split": "all", "data_dir": "", "images": IMAGES}
    about = scan_file.About(
        model="m",
        weights="w",
        network="n",
        layers=LAYERS,
        size=SIZE,
        pool=6,
        k=3,
        per_class=1,
        patches=1,
        deduplicate=True,
        classes=source.classes,
        parts=[part | {"hash": "h"}],
    )
    target = scan.Target(forward, params, [source], about)
    found = jax.jit(forward)(params, source.images.astype(np.float32))
    maps = [np.asarray(x).reshape(IMAGES, -1, x.shape[-1]) for x in found.values()]
    highest = np.concatenate([x.max(1) for x in maps], -1)
    place = np.concatenate([x.argmax(1) for x in maps], -1)

    def best(scores, count, every=1):
        lists = []
        for label in range(every):
            own = np.arange(label, IMAGES, every)
            order = own[np.argsort(-scores[own], 0, kind="stable")[:count]]
            parts = (
                scores,
                np.broadcast_to(np.arange(IMAGES)[:, None], place.shape),
                place,
            )
            lists.append([np.take_along_axis(x, order, 0) for x in parts])
        return maxima.Best(*map(np.stack, zip(*lists, strict=True)))

    empty = jax.device_get(maxima.start(54, pool=6, k=3, classes=CLASSES, per_class=1))
    state = empty._replace(
        images=np.int32(IMAGES),
        top=best(highest, 6),
        least=best(-highest, 3),
        by_class=best(highest, 1, CLASSES),
        mean=highest.mean(0),
        deviation=IMAGES * highest.var(0),
    )
    scan_file.save(folder / "scan.npz", state, about)
    return folder, target


SETTINGS = report.Settings(
    rule="deconvnet", explain=False, concepts="", batch=16, workers=0, seed=0
)


def draw(scanned, workdir, settings=SETTINGS):
    folder, target = scanned
    target.sources[0].reads.clear()
    if not (workdir / "scan.npz").exists():
        shutil.copy(folder / "scan.npz", workdir)
    report.write(workdir, target, settings)
    return target.sources[0].reads


def contents(workdir):
    files = (path for path in workdir.rglob("*") if path.is_file())
    return {str(path.relative_to(workdir)): path.read_bytes() for path in files}


@pytest.fixture(scope="module")
def whole(scanned, tmp_path_factory):
    """What a drawing that nothing interrupted leaves, and how often it read images."""
    workdir = tmp_path_factory.mktemp("whole")
    reads = dict(draw(scanned, workdir))
    return workdir, reads


def test_each_image_that_is_shown_is_read_once_and_no_other(whole):
    workdir, reads = whole
    found = table.load(workdir / "units.npz")
    shown = [
        x.image for layer in found.layers.values() for x in (layer.top, layer.least)
    ]
    shown = {int(i) for images in shown for i in images.ravel()}
    candidates = scan_file.load(workdir / "scan.npz")[0].top.image
    assert set(reads) == shown | {*candidates.ravel().tolist()}
    assert set(reads.values()) == {1}
    ranked = np.concatenate([x.by_class.image.ravel() for x in found.layers.values()])
    assert not set(ranked.tolist()) <= set(reads)  # or nothing is tested
    atlas = Atlas(workdir)
    for layer, count in LAYERS.items():
        for unit in (atlas.unit(layer, number) for number in range(count)):
            assert len(unit.patches()) == len(unit.panels()["deconvnet"]) == 3
            assert all(patch.picture.exists() for patch in unit.top + unit.least)
    for index in {*ranked.tolist(), *shown}:
        assert found.examples[index] == (f"noise/{index}", index % CLASSES)


class Killed(BaseException):
    """Nothing cleans up after a kill; here, too, that is not counted on."""


def test_wherever_it_is_killed_it_ends_the_same(scanned, whole, tmp_path, monkeypatch):
    """Killed after more and more files, and after each of the last ones."""
    expected, replace, allowed = contents(whole[0]), os.replace, [1]
    written, read = collections.Counter(), collections.Counter()
    last = ["units.npz", "index.html", "atlas", "sheets"]

    def killing(source, target):
        replace(source, target)
        written[pathlib.Path(target).name] += 1
        allowed[0] -= 1
        if not allowed[0] or pathlib.Path(target).name in last[:1]:
            raise Killed

    monkeypatch.setattr(os, "replace", killing)
    for kill in itertools.count():
        allowed[0] = 4**kill
        with contextlib.suppress(Killed):
            draw(scanned, tmp_path)
            break
        read.update(scanned[1].sources[0].reads)
        if 4**kill > 100:
            del last[:1]
        page, atlas = tmp_path / "index.html", tmp_path / "atlas/table.js"
        assert not page.exists() or atlas.exists()
    assert not last
    assert contents(tmp_path) == expected
    assert {n for name, n in written.items() if name.endswith(".webp")} == {1}
    candidates = scan_file.load(tmp_path / "scan.npz")[0].top.image
    assert {read[image] for image in candidates.ravel().tolist()} == {1}


def test_a_draft_of_something_else_is_not_gone_on_with(scanned, whole, tmp_path):
    partial = tmp_path / "atlas.partial"
    (partial / "pictures").mkdir(parents=True)
    (partial / "pictures/0.webp").write_text("an image of another data set")
    (partial / "key").write_text("of another scan")
    draw(scanned, tmp_path)
    assert contents(tmp_path) == contents(whole[0])
    # What is lost later is drawn again, and what is there is left alone.
    shutil.rmtree(tmp_path / "sheets")
    assert draw(scanned, tmp_path)
    assert contents(tmp_path) == contents(whole[0])
    assert not draw(scanned, tmp_path)


def test_an_image_that_is_half_in_the_file_is_read_again(tmp_path):
    source, path = Noise(), tmp_path / "images"
    indices = np.array([2, 3, 5, 8])

    def read(index):
        images = KeptImages([source], SIZE, path, indices)
        np.testing.assert_array_equal(images[index], source.images[index])
        assert (images.id(index), images.label(index)) == (f"noise/{index}", index % 5)
        return source.reads[index]

    assert [read(5), read(5), read(2), read(2)] == [1] * 4
    assert [read(4), read(4)] == [1, 2]  # is not to be kept
    size = path.stat().st_size // 3
    damaged = bytearray(path.read_bytes())
    damaged[2 * size + 7] ^= 1
    path.write_bytes(damaged)
    assert [read(5), read(5), read(2)] == [2, 2, 1]
    path.write_bytes(path.read_bytes()[:-1])
    assert [read(5), read(5), read(2)] == [3, 3, 1]
