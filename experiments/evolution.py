r"""Shows how units come to look for what they look for, epoch by epoch.

    python launch.py --experiment=evolution
    python launch.py --experiment=evolution --config.run=runs/tiny_imagenet \
        --config.split=train[:10000] --workdir=runs/evolution

Zeiler & Fergus 2013 (arXiv:1311.2901), Figure 4. Reads the checkpoints that an
`--experiment=train` keeps, finished or not, or trains for a few epochs first. For every
epoch that was kept, the data set is scanned as in `--experiment=units`. The weights are
those that training leaves, too: averaged over the last steps, batch norm folded in.

Leaves `evolution.png`: a block for each layer, a row for each of some units, chosen at
random, and in each epoch the patch that activates the unit most, right of its deconvnet
attribution. `evolution.csv` has for every layer and epoch, and `evolution_numbers.png`
shows,

- overlap: the share of a unit's nine top-activating images that were among its nine in
  the epoch before, or are in the last one;
- rank correlation: Spearman's, of a unit's activations for the same images in both;
- dead units: those that no image of the scan activates.

The first two are means over the units that are alive in both epochs. The first command
takes two minutes on two cores of an AMD EPYC (Zen 4), its training included: after the
first of five epochs, conv1's units order images much as in the end (rank correlation
0.87), conv5's do not (0.39).
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from PIL.Image import Resampling

from nstvis import attribution, devices, images, plots
from nstvis.probes import evolution
from nstvis.probes.evolution import Epoch
from nstvis.runs import workdir as workdirs
from nstvis.runs.config import Seed, bounded, names
from nstvis.runs.files import write_csv
from nstvis.training.loop import TrainingRun, train
from nstvis.training.settings import Settings, read_settings
from nstvis.units import contact_sheets
from nstvis.units.scan import Target

SIDE = 56  # pixels of a patch as it is drawn

# What is learned if no run is named.
TRAINED = Settings(split="train[:2000]", validation="", batch=32)


@dataclasses.dataclass(kw_only=True)
class Config(Seed):
    """Which training, and what is looked at."""

    # Workdir of an --experiment=train, finished or not; a new, small one if empty.
    run: str = ""
    # Data set to scan: primitives, tiny_imagenet, tfds:NAME or folder:PATH; if empty,
    # what was learned.
    dataset: str = ""
    # Its split, such as train[:1000]; if empty, what was learned, or another's train.
    split: str = ""
    # Folder of the data set's files; if empty, where they were.
    data_dir: str = ""
    # Layers, such as conv1,conv5; if empty, all whose units see a part of the image.
    layers: str = ""
    # Units of each layer that are drawn.
    units: int = bounded(8, least=1, most=1000)
    # Images, evenly spaced in the data set, whose order rank correlations compare.
    sample: int = bounded(512, least=1, most=1_000_000)
    # Images in a batch.
    batch: int = bounded(128, least=1, most=65536)

    def check(self) -> None:
        """Raises a ValueError if `layers` is no list of names."""
        names("layers", self.layers)


def run(config: Config, workdir: pathlib.Path) -> list[str]:
    """Scans the network of each epoch, and compares and draws its units."""
    folder = pathlib.Path(config.run) if config.run else _trained(workdir / "train")
    learned = dataclasses.replace(read_settings(folder), validation="")
    if config.data_dir and not config.dataset:
        learned = dataclasses.replace(learned, data_dir=config.data_dir)
    targets = evolution.targets(
        TrainingRun(learned, folder),
        dataset=config.dataset,
        split=config.split,
        data_dir=config.data_dir,
        layers=names("layers", config.layers),
    )
    states = [
        evolution.scanned(target, workdir / f"epochs/{number:02}", config.batch)
        for number, target in targets.items()
    ]
    results = ["evolution.png", "evolution_numbers.png", "evolution.csv"]
    if not devices.is_lead():
        return results
    epochs = evolution.epochs(targets, states, config.sample, config.batch)
    page = _page(config, next(iter(targets.values())), epochs)
    images.write(workdir / "evolution.png", page)
    rows = evolution.compare(epochs)
    _plot(rows, workdir / "evolution_numbers.png")
    table = [
        [round(x, 4) if isinstance(x, float) else x for x in row.values()]
        for row in rows
    ]
    write_csv(workdir / "evolution.csv", list(rows[0]), table)
    return results


def _trained(folder: pathlib.Path) -> pathlib.Path:
    """Trains a small network in a workdir of its own, unless that is finished."""
    if not workdirs.claim(folder, "train", TRAINED):
        results = train(TRAINED, folder)
        if devices.is_lead():
            workdirs.finish(folder, results)
    return folder


def _page(config: Config, target: Target, epochs: Sequence[Epoch]) -> Image.Image:
    """Draws a block for each layer: units down, epochs across."""
    network = attribution.ruled(target.forward, "deconvnet")
    rng, blocks, labels = np.random.default_rng(config.seed), [], []
    for name, count in target.about.layers.items():
        picked = rng.choice(count, min(config.units, count), replace=False)
        units = sorted(map(int, picked))
        drawn = [
            evolution.pictures(network, target, epoch, name, units, config.batch)
            for epoch in epochs
        ]
        cells = [
            [_pair(x[unit]) if unit in x else "dead" for x in drawn] for unit in units
        ]
        columns = [f"epoch {epoch.number}" for epoch in epochs]
        size = 2 * SIDE + 2, SIDE
        blocks.append(plots.grid(cells, list(map(str, units)), columns, size))
        height, width = target.fields[name].size(0)
        labels.append(f"{name}: {height} x {width} pixels")
    return images.sheet(blocks, labels, None, 24, contact_sheets.PAPER)


def _pair(pixels: Sequence[np.ndarray]) -> Image.Image:
    pictures = [
        Image.fromarray(x).resize((SIDE, SIDE), Resampling.BICUBIC) for x in pixels
    ]
    return contact_sheets.row(pictures, 2)


def _plot(rows: Sequence[Mapping[str, Any]], path: pathlib.Path) -> None:
    """Draws the numbers over the epochs, a curve for each layer."""
    figure = plots.figure(13, 3.5)
    numbers = list(rows[0])[3:]
    for axes, number in zip(figure.subplots(1, len(numbers)), numbers, strict=True):
        epochs = list(dict.fromkeys(str(row["epoch"]) for row in rows))
        curves: dict[str, list[float]] = {}
        for row in rows:
            curves.setdefault(row["layer"], []).append(row[number])
        title = number.replace("_", " ")
        plots.curves(axes, epochs, curves, xlabel="epoch", title=title)
        for line in axes.lines:
            line.set_marker("o")  # one epoch alone is no line
        bottom, top = axes.get_ylim()
        axes.set_ylim(min(bottom, 0), max(top, 1))
    axes.legend()
    plots.save(path, figure)
