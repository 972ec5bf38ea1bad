"""The pipeline: every image once, in an order that the seed alone decides, cut as promised."""

import concurrent.futures
import contextlib
import dataclasses
import io
import json
import pickle
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nstvis import crops, data, pipeline
from nstvis.data import Example

PLAIN = crops.Augmentation(crop=1, color=0, flip=False)
WILD = crops.Augmentation(crop=0.3, color=0.5)


class Pictures:
    """A data set of pictures, losslessly encoded, each its own label; None is damaged."""

    classes = ()

    def __init__(self, pictures):
        self.pictures = pictures

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, index):
        picture = self.pictures[index]
        file = io.BytesIO()
        if picture is not None:
            kind = "TIFF" if picture.mode == "CMYK" else "PNG"
            picture.save(file, kind)
        return Example(f"picture/{index}", index, file.getvalue() or b"broken")


def flat(count, damaged=()):
    """Pictures of one colour each, which tells their label."""
    return Pictures(
        [
            None if i in damaged else Image.new("RGB", (4, 4), (i, 255 - i, 7))
            for i in range(count)
        ]
    )


def noise(count, size=(24, 16)):
    rng = np.random.default_rng(0)
    return Pictures(
        [
            Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), np.uint8))
            for _ in range(count)
        ]
    )


@pytest.fixture
def damaged(tmp_path):
    return pipeline.Damaged(tmp_path / "damaged.txt")


NONE_DAMAGED = pipeline.Damaged(None)


def training(
    source, size=4, batch=2, seed=0, how=PLAIN, workers=0, damaged=NONE_DAMAGED
):
    return iter(
        pipeline.training(
            source,
            size,
            batch,
            seed=seed,
            augmentation=how,
            damaged=damaged,
            workers=workers,
        )
    )


def evaluated(source, size=4, batch=2, damaged=NONE_DAMAGED, workers=0):
    return list(
        pipeline.evaluation(source, size, batch, damaged=damaged, workers=workers)
    )


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def joined(found, name="label"):
    return np.concatenate([batch[name] for batch in found])


def order(iterator, count):
    """The labels of the next images."""
    found = []
    while len(found) < count:
        found += next(iterator)["label"].tolist()
    return found[:count]


def assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name, values in one.items():
            np.testing.assert_array_equal(values, other[name])


@contextlib.contextmanager
def host(index, count):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jax.process_index", lambda: index)
        patch.setattr("jax.process_count", lambda: count)
        yield


SHARING = {
    "length": st.integers(3, 20),
    "hosts": st.integers(1, 3),
    "local": st.integers(1, 5),
}


# Order.


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(**SHARING, seed=st.integers(0, 2**31))
def test_every_epoch_has_every_image_once(length, hosts, local, seed):
    epochs = [[], []]
    for index in range(hosts):
        with host(index, hosts):
            iterator = training(flat(length), batch=local * hosts, seed=seed)
        mine = len(range(index, length, hosts))
        found = order(iterator, 2 * mine)
        epochs[0] += found[:mine]
        epochs[1] += found[mine:]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(length))


def test_hosts_together_make_the_batches_of_one():
    alone = take(training(flat(12), batch=4), 6)
    parts = []
    for index in range(2):
        with host(index, 2):
            parts.append(take(training(flat(12), batch=4), 6))
    for whole, *pair in zip(alone, *parts, strict=True):
        assert [len(part["label"]) for part in pair] == [2, 2]
        assert sorted(joined(pair)) == sorted(whole["label"])


def test_the_order_is_the_seeds_alone():
    found = order(training(flat(40), seed=1), 80)
    assert order(training(flat(40), 8, 5, seed=1, how=WILD), 80) == found
    assert order(training(flat(40), seed=2), 80) != found
    assert found[:40] != found[40:]
    assert found[:40] != list(range(40))


def test_labels_stay_with_their_images():
    for batch in take(training(flat(20), batch=5), 8):
        assert (batch["image"][:, 2, 2, 0] == batch["label"]).all()


def test_a_saved_iterator_goes_on_with_the_same_bytes_from_anywhere():
    iterator, states, found = training(noise(11), batch=3, how=WILD), [], []
    for _ in range(9):
        states.append(json.dumps(iterator.get_state()))
        found.append(next(iterator))
    for i in range(8):
        resumed = training(noise(11), batch=3, how=WILD)
        resumed.set_state(json.loads(states[i]))
        assert_same(take(resumed, 2), found[i : i + 2])


