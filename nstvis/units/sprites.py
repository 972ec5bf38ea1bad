"""Pictures of units in WebP files: a row for each unit, sixteen units in a file."""

import dataclasses
import io
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np
from PIL import Image

from nstvis.runs import files

_ROWS = 16  # units in a file
_BLOCK = 16  # WebP compresses squares of this side: no two pictures may share one
_LOSSLESS = 32  # side up to which pictures are kept exactly
_LONGEST = 16383  # WebP's limit on a side


@dataclasses.dataclass(frozen=True)
class Grid:
    """How the pictures of a layer's units lie in their files."""

    # Pictures of a unit.
    k: int
    # Side of a picture, and from the left of one to that of the next, in pixels.
    side: int
    pitch: int
    # Units in a file.
    rows: int

    @classmethod
    def of(cls, k: int, side: int) -> Self:
        """Lays out `k` pictures for each unit.

        Raises:
            ValueError: They are too many for a row.
        """
        pitch = side + -side % _BLOCK
        if k * pitch > _LONGEST:
            raise ValueError(f"{k} pictures of {side} pixels are too many for a row")
        return cls(k, side, pitch, _ROWS)

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Self:
        """Takes the grid from a JSON object, which may say more.

        Raises:
            ValueError: It is none.
        """
        grid = cls(*(int(entry[field.name]) for field in dataclasses.fields(cls)))
        if min(dataclasses.astuple(grid)) < 1 or grid.k * grid.pitch > _LONGEST:
            raise ValueError(f"a file of pictures cannot be laid out as {grid}")
        return grid

    def to_json(self) -> dict[str, int]:
        """Returns the JSON object that `from_json` takes."""
        return dataclasses.asdict(self)

    def chunk(self, unit: int) -> int:
        """Returns the number of the file that holds a unit."""
        return unit // self.rows


def write(
    path: pathlib.Path, pictures: np.ndarray, grid: Grid, lossless: bool = False
) -> None:
    """Writes a file, whole or not at all.

    Args:
        path: Of the file.
        pictures: uint8 `[units, k, side, side, 3]`, at most `grid.rows` units.
        grid: Of the layer.
        lossless: Whether large pictures are kept exactly, too.
    """
    units, k, side = pictures.shape[:3]
    # Edges are repeated to the end of the last block, or other colours would bleed in.
    margin = (0, grid.pitch - side)
    padded = np.pad(pictures, [(0, 0), (0, 0), margin, margin, (0, 0)], "edge")
    rows = padded.swapaxes(1, 2).reshape(units * grid.pitch, k * grid.pitch, 3)
    encoded = io.BytesIO()
    Image.fromarray(rows).save(
        encoded, "WEBP", quality=90, method=2, lossless=lossless or side <= _LOSSLESS
    )
    with files.replacing(path) as file:
        file.write(encoded.getvalue())


def read(path: pathlib.Path, unit: int, grid: Grid) -> list[Image.Image]:
    """Reads the pictures of a unit from its file, RGB."""
    return Sprites(lambda chunk: path, grid)[unit]


class Sprites:
    """The pictures of a layer's units, RGB; the file of the last unit is kept.

    Args:
        path: From the number of a file to its path.
        grid: How the pictures lie there.
    """

    def __init__(self, path: Callable[[int], pathlib.Path], grid: Grid):
        self._path, self._grid = path, grid
        self._chunk, self._sheet = -1, Image.new("RGB", (1, 1))

    def __getitem__(self, unit: int) -> list[Image.Image]:
        """Returns the pictures of a unit."""
        grid, chunk = self._grid, self._grid.chunk(unit)
        if chunk != self._chunk:
            with files.reading(path := self._path(chunk)), Image.open(path) as opened:
                self._chunk, self._sheet = chunk, opened.convert("RGB")
        side, top = grid.side, unit % grid.rows * grid.pitch
        lefts = [slot * grid.pitch for slot in range(grid.k)]
        return [
            self._sheet.crop((left, top, left + side, top + side)) for left in lefts
        ]
