"""Sweeps: style transfers in rows and columns, each of which changes one setting.

A cell is painted as a whole, on one device; every device takes the next cell until none
is left. A finished cell is its picture, which holds its settings and losses, so that a run
that was stopped or killed repeats only the cells that it had not finished.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import logging
import os
import pathlib
import queue
import re
import textwrap
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import multihost_utils
from PIL import Image, ImageOps

from nstvis import assets, devices, images, plots
from nstvis.data.folder import SUFFIXES
from nstvis.runs import config as configs
from nstvis.runs import flags
from nstvis.runs.files import write_csv
from nstvis.runs.progress import Progress
from nstvis.synthesis import style, style_settings
from nstvis.synthesis.style_settings import Settings

logger = logging.getLogger(__name__)

RESULTS = ["sheet.png", "cells.csv"]
LOSSES = ("J", "J_content", "J_style")
TILE = 384  # pixels, at most, of a picture's long side on the sheet
PAGE = 8000  # and of all pictures in a row or a column of it
PICTURES = ("content", "style")
# Settings that programs take as data, so that cells which differ in them share programs.
_DATA = {*PICTURES, "alpha", "beta", "gamma", "seed"}


@dataclasses.dataclass(kw_only=True)
class Painting(Settings):
    """Which pictures, and how to paint."""

    # Content picture: a path, or demo.
    content: str = "demo"
    # Style pictures: paths separated by commas, or demo.
    style: str = "demo"

    def paths(self) -> list[pathlib.Path]:
        """Returns the content's path, then the styles'."""
        single = os.path.isfile(self.style)  # perhaps with a comma in its name
        names = [self.style] if single else self.style.split(",")
        styles = [assets.picture(name.strip(), "style") for name in names]
        return [assets.picture(self.content, "content"), *styles]


Sizes = dict[pathlib.Path, tuple[int, int]]  # width and height of picture files


class Axis(NamedTuple):
    """What changes along the rows, or along the columns.

    Attributes:
        field: Of `Painting`; empty if nothing changes, and then there is one value.
        values: Of that field.
    """

    field: str
    values: Sequence[Any]

    def changed(self, painting: Painting, value: Any) -> Painting:
        """Returns a painting with one of the values."""
        changes = {self.field: value} if self.field else {}
        return dataclasses.replace(painting, **changes)

    def label(self, value: Any) -> str:
        """Returns what a value is called: a picture's name, or FIELD=VALUE."""
        if self.field in PICTURES:
            return " + ".join(pathlib.Path(name).stem for name in value.split(","))
        text = f"{value:g}" if isinstance(value, float) else value
        return f"{self.field}={text}" if self.field else ""


class Cell(NamedTuple):
    """A picture of the sheet."""

    label: str
    painting: Painting
    path: pathlib.Path

    def losses(self) -> dict[str, float] | None:
        """Returns J and its terms of the finished picture; None if it is not there."""
        with contextlib.suppress(ValueError, OSError):
            note = images.read_settings(self.path)
            if note | dataclasses.asdict(self.painting) == note:
                return {name: note[name] for name in LOSSES}
        return None

    def paint(self, stop: threading.Event, report: Callable[[str], None]) -> None:
        """Paints and writes the picture, unless asked to stop; reports every step."""
        content, *styles = map(images.read, self.painting.paths())
        transfer = style.StyleTransfer(content, styles, self.painting)
        rows = []
        for moment in transfer.run():
            if stop.is_set():
                return
            if moment.metrics:
                rows.append(moment.metrics)
                report(self.label)
        best = float(moment.state.best_loss)
        rows = jax.device_get(rows[-self.painting.steps :])  # those of the last size
        row = next((row for row in rows if row["J"] == best), None)
        if row is None:
            raise FloatingPointError("the loss is not finite")
        losses = {name: float(row[name]) for name in LOSSES}
        note = dataclasses.asdict(self.painting) | {"step": len(transfer.costs)}
        transfer.write(self.path, moment.state, note | losses)


