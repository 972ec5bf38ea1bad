"""Files that are always whole, however the process that writes them ends; CSV."""

import contextlib
import csv
import fcntl
import io
import json
import logging
import math
import numbers
import os
import pathlib
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[BinaryIO]:
    """Opens a file that replaces `path` once it has been written in full.

    Until then it is a hidden file beside `path`, with a name that no other process
    uses. A killed process leaves it behind; see `remove_partial`.

    Raises:
        OSError: It could not be written, for example on a full disk; `path` is named.
    """
    # Not made of the name of `path`, which may be as long as names can be.
    partial = path.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        with naming(path):
            with partial.open("xb") as file:
                yield file
            os.replace(partial, path)
    finally:
        with contextlib.suppress(OSError):  # it is gone if all went well
            partial.unlink()


def is_partial(path: pathlib.Path) -> bool:
    """Whether this is a file that `replacing` has not finished."""
    return path.name.startswith(".") and path.suffix == ".partial"


def remove_partial(folder: pathlib.Path) -> None:
    """Removes what a killed process was writing, at any depth."""
    for path in folder.rglob(".*.partial"):
        with contextlib.suppress(OSError):
            path.unlink()


@contextlib.contextmanager
def locked(folder: pathlib.Path, waiting: str = "") -> Iterator[bool]:
    """Keeps other processes out of a folder that they lock, too; leaves no file in it.

    The lock ends with the process, however that ends.

    Args:
        folder: An existing folder.
        waiting: What to log while another process is in it, which is waited for; without,
            that is an error.

    Yields:
        Whether it is locked, which some network file systems cannot do.

    Raises:
        BlockingIOError: Another process is in it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        yield _lock(handle, waiting)
    finally:
        os.close(handle)


def _lock(handle: int, waiting: str) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not waiting:
            raise
        logger.info("%s", waiting)
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def naming(path: pathlib.Path) -> Iterator[None]:
    """Says which file could not be written, as a full disk's own error does not."""
    try:
        yield
    except ConnectionError:  # of a download, which failed before it could be written
        raise
    except OSError as error:
        raise OSError(f"{path}: cannot write: {error.strerror or error}") from error


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    with replacing(path) as file:
        # Names of files need not be UTF-8; Python escapes those that are not.
        file.write(text.encode(errors="surrogateescape"))


def write_csv(
    path: pathlib.Path, header: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
    """Writes a table, whole or not at all; None and NaN become empty fields."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for row in rows:
        writer.writerow("" if x is None or _is_nan(x) else x for x in row)
    write_text(path, text.getvalue())


def read_csv(path: pathlib.Path) -> list[list[str]]:
    """Returns the rows of a table, as text, without its header."""
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        return list(csv.reader(file))[1:]


class DamagedError(ValueError):
    """A file of ours does not hold what we wrote."""


@contextlib.contextmanager
def reading(path: pathlib.Path) -> Iterator[None]:
    """Says that a file of ours is damaged, whatever its contents make the reader raise."""
    try:
        yield
    except (OSError, DamagedError):
        raise
    except Exception as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise DamagedError(f"{path} is damaged: {reason}") from error


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Raises:
        OSError: It cannot be read.
        DamagedError: It is damaged.
    """
    with reading(path):
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise TypeError("it holds no object")
        return content


def _is_nan(value: Any) -> bool:
    return isinstance(value, numbers.Real) and math.isnan(value)  # NumPy's, too
