"""Decodes picture files as they are meant to look: orientation, colours, limits."""

import contextlib
import difflib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import PIL
from PIL import Image, ImageCms, ImageOps

# Of one's own picture; Pillow, too, refuses to decode more.
MAX_PIXELS = 178_956_970
# Of an image of a data set, whose files many threads decode and nobody has looked at: the
# decoders take up to 23 bytes a pixel.
MAX_IMAGE_PIXELS = 40_000_000

_FORMATS = ["JPEG", "PNG", "WEBP", "TIFF", "GIF"]

logger = logging.getLogger(__name__)


def decode(encoded: bytes, name: str, as_stored: bool = False) -> Image.Image:
    """Decodes an image of a data set as `images.read` reads a file called `name`.

    A JPEG of more than `MAX_IMAGE_PIXELS` is decoded to a quarter of its sides, for which
    its coefficients of lower frequencies do; other images, and progressive JPEGs, of that
    size are refused.

    Args:
        encoded: The bytes.
        name: For errors.
        as_stored: Whether EXIF orientation, colour profile and opacity are ignored, as
            torchvision does; then of mode RGB.

    Raises:
        ValueError: It is damaged, or has more than `MAX_IMAGE_PIXELS` and is no JPEG.
    """
    with _decoded(io.BytesIO(encoded), name, of_data_set=True) as picture:
        return picture.convert("RGB") if as_stored else normalized(picture)


def normalized(picture: Image.Image) -> Image.Image:
    """Converts a picture opened with Pillow to what `images.read` returns for its file."""
    name = getattr(picture, "filename", "") or "a picture"
    return _in_srgb(ImageOps.exif_transpose(picture), name)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Image.Image]:
    """Opens a picture file; any error inside becomes one line that names its path."""
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; give a picture file")
    if path.exists() and not path.is_file():  # a pipe, that nobody may ever write to
        raise ValueError(f"{path}: is no regular file; give a picture file")
    if not path.exists():
        names = {entry.stem: entry.name for entry in path.parent.glob("*")}
        close = difflib.get_close_matches(path.stem, names, n=1)
        hint = f"; did you mean {names[close[0]]}?" if close else ""
        raise FileNotFoundError(f"{path}: no such file{hint}")
    with _decoded(path, str(path)) as picture:
        yield picture


@contextlib.contextmanager
def _decoded(
    file: Path | BinaryIO, name: str, of_data_set: bool = False
) -> Iterator[Image.Image]:
    most = MAX_IMAGE_PIXELS if of_data_set else MAX_PIXELS
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # from half the limit on; stray metadata
            with Image.open(file, formats=_FORMATS) as picture:
                if (
                    of_data_set
                    and _pixels(picture) > most
                    and not _progressive(picture)
                ):
                    picture.draft(None, (picture.width // 4, picture.height // 4))
                if _pixels(picture) > most:
                    raise Image.DecompressionBombError
                yield picture
    except Image.DecompressionBombError as error:
        line = f"{name}: more than {most:,} pixels; scale it down first"
        raise ValueError(line) from error
    except PIL.UnidentifiedImageError as error:
        message = f"{name}: not readable as {', '.join(_FORMATS)}; convert it first"
        raise ValueError(message) from error
    except Exception as error:  # decoders raise almost anything on a broken file
        raise ValueError(f"{name}: cannot read this picture: {error}") from error


def _progressive(picture: Image.Image) -> bool:
    """Whether all coefficients, in gigabytes, are kept while a JPEG is decoded."""
    return bool(picture.info.get("progressive"))


def _pixels(picture: Image.Image) -> int:
    return picture.width * picture.height


def _in_srgb(picture: Image.Image, name: str) -> Image.Image:
    """Converts a picture of any mode to sRGB, with alpha where any is transparent."""
    icc = picture.info.get("icc_profile")
    if picture.mode.startswith(("I", "F")):
        picture = _eight_bits(picture)
    mode = {"1": "L", "L": "L", "LA": "L", "CMYK": "CMYK"}.get(picture.mode, "RGB")
    alpha = None
    if picture.has_transparency_data:
        picture = _in_mode(picture, "RGBA")
        alpha = picture.getchannel("A")
    picture = _in_mode(picture, mode)  # which frees what it was before the next copy
    picture = _to_srgb(picture, icc, name)
    if alpha is not None and alpha.getextrema() != (255, 255):
        picture.putalpha(alpha)
    # Pillow would write what is left here, such as a comment, into the next file.
    picture.info.clear()
    return picture


def _in_mode(picture: Image.Image, mode: str) -> Image.Image:
    """Converts a picture; Pillow's `convert` would copy one that is in this mode."""
    return picture if picture.mode == mode else picture.convert(mode)


def _eight_bits(picture: Image.Image) -> Image.Image:
    """Scales grey of more than 8 bits to mode L; Pillow's `convert` would clip it."""
    values = np.asarray(picture)
    floating = picture.mode == "F"
    shares = floating and values.min() >= 0 and values.max() <= 1
    grey = np.empty(values.shape, np.uint8)
    for first in range(0, len(values), 64):  # some rows at a time, as steps make copies
        rows = values[first : first + 64].astype(np.float32)
        if not np.isfinite(rows).all():
            raise ValueError("the grey levels are not all finite numbers")
        if not floating:
            rows = rows / 257
        elif shares:
            rows = rows * 255
        grey[first : first + 64] = np.rint(np.clip(rows, 0, 255))
    return Image.fromarray(grey)


def _to_srgb(picture: Image.Image, icc: bytes | None, name: str) -> Image.Image:
    """Converts mode L, RGB or CMYK to RGB through the picture's colour profile."""
    if icc is None:
        return _in_mode(picture, "RGB")
    if picture.mode == "L" and icc[16:20] == b"RGB ":  # the profile's colour space
        picture = picture.convert("RGB")
    try:
        srgb = ImageCms.createProfile("sRGB")
        profile = ImageCms.getOpenProfile(io.BytesIO(icc))
        mode = picture.mode
        return ImageCms.buildTransform(profile, srgb, mode, "RGB").apply(picture)
    except (OSError, ImageCms.PyCMSError) as error:
        logger.warning("%s: colour profile ignored: %s", name, error)
        return picture.convert("RGB")
