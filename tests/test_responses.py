"""Responses are every image's highest activations, however the pass was interrupted."""

import io
import json
import pathlib
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from nstvis.data import Example
from nstvis.runs.progress import Interrupted, Progress
from nstvis.units import responses, scan, scan_file

SIZE, BATCH, DAMAGED = 4, 4, 5
LAYERS = {"maps": 3, "dense": 2}


class Drawn:
    """Noise of few levels, so that a map has equal maxima."""

    classes = ("even", "odd")

    def __init__(self, count, seed):
        self.pixels = np.random.default_rng(seed).integers(0, 4, (count, SIZE, SIZE, 3))

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        file = io.BytesIO()
        Image.fromarray(self.pixels[index].astype(np.uint8)).save(file, "PNG")
        damaged = len(self) == 11 and index == DAMAGED
        encoded = b"none" if damaged else file.getvalue()
        return Example(str(index), index % 2, encoded)


def network(params, images):
    return {"maps": images - params, "dense": images.sum((1, 2))[:, :2]}


def target(sources, params=1.0):
    parts = [{"images": len(source), "hash": str(len(source))} for source in sources]
    about = scan_file.About(
        model="",
        weights="",
        network=str(params),
        layers=LAYERS,
        size=SIZE,
        pool=1,
        k=1,
        per_class=1,
        patches=1,
        deduplicate=False,
        classes=Drawn.classes,
        parts=parts,
    )
    return scan.Target(network, jnp.float32(params), sources, about)


SOURCES = [Drawn(11, 0), Drawn(8, 1)]
PIXELS = np.concatenate([source.pixels for source in SOURCES])


def assert_brute_force_s(found, indices):
    np.testing.assert_array_equal(found.index, indices)
    second = indices >= len(SOURCES[0])
    labels = (indices - second * len(SOURCES[0])) % 2
    np.testing.assert_array_equal(found.label, labels)
    flat = PIXELS[indices].reshape(len(indices), -1, 3)
    np.testing.assert_array_equal(found.score["maps"], flat.max(1) - 1)
    np.testing.assert_array_equal(found.position["maps"], flat.argmax(1))
    np.testing.assert_array_equal(found.score["dense"], flat.sum(1)[:, :2])
    np.testing.assert_array_equal(found.position["dense"], 0)
    assert list(found.score) == list(found.position) == list(LAYERS)


def test_they_are_brute_force_s(tmp_path):
    found = responses.measure(target(SOURCES), 100, BATCH, 0, tmp_path)
    assert_brute_force_s(found, np.delete(np.arange(19), DAMAGED))
    assert "5\t" in (tmp_path / "damaged.txt").read_text()
    sources = [Drawn(10, 0)]
    other = responses.measure(target(sources), 100, BATCH, 0, tmp_path)  # of others
    assert len(other.index) == 10


def test_a_sample_is_evenly_spaced(tmp_path):
    found = responses.measure(target(SOURCES), 9, BATCH, 0, tmp_path)
    assert_brute_force_s(found, np.array([0, 2, 4, 6, 8, 10, 12, 14, 16]))


def test_interrupted_or_damaged_it_ends_the_same(tmp_path, monkeypatch):
    def stop(self, step, text):
        self.interrupted = 15

    with monkeypatch.context() as patched:
        patched.setattr(Progress, "show", stop)
        for _ in range(2):
            with pytest.raises(Interrupted):
                responses.measure(target(SOURCES), 100, BATCH, 0, tmp_path)
    path = tmp_path / "responses" / "responses.bin"
    written = path.read_bytes()
    assert len(written) == (2 * BATCH - 1) * 12 * 4
    path.write_bytes(written + b"what a killed process had begun")
    found = responses.measure(target(SOURCES), 100, BATCH, 0, tmp_path)
    assert path.read_bytes().startswith(written)
    assert_brute_force_s(found, np.delete(np.arange(19), DAMAGED))
    whole = path.read_bytes()
    path.write_bytes(b"?" + whole[1:])
    with pytest.raises(ValueError, match="damaged"):
        responses.load(tmp_path)
    responses.measure(target(SOURCES), 100, BATCH, 0, tmp_path)
    assert path.read_bytes() == whole


def _mapped():
    """Bytes of files that are this process's memory."""
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(status.partition("RssFile:")[2].split()[0])


@pytest.mark.skipif(sys.platform != "linux", reason="as Linux tells the memory")
def test_what_is_read_of_a_file_is_not_in_memory(tmp_path):
    images, units = 4000, 4000
    about = {"layers": {"a": 100, "b": units - 100}}
    kind = responses._record(about["layers"])
    records = np.zeros(images, kind)
    records["score"] = np.arange(units)
    records["index"] = np.arange(images)
    folder = tmp_path / responses.FOLDER
    folder.mkdir()
    records.tofile(folder / "responses.bin")
    known = {"about": about, "seen": images, "rows": images}
    known["checksum"] = responses._checksum(folder / "responses.bin", known)
    (folder / "responses.json").write_text(json.dumps(known))
    before = _mapped()
    found = responses.load(tmp_path)
    column = responses.columns(found.score["b"], slice(7, 9))
    assert (column == [107, 108]).all() and len(column) == images
    assert (found.index == np.arange(images)).all()
    assert _mapped() - before < 0.1 * records.nbytes
    assert found.score["b"].sum() and _mapped() - before > 0.5 * records.nbytes
