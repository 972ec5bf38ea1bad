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
    settings: dict[str, Any] = {"layout": "constrained"} | options
    return Figure(figsize=(width, height), **settings)


def save(path: pathlib.Path, figure: Any) -> None:
    """Writes a figure as a PNG file, whole or not at all."""
    with files.replacing(path) as file:
        figure.savefig(file, format="png", dpi=120)


def image(axes: Any, pixels: Any, **options: Any) -> Any:
    """Shows an image, or a map of numbers, without ticks; returns matplotlib's handle."""
    axes.set(xticks=[], yticks=[])
    return axes.imshow(pixels, **options)


def curves(
    axes: Any, x: Any, lines: Mapping[str, npt.ArrayLike], **options: Any
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


def legend_below(figure: Any, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Draws a figure's legend below it, in at most five columns, as there is room."""
    from matplotlib.textpath import TextPath

    def width(text: str) -> float:
        return TextPath((0, 0), text, size=10).get_extents().width

    # In points; a line and the gaps beside it take 50.
    room = figure.get_figwidth() * 72 - 20
    shares = [(room - 50) / max(1, width(label)) for label in labels]
    cut = [
        label if share >= 1 else f"{label[: int(share * len(label)) - 2]}…"
        for label, share in zip(labels, shares)
    ]
    columns = int(room / (50 + max(map(width, cut), default=0)))
    figure.legend(
        handles,
        cut,
        loc="outside lower center",
        ncols=min(5, max(1, columns)),
        fontsize=10,
        frameon=False,
    )


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
    # A logarithm's own labels are formulas, which `figure` does not parse.
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.legend()
    save(path, page)


def mosaic(
    axes: Any,
    pictures: Sequence[Any],
    rows: Sequence[str],
    columns: Sequence[str],
    **options: Any,
) -> None:
    """Draws pictures of one size as a grid with labelled rows and columns.

    Args:
        axes: Matplotlib's.
        pictures: Rows of pictures, `[height, width, 3]` or grey `[height, width]`, in
            0..255; None leaves a gap.
        rows: The rows' labels.
        columns: The columns' labels.
        **options: Of `axes.imshow`.
    """
    height, width = next(p.shape[:2] for row in pictures for p in row if p is not None)
    gap = max(2, height // 12)
    down, across = height + gap, width + gap
    page = np.full((len(rows) * down, len(columns) * across, 3), 255, np.uint8)
    for i, row in enumerate(pictures):
        for j, picture in enumerate(row):
            if picture is not None:
                top, left = i * down + gap // 2, j * across + gap // 2
                cell = page[top : top + height, left : left + width]
                cell[:] = picture if picture.ndim == 3 else picture[..., None]
    axes.imshow(page, **options)
    axes.set_xticks((np.arange(len(columns)) + 0.5) * across - 0.5, columns)
    axes.set_yticks((np.arange(len(rows)) + 0.5) * down - 0.5, rows)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)


def heatmap(axes: Any, values: npt.ArrayLike, **options: Any) -> None:
    """Shows a map of numbers in colours, and what the colours mean beside it."""
    handle = image(axes, values, cmap="turbo", **options)
    axes.figure.colorbar(handle, ax=axes, shrink=0.8)


# Of the first category, of the most frequent others, and of all the rest.
_CATEGORY_COLORS = ["tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple"]
_REST_COLOR = "lightgray"


def categories(
    axes: Any, values: np.ndarray, names: Sequence[str], first: int, **options: Any
) -> None:
    """Shows a map of categories in colours, with a legend beside it.

    Args:
        axes: Matplotlib's.
        values: Numbers of categories, int `[rows, columns]`.
        names: The names of all categories.
        first: The category of the first colour; the most frequent others follow, and
            the rest shares the last colour.
        **options: Of `axes.imshow`.
    """
    from matplotlib.colors import to_rgb
    from matplotlib.patches import Patch

    present, counts = np.unique(values, return_counts=True)
    frequent = present[np.argsort(-counts, kind="stable")]
    others = frequent[frequent != first][: len(_CATEGORY_COLORS) - 1]
    shown = [first, *others.tolist()]
    colors = [*_CATEGORY_COLORS[: len(shown)], _REST_COLOR]
    ranks = np.full(len(names), len(shown))
    ranks[shown] = np.arange(len(shown))
    image(axes, np.array([to_rgb(color) for color in colors])[ranks[values]], **options)
    labels = [names[number] for number in shown]
    labels += ["others"] * bool(np.isin(present, shown, invert=True).any())
    axes.legend(
        handles=[Patch(color=c, label=label) for c, label in zip(colors, labels)],
        loc="center left",
        bbox_to_anchor=(1, 0.5),
        fontsize=8,
        frameon=False,
    )


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
        rows: Names of the rows, of one line or more, drawn left of them.
        columns: Names of the columns, drawn above them.
        size: Width and height of a picture.
        gap: Pixels between pictures.
    """
    font = ImageFont.load_default(14)
    lines = "\n".join(rows).split("\n")
    left = round(max(map(font.getlength, lines))) + 2 * gap
    top = 22 + 18 * max(name.count("\n") for name in columns)
    across, down = size[0] + 2 * gap, size[1] + gap
    page_size = left + len(columns) * across, top + len(rows) * down
    page = Image.new("RGB", page_size, "white")
    draw = ImageDraw.Draw(page)
    for i, name in enumerate(columns):
        middle = left + i * across + size[0] // 2, top // 2 - 1
        draw.text(middle, name, "dimgray", font, "mm", align="center")
    for row, name in enumerate(rows):
        y = top + row * down
        middle = left - gap, y + size[1] // 2
        draw.text(middle, name, "dimgray", font, "rm", align="right")
        for column, cell in enumerate(cells[row]):
            x = left + column * across
            if isinstance(cell, str):
                middle = x + size[0] // 2, y + size[1] // 2
                draw.text(middle, cell, "silver", font, "mm")
            else:
                page.paste(cell, (x, y))
    return page
