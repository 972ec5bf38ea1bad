r"""Tests whether a network treats the same part of different faces alike.

    python launch.py --experiment=correspondence
    python launch.py --experiment=correspondence --config.parts=faces.json \
        --config.model=alexnet --config.weights=torchvision --config.size=224

Zeiler & Fergus 2013 (arXiv:1311.2901), section 4.4, Table 1 and Figure 8: masks the same
part of several images with grey (127), and measures how much the signs of the resulting
changes in a layer's whole feature map differ between the images. The measure is defined
in `nstvis.probes.correspondence`: a mean Hamming distance, from 0 (the same for all
images) to 1, so lower is more consistent. It is compared with masks of the parts' sizes
at random places within the image, different ones in every image (`random`; the paper's
are within the object), and at one random place in all of them (`one place`, which the
paper lacks: parts are in about the same place in all faces, and this alone makes the
changes more alike). Each mean is followed by the standard deviation, over the images, of
an image's mean distance from all others; over sizes and draws as well where masks are
random.

The images are drawn faces of `primitives`, or those listed in a JSON file, with any
parts, the same for all. Paths are relative to its folder, boxes are top, left, bottom,
right in each image's own pixels, the last two exclusive; they are scaled with the
image, of which the central square is taken:

    {"ann.jpg": {"left eye": [50, 31, 60, 49], "mouth": [90, 40, 104, 76]},
     "bob.jpg": {"left eye": [47, 35, 56, 50], "mouth": [85, 41, 98, 80]}}

Leaves `correspondence.txt`, the table; `correspondence.csv`, its numbers, for random
masks of each part's size, too; and `correspondence.png`, the masks and the numbers.

The first command takes 8 s on two cores of an AMD EPYC (Zen 4). It does not find what the
paper found with dogs: at conv5, no part is more consistent (0.270 to 0.274) than random
masks (0.265); at fc7 all four are, by less than 0.006, and none is more so than masks at
one place. Random weights do make all four parts more consistent (0.373 to 0.378, of
0.393, at conv5), so a low number alone is no evidence that the network knows eyes.
"""

import dataclasses
import logging
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from nstvis import models, plots
from nstvis.probes import correspondence, parts
from nstvis.probes.correspondence import PLACES, Mask, Statistics
from nstvis.probes.parts import Parts
from nstvis.runs import config as configs
from nstvis.runs.checkpoints import Checkpoints
from nstvis.runs.config import Batches, Network, Resumable, Seed, bounded
from nstvis.runs.files import write_csv, write_text

logger = logging.getLogger(__name__)

EXAMPLES = 5  # images on the page, at most


@dataclasses.dataclass(kw_only=True)
class Config(Network, Batches, Seed, Resumable):
    """Which network, and which parts of which images."""

    # JSON file that lists images and the boxes of their parts; drawn faces if empty.
    parts: str = ""
    # Number of drawn faces.
    count: int = bounded(40, least=2, most=200)
    # Layers to compare.
    layers: str = "conv5,fc7"
    # Random masks of each part's size, in every image.
    draws: int = bounded(5, least=1, most=1000)
    batch: int = bounded(40, least=1, most=65536)

    def check(self) -> None:
        """Raises a ValueError if there is no layer."""
        if not configs.names("layers", self.layers):
            raise ValueError("layers should name at least one layer")


def run(config: Config, workdir: pathlib.Path) -> list[str]:
    """Measures mask by mask, and compares the parts' masks with the random ones."""
    network = models.load(
        config.model, config.weights, preprocessing=config.preprocessing
    )
    layers = configs.names("layers", config.layers)
    if config.parts:
        annotated = parts.read(pathlib.Path(config.parts), config.size)
    else:
        annotated = parts.drawn(config.count, config.size)
    masks = correspondence.masks(annotated, config.draws, config.seed)
    compare = correspondence.Comparison(
        *network, layers, annotated.images, config.batch
    )
    changes = compare.run(masks, Checkpoints(workdir, config.checkpoint_every))
    statistics = correspondence.statistics(masks, changes)
    title = (
        f"Mean sign change of the features of {config.model} ({config.weights}),"
        f" {len(annotated.images)} images; lower is more consistent"
    )
    table = [title, *correspondence.table(layers, statistics)]
    for line in table:
        logger.info("%s", line)
    write_text(workdir / "correspondence.txt", "\n".join(table) + "\n")
    header = ["mask", "sizes_of", "layer", "mean", "deviation"]
    write_csv(workdir / "correspondence.csv", header, _csv_rows(layers, statistics))
    page = workdir / "correspondence.png"
    _draw(page, title, annotated, masks, layers, statistics)
    return ["correspondence.png", "correspondence.txt", "correspondence.csv"]


def _csv_rows(layers: Sequence[str], statistics: Statistics) -> Iterator[list[Any]]:
    for (kind, part), values in statistics.items():
        for layer, (mean, deviation) in zip(layers, values):
            yield [kind, part or "all", layer, f"{mean:.6f}", f"{deviation:.6f}"]


def _draw(
    path: pathlib.Path,
    title: str,
    parts: Parts,
    masks: Sequence[Mask],
    layers: Sequence[str],
    statistics: Statistics,
) -> None:
    """Draws every row's masks on some images, and its bars beside them."""
    rows = ["original", *correspondence.rows(statistics)]
    count = min(EXAMPLES, len(parts.images))
    widths = [count + 1.2, *[3.3] * len(layers)]
    figure = plots.figure(sum(widths), len(rows) + 1)
    figure.suptitle(title)
    panels = figure.subplots(1, len(widths), width_ratios=widths)
    pictures = [correspondence.examples(parts, masks, row, count) for row in rows]
    plots.mosaic(panels[0], pictures, rows, [""] * count, aspect="auto")
    for number, (panel, layer) in enumerate(zip(panels[1:], layers)):
        _draw_bars(panel, statistics, number)
        panel.set_title(layer)
    panels[-1].legend(loc="upper right")
    plots.save(path, figure)


def _draw_bars(axes: Any, statistics: Statistics, layer: int) -> None:
    """Draws a layer's bars, and marks for the random masks of each part's sizes."""
    rows = correspondence.rows(statistics)
    means, deviations = np.array([values[layer] for values in rows.values()]).T
    colors = ["steelblue"] * (len(rows) - len(PLACES)) + ["gray", "darkgray"]
    plots.bars(axes, list(rows), means, deviations, colors)
    for y, (mean, deviation) in enumerate(zip(means, deviations)):
        text = f"  {mean:.3f} ± {deviation:.3f}"
        axes.text(mean + deviation, y - 0.08, text, va="bottom", fontsize=9)
    for kind, marker in zip(PLACES, "Do"):
        matched = correspondence.matched(statistics, kind).values()
        label = f"{kind}, of the same sizes"
        style = {"color": "black", "markerfacecolor": "white", "label": label}
        axes.plot([x[layer] for x in matched], range(len(matched)), marker, **style)
    # Level with the mosaic, whose first row, the originals, leaves room for the legend.
    axes.set(ylim=(len(rows) - 0.5, -1.5), xlim=(0, 1.6 * (means + deviations).max()))
    axes.set_yticks([])
