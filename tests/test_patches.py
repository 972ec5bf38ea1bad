"""Top-activating patches are verified, cropped to the pixel, and deduplicated."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax
from PIL import Image

from nstvis import images, models
from nstvis.data import Example
from nstvis.units import contact_sheets, maxima, patches, verify
from nstvis.units.receptive_fields import receptive_fields
from nstvis.units.table import Layer, RankedPatches


class Noise:
    """A data set of noise, encoded without loss; some images may be swapped."""

    classes = ("noise",)

    def __init__(self, count, seed=0, size=40):
        rng = np.random.default_rng(seed)
        self.images = rng.integers(0, 256, (count, size, size, 3), np.uint8)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        import io

        file = io.BytesIO()
        Image.fromarray(self.images[index]).save(file, "PNG")
        return Example(f"noise/{index}", 0, file.getvalue())


@given(
    st.integers(-9, 9),
    st.integers(-9, 9),
    st.integers(1, 12),
    st.integers(1, 12),
    st.data(),
)
def test_a_crop_shows_each_pixel_that_matters_and_grey_elsewhere(
    top, left, height, width, data
):
    """A field that is larger than the image in a direction is cropped to the image."""
    image = np.random.default_rng(0).integers(0, 256, (8, 7, 3), np.uint8)
    image[image == images.GREY] = 0
    inside = [
        [i for i in range(start, start + length) if 0 <= i < end]
        for start, length, end in ((top, height, 8), (left, width, 7))
    ]
    if not all(inside):
        return
    # What matters is a run of the field's pixels, as at the right of odd strides.
    rows, columns = (
        sorted(data.draw(st.tuples(st.sampled_from(x), st.sampled_from(x))))
        for x in inside
    )
    matter = [
        np.isin(np.arange(end), range(first, last + 1))
        for (first, last), end in ((rows, 8), (columns, 7))
    ]
    box = top, left, top + height, left + width
    patch = patches.crop(image, box, *matter)
    shown_rows = range(top, top + height) if height <= 8 else inside[0]
    shown_columns = range(left, left + width) if width <= 7 else inside[1]
    assert patch.shape == (len(shown_rows), len(shown_columns), 3)
    for i, row in enumerate(shown_rows):
        for j, column in enumerate(shown_columns):
            seen = rows[0] <= row <= rows[1] and columns[0] <= column <= columns[1]
            expected = image[row, column] if seen else images.GREY
            np.testing.assert_array_equal(patch[i, j], expected)


def test_a_field_that_does_not_meet_the_image_is_grey():
    image, nothing = np.zeros((8, 7, 3), np.uint8), np.zeros(8, bool)
    patch = patches.crop(image, (-30, 2, -20, 5), nothing, nothing[:7])
    assert patch.size == 0
    assert (patches.fitted(patch, 5) == images.GREY).all()


@pytest.fixture(scope="module")
def network():
    return models.load("alexnet_small", last="conv3")


LAYERS = {"conv2": 192, "conv3": 384}


def best(network, source, ranks=3):
    """Each unit's strongest images by a plain forward pass, and places in them.

    The second rank is another place in the image of the first.
    """
    forward, params = network
    found = jax.jit(forward)(params, source.images.astype(np.float32))
    score, image, position = [], [], []
    for name, units in LAYERS.items():
        x = np.asarray(found[name]).reshape(len(source), -1, units)
        order = np.argsort(-x.max(1), 0)[:ranks]
        order[1] = order[0]
        where = np.take_along_axis(x.argmax(1), order, 0)
        where[1] = (where[1] + 1) % x.shape[1]
        image.append(order)
        position.append(where)
        score.append(x[order, where, np.arange(units)])
    return maxima.Best(*(np.concatenate(part, 1) for part in (score, image, position)))


def verified(network, source, claims, batch=4):
    pictures = patches.Images([source], source.images.shape[1])
    return verify.verify(*network, LAYERS, claims, pictures, batch)


@pytest.mark.slow
def test_true_patches_are_verified(network):
    source = Noise(11)
    claims = best(network, source)
    assert verified(network, source, claims) == len(np.unique(claims.image))


def test_places_where_there_are_too_few_images_are_not_verified(network):
    source = Noise(3)
    claims = best(network, source)
    for part in claims:
        part[2, ::2] = maxima.SENTINEL
    assert verified(network, source, claims) == 3
    for part in claims:
        part[:] = maxima.SENTINEL
    assert verified(network, source, claims) == 0


def test_a_wrong_activation_is_named(network):
    source = Noise(11)
    claims = best(network, source)
    claims.score[2, 192 + 17] *= 1.001
    with pytest.raises(ValueError, match=rf"conv3:17 .*noise/{claims.image[2, 209]}"):
        verified(network, source, claims)


def test_a_wrong_position_is_named(network):
    source = Noise(11)
    claims = best(network, source)
    claims.position[0, 5] += 1
    with pytest.raises(ValueError, match=rf"conv2:5 .*noise/{claims.image[0, 5]}"):
        verified(network, source, claims)


def test_images_that_have_changed_are_noticed(network):
    source = Noise(11)
    claims = best(network, source)
    source.images[claims.image[0, 0]] //= 2
    with pytest.raises(ValueError, match="the data set has changed"):
        verified(network, source, claims)


def test_pictures_of_several_data_sets_are_in_a_row():
    first, second = Noise(3, 1), Noise(4, 2)
    pictures = patches.Images([first, second], 40)
    np.testing.assert_array_equal(pictures[2], first.images[2])
    np.testing.assert_array_equal(pictures[5], second.images[2])
    with pytest.raises(IndexError):
        pictures[7]


BOX = (0, 0, 10, 10)


def candidates(*what):
    """(image, box, grey level of the patch) of each."""
    flat = {
        i: np.full((4, 4, 3), level, np.uint8) for i, (_, _, level) in enumerate(what)
    }
    return [(image, box) for image, box, _ in what], flat.__getitem__


def test_patches_of_one_image_that_overlap_by_half_count_once():
    found = candidates(
        (1, BOX, 0), (1, (0, 3, 10, 13), 50), (1, (0, 4, 10, 14), 100), (2, BOX, 150)
    )
    assert patches.distinct(*found, 3) == [0, 2, 3]


def test_patches_that_hardly_differ_count_once():
    found = candidates((1, BOX, 0), (2, BOX, 5), (3, BOX, 6), (4, BOX, 90))
    assert patches.distinct(*found, 3) == [0, 2, 3]


def test_near_duplicates_come_in_when_nothing_else_is_left():
    found = candidates(
        (1, BOX, 0), (2, BOX, 1), (3, BOX, 2), (4, BOX, 90), (5, BOX, 91)
    )
    assert patches.distinct(*found, 4) == [0, 1, 2, 3]
    assert patches.distinct(*found, 9) == [0, 1, 2, 3, 4]


def test_a_patch_that_is_no_square_is_drawn_on_one():
    tall = patches.fitted(np.zeros((20, 10, 3), np.uint8), 10)
    assert tall.shape == (10, 10, 3)
    assert (tall[:, 4:6] == 0).all()
    assert (tall[:, [0, -1]] == images.GREY).all()


def ranked(score, image, fields):
    position = np.zeros((*image.shape, 2), np.int32)
    units = np.arange(len(image))[:, None]
    boxes = fields.boxes(np.broadcast_to(units, image.shape), position)
    return RankedPatches(score=score, image=image, position=position, box=boxes)


def made_layer(top, units):
    none = np.zeros((units, 0))
    return Layer(
        top=top,
        least=top,
        by_class=top,
        mean=np.ones(units),
        std=np.ones(units),
        sparsity=np.zeros(units),
        histogram=none,
        class_mean=none,
    )


def far(params, images):
    """One unit, whose field is larger than an image of 9 x 20 in one direction."""
    window, edge = (1, 15, 3, 1), [(0, 0), (7, 7), (1, 1), (0, 0)]
    x = images.mean(-1, keepdims=True)
    return {"far": lax.reduce_window(x, 0.0, lax.add, window, (1, 1, 1, 1), edge)}


def test_a_field_larger_than_the_image_is_drawn_as_far_as_it_is_within():
    fields = receptive_fields(far, {}, 9, 20)["far"]
    assert fields.size(0) == (15, 3) and fields.visible_size(0) == (9, 3)
    top = ranked(np.ones((1, 1)), np.zeros((1, 1), np.int32), fields)
    layer = made_layer(top, 1)
    assert patches.drawn_side(layer, fields) == 9
    top.position[:] = 4, 0
    top.box[:] = fields.boxes(np.array([[0]]), top.position)
    image = np.random.default_rng(0).integers(0, 256, (9, 20, 3), np.uint8)
    patch = patches.crop(image, top.box[0, 0], *fields.support(0, 4, 0))
    assert patch.shape == (9, 3, 3)
    np.testing.assert_array_equal(patch[:, 1:], image[:, :2])
    assert (patch[:, 0] == images.GREY).all()  # it hangs over the left border


def test_a_patch_is_the_field_in_the_image(network):
    source = Noise(5)
    fields = receptive_fields(*network, 40, 40)["conv1"]
    image = np.arange(64 * 3).reshape(64, 3) % 5
    image[7] = [2, 2, -1]
    top = ranked(np.ones((64, 3), np.float32), image.astype(np.int32), fields)
    top.position[:] = 6, 4
    top.box[:] = fields.boxes(np.zeros((64, 3), int), top.position)
    pictures = patches.Images([source], 40)
    found = list(
        patches.pick(made_layer(top, 64), fields, pictures, 2, deduplicate=True)
    )
    for unit, (picked, drawn) in enumerate(found):
        assert picked == [0, 1]
        for rank, patch in zip(picked, drawn, strict=True):
            # 7 x 7 at stride 2 and padding 3.
            seen = source.images[image[unit, rank], 9:16, 5:12]
            np.testing.assert_array_equal(patch, seen)


def test_the_units_for_a_page_are_strong_and_various():
    rng, units = np.random.default_rng(0), 30
    looks = rng.integers(0, 256, (units, 1, 8, 8, 3))
    looks[:5] = looks[0]
    drawn = np.repeat(looks, 9, 1).astype(np.uint8)
    strong = np.isin(np.arange(units), [0, 1, 2, 3, 4, 10, 11, 12, 13, 14])
    score = np.where(strong, 9.0, 2.0)[:, None].repeat(9, 1)
    top = RankedPatches(score=score, image=score, position=score, box=score)
    layer = made_layer(top, units)
    layer.sparsity[14] = 1
    chosen = contact_sheets.representative(layer, drawn, 5, seed=0)
    assert len([unit for unit in chosen if unit < 5]) == 1
    assert chosen[1:] == [10, 11, 12, 13]
    assert contact_sheets.representative(layer, drawn, 5, seed=0) == chosen
    others = {
        tuple(contact_sheets.representative(layer, drawn, 5, seed=s)) for s in range(9)
    }
    assert len(others) > 1


def test_a_block_has_the_strongest_patch_first_and_goes_row_by_row():
    drawn = np.arange(9, dtype=np.uint8)[:, None, None, None].repeat(3, -1) * 20
    drawn = np.broadcast_to(drawn, (9, 4, 4, 3))
    picture = np.asarray(
        contact_sheets.block(np.ascontiguousarray(drawn), side=8, gap=2)
    )
    assert picture.shape == (28, 28, 3)
    centres = picture[4::10, 4::10, 0]
    np.testing.assert_array_equal(centres, np.arange(9).reshape(3, 3) * 20)
    assert (picture[8:10] == 255).all()
