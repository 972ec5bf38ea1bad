"""The settings of a style transfer, and what follows from them alone."""

import contextlib
import dataclasses
import math
import os
from typing import Any

from nstvis import images, weights
from nstvis.runs import config
from nstvis.runs.config import Network, Seed, bounded, chosen
from nstvis.runs.registry import unknown
from nstvis.synthesis import losses, style_losses
from nstvis.synthesis.optimizers import LEARNING_RATES

SHORTEST_SIDE = 32  # pixels of the smallest pictures that a network is shown
# Of schedule=fast: the smallest long side, about, and the least steps at a size.
FAST_START, FAST_LEAST = 256, 15
STARTS = ("noise", "mean", "content")


@dataclasses.dataclass(kw_only=True)
class Settings(Seed, Network):
    """How to paint. The defaults are tuned for the bundled network."""

    # Network: a name, or the path of a file like those in nstvis/models/.
    model: str = "vgg_small"
    # In which the network's layers compute. bfloat16 takes half of the memory, and on an
    # accelerator less time; what is summed over positions stays float32.
    precision: str = chosen("float32", "bfloat16")
    # Pooling of the network.
    pooling: str = chosen("average", "max")
    # Layers that keep the content, as layer or layer:weight, separated by commas.
    content_layers: str = "conv3_2"
    # Layers that carry the style, as layer or layer:weight, separated by commas.
    style_layers: str = "conv1_1,conv2_1,conv3_1,conv4_1"
    # Style loss: w2, gram, moments, swd or neighbours (docs/losses.md), or the path of a
    # Python file like those in nstvis/synthesis/style_losses/.
    style_loss: str = "w2"
    # Units of alpha and beta.
    units: str = chosen(*losses.UNITS)
    # Alpha, the weight of the content.
    alpha: float = bounded(1.0, least=0, most=1e12)
    # Beta, the weight of the style.
    beta: float = bounded(3.0, least=0, most=1e12)
    # Gamma, the weight of the total variation, which smooths.
    gamma: float = bounded(1e-4, least=0, most=1e12)
    # Power of the differences in the total variation.
    tv_power: int = chosen(2, 1)
    # Weights of several style pictures, separated by commas; equal if empty.
    style_blend: str = ""
    # Mask of the content: a picture as large as it, with one colour for each region.
    content_masks: str = ""
    # Masks of the style pictures, separated by commas. A region of the content takes the
    # style of the regions that have its colour.
    style_masks: str = ""
    # Long side of the style picture over that of the result.
    style_scale: float = bounded(1.0, least=0.05, most=10)
    # Keep the content's colours: luminance transfers the luminance alone, histogram
    # first matches the style's colours to the content's.
    preserve_color: str = chosen("no", "luminance", "histogram")
    # Where G starts: noise, mean (the mean colour, with a trace of noise), content, or
    # the path of a picture.
    start: str = "noise"
    # Share of noise in a start from the content.
    start_noise: float = bounded(0.0, least=0, most=1)
    # Colours of a start from the content: its own, or their mean and covariance the
    # style's.
    start_colors: str = chosen("content", "style")
    # Long side of the result in pixels; its aspect ratio is the content's.
    size: int = bounded(384, least=SHORTEST_SIDE, most=16384)
    # Sizes from coarse to fine: `even` has `scales` of them, evenly spaced, with as many
    # steps at each; `fast`, for large pictures, doubles them and takes fewer steps at
    # large ones.
    schedule: str = chosen("even", "fast")
    # Number of sizes up to `size`.
    scales: int = bounded(3, least=1, most=100)
    # Steps at each size; of `fast`, at the smallest.
    steps: int = bounded(150, least=1, most=1_000_000)
    # Side of the blocks that the picture is computed in, in pixels, for less memory; 0 for
    # the whole picture at once; -1 for blocks where the whole does not fit into memory.
    block: int = bounded(-1, least=-1, most=8192)
    # Optimiser; gd is plain gradient descent, G := G - learning_rate dJ/dG.
    optimizer: str = chosen(*LEARNING_RATES)
    # Length of a step; 0 for the optimiser's default (gd has one in balanced units).
    learning_rate: float = bounded(0.0, least=0, most=1e12)
    # Shortens Adam's steps to nothing at each size, so that they leave no trace.
    annealing: bool = True
    # Decay of Adam's mean of squared gradients.
    b2: float = bounded(0.99, least=0, below=1)
    # Clips G to 0..255 after each step; otherwise only what is written.
    clip: bool = True
    # Adam's gradient is divided by f^smoothing at each spatial frequency f. With 0 it is
    # plain Adam; higher values paint broad strokes before fine ones.
    smoothing: float = bounded(0.5, least=0, most=4)
    # G is rolled at every step by a random number of pixels below this, down and to the
    # right, so that the network's strides leave no grid. Not used by L-BFGS, which needs
    # the same objective at every step.
    jitter: int = bounded(0, least=0, most=1024)
    # Pixels that are painted beyond all edges and then cropped, as a network's zero padding
    # leaves a frame. The content goes on there as its reflection.
    margin: int = bounded(16, least=0, most=256)

    def check(self) -> None:
        """Raises a ValueError if fields do not fit together."""
        if not (layer_weights(self.content_layers) | layer_weights(self.style_layers)):
            raise ValueError("content_layers and style_layers are both empty")
        if not (self.alpha or self.beta or self.gamma):
            raise ValueError("alpha, beta and gamma are all 0: nothing is minimised")
        if self.start not in STARTS and not os.path.isfile(self.start):
            raise ValueError(unknown("start or file", self.start, STARTS))
        if self.start != "content" and (
            self.start_noise or self.start_colors == "style"
        ):
            raise ValueError(
                f"start_noise and start_colors are for start=content, not {self.start}"
            )
        self._check_positions()
        if bool(self.content_masks) != bool(self.style_masks):
            raise ValueError("content_masks and style_masks belong together: give both")
        if self.units != "balanced":
            self._check_units()

    def _check_positions(self) -> None:
        """Raises a ValueError if the style loss needs all positions, but has not all."""
        if style_losses.find(self.style_loss).statistics is not None:
            return
        for name, given in (("block", self.block > 0), ("masks", self.style_masks)):
            if given:
                raise ValueError(
                    f"style_loss={self.style_loss} compares positions, not sums over"
                    f" them, which {name} need: take w2, gram or moments"
                )

    def _check_units(self) -> None:
        """Raises a ValueError if the units of another tool do not suit."""
        untrained = self.weights == "random"
        taken = weights.preprocessing(self.weights, self.preprocessing)
        if self.model in ("vgg16", "vgg19") and not untrained and taken != "caffe":
            raise ValueError(
                f"units={self.units} count on Caffe's VGG, whose activations are about 57"
                " times torchvision's: give weights=caffe, or preprocessing=caffe for a"
                " file of Caffe's of another name; or units=balanced, alpha=1, beta=3,"
                " gamma=1e-4"
            )
        if self.style_loss != "gram":
            raise ValueError(
                f"units={self.units} are those of style_loss=gram: give units=balanced"
            )
        if self.optimizer == "gd" and not self.learning_rate:
            raise ValueError(
                f"losses in units={self.units} have no usual size: give gd a"
                " learning_rate that suits them"
            )


