"""What a survey of units leaves: a table, contact sheets, and an atlas."""

import io
import math
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from nstvis import images
from nstvis.units import atlas, contact_sheets, maxima, scan
from nstvis.units.patches import Images
from nstvis.units.table import Layer, Table, save

SHOWN = 224  # pixels, at most, of the side of a whole image in the atlas


def table(
    target: scan.Target,
    state: maxima.State,
    layers: Mapping[str, Layer],
    pictures: Images,
) -> Table:
    """Returns what was found, with the layers' top-activating patches as they are."""
    about, asked = target.about, target.about.preprocessing
    parts = [f"{part['dataset']} {part['split']}" for part in about.parts]
    shown = _images(layers, ("top", "least", "by_class"))
    examples = {index: pictures.example(index) for index in shown}
    return Table(
        layers=layers,
        fields={name: _field(target, name) for name in layers},
        classes=about.classes,
        examples={index: (x.id, x.label) for index, x in examples.items()},
        edges=maxima.edges(),
        images=int(state.images),
        size=about.size,
        about={
            "model": about.model,
            "weights": about.weights,
            "dataset": ", ".join(parts),
        }
        | ({} if asked == "auto" else {"preprocessing": asked}),
    )


def write(
    workdir: pathlib.Path,
    table: Table,
    drawn: Mapping[str, np.ndarray],
    panels: Mapping[str, atlas.Panel],
    pictures: Images,
    seed: int,
) -> None:
    """Writes `units.npz`, the contact sheets, and the atlas.

    Args:
        workdir: Where.
        table: What was found.
        drawn: Layer to its units' patches, uint8 `[units, k, side, side, 3]`.
        panels: What else is shown of units, by title; the first is in the sheets, too.
        pictures: Where the images are.
        seed: Of the choice of representative units.
    """
    save(workdir / "units.npz", table)
    beside = next(iter(panels.values()), {})
    _write_sheets(workdir / "sheets", table.layers, drawn, beside, seed)
    thumbnails = _thumbnails(table.layers, pictures)
    atlas.write(workdir, table, drawn, thumbnails, panels)


def _field(target: scan.Target, layer: str) -> tuple[int, int, int]:
    """Returns height and width of a layer's largest fields, and their stride."""
    fields = target.fields[layer]
    sizes = [fields.size(unit) for unit in range(target.about.layers[layer])]
    height, width = map(max, zip(*sizes, strict=True))
    return height, width, fields.stride


def _images(layers: Mapping[str, Layer], parts: Sequence[str]) -> list[int]:
    """Returns the indices of all images that are ranked in those parts of layers."""
    ranked = [
        getattr(layer, part).image.ravel()
        for layer in layers.values()
        for part in parts
    ]
    indices = np.unique(np.concatenate(ranked))
    return indices[indices >= 0].tolist()


def _thumbnails(layers: Mapping[str, Layer], pictures: Images) -> dict[int, bytes]:
    """Returns the whole images, as the atlas shows them, by index."""
    encoded = {}
    for index in _images(layers, ("top", "least")):
        file, image = io.BytesIO(), Image.fromarray(pictures[index])
        image.thumbnail((SHOWN, SHOWN))
        image.save(file, "WEBP", quality=85)
        encoded[index] = file.getvalue()
    return encoded


def _write_sheets(
    folder: pathlib.Path,
    layers: Mapping[str, Layer],
    drawn: Mapping[str, np.ndarray],
    beside: atlas.Panel,
    seed: int,
) -> None:
    """Writes a page of each layer's nine representative units, and one of all."""
    folder.mkdir(exist_ok=True)
    for name, layer in layers.items():
        units = len(layer.mean)
        nine = contact_sheets.representative(layer, drawn[name], 9, seed)
        stem = name.replace("/", "_")
        pages = {
            f"{stem}_all.png": (list(range(units)), 32, math.ceil(math.sqrt(units)))
        }
        if nine:
            pages[f"{stem}.png"] = nine, 64, 3
        for file, (shown, side, columns) in pages.items():
            page = contact_sheets.sheet(
                name, drawn[name], shown, side, columns, beside.get(name)
            )
            images.write(folder / file, page)
