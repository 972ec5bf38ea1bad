"""Masks pair regions by colour; guidance is their share of each receptive field."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax import lax
from PIL import ExifTags, Image, ImageCms

from nstvis import images, models
from nstvis.models import alexnet_small, vgg_small
from nstvis.synthesis import masks
from nstvis.units.receptive_fields import receptive_fields

SIZE = 5, 4
BLACK, RED, GREEN, WHITE = "#000000", "#ff0000", "#00ff00", "#ffffff"
# Swaps red and blue.
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
PROFILE = PROFILE.replace(b"rXYZ", b"tmp ").replace(b"bXYZ", b"rXYZ")
PROFILE = PROFILE.replace(b"tmp ", b"bXYZ")


def mask(*colors, size=SIZE):
    """A picture whose pixels take turns with the colours."""
    pixels = np.array([[*bytes.fromhex(color[1:])] for color in colors], np.uint8)
    return Image.fromarray(np.resize(pixels, (*size[::-1], 3)))


def save(path, *colors, size=SIZE):
    mask(*colors, size=size).save(path)
    return path


# Reading.


def test_regions_of_the_same_colour_belong_together(tmp_path):
    content = save(tmp_path / "c.png", WHITE, RED, BLACK)
    one = save(tmp_path / "a.png", RED, BLACK, size=(3, 1))
    other = save(tmp_path / "b.png", WHITE, size=(2, 3))
    found = masks.read(SIZE, content, [(3, 1), (2, 3)], [one, str(other)])
    assert found.colors == (BLACK, RED, WHITE)
    np.testing.assert_array_equal(found.content, np.resize([2, 1, 0], (4, 5)))
    np.testing.assert_array_equal(found.styles[0], [[1, 0, 1]])
    np.testing.assert_array_equal(found.styles[1], [[2, 2]] * 3)
    assert {x.dtype for x in [found.content, *found.styles]} == {np.dtype(np.uint8)}


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "LA", "RGBA", "CMYK"])
def test_masks_of_all_modes_are_read_alike(tmp_path, mode):
    plain = save(tmp_path / "a.png", BLACK, WHITE, BLACK)
    converted = mask(BLACK, WHITE, BLACK).convert(mode)
    if mode.endswith("A"):
        converted.putalpha(Image.fromarray(np.arange(20, dtype=np.uint8).reshape(4, 5)))
    transparency = {"transparency": b"\x00\xff"} if mode == "P" else {}
    path = tmp_path / ("b.tif" if mode == "CMYK" else "b.png")
    converted.save(path, **transparency)
    found = masks.read(SIZE, plain, [SIZE], [path])
    assert found.colors == (BLACK, WHITE)
    np.testing.assert_array_equal(found.content, np.resize([0, 1, 0], (4, 5)))
    np.testing.assert_array_equal(found.styles[0], found.content)


def test_a_mask_is_turned_as_its_picture_and_keeps_its_colours(tmp_path):
    turned = Image.Exif()
    turned[ExifTags.Base.Orientation] = 6
    path = tmp_path / "a.png"
    mask(RED, BLACK, BLACK).save(path, exif=turned, icc_profile=PROFILE)
    # As a picture, it would be blue.
    assert images.read(path).getpixel((3, 0)) == (0, 0, 255)
    found = masks.read(images.read(path).size, path, [SIZE[::-1]], [path])
    assert found.colors == (BLACK, RED)
    upright = np.rot90(np.resize([1, 0, 0], (4, 5)), -1)
    np.testing.assert_array_equal(found.content, upright)


def test_as_many_colours_as_there_may_be(tmp_path):
    colors = [f"#{i * 1031:06x}" for i in range(masks.MOST_REGIONS)]
    path = save(tmp_path / "a.png", *colors, size=(13, 5))
    found = masks.read((13, 5), path, [(13, 5)], [path])
    assert found.colors == tuple(colors)
    np.testing.assert_array_equal(found.content, np.resize(np.arange(64), (5, 13)))


def check_refused(error, *arguments):
    """The whole of the error's one line, whatever the folder."""
    with pytest.raises(ValueError, match="^[^\n]+$") as caught:
        masks.read(*arguments)
    assert re.sub(r"\S*/", "", str(caught.value)) == error


