"""Writes atlases: `index.html`, and the folder `atlas` that it shows.

The folder holds scripts with all that is said (`atlas_json`); `N-C.webp`, the patches of
the C-th sixteen units of layer N (`sprites`); `TITLE-N-C.webp`, what else is shown of
them, such as their attributions; `pictures`, the whole images; and `page`, the style and
the scripts of `index.html`. The page is the same in every atlas of a version.
"""

import itertools
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from nstvis.runs import files, workdir
from nstvis.units import atlas_json, sprites, unit_names
from nstvis.units.measurements import Finding
from nstvis.units.sprites import Grid
from nstvis.units.table import Table

# Layer to unit to its pictures.
Panel = Mapping[str, Mapping[int, np.ndarray]]
_SUFFIXES = {b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp", b"\x89PNG": ".png"}


class Draft:
    """An atlas that is being written, perhaps by several processes one after another.

    It is the folder `atlas.partial`, in which every file is whole, until `publish` makes
    an atlas of it.

    Args:
        folder: Of the atlas; may hold other files.
        key: What the atlas is of. A draft of the same key goes on with what there is, an
            empty one with nothing.

    Attributes:
        folder: That of the files.
        work: A folder of what the drafts of a key keep for one another.
        pictures: Index of a whole image to the name of its file.
    """

    def __init__(self, folder: str | os.PathLike, key: str = ""):
        self._final, self._key = pathlib.Path(folder), key
        self.folder = self._final / "atlas.partial"
        self.work = self.folder / "work"
        if not (self._final / "index.html").exists() and _has_key(self._atlas, key):
            os.replace(
                self._atlas, self.folder
            )  # a kill left an atlas without its page
        if not _has_key(self.folder, key):
            self.discard()
            (self.folder / "pictures").mkdir(parents=True)
            self.work.mkdir()
            if key:
                atlas_json.write_panels(self.folder, {})
                files.write_text(self.folder / "key", key)
        files.remove_partial(self.folder)
        self.pictures = {
            int(path.stem): path.name for path in (self.folder / "pictures").iterdir()
        }

    @property
    def _atlas(self) -> pathlib.Path:
        return self._final / "atlas"

    def add_picture(self, index: int, encoded: bytes) -> None:
        """Writes a whole image, of the encoding of a JPEG, WebP or PNG file."""
        name = f"{index}{_suffix(index, encoded)}"
        with files.replacing(self.folder / "pictures" / name) as file:
            file.write(encoded)
        self.pictures[index] = name

    def sprite(self, layer: int, chunk: int, title: str = "") -> pathlib.Path:
        """Returns the path of the patches of some units, or of a panel's pictures."""
        return self.folder / f"{title}{'-' if title else ''}{layer}-{chunk}.webp"

    def list_panel(self, title: str, layer: int, grid: Grid, units: int) -> None:
        """Shows a panel of a layer, the sprites of whose units are there."""
        panels = atlas_json.read_panels(self.folder)
        entry = grid.to_json() | {"units": [*range(units)]}
        panels.setdefault(title, {})[str(layer)] = entry
        atlas_json.write_panels(self.folder, panels)

    def has_panel(self, title: str, layer: int) -> bool:
        """Whether a panel of a layer is shown already."""
        return str(layer) in atlas_json.read_panels(self.folder).get(title, {})

    def written(self, title: str, layer: int) -> int:
        """Returns how many of the first files of a panel of a layer there are."""
        paths = (self.sprite(layer, chunk, title) for chunk in itertools.count())
        return next(n for n, path in enumerate(paths) if not path.exists())

    def write_panel(
        self,
        title: str,
        layer: int,
        grid: Grid,
        pictures: Iterator[np.ndarray],
        first: int = 0,
    ) -> None:
        """Writes and shows a panel of a layer, a file at a time.

        Args:
            title: Of the panel.
            layer: The number of the layer.
            grid: How its pictures lie in their files.
            pictures: Of each of its units, in order, uint8 `[k, side, side, 3]`; of none
                if there is nothing to show.
            first: How many units' pictures have been written; these are of the rest.
        """
        units = first
        while cells := [*itertools.islice(pictures, grid.rows)]:
            path = self.sprite(layer, grid.chunk(units), title)
            sprites.write(path, np.stack(cells), grid)
            units += len(cells)
        if units:
            self.list_panel(title, layer, grid, units)

    def publish(self, table: Table, grids: Mapping[str, Grid]) -> None:
        """Writes the rest, and puts the atlas in place of an earlier one.

        What is in `work` stays until `finished` is called.

        Args:
            table: The results of the scan.
            grids: Layer to how its patches lie in their files.
        """
        atlas_json.write_table(self.folder, table, grids)
        atlas_json.write_findings(self.folder, {})
        for title, findings in table.findings.items():
            _add_findings(self.folder, list(table.layers), title, findings)
        atlas_json.write_search(self.folder, table.layers, table.examples)
        _write_page(self.folder)
        _replace(self._final, self.folder)

    def discard(self) -> None:
        """Removes it."""
        shutil.rmtree(self.folder, ignore_errors=True)


def finished(folder: pathlib.Path, key: str, names: Sequence[str]) -> bool:
    """Returns whether the atlas of a key has been published, and if so, cleans up.

    Args:
        folder: Of the atlas.
        key: What it is of.
        names: Of files and folders in `work` that belong beside the atlas.
    """
    if not (folder / "index.html").exists() or not _has_key(folder / "atlas", key):
        return False
    work = folder / "atlas" / "work"
    for name in names:
        if (work / name).exists():
            shutil.rmtree(folder / name, ignore_errors=True)
            os.replace(work / name, folder / name)
    shutil.rmtree(work, ignore_errors=True)
    return True


def _has_key(folder: pathlib.Path, key: str) -> bool:
    """Whether what is in a folder is of a key."""
    path = folder / "key"
    return bool(key) and path.exists() and path.read_text() == key


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
    draft, grids = Draft(folder), {}
    try:
        for index, encoded in pictures.items():
            draft.add_picture(index, encoded)
        atlas_json.write_panels(draft.folder, {})
        for number, (name, layer) in enumerate(table.layers.items()):
            ranked = layer.top.image.shape
            grids[name] = _write_patches(draft, number, name, patches[name], ranked)
            atlas_json.write_layer(
                draft.folder, number, layer, table.examples, draft.pictures
            )
        for title, panel in (panels or {}).items():
            _add(draft.folder, list(table.layers), title, panel)
        shutil.rmtree(draft.work)
        draft.publish(table, grids)
    finally:
        draft.discard()


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
    with workdir.alone(scripts.parent, wait=True):
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
    with workdir.alone(scripts.parent, wait=True):
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


def _suffix(index: int, encoded: bytes) -> str:
    for start, suffix in _SUFFIXES.items():
        if encoded.startswith(start):
            return suffix
    raise ValueError(f"the picture of image {index} is neither JPEG nor WebP nor PNG")


def _write_patches(
    draft: Draft,
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
        path = draft.sprite(number, grid.chunk(first))
        sprites.write(path, patches[first : first + grid.rows], grid)
    return grid


def _write_page(folder: pathlib.Path) -> None:
    """Writes `index.html`, and what it is made of into `page`."""
    (folder / "page").mkdir(exist_ok=True)
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