def test_a_position_holds_for_images_of_another_size():
    iterator = training(flat(11), size=4, batch=3)
    take(iterator, 2)
    larger = training(flat(11), size=8, batch=3)
    larger.set_state(iterator.get_state())
    assert order(larger, 12) == order(iterator, 12)


# Workers.


@pytest.mark.slow
def test_with_workers_a_saved_iterator_goes_on_with_the_same_bytes():
    iterator = training(noise(11), batch=3, how=WILD, workers=2)
    take(iterator, 3)
    state = json.dumps(iterator.get_state())
    resumed = training(noise(11), batch=3, how=WILD, workers=2)
    resumed.set_state(json.loads(state))
    assert_same(take(resumed, 4), take(iterator, 4))


@pytest.mark.slow
def test_workers_do_not_change_what_is_learned_from():
    alone, shared = (
        training(noise(12), batch=4, how=WILD, workers=workers) for workers in (0, 2)
    )
    assert_same(take(shared, 6), take(alone, 6))


@pytest.mark.slow
def test_workers_do_not_change_what_is_evaluated():
    assert_same(evaluated(flat(12), batch=4, workers=2), evaluated(flat(12), batch=4))


OWN = """
from nstvis.data import Example

class Mine:
    classes = ()
    def __len__(self): return 4
    def __getitem__(self, index): return Example(str(index), -1, (data / "x.png").read_bytes())
    def index(self, id): return int(id)

def load(argument, split, data_dir):
    global data
    import pathlib
    data = pathlib.Path(data_dir)
    return Mine()
"""


@pytest.mark.slow
def test_workers_read_a_data_set_of_ones_own(tmp_path):
    (tmp_path / "mine.py").write_text(OWN)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "x.png")
    source = data.load(str(tmp_path / "mine.py"), "train", str(tmp_path))
    [batch] = evaluated(source, batch=4, workers=1)
    assert (batch["image"] == [255, 0, 0]).all()


# What is damaged.


def test_a_damaged_image_gives_its_place_to_the_next(damaged):
    source = flat(10, damaged=(3, 4, 9))
    found = take(training(source, batch=5, damaged=damaged), 4)
    for epoch in (found[:2], found[2:]):
        counts = np.bincount(joined(epoch), minlength=10)
        assert counts.tolist() == [2, 1, 1, 0, 0, 3, 1, 1, 1, 0]
    assert (joined(found, "image")[:, 2, 2, 0] == joined(found)).all()
    assert set(damaged.ids()) == {f"picture/{i}" for i in (3, 4, 9)}
    lines = damaged.path.read_text().splitlines()
    assert all("\tpicture/" in line for line in lines)  # what is wrong with it


def test_a_damaged_image_is_listed_once(damaged):
    again = pipeline.Damaged(damaged.path)  # as after a restart
    for some in (damaged, damaged, again):
        for id in ("a", "b"):
            some.add(Example(id, 0, b""), ValueError(f"{id}: broken"))
    assert damaged.path.read_text() == "a\ta: broken\nb\tb: broken\n"


def list_all(damaged, ids):
    for id in ids:
        damaged.add(Example(id, 0, b""), ValueError(f"{id}: broken"))


def test_a_damaged_image_is_listed_once_by_many_threads(damaged, monkeypatch):
    update = pipeline.Damaged._update

    def slowly(self):
        update(self)
        time.sleep(0.02)

    monkeypatch.setattr(pipeline.Damaged, "_update", slowly)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda id: list_all(damaged, [id]), "aaaabbbb"))
    assert sorted(damaged.path.read_text().splitlines()) == [
        "a\ta: broken",
        "b\tb: broken",
    ]


def test_the_list_of_damaged_images_is_read_once(damaged):
    list_all(damaged, "ab")
    assert damaged.ids() == ["a", "b"]
    other = pipeline.Damaged(damaged.path)  # of another process
    list_all(other, "bc")
    whole = damaged.path.read_bytes()
    damaged.path.write_bytes(b"?" * 11 + whole[11:])  # what has been read already
    list_all(damaged, "acd")
    assert damaged.ids() == ["a", "b", "c", "d"]
    assert pickle.loads(pickle.dumps(damaged)).ids() == damaged.ids()


ids = st.text(st.characters(exclude_categories=()) | st.sampled_from("\\nx0\n\t\r"))


