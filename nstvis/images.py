"""Pictures in and out: files, arrays, sizes, colours and contact sheets."""

import contextlib
import difflib
import io
import json
import logging
import math
import os
import uuid
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import PIL
import tifffile
from PIL import ExifTags, Image, ImageCms, ImageDraw, ImageFont, ImageOps
from PIL.Image import Resampling
from PIL.PngImagePlugin import PngInfo

# The size at which Pillow, too, stops warning and refuses to decode.
MAX_PIXELS = 178_956_970

GREY = 127  # where an image has no pixels

_FORMATS = ["JPEG", "PNG", "WEBP", "TIFF", "GIF"]
_LUMA = np.array([0.299, 0.587, 0.114])

logger = logging.getLogger(__name__)


def read(path: str | os.PathLike) -> Image.Image:
    """Reads a picture file as it is meant to look, in 8-bit sRGB.

    EXIF orientation and an embedded colour profile are applied. Integer grey wider
    than 8 bits counts as 0..65535; floating-point grey as 0..1 if all of it lies
    there, else as 0..255. What lies outside is clipped. An animation gives its first
    frame.

    Args:
        path: A JPEG, PNG, WebP, TIFF or GIF file of at most `MAX_PIXELS` pixels.

    Returns:
        A picture of mode RGBA if any of its pixels is transparent, else RGB.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is too large, broken, or not a picture.
    """
    with _opened(Path(path)) as image:
        return normalized(image)


def decode(encoded: bytes, name: str) -> Image.Image:
    """Does to the bytes of a picture file what `read` does to a file called `name`."""
    with _decoded(io.BytesIO(encoded), name) as image:
        return normalized(image)


def normalized(image: Image.Image) -> Image.Image:
    """Does to a picture opened with Pillow what `read` does to a file."""
    name = getattr(image, "filename", "") or "a picture"
    return _in_srgb(ImageOps.exif_transpose(image), name)


def to_array(image: Image.Image) -> np.ndarray:
    """Returns the colours of a picture, float32 [height, width, 3] in 0..255.

    Transparency is dropped, not blended; carry `image.getchannel("A")` separately.
    """
    return np.array(image.convert("RGB"), np.float32)


def to_image(array: npt.ArrayLike, alpha: Image.Image | None = None) -> Image.Image:
    """Turns colours into a picture, clipped to 0..255 and rounded to nearest.

    Args:
        array: Finite colours, [height, width, 3].
        alpha: Transparency, mode L; it is resized to the picture.

    Returns:
        A picture of mode RGB, or RGBA with `alpha`.
    """
    image = Image.fromarray(_quantized(_colors(array), np.uint8))
    if alpha is not None:
        image.putalpha(alpha.resize(image.size, Resampling.LANCZOS))
    return image


def fitted_size(size: tuple[int, int], long_side: int) -> tuple[int, int]:
    """Scales (width, height) so that the longer is `long_side`, neither below 1."""
    if long_side < 1:
        raise ValueError(f"long_side must be at least 1 pixel, not {long_side}")
    width, height = (max(1, round(s * long_side / max(size))) for s in size)
    return width, height


def resize(image: Image.Image, long_side: int) -> Image.Image:
    """Scales a picture up or down to `long_side` pixels, keeping its aspect ratio."""
    # Pillow premultiplies RGBA while it resizes: hidden colours do not bleed.
    return image.resize(fitted_size(image.size, long_side), Resampling.LANCZOS)


def write(
    path: str | os.PathLike,
    picture: Image.Image | npt.ArrayLike,
    settings: dict[str, Any] | None = None,
) -> None:
    """Writes a picture file, whole or not at all.

    Args:
        path: Ends in .png, .jpg, .jpeg (transparency is blended with white), .tif or
            .tiff (16 bits per channel from an array). An existing file is replaced.
        picture: An image, or colours [height, width, 3] in 0..255; a .tif takes a
            fourth channel, transparency, too.
        settings: What made the picture, as JSON-able values; kept in the file's
            metadata for `read_settings`.
    """
    path = Path(path)
    check_suffix(path)
    encode = _ENCODERS[path.suffix.lower()]
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: no such folder; make {path.parent} first")
    note = None if settings is None else json.dumps(settings)
    with _replacing(path) as file:
        encode(file, picture, note)


def check_suffix(path: str | os.PathLike) -> None:
    """Raises a ValueError if `write` knows no format of this suffix."""
    suffix = Path(path).suffix
    if suffix.lower() not in _ENCODERS:
        accepted = ", ".join(_ENCODERS)
        raise ValueError(f"{path}: unknown suffix {suffix!r}; use {accepted}")


