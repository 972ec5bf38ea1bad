"""The results of a scan as arrays: the file `units.npz`.

`numpy.load` reads it. Its keys are

    LAYER.FIELD            the fields of `measurements.Layer`; those of its
                           `RankedPatches` are LAYER.top.score and so on
    LAYER.statistics.NAME  every registered statistic, float32 [units]
    LAYER.TITLE.FIELD      the findings of a title, such as name or inputs
    about                  JSON of the other fields of `Table`
"""

import dataclasses
import json
import pathlib
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from nstvis.runs import files
from nstvis.units import statistics
from nstvis.units.measurements import Finding, Layer, RankedPatches

# What a field was called in older files.
_OLDER_NAMES = {"sparsity": "silent"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """The results of scanning a data set with a network."""

    # In the network's order.
    layers: Mapping[str, Layer]
    # Layer to (height, width, stride) of its receptive fields in pixels; the stride is
    # 0 where a field is the whole image.
    fields: Mapping[str, Sequence[int]]
    # Names of the classes, by label; may be empty.
    classes: Sequence[str]
    # Index of an image in any of the rankings to (id in the data set, label or -1).
    examples: Mapping[int, tuple[str, int]]
    # Borders of the histograms' bins, float [bins + 1].
    edges: Sequence[float]
    # Number of images scanned.
    images: int
    # Side of the images as the network sees them, in pixels.
    size: int
    # What was scanned: names such as model, weights, dataset, split.
    about: Mapping[str, str]
    # Title to layer to what is said of its units.
    findings: Mapping[str, Mapping[str, Finding]] = dataclasses.field(
        default_factory=dict
    )


def save(
    path: pathlib.Path,
    table: Table,
    by_class: Mapping[str, RankedPatches] | None = None,
) -> None:
    """Writes `units.npz`, whole or not at all.

    Args:
        path: Of the file.
        table: What is written.
        by_class: Of each layer, instead of the table's; one at a time is asked for.
    """
    with files.replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        # One array at a time, where `np.savez_compressed` takes all.
        for key, array in _all_arrays(table, by_class):
            info = zipfile.ZipInfo(f"{key}.npy")
            info.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(info, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _all_arrays(
    table: Table, by_class: Mapping[str, RankedPatches] | None
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields what is stored, with its key."""
    by_class = by_class or {name: x.by_class for name, x in table.layers.items()}
    for name, layer in table.layers.items():
        for field in dataclasses.fields(layer):
            if field.type is not RankedPatches:
                yield f"{name}.{field.name}", getattr(layer, field.name)
        for statistic, values in statistics.compute(layer).items():
            yield f"{name}.statistics.{statistic}", values
        yield from _patches(f"{name}.top", layer.top)
        yield from _patches(f"{name}.least", layer.least)
        yield from _patches(f"{name}.by_class", by_class[name])
    for title, layers in table.findings.items():
        for name, finding in layers.items():
            yield from ((f"{name}.{title}.{key}", x) for key, x in finding.items())
    about = {
        field.name: getattr(table, field.name)
        for field in dataclasses.fields(table)
        if field.name not in ("layers", "findings")
    }
    about |= {"layers": list(table.layers), "findings": list(table.findings)}
    yield "about", np.array(json.dumps(about))


def _patches(key: str, patches: RankedPatches) -> Iterator[tuple[str, np.ndarray]]:
    yield from ((f"{key}.{name}", array) for name, array in vars(patches).items())


def load(path: pathlib.Path) -> Table:
    """Reads `units.npz`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, or something else.
    """
    try:
        with path.open("rb") as opened, np.load(opened) as file:
            arrays = dict(file)
        about: dict[str, Any] = json.loads(str(arrays.pop("about")))
        layers = {name: _layer(arrays, name) for name in about.pop("layers")}
        examples = {int(k): (v[0], v[1]) for k, v in about.pop("examples").items()}
        findings = {
            title: {
                name: finding
                for name in layers
                if (finding := _finding(arrays, f"{name}.{title}."))
            }
            for title in about.pop("findings", [])
        }
        return Table(layers=layers, examples=examples, findings=findings, **about)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{path} is damaged, or no table of units: {error}") from error


def _layer(arrays: Mapping[str, np.ndarray], name: str) -> Layer:
    parts: dict[str, Any] = {}
    for field in dataclasses.fields(Layer):
        key = f"{name}.{field.name}"
        if field.type is RankedPatches:
            parts[field.name] = RankedPatches(
                **{
                    part.name: arrays[f"{key}.{part.name}"]
                    for part in dataclasses.fields(RankedPatches)
                }
            )
        else:
            if key not in arrays and field.name in _OLDER_NAMES:
                key = f"{name}.{_OLDER_NAMES[field.name]}"
            parts[field.name] = arrays[key]
    layer = Layer(**parts)
    if not all(_fits(ranked, layer) for ranked in (layer.top, layer.least)):
        raise ValueError(f"the patches of {name} do not fit its units")
    numbers = layer.mean, layer.std, layer.sparsity, layer.histogram, layer.class_mean
    if {len(array) for array in numbers} != {len(layer.mean)}:
        raise ValueError(f"{name} has arrays of different lengths")
    return layer


def _fits(ranked: RankedPatches, layer: Layer) -> bool:
    """Whether patches are `[units, k]`, with all that is said of them."""
    score = ranked.score.shape
    return (
        len(score) == 2
        and score[0] == len(layer.mean)
        and score == ranked.image.shape
        and (*score, 2) == ranked.position.shape
        and (*score, 4) == ranked.box.shape
    )


def _finding(arrays: Mapping[str, np.ndarray], prefix: str) -> Finding:
    return {
        key.removeprefix(prefix): array
        for key, array in arrays.items()
        if key.startswith(prefix)
    }
