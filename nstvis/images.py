"""Pictures: files, arrays, sizes, colours and contact sheets.

A picture is what a person looks at, here a `PIL.Image.Image`; a network sees images.
"""

import contextlib
import importlib.util
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageDraw, ImageFont, ImageOps
from PIL.Image import Resampling
from PIL.PngImagePlugin import PngInfo

from nstvis.decoding import normalized, opened
from nstvis.runs import files

GREY = 127  # where an image has no pixels

_LUMA = np.array([0.299, 0.587, 0.114])


def read(path: str | os.PathLike) -> Image.Image:
    """Reads a picture file as it is meant to look, in 8-bit sRGB.

    EXIF orientation and an embedded colour profile are applied. Integer grey of more
    than 8 bits is taken as 0..65535; floating-point grey as 0..1 if none of it lies
    outside, else as 0..255, clipped. Of an animation, the first frame is read.

    Args:
        path: A JPEG, PNG, WebP, TIFF or GIF file of at most
            178,956,970 pixels.

    Returns:
        A picture of mode RGBA if any of its pixels is transparent, else RGB.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is too large, broken, or not a picture.
    """
    with opened(Path(path)) as picture:
        return normalized(picture)


def read_stored(path: str | os.PathLike) -> Image.Image:
    """Reads the very colours that a picture file stores, where they are mere names.

    EXIF orientation is applied; a colour profile and opacity are not.

    Returns:
        A picture of mode RGB, of the size that `read` returns.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: As for `read`, or the file is grey of more than 8 bits.
    """
    with opened(Path(path)) as picture:
        if picture.mode.startswith(("I", "F")):
            raise ValueError("grey of more than 8 bits; save it with 8")
        return ImageOps.exif_transpose(picture).convert("RGB")


def to_array(picture: Image.Image) -> np.ndarray:
    """Returns the colours of a picture, float32 [height, width, 3] in 0..255.

    Transparency is dropped, not blended; carry `picture.getchannel("A")` separately.
    """
    return np.array(picture.convert("RGB"), np.float32)


def to_image(array: npt.ArrayLike, alpha: Image.Image | None = None) -> Image.Image:
    """Returns the picture of some colours, clipped to 0..255 and rounded to nearest.

    Args:
        array: Finite colours, [height, width, 3].
        alpha: Opacity, mode L; it is resized to the picture.

    Returns:
        A picture of mode RGB, or RGBA with `alpha`.
    """
    picture = Image.fromarray(_quantized(_colors(array), np.uint8))
    if alpha is not None:
        picture.putalpha(alpha.resize(picture.size, Resampling.LANCZOS))
    return picture


def fitted_size(size: tuple[int, int], long_side: int) -> tuple[int, int]:
    """Returns (width, height) scaled to a longer side of `long_side`, at least 1."""
    if long_side < 1:
        raise ValueError(f"long_side must be at least 1 pixel, not {long_side}")
    width, height = (max(1, round(s * long_side / max(size))) for s in size)
    return width, height


def resize(picture: Image.Image, long_side: int) -> Image.Image:
    """Scales a picture up or down to `long_side` pixels, keeping its aspect ratio."""
    # Pillow premultiplies RGBA while it resizes: hidden colours do not bleed.
    return picture.resize(fitted_size(picture.size, long_side), Resampling.LANCZOS)


def write(
    path: str | os.PathLike,
    picture: Image.Image | npt.ArrayLike,
    settings: dict[str, Any] | None = None,
) -> None:
    """Writes a picture file, whole or not at all.

    Args:
        path: Ends in .png, .jpg, .jpeg (transparency is blended with white), .tif or
            .tiff (16 bits per channel from an array). An existing file is replaced.
        picture: A picture, or colours [height, width, 3] in 0..255; a .tif may have
            opacity as a fourth channel.
        settings: The settings that made the picture, as JSON-able values; stored in
            the file's metadata for `read_settings`.

    Raises:
        ValueError: The suffix is unknown, or the colours are not finite.
        OSError: The file could not be written.
    """
    path = Path(path)
    check_suffix(path)
    encode = _ENCODERS[path.suffix.lower()]
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: no such folder; make {path.parent} first")
    note = None if settings is None else json.dumps(settings)
    try:
        with files.replacing(path) as file:
            encode(file, picture, note)
    except ValueError as error:
        raise ValueError(f"{path}: cannot write: {error}") from error


def check_suffix(path: str | os.PathLike) -> None:
    """Raises a ValueError if `write` cannot write a file of this suffix."""
    suffix = Path(path).suffix
    if suffix.lower() not in _ENCODERS:
        accepted = ", ".join(_ENCODERS)
        raise ValueError(f"{path}: unknown suffix {suffix!r}; use {accepted}")
    if suffix.lower().startswith(".tif") and not importlib.util.find_spec("tifffile"):
        install = 'pip install tifffile (or "nstvis[tiff]")'
        raise ValueError(f"{path}: writing TIFF takes tifffile: {install}")


def read_settings(path: str | os.PathLike) -> dict[str, Any]:
    """Returns the settings that `write` stored in a picture file.

    Raises:
        ValueError: The file holds none.
    """
    with opened(Path(path)) as picture:
        description = picture.getexif().get(ExifTags.Base.ImageDescription)
        notes = picture.info.get("nstvis"), picture.info.get("comment"), description
    for note in filter(None, notes):
        with contextlib.suppress(ValueError):
            if isinstance(settings := json.loads(note), dict):
                return settings
    raise ValueError(f"{path}: holds no settings; was it written by nstvis?")


