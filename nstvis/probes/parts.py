"""Parts of images: drawn faces or images of one's own, with the boxes of their parts.

All boxes are top, left, bottom, right in pixels, the last two exclusive.
"""

import dataclasses
import io
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nstvis import crops
from nstvis.data import Example, primitives


@dataclasses.dataclass(frozen=True)
class Parts:
    """Images, and the boxes of the same parts in each."""

    # uint8 `[n, size, size, 3]`.
    images: np.ndarray
    # Part to boxes, `[n, 4]`.
    boxes: Mapping[str, np.ndarray]


def drawn(count: int, size: int) -> Parts:
    """Returns the first faces of `primitives`.

    Args:
        count: Number of faces, 2 to 200.
        size: Side of the images, in pixels.

    Raises:
        ValueError: There are not so many.
    """
    available = primitives.SPLITS["train"]
    if not 2 <= count <= available:
        raise ValueError(f"count={count} should be 2 to {available}")
    first, faces = list(primitives.KINDS).index("face") * available, []
    for index in range(first, first + count):
        _, image, parameters = primitives.example(0, "train", index)
        file = io.BytesIO()
        image.save(file, "PNG")
        example = Example(f"train/{index:06d}", -1, file.getvalue())
        faces.append((example, parameters["boxes"]))
    return _parts(faces, size)


def read(path: pathlib.Path, size: int) -> Parts:
    """Reads images that a JSON file lists with the boxes of their parts.

        {"ann.jpg": {"nose": [61, 40, 80, 58], ...}, "bob.jpg": {"nose": ...}, ...}

    Paths are relative to the file's folder; boxes are in the image's own pixels.

    Args:
        path: The file.
        size: Side of the central squares after scaling, in pixels.

    Raises:
        ValueError: The file is malformed, or a part is missing, or not within its image.
        FileNotFoundError: There is no such file, or no such image.
    """
    listed, annotated = _listed(path), []
    parts = dict.fromkeys(part for boxes in listed.values() for part in boxes)
    for name, boxes in listed.items():
        for part in parts:
            if part not in boxes:
                raise ValueError(f"{path}: {name} has no {part!r}, which others have")
        file = path.parent / name
        if not file.is_file():
            raise FileNotFoundError(f"{path}: there is no image {file}")
        example = Example(str(file), -1, file.read_bytes())
        annotated.append((example, {part: boxes[part] for part in parts}))
    return _parts(annotated, size)


def _listed(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such file") from error
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    of_dicts = isinstance(listed, dict) and all(
        isinstance(boxes, dict) and boxes for boxes in listed.values()
    )
    if not of_dicts or len(listed) < 2:
        raise ValueError(
            f'{path}: should list two or more images: {{"image": {{"part": [top, left,'
            " bottom, right], ...}, ...}"
        )
    return listed


def _parts(annotated: Sequence[tuple[Example, Mapping[str, Any]]], size: int) -> Parts:
    """Crops images, each given with the boxes of its parts."""
    pixels = [np.asarray(crops.centered(example, size)) for example, _ in annotated]
    boxes = {
        part: np.array(
            [
                _scaled(example, part, box_of[part], size)
                for example, box_of in annotated
            ]
        )
        for part in annotated[0][1]
    }
    return Parts(np.stack(pixels), boxes)


def _scaled(example: Example, part: str, box: Any, size: int) -> list[int]:
    """Returns the box of the pixels that a box touches after `crops.centered`."""
    where = f"{example.id}: {part!r} {box}"
    width, height = example.decode().size
    if not _is_box(box):
        raise ValueError(f"{where} should be [top, left, bottom, right], in pixels")
    top, left, bottom, right = box
    if not (0 <= top < bottom <= height and 0 <= left < right <= width):
        raise ValueError(f"{where} is not within the {width} x {height} pixels")
    side = min(width, height)
    y, x = (height - side) / 2, (width - side) / 2
    first = [math.floor((value * size) / side) for value in (top - y, left - x)]
    last = [math.ceil((value * size) / side) for value in (bottom - y, right - x)]
    if min(first) < 0 or max(last) > size:
        raise ValueError(
            f"{where} is beside the square in the middle of {width} x {height} pixels,"
            " which is all that the network sees: crop the image"
        )
    return first + last


def _is_box(box: Any) -> bool:
    numbers = isinstance(box, list) and all(
        isinstance(x, int | float) and math.isfinite(x) for x in box
    )
    return numbers and len(box) == 4
