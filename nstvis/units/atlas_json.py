"""The JSON of an atlas: what its scripts say of layers, units and panels.

A script is one assignment of JSON, as a page that is opened from disk may load scripts,
but no JSON. There are

    table.js   {version, layers: [{name, units, dead, field, k, side, pitch, rows}],
               statistics: [{name, description, percent}], classes, edges, images, size,
               logits: classes of the last layer's units, about: [[name, value]]}
    N.js       of layer N: {units: [{top, least, favourite, statistics: {name: value},
               histogram, dead, strongest}], images: {index: [id, label, file]}}
    panels.js  [{title, layers: {N: {k, side, pitch, rows, units}}}]
    findings.js  [{title, layers: [N]}]
    TITLE-N.js   of a finding of layer N: [{field: value} of each unit]
    search.js    {favourites: [label of each unit] of each layer,
                 images: [[id, label, units that it is among the top of ...]]}; the
                 units of all layers are numbered in a row

A ranked patch is [score, index of the image, top, left, bottom, right]; null where there
are too few images. Numbers that are not finite are null, too. Atlases of before 2026-11-26
have no `findings.js`.

Version 1, which had no `version`, had `mean`, `std`, `silent` (now sparsity) and
`selectivity` in each unit itself, and no list of statistics.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nstvis.runs import files
from nstvis.units import statistics
from nstvis.units.measurements import Finding, Layer, RankedPatches
from nstvis.units.sprites import Grid
from nstvis.units.table import Table

VERSION = 2
_STRONGEST = 8  # classes shown of a unit
# A statistic to where version 1 had it in a unit.
_VERSION_1 = {
    "mean": "mean",
    "std": "std",
    "sparsity": "silent",
    "selectivity": "selectivity",
}


def find(folder: str | os.PathLike) -> pathlib.Path:
    """Returns the folder of an atlas's scripts.

    Raises:
        FileNotFoundError: There is no atlas in the folder.
    """
    folder = pathlib.Path(folder)
    if not (folder / "index.html").exists():
        raise FileNotFoundError(f"{folder}: holds no atlas: there is no index.html")
    return folder / "atlas"


def write_table(folder: pathlib.Path, table: Table, grids: Mapping[str, Grid]) -> None:
    """Writes `table.js`.

    Args:
        folder: Of the scripts.
        table: The results of the scan.
        grids: Layer to how its patches lie in their files.
    """
    layers = [
        {
            "name": name,
            "units": len(layer.mean),
            "dead": int(layer.dead().sum()),
            "field": [int(pixels) for pixels in table.fields[name]],
            **grids[name].to_json(),
        }
        for name, layer in table.layers.items()
    ]
    content = {
        "version": VERSION,
        "layers": layers,
        "statistics": [*map(dataclasses.asdict, statistics.registered().values())],
        "classes": list(table.classes),
        "logits": [
            x for y in table.findings.get("class", {}).values() for x in y["name"]
        ],
        "edges": _numbers(table.edges),
        "images": table.images,
        "size": table.size,
        "about": list(table.about.items()),
    }
    _write(folder / "table.js", "var atlas", content)


def read_table(folder: pathlib.Path) -> dict[str, Any]:
    """Reads `table.js` of any version.

    Raises:
        ValueError: It is damaged, or newer than this code.
    """
    table = _read(folder / "table.js")
    with files.reading(folder / "table.js"):
        version = int(table.setdefault("version", 1))
    if version > VERSION:
        raise ValueError(
            f"{folder.parent} holds an atlas of version {version}, written by a newer"
            f" nstvis: this one reads versions up to {VERSION}"
        )
    if version == 1:
        known = statistics.registered()
        names = ["maximum", *_VERSION_1]
        table["statistics"] = [dataclasses.asdict(known[name]) for name in names]
    return table


def write_layer(
    folder: pathlib.Path,
    number: int,
    layer: Layer,
    examples: Mapping[int, tuple[str, int]],
    pictures: Mapping[int, str],
    more: np.ndarray | Sequence[int] = (),
) -> None:
    """Writes `N.js`.

    Args:
        folder: Of the scripts.
        number: The layer's, N.
        layer: What was measured.
        examples: Index of an image to its id and label.
        pictures: Index of an image to the name of its file; some have none.
        more: Other images that findings refer to.
    """
    parts = layer.top.image, layer.least.image, np.array(more, int)
    ranked = np.concatenate([part.ravel() for part in parts])
    images = {
        int(index): [*examples[index], pictures.get(index)]
        for index in np.unique(ranked[ranked >= 0])
    }
    content = {"units": _units(layer), "images": images}
    _write(folder / f"{number}.js", f"atlas.layers[{number}].content", content)


def read_layer(folder: pathlib.Path, number: int, version: int) -> dict[str, Any]:
    """Reads `N.js` of an atlas of some version, as if it were of the newest.

    Raises:
        ValueError: It is damaged.
    """
    content = _read(folder / f"{number}.js")
    if version == 1:
        content["units"] = [*map(_from_version_1, content["units"])]
    return content


def write_search(
    folder: pathlib.Path,
    layers: Mapping[str, Layer],
    examples: Mapping[int, tuple[str, int]],
) -> None:
    """Writes `search.js`: what units are found by.

    Args:
        folder: Of the scripts.
        layers: What was measured, in the atlas's order.
        examples: Index of an image to its id and label.
    """
    units: dict[int, dict[int, None]] = {}
    first = 0
    for layer in layers.values():
        for number, ranked in enumerate(layer.top.image.tolist(), first):
            for index in ranked:
                units.setdefault(index, {})[number] = None
        first += len(layer.mean)
    units.pop(-1, None)  # where there are too few images
    content = {
        "favourites": [layer.favourite().tolist() for layer in layers.values()],
        "images": [[*examples[index], *units[index]] for index in sorted(units)],
    }
    _write(folder / "search.js", "atlas.search", content)


def write_panels(folder: pathlib.Path, panels: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes `panels.js`: title to number of a layer to grid and units."""
    content = [{"title": title, "layers": layers} for title, layers in panels.items()]
    _write(folder / "panels.js", "atlas.panels", content)


