"""Pictures survive the trip between files, arrays and the page."""

import errno
import itertools
import os
import struct
import sys
import warnings
import zlib

import jax.numpy as jnp
import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import ExifTags, Image, ImageCms, ImageFile

from nstvis import decoding, images

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
LUMA = np.array([0.299, 0.587, 0.114])
RED, BLUE = (200, 30, 60), (10, 90, 250)

colors = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 6), st.integers(1, 6), st.just(3)),
    elements=st.floats(0, 255, width=32),
)
quick = settings(max_examples=50, deadline=None)


def noise(height=24, width=16, seed=0):
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (height, width, 3), np.uint8)


def blocks():
    """Six colours in squares of 8 pixels, which JPEG can keep nearly as they are."""
    return noise(3, 2).repeat(8, axis=0).repeat(8, axis=1)


def save(image, path, **options):
    """Saves a picture with as little loss as its format allows."""
    image.save(path, quality=100, subsampling=0, lossless=True, **options)


def chunk(name, data):
    checksum = zlib.crc32(name + data)
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)


def png(path, header, rows, extra=b""):
    """Writes a PNG by hand, of kinds that Pillow does not save."""
    header = struct.pack(">IIBBBBB", *header, 0, 0, 0)
    chunks = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks + chunk(b"IEND", b""))


def profile(space, pcs, tags):
    """Builds an ICC version 2 profile."""
    offset, table, body = 132 + 12 * len(tags), b"", b""
    for name, data in tags.items():
        table += name + struct.pack(">II", offset + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    white = struct.pack(">3i", 63190, 65536, 54061)
    header = struct.pack(">I4sI", offset + len(body), b"lcms", 0x02400000)
    header += b"prtr" + space + pcs + bytes(12) + b"acsp" + bytes(28) + white
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def linear_grey():
    white = b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)
    curve = b"curv" + bytes(7) + b"\1" + struct.pack(">H", 256)  # Gamma 1.0.
    return profile(b"GRAY", b"XYZ ", {b"wtpt": white, b"kTRC": curve})


def black_ink_only():
    """A CMYK printer that has run out of cyan, magenta and yellow."""
    table = b"mft1" + bytes(4) + bytes([4, 3, 2, 0])
    table += struct.pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    table += 4 * bytes(range(256)) + 8 * bytes([255, 128, 128, 0, 128, 128])
    return profile(b"CMYK", b"Lab ", {b"A2B0": table + 3 * bytes(range(256))})


# Reading.


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp", "a.jpg", "a.gif"])
def test_reads_every_format(tmp_path, name):
    save(Image.fromarray(blocks()), tmp_path / name)
    image = images.read(str(tmp_path / name))
    assert image.mode == "RGB"
    np.testing.assert_allclose(images.to_array(image), blocks(), atol=3)


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 77, (77, 77, 77)),
        ("LA", (77, 255), (77, 77, 77)),
        ("LA", (77, 9), (77, 77, 77, 9)),
        ("RGB", RED, RED),
        ("RGBA", (*RED, 255), RED),
        ("RGBA", (*RED, 0), (*RED, 0)),
        ("I;16", 100 * 257, (100, 100, 100)),
    ],
)
def test_reads_png_modes(tmp_path, mode, color, expected):
    Image.new(mode, (3, 2), color).save(tmp_path / "a.png")
    assert images.read(tmp_path / "a.png").getpixel((2, 1)) == expected


def test_reads_palettes(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([*RED, *BLUE])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "opaque.png")
    image.save(tmp_path / "glass.png", transparency=bytes([128, 255]))
    image.save(tmp_path / "key.gif", transparency=1)
    opaque, glass, key = (
        images.read(tmp_path / name) for name in ("opaque.png", "glass.png", "key.gif")
    )
    assert [opaque.getpixel((x, 0)) for x in (0, 1)] == [RED, BLUE]
    assert [glass.getpixel((x, 0)) for x in (0, 1)] == [(*RED, 128), (*BLUE, 255)]
    assert np.asarray(key)[0, :, 3].tolist() == [255, 0]


def test_reads_a_transparent_color(tmp_path):
    key = chunk(b"tRNS", struct.pack(">3H", *RED))
    png(tmp_path / "a.png", (2, 1, 8, 2), b"\0" + bytes(RED + BLUE), key)
    image = images.read(tmp_path / "a.png")
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [(*RED, 0), (*BLUE, 255)]
    image.convert("RGB").save(tmp_path / "b.png")
    assert images.read(tmp_path / "b.png").mode == "RGB"


