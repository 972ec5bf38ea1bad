"""Responses: the activations of all units for the same images, a sample of a data set.

What a scan keeps is the extremes; names, quantiles and scores need every image. They are
two files in `responses/`: `responses.bin` has a record for each image, and
`responses.json` says of what, and how many of them are valid.
"""

import contextlib
import dataclasses
import functools
import json
import mmap
import pathlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from nstvis import devices, models, pipeline
from nstvis.data import Example, Source
from nstvis.runs import files
from nstvis.runs.progress import Progress
from nstvis.units import maxima, scan

FOLDER = "responses"
_ROWS = 256  # images whose responses are read at once


@dataclasses.dataclass(frozen=True)
class Responses:
    """Activations of units for images, in the order of these; arrays may be on disk.

    Attributes:
        index: Where the images are in the data set, ascending, int32 `[images]`.
        label: Their classes, -1 where there is none, int32 `[images]`.
        score: By layer, the highest activation of each map, float32 `[images, units]`.
        position: By layer, where it is first in the map: row * columns + column, int32
            `[images, units]`.
    """

    index: np.ndarray
    label: np.ndarray
    score: Mapping[str, np.ndarray]
    position: Mapping[str, np.ndarray]


@dataclasses.dataclass
class _Sample:
    """Evenly spaced images of data sets in a row, as one data set."""

    sources: Sequence[Source]
    indices: np.ndarray
    classes: Sequence[str]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Example:
        place = int(self.indices[index])
        for source in self.sources:
            if place < len(source):
                return source[place]
            place -= len(source)
        raise IndexError(index)

    def index(self, id: str) -> int:
        raise ValueError(f"{id!r} is not looked up in a sample")


def measure(
    target: scan.Target, count: int, batch: int, workers: int, workdir: pathlib.Path
) -> Responses:
    """Measures all units' activations for a sample of images, or what is missing of it.

    To be called by the host that writes files, which does it alone.

    Args:
        target: The network and the images.
        count: Images to take at most; they are evenly spaced.
        batch: Images in a batch.
        workers: Processes that prepare images; 0 for threads of this one.
        workdir: Gets the folder `responses`, and `damaged.txt` if there are such images,
            which are left out.

    Raises:
        Interrupted: By a signal, between two batches; the same call resumes.
        OSError: A file cannot be written.
    """
    images = sum(map(len, target.sources))
    count = min(count, images)
    indices = np.arange(count) * images // max(count, 1)
    sample = _Sample(target.sources, indices, target.about.classes)
    folder = workdir / FOLDER
    folder.mkdir(exist_ok=True)
    progress = _resumed(folder, _about(target, count))
    if progress["seen"] < count:
        _measure(target, sample, batch, workers, workdir, progress)
    return load(workdir)


def load(workdir: pathlib.Path) -> Responses:
    """Opens what `measure` has left; activations are read when they are used.

    Raises:
        FileNotFoundError: There is nothing.
        ValueError: It is damaged.
    """
    folder = workdir / FOLDER
    try:
        known = files.read_json(folder / "responses.json")
        whole = _checksum(folder / "responses.bin", known) == known["checksum"]
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise ValueError(f"{folder} is damaged: remove it")
    layers = known["about"]["layers"]
    kind = _record(layers)
    if known["rows"]:
        records = np.memmap(folder / "responses.bin", kind, "r", shape=known["rows"])
    else:
        records = np.empty(0, kind)
    borders = np.cumsum([0, *layers.values()])
    parts = {name: slice(*borders[i : i + 2]) for i, name in enumerate(layers)}
    return Responses(
        index=_read(records["index"], ()),
        label=_read(records["label"], ()),
        **{
            field: {name: records[field][:, part] for name, part in parts.items()}
            for field in ("score", "position")
        },
    )


def columns(array: np.ndarray, units: slice) -> np.ndarray:
    """Reads some units' scores or positions, of `[images, units]`, into memory."""
    return _read(array, (units,))


def _read(array: np.ndarray, columns: tuple[slice, ...]) -> np.ndarray:
    """Reads columns of an array, a few rows at a time.

    What is read of a mapped file, and what is around it, is the process's memory until
    it is given back.
    """
    mapped = getattr(array, "_mmap", None)  # of np.memmap
    result = np.empty_like(array[(slice(None), *columns)], subok=False)
    for first in range(0, len(array), _ROWS):
        rows = slice(first, first + _ROWS)
        result[rows] = array[(rows, *columns)]
        if mapped is not None and hasattr(mmap, "MADV_DONTNEED"):  # on Linux
            mapped.madvise(mmap.MADV_DONTNEED)
    return result


