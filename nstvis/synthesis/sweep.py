"""Sweeps: style transfers in rows and columns, each of which changes settings."""

import dataclasses
import itertools
import logging
import math
import os
import pathlib
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from PIL import Image, ImageOps

from nstvis import devices, images, plots
from nstvis.data.folder import SUFFIXES
from nstvis.runs import config as configs
from nstvis.runs import flags
from nstvis.runs.files import write_csv
from nstvis.synthesis import style_settings
from nstvis.synthesis.cells import LOSSES, Cell, Painting, check_cells, paint

logger = logging.getLogger(__name__)

RESULTS = ["sheet.png", "cells.csv"]
TILE = 384  # pixels, at most, of a picture's long side on the sheet
PAGE = 8000  # and of all pictures in a row or a column of it
ACROSS = 5  # at most, in a line, where columns change settings apart
LEADING = 10  # pixels between such lines
PICTURES = ("content", "style")
DEFAULT = "default"  # in a row or a column, what changes nothing


class Axis(NamedTuple):
    """What changes along the rows, or along the columns.

    Attributes:
        labels: What the values are called: a picture's name, or FIELD=VALUE.
        values: Fields of `Painting` that change, and to what.
    """

    labels: Sequence[str]
    values: Sequence[Mapping[str, Any]]

    @property
    def fields(self) -> list[str]:
        """The names of all fields that change."""
        return list(dict.fromkeys(name for value in self.values for name in value))

    @property
    def picture(self) -> str:
        """`content` or `style`, if it is all that changes; otherwise empty."""
        return next((x for x in PICTURES if self.fields == [x]), "")


def of_field(field: str, values: Sequence[Any]) -> Axis:
    """Returns the axis that changes one field of `Painting`."""
    return Axis(
        [_label(field, value) for value in values], [{field: x} for x in values]
    )


def parse_axis(name: str, text: str) -> Axis:
    """Parses `beta:0.5,1.5,5`, or with semicolons `style_layers:conv1_1;conv1_1,conv2_1`.

    `default;beta=5;start=content start_noise=0.5` has settings that change apart.

    Args:
        name: Of the flag, for the errors.
        text: A field of `Painting` and its values, or such settings; empty if nothing
            changes.

    Raises:
        ValueError: There is no such field, or a value is not of its type, missing, or
            given twice.
    """
    if not text.strip():
        return Axis([""], [{}])
    head, _, rest = (part.strip() for part in text.partition(":"))
    separate = not re.fullmatch(r"\w*", head)
    if not (separate or rest):
        raise ValueError(
            f"{name}={text} should be FIELD:VALUES, such as beta:0.5,1.5,5, or settings"
            f" such as {DEFAULT};beta=5;style_scale=0.5"
        )
    separator = ";" if separate or ";" in rest else ","
    parts = [part.strip() for part in (text if separate else rest).split(separator)]
    if not all(parts):
        raise ValueError(f"{name}={text}: a value is missing beside a {separator!r}")
    if separate:
        axis = Axis(parts, [_settings(name, part) for part in parts])
    else:
        values = [flags.parse_value(Painting, head, part) for part in parts]
        axis = of_field(head, values)
    for label, value in zip(parts, axis.values):
        if axis.values.count(value) > 1:
            raise ValueError(f"{name}={text}: {label} is given twice")
    return axis


def _settings(name: str, text: str) -> dict[str, Any]:
    """Parses `start=content start_noise=0.5`, or `default`, which changes nothing."""
    found = {}
    for word in [] if text == DEFAULT else text.split():
        field, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"{name}: {word!r} should be FIELD=VALUE or {DEFAULT}")
        found[field] = flags.parse_value(Painting, field, value)
    return found


def _label(field: str, value: Any) -> str:
    if field in PICTURES:
        content, *styles = Painting(**{field: value}).paths()
        shown = [content] if field == "content" else styles
        return " + ".join(path.stem for path in shown)
    return f"{field}={value:g}" if isinstance(value, float) else f"{field}={value}"


