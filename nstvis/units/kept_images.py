"""The images that a survey shows: read once, and from then on in a file."""

import pathlib
import zlib
from collections.abc import Sequence

import numpy as np

from nstvis.data import Source
from nstvis.runs.files import naming
from nstvis.units.patches import Images

_MEMORY = 64_000_000  # bytes of images that are not read from the file again


class KeptImages(Images):
    """Images of which some are kept in a file, for this process and one that resumes it.

    Each has its place in the file: its pixels, its label, and the checksum of both,
    which is wrong where an image has not been written, or not as a whole.

    Args:
        sources: The data sets.
        size: Side of the images, in pixels.
        path: Of the file.
        indices: The images that are kept, sorted; others are read when asked for.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        size: int,
        path: pathlib.Path,
        indices: np.ndarray,
    ):
        super().__init__(sources, size, _MEMORY)
        self._path, self._indices = path, indices
        path.touch()

    def _fetch(self, index: int) -> np.ndarray:
        place = int(np.searchsorted(self._indices, index))
        if place == len(self._indices) or self._indices[place] != index:
            return super()._fetch(index)
        shape = self.size, self.size, 3
        pixels = self.size * self.size * 3
        with naming(self._path), self._path.open("r+b", buffering=0) as file:
            file.seek(place * (pixels + 8))
            record = file.read(pixels + 8)
        kept, checksum = record[:-4], record[-4:]
        if len(record) == pixels + 8 and checksum == _checksum(kept):
            self._labels[index] = int.from_bytes(kept[pixels:], "little", signed=True)
            return np.frombuffer(kept, np.uint8, pixels).reshape(shape)
        image = super()._fetch(index)
        label = self._labels[index].to_bytes(4, "little", signed=True)
        kept = image.tobytes() + label
        with naming(self._path), self._path.open("r+b") as file:
            file.seek(place * (pixels + 8))
            file.write(kept + _checksum(kept))
        return image


def _checksum(kept: bytes) -> bytes:
    return zlib.crc32(kept).to_bytes(4, "little")
