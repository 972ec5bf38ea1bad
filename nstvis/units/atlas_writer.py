"""Writes atlases: `index.html`, and the folder `atlas` that it shows.

The folder holds scripts with all that is said (`atlas_json`); `N-C.webp`, the patches of
the C-th sixteen units of layer N (`sprites`); `TITLE-N-C.webp`, what else is shown of
them, such as their attributions; `pictures`, the whole images; and `page`, the style and
the scripts of `index.html`. The page is the same in every atlas of a version.
"""

import os
import pathlib
import shutil
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from nstvis.runs import files
from nstvis.units import atlas_json, sprites, unit_names
from nstvis.units.measurements import Finding
from nstvis.units.sprites import Grid
from nstvis.units.table import Table

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
        table: The results of the scan.
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
    new = folder / "atlas.partial"
    shutil.rmtree(new, ignore_errors=True)
    try:
        (new / "pictures").mkdir(parents=True)
        names = _write_pictures(new / "pictures", pictures)
        grids = {}
        for number, (name, layer) in enumerate(table.layers.items()):
            grids[name] = _write_patches(
                new, number, name, patches[name], layer.top.image.shape
            )
            atlas_json.write_layer(new, number, layer, table.examples, names)
        atlas_json.write_table(new, table, grids)
        atlas_json.write_panels(new, {})
        atlas_json.write_findings(new, {})
        for title, findings in table.findings.items():
            _add_findings(new, list(table.layers), title, findings)
        for title, panel in (panels or {}).items():
            _add(new, list(table.layers), title, panel)
        atlas_json.write_search(new, table.layers, table.examples)
        _write_page(new)
        _replace(folder, new)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def add(folder: str | os.PathLike, title: str, panel: Panel) -> None:
    """Shows more of units in an existing atlas.

    Args:
        folder: The atlas's.
        title: Of letters and digits. What earlier calls with the same title showed of
            other units stays, if it has the same size and number in that layer.
        panel: Layer to unit to its pictures, uint8 `[n, side, side, 3]`; of the same
            size and number for each unit of a layer.

    Raises:
        FileNotFoundError: There is no atlas in the folder.
        ValueError: It has no such layer or unit, or the pictures are not what they
            should be.
        OSError: A file cannot be written; it is named.
    """
    scripts = atlas_json.find(folder)
    table = atlas_json.read_table(scripts)
    counts = {layer["name"]: layer["units"] for layer in table["layers"]}
    for layer, pictures in panel.items():
        for unit in pictures:
            unit_names.check(counts, layer, unit)
    # Without loss, as units that stay are written again each time.
    _add(scripts, list(counts), title, panel, lossless=True)


def add_findings(
    folder: str | os.PathLike, title: str, findings: Mapping[str, Finding]
) -> None:
    """Says more of units in an existing atlas, in place of an earlier call's.

    Args:
        folder: The atlas's.
        title: Of letters and digits, such as name.
        findings: Layer to what is said of all its units.

    Raises:
        FileNotFoundError: There is no atlas in the folder.
        ValueError: It has no such layer, or another number of units in it.
        OSError: A file cannot be written; it is named.
    """
    scripts = atlas_json.find(folder)
    table = atlas_json.read_table(scripts)
    counts = {layer["name"]: layer["units"] for layer in table["layers"]}
    for name, finding in findings.items():
        unit_names.check(counts, name, 0)
        if any(len(array) != counts[name] for array in finding.values()):
            raise ValueError(f"{title} should say something of all units of {name}")
    _add_findings(scripts, list(counts), title, findings)


def _add_findings(
    folder: pathlib.Path,
    layers: Sequence[str],
    title: str,
    findings: Mapping[str, Finding],
) -> None:
    """Adds findings to the scripts of a folder."""
    _refuse_title(title)
    listed = atlas_json.read_findings(folder)
    numbers = [layers.index(name) for name in findings]
    for number, finding in zip(numbers, findings.values(), strict=True):
        atlas_json.write_finding(folder, title, number, finding)
    listed[title] = sorted(numbers)
    atlas_json.write_findings(folder, listed)


def _refuse_title(title: str) -> None:
    if not title.isalnum():
        raise ValueError(f"the title {title!r} should be of letters and digits")


