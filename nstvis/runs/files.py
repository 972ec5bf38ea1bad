"""Files that are whole at any moment, whatever happens while they are written."""

import contextlib
import csv
import io
import math
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[BinaryIO]:
    """Opens a file that takes the place of `path` once it is written in full.

    Raises:
        OSError: It could not be written, for example on a full disk; `path` is named.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        with naming(path):
            with partial.open("wb") as file:
                yield file
            os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):  # it is gone if all went well
            partial.unlink()


@contextlib.contextmanager
def naming(path: pathlib.Path) -> Iterator[None]:
    """Says which file could not be written, as a full disk's own error does not."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{path}: cannot write: {error.strerror or error}") from error


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    with replacing(path) as file:
        file.write(text.encode())


def write_csv(
    path: pathlib.Path, header: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
    """Writes a table, whole or not at all; a missing number (None, NaN) is left empty."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow("" if x is None or _is_nan(x) else x for x in row)
    write_text(path, text.getvalue())


def read_csv(path: pathlib.Path) -> list[list[str]]:
    """The rows of a table, as text, without its header."""
    with path.open(newline="") as file:
        return list(csv.reader(file))[1:]


def _is_nan(x: Any) -> bool:
    return isinstance(x, float) and math.isnan(x)