def read_settings(path: str | os.PathLike) -> dict[str, Any]:
    """Returns the settings that `write` stored in a picture file.

    Raises:
        ValueError: The file holds none.
    """
    with _opened(Path(path)) as image:
        description = image.getexif().get(ExifTags.Base.ImageDescription)
        notes = image.info.get("nstvis"), image.info.get("comment"), description
    for note in filter(None, notes):
        with contextlib.suppress(ValueError):
            if isinstance(settings := json.loads(note), dict):
                return settings
    raise ValueError(f"{path}: holds no settings; was it written by nstvis?")


def match_colors(style: npt.ArrayLike, content: npt.ArrayLike) -> np.ndarray:
    """Recolours the style with the colour statistics of the content.

    The affine map of Gatys et al. 2016 (arXiv:1606.05897, section 3): the mean and
    covariance of the result equal the content's. Directions in which the style does
    not vary (all but one, for a grey style) stay without variation.

    Args:
        style: Colours, [height, width, 3].
        content: Colours of any height and width.

    Returns:
        The style's new colours, float32, not clipped.
    """
    style, content = _colors(style, np.float64), _colors(content, np.float64)
    _, unscaled = _covariance_roots(style)
    scaled, _ = _covariance_roots(content)
    matched = (style - style.mean((0, 1))) @ (unscaled @ scaled)
    return (matched + content.mean((0, 1))).astype(np.float32)


def keep_luminance(result: npt.ArrayLike, content: npt.ArrayLike) -> np.ndarray:
    """Joins the luminance of the result with the chrominance (YIQ) of the content.

    Args:
        result: Colours, [height, width, 3] in 0..255.
        content: Colours of the same shape.

    Returns:
        The joined colours, float32, not clipped.
    """
    result, content = _colors(result), _colors(content)
    if result.shape != content.shape:
        raise ValueError(f"sizes differ: {result.shape[:2]} and {content.shape[:2]}")
    # In YIQ, a change of luminance alone moves R, G and B by the same amount.
    change = (result - content) @ _LUMA
    return (content + change[..., None]).astype(np.float32)


def sheet(
    images: Sequence[Image.Image],
    labels: Sequence[str],
    columns: int | None = None,
    gap: int = 8,
    background: tuple[int, int, int] = (24, 24, 24),
) -> Image.Image:
    """Lays out labelled pictures on one page, row by row.

    Args:
        images: Pictures; smaller ones are scaled up to the cell of the largest.
        labels: A line of text below each picture, shortened where it is too long.
        columns: Pictures in a row; by default about as many as there are rows.
        gap: Pixels between pictures, and around them all.
        background: Colour of the page, RGB in 0..255.
    """
    if not images or len(images) != len(labels):
        counts = f"{len(images)} and {len(labels)}"
        raise ValueError(f"a sheet needs pictures and a label for each, not {counts}")
    columns = min(columns or math.ceil(math.sqrt(len(images))), len(images))
    rows = math.ceil(len(images) / columns)
    cell = max(image.width for image in images), max(image.height for image in images)
    font_size = max(12, cell[0] // 28)
    across, down = cell[0] + gap, cell[1] + 2 * font_size + gap
    page = Image.new("RGB", (gap + columns * across, gap + rows * down), background)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(font_size)
    ink = "gainsboro" if np.dot(_LUMA, background) < 128 else "dimgray"
    for place, (image, label) in enumerate(zip(images, labels)):
        left, top = gap + place % columns * across, gap + place // columns * down
        image = ImageOps.pad(image.convert("RGBA"), cell, Resampling.LANCZOS, color=0)
        page.paste(image, (left, top), image)
        middle = left + cell[0] // 2, top + cell[1] + font_size
        label = _shortened(label, font, cell[0])
        draw.text(middle, label, ink, font, anchor="mm")
    return page


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """Opens a picture file; whatever fails inside becomes one line with its path."""
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; give a picture file")
    if not path.exists():
        names = {entry.stem: entry.name for entry in path.parent.glob("*")}
        close = difflib.get_close_matches(path.stem, names, n=1)
        hint = f"; did you mean {names[close[0]]}?" if close else ""
        raise FileNotFoundError(f"{path}: no such file{hint}")
    with _decoded(path, str(path)) as image:
        yield image


@contextlib.contextmanager
def _decoded(file: Path | BinaryIO, name: str) -> Iterator[Image.Image]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # About half the limit; stray metadata.
            with Image.open(file, formats=_FORMATS) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                yield image
    except Image.DecompressionBombError as error:
        message = f"{name}: more than {MAX_PIXELS:,} pixels; scale it down first"
        raise ValueError(message) from error
    except PIL.UnidentifiedImageError as error:
        message = f"{name}: not readable as {', '.join(_FORMATS)}; convert it first"
        raise ValueError(message) from error
    except Exception as error:  # Decoders raise almost anything on a broken file.
        raise ValueError(f"{name}: cannot read this picture: {error}") from error


def _in_srgb(image: Image.Image, name: str) -> Image.Image:
    """Converts a decoded picture of any mode to sRGB, with alpha where it matters."""
    profile = image.info.get("icc_profile")
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image)
    mode = {"1": "L", "L": "L", "LA": "L", "CMYK": "CMYK"}.get(image.mode, "RGB")
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
    picture = _to_srgb(image.convert(mode), profile, name)
    if alpha is not None and alpha.getextrema() != (255, 255):
        picture.putalpha(alpha)
    # Pillow would write what is left here, such as a comment, into the next file.
    picture.info.clear()
    return picture