def test_a_colour_without_a_partner_is_refused(tmp_path):
    both = save(tmp_path / "both.png", RED, GREEN)
    red = save(tmp_path / "red.png", RED)
    white = save(tmp_path / "white.png", RED, GREEN, WHITE)
    advice = ": regions that belong together have the same colour in both masks"
    check_refused(
        f"{GREEN} is in both.png but not in red.png" + advice, SIZE, both, [SIZE], [red]
    )
    check_refused(
        f"{WHITE} is in white.png but not in red.png or both.png" + advice,
        *(SIZE, white, [SIZE, SIZE], [red, both]),
    )
    check_refused(
        f"{WHITE} is in white.png but not in both.png" + advice,
        *(SIZE, both, [SIZE, SIZE], [red, white]),
    )
    masks.read(SIZE, white, [SIZE, SIZE], [red, white])  # nothing to refuse


def test_a_mask_that_is_none_is_refused(tmp_path):
    good = save(tmp_path / "good.png", RED)
    check_refused(
        "style_masks has 1 files for 2 styles: give one for each, in the same order",
        *(SIZE, good, [SIZE, SIZE], [good]),
    )
    check_refused(
        "good.png: the mask has 5 x 4 pixels, its picture 4 x 5: make them the same",
        *(SIZE, good, [(4, 5)], [good]),
    )
    Image.linear_gradient("L").save(tmp_path / "grey.jpg")
    check_refused(
        "grey.jpg: more than 64 colours: draw each region in one colour with hard edges"
        " (no antialiasing), and save the mask as PNG, not JPEG",
        *(SIZE, good, [(256, 256)], [tmp_path / "grey.jpg"]),
    )
    Image.fromarray(np.ones((4, 5), np.uint16)).save(tmp_path / "deep.png")
    check_refused(
        "deep.png: cannot read this picture: grey of more than 8 bits; save it with 8",
        *(SIZE, tmp_path / "deep.png", [SIZE], [good]),
    )


# Scaling.

SIDES = st.integers(1, 40)
INDICES = hnp.arrays(np.uint8, st.tuples(SIDES, SIDES), elements=st.integers(0, 4))


@settings(max_examples=60, deadline=None)
@given(INDICES, st.tuples(SIDES, SIDES))
def test_the_shares_of_a_pixel_sum_to_one(indices, size):
    shares = masks.scaled(indices, 6, size)
    assert shares.shape == (6, size[1], size[0]) and shares.dtype == np.float32
    np.testing.assert_allclose(shares.sum(0), 1, atol=1e-6)
    assert shares.min() >= 0 and shares.max() <= 1 + 1e-6
    assert not shares[5].any()  # a region that the picture lacks
    same = masks.scaled(indices, 6, indices.shape[::-1])
    np.testing.assert_array_equal(same, np.arange(6)[:, None, None] == indices)


def triangles(length, new):
    """Weights [new, length] of the triangular filter, twice as wide as a new pixel."""
    scale = length / new
    centres = (np.arange(new)[:, None] + 0.5) * scale
    away = np.abs(np.arange(length) + 0.5 - centres) / max(scale, 1)
    weights = np.maximum(0, 1 - away)
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("width, height", [(11, 7), (64, 50), (30, 61)])
def test_shares_are_antialiased(width, height):
    indices = np.random.default_rng(0).integers(0, 3, (37, 42), np.uint8)
    down, across = triangles(37, height), triangles(42, width)
    for region, share in enumerate(masks.scaled(indices, 3, (width, height))):
        expected = down @ (indices == region) @ across.T
        np.testing.assert_allclose(share, expected, atol=1e-6)


# Guidance.

HEIGHT, WIDTH = 65, 91  # so that a strip of 64 rows has one row after it


def tiny(tmp_path):
    model, _ = small.write(tmp_path)
    return models.load(model, "random")


def bundled(module):
    def build():
        return module.build(pooling="max", last=None, rngs=nnx.Rngs(0))

    return models.functional(nnx.eval_shape(build))


def layers(forward, params):
    """Name to fields and the shape of the map, of layers that have positions."""
    image = jax.ShapeDtypeStruct((1, HEIGHT, WIDTH, 3), "float32")
    shapes = jax.eval_shape(forward, params, image)
    fields = receptive_fields(forward, params, HEIGHT, WIDTH)
    return {
        name: (x, shapes[name].shape[1:])
        for name, x in fields.items()
        if x.stride and not name.endswith("_pre")
    }


