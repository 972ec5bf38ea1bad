"""Batches: every image once, in an order that the seed alone decides, cut as promised."""

import io

import numpy as np
import pytest
from absl import flags
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from nstvis import batches
from nstvis.data import Example

PLAIN = batches.Augmentation(crop=1, color=0, flip=False)


class Pictures:
    """A data set of given pictures, losslessly encoded; None is a damaged one."""

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
    """Small pictures of one colour each, labelled by their number."""
    return Pictures(
        [
            None if i in damaged else Image.new("RGB", (4, 4), (i, 255 - i, 7))
            for i in range(count)
        ]
    )


@pytest.fixture
def damaged(tmp_path):
    return batches.Damaged(tmp_path / "damaged.txt")


def training(source, damaged, size=4, batch=2, seed=0, how=PLAIN, workers=0):
    return iter(
        batches.training(
            source,
            size,
            batch,
            seed=seed,
            augmentation=how,
            damaged=damaged,
            workers=workers,
        )
    )


def labels(iterator, count):
    return np.concatenate([next(iterator)["label"] for _ in range(count)]).tolist()


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**31))
def test_every_epoch_has_every_image_once(per_batch, count, seed):
    source, nowhere = flat(per_batch * count), batches.Damaged(None)
    iterator = training(source, nowhere, batch=per_batch, seed=seed)
    for _ in range(3):
        assert sorted(labels(iterator, count)) == list(range(per_batch * count))