def check(painting: Painting, rows: Axis, columns: Axis) -> None:
    """Raises a ValueError if the settings of a cell are not those of a painting."""
    for field in set(rows.fields).intersection(columns.fields):
        raise ValueError(f"rows and columns both change {field}")
    plain = _plain(painting)
    for row in rows.values:
        for column in columns.values:
            configs.check(dataclasses.replace(plain, **row, **column))


def run(
    painting: Painting, rows: Axis, columns: Axis, workdir: pathlib.Path
) -> list[str]:
    """Paints the cells that are missing, then writes the sheet and the table.

    Returns:
        Names of the results in `workdir`.

    Raises:
        ValueError: Before anything is painted: a picture, a layer or a size that does
            not fit.
        OSError: A picture does not exist, or a file could not be written.
    """
    check(painting, rows, columns)
    grid = _grid(painting, rows, columns, workdir / "cells")
    cells = [cell for line in grid for cell in line]
    sizes = check_cells(cells)
    (workdir / "cells").mkdir(exist_ok=True)
    paint(cells, sizes)
    if devices.is_lead():
        _write_table(workdir / "cells.csv", grid, rows, columns)
        images.write(workdir / "sheet.png", _sheet(grid, rows, columns))
    return RESULTS


def has_folder(painting: Painting) -> bool:
    """Whether the content or the style is a folder of pictures."""
    return os.path.isdir(painting.content) or os.path.isdir(painting.style)


def run_folders(painting: Painting, workdir: pathlib.Path) -> list[str]:
    """Paints every picture of a folder in the style of every picture of another.

    Files that cannot be read, or contents too thin to paint, are left out with a warning.

    Args:
        painting: Its content or its style, or both, are folders.
        workdir: As in `run`, which says what is left there and raised.
    """
    contents, styles = [painting.content], [painting.style]
    if os.path.isdir(painting.content):
        contents = _usable(
            painting.content, lambda size: style_settings.sizes(size, painting)
        )
    if os.path.isdir(painting.style):
        styles = _usable(painting.style, lambda _: None)
    axes = of_field("content", contents), of_field("style", styles)
    return run(painting, *axes, workdir)


def _usable(folder: str, check: Callable[[tuple[int, int]], Any]) -> list[str]:
    """Returns the paths of a folder's pictures that can be read, and pass a check."""
    paths = [
        path
        for path in sorted(pathlib.Path(folder).iterdir())
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    ]
    usable = []
    for path in paths:
        try:
            check(images.read(path).size)
            usable.append(str(path))
        except (ValueError, OSError) as error:
            hint = "" if str(path) in str(error) else f"{path}: "
            logger.warning("left out: %s%s", hint, error)
    if not usable:
        raise ValueError(f"{folder}: none of its {len(paths)} pictures can be used")
    if len(usable) < len(paths):
        left_out = len(paths) - len(usable)
        logger.warning("%s: %d of %d pictures left out", folder, left_out, len(paths))
    return usable


def _plain(painting: Painting) -> Painting:
    """Drops what a Config adds, such as the rows and the columns."""
    names = [field.name for field in dataclasses.fields(Painting)]
    return Painting(**{name: getattr(painting, name) for name in names})


def _grid(
    painting: Painting, rows: Axis, columns: Axis, folder: pathlib.Path
) -> list[list[Cell]]:
    """Returns the cells, row by row, each with a file of its own."""
    plain = _plain(painting)

    def cell(i: int, j: int) -> Cell:
        labels = [*filter(None, [rows.labels[i], columns.labels[j]])]
        # Numbers tell apart what looks alike once it is cut, or is ASCII.
        words = [re.sub(r"[^\w.,+=-]", "_", x, flags=re.ASCII)[:80] for x in labels]
        file = folder / f"{'__'.join([f'{i + 1}-{j + 1}', *words])}.png"
        changed = dataclasses.replace(plain, **rows.values[i], **columns.values[j])
        return Cell(", ".join(labels) or "picture", changed, file)

    return [
        [cell(i, j) for j in range(len(columns.values))]
        for i in range(len(rows.values))
    ]