def parse_axis(name: str, text: str) -> Axis:
    """Parses `beta:0.5,1.5,5`, or with semicolons `style_layers:conv1_1;conv1_1,conv2_1`.

    Args:
        name: Of the flag, for the errors.
        text: A field of `Painting` and its values; empty if nothing changes.

    Raises:
        ValueError: There is no such field, or a value is not of its type, missing, or
            given twice.
    """
    if not text.strip():
        return Axis("", [""])
    field, colon, rest = (part.strip() for part in text.partition(":"))
    if not colon:
        raise ValueError(
            f"{name}={text} should be FIELD:VALUES, such as beta:0.5,1.5,5"
        )
    separator = ";" if ";" in rest else ","
    parts = [part.strip() for part in rest.split(separator)]
    if not all(parts):
        raise ValueError(f"{name}={text}: a value is missing beside a {separator!r}")
    values = [flags.parse_value(Painting, field, part) for part in parts]
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"{name}={text}: {value} is given twice")
    return Axis(field, values)


def check(painting: Painting, rows: Axis, columns: Axis) -> None:
    """Raises a ValueError if the settings of a cell are not those of a painting."""
    if rows.field and rows.field == columns.field:
        raise ValueError(f"rows and columns both change {rows.field}")
    for row in rows.values:
        for column in columns.values:
            configs.check(columns.changed(rows.changed(_plain(painting), row), column))


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
    sizes = _check_cells(cells)
    (workdir / "cells").mkdir(exist_ok=True)
    _paint(cells[jax.process_index() :: jax.process_count()], sizes)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("sweep")
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
            painting.content, lambda size: style_settings.long_sides(size, painting)
        )
    if os.path.isdir(painting.style):
        styles = _usable(painting.style, lambda size: size)
    return run(painting, Axis("content", contents), Axis("style", styles), workdir)


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

    def cell(i: int, j: int) -> Cell:
        row, column = rows.values[i], columns.values[j]
        labels = [*filter(None, [rows.label(row), columns.label(column)])]
        # Numbers tell apart what looks alike once it is cut, or is ASCII.
        words = [re.sub(r"[^\w.,+=-]", "_", x, flags=re.ASCII)[:80] for x in labels]
        file = folder / f"{'__'.join([f'{i + 1}-{j + 1}', *words])}.png"
        changed = columns.changed(rows.changed(_plain(painting), row), column)
        return Cell(", ".join(labels) or "picture", changed, file)

    return [
        [cell(i, j) for j in range(len(columns.values))]
        for i in range(len(rows.values))
    ]


def _check_cells(cells: Sequence[Cell]) -> Sizes:
    """Checks what a transfer would find wrong; returns the width and height of pictures.

    Raises:
        ValueError: A picture, a layer or a size does not fit.
        OSError: A picture does not exist.
    """
    sizes: Sizes = {}
    layers = {}
    for _, painting, _ in cells:
        content, *styles = painting.paths()
        for path in {content, *styles} - sizes.keys():
            sizes[path] = images.read(path).size
        style_settings.check(painting, len(styles))
        style_settings.long_sides(sizes[content], painting)
        layers[painting.model, painting.content_layers, painting.style_layers] = (
            painting
        )
    for painting in layers.values():
        style.find_layers(painting)
    return sizes


