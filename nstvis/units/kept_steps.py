"""Loops that fill arrays, step by step, and keep them in a file now and then."""

import pathlib
import time
from collections.abc import Iterator, Mapping

import numpy as np

from nstvis.runs import files
from nstvis.runs.progress import track

_PAUSE = 20  # seconds, at least, between two times that arrays are kept


def steps(
    path: pathlib.Path | None, arrays: Mapping[str, np.ndarray], total: int, text: str
) -> Iterator[int]:
    """Yields the numbers of the steps that an earlier process has not kept.

    Args:
        path: Of the file; None to keep nothing.
        arrays: What the steps fill: as it is before the first one, which is replaced by
            what has been kept. What a step does to them depends on nothing else.
        total: Number of steps.
        text: What they are shown as.

    Raises:
        Interrupted: By a signal.
        DamagedError: The file is damaged.
        OSError: It cannot be written.
    """
    done = _restore(path, arrays) if path and path.exists() else 0
    if done == total:
        return
    kept = time.monotonic()
    for step in track(range(done, total), total, text, done=done):
        yield step
        late = time.monotonic() - kept >= _PAUSE
        if path and (late or step + 1 == total):
            _keep(path, arrays, step + 1)
            kept = time.monotonic()


def _keep(path: pathlib.Path, arrays: Mapping[str, np.ndarray], done: int) -> None:
    with files.replacing(path) as file:
        # Any name may be an array's, such as that of a parameter of `savez`.
        named = {f"of {name}": x for name, x in arrays.items()}
        np.savez(file, allow_pickle=False, done=done, **named)


def _restore(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> int:
    """Fills in what is in the file, and returns how many steps that took."""
    with files.reading(path), np.load(path) as kept:
        for name, array in arrays.items():
            array[...] = kept[f"of {name}"]
        return int(kept["done"])
