r"""Asks whether a network knows that the eyes of two faces correspond.

    python launch.py --experiment=correspondence
    python launch.py --experiment=correspondence --config.parts=faces.json \
        --config.model=alexnet --config.weights=torchvision --config.size=224

Zeiler & Fergus 2013 (arXiv:1311.2901), section 4.4, Table 1 and Figure 8: hide the same
part of several images behind grey (127), and see how much the signs of what this changes
in a layer, in its whole feature map, differ between the images. The measure is defined
in `nstvis.probes.correspondence`: a mean Hamming distance, from 0 (the same for all images) to
1, so lower is more consistent. It is compared with masks of the parts' sizes at random
places within the image, other ones in every image (`random`; the paper's are within the
object), and at one random place in all of them (`one place`, which the paper lacks:
parts are in about the same place in all faces, and this alone makes the changes more
alike). After each mean stands the standard deviation, over the images, of an image's
mean distance from all others; over sizes and draws as well where masks are random.

The images are drawn faces of `primitives`, or those listed in a file of JSON, with any
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
0.393, at conv5), so that a low number alone is no knowledge of eyes.
"""

import collections
import csv
import dataclasses
import io
import logging
import pathlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from PIL import Image

from nstvis import images, models
from nstvis.probes import correspondence
from nstvis.probes.correspondence import Parts
from nstvis.runs.checkpoints import Checkpoints
from nstvis.runs.files import write_text
from nstvis.runs.progress import Progress, interruptible
from nstvis.runs.registry import unknown

logger = logging.getLogger(__name__)

SHOWN = 5  # images in the picture, at most
# Rows of random masks, and where they are.
PLACES = {"random": "at random places", "one place": "at one place in all images"}


@dataclasses.dataclass(kw_only=True)
class Config:
    """Which network, and which parts of which images."""

    # Network: a name, or the path of a file like those in nstvis/models/.
    model: str = "alexnet_small"
    # bundled, torchvision, random or a path.
    weights: str = "bundled"
    # File of JSON that lists images and the boxes of their parts; drawn faces if empty.
    parts: str = ""
    # Drawn faces, 2 to 200.
    count: int = 40
    # Side of the images, of which the centre is taken, in pixels.
    size: int = 64
    # Layers to compare.
    layers: str = "conv5,fc7"
    # Random masks of each part's size, in every image.
    draws: int = 5
    # Images in a batch.
    batch: int = 40
    # Seed of the random masks.
    seed: int = 0
    # Seconds between two checkpoints.
    checkpoint_every: float = 60.0


@dataclasses.dataclass(frozen=True)
class Mask:
    """One mask in every image."""

    # Its row of the table: a part, or one of PLACES.
    row: str
    # The part whose sizes it has.
    part: str
    # [images, 4]
    boxes: np.ndarray


# Mean and deviation in every layer, [layers, 2], by row and by the part whose sizes its
# masks have; "" for all of them.
Numbers = Mapping[tuple[str, str], np.ndarray]


def run(config: Config, workdir: pathlib.Path) -> int:
    """Measures, or goes on where the same command was interrupted."""
    picture = workdir / "correspondence.png"  # written last, so a mark of the end
    if picture.exists():
        logger.info("finished already: %s", picture)
        return 0
    for name in ("size", "draws", "batch"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} should be at least 1")
    network = models.load(config.model, config.weights)
    layers = _layers(config, models.units(*network, config.size))
    if config.parts:
        parts = correspondence.read(pathlib.Path(config.parts), config.size)
    else:
        parts = correspondence.drawn(config.count, config.size)
    masks = _masks(config, parts)
    changes, signal = _measure(config, workdir, network, parts, masks, layers)
    if signal:
        logger.info("the same command with --workdir=%s goes on from there", workdir)
        return 128 + signal
    numbers = _numbers(masks, changes)
    table = list(_table(config, parts, layers, numbers))
    for line in table:
        logger.info("%s", line)
    write_text(workdir / "correspondence.txt", "\n".join(table) + "\n")
    write_text(workdir / "correspondence.csv", _csv(layers, numbers))
    _draw(picture, config, parts, masks, layers, numbers)
    for name in ("correspondence.txt", "correspondence.csv", picture.name):
        logger.info("%s", workdir / name)
    return 0