def _paint(cells: Sequence[Cell], sizes: Sizes) -> None:
    """Paints the cells that are not there, on every device of this host.

    Cells of the same programs follow one another. One whose loss is not finite is left
    out with a warning.
    """
    done = [cell for cell in cells if cell.losses()]
    left = [cell for cell in cells if not cell.losses()]
    left.sort(key=lambda cell: _program(cell.painting, sizes))
    if not left:
        return
    local = jax.local_devices()
    waiting = collections.deque([*left, *[None] * len(local)])
    stop, reports = threading.Event(), queue.SimpleQueue()

    def work(device: Any) -> None:
        try:
            with jax.default_device(device):
                while (cell := waiting.popleft()) and not stop.is_set():
                    try:
                        cell.paint(stop, reports.put)
                    except FloatingPointError as error:
                        logger.warning("left out: %s: %s", cell.label, error)
        except BaseException:
            stop.set()
            raise
        finally:
            reports.put("")

    costs = [_costs(cell.painting, sizes) for cell in (*done, *left)]
    step = sum(map(len, costs[: len(done)]))
    flat = [cost for steps in costs for cost in steps]
    with (
        _quiet(style.logger),
        Progress(flat, step, counted=False) as progress,
        concurrent.futures.ThreadPoolExecutor(len(local)) as threads,
    ):
        working = [threads.submit(work, device) for device in local]
        try:
            running = len(working)
            while running:
                if label := reports.get():
                    step += 1
                    progress.show(step, label)
                else:
                    running -= 1
                if progress.interrupted:
                    stop.set()
        finally:
            stop.set()
        for worker in working:
            worker.result()


def _program(painting: Painting, sizes: Sizes) -> list[Any]:
    """Returns what decides on the programs that paint a picture, to sort by."""
    shapes = [
        images.fitted_size(sizes[path], painting.size) for path in painting.paths()
    ]
    settings = dataclasses.asdict(painting)
    return [shapes, *(str(settings[name]) for name in settings if name not in _DATA)]


def _costs(painting: Painting, sizes: Sizes) -> list[float]:
    """Returns the pixels that each step paints."""
    size, margins = sizes[painting.paths()[0]], 2 * painting.margin
    pixels = [
        float((width + margins) * (height + margins))
        for side in style_settings.long_sides(size, painting)
        for width, height in [images.fitted_size(size, side)]
    ]
    return [x for x in pixels for _ in range(painting.steps)]


@contextlib.contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Keeps back the lines that one transfer logs, but for warnings."""
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def _write_table(
    path: pathlib.Path, grid: Sequence[Sequence[Cell]], rows: Axis, columns: Axis
) -> None:
    """Writes a line for each cell; the losses of one that is left out are empty."""
    fields = [*filter(None, [rows.field, columns.field])]
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
    row_names = [_wrapped(rows.label(value), 24) for value in rows.values]
    names = [columns.label(value) for value in columns.values]
    if columns.field in PICTURES:
        cells.insert(0, [_original(columns.field, cell, side) for cell in grid[0]])
        row_names.insert(0, columns.field)
    if rows.field in PICTURES:
        originals = [_original(rows.field, line[0], side) for line in grid]
        corner = [""] * (columns.field in PICTURES)
        cells = [[x, *line] for x, line in zip([*corner, *originals], cells)]
        names.insert(0, rows.field)
    tiles = [x for line in cells for x in line if isinstance(x, Image.Image)]
    width, height = (max((x.size[i] for x in tiles), default=side) for i in (0, 1))
    size = width, height
    padded = [
        [
            x if isinstance(x, str) else ImageOps.pad(x, size, color="white")
            for x in line
        ]
        for line in cells
    ]
    names = [_wrapped(name, max(12, width // 8)) for name in names]
    return plots.grid(padded, row_names, names, size)


def _original(field: str, cell: Cell, side: int) -> Image.Image:
    return _tile(cell.painting.paths()[PICTURES.index(field)], side)


def _tile(path: pathlib.Path, side: int) -> Image.Image:
    """Reads a picture on white, scaled down to `side` pixels if it is larger."""
    picture = images.read(path)
    picture = images.resize(picture, min(side, max(picture.size))).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")


def _wrapped(name: str, width: int) -> str:
    """Breaks a name into lines of at most so many characters."""
    spaced = name.replace("=", " = ").replace(",", ", ")
    return "\n".join(textwrap.wrap(spaced, width))