def match_colors(style: npt.ArrayLike, content: npt.ArrayLike) -> np.ndarray:
    """Gives the style the colour statistics of the content.

    Applies the affine map of Gatys et al. 2016 (arXiv:1606.05897, section 3): the mean
    and covariance of the result equal the content's. Directions in which the style has
    no variance (all but one, for a grey style) get none.

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
    """Combines the luminance of the result with the chrominance (YIQ) of the content.

    Args:
        result: Colours, [height, width, 3] in 0..255.
        content: Colours of the same shape.

    Returns:
        The combined colours, float32, not clipped.
    """
    result, content = _colors(result), _colors(content)
    if result.shape != content.shape:
        raise ValueError(f"sizes differ: {result.shape[:2]} and {content.shape[:2]}")
    # In YIQ, a change of luminance alone moves R, G and B by the same amount.
    change = (result - content) @ _LUMA
    return (content + change[..., None]).astype(np.float32)


def sheet(
    pictures: Iterable[Image.Image],
    labels: Sequence[str],
    columns: int | None = None,
    gap: int = 8,
    background: tuple[int, int, int] = (24, 24, 24),
    cell: tuple[int, int] | None = None,
) -> Image.Image:
    """Lays out labelled pictures on one page, row by row.

    Args:
        pictures: At least one; smaller ones are scaled up to a cell.
        labels: A line of text below each picture, cut where it is too long.
        columns: Pictures in a row; by default about as many as there are rows.
        gap: Pixels between pictures and around all of them.
        background: Colour of the page, RGB in 0..255.
        cell: Width and height of a picture's place, by default those of the largest; if
            it is given, pictures can be made one after another.

    Raises:
        ValueError: There are no pictures, or not as many as labels.
    """
    if cell is None:
        pictures = list(pictures)
        if not pictures or len(pictures) != len(labels):
            counts = f"{len(pictures)} and {len(labels)}"
            raise ValueError(
                f"a sheet needs pictures and a label for each, not {counts}"
            )
        cell = max(p.width for p in pictures), max(p.height for p in pictures)
    columns = min(columns or math.ceil(math.sqrt(len(labels))), len(labels))
    rows = math.ceil(len(labels) / columns)
    font_size = max(12, cell[0] // 28)
    across, down = cell[0] + gap, cell[1] + 2 * font_size + gap
    page = Image.new("RGB", (gap + columns * across, gap + rows * down), background)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(font_size)
    ink = "gainsboro" if np.dot(_LUMA, background) < 128 else "dimgray"
    for place, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
        left, top = gap + place % columns * across, gap + place // columns * down
        tile = ImageOps.pad(picture.convert("RGBA"), cell, Resampling.LANCZOS, color=0)
        page.paste(tile, (left, top), tile)
        middle = left + cell[0] // 2, top + cell[1] + font_size
        draw.text(middle, _shortened(label, font, cell[0]), ink, font, anchor="mm")
    return page


def _colors(
    array: npt.ArrayLike, dtype: npt.DTypeLike = np.float32, alpha: bool = False
) -> np.ndarray:
    colors = np.asarray(array, dtype)
    if colors.ndim != 3 or colors.shape[-1] not in (3, 3 + alpha):
        raise ValueError(f"colours must be [height, width, 3], not {colors.shape}")
    return colors


def _quantized(values: np.ndarray, dtype: type[np.unsignedinteger]) -> np.ndarray:
    """Scales 0..255 to the whole range of an integer type."""
    scale = np.iinfo(dtype).max // 255
    quantized = np.empty(values.shape, dtype)
    # Some rows at a time, as each step makes a copy.
    for rows, out in zip(_strips(values), _strips(quantized), strict=True):
        if not np.isfinite(rows).all():
            raise ValueError("the colours are not all finite numbers")
        out[:] = np.rint(np.clip(rows, 0, 255) * scale)
    return quantized


def _strips(array: np.ndarray) -> Iterator[np.ndarray]:
    return (array[i : i + 64] for i in range(0, len(array), 64))


def _covariance_roots(colors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the symmetric square root of the covariance, and its pseudo-inverse."""
    covariance = np.cov(colors.reshape(-1, 3), rowvar=False, bias=True)
    variances, axes = np.linalg.eigh(covariance)
    # A grey picture varies along one axis only; the others have rounding errors.
    varies = variances > 1e-10 * variances[-1]
    deviations = np.sqrt(variances, where=varies, out=np.zeros(3))
    inverses = np.divide(1, deviations, where=varies, out=np.zeros(3))
    return axes * deviations @ axes.T, axes * inverses @ axes.T


def _as_picture(picture: Image.Image | npt.ArrayLike) -> Image.Image:
    return picture if isinstance(picture, Image.Image) else to_image(picture)


def _write_png(file: BinaryIO, picture: Any, note: str | None) -> None:
    info = PngInfo()
    if note:
        info.add_text("nstvis", note)
    _as_picture(picture).save(file, "PNG", pnginfo=info)


def _write_jpeg(file: BinaryIO, picture: Any, note: str | None) -> None:
    flat = _as_picture(picture)
    if flat.has_transparency_data:
        layer = flat.convert("RGBA")
        white = Image.new("RGBA", layer.size, "white")
        flat = Image.alpha_composite(white, layer)
    flat = flat.convert("RGB")
    flat.save(file, "JPEG", quality=95, subsampling="4:4:4", comment=note)


def _write_tiff(file: BinaryIO, picture: Any, note: str | None) -> None:
    import tifffile  # an extra

    if isinstance(picture, Image.Image):
        transparent = picture.has_transparency_data
        samples = np.asarray(picture.convert("RGBA" if transparent else "RGB"))
    else:
        samples = _quantized(_colors(picture, alpha=True), np.uint16)
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
