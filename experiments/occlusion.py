r"""Slides a grey square over an image and shows how the predicted class changes.

    python launch.py --experiment=occlusion
    python launch.py --experiment=occlusion --config.image=PHOTO.jpg \
        --config.label=goldfish --config.unit=conv5:17
    python launch.py --experiment=occlusion --config.dataset=tiny_imagenet \
        --config.data_dir=FOLDER_OF_THE_ARCHIVE --config.image=12,345,6789
    python launch.py --experiment=occlusion --config.image=PHOTO.jpg --config.size=224 \
        --config.square=50 --config.stride=7 --config.model=alexnet \
        --config.weights=torchvision

Zeiler & Fergus 2013 (arXiv:1311.2901), Figure 7. Each row of `occlusion.png` is an image:
(a) the image, with the square where the class is least likely; for each position of the
square's middle, (b) the sum of one unit's map, (d) the probability of the class and (e)
the predicted class; and (c) the deconvnet attribution of the unit's highest activation,
without the square. The numbers are in `occlusion.csv`. The square has ImageNet's mean
colour, (124, 116, 104), which the networks here subtract first.

By default, the unit is the one whose map has the largest sum without the square, and the
class is the data set's; where that is unknown, or none of the network's, it is the
network's prediction, and the page says so. The default images are the demo and four of
`primitives`, on none of which the network was trained: it takes a flower with an orange
centre for a goldfish, at 93 %, and for a dugong where the centre is hidden, a goldfish
then being at 0 %. 18 s on two cores of an AMD EPYC (Zen 4). An interrupted run resumes
after its last whole image.
"""

import dataclasses
import itertools
import logging
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from nstvis import images, plots
from nstvis.probes import occlusion
from nstvis.probes.inputs import Inputs, LabeledImage, LoadedInputs, load, short
from nstvis.probes.occlusion import Result
from nstvis.runs.config import bounded, chosen
from nstvis.runs.files import write_csv

logger = logging.getLogger(__name__)


@dataclasses.dataclass(kw_only=True)
class Config(Inputs):
    """Which unit, and which square."""

    # Layer, of which the most active unit is taken, or LAYER:NUMBER.
    unit: str = "conv5"
    # Side of the grey square, in pixels.
    square: int = bounded(14, least=1, most=8192)
    # Pixels from one position of the square to the next.
    stride: int = bounded(2, least=1, most=8192)
    # How the unit's activation is attributed to pixels.
    rule: str = chosen("deconvnet", "guided", "gradient")

    def check(self) -> None:
        """Raises a ValueError if the square is larger than the images."""
        super().check()
        if self.square > self.size:
            raise ValueError(f"square={self.square} should be 1 to {self.size} pixels")


def run(config: Config, workdir: pathlib.Path) -> list[str]:
    """Slides the square over each image; resumes after the last whole one."""
    inputs = load(config)
    study = occlusion.Study(
        *(inputs.forward, inputs.params, config.unit, config.rule, config.square),
        stride=config.stride,
        batch=config.batch,
    )
    results = study.run(inputs.images, workdir / "maps")
    for image, result in zip(inputs.images, results):
        logger.info("%s", _summary(config, inputs, image, result))
    header = ["image", "row", "column", "activity", "probability", "class"]
    write_csv(workdir / "occlusion.csv", header, _rows(config, inputs, results))
    _draw(config, inputs, results, workdir / "occlusion.png")
    return ["occlusion.png", "occlusion.csv"]


def _summary(
    config: Config, inputs: LoadedInputs, image: LabeledImage, result: Result
) -> str:
    row, column = _least_likely(config, result)
    label, lowest = inputs.label_name(image), result.probabilities.argmin()
    prediction, there = (
        short(inputs.classes[int(number)])
        for number in (result.prediction, result.predictions.flat[lowest])
    )
    note = "" if result.prediction == image.label else f" (predicted: {prediction})"
    share = (result.predictions == image.label).mean()
    return (
        f"{image.name}: {label} ({image.label_source}): {result.probability:.0%}{note};"
        f" {result.probabilities.flat[lowest]:.0%} with the square at row {row}, column"
        f" {column}, where {there} is predicted; {label} is predicted at {share:.0%} of"
        " the positions"
    )


def _least_likely(config: Config, result: Result) -> tuple[int, int]:
    """Where the square makes the class least likely, row and column."""
    pixels = occlusion.centres(config.size, config.stride)
    row, column = divmod(int(result.probabilities.argmin()), len(pixels))
    return int(pixels[row]), int(pixels[column])


def _rows(
    config: Config, inputs: LoadedInputs, results: Sequence[Result]
) -> Iterator[list[Any]]:
    """A row of the table for each position of the square on each image."""
    pixels = occlusion.centres(config.size, config.stride)
    for image, result in zip(inputs.images, results):
        maps = (result.activities, result.probabilities, result.predictions)
        responses = zip(*(values.flat for values in maps))
        positions = itertools.product(pixels, pixels)
        for position, (*numbers, prediction) in zip(positions, responses):
            yield [image.name, *position, *numbers, inputs.classes[prediction]]


def _draw(
    config: Config, inputs: LoadedInputs, results: Sequence[Result], path: pathlib.Path
) -> None:
    """Draws the paper's Figure 7, a row for each image."""
    figure = plots.figure(15, 2.75 * len(results) + 0.5)
    rows = figure.subplots(len(results), 5, squeeze=False)
    for axes, image, result in zip(rows, inputs.images, results):
        _draw_row(config, inputs, image, result, axes)
    titles = [
        "(a) image and square",
        "(b) sum of the unit's map",
        f"(c) {config.rule} attribution of the unit",
        "(d) probability of the class",
        "(e) predicted class",
    ]
    for axes, title in zip(rows[0], titles):
        axes.set_title(f"{title}\n{axes.get_title()}", fontsize=10)
    plots.save(path, figure)


def _draw_row(
    config: Config,
    inputs: LoadedInputs,
    image: LabeledImage,
    result: Result,
    axes: Sequence[Any],
) -> None:
    pixels, half = occlusion.centres(config.size, config.stride), config.stride / 2
    ends = pixels[0] - half, pixels[-1] + half
    extent = (*ends, *ends[::-1])  # each position is drawn at the square's middle
    position = np.array([_least_likely(config, result)])
    hidden = occlusion.occluded(image.pixels, position, config.square)[0]
    scale = 127 / max(np.abs(result.attribution).max(), 1e-30)
    plots.image(axes[0], images.to_image(np.asarray(hidden)))
    plots.heatmap(axes[1], result.activities, extent=extent)
    plots.image(axes[2], images.to_image(127 + scale * result.attribution))
    plots.heatmap(axes[3], result.probabilities, extent=extent, vmin=0)
    names = list(map(short, inputs.classes))
    plots.categories(axes[4], result.predictions, names, image.label, extent=extent)
    unit = f"{config.unit.partition(':')[0]}:{result.unit}"
    label = f"{names[image.label]} ({image.label_source}): {result.probability:.0%}"
    titles = [pathlib.Path(image.name).name, unit, unit, label, ""]
    for panel, title in zip(axes, titles):
        panel.set(xlim=(-0.5, config.size - 0.5), ylim=(config.size - 0.5, -0.5))
        panel.set_title(title, fontsize=9)
