"""Tensors as they lie in a file, read in pieces and without trust in what it says.

A file of a few bytes can declare gigabytes. So nothing is allocated by a length that a
file states, no more than a `PIECE` is read at once, and no header may be longer.
"""

import io
import zipfile
from collections.abc import Callable
from typing import IO, Any, NamedTuple

import numpy as np

PIECE = 4 << 20  # bytes; a header of 10,000 tensors has a quarter of that
MOST_TENSORS = 10_000
_LONGEST_NAME = 60
_MOST_AXES = 32

Shape = tuple[int, ...]


class Tensor(NamedTuple):
    """A tensor of which no value has been read yet.

    Attributes:
        shape: Its shape.
        dtype: The dtype that it has in the file.
        strides: Bytes from one index of an axis to the next; no two elements overlap.
        offset: Where its first element is.
        read: Returns as many bytes as the second argument says, from the offset that
            the first one is.
    """

    shape: Shape
    dtype: np.dtype
    strides: Shape
    offset: int
    read: Callable[[int, int], bytes]

    def copy_to(self, out: np.ndarray) -> None:
        """Copies the values into an array of the same shape.

        Raises:
            ValueError: The file is damaged.
        """
        if not out.size:
            return
        reach = [(n - 1) * s for n, s in zip(self.shape, self.strides, strict=True)]
        extent = sum(reach) + self.dtype.itemsize
        if extent <= PIECE:
            data = self.read(self.offset, extent)
            with np.errstate(over="ignore"):  # Refused as not finite.
                out[...] = np.ndarray(self.shape, self.dtype, data, 0, self.strides)
            return
        # Along the axis of the largest stride, so that the file is read in order.
        axis = reach.index(max(reach))
        half = self.shape[axis] // 2
        for begin, end in ((0, half), (half, self.shape[axis])):
            shape = (*self.shape[:axis], end - begin, *self.shape[axis + 1 :])
            offset = self.offset + begin * self.strides[axis]
            part = (slice(None),) * axis + (slice(begin, end),)
            self._replace(shape=shape, offset=offset).copy_to(out[part])


class PieceReader(io.BufferedReader):
    """A file that refuses to read more than a `PIECE` at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        """Reads as any file does; the limit holds where no size is given, too."""
        whole = size is None or not 0 <= size <= PIECE
        data = super().read(PIECE + 1 if whole else size)
        if len(data) > PIECE:
            raise ValueError("its header is too long")
        return data


def read_at(file: IO[bytes], offset: int, size: int) -> bytes:
    """Reads bytes at an offset.

    Raises:
        ValueError: The file ends before.
    """
    file.seek(offset)
    data = file.read(size)
    if len(data) != size:
        raise ValueError("the file is cut short")
    return data


def as_shape(value: Any) -> Shape:
    """Returns what a file gives as a shape, after a check that it is one.

    Raises:
        ValueError: It is none.
    """
    if (
        type(value) not in (tuple, list)
        or len(value) > _MOST_AXES
        or not all(type(n) is int and 0 <= n < 2**63 for n in value)
    ):
        raise ValueError("a tensor is malformed")
    return tuple(value)


def strides_of(shape: Shape, dtype: np.dtype, order: str = "C") -> Shape:
    """Returns the strides, in bytes, of a tensor without gaps."""
    strides = [dtype.itemsize]
    for n in shape[:0:-1] if order == "C" else shape[:-1]:
        strides.append(strides[-1] * n)
    strides = strides[: len(shape)]
    return tuple(strides[::-1] if order == "C" else strides)


def members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Returns the members of a zip archive by name, after a check of their number."""
    if len(archive.infolist()) > MOST_TENSORS:
        raise ValueError(f"the zip archive has over {MOST_TENSORS} members")
    return archive.NameToInfo


def shown(name: object) -> str:
    """Returns a name out of a file as a message may show it: in one line, and cut."""
    text = repr(str(name))[1:-1]
    return text if len(text) <= _LONGEST_NAME else f"{text[:_LONGEST_NAME]}..."