_FIRST_OF_EACH_BLOCK = [f"conv{block}_1" for block in range(1, 6)]
_VGG: dict[str, Any] = {
    "model": "vgg19",
    "weights": "caffe",
    "pooling": "average",
    "content_layers": "conv4_2",
    "style_layers": ",".join(f"{layer}:0.2" for layer in _FIRST_OF_EACH_BLOCK),
    "style_loss": "gram",
    "alpha": 1.0,
    "gamma": 0.0,
    "start": "noise",
    "size": 512,
    "scales": 1,
    "b2": 0.999,
    "clip": False,
    "smoothing": 0.0,
    "jitter": 0,
    "margin": 0,
    "annealing": False,
}

# Settings other than the defaults. Their losses are weighted for Caffe's VGG-19.
PRESETS: dict[str, dict[str, Any]] = {
    # The paper, with its larger alpha / beta.
    "gatys2015": _VGG
    | {"units": "gatys2015", "beta": 1000.0, "optimizer": "lbfgs", "steps": 500},
    # neural-style-pt with `-optimizer adam`; its default is an L-BFGS without the line
    # search of ours. Its learning rate is 1 where white is 256.
    "neural_style": _VGG
    | {
        "units": "neural_style",
        "pooling": "max",
        "style_layers": ",".join(_FIRST_OF_EACH_BLOCK),
        "alpha": 5.0,
        "beta": 100.0,
        "gamma": 1e-3,
        "tv_power": 1,
        "start": "mean",
        "optimizer": "adam",
        "learning_rate": 255 / 256,
        "steps": 1000,
    },
    # Andrew Ng's course, but for its start: 40 % content and 60 % faint noise.
    "ng": _VGG
    | {
        "units": "ng",
        "alpha": 10.0,
        "beta": 40.0,
        "size": 400,
        "optimizer": "adam",
        "learning_rate": 2.0,
        "steps": 200,
    },
}