def _layers(config: Config, known: Collection[str]) -> list[str]:
    layers = [name.strip() for name in config.layers.split(",")]
    for name in layers:
        if name not in known:
            raise ValueError(unknown(f"layer of {config.model}", name, known))
    return layers


def _masks(config: Config, parts: Parts) -> list[Mask]:
    """Every part's mask, and the random ones of its sizes."""
    rng, masks = np.random.default_rng(config.seed), []
    for part, boxes in parts.boxes.items():
        if part in PLACES:
            raise ValueError(f"no part can be called {part!r}, as random masks are")
        masks.append(Mask(part, part, boxes))
        for row in list(PLACES) * config.draws:
            together = row == "one place"
            places = correspondence.elsewhere(
                boxes, config.size, rng, together=together
            )
            masks.append(Mask(row, part, places))
    return masks


def _measure(
    config: Config,
    workdir: pathlib.Path,
    network: tuple[models.Forward, models.Params],
    parts: Parts,
    masks: Sequence[Mask],
    layers: Sequence[str],
) -> tuple[np.ndarray, int]:
    """Each image's mean distance from all others, [masks, layers, images].

    The second number is 0, or that of the signal that interrupted it.
    """
    compare = correspondence.Comparison(*network, layers, parts.images, config.batch)
    checkpoints = Checkpoints(workdir, config.checkpoint_every)
    done, cost = checkpoints.latest(), compare.flops()
    changes = jnp.zeros((len(masks), len(layers), len(parts.images)))
    with (
        interruptible() as interruption,
        checkpoints,
        Progress([cost] * len(masks), done) as progress,
    ):
        changes = checkpoints.restore(changes)
        for step, mask in enumerate(masks[done:], done + 1):
            changes = changes.at[step - 1].set(compare(mask.boxes))
            if interruption.signal or checkpoints.due():
                checkpoints.save(step, changes)
            progress.show(step, f"{mask.row}, {mask.part}")
            if interruption.signal:
                break
    return np.asarray(changes), interruption.signal or 0


def _numbers(masks: Sequence[Mask], changes: np.ndarray) -> Numbers:
    found = collections.defaultdict(list)
    for mask, change in zip(masks, changes):
        found[mask.row, mask.part].append(change)
        if mask.row != mask.part:
            found[mask.row, ""].append(change)
    every = {key: np.concatenate(some, -1) for key, some in found.items()}
    return {key: np.stack([x.mean(-1), x.std(-1)], -1) for key, x in every.items()}


def _rows(parts: Parts) -> dict[str, tuple[str, str]]:
    """The rows of the table, and what they are in `Numbers`."""
    own = {part: (part, part) for part in parts.boxes}
    return own | {row: (row, "") for row in PLACES}


def _table(
    config: Config, parts: Parts, layers: Sequence[str], numbers: Numbers
) -> Iterator[str]:
    rows = _rows(parts)
    wide = max(map(len, rows))
    yield _title(config, parts)
    yield " " * wide + "".join(f"{name:>18}" for name in layers)
    for row, key in rows.items():
        cells = (f"{mean:.3f} ± {deviation:.3f}" for mean, deviation in numbers[key])
        yield f"{row:{wide}}" + "".join(f"{cell:>18}" for cell in cells)
    for place, layer in enumerate(layers):
        for row, where in PLACES.items():
            gains = {
                part: numbers[row, part][place, 0] - numbers[part, part][place, 0]
                for part in parts.boxes
            }
            better = [f"{part} by {x:.3f}" for part, x in gains.items() if x > 0]
            yield (
                f"{layer}: lower than the mean of masks of the same sizes {where}:"
                f" {', '.join(better) or 'no part'} ({len(better)} of"
                f" {len(parts.boxes)})"
            )


def _title(config: Config, parts: Parts) -> str:
    return (
        f"Mean sign change of the features of {config.model} ({config.weights}),"
        f" {len(parts.images)} images; lower is more consistent"
    )


