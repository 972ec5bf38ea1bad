"""The drawn data set: the same for a seed, what its parameters say, and never blank."""

import collections
import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nstvis import data
from nstvis.data import _faces, primitives
from nstvis.data.primitives import KINDS, SPLITS, draw, example

SEEDS = range(25)
quick = settings(max_examples=100, deadline=None)


def drawn(kind, seed):
    image, parameters = draw(kind, np.random.default_rng(seed))
    return np.asarray(image, float), parameters


def first_mask(kind, seed):
    """How much of the first paint each pixel holds, as its colours tell."""
    picture, parameters = drawn(kind, seed)
    ground, paint = np.array(parameters["colors"][:2], float)
    change = paint - ground
    return (picture - ground) @ change / (change @ change), parameters


def degrees_apart(a, b, turn):
    return abs((a - b + turn / 2) % turn - turn / 2)


# What depends on what.


def test_an_example_depends_on_seed_split_and_index_alone():
    def pixels(*place):
        return example(*place)[1].tobytes()

    once = pixels(3, "train", 70)
    example(3, "train", 71)
    assert pixels(3, "train", 70) == once
    others = [(4, "train", 70), (3, "validation", 20), (3, "train", 71)]
    assert len({once, *(pixels(*place) for place in others)}) == 4


def test_every_kind_has_its_share_of_every_split():
    assert len(KINDS) == 31
    for split, count in SPLITS.items():
        for place, kind in enumerate(KINDS):
            assert example(0, split, place * count)[0] == kind
            assert example(0, split, (place + 1) * count - 1)[0] == kind


OLD_KINDS = """
    edge, corner, shade, blobs, bar, cross, grating, fine lines, plaid, checkerboard,
    grid, honeycomb, dots, circle left, circle right, rings, spiral, wheel, text,
    flower, star, triangle, waves, noise, fur, eye, fence, keyboard, ripples, zebra
"""


# Seed and place in `train` to `x`, and to the colour at row 20, column 40, in 1.0.0.
RELEASED = {
    (0, 0): (28.317, (204, 197, 212)),
    (0, 3001): (23.025, (174, 83, 144)),
    (0, 5999): (35.078, (41, 6, 26)),
    (3, 0): (27.789, (110, 14, 13)),
    (3, 3001): (21.707, (65, 71, 43)),
    (3, 5999): (37.812, (98, 38, 109)),
}


def test_a_kind_that_came_later_changed_no_earlier_picture(monkeypatch):
    assert list(KINDS)[:30] == " ".join(OLD_KINDS.split()).split(", ")
    now = [example(seed, "train", index) for seed, index in RELEASED]
    for (_, image, parameters), (x, color) in zip(now, RELEASED.values()):
        assert parameters["x"] == x
        np.testing.assert_allclose(image.getpixel((40, 20)), color, atol=1)
    monkeypatch.delitem(KINDS, "face")
    before = [example(seed, "train", index) for seed, index in RELEASED]
    assert [x[1].tobytes() for x in now] == [x[1].tobytes() for x in before]


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_are_pictures_with_plain_parameters(kind):
    image, parameters = draw(kind, np.random.default_rng(0))
    assert (image.mode, image.size) == ("RGB", (64, 64))
    assert json.loads(json.dumps(parameters, allow_nan=False)) == parameters
    assert np.shape(parameters["colors"])[1:] == (3,)


@quick
@given(st.sampled_from(list(KINDS)), st.integers(0, 2**32))
def test_no_picture_is_blank(kind, seed):
    picture, parameters = drawn(kind, seed)
    colors = np.array(parameters["colors"])
    distances = np.linalg.norm(picture[:, :, None] - colors, axis=-1)
    shares = np.bincount(distances.argmin(-1).ravel(), minlength=len(colors)) / 64**2
    assert sorted(shares)[-2] > 0.01


# What the parameters say is there.


@pytest.mark.parametrize("seed", SEEDS)
def test_edges_have_their_angle(seed):
    mask, parameters = first_mask("edge", seed)
    down, right = np.gradient(mask)
    # Slow gradients and grain would outweigh the edge by their area.
    steep = np.hypot(right, down) > 0.1
    x, y = right[steep].sum(), -down[steep].sum()
    angle = np.degrees(np.arctan2(-x, y))
    assert degrees_apart(angle, parameters["angle"], 360) < 3


@pytest.mark.parametrize("kind", ["grating", "fine lines"])
@pytest.mark.parametrize("seed", SEEDS)
def test_gratings_have_their_period_and_angle(kind, seed):
    mask, parameters = first_mask(kind, seed)
    window = np.hanning(64)
    spectrum = abs(
        np.fft.fft2((mask - mask.mean()) * np.outer(window, window), (512,) * 2)
    )
    row, column = np.unravel_index(spectrum.argmax(), spectrum.shape)
    down, right = np.fft.fftfreq(512)[[row, column]]
    assert 1 / np.hypot(down, right) == pytest.approx(parameters["period"], rel=0.07)
    angle = np.degrees(np.arctan2(-down, right)) + 90
    assert degrees_apart(angle, parameters["angle"], 180) < 3


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("seed", SEEDS)
def test_circles_are_where_they_say_on_their_side(side, seed):
    mask, parameters = first_mask(f"circle {side}", seed)
    rows, columns = np.nonzero(mask > 0.5)
    assert columns.mean() + 0.5 == pytest.approx(parameters["x"], abs=1.5)
    assert rows.mean() + 0.5 == pytest.approx(parameters["y"], abs=1.5)
    assert (columns.mean() < 32) == (side == "left")


