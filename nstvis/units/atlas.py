"""The atlas: what every unit looks for, for a browser (`index.html`) and for Python.

`index.html` is the same in every atlas; what it shows lies in the folder `atlas`:
`table.js`, the layers and classes; `N.js`, the units of layer N; `N-C.webp`, the patches
of its C-th sixteen units, a row each; and `pictures`, the whole images. `panels.js` lists
what else is shown of units, such as their backward pictures, in files like those of the
patches, `TITLE-N-C.webp`. A `.js` file is one assignment of JSON: a page that is opened
from disk may load scripts, but no JSON.
"""

import dataclasses
import functools
import io
import json
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from PIL import Image

from nstvis.runs.registry import unknown
from nstvis.units.table import Layer, RankedPatches, Table

_ROWS = 16  # units in a file of patches
_BLOCK = 16  # WebP compresses squares of this side: no two patches may share one
_LOSSLESS = 32  # side up to which patches are kept exactly
_STRONGEST = 8  # classes shown of a unit
_LONGEST = 16383  # WebP's limit on a side
# Layer to unit to its pictures.
Panel = Mapping[str, Mapping[int, np.ndarray]]
_SUFFIXES = {b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp", b"\x89PNG": ".png"}


def write(
    folder: str | os.PathLike,
    table: Table,
    patches: Mapping[str, np.ndarray],
    pictures: Mapping[int, bytes],
    panels: Mapping[str, Panel] | None = None,
) -> None:
    """Writes `index.html` and `atlas`, in place of those of an earlier call.

    After an error there is the earlier atlas, or none; never a mixture.

    Args:
        folder: Where; may hold other files.
        table: What was found.
        patches: Layer to its units' patches as they are drawn, in the order of
            `Layer.top`: uint8 `[units, k, side, side, 3]`. Asked for once a layer.
        pictures: Index of an image in `Layer.top` or `Layer.least` to the whole image,
            as the network sees it, in a JPEG, WebP or PNG file. Others go without.
        panels: What else is shown of units, by title; see `add`.

    Raises:
        ValueError: Patches or pictures are not what they should be.
        OSError: A file cannot be written; it is named.
    """
    folder = pathlib.Path(folder)
    new, old, page = folder / "atlas.partial", folder / "atlas", folder / "index.html"
    shutil.rmtree(new, ignore_errors=True)
    try:
        (new / "pictures").mkdir(parents=True)
        files = {}
        for index, encoded in pictures.items():
            files[index] = f"{index}{_suffix(index, encoded)}"
            _put(new / "pictures" / files[index], encoded)
        content = {
            "layers": [
                _write_layer(new, number, name, table, patches[name], files)
                for number, name in enumerate(table.layers)
            ],
            "classes": list(table.classes),
            "edges": _plain(table.edges),
            "images": table.images,
            "size": table.size,
            "about": list(table.about.items()),
        }
        _put_script(new / "table.js", "var atlas", content)
        _put_script(new / "panels.js", "atlas.panels", [])
        for title, panel in (panels or {}).items():
            _add(new, list(table.layers), title, panel)
        _put(new / page.name, pathlib.Path(__file__).with_suffix(".html").read_bytes())
        # Where there is a page, all that it shows is there.
        page.unlink(missing_ok=True)
        shutil.rmtree(old, ignore_errors=True)
        os.replace(new, old)
        os.replace(old / page.name, page)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def add(folder: str | os.PathLike, title: str, panel: Panel) -> None:
    """Shows more of units in an atlas that is there.

    Args:
        folder: The atlas's.
        title: Of letters and digits. What earlier calls with the same title showed of
            other units stays, if it is as large in that layer.
        panel: Layer to unit to its pictures, uint8 `[n, side, side, 3]`; as many and as
            large for each unit of a layer.

    Raises:
        FileNotFoundError: There is no atlas in the folder.
        ValueError: It has no such layer or unit, or the pictures are not what they
            should be.
        OSError: A file cannot be written; it is named.
    """
    there = Atlas(folder)
    for layer, pictures in panel.items():
        for unit in pictures:
            there.unit(layer, unit)
    # Without loss, as units that stay are written again each time.
    _add(pathlib.Path(folder) / "atlas", list(there.layers), title, panel, True)


def _add(
    folder: pathlib.Path,
    layers: Sequence[str],
    title: str,
    panel: Panel,
    lossless: bool = False,
) -> None:
    if not title.isalnum():
        raise ValueError(f"the title {title!r} should be of letters and digits")
    known = {panel["title"]: panel["layers"] for panel in _json(folder / "panels.js")}
    listed = known.setdefault(title, {})
    for layer, pictures in panel.items():
        number = str(layers.index(layer))
        shapes = {(picture.shape, picture.dtype) for picture in pictures.values()}
        if len(shapes) != 1:
            raise ValueError(f"{layer}: {title} should have pictures of one size")
        shape, dtype = shapes.pop()
        if dtype != np.uint8 or len(shape) != 4 or shape[1:] != (shape[1],) * 2 + (3,):
            raise ValueError(f"{layer}: {title} should be uint8 [n, side, side, 3]")
        geometry, old = _geometry(*shape[:2]), listed.pop(number, {"units": []})
        kept = old["units"] if old | geometry == old else []
        if old["units"] and not kept:
            _list(folder, known)  # or after a kill, old numbers would tell of new files
        for chunk in {unit // _ROWS for unit in pictures}:
            path = folder / f"{title}-{number}-{chunk}.webp"
            rows = np.zeros((_ROWS, *shape), np.uint8)
            for row, unit in enumerate(range(chunk * _ROWS, (chunk + 1) * _ROWS)):
                if unit in pictures:
                    rows[row] = pictures[unit]
                elif unit in kept:
                    rows[row] = [
                        *map(np.asarray, _Cells.at(path, geometry, row).read())
                    ]
            _put(path, _sprite(rows, geometry["pitch"], lossless))
        listed[number] = geometry | {"units": sorted({*kept, *pictures})}
    _list(folder, known)


def _list(folder: pathlib.Path, panels: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes `panels.js`: title to layer number to what there is."""
    content = [{"title": title, "layers": listed} for title, listed in panels.items()]
    _put_script(folder / "panels.js", "atlas.panels", content)


class RankedPatch(NamedTuple):
    """An image that a unit is shown with."""

    score: float
    # Its id in the data set.
    image: str
    # Name of its class.
    label: str | None
    # The receptive field: top, left, bottom, right in pixels; may hang over the border.
    box: tuple[int, int, int, int]
    # The file of the whole image.
    picture: pathlib.Path | None


class _Cells(NamedTuple):
    """Where pictures lie in a file."""

    path: pathlib.Path
    count: int
    side: int
    pitch: int
    row: int

    @classmethod
    def at(cls, path: pathlib.Path, geometry: Mapping[str, int], row: int) -> Self:
        return cls(path, geometry["k"], geometry["side"], geometry["pitch"], row)

    def read(self) -> list[Image.Image]:
        with Image.open(self.path) as sprite:
            whole, top = sprite.convert("RGB"), self.row * self.pitch
        lefts = [slot * self.pitch for slot in range(self.count)]
        side = self.side
        return [whole.crop((x, top, x + side, top + side)) for x in lefts]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unit:
    """What an atlas knows of a unit."""

    layer: str
    number: int
    # The highest first, and the lowest first; fewer where there were too few images.
    top: list[RankedPatch]
    least: list[RankedPatch]
    # As `table.Layer` has them, the class by its name.
    favourite: str | None
    selectivity: float
    mean: float
    std: float
    sparsity: float
    histogram: list[int]
    # 0 for every image.
    dead: bool
    # Names of the classes of the highest mean activations, and these.
    strongest: list[tuple[str, float]]
    _patches: _Cells
    _panels: dict[str, _Cells]

    def patches(self) -> list[Image.Image]:
        """The patches of `top`, RGB; compressed with loss if larger than 32 pixels."""
        return self._patches.read()[: len(self.top)]

    def panels(self) -> dict[str, list[Image.Image]]:
        """What else there is of it, by title, such as `deconvnet`."""
        return {title: cells.read() for title, cells in self._panels.items()}


class Atlas:
    """Reads what `write` wrote.

    Attributes:
        layers: Layer to number of units.
        fields: Layer to height, width and stride of its receptive fields, in pixels.
        classes: Their names.
        edges: Borders of the histograms' bins.
        about: Names, such as model, weights, dataset.

    Raises:
        FileNotFoundError: There is no atlas in the folder.
        ValueError: It is damaged.
    """

    def __init__(self, folder: str | os.PathLike):
        folder = pathlib.Path(folder)
        if not (folder / "index.html").exists():
            raise FileNotFoundError(f"{folder}: holds no atlas: there is no index.html")
        self._folder = folder / "atlas"
        table = self._read("table.js")
        self._table = {layer.pop("name"): layer for layer in table["layers"]}
        self._content = functools.cache(self._read)
        self.layers = {name: layer["units"] for name, layer in self._table.items()}
        self.fields = {name: layer["field"] for name, layer in self._table.items()}
        self.classes: list[str] = table["classes"]
        self.edges: list[float] = table["edges"]
        self.about: dict[str, str] = dict(table["about"])

    def unit(self, layer: str, number: int) -> Unit:
        """One unit.

        Raises:
            ValueError: There is no such layer, or no such unit in it.
        """
        if layer not in self.layers:
            raise ValueError(unknown("layer", layer, self.layers))
        if not 0 <= number < self.layers[layer]:
            last = self.layers[layer] - 1
            raise ValueError(f"no unit {number} in {layer}: there are 0 to {last}")
        place, geometry = list(self.layers).index(layer), self._table[layer]
        content = self._content(f"{place}.js")
        known, images = dict(content["units"][number]), content["images"]
        panels = {
            panel["title"]: self._cells(
                panel["layers"][str(place)], number, f"{panel['title']}-{place}"
            )
            for panel in self._read("panels.js")
            if number in panel["layers"].get(str(place), {"units": []})["units"]
        }
        for part in ("top", "least"):
            known[part] = [self._ranked_patch(images, x) for x in known[part] if x]
        known["favourite"] = self._class(known["favourite"])
        known["strongest"] = [(self.classes[i], x) for i, x in known["strongest"]]
        patches = self._cells(geometry, number, str(place))
        return Unit(
            layer=layer, number=number, _patches=patches, _panels=panels, **known
        )

    def _cells(self, geometry: Mapping[str, int], unit: int, files: str) -> _Cells:
        chunk, row = divmod(unit, geometry["rows"])
        return _Cells.at(self._folder / f"{files}-{chunk}.webp", geometry, row)

    def _ranked_patch(
        self, images: Mapping[str, Any], winner: Sequence[Any]
    ) -> RankedPatch:
        score, index, top, left, bottom, right = winner
        id, label, file = images[str(index)]
        picture = self._folder / "pictures" / file if file else None
        box = top, left, bottom, right
        return RankedPatch(score, id, self._class(label), box, picture)

    def _class(self, label: int) -> str | None:
        return self.classes[label] if 0 <= label < len(self.classes) else None

    def _read(self, name: str) -> Any:
        return _json(self._folder / name)


def _write_layer(
    folder: pathlib.Path,
    number: int,
    name: str,
    table: Table,
    cells: np.ndarray,
    files: Mapping[int, str],
) -> dict[str, Any]:
    """Writes the files of a layer; returns what `table.js` says of it."""
    layer = table.layers[name]
    units, k = layer.top.image.shape
    side = cells.shape[2] if cells.ndim == 5 else 0
    if cells.shape != (units, k, side, side, 3) or cells.dtype != np.uint8 or not side:
        raise ValueError(
            f"the patches of {name} should be uint8 [{units}, {k}, side, side, 3], not"
            f" {cells.dtype} {list(cells.shape)}"
        )
    geometry = _geometry(k, side)
    for chunk in range(-(-units // _ROWS)):
        rows = cells[chunk * _ROWS : (chunk + 1) * _ROWS]
        _put(folder / f"{number}-{chunk}.webp", _sprite(rows, geometry["pitch"]))
    used = np.unique(np.r_[layer.top.image.ravel(), layer.least.image.ravel()])
    images = {int(i): [*table.examples[i], files.get(i)] for i in used if i >= 0}
    described = _units(layer)
    content = {"units": described, "images": images}
    _put_script(folder / f"{number}.js", f"atlas.layers[{number}].content", content)
    return {
        "name": name,
        "units": units,
        "dead": sum(unit["dead"] for unit in described),
        "field": [int(n) for n in table.fields[name]],
        **geometry,
    }


def _geometry(k: int, side: int) -> dict[str, Any]:
    """How pictures lie in a file, `k` for each unit."""
    pitch = side + -side % _BLOCK
    if k * pitch > _LONGEST:
        raise ValueError(f"{k} pictures of {side} pixels are too many for a row")
    return {"k": k, "side": side, "pitch": pitch, "rows": _ROWS}


def _sprite(cells: np.ndarray, pitch: int, lossless: bool = False) -> bytes:
    """A file of pictures; each one's edges go on to the end of its last block."""
    side = cells.shape[2]
    edge = (0, pitch - side)
    cells = np.pad(cells, [(0, 0), (0, 0), edge, edge, (0, 0)], "edge")
    units, k = cells.shape[:2]
    rows = cells.swapaxes(1, 2).reshape(units * pitch, k * pitch, 3)
    file, lossless = io.BytesIO(), lossless or side <= _LOSSLESS
    Image.fromarray(rows).save(file, "WEBP", quality=90, method=2, lossless=lossless)
    return file.getvalue()


def _units(layer: Layer) -> list[dict[str, Any]]:
    """What is known of each unit, as JSON."""
    order = np.argsort(-layer.class_mean, axis=1, kind="stable")[:, :_STRONGEST]
    strongest = _plain(np.take_along_axis(layer.class_mean, order, 1))
    columns = {
        "top": _ranked(layer.top),
        "least": _ranked(layer.least),
        "favourite": layer.favourite().tolist(),
        "selectivity": _plain(layer.selectivity()),
        "mean": _plain(layer.mean),
        "std": _plain(layer.std),
        "sparsity": _plain(layer.sparsity),
        "histogram": layer.histogram.tolist(),
        # A logit that is never above 0 is silent, too, but not dead.
        "dead": ((layer.sparsity == 1) & (layer.std == 0)).tolist(),
        "strongest": [
            [[i, x] for i, x in zip(*pair) if x is not None]
            for pair in zip(order.tolist(), strongest)
        ],
    }
    return [dict(zip(columns, values)) for values in zip(*columns.values())]


def _ranked(winners: RankedPatches) -> list[list[list | None]]:
    """For each unit its winners, as score, image and box; None where there is none."""
    parts = _plain(winners.score), winners.image.tolist(), winners.box.tolist()
    return [
        [[x, i, *box] if i >= 0 else None for x, i, box in zip(*unit)]
        for unit in zip(*parts)
    ]


def _plain(array: Any) -> list:
    """Numbers in the fewest digits that are the same float32; None where not finite."""
    values = np.asarray(array, np.float32)
    short = values.astype(str).astype(float)
    return np.where(np.isfinite(values), short, np.array(None)).tolist()


def _suffix(index: int, encoded: bytes) -> str:
    for start, suffix in _SUFFIXES.items():
        if encoded.startswith(start):
            return suffix
    raise ValueError(f"the picture of image {index} is neither JPEG nor WebP nor PNG")


def _json(script: pathlib.Path) -> Any:
    try:
        return json.loads(script.read_text().partition(" = ")[2].rstrip(";\n"))
    except ValueError as error:
        raise ValueError(f"{script} is damaged: {error}") from error


def _put_script(path: pathlib.Path, target: str, content: Any) -> None:
    # ASCII alone, as names of files may hold what no encoding can write.
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    _put(path, f"{target} = {text};\n".encode())


def _put(path: pathlib.Path, content: bytes) -> None:
    """Writes a file, or leaves what was there."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    except OSError as error:  # Python names the file only where it cannot be opened.
        raise OSError(error.errno, error.strerror, str(path)) from error
