"""The settings of a style transfer, and what follows from them alone."""

import contextlib
import dataclasses
import math
import os

from nstvis import images
from nstvis.runs.registry import unknown
from nstvis.synthesis import losses

SHORTEST_SIDE = 32  # pixels of the smallest pictures that a network is shown
LEARNING_RATES = {"adam": 4.0, "lbfgs": 1.0, "gd": 1e4}


@dataclasses.dataclass(kw_only=True)
class Settings:
    """How to paint. The defaults are tuned for the bundled network."""

    # Network: a name in nstvis/models or the path of a file like those.
    model: str = "alexnet_small"
    # Weights: bundled, random, torchvision, or a path.
    weights: str = "bundled"
    # Pooling: max or average.
    pooling: str = "max"
    # Layers that keep the content, as layer or layer:weight, separated by commas.
    content_layers: str = "conv3"
    # Layers that carry the style, likewise.
    style_layers: str = "conv1:2,conv2,conv3,conv4:0.3,conv5:0.3"
    # Units of alpha and beta: balanced, gatys2015, neural_style or ng.
    units: str = "balanced"
    # Alpha, the weight of the content.
    alpha: float = 1.0
    # Beta, the weight of the style.
    beta: float = 1.5
    # Gamma, the weight of the total variation, which smooths.
    gamma: float = 1e-3
    # Power of the differences in the total variation: 1 or 2.
    tv_power: int = 2
    # Weights of several style pictures, separated by commas; equal if empty.
    style_blend: str = ""
    # Long side of the style picture over that of the result.
    style_scale: float = 1.0
    # Keep the content's colours: no, luminance or histogram.
    preserve_color: str = "no"
    # Where G starts: noise, content, or the path of a picture.
    start: str = "noise"
    # Long side of the result in pixels; its aspect ratio is the content's.
    size: int = 384
    # Sizes to go through from coarse to fine, evenly spaced up to `size`.
    scales: int = 3
    # Steps at each size.
    steps: int = 250
    # Optimiser: adam, lbfgs, or gd, the lecture's G := G - learning_rate dJ/dG.
    optimizer: str = "adam"
    # Length of a step; 0 takes the optimiser's own default (gd: in balanced units).
    learning_rate: float = 0.0
    # Adam sees the gradient's frequencies f divided by f^smoothing: 0 is plain Adam,
    # more paints broad strokes before fine ones.
    smoothing: float = 0.5
    # G is rolled by a random number of pixels below this, down and to the right, at
    # every step, so that the network's strides leave no grid. L-BFGS needs the same
    # objective at every step and takes none.
    jitter: int = 8
    # Seed of all randomness.
    seed: int = 0


def check(settings: Settings, styles: int) -> None:
    """Raises a ValueError if a setting makes no sense for so many style pictures."""
    for field, choices in {
        "units": losses.UNITS,
        "preserve_color": ("no", "luminance", "histogram"),
        "pooling": ("max", "average"),
    }.items():
        if getattr(settings, field) not in choices:
            raise ValueError(unknown(field, getattr(settings, field), choices))
    for field, least in {"scales": 1, "steps": 1, "size": 1, "jitter": 0}.items():
        if getattr(settings, field) < least:
            raise ValueError(f"{field} should be at least {least}")
    starts = ("noise", "content")
    if settings.start not in starts and not os.path.isfile(settings.start):
        raise ValueError(unknown("start or file", settings.start, starts))
    if settings.tv_power not in (1, 2):
        raise ValueError(f"tv_power is 1 or 2, not {settings.tv_power}")
    if settings.style_scale <= 0:
        raise ValueError("style_scale should be positive")
    if styles < 1:
        raise ValueError("a style transfer needs at least one style picture")
    style_blend(settings.style_blend, styles)


def layer_weights(text: str) -> dict[str, float]:
    """Parses `conv1:0.5,conv2` to `{"conv1": 0.5, "conv2": 1.0}`.

    Raises:
        ValueError: A weight is not a number.
    """
    weights = {}
    for part in filter(None, text.replace(" ", "").split(",")):
        name, _, weight = part.partition(":")
        weights[name] = _number(weight or "1", part)
    return weights


def style_blend(text: str, styles: int) -> list[float]:
    """Parses the weights of the style pictures, `2,1`, and makes them sum to 1.

    Raises:
        ValueError: Not one positive number for each picture.
    """
    blend = [_number(part, text) for part in text.split(",")] if text else [1] * styles
    if len(blend) != styles or min(blend) < 0 or sum(blend) <= 0:
        raise ValueError(
            f"style_blend={text!r} should be {styles} positive numbers, one for each"
            " style picture"
        )
    return [share / sum(blend) for share in blend]


def long_sides(size: tuple[int, int], settings: Settings) -> list[int]:
    """Returns the long sides to go through, for a content of `(width, height)`.

    Raises:
        ValueError: The result would be too small for a network to look at.
    """
    sides = [
        round(settings.size * k / settings.scales)
        for k in range(1, settings.scales + 1)
    ]
    seen = [s for s in sides if min(images.fitted_size(size, s)) >= SHORTEST_SIDE]
    if not seen:
        raise ValueError(
            f"size={settings.size} makes a picture whose short side is below"
            f" {SHORTEST_SIDE} pixels: raise it"
        )
    return seen


def _number(text: str, where: str) -> float:
    with contextlib.suppress(ValueError):
        if math.isfinite(number := float(text)):
            return number
    raise ValueError(f"{text!r} in {where!r} should be a number")
