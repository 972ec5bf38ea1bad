"""Figures: what all plots of this project have in common."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from nstvis.runs import files


def figure(width: float, height: float, **options: Any) -> Any:
    """A matplotlib figure of a size in inches, which needs no display."""
    # Half a second, which only runs that draw should take.
    import matplotlib
    from matplotlib.figure import Figure

    matplotlib.rcParams["text.parse_math"] = False  # names may have dollars
    return Figure(figsize=(width, height), **{"layout": "constrained"} | options)


def save(path: pathlib.Path, figure: Any) -> None:
    """Writes a figure as a PNG file, whole or not at all."""
    with files.replacing(path) as file:
        figure.savefig(file, format="png", dpi=120)


def image(axes: Any, pixels: npt.ArrayLike, **options: Any) -> Any:
    """Shows an image, or a map of numbers, without ticks; returns matplotlib's handle."""
    axes.set(xticks=[], yticks=[])
    return axes.imshow(pixels, **options)


def curves(
    axes: Any, x: Sequence[Any], lines: Mapping[str, npt.ArrayLike], **options: Any
) -> None:
    """Draws curves over a grid, each with its name in the legend.

    Args:
        axes: Matplotlib's.
        x: Where the values are; numbers or names.
        lines: Name to values. NaN leaves a gap.
        **options: Of `axes.set`, such as `xlabel`.
    """
    for name, values in lines.items():
        axes.plot(x, np.asarray(values, float), label=name)
    axes.set(**options)
    axes.grid(alpha=0.3)


def bars(
    axes: Any,
    names: Sequence[str],
    means: npt.ArrayLike,
    deviations: npt.ArrayLike,
    colors: Sequence[str],
) -> None:
    """Draws horizontal bars with error bars, the first name on top."""
    rows = range(len(names))
    axes.barh(rows, means, 0.55, xerr=deviations, color=colors, capsize=3)
    axes.set(yticks=rows, yticklabels=names, ylim=(len(names) - 0.5, -0.5))
    axes.spines[["top", "right"]].set_visible(False)


def matrix(axes: Any, names: Sequence[str], values: np.ndarray, title: str) -> None:
    """Draws a table of numbers from 0 to 1, each in its cell."""
    axes.imshow(values, vmin=0, vmax=1, cmap="Blues")
    axes.set_xticks(range(len(names)), names, rotation=45)
    axes.set_yticks(range(len(names)), names)
    for (row, column), value in np.ndenumerate(values):
        color = "white" if value > 0.5 else "black"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=color)
    axes.set_title(title)


def metrics(
    path: pathlib.Path,
    rows: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    scale: str,
) -> None:
    """Writes a figure of a run's numbers over its steps.

    Args:
        path: A PNG file.
        rows: `Metrics.read`'s.
        names: Of the numbers.
        scale: `log` or `linear`.
    """
    page = figure(8, 4.5)
    axes = page.add_subplot(title=path.stem)
    for name in names:
        found = [(row["step"], row[name]) for row in rows if name in row]
        steps, values = np.array(found, float).reshape(-1, 2).T  # null is NaN
        curves(axes, steps, {name: values}, xlabel="step")
    axes.set_yscale(scale if rows else "linear")
    axes.legend()
    save(path, page)


def grid(
    cells: Sequence[Sequence[Image.Image | str]],
    rows: Sequence[str],
    columns: Sequence[str],
    size: tuple[int, int],
    gap: int = 6,
) -> Image.Image:
    """Lays out pictures as a table on white.

    Args:
        cells: Pictures of one size, row by row, or what is written where there is none.
        rows: Names of the rows, drawn left of them.
        columns: Names of the columns, drawn above them.
        size: Width and height of a picture.
        gap: Pixels between pictures.
    """
    font = ImageFont.load_default(14)
    left = round(max(font.getlength(name) for name in rows)) + 2 * gap
    top, across, down = 22, size[0] + 2 * gap, size[1] + gap
    page_size = left + len(columns) * across, top + len(rows) * down
    page = Image.new("RGB", page_size, "white")
    draw = ImageDraw.Draw(page)
    for i, name in enumerate(columns):
        draw.text((left + i * across + size[0] // 2, 10), name, "dimgray", font, "mm")
    for row, name in enumerate(rows):
        y = top + row * down
        draw.text((left - gap, y + size[1] // 2), name, "dimgray", font, "rm")
        for column, cell in enumerate(cells[row]):
            x = left + column * across
            if isinstance(cell, str):
                middle = x + size[0] // 2, y + size[1] // 2
                draw.text(middle, cell, "silver", font, "mm")
            else:
                page.paste(cell, (x, y))
    return page