@settings(max_examples=100, deadline=None)
@given(st.lists(ids, unique=True, max_size=4))
def test_any_id_is_listed_in_a_line(tmp_path_factory, ids):
    damaged = pipeline.Damaged(tmp_path_factory.mktemp("listed") / "damaged.txt")
    list_all(damaged, ids)
    again = pipeline.Damaged(damaged.path)
    list_all(again, ids)
    assert again.ids() == damaged.ids() == ids
    if ids:
        lines = damaged.path.read_text(encoding="utf-8").splitlines()
        assert [line.count("\t") for line in lines] == [1] * len(ids)


def test_any_list_can_be_read(damaged):
    # An older one, of names that need not be UTF-8, and the end of a killed process.
    damaged.path.write_bytes(
        b"a\\b\\x\tbroken\ncaf\xe9.jpg\tbroken\n\\Uffffffff\t\nbeg"
    )
    list_all(damaged, ["z"])
    assert damaged.ids() == ["a\\b\\x", "caf\udce9.jpg", "\\Uffffffff", "beg", "z"]
    assert damaged.path.read_bytes().endswith(b"\nbeg\nz\tz: broken\n")


def test_if_all_are_damaged_there_is_no_batch(damaged):
    message = r"all 3 images are damaged: see .*damaged\.txt"
    with pytest.raises(ValueError, match=message):
        next(training(flat(3, damaged=range(3)), damaged=damaged))


# Evaluation.


@settings(max_examples=15, deadline=None)
@given(**SHARING)
def test_evaluation_has_all_images_once_in_order(length, hosts, local):
    parts = []
    for index in range(hosts):
        with host(index, hosts):
            parts.append(evaluated(flat(length), batch=local * hosts))
    # All hosts take as many steps, in each of which the images follow one another.
    steps = list(zip(*parts, strict=True))
    found = [np.stack([part["index"] for part in step], 1).ravel() for step in steps]
    padding = -length % (local * hosts)
    assert np.concatenate(found).tolist() == [*range(length), *[-1] * padding]
    for step in steps:
        for part in step:
            np.testing.assert_array_equal(part["label"], part["index"])


def test_evaluation_marks_what_is_damaged(damaged):
    found = evaluated(flat(7, damaged=(2,)), batch=3, damaged=damaged)
    expected = [0, 1, -1, 3, 4, 5, 6, -1, -1]
    assert joined(found).tolist() == joined(found, "index").tolist() == expected
    for image, label in zip(joined(found, "image"), expected, strict=True):
        assert (image == ((label, 255 - label, 7) if label >= 0 else 0)).all()
    assert damaged.ids() == ["picture/2"]