def _record(layers: Mapping[str, int]) -> np.dtype:
    units = sum(layers.values())
    return np.dtype(
        [
            ("index", "<i4"),
            ("label", "<i4"),
            ("score", "<f4", (units,)),
            ("position", "<i4", (units,)),
        ]
    )


def _about(target: scan.Target, count: int) -> dict[str, Any]:
    """Returns what a sample depends on."""
    about = target.about
    return {
        "network": about.network,
        "layers": dict(about.layers),
        "size": about.size,
        "parts": [[part["images"], part["hash"]] for part in about.parts],
        "count": count,
    }


def _resumed(folder: pathlib.Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what is valid of an interrupted start; nothing if it was of other files.

    Returns:
        `about`; `seen`, how many images were looked at; `rows`, how many records there
        are, without damaged images; and `checksum` of the records.
    """
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = files.read_json(folder / "responses.json")
        written = folder / "responses.bin"
        if known["about"] == about and _checksum(written, known) == known["checksum"]:
            return known
    (folder / "responses.bin").write_bytes(b"")
    return {"about": about, "seen": 0, "rows": 0, "checksum": 0}


def _checksum(path: pathlib.Path, known: Mapping[str, Any]) -> int | None:
    """Returns the checksum of a file's valid records; None if it has not as many."""
    left = known["rows"] * _record(known["about"]["layers"]).itemsize
    checksum = 0
    with path.open("rb") as file:
        while left and (part := file.read(min(left, 1 << 24))):
            checksum = zlib.crc32(part, checksum)
            left -= len(part)
    return None if left else checksum


def _measure(
    target: scan.Target,
    sample: _Sample,
    batch: int,
    workers: int,
    workdir: pathlib.Path,
    known: dict[str, Any],
) -> None:
    """Appends the records of the images that have not been seen yet."""
    path, kind = workdir / FOLDER / "responses.bin", _record(target.about.layers)
    left = dataclasses.replace(sample, indices=sample.indices[known["seen"] :])
    steps = -(-len(left) // batch)
    with path.open("r+b") as file, Progress([0.0] * steps) as progress:
        # What was written after the last count is not counted.
        file.truncate(file.seek(known["rows"] * kind.itemsize))
        for step, records in enumerate(_records(target, left, batch, workers, workdir)):
            with files.naming(path):
                file.write(written := records.tobytes())
                file.flush()
            known["seen"] = min(known["seen"] + batch, len(sample))
            known["rows"] += len(records)
            known["checksum"] = zlib.crc32(written, known["checksum"])
            files.write_text(path.with_suffix(".json"), json.dumps(known))
            progress.show(step + 1, f"responses to {known['seen']} images")
            if progress.interrupted:
                break


def _records(
    target: scan.Target,
    sample: _Sample,
    batch: int,
    workers: int,
    workdir: pathlib.Path,
) -> Iterator[np.ndarray]:
    """Yields the records of each batch's images that are not damaged."""
    layers, size = target.about.layers, target.about.size
    damaged = pipeline.Damaged(workdir / "damaged.txt")
    batches = pipeline.evaluation(
        sample, size, batch, damaged=damaged, workers=workers, alone=True
    )
    compute = jax.jit(
        functools.partial(_highest, target.forward, tuple(layers)),
        compiler_options=devices.compile_options(),
    )
    for part in batches:
        seen = part["index"] >= 0
        scores, positions = compute(target.params, part["image"])
        records = np.empty(int(seen.sum()), _record(layers))
        records["index"] = sample.indices[part["index"][seen]]
        records["label"] = part["label"][seen]
        records["score"] = np.asarray(scores)[seen]
        records["position"] = np.asarray(positions)[seen]
        yield records


def _highest(
    forward: models.Forward,
    layers: Sequence[str],
    params: models.Params,
    images: Array,
) -> tuple[Array, Array]:
    """Returns the maps' highest activations and their places, `[batch, units]`."""
    # A single image may be convolved by another algorithm, as in a scan.
    company = jnp.resize(images, (max(2, len(images)), *images.shape[1:]))
    activations = forward(params, company.astype(jnp.float32))
    found = [maxima.peaks(activations[name], 1, (0, 0)) for name in layers]
    scores, positions = (jnp.concatenate(part, -1) for part in zip(*found, strict=True))
    return scores[: len(images), 0], positions[: len(images), 0]
