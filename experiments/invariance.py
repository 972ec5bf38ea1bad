r"""Moves, enlarges and turns images, and shows how features change.

    python launch.py --experiment=invariance
    python launch.py --experiment=invariance --config.image=a.jpg,b.jpg \
        --config.label=goldfish,lemon
    python launch.py --experiment=invariance --config.dataset=tiny_imagenet \
        --config.data_dir=FOLDER_OF_THE_ARCHIVE --config.image=12,345,6789
    python launch.py --experiment=invariance --config.image=a.jpg,b.jpg \
        --config.size=224 --config.model=alexnet --config.weights=torchvision

Zeiler & Fergus 2013 (arXiv:1311.2901), Figure 5. Each image is moved down and up by as
much as 60 of 224 pixels, enlarged to 1.8 times its size, and turned counter-clockwise
through a full circle; what it leaves empty is filled with the mean colour of ImageNet.
`invariance.png`, with a curve for each image, and `invariance.csv` hold the Euclidean
distances between the features of the original and of the transformed image, in the first
layer and a late one, relative to the length of the original's features, and the
probability of the image's class, which is chosen as in `--experiment=occlusion`.

The first command takes 6 s on two cores of an AMD EPYC (Zen 4) and finds what the paper
did: moved by one pixel, conv1 changes by 32 % of its length and fc7 by 11 %, moved by 17
pixels by 97 % and 59 %.
"""

import dataclasses
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nstvis import images, models, plots
from nstvis.probes import invariance
from nstvis.probes.inputs import Inputs, LabeledImage, LoadedInputs, load
from nstvis.probes.invariance import Curves
from nstvis.runs import config as configs
from nstvis.runs.config import bounded
from nstvis.runs.registry import unknown

logger = logging.getLogger(__name__)

EXAMPLES = 5  # images, at most, that are shown, each with so many amounts
LABELS = {
    "translation": "moved down (pixels)",
    "scale": "enlarged (times)",
    "rotation": "turned counter-clockwise (degrees)",
}


@dataclasses.dataclass(kw_only=True)
class Config(Inputs):
    """Which layers."""

    # An early and a late layer, such as conv1,fc7; if empty, the first one and the last
    # one before the logits.
    layers: str = ""
    # Side of the images, which move by a pixel at least, in pixels; the central square
    # is taken.
    size: int = bounded(64, least=2, most=8192)

    def check(self) -> None:
        """Raises a ValueError for other numbers of layers."""
        super().check()
        if len(configs.names("layers", self.layers)) not in (0, 2):
            raise ValueError(f"layers={self.layers} should be two, such as conv1,fc7")


def run(config: Config, workdir: pathlib.Path) -> list[str]:
    """Transforms the images; resumes after the last whole one."""
    inputs = load(config)
    layers = _layers(config, inputs)
    study = invariance.Study(inputs.forward, inputs.params, layers, config.batch)
    curves = study.run(inputs.images, workdir / "invariance.csv")
    logger.info("%s", invariance.summary(layers, curves))
    _draw(inputs, layers, curves, workdir / "invariance.png")
    return ["invariance.png", "invariance.csv"]


def _layers(config: Config, inputs: LoadedInputs) -> list[str]:
    known = models.units(inputs.forward, inputs.params, config.size)
    layers = configs.names("layers", config.layers)
    if not layers:
        rectified = [name for name in known if not name.endswith("_pre")]
        return [rectified[0], rectified[-2:][0]]
    for name in layers:
        if name not in known:
            raise ValueError(unknown("layer", name, known))
    return layers


def _draw(
    inputs: LoadedInputs,
    layers: Sequence[str],
    curves: Mapping[str, Curves],
    path: pathlib.Path,
) -> None:
    """Draws the paper's Figure 5, a row for each transformation."""
    figure = plots.figure(16, 10.5)
    rows = figure.subplots(len(curves), 2 + len(layers))
    for axes, (transformation, label) in zip(rows, LABELS.items()):
        _draw_examples(axes[0], inputs.images[:EXAMPLES], transformation)
        axes[0].set_xlabel(label)
        curve = curves[transformation]
        for panel, heights in zip(axes[1:], (*curve.relative, curve.probability)):
            for image, height in zip(inputs.images, heights):
                plots.curves(panel, curve.amounts, {_title(inputs, image): height})
            panel.set(xlabel=label, ylim=(0, None))
        axes[-1].set_ylim(0, 1.02)
    distances = [f"{layer}: distance / length of the original" for layer in layers]
    titles = ["examples", *distances, "probability of the class"]
    for panel, title in zip(rows[0], titles):
        panel.set_title(title)
    plots.legend_below(figure, *rows[0, -1].get_legend_handles_labels())
    plots.save(path, figure)


def _title(inputs: LoadedInputs, image: LabeledImage) -> str:
    name = pathlib.Path(image.name).name
    return f"{name}: {inputs.label_name(image)} ({image.label_source})"


def _draw_examples(
    axes: Any, examples: Sequence[LabeledImage], transformation: str
) -> None:
    """Draws images in rows, transformed more and more, marked in their curves' colours."""
    amounts = invariance.amounts(len(examples[0].pixels))[transformation]
    shown = amounts[np.linspace(0, len(amounts) - 1, EXAMPLES).round().astype(int)]
    originals = [images.to_image(image.pixels) for image in examples]
    pictures = [
        [np.asarray(invariance.transformed(image, transformation, x)) for x in shown]
        for image in originals
    ]
    plots.mosaic(axes, pictures, ["■"] * len(examples), [f"{x:g}" for x in shown])
    for number, tick in enumerate(axes.get_yticklabels()):
        tick.set(color=f"C{number % 10}", fontsize=16)
