"""Images of data sets are decoded within limits; below these, nothing changes."""

import io
import json
import pathlib
import struct
import subprocess
import sys

import numpy as np
import pytest
from launcher import ROOT
from PIL import Image

from nstvis import decoding, images


def noise(width, height):
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), np.uint8)
    picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return picture


def encoded(picture, kind, **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def declaring(side, **options):
    """A tiny JPEG that declares to be larger; the rest of it is grey."""
    small = encoded(Image.new("RGB", (8, 8)), "JPEG", **options)
    frame = small.index(b"\xff\xc2" if options else b"\xff\xc0")
    return small[: frame + 5] + struct.pack(">HH", side, side) + small[frame + 9 :]


@pytest.fixture
def small_limit(monkeypatch):
    monkeypatch.setattr(decoding, "MAX_IMAGE_PIXELS", 5_000)


@pytest.mark.usefixtures("small_limit")
@pytest.mark.parametrize("as_stored", [False, True])
def test_a_large_jpeg_is_decoded_to_a_quarter_of_its_sides(as_stored):
    picture = noise(160, 121)
    jpeg = encoded(picture, "JPEG", quality=95)
    found = decoding.decode(jpeg, "a.jpg", as_stored)
    assert (found.mode, found.size) == ("RGB", (40, 31))
    expected = np.asarray(picture.reduce(4), float)
    assert abs(np.asarray(found) - expected).mean() < 3


@pytest.mark.usefixtures("small_limit")
def test_up_to_the_limit_nothing_changes():
    jpeg = encoded(noise(100, 50), "JPEG")
    with Image.open(io.BytesIO(jpeg)) as expected:
        np.testing.assert_array_equal(decoding.decode(jpeg, "a.jpg"), expected)


@pytest.mark.usefixtures("small_limit")
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "GIF"])
def test_other_large_images_are_refused_but_not_one_s_own_pictures(kind, tmp_path):
    file = encoded(noise(100, 51), kind)
    message = r"^photos/a: more than 5,000 pixels; scale it down first$"
    with pytest.raises(ValueError, match=message):
        decoding.decode(file, "photos/a")
    (tmp_path / "a.png").write_bytes(file)
    assert images.read(tmp_path / "a.png").size == (100, 51)


@pytest.mark.usefixtures("small_limit")
def test_a_jpeg_that_is_too_large_at_a_quarter_is_refused():
    with pytest.raises(ValueError, match="more than 5,000 pixels"):
        decoding.decode(encoded(noise(400, 201), "JPEG"), "a.jpg")


@pytest.mark.usefixtures("small_limit")
def test_a_large_progressive_jpeg_is_refused():
    with pytest.raises(ValueError, match="more than 5,000 pixels"):
        decoding.decode(encoded(noise(160, 121), "JPEG", progressive=True), "a.jpg")


COST = """import json, re, sys, time
from nstvis import decoding
def peak():  # in kB; that of `resource` is the parent's, if that is higher
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
image, before, began = sys.stdin.buffer.read(), peak(), time.process_time()
try:
    size = decoding.decode(image, "a.jpg").size
except ValueError as error:
    size = str(error)
print(json.dumps([size, (peak() - before) / 1e3, time.process_time() - began]))"""


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="no /proc")
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [3275, 3275]),
        (
            {"progressive": True},
            "a.jpg: more than 40,000,000 pixels; scale it down first",
        ),
    ],
)
def test_a_tiny_file_that_declares_a_large_image_costs_little(options, expected):
    image = declaring(13_100, **options)
    assert len(image) < 1000
    done = subprocess.run(
        [sys.executable, "-c", COST],
        input=image,
        capture_output=True,
        check=True,
        cwd=ROOT,
    )
    size, megabytes, seconds = json.loads(done.stdout)
    assert size == expected
    assert megabytes < 200
    assert seconds < 3
