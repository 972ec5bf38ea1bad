r"""Checks whether visualisations depend on what the network has learned.

    python launch.py --experiment=sanity
    python launch.py --experiment=sanity --config.dataset=tiny_imagenet \
        --config.data_dir=FOLDER_OF_THE_ARCHIVE

Adebayo et al. 2018 (arXiv:1810.03292), Figures 2 and 4: an attribution that stays the
same when the weights are randomised, layer after layer from the last one down, shows the
image rather than what the network has learned. For each rule of
`nstvis.attribution`, attributions of the predicted class are compared with those
of such networks, by the rank correlation of their absolute values; and with those of the
other rules. Optimised pictures are compared with natural images: how much higher is the
activation that `--experiment=features` reaches, in the trained network and in a random
one?

Leaves one page, `sanity.png`, with a verdict on each method, and `sanity.csv`.

The first command takes a minute on two cores of an AMD EPYC (Zen 4). With random weights
from conv5 on, the attributions correlate with the trained network's by 0.27 (gradient),
0.91 (guided) and 0.67 (deconvnet): the last two hardly depend on what the deeper half has
learned. Optimised pictures activate all of 32 units more than any of the images does, but
so do those for a random network.
"""

import dataclasses
import logging
import pathlib
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from nstvis import attribution, crops, data, models, plots, weights
from nstvis.probes import sanity
from nstvis.probes.sanity import Report
from nstvis.runs.config import Batches, Dataset, Network, Seed, bounded
from nstvis.runs.files import write_csv
from nstvis.runs.registry import unknown

logger = logging.getLogger(__name__)

EXAMPLES = 3  # images on the page


@dataclasses.dataclass(kw_only=True)
class Config(Network, Dataset, Batches, Seed):
    """Which images, and which units."""

    # Its weights: bundled, torchvision, or the path of a file.
    weights: str = "bundled"
    split: str = "validation"
    batch: int = bounded(64, least=1, most=65536)
    # Number of images, evenly from the whole split.
    images: int = bounded(64, least=1, most=100_000)
    # Layer whose units' pictures are optimised.
    layer: str = "conv5"
    # Number of its units, chosen at random.
    units: int = bounded(32, least=1, most=4096)

    def check(self) -> None:
        """Raises a ValueError if the weights are random already."""
        if self.weights == "random":
            raise ValueError("weights=random: there is nothing to make random")


def run(config: Config, workdir: pathlib.Path) -> list[str]:
    """Makes all checks, and draws the page."""
    forward, params = models.load(
        config.model, config.weights, preprocessing=config.preprocessing
    )
    layers = list(models.units(forward, params, config.size))
    if config.layer not in layers:
        raise ValueError(unknown("layer", config.layer, layers))
    images, logits = _images(config), layers[-1]
    predict = jax.jit(lambda params, images: forward(params, images)[logits])
    predictions = sanity.batched(predict, params, images, batch=config.batch)
    if predictions.ndim != 2:
        raise ValueError(f"{logits}, the last of {config.model}, are no logits")
    _, random = models.load(
        config.model, "random", classes=predictions.shape[1], seed=config.seed + 1
    )
    depths = {"none": params}
    depths |= sanity.randomised(forward, params, random, images[:1])
    classes = predictions.argmax(1)
    attributions = sanity.attributions(
        forward, depths, logits, images, classes, config.batch
    )
    ratios = {
        name: sanity.optimised_ratios(
            *(forward, weights, config.layer, images),
            units=config.units,
            seed=config.seed,
            batch=config.batch,
        )
        for name, weights in (("trained", params), ("random", random))
    }
    report = sanity.report(list(depths), attributions, ratios)
    verdicts = sanity.verdicts(report, config.layer)
    for line in verdicts:
        logger.info("%s", line)
    header = ["check", "method", "against", "value"]
    write_csv(workdir / "sanity.csv", header, _rows(report))
    _draw(workdir / "sanity.png", images, attributions, report, verdicts)
    return ["sanity.png", "sanity.csv"]


def _images(config: Config) -> np.ndarray:
    as_stored = weights.as_stored(config.weights, config.photographs)
    source = data.load(config.dataset, config.split, config.data_dir, as_stored)
    count = min(config.images, len(source))
    numbers = np.linspace(0, len(source) - 1, count).astype(int).tolist()
    examples = (crops.centered(source[number], config.size) for number in numbers)
    return np.stack([np.asarray(image, np.float32) for image in examples])


def _rows(report: Report) -> Iterator[list[Any]]:
    for rule, similarity in report.similarity.items():
        for depth, value in zip(report.depths, similarity, strict=True):
            yield ["randomisation", rule, depth, round(value, 4)]
    for rule, row in zip(attribution.RULES, report.agreement, strict=True):
        for other, value in zip(attribution.RULES, row, strict=True):
            yield ["agreement", rule, other, round(value, 4)]
    for name, ratios in report.ratios.items():
        for value in ratios:
            yield ["optimised : natural", "features", name, round(value, 4)]


def _draw(
    path: pathlib.Path,
    images: np.ndarray,
    attributions: Mapping[str, Sequence[np.ndarray]],
    report: Report,
    verdicts: Sequence[str],
) -> None:
    """Draws attributions by depth, the curves, the agreement, the ratios, verdicts."""
    shown = np.linspace(0, len(images) - 1, min(EXAMPLES, len(images))).astype(int)
    pictures, labels = [], []
    for number in shown:
        for rule, by_depth in attributions.items():
            original = images[number] if rule == attribution.RULES[0] else None
            pictures.append([original, *(_grey(x[number]) for x in by_depth)])
            labels.append(rule)
    names = ["trained", *(f"random\n{depth} on" for depth in report.depths[1:])]
    width, height = 1.15 * (len(names) + 1), 1.15 * len(labels)
    figure = plots.figure(width, height + 5.4)
    upper, lower, bottom = figure.subfigures(3, 1, height_ratios=[height, 3.6, 1.8])
    plots.mosaic(upper.subplots(), pictures, labels, ["image", *names])
    _plot(lower, report)
    wrapped = [textwrap.wrap(line, int(13 * width)) for line in verdicts]
    text = "\n".join("\n   ".join(lines) for lines in wrapped)
    bottom.text(0.02, 0.95, text, va="top", fontsize=10)
    plots.save(path, figure)


def _grey(signed: np.ndarray) -> np.ndarray:
    """The largest absolute value of the channels, 0..255 up to the 99th percentile."""
    strength = np.abs(signed).max(-1)
    return 255 * np.minimum(strength / (np.quantile(strength, 0.99) or 1), 1)


def _plot(figure: Any, report: Report) -> None:
    """Draws the numbers as three plots in a row."""
    left, middle, right = figure.subplots(1, 3, width_ratios=[2, 1.3, 1.3])
    title = "rank correlation with the trained network's"
    plots.curves(left, report.depths, report.similarity, title=title)
    left.axhspan(sanity.SENSITIVE, sanity.INSENSITIVE, color="0.93")
    left.set_ylim(-0.15, 1.05)
    left.tick_params(axis="x", rotation=45)
    left.legend()
    rules = list(report.similarity)
    plots.matrix(middle, rules, report.agreement, "agreement of the rules")
    right.boxplot(list(report.ratios.values()), tick_labels=list(report.ratios))
    right.axhline(1, color="0.6", linewidth=1)
    right.set_title("optimised : natural")