@pytest.mark.parametrize(
    ("kind", "parameter", "reach"),
    [("flower", "petals", 0.7), ("wheel", "spokes", 0.6), ("star", "points", 0.65)],
)
@pytest.mark.parametrize("seed", SEEDS)
def test_as_many_petals_spokes_and_points_as_they_say(kind, parameter, reach, seed):
    mask, parameters = first_mask(kind, seed)
    around = np.linspace(0, 2 * np.pi, 360, endpoint=False)
    radius = reach * parameters["radius"]
    columns = np.rint(parameters["x"] + radius * np.cos(around) - 0.5).astype(int)
    rows = np.rint(parameters["y"] + radius * np.sin(around) - 0.5).astype(int)
    spectrum = abs(np.fft.rfft(mask[rows, columns]))[1:20]
    # Thin spokes make overtones as strong.
    lowest = (spectrum > 0.5 * spectrum.max()).argmax() + 1
    assert lowest == parameters[parameter]


# Faces.


def face_without(seed, part, monkeypatch):
    """A face, and the same with a part too thin to be seen, which keeps its colour."""
    whole, parameters = drawn("face", seed)
    everything = _faces.painted

    def painted(parts):
        light, ink = parts[part]
        return everything(dict(parts) | {part: (1e-12 * light, 1e-12 * ink)})

    with monkeypatch.context() as patch:
        patch.setattr(_faces, "painted", painted)
        return whole, drawn("face", seed)[0], parameters


@pytest.mark.parametrize("part", ["left eye", "right eye", "nose", "mouth"])
@pytest.mark.parametrize("seed", SEEDS)
def test_a_face_s_box_holds_its_part_and_nothing_beside_it(part, seed, monkeypatch):
    whole, bare, parameters = face_without(seed, part, monkeypatch)
    rows, columns = np.nonzero((whole != bare).any(-1))
    found = [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]
    # A third of a pixel of paint may be lost in rounding, but only on the border.
    top, left, bottom, right = parameters["boxes"][part]
    assert top <= found[0] <= top + 1 and left <= found[1] <= left + 1
    assert bottom - 1 <= found[2] <= bottom and right - 1 <= found[3] <= right


@quick
@given(st.integers(0, 2**32))
def test_a_face_has_its_parts_where_faces_do(seed):
    _, parameters = _faces.face(np.random.default_rng(seed))
    boxes = {name: np.array(box) for name, box in parameters["boxes"].items()}
    assert list(boxes) == ["left eye", "right eye", "nose", "mouth"]
    for top, left, bottom, right in boxes.values():
        assert 0 <= top < bottom <= 64 and 0 <= left < right <= 64
    middle = {name: (box[:2] + box[2:]) / 2 for name, box in boxes.items()}
    assert middle["left eye"][1] < middle["nose"][1] < middle["right eye"][1]
    eyes = middle["left eye"][0], middle["right eye"][0]
    assert max(eyes) < middle["nose"][0] < middle["mouth"][0]


def test_no_two_boxes_of_a_face_overlap():
    for index in range(30 * SPLITS["train"], 31 * SPLITS["train"]):
        taken = np.zeros((64, 64), int)
        for top, left, bottom, right in example(0, "train", index)[2]["boxes"].values():
            taken[top:bottom, left:right] += 1
        assert taken.max() == 1


# As a data set.


@pytest.fixture
def small(monkeypatch):
    for split, count in {"train": 2, "validation": 1}.items():
        monkeypatch.setitem(SPLITS, split, count)


def test_tfds_gives_back_what_was_drawn(small, tmp_path):
    builder = primitives.Primitives(
        config="3", data_dir=tmp_path, file_format="array_record"
    )
    builder.download_and_prepare()
    for split, count in SPLITS.items():
        total = count * len(KINDS)
        expected = {}
        for kind, image, parameters in (example(3, split, i) for i in range(total)):
            expected[json.dumps(parameters)] = kind, np.asarray(image)
        records = builder.as_data_source(split)
        assert len(records) == len(expected) == total
        for record in records:
            kind, pixels = expected[record["parameters"].decode()]
            assert builder.info.features["label"].int2str(record["label"]) == kind
            np.testing.assert_array_equal(record["image"], pixels)


@pytest.mark.parametrize("name", ["primitives:3", "tfds:primitives/3"])
def test_it_is_found_by_name(small, tmp_path, name):
    source = data.load(name, "train", str(tmp_path))
    assert list(source.classes) == list(KINDS)
    examples = [source[i] for i in range(len(source))]
    counts = collections.Counter(example.label for example in examples)
    assert counts == dict.fromkeys(range(len(KINDS)), 2)
    pictures = {Image.open(io.BytesIO(e.encoded)).tobytes() for e in examples}
    last = len(examples) - 1
    assert {example(3, "train", i)[1].tobytes() for i in (0, last)} <= pictures


def test_the_default_is_seed_0_in_the_cache_folder(small, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert len(data.load("primitives", "validation")) == len(KINDS)
    assert (tmp_path / "nstvis" / "tfds" / "primitives" / "0").is_dir()


def test_what_an_older_release_drew_is_drawn_again(small, tmp_path, monkeypatch):
    with monkeypatch.context() as older:
        older.delitem(KINDS, "face")
        version = primitives.tfds.core.Version("1.0.0")
        older.setattr(primitives.Primitives, "VERSION", version)
        assert len(data.load("primitives", "train", str(tmp_path))) == 60
    source = data.load("primitives", "train", str(tmp_path))
    assert len(source) == 62
    assert source.classes[-1] == "face"


def test_unknown_seeds_are_refused():
    with pytest.raises(ValueError, match="12"):
        data.load("primitives:12", "train")
