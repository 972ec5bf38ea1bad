"""Cells of a sweep: style transfers, each painted as a whole on one of the devices.

Every device takes the next cell until none is left. A finished cell is its picture, which
holds its settings and losses, so that a run that was stopped or killed repeats only the
cells that it had not finished.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import logging
import os
import pathlib
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax

from nstvis import assets, devices, images
from nstvis.runs.progress import Progress
from nstvis.synthesis import programs, style, style_settings
from nstvis.synthesis.style_settings import Settings

logger = logging.getLogger(__name__)

LOSSES = ("J", "J_content", "J_style")
# Settings that programs take as data, so that cells which differ in them share programs.
_DATA = {"content", "style", "alpha", "beta", "gamma", "seed"}
_OF_NETWORK = ("model", "weights", "content_layers", "style_layers")


@dataclasses.dataclass(kw_only=True)
class Painting(Settings):
    """Which pictures, and how to paint."""

    # Content picture: a path, or demo.
    content: str = "demo"
    # Style pictures: paths separated by commas, or demo.
    style: str = "demo"

    def paths(self) -> list[pathlib.Path]:
        """Returns the content's path, then the styles'."""
        return [assets.picture(self.content, "content"), *self.style_paths()]

    def style_paths(self) -> list[pathlib.Path]:
        """Returns the styles' paths."""
        single = os.path.isfile(self.style)  # perhaps with a comma in its name
        names = [self.style] if single else self.style.split(",")
        return [assets.picture(name.strip(), "style") for name in names]


Sizes = dict[pathlib.Path, tuple[int, int]]  # width and height of picture files


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
        rows = jax.device_get(rows[::-1])  # the best is one of the last size
        row = next((row for row in rows if row["J"] == best), None)
        if row is None:
            raise FloatingPointError("the loss is not finite")
        losses = {name: float(row[name]) for name in LOSSES}
        note = dataclasses.asdict(self.painting) | {"step": len(transfer.costs)}
        # Not `transfer.write`: every host writes the pictures that it has painted.
        images.write(self.path, transfer.picture(moment.state), note | losses)


def check_cells(cells: Sequence[Cell]) -> Sizes:
    """Checks what a transfer would find wrong; returns the width and height of pictures.

    Raises:
        ValueError: A picture, a layer or a size does not fit.
        OSError: A picture does not exist.
    """
    sizes: Sizes = {}
    networks: dict[tuple, Painting] = {}
    for _, painting, _ in cells:
        content, *styles = painting.paths()
        for path in {content, *styles} - sizes.keys():
            sizes[path] = images.read(path).size
        style_settings.check(painting, len(styles))
        style_settings.sizes(sizes[content], painting)
        networks |= {tuple(getattr(painting, x) for x in _OF_NETWORK): painting}
    for painting in networks.values():
        programs.network(painting)
    return sizes


def paint(cells: Sequence[Cell], sizes: Sizes) -> None:
    """Paints the cells that are not there, on every device of every host.

    Cells of the same programs follow one another. One whose loss is not finite is left
    out with a warning.

    Raises:
        Interrupted: A signal arrived.
    """
    cells = cells[jax.process_index() :: jax.process_count()]
    done = [cell for cell in cells if cell.losses()]
    left = [cell for cell in cells if not cell.losses()]
    left.sort(key=lambda cell: _program(cell.painting, sizes))
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
        _quiet(style.logger, programs.logger),
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
        # Waits for the other hosts: stopped or finished, all are so together.
        progress.interrupted = devices.agreed(progress.interrupted, 0)


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
    return [
        float((width + margins) * (height + margins))
        for side, steps in style_settings.sizes(size, painting)
        for width, height in [images.fitted_size(size, side)]
        for _ in range(steps)
    ]


@contextlib.contextmanager
def _quiet(*loggers: logging.Logger) -> Iterator[None]:
    """Keeps back the lines that each transfer logs, but for warnings."""
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)