def test_the_order_is_the_seed_s_and_another_in_each_epoch(damaged):
    first, again, other = (
        labels(training(flat(40), damaged, seed=seed), 40) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other
    assert first[:40] != first[40:]


def test_labels_stay_with_their_images(damaged):
    iterator = training(flat(20), damaged, batch=5)
    for _ in range(8):
        batch = next(iterator)
        assert (batch["image"][:, 2, 2, 0] == batch["label"]).all()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_saved_iterator_goes_on_with_the_same_bytes(workers, damaged):
    flags.FLAGS.mark_as_parsed()  # which Grain's workers wait for
    how = batches.Augmentation(crop=0.3, color=0.5)
    source = flat(11)

    def fresh():
        return training(source, damaged, batch=3, how=how, workers=workers)

    iterator = fresh()
    for _ in range(3):
        next(iterator)
    state = iterator.get_state()
    rest = [next(iterator) for _ in range(5)]
    resumed = fresh()
    resumed.set_state(state)
    for expected in rest:
        found = next(resumed)
        for name in ("image", "label"):
            np.testing.assert_array_equal(found[name], expected[name])


def hosts(monkeypatch, count):
    monkeypatch.setattr("jax.process_count", lambda: count)
    for host in range(count):
        monkeypatch.setattr("jax.process_index", lambda host=host: host)
        yield host


def test_hosts_share_the_images_of_an_epoch(monkeypatch, damaged):
    parts = []
    for _ in hosts(monkeypatch, 2):
        iterator = training(flat(12), damaged, batch=4)
        assert next(iterator)["image"].shape == (2, 4, 4, 3)
        parts.append(labels(training(flat(12), damaged, batch=4), 3))
    assert sorted(parts[0] + parts[1]) == list(range(12))


def test_hosts_share_what_is_evaluated(monkeypatch, damaged):
    parts = []
    for _ in hosts(monkeypatch, 2):
        found = batches.evaluation(flat(11), 4, 4, damaged=damaged, workers=0)
        parts += [one["index"] for one in found]
    assert sorted(np.concatenate(parts)) == [-1, *range(11)]


# What is damaged.


def test_a_damaged_image_gives_its_place_to_the_next(damaged):
    iterator = training(flat(10, damaged=(3, 4, 9)), damaged, batch=5)
    found = labels(iterator, 4)
    for epoch in (found[:10], found[10:]):
        counts = np.bincount(epoch, minlength=10).tolist()
        assert counts == [2, 1, 1, 0, 0, 3, 1, 1, 1, 0]
    lines = damaged.path.read_text().splitlines()
    ids = sorted(line.split("\t")[0] for line in lines)
    assert ids == sorted(damaged.ids()) == [f"picture/{i}" for i in (3, 4, 9)]


def test_if_all_are_damaged_there_is_no_batch(damaged):
    with pytest.raises(
        ValueError, match=r"all 3 images are damaged: see .*damaged\.txt"
    ):
        next(training(flat(3, damaged=range(3)), damaged))


def test_evaluation_takes_all_in_order_and_marks_what_is_none(damaged):
    source = flat(7, damaged=(2,))
    found = list(batches.evaluation(source, 4, 3, damaged=damaged, workers=0))
    index = np.concatenate([one["index"] for one in found]).tolist()
    assert index == [0, 1, -1, 3, 4, 5, 6, -1, -1]
    assert np.concatenate([one["label"] for one in found]).tolist() == index
    images = np.concatenate([one["image"] for one in found])
    for i in (0, 1, 3, 4, 5, 6):
        assert (images[i] == (i, 255 - i, 7)).all()
    assert damaged.ids() == ["picture/2"]


# What is done to an image.


def ramp(width, height):
    """A picture whose red is its column and whose green is its row."""
    columns, rows = np.meshgrid(np.arange(width), np.arange(height))
    pixels = np.stack([columns, rows, 0 * rows], -1).astype(np.uint8)
    return Image.fromarray(pixels)


def augmented(picture, count, damaged, **how):
    iterator = training(
        Pictures([picture]), damaged, 32, 1, how=batches.Augmentation(**how)
    )
    return [next(iterator)["image"][0].astype(float) for _ in range(count)]


def test_a_crop_keeps_a_share_of_the_area_within_the_image(damaged):
    areas, corners = [], []
    for image in augmented(ramp(200, 160), 150, damaged, crop=0.4, color=0, flip=False):
        # From the centres of the first and last pixel to the borders.
        (left, right), (top, bottom) = (
            (np.median(x[0]), np.median(x[1]))
            for x in (image[:, [0, -1], 0].T, image[[0, -1], :, 1])
        )
        width, height = (right - left) * 32 / 31, (bottom - top) * 32 / 31
        areas.append(width * height / (200 * 160))
        corners.append((left, top))
    assert 0.3 < min(areas) < 0.5
    assert 0.85 < max(areas) < 1.05
    assert np.std(corners, axis=0).min() > 5


def test_half_of_the_images_are_mirrored(damaged):
    images = augmented(ramp(64, 64), 200, damaged, crop=1, color=0)
    mirrored = [image[16, 0, 0] > image[16, -1, 0] for image in images]
    assert 70 < sum(mirrored) < 130
    straight = augmented(ramp(64, 64), 20, damaged, crop=1, color=0, flip=False)
    assert all(image[16, 0, 0] < image[16, -1, 0] for image in straight)


def test_brightness_and_contrast_change_by_as_much_as_they_may(damaged):
    grey = Image.new("RGB", (32, 32), (100, 100, 100))
    levels = [x.mean() for x in augmented(grey, 200, damaged, crop=1, color=0.3)]
    assert 69 <= min(levels) < 80
    assert 120 < max(levels) <= 131
    same = augmented(grey, 5, damaged, crop=1, color=0)
    assert all((x == 100).all() for x in same)


def test_nothing_changes_where_nothing_may(damaged):
    (image,) = augmented(ramp(32, 32), 1, damaged, crop=1, color=0, flip=False)
    # But for the aspect ratio, which a square of all the area has no room for.
    np.testing.assert_allclose(image[..., 0].mean(0), np.arange(32), atol=4)


MODES = ["RGB", "L", "RGBA", "P", "1", "LA", "CMYK", "I;16"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(40, 30), (20, 50), (9, 9)])
def test_evaluation_sees_the_centre_of_the_shorter_side_s_square(mode, size, damaged):
    picture = ramp(*size)
    if mode == "I;16":
        pixels = np.asarray(picture.convert("L")).astype(np.uint16) * 257
        picture, shown = Image.fromarray(pixels), picture.convert("L")
    else:
        picture = picture.convert(mode)
        shown = picture
    side = min(size)
    left, top = ((n - side) / 2 for n in size)
    box = (left, top, left + side, top + side)
    expected = shown.convert("RGB").resize((16, 16), Image.Resampling.BILINEAR, box)
    source = Pictures([picture])
    (found,) = batches.evaluation(source, 16, 1, damaged=damaged, workers=0)
    assert not damaged.ids()
    # Reduced by whole numbers first, where it is much smaller.
    difference = found["image"][0].astype(float) - np.asarray(expected)
    assert abs(difference).mean() < 1.5


def test_shapes_are_those_of_batches(damaged):
    told = batches.shapes(3, 8)
    found = next(training(flat(5), damaged, size=8, batch=3))
    assert {k: (v.shape, v.dtype) for k, v in told.items()} == {
        k: (v.shape, v.dtype) for k, v in found.items()
    }