def _eight_bits(image: Image.Image) -> Image.Image:
    """Scales wide grey to mode L, where Pillow's `convert` would clip it."""
    values = np.asarray(image, np.float32)
    if image.mode != "F":
        values = values / 257
    elif values.min() >= 0 and values.max() <= 1:
        values = values * 255
    return Image.fromarray(_quantized(values, np.uint8))


def _to_srgb(image: Image.Image, icc: bytes | None, name: str) -> Image.Image:
    """Converts mode L, RGB or CMYK to RGB through the picture's colour profile."""
    if icc is None:
        return image.convert("RGB")
    if image.mode == "L" and icc[16:20] == b"RGB ":  # The space that it applies to.
        image = image.convert("RGB")
    try:
        srgb = ImageCms.createProfile("sRGB")
        profile = ImageCms.getOpenProfile(io.BytesIO(icc))
        return ImageCms.buildTransform(profile, srgb, image.mode, "RGB").apply(image)
    except (OSError, ImageCms.PyCMSError) as error:
        logger.warning("%s: colour profile ignored: %s", name, error)
        return image.convert("RGB")


def _colors(
    array: npt.ArrayLike,
    dtype: npt.DTypeLike = np.float32,
    channels: tuple[int, ...] = (3,),
) -> np.ndarray:
    colors = np.asarray(array, dtype)
    if colors.ndim != 3 or colors.shape[-1] not in channels:
        raise ValueError(f"colours must be [height, width, 3], not {colors.shape}")
    return colors


def _quantized(values: np.ndarray, dtype: type[np.unsignedinteger]) -> np.ndarray:
    """Spreads 0..255 over the whole range of an integer type."""
    if not np.isfinite(values).all():
        raise ValueError("the colours are not all finite numbers")
    scale = np.iinfo(dtype).max // 255
    return np.rint(np.clip(values, 0, 255) * scale).astype(dtype)


def _covariance_roots(colors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the symmetric square root of the covariance, and its pseudo-inverse."""
    covariance = np.cov(colors.reshape(-1, 3), rowvar=False, bias=True)
    variances, axes = np.linalg.eigh(covariance)
    # A grey picture varies along one axis only; the others hold rounding errors.
    varies = variances > 1e-10 * variances[-1]
    deviations = np.sqrt(variances, where=varies, out=np.zeros(3))
    inverses = np.divide(1, deviations, where=varies, out=np.zeros(3))
    return axes * deviations @ axes.T, axes * inverses @ axes.T


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """Opens a file that takes the place of `path` once it is written in full."""
    temporary = path.with_name(f".nstvis-{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as file:
            yield file
        os.replace(temporary, path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"{path}: cannot write: {reason}") from error
    finally:
        with contextlib.suppress(OSError):  # It is gone if all went well.
            temporary.unlink()


def _as_image(picture: Image.Image | npt.ArrayLike) -> Image.Image:
    return picture if isinstance(picture, Image.Image) else to_image(picture)


def _write_png(file: BinaryIO, picture: Any, note: str | None) -> None:
    info = PngInfo()
    if note:
        info.add_text("nstvis", note)
    _as_image(picture).save(file, "PNG", pnginfo=info)


def _write_jpeg(file: BinaryIO, picture: Any, note: str | None) -> None:
    image = _as_image(picture).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    flat = Image.alpha_composite(white, image).convert("RGB")
    flat.save(file, "JPEG", quality=95, subsampling="4:4:4", comment=note)


def _write_tiff(file: BinaryIO, picture: Any, note: str | None) -> None:
    if isinstance(picture, Image.Image):
        mode = "RGBA" if picture.has_transparency_data else "RGB"
        samples = np.asarray(picture.convert(mode))
    else:
        samples = _quantized(_colors(picture, channels=(3, 4)), np.uint16)
    tifffile.imwrite(
        file,
        samples,
        photometric="rgb",
        extrasamples=["unassalpha"] * (samples.shape[-1] - 3),
        description=note,
        metadata=None,  # else tifffile adds a description of its own
    )


_ENCODERS = {
    ".png": _write_png,
    ".jpg": _write_jpeg,
    ".jpeg": _write_jpeg,
    ".tif": _write_tiff,
    ".tiff": _write_tiff,
}


def _shortened(text: str, font: Any, width: int) -> str:
    """Cuts a label to `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"