def read_panels(folder: pathlib.Path) -> dict[str, dict[str, Any]]:
    """Reads what `write_panels` wrote.

    Raises:
        ValueError: It is damaged.
    """
    panels = _read(folder / "panels.js")
    return {panel["title"]: panel["layers"] for panel in panels}


def write_findings(folder: pathlib.Path, findings: Mapping[str, Sequence[int]]) -> None:
    """Writes `findings.js`: title to the numbers of the layers that have it."""
    content = [{"title": title, "layers": [*x]} for title, x in findings.items()]
    _write(folder / "findings.js", "atlas.findings", content)


def read_findings(folder: pathlib.Path) -> dict[str, list[int]]:
    """Reads what `write_findings` wrote; nothing where it never did.

    Raises:
        ValueError: It is damaged.
    """
    script = folder / "findings.js"
    found = _read(script) if script.exists() else []
    return {finding["title"]: finding["layers"] for finding in found}


def write_finding(
    folder: pathlib.Path, title: str, number: int, finding: Finding
) -> None:
    """Writes `TITLE-N.js`, what is said of the units of layer N."""
    columns = [_jsonable(array) for array in finding.values()]
    content = [dict(zip(finding, row)) for row in zip(*columns, strict=True)]
    target = f"atlas.layers[{number}].findings.{title}"
    _write(folder / f"{title}-{number}.js", target, content)


def read_finding(folder: pathlib.Path, title: str, number: int) -> list[dict[str, Any]]:
    """Reads what `write_finding` wrote.

    Raises:
        ValueError: It is damaged.
    """
    return _read(folder / f"{title}-{number}.js")


def _jsonable(array: np.ndarray) -> list:
    return _numbers(array) if array.dtype.kind == "f" else array.tolist()


def _units(layer: Layer) -> list[dict[str, Any]]:
    """Returns the JSON of each unit."""
    values = {name: _numbers(x) for name, x in statistics.compute(layer).items()}
    columns = {
        "top": _ranked(layer.top),
        "least": _ranked(layer.least),
        "favourite": layer.favourite().tolist(),
        "statistics": [dict(zip(values, unit)) for unit in zip(*values.values())],
        "histogram": layer.histogram.tolist(),
        "dead": layer.dead().tolist(),
        "strongest": _strongest(layer),
    }
    return [dict(zip(columns, unit)) for unit in zip(*columns.values(), strict=True)]


def _strongest(layer: Layer) -> list[list[list]]:
    """Returns for each unit [label, mean] of the classes that activate it most."""
    order = np.argsort(-layer.class_mean, axis=1, kind="stable")[:, :_STRONGEST]
    means = _numbers(np.take_along_axis(layer.class_mean, order, 1))
    return [
        [[label, mean] for label, mean in zip(*unit) if mean is not None]
        for unit in zip(order.tolist(), means)
    ]


def _ranked(patches: RankedPatches) -> list[list[list | None]]:
    """Returns the ranked patches of each unit, None where there is no image."""
    parts = _numbers(patches.score), patches.image.tolist(), patches.box.tolist()
    return [
        [[x, i, *box] if i >= 0 else None for x, i, box in zip(*unit)]
        for unit in zip(*parts)
    ]


def _numbers(array: Any) -> list:
    """Returns the shortest numbers that are the same float32; None if not finite."""
    values = np.asarray(array, np.float32)
    short = values.astype(str).astype(float)
    return np.where(np.isfinite(values), short, np.array(None)).tolist()


def _from_version_1(unit: Mapping[str, Any]) -> dict[str, Any]:
    names = {*_VERSION_1.values()}
    newer = {key: value for key, value in unit.items() if key not in names}
    first = next(filter(None, unit["top"]), [None])
    values = {name: unit[key] for name, key in _VERSION_1.items()}
    return newer | {"statistics": {"maximum": first[0]} | values}


def _read(script: pathlib.Path) -> Any:
    with files.reading(script):
        return json.loads(script.read_text().partition(" = ")[2].rstrip(";\n"))


def _write(script: pathlib.Path, target: str, content: Any) -> None:
    # ASCII alone, as names of files may hold what no encoding can write.
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    files.write_text(script, f"{target} = {text};\n")