def check(settings: Settings, styles: int) -> None:
    """Raises a ValueError if settings make no sense for so many style pictures."""
    config.check(settings)
    if styles < 1:
        raise ValueError("a style transfer needs at least one style picture")
    style_blend(settings.style_blend, styles)


def layer_weights(text: str) -> dict[str, float]:
    """Parses `conv1:0.5,conv2` to `{"conv1": 0.5, "conv2": 1.0}`.

    Raises:
        ValueError: A weight is not a positive number, or a layer is named twice.
    """
    weights = {}
    for part in filter(None, text.replace(" ", "").split(",")):
        name, _, weight = part.partition(":")
        if name in weights:
            raise ValueError(f"{name} is given twice in {text!r}")
        weights[name] = _number(weight or "1", part)
        if not 0 < weights[name] <= 1e6:
            raise ValueError(
                f"{weight!r} in {part!r} should be a number above 0 and at most 1e6"
            )
    return weights


def style_blend(text: str, styles: int) -> list[float]:
    """Parses the weights of the style pictures, `2,1`, and makes them sum to 1.

    Raises:
        ValueError: Not one positive number for each picture.
    """
    blend = [_number(part, text) for part in text.split(",")] if text else [1] * styles
    if len(blend) != styles or min(blend) < 0 or not 0 < sum(blend) <= 1e6:
        raise ValueError(
            f"style_blend={text!r} should be {styles} numbers from 0 to 1e6, one for each"
            " style picture, not all 0"
        )
    return [share / sum(blend) for share in blend]


def sizes(size: tuple[int, int], settings: Settings) -> list[tuple[int, int]]:
    """Returns the long sides to go through, and the steps at each.

    Args:
        size: Width and height of the content.
        settings: How to paint.

    Raises:
        ValueError: The result would be too small for a network.
    """
    both = _fast(settings) if settings.schedule == "fast" else _even(settings)
    large = [
        (side, steps)
        for side, steps in both
        if min(images.fitted_size(size, side)) >= SHORTEST_SIDE
    ]
    if not large:
        raise ValueError(
            f"size={settings.size} makes a picture whose short side is below"
            f" {SHORTEST_SIDE} pixels: raise it"
        )
    return large


def _even(settings: Settings) -> list[tuple[int, int]]:
    count = settings.scales
    sides = (round(settings.size * k / count) for k in range(1, count + 1))
    return [(side, settings.steps) for side in sides]


def _fast(settings: Settings) -> list[tuple[int, int]]:
    """As SPST (arXiv:2212.13459): a third of the steps at twice the size."""
    doublings = max(0, round(math.log2(settings.size / FAST_START)))
    return [
        (
            round(settings.size / 2 ** (doublings - k)),
            max(min(FAST_LEAST, settings.steps), settings.steps // 3**k),
        )
        for k in range(doublings + 1)
    ]


def _number(text: str, where: str) -> float:
    with contextlib.suppress(ValueError):
        if math.isfinite(number := float(text)):
            return number
    raise ValueError(f"{text!r} in {where!r} should be a number")