def _write_pictures(
    folder: pathlib.Path, pictures: Mapping[int, bytes]
) -> dict[int, str]:
    """Writes whole images; returns the names of their files."""
    names = {}
    for index, encoded in pictures.items():
        names[index] = f"{index}{_suffix(index, encoded)}"
        with files.replacing(folder / names[index]) as file:
            file.write(encoded)
    return names


def _suffix(index: int, encoded: bytes) -> str:
    for start, suffix in _SUFFIXES.items():
        if encoded.startswith(start):
            return suffix
    raise ValueError(f"the picture of image {index} is neither JPEG nor WebP nor PNG")


def _write_patches(
    folder: pathlib.Path,
    number: int,
    name: str,
    patches: np.ndarray,
    ranked: tuple[int, ...],
) -> Grid:
    """Writes the patches of a layer whose units have `ranked` [units, k] of them."""
    units, k = ranked
    side = patches.shape[2] if patches.ndim == 5 else 0
    if (
        patches.shape != (*ranked, side, side, 3)
        or patches.dtype != np.uint8
        or not side
    ):
        raise ValueError(
            f"the patches of {name} should be uint8 [{units}, {k}, side, side, 3], not"
            f" {patches.dtype} {list(patches.shape)}"
        )
    grid = Grid.of(k, side)
    for first in range(0, units, grid.rows):
        path = folder / f"{number}-{grid.chunk(first)}.webp"
        sprites.write(path, patches[first : first + grid.rows], grid)
    return grid


def _write_page(folder: pathlib.Path) -> None:
    """Writes `index.html`, and what it is made of into `page`."""
    (folder / "page").mkdir()
    for file in pathlib.Path(__file__).with_name("atlas_page").iterdir():
        place = folder if file.suffix == ".html" else folder / "page"
        files.write_text(place / file.name, file.read_text("utf-8"))


def _replace(folder: pathlib.Path, new: pathlib.Path) -> None:
    """Puts a new atlas in place of the old one."""
    old, page = folder / "atlas", folder / "index.html"
    page.unlink(missing_ok=True)  # where there is a page, all that it shows is there
    shutil.rmtree(old, ignore_errors=True)
    os.replace(new, old)
    os.replace(old / page.name, page)


def _add(
    folder: pathlib.Path,
    layers: Sequence[str],
    title: str,
    panel: Panel,
    lossless: bool = False,
) -> None:
    """Adds a panel to the scripts and sprites of a folder."""
    _refuse_title(title)
    panels = atlas_json.read_panels(folder)
    listed = panels.setdefault(title, {})
    for layer, pictures in panel.items():
        grid = _common_grid(f"{layer}: {title}", pictures.values())
        number = str(layers.index(layer))
        earlier = listed.pop(number, None)
        kept = []
        if earlier and Grid.from_json(earlier) == grid:
            kept = earlier["units"]
        elif earlier:
            # Unlisted before its files change, as a kill would leave a wrong entry.
            atlas_json.write_panels(folder, panels)
        for chunk in {*map(grid.chunk, pictures)}:
            path = folder / f"{title}-{number}-{chunk}.webp"
            _update(path, chunk, grid, pictures, kept, lossless)
        listed[number] = grid.to_json() | {"units": sorted({*kept, *pictures})}
    atlas_json.write_panels(folder, panels)


def _common_grid(name: str, pictures: Iterable[np.ndarray]) -> Grid:
    """Lays out the pictures of units, which should have one shape."""
    kinds = {(unit.shape, unit.dtype) for unit in pictures}
    if len(kinds) != 1:
        raise ValueError(f"{name} should have pictures of one size")
    shape, dtype = kinds.pop()
    if dtype != np.uint8 or len(shape) != 4 or shape[1:] != (shape[1], shape[1], 3):
        raise ValueError(f"{name} should be uint8 [n, side, side, 3]")
    return Grid.of(*shape[:2])


def _update(
    path: pathlib.Path,
    chunk: int,
    grid: Grid,
    pictures: Mapping[int, np.ndarray],
    kept: Sequence[int],
    lossless: bool,
) -> None:
    """Writes one file of a panel: its new pictures, and the units that it keeps."""
    cells = np.zeros((grid.rows, grid.k, grid.side, grid.side, 3), np.uint8)
    for row in range(grid.rows):
        unit = chunk * grid.rows + row
        if unit in pictures:
            cells[row] = pictures[unit]
        elif unit in kept:
            cells[row] = [*map(np.asarray, sprites.read(path, unit, grid))]
    sprites.write(path, cells, grid, lossless)