def _write_table(
    path: pathlib.Path, grid: Sequence[Sequence[Cell]], rows: Axis, columns: Axis
) -> None:
    """Writes a line for each cell; the losses of one that is left out are empty."""
    fields = [*rows.fields, *columns.fields]
    table = []
    for cell in (cell for line in grid for cell in line):
        losses = cell.losses() or {}
        values = [getattr(cell.painting, field) for field in fields]
        table.append([*values, *map(losses.get, LOSSES), f"cells/{cell.path.name}"])
    write_csv(path, [*fields, *LOSSES, "file"], table)


def _sheet(grid: Sequence[Sequence[Cell]], rows: Axis, columns: Axis) -> Image.Image:
    """Lays out the pictures, with originals at the left and the top where these change."""
    side = max(32, min(TILE, PAGE // max(len(rows.values), len(columns.values))))
    cells: list[list[Image.Image | str]] = [
        [_tile(cell.path, side) if cell.losses() else "not finite" for cell in line]
        for line in grid
    ]
    painted = [x.size for line in cells for x in line if isinstance(x, Image.Image)]
    side = max(map(max, painted), default=side)
    row_names = [_wrapped(label, 24) for label in rows.labels]
    names = [*columns.labels]
    if columns.picture:
        cells.insert(0, [_original(columns.picture, cell, side) for cell in grid[0]])
        row_names.insert(0, columns.picture)
    if rows.picture:
        originals = [_original(rows.picture, line[0], side) for line in grid]
        corner = [""] * bool(columns.picture)
        cells = [[x, *line] for x, line in zip([*corner, *originals], cells)]
        names.insert(0, rows.picture)
    width, height = (max((x[i] for x in painted), default=side) for i in (0, 1))
    padded = [
        [
            x if isinstance(x, str) else ImageOps.pad(x, (width, height), color="white")
            for x in line
        ]
        for line in cells
    ]
    names = [_wrapped(name, max(12, width // 8)) for name in names]
    if len(padded) > 1 or len(columns.fields) < 2:
        return plots.grid(padded, row_names, names, (width, height))
    return _lines(padded[0], names, (width, height))


def _lines(
    cells: Sequence[Image.Image | str], names: Sequence[str], size: tuple[int, int]
) -> Image.Image:
    """Lays out pictures that have little in common in lines about as long as another."""
    across = math.ceil(len(cells) / math.ceil(len(cells) / ACROSS))
    lines = [
        plots.grid([cells[i : i + across]], [""], names[i : i + across], size)
        for i in range(0, len(cells), across)
    ]
    tops = [0, *itertools.accumulate(line.height + LEADING for line in lines)]
    page = Image.new("RGB", (lines[0].width, tops.pop() - LEADING), "white")
    for line, top in zip(lines, tops):
        page.paste(line, (0, top))
    return page


def _original(field: str, cell: Cell, side: int) -> Image.Image:
    return _tile(cell.painting.paths()[PICTURES.index(field)], side)


def _tile(path: pathlib.Path, side: int) -> Image.Image:
    """Reads a picture on white, scaled down to `side` pixels if it is larger."""
    picture = images.read(path)
    picture = images.resize(picture, min(side, max(picture.size))).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def _wrapped(name: str, width: int) -> str:
    """Breaks a name into lines of at most so many characters, after , and / too."""
    breakable = re.sub(r"([,/])(?=\S)", "\\1\0 ", name)
    lines = textwrap.wrap(breakable, width, break_on_hyphens=False)
    return re.sub("\0 ?", "", "\n".join(lines))