def ramp(width, height):
    """A picture whose red is its column and whose green is its row."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    pixels = np.stack([columns, rows, 0 * rows], -1).astype(np.uint8)
    return Image.fromarray(pixels)


def in_mode(picture, mode):
    """A picture as a file of another mode holds it, and as it is meant to look."""
    if mode == "I;16":
        grey = picture.convert("L")
        wide = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
        return wide, grey.convert("RGB")
    converted = picture.convert(mode, dither=Image.Dither.NONE)
    if mode in ("RGBA", "LA"):
        converted.putalpha(picture.getchannel("R"))  # which is not blended
    return converted, converted.convert("RGB")


MODES = ["RGB", "L", "RGBA", "LA", "P", "1", "CMYK", "I;16"]


@pytest.mark.parametrize("mode", MODES)
def test_evaluation_sees_the_central_square(mode):
    pictures, expected = [], []
    for size in ((41, 30), (21, 50), (9, 9), (5, 1)):
        picture, look = in_mode(noise(1, size).pictures[0], mode)
        side = min(size)
        left, top = ((n - side) / 2 for n in size)
        box = (left, top, left + side, top + side)
        pictures.append(picture)
        expected.append(look.resize((16, 16), Image.Resampling.BILINEAR, box))
    (batch,) = evaluated(Pictures(pictures), 16, len(pictures))
    np.testing.assert_array_equal(batch["image"], np.stack(expected))


def test_evaluation_shrinks_large_images_without_aliases():
    checks = np.indices((150, 200)).sum(0) % 2 * 255
    grey = Image.fromarray(checks.astype(np.uint8))
    (found,) = evaluated(Pictures([grey, ramp(200, 150)]), 16, 2)
    np.testing.assert_allclose(found["image"][0], 127.5, atol=6)
    middles = (np.arange(16) + 0.5) * 150 / 16 - 0.5  # of the pixels, in the square
    inner = found["image"][1, 1:-1, 1:-1]
    np.testing.assert_allclose(inner[:, :, 0].mean(0), 25 + middles[1:-1], atol=1.5)
    np.testing.assert_allclose(inner[:, :, 1].mean(1), middles[1:-1], atol=1.5)


def test_training_sees_the_colours_that_evaluation_sees():
    how = crops.Augmentation(crop=0.3, color=0)
    for mode in MODES:
        picture, _ = in_mode(Image.new("RGB", (20, 10), (200, 90, 30)), mode)
        source = Pictures([picture])
        (expected,) = evaluated(source, batch=1)
        batch = next(training(source, batch=1, how=how))
        np.testing.assert_array_equal(batch["image"], expected["image"], mode)


# Augmentation.


def augmented(picture, count, **how):
    iterator = training(Pictures([picture]), 32, 1, how=crops.Augmentation(**how))
    return joined(take(iterator, count), "image").astype(float)


def edges(values):
    """Where a ramp of 32 pixels begins and ends, by a line through its middle."""
    slope, middle = np.polyfit(np.arange(-13.5, 14), values[2:-2], 1)
    return middle + 0.5 - 16 * slope, middle + 0.5 + 16 * slope


def cropped(size, count, crop):
    """The left, top, right and bottom edges of crops."""
    images = augmented(ramp(*size), count, crop=crop, color=0, flip=False)
    found = [
        (edges(x[2:-2, :, 0].mean(0)), edges(x[:, 2:-2, 1].mean(1))) for x in images
    ]
    return np.swapaxes(found, 1, 2).reshape(-1, 4).T


@pytest.mark.parametrize(
    ("size", "crop"),
    [
        ((200, 200), 0.4),
        ((200, 200), 0.7),
        ((200, 200), 0.9),
        ((240, 120), 0.4),
    ],
)
def test_a_crop_has_an_area_and_an_aspect_ratio_that_it_may(size, crop):
    left, top, right, bottom = cropped(size, 150, crop)
    width, height = right - left, bottom - top
    area, aspect = width * height / (size[0] * size[1]), width / height
    assert crop - 0.01 < area.min() <= area.max() < 1.01
    assert 0.74 < aspect.min() <= aspect.max() < 1.35


@pytest.mark.parametrize("size", [(250, 50), (50, 250)])
def test_a_crop_of_a_long_image_is_as_large_as_its_aspect_ratio_lets(size):
    left, top, right, bottom = cropped(size, 10, 0.9)
    long, short = (right - left, bottom - top)[:: 1 if size[0] > size[1] else -1]
    np.testing.assert_allclose(short, 50, atol=0.5)
    np.testing.assert_allclose(long, 50 * 4 / 3, atol=0.5)


@settings(max_examples=20, deadline=None)
@given(width=st.integers(1, 40), height=st.integers(1, 40), crop=st.floats(0.01, 1))
def test_every_image_is_large_enough_for_a_crop(width, height, crop):
    how = crops.Augmentation(crop=crop, color=0)
    (found,) = take(training(noise(1, (width, height)), 8, 1, how=how), 1)
    assert found["image"].shape == (1, 8, 8, 3)


def test_crops_have_all_areas_and_aspect_ratios_that_they_may():
    left, top, right, bottom = cropped((200, 200), 150, 0.4)
    width, height = right - left, bottom - top
    area, aspect = width * height / 200**2, width / height
    for quantity, least, most in ((area, 0.4, 0.9), (aspect, 0.77, 1.3)):
        counts, _ = np.histogram(quantity, 5, (least, most))
        assert counts.min() > 10


def test_a_crop_may_lie_anywhere():
    left, top, right, bottom = cropped((200, 180), 150, 0.4)
    for start, stop, length in ((left, right, 200), (top, bottom, 180)):
        assert start.min() > -1
        assert stop.max() < length + 1
        room = length - (stop - start)
        share = (start / room)[room > 20]
        assert share.min() < 0.1
        assert share.max() > 0.9
        assert 0.4 < share.mean() < 0.6


def test_nothing_changes_where_nothing_may():
    source = noise(1, (24, 24))
    expected = source.pictures[0].resize((16, 16), Image.Resampling.BILINEAR)
    for found in take(training(source, 16, 1), 3):
        np.testing.assert_array_equal(found["image"][0], expected)


def test_half_of_the_images_are_mirrored():
    images = augmented(ramp(64, 64), 200, crop=1, color=0)
    mirrored = images[:, 16, 0, 0] > images[:, 16, -1, 0]
    assert 80 < mirrored.sum() < 120
    assert (images[:, 0, 16, 1] < images[:, -1, 16, 1]).all()
    straight = augmented(ramp(64, 64), 20, crop=1, color=0, flip=False)
    assert (straight[:, 16, 0, 0] < straight[:, 16, -1, 0]).all()


def test_brightness_contrast_and_saturation_change_by_as_much_as_they_may():
    # Stripes, of which the middle one is coloured; at 32 pixels they stay as they are.
    dark, light, red = 70, 110, np.array([120, 70, 60])
    pixels = np.full((32, 32, 3), dark)
    pixels[:8], pixels[12:20] = light, red
    luma = np.array([0.299, 0.587, 0.114])
    mean = (pixels @ luma).mean()
    stripes = Image.fromarray(pixels.astype(np.uint8))
    x = augmented(stripes, 300, crop=1, color=0.3)
    low, high, middle = x[:, 31, 0, 0], x[:, 0, 0, 0], x[:, 16, 0]
    # A grey g becomes b * (c * g + (1 - c) * mean), and a difference of colours b * c * s
    # times what it was, for a brightness b, contrast c and saturation s.
    product = (high - low) / (light - dark)
    brightness = product + (low - product * dark) / mean
    contrast = product / brightness
    saturation = (middle[:, 0] - middle[:, 1]) / (red[0] - red[1]) / product
    factors = np.stack([brightness, contrast, saturation])
    assert (factors.min(1) > 0.65).all()
    assert (factors.min(1) < 0.74).all()
    assert (factors.max(1) < 1.35).all()
    assert (factors.max(1) > 1.26).all()
    assert (abs(np.corrcoef(factors) - np.eye(3)) < 0.3).all()


def test_without_color_no_colour_changes():
    images = augmented(Image.new("RGB", (40, 30), (200, 90, 30)), 20, crop=0.3, color=0)
    assert (images == (200, 90, 30)).all()


def test_what_is_done_to_an_image_is_the_seeds_and_its_places_in_the_order():
    def images(batch, seed):
        iterator = training(noise(1), batch=batch, seed=seed, how=WILD)
        return joined(take(iterator, 6 // batch), "image")

    found = images(1, seed=1)
    np.testing.assert_array_equal(images(3, seed=1), found)
    everything = np.concatenate([found, images(1, seed=2)])
    assert len({image.tobytes() for image in everything}) == 12


def test_shapes_are_those_of_batches():
    told = {
        name: (value.shape, value.dtype)
        for name, value in pipeline.shapes(3, 8).items()
    }
    found = next(training(flat(5), size=8, batch=3)), evaluated(flat(5), 8, 3)[-1]
    for batch in found:
        assert told == {name: (batch[name].shape, batch[name].dtype) for name in told}
    assert found[0].keys() == told.keys()


@pytest.mark.parametrize("size", [(64, 64), (50, 40)])
def test_crops_that_are_cut_out_are_the_images_own_pixels(size):
    images = augmented(ramp(*size), 60, crop=0.5, color=0, flip=False, resize=False)
    left, top = images[:, 0, 0, 0], images[:, 0, 0, 1]
    for x, column, row in zip(images, left, top, strict=True):
        np.testing.assert_array_equal(
            x[..., 0], np.tile(column + np.arange(32), (32, 1))
        )
        np.testing.assert_array_equal(
            x[..., 1].T, np.tile(row + np.arange(32), (32, 1))
        )
    for offsets, side in ((left, size[0]), (top, size[1])):  # all there are, in time
        assert {0, side - 32} <= {*range(int(offsets.min()), int(offsets.max()) + 1)}


def test_an_image_smaller_than_a_cut_out_crop_is_enlarged():
    images = augmented(ramp(16, 24), 4, crop=0.5, color=0, flip=False, resize=False)
    assert images.shape == (4, 32, 32, 3)
    np.testing.assert_allclose(images[0, :, -8:, 0].mean(), 14, atol=1)


# Labels.


@pytest.mark.parametrize("label", [-2, 10, 1.0, None])
def test_a_label_that_is_none_is_told_with_its_image(label):
    source = flat(10)
    example = dataclasses.replace(source[3], label=label)
    source.classes = [str(i) for i in range(10)]
    with pytest.raises(ValueError, match=f"picture/3: label {label!r} of a data set"):
        pipeline._label(example, source)