def random_shares():
    shares = np.random.default_rng(0).random((3, HEIGHT, WIDTH)).astype(np.float32)
    shares[1] = 1
    return shares


def inside(first, end, length):
    """What is left of first..end in a picture, or the pixel that is nearest."""
    pixels = range(max(first, 0), min(end, length)) or [min(max(first, 0), length - 1)]
    return slice(pixels[0], pixels[-1] + 1)


def means(shares, fields, shape, channel):
    """The means over a channel's fields, one position after the other."""
    positions = np.moveaxis(np.indices(shape[:2]), 0, -1)
    boxes = fields.boxes(np.full(shape[:2], channel), positions).tolist()
    found = np.zeros((len(shares), *shape[:2]))
    for row, column in np.ndindex(*shape[:2]):
        top, left, bottom, right = boxes[row][column]
        part = inside(top, bottom, HEIGHT), inside(left, right, WIDTH)
        found[:, row, column] = shares[:, *part].mean((1, 2), np.float64)
    return found


@pytest.mark.parametrize("name", ["tiny", "alexnet_small", "vgg_small"])
def test_guidance_is_the_mean_over_receptive_fields(name, tmp_path):
    networks = {"alexnet_small": alexnet_small, "vgg_small": vgg_small}
    network = bundled(networks[name]) if name in networks else tiny(tmp_path)
    shares, seen = random_shares(), layers(*network)
    assert len(seen) >= 3
    for layer, (fields, shape) in seen.items():
        found = masks.guidance(shares, fields, shape)
        assert found.dtype == np.float32 and found.shape == (3, *shape[:2])
        expected = means(shares, fields, shape, 0)
        np.testing.assert_allclose(found, expected, atol=2e-7, err_msg=layer)
        middle = shape[0] // 2, shape[1] // 2
        mattering = np.ix_(range(3), *fields.support(0, *middle))
        np.testing.assert_allclose(
            found[:, *middle], shares[mattering].mean((1, 2)), atol=1e-6, err_msg=layer
        )


def branches(_, x):
    """Fields of 1 x 1 and 5 x 3 pixels, and a frame of positions that see nothing."""
    window = 1, 5, 3, 1
    wide = lax.reduce_window(x, 0.0, lax.add, window, (1, 1, 1, 1), "SAME")
    both = jnp.concatenate([x, wide], -1)
    return {"both": jnp.pad(both, ((0, 0), (7, 9), (6, 4), (0, 0)))}


def test_the_widest_field_counts_and_outside_the_nearest_pixels():
    ((fields, shape),) = layers(branches, {}).values()
    shares = random_shares()
    found = masks.guidance(shares, fields, shape)
    np.testing.assert_allclose(found, means(shares, fields, shape, 5), atol=2e-7)
    np.testing.assert_allclose(found[:, 0, 0], shares[:, 0, 0], atol=1e-7)
    np.testing.assert_allclose(
        found[:, -1, 30], shares[:, -1, 23:26].mean(1), atol=1e-7
    )


def test_sums_are_exact_for_wide_pictures():
    """In float32, a sum of 100,000 pixels has errors of 0.004."""

    def forward(_, x):
        return {"two": x[:, :, 1:] + x[:, :, :-1]}

    fields = receptive_fields(forward, {}, 1, 9)["two"]  # the size does not matter
    share = np.random.default_rng(0).random((1, 1, 100_000)).astype(np.float32)
    found = masks.guidance(share, fields, (1, 99_999, 3))
    expected = (share[..., 1:] + share[..., :-1]) / 2
    np.testing.assert_allclose(found, expected, atol=1e-7)


def test_a_layer_that_sees_all_has_no_guidance():
    def forward(_, x):
        mean = x.mean((1, 2), keepdims=True)
        return {"gated": x * mean, "mean": mean}

    fields = receptive_fields(forward, {}, HEIGHT, WIDTH)
    for name, shape in ("gated", (HEIGHT, WIDTH, 3)), ("mean", (1, 1, 3)):
        with pytest.raises(ValueError, match="see the whole picture.*style_layers"):
            masks.guidance(random_shares(), fields[name], shape)