def test_reads_16_bit_rgb_png(tmp_path):
    row = struct.pack(">3H", *(257 * value for value in RED))
    png(tmp_path / "a.png", (1, 1, 16, 2), b"\0" + row)
    assert images.read(tmp_path / "a.png").getpixel((0, 0)) == RED


def test_scales_wide_grey(tmp_path):
    for dtype, order in itertools.product((np.uint16, np.int16), "<>"):
        grey = np.array([[0, 128, 129, 25700, 32767]], dtype)
        tifffile.imwrite(tmp_path / "a.tif", grey, byteorder=order)
        array = images.to_array(images.read(tmp_path / "a.tif"))
        np.testing.assert_array_equal(array[0, :, 1], [0, 0, 1, 100, 127])


def test_scales_float_grey_in_unit_range_only(tmp_path):
    for top, expected in [(1, [0, 128, 255]), (200, [0, 0, 200]), (300, [0, 0, 255])]:
        tifffile.imwrite(tmp_path / "a.tif", np.array([[0, 0.5, top]], np.float32))
        array = images.to_array(images.read(tmp_path / "a.tif"))
        np.testing.assert_array_equal(array[0, :, 0], expected)


def test_reads_the_first_frame(tmp_path):
    first, second = Image.new("RGB", (4, 4), RED), Image.new("RGB", (4, 4), BLUE)
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    assert images.read(tmp_path / "a.gif").getpixel((0, 0)) == RED


@pytest.mark.parametrize("suffix", ["jpg", "png", "tif"])
def test_applies_exif_orientation(tmp_path, suffix):
    upright = blocks()
    turned = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }
    for orientation, stored in turned.items():
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        path = tmp_path / f"{orientation}.{suffix}"
        save(Image.fromarray(np.ascontiguousarray(stored)), path, exif=exif)
        array = images.to_array(images.read(path))
        np.testing.assert_allclose(array, upright, atol=3, err_msg=path.name)


