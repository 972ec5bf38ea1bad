"""The atlas: what every unit looks for, for a browser (`index.html`) and for Python.

`index.html` is the same in every atlas; what it shows lies in the folder `atlas`:
`table.js`, the layers and classes; `N.js`, the units of layer N; `N-C.webp`, the patches
of its C-th sixteen units, a row each; and `pictures`, the whole images. A `.js` file is
one assignment of JSON: a page that is opened from disk may load scripts, but no JSON.
"""

import dataclasses
import functools
import io
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from nstvis.errors import unknown
from nstvis.units.table import Layer, Table, Winners

_ROWS = 16  # units in a file of patches
_BLOCK = 16  # WebP compresses squares of this side: no two patches may share one
_LOSSLESS = 32  # side up to which patches are kept exactly
_STRONGEST = 8  # classes shown of a unit
_LONGEST = 16383  # WebP's limit on a side
_SUFFIXES = {b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp", b"\x89PNG": ".png"}


def write(
    folder: str | os.PathLike,
    table: Table,
    patches: Mapping[str, np.ndarray],
    pictures: Mapping[int, bytes],
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
        _put(new / page.name, pathlib.Path(__file__).with_suffix(".html").read_bytes())
        # Where there is a page, all that it shows is there.
        page.unlink(missing_ok=True)
        shutil.rmtree(old, ignore_errors=True)
        os.replace(new, old)
        os.replace(old / page.name, page)
    finally:
        shutil.rmtree(new, ignore_errors=True)


class Winner(NamedTuple):
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unit:
    """What an atlas knows of a unit."""

    layer: str
    number: int
    # The highest first, and the lowest first; fewer where there were too few images.
    top: list[Winner]
    least: list[Winner]
    # As `table.Layer` has them, the class by its name.
    favourite: str | None
    selectivity: float
    mean: float
    std: float
    silent: float
    histogram: list[int]
    # 0 for every image.
    dead: bool
    # Names of the classes of the highest mean activations, and these.
    strongest: list[tuple[str, float]]
    _cells: tuple[pathlib.Path, list[tuple[int, int, int, int]]]

    def patches(self) -> list[Image.Image]:
        """The patches of `top`, RGB; compressed with loss if larger than 32 pixels."""
        path, boxes = self._cells
        with Image.open(path) as sprite:
            return [sprite.convert("RGB").crop(box) for box in boxes]


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
        side, pitch = geometry["side"], geometry["pitch"]
        chunk, row = divmod(number, geometry["rows"])
        boxes = [
            (slot * pitch, row * pitch, slot * pitch + side, row * pitch + side)
            for slot, winner in enumerate(known["top"])
            if winner
        ]
        for part in ("top", "least"):
            known[part] = [self._winner(images, x) for x in known[part] if x]
        known["favourite"] = self._class(known["favourite"])
        known["strongest"] = [(self.classes[i], x) for i, x in known["strongest"]]
        cells = self._folder / f"{place}-{chunk}.webp", boxes
        return Unit(layer=layer, number=number, _cells=cells, **known)

    def _winner(self, images: Mapping[str, Any], winner: Sequence[Any]) -> Winner:
        score, index, top, left, bottom, right = winner
        id, label, file = images[str(index)]
        picture = self._folder / "pictures" / file if file else None
        box = top, left, bottom, right
        return Winner(score, id, self._class(label), box, picture)

    def _class(self, label: int) -> str | None:
        return self.classes[label] if 0 <= label < len(self.classes) else None

    def _read(self, name: str) -> Any:
        path = self._folder / name
        try:
            return json.loads(path.read_text().partition(" = ")[2].rstrip(";\n"))
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}") from error


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
    pitch = side + -side % _BLOCK
    if k * pitch > _LONGEST:
        raise ValueError(f"{name}: {k} patches of {side} pixels are too many for a row")
    for chunk, encoded in enumerate(_sprites(cells, pitch)):
        _put(folder / f"{number}-{chunk}.webp", encoded)
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
        "k": k,
        "side": side,
        "pitch": pitch,
        "rows": _ROWS,
    }


def _sprites(cells: np.ndarray, pitch: int) -> Iterator[bytes]:
    """Files of patches; each patch's edges go on to the end of its last block."""
    side = cells.shape[2]
    for first in range(0, len(cells), _ROWS):
        edge = (0, pitch - side)
        some = cells[first : first + _ROWS]
        some = np.pad(some, [(0, 0), (0, 0), edge, edge, (0, 0)], "edge")
        units, k = some.shape[:2]
        rows = some.swapaxes(1, 2).reshape(units * pitch, k * pitch, 3)
        file, lossless = io.BytesIO(), side <= _LOSSLESS
        Image.fromarray(rows).save(
            file, "WEBP", quality=90, method=2, lossless=lossless
        )
        yield file.getvalue()


def _units(layer: Layer) -> list[dict[str, Any]]:
    """What is known of each unit, as JSON."""
    order = np.argsort(-layer.class_mean, axis=1, kind="stable")[:, :_STRONGEST]
    strongest = _plain(np.take_along_axis(layer.class_mean, order, 1))
    columns = {
        "top": _winners(layer.top),
        "least": _winners(layer.least),
        "favourite": layer.favourite().tolist(),
        "selectivity": _plain(layer.selectivity()),
        "mean": _plain(layer.mean),
        "std": _plain(layer.std),
        "silent": _plain(layer.silent),
        "histogram": layer.histogram.tolist(),
        # A logit that is never above 0 is silent, too, but not dead.
        "dead": ((layer.silent == 1) & (layer.std == 0)).tolist(),
        "strongest": [
            [[i, x] for i, x in zip(*pair) if x is not None]
            for pair in zip(order.tolist(), strongest)
        ],
    }
    return [dict(zip(columns, values)) for values in zip(*columns.values())]


def _winners(winners: Winners) -> list[list[list | None]]:
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


def _put_script(path: pathlib.Path, target: str, content: Any) -> None:
    # ASCII alone, as names of files may hold what no encoding can write.
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    _put(path, f"{target} = {text};\n".encode())


def _put(path: pathlib.Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:  # Python names the file only where it cannot be opened.
        raise OSError(error.errno, error.strerror, str(path)) from error