def _csv(layers: Sequence[str], numbers: Numbers) -> str:
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["mask", "sizes_of", "layer", "mean", "deviation"])
    for (row, part), found in numbers.items():
        for layer, (mean, deviation) in zip(layers, found):
            line = [row, part or "all", layer, f"{mean:.6f}", f"{deviation:.6f}"]
            writer.writerow(line)
    return file.getvalue()


def _draw(
    path: pathlib.Path,
    config: Config,
    parts: Parts,
    masks: Sequence[Mask],
    layers: Sequence[str],
    numbers: Numbers,
) -> None:
    """Draws every row's masks on some images, and its bars beside them."""
    import matplotlib  # half a second, at the end of a run
    from matplotlib.figure import Figure

    matplotlib.rcParams["text.parse_math"] = False  # names may have dollars

    rows, columns = ["original", *_rows(parts)], min(SHOWN, len(parts.images))
    # In inches: cells of one, with labels before them and bars after them.
    before, high = 1.2, len(rows)
    width, height = before + columns + 3.3 * len(layers), high + 1.1
    figure = Figure(figsize=(width, height))
    figure.suptitle(_title(config, parts), y=1 - 0.25 / height)
    sides = {"bottom": 0.45 / height, "top": 1 - 0.6 / height}
    middle = (before + columns) / width
    cells = figure.add_gridspec(
        high,
        columns,
        left=before / width,
        right=middle,
        hspace=0.05,
        wspace=0.05,
        **sides,
    )
    for row, name in enumerate(rows):
        pictures = _masked(parts, masks, name, columns)
        for column, picture in enumerate(pictures):
            axes = figure.add_subplot(cells[row, column], xticks=[], yticks=[])
            axes.set_frame_on(False)
            axes.imshow(picture, aspect="auto")
            if not column:
                axes.set_ylabel(name, rotation=0, ha="right", va="center")
    panels = figure.add_gridspec(
        high,
        len(layers),
        left=middle + 0.25 / width,
        right=1 - 0.25 / width,
        wspace=0.12,
        **sides,
    )
    for place, layer in enumerate(layers):
        axes = figure.add_subplot(panels[1:, place], title=layer, yticks=[])
        _draw_bars(axes, parts, place, numbers)
    figure.legend(
        *axes.get_legend_handles_labels(),
        loc="upper right",
        bbox_to_anchor=(1 - 0.25 / width, 1 - 0.7 / height),
    )
    with io.BytesIO() as file:
        figure.savefig(file, dpi=120)
        images.write(path, Image.open(file).convert("RGB"))


def _masked(
    parts: Parts, masks: Sequence[Mask], row: str, columns: int
) -> Iterator[np.ndarray]:
    """The first images with a row's masks; random ones have all parts' sizes in turn."""
    names = list(parts.boxes)
    for column in range(columns):
        part = row if row in names else names[column % len(names)]
        picture = parts.images[column].copy()
        for mask in masks:
            if (mask.row, mask.part) == (row, part):
                top, left, bottom, right = mask.boxes[column]
                picture[top:bottom, left:right] = images.GREY
                break
        yield picture


def _draw_bars(axes: Any, parts: Parts, place: int, numbers: Numbers) -> None:
    """A layer's bars, and marks for the random masks of each part's sizes."""
    rows = _rows(parts)
    means, deviations = np.array([numbers[key][place] for key in rows.values()]).T
    colors = ["steelblue"] * len(parts.boxes) + ["gray", "darkgray"]
    axes.barh(range(len(rows)), means, 0.55, xerr=deviations, color=colors, capsize=3)
    for y, (mean, deviation) in enumerate(zip(means, deviations)):
        text = f"  {mean:.3f} ± {deviation:.3f}"
        axes.text(mean + deviation, y - 0.08, text, va="bottom", fontsize=9)
    for row, mark in zip(PLACES, "Do"):
        same = [numbers[row, part][place, 0] for part in parts.boxes]
        label = f"{row}, of the same sizes"
        axes.plot(same, range(len(same)), mark, color="black", mfc="white", label=label)
    axes.set(ylim=(len(rows) - 0.5, -0.5), xlim=(0, 1.6 * (means + deviations).max()))
    axes.spines[["top", "right"]].set_visible(False)