def test_a_picture_opened_with_pillow_is_read_alike(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(noise()).save(tmp_path / "a.png", exif=turned)
    with Image.open(tmp_path / "a.png") as opened:
        ours = decoding.normalized(opened)
    np.testing.assert_array_equal(ours, images.read(tmp_path / "a.png"))
    assert ours.size == noise().shape[:2]


def test_sixteen_bit_tiff_keeps_transparency(tmp_path):
    colors = np.dstack([noise().astype(np.float32), np.full(noise().shape[:2], 51.0)])
    images.write(tmp_path / "a.tif", colors)
    samples = tifffile.imread(tmp_path / "a.tif")
    assert samples.dtype == np.uint16
    assert (samples[..., 3] == 51 * 257).all()


# Colour profiles.


def test_srgb_profile_changes_nothing(tmp_path):
    Image.fromarray(noise()).save(tmp_path / "a.png", icc_profile=SRGB)
    array = images.to_array(images.read(tmp_path / "a.png"))
    np.testing.assert_allclose(array, noise(), atol=1)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_profile_is_converted_to_srgb(tmp_path, mode):
    swapped = SRGB.replace(b"rXYZ", b"tmp ").replace(b"bXYZ", b"rXYZ")
    swapped = swapped.replace(b"tmp ", b"bXYZ")
    image = Image.new("RGBA", (3, 2), (*RED, 77)).convert(mode)
    image.save(tmp_path / "a.png", icc_profile=swapped)
    read = images.read(tmp_path / "a.png")
    np.testing.assert_allclose(images.to_array(read)[0, 0], RED[::-1], atol=1)
    assert read.mode == "RGB" or read.getchannel("A").getextrema() == (77, 77)
    read.save(tmp_path / "b.png")  # The profile must not be applied twice.
    assert images.read(tmp_path / "b.png").getpixel((0, 0)) == read.getpixel((0, 0))


@pytest.mark.parametrize(("mode", "color"), [("L", 128), ("LA", (128, 77))])
def test_grey_profile_is_converted_to_srgb(tmp_path, mode, color):
    Image.new(mode, (3, 2), color).save(tmp_path / "a.png", icc_profile=linear_grey())
    array = images.to_array(images.read(tmp_path / "a.png"))
    np.testing.assert_allclose(array[0, 0], 188, atol=1)


def test_grey_picture_may_have_a_color_profile(tmp_path, caplog):
    Image.new("L", (3, 2), 99).save(tmp_path / "a.png", icc_profile=SRGB)
    assert images.read(tmp_path / "a.png").getpixel((0, 0)) == (99, 99, 99)
    assert not caplog.records


@pytest.mark.parametrize(
    ("icc", "expected"), [(None, (255, 0, 0)), (black_ink_only(), (255, 255, 255))]
)
def test_reads_cmyk_jpeg(tmp_path, icc, expected):
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    image.save(tmp_path / "a.jpg", quality=100, icc_profile=icc)
    array = images.to_array(images.read(tmp_path / "a.jpg"))
    np.testing.assert_allclose(array[4, 4], expected, atol=3)


@pytest.mark.parametrize("icc", [b"nonsense", SRGB[:200], black_ink_only()])
def test_useless_profile_is_ignored_with_a_warning(tmp_path, caplog, icc):
    path = tmp_path / "a.png"
    Image.new("RGB", (3, 2), RED).save(path, icc_profile=icc)
    image = images.read(path)
    assert image.getpixel((0, 0)) == RED
    assert not image.info
    assert caplog.messages[0].startswith(f"{path}: colour profile ignored")


# Files that cannot be read.


def refusal(path, error: type[Exception] = ValueError):
    with pytest.raises(error) as caught:
        images.read(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize("pillow_limit", [None, Image.MAX_IMAGE_PIXELS])
def test_refuses_bombs_without_decoding(tmp_path, monkeypatch, pillow_limit):
    png(tmp_path / "a.png", (60_000, 60_000, 8, 2), b"\0")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillow_limit)
    monkeypatch.setattr(
        ImageFile.ImageFile, "load", lambda self: pytest.fail("decoded")
    )
    assert "178,956,970 pixels" in refusal(tmp_path / "a.png")
    assert Image.MAX_IMAGE_PIXELS == pillow_limit


def test_does_not_warn_below_the_limit(tmp_path, monkeypatch):
    Image.new("RGB", (5, 3)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert images.read(tmp_path / "a.png").size == (5, 3)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.webp", "a.jpg", "a.gif"])
def test_refuses_truncated_files(tmp_path, name):
    path = tmp_path / name
    Image.fromarray(noise(64, 64)).save(path)
    whole = path.read_bytes()
    for kept in (0, 4, len(whole) // 2, len(whole) * 9 // 10):
        path.write_bytes(whole[:kept])
        refusal(path)


def test_refuses_text_folders_and_nan(tmp_path):
    (tmp_path / "a.png").write_text("a picture of a cat")
    tifffile.imwrite(tmp_path / "nan.tif", np.array([[0, np.nan]], np.float32))
    assert "PNG" in refusal(tmp_path / "a.png")
    assert "folder" in refusal(tmp_path)
    assert "finite" in refusal(tmp_path / "nan.tif")


def test_missing_file_names_the_nearest(tmp_path):
    (tmp_path / "starry_night.jpg").touch()
    message = refusal(tmp_path / "stary_night.jpg", FileNotFoundError)
    assert message.endswith("did you mean starry_night.jpg?")
    assert refusal(tmp_path / "none" / "a.png", FileNotFoundError)


# Arrays and sizes.


@quick
@given(hnp.arrays(np.uint8, (3, 4, 3)))
def test_array_round_trip(array):
    floats = images.to_array(images.to_image(array))
    assert floats.dtype == np.float32
    np.testing.assert_array_equal(floats, array)


def test_to_image_clips_and_rounds():
    expected = [[[0, 0, 1], [254, 255, 255]]]
    for module in (np, jnp):
        array = module.array([[[-5.0, 0.4, 0.6], [254.4, 254.6, 999.0]]])
        np.testing.assert_array_equal(np.asarray(images.to_image(array)), expected)


def test_to_image_refuses_what_is_not_finite():
    for bad in (np.nan, np.inf, -np.inf):
        with pytest.raises(ValueError, match="finite"):
            images.to_image(np.full((2, 2, 3), bad))


def test_to_image_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"\(3, 4, 5\)"):
        images.to_image(np.zeros((3, 4, 5)))


def test_alpha_round_trip(tmp_path):
    alpha = Image.linear_gradient("L").resize((16, 24))
    image = images.to_image(noise(), alpha)
    for name in ("a.png", "a.tiff"):
        images.write(tmp_path / name, image)
        assert images.read(tmp_path / name).tobytes() == image.tobytes()
    assert images.to_image(noise(48, 32), alpha).getchannel("A").size == (32, 48)


@quick
@given(*[st.integers(1, 3000)] * 3)
def test_fitted_size(width, height, long_side):
    fitted = images.fitted_size((width, height), long_side)
    assert max(fitted) == long_side
    assert min(fitted) >= 1
    exact = min(width, height) * long_side / max(width, height)
    assert min(fitted) == pytest.approx(exact, abs=1)


def test_resize():
    image = Image.new("RGB", (900, 3), RED)
    assert images.resize(image, 30).size == (30, 1)
    assert images.resize(image, 1800).size == (1800, 6)
    with pytest.raises(ValueError, match="long_side"):
        images.resize(image, 0)


def test_resize_hides_transparent_colors():
    image = Image.new("RGBA", (64, 64), (0, 255, 0, 0))
    image.paste((255, 0, 0, 255), (0, 0, 29, 64))
    small = np.asarray(images.resize(image, 8)).reshape(-1, 4)
    visible = small[small[:, 3] > 0]
    assert 0 < len(visible) < len(small)
    np.testing.assert_array_equal(visible[:, :2], [[255, 0]] * len(visible))


# Writing.


SETTINGS = {"layer": "relu4_2", "steps": 500, "lr": 2.5, "note": "é\n", "tiles": [1]}


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.JPEG", "a.tif", "a.tiff"])
def test_write_round_trip(tmp_path, name):
    path = tmp_path / name
    for array in (blocks().astype(np.float32), jnp.array(blocks())):
        images.write(path, array, SETTINGS)
        np.testing.assert_allclose(images.to_array(images.read(path)), blocks(), atol=3)
        assert images.read_settings(path) == SETTINGS
        images.write(path, images.read(path))
        np.testing.assert_allclose(images.to_array(images.read(path)), blocks(), atol=3)
        with pytest.raises(ValueError, match=f"^{path}: holds no settings"):
            images.read_settings(path)


@pytest.mark.parametrize("comment", [b"taken by a cat", b"[1]", b"\xff"])
def test_comments_of_others_are_no_settings(tmp_path, comment):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", comment=comment)
    with pytest.raises(ValueError, match="holds no settings"):
        images.read_settings(tmp_path / "a.jpg")


def test_settings_are_not_inherited(tmp_path):
    images.write(tmp_path / "a.jpg", noise(), SETTINGS)
    with Image.open(tmp_path / "a.jpg") as image:
        images.write(tmp_path / "b.jpg", image)
    with pytest.raises(ValueError, match="holds no settings"):
        images.read_settings(tmp_path / "b.jpg")


def test_tiff_keeps_16_bits(tmp_path):
    ramp = np.linspace(0, 255, 5000).repeat(3).reshape(50, 100, 3)
    images.write(tmp_path / "a.tif", ramp)
    samples = tifffile.imread(tmp_path / "a.tif")
    assert samples.dtype == np.uint16
    assert len(np.unique(samples)) == 5000
    np.testing.assert_allclose(samples / 257, ramp, atol=0.5 / 257 + 1e-4)


def test_jpeg_is_flattened_on_white_at_full_chroma(tmp_path):
    images.write(tmp_path / "glass.jpg", Image.new("RGBA", (8, 8), (0, 0, 0, 0)))
    assert images.read(tmp_path / "glass.jpg").getpixel((4, 4)) == (255, 255, 255)
    stripes = np.tile(np.array([RED, BLUE], np.uint8), (16, 8, 1))
    images.write(tmp_path / "stripes.jpg", Image.fromarray(stripes))
    array = images.to_array(images.read(tmp_path / "stripes.jpg"))
    np.testing.assert_allclose(array, stripes, atol=12)


def test_write_refuses_unknown_suffixes_and_folders(tmp_path):
    with pytest.raises(ValueError, match=r"unknown suffix '.bmp'; use .png, .jpg"):
        images.write(tmp_path / "a.bmp", noise())
    with pytest.raises(FileNotFoundError, match="no such folder"):
        images.write(tmp_path / "none" / "a.png", noise())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.tif", "a.TIFF"])
def test_without_tifffile_one_line_says_what_to_install(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "tifffile", None)
    for refuse in (images.check_suffix, lambda path: images.write(path, noise())):
        with pytest.raises(ValueError, match=r"^.*: writing TIFF takes tifffile: pip "):
            refuse(tmp_path / name)
    images.check_suffix("a.png")
    Image.fromarray(noise()).save(tmp_path / "read.tif")  # reading takes Pillow alone
    assert images.read(tmp_path / "read.tif").size == (16, 24)


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_disk_halfway(image, file, *_, **__):
    file.write(b"half a picture")
    full_disk()


@pytest.mark.parametrize(
    ("owner", "name", "failure"),
    [(os, "replace", full_disk), (Image.Image, "save", full_disk_halfway)],
)
def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch, owner, name, failure):
    path = tmp_path / "a.png"
    path.write_bytes(b"old")
    monkeypatch.setattr(owner, name, failure)
    with pytest.raises(OSError, match=f"^{path}: cannot write: No space left"):
        images.write(path, noise())
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_never_writes_what_is_not_finite(tmp_path, name):
    with pytest.raises(ValueError, match=f"^{tmp_path / name}: .*finite"):
        images.write(tmp_path / name, np.full((2, 2, 3), np.nan))
    assert not list(tmp_path.iterdir())


def test_written_files_have_ordinary_permissions(tmp_path):
    (tmp_path / "ordinary").touch()
    images.write(tmp_path / "a.png", noise())
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1


# Colours.


def statistics(array):
    pixels = np.asarray(array, np.float64).reshape(-1, 3)
    return pixels.mean(0), np.cov(pixels, rowvar=False, bias=True)


def grey(array):
    return np.asarray(array)[..., :1].repeat(3, axis=-1)


@pytest.mark.parametrize(
    ("style", "content"),
    [
        (noise(), 100 + 0.3 * noise(9, 7, seed=1) ** 1.1),
        (noise(), grey(noise(9, 7, seed=1))),
        (grey(noise()), grey(noise(9, 7, seed=1))),
        (noise(), np.full((5, 5, 3), 40.0)),
    ],
)
def test_match_colors_matches_statistics(style, content):
    matched = images.match_colors(style, content)
    assert matched.dtype == np.float32
    for got, wanted in zip(statistics(matched), statistics(content)):
        np.testing.assert_allclose(got, wanted, atol=1e-3)


def test_match_colors_of_itself_is_the_identity():
    np.testing.assert_allclose(
        images.match_colors(noise(), noise()), noise(), atol=1e-3
    )


@quick
@given(colors, colors)
def test_match_colors_is_finite_and_keeps_the_mean(style, content):
    matched = images.match_colors(style, content)
    np.testing.assert_allclose(
        statistics(matched)[0], statistics(content)[0], atol=1e-3
    )


@quick
@given(colors, st.integers(0, 99))
def test_keep_luminance_keeps_luminance_and_chrominance(result, seed):
    content = noise(*result.shape[:2], seed=seed)
    kept = images.keep_luminance(result, content)
    np.testing.assert_allclose(kept @ LUMA, result @ LUMA, atol=1e-3)
    yiq_chroma = np.array([[0.596, -0.274, -0.322], [0.211, -0.523, 0.312]]).T
    np.testing.assert_allclose(kept @ yiq_chroma, content @ yiq_chroma, atol=1e-3)


def test_keep_luminance_refuses_other_sizes():
    with pytest.raises(ValueError, match="sizes differ"):
        images.keep_luminance(noise(2, 3), noise(3, 2))


# Contact sheets.


def test_sheet_places_pictures_and_labels():
    large, small = Image.new("RGB", (60, 40), RED), Image.new("RGB", (15, 10), BLUE)
    page = images.sheet([large, small, large], ["a", "b", "c"], gap=10)
    line = (page.height - 10) // 2 - 50  # What is left in a row for its labels.
    array = np.asarray(page).astype(int)
    assert page.width == 10 + 2 * (60 + 10)
    np.testing.assert_array_equal(array[10:50, 10:70], np.full((40, 60, 3), RED))
    np.testing.assert_array_equal(array[10:50, 80:140], np.full((40, 60, 3), BLUE))
    for left in (10, 80):
        text = array[50 : 50 + line, left : left + 60]
        assert text.max() > 150
    np.testing.assert_array_equal(array[-60:, 80:], np.full((60, 70, 3), 24))


def test_sheet_shows_the_background_through_transparency():
    clear = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    page = images.sheet([clear] * 3, [""] * 3, columns=9, background=(250, 240, 230))
    assert page.getcolors() == [(page.width * page.height, (250, 240, 230))]
    assert page.width == 8 + 3 * 28


def test_sheet_shortens_long_labels():
    page = images.sheet([Image.new("RGB", (80, 20))], ["long " * 99], gap=20)
    array = np.asarray(page)
    assert array[:, 20:100].max() > 150
    assert array[:, :20].max() == array[:, 100:].max() == 24


@pytest.mark.parametrize("labels", [[], ["a", "b"]])
def test_sheet_wants_a_label_for_each_picture(labels):
    with pytest.raises(ValueError, match="a label for each"):
        images.sheet([Image.new("RGB", (2, 2))] * min(1, len(labels)), labels)
