"""Crops of images: the central square, or a random one to train on."""

import dataclasses
import math

import numpy as np
from PIL import Image, ImageEnhance
from PIL.Image import Resampling

from nstvis.data import Example


def centered(example: Example, size: int) -> Image.Image:
    """Returns the central square of an image, resized to `size` x `size` pixels.

    Raises:
        ValueError: It is damaged.
    """
    image = example.decode().convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side)
    return image.resize((size, size), Resampling.BILINEAR, box, reducing_gap=2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How much a training image may differ from the one in the data set."""

    # Least share of the area that a crop keeps. It keeps less of an image that is too
    # wide or too high, as a crop's aspect ratio is 3/4 to 4/3.
    crop: float
    # Largest relative change of brightness, contrast and saturation.
    color: float
    # Whether crops have any size and are resized; or the images' own pixels are cut out,
    # which keeps the sharpness that images have when they are not cropped.
    resize: bool = True
    # Whether half of the images are mirrored.
    flip: bool = True


def augmented(
    image: Image.Image, size: int, augmentation: Augmentation, rng: np.random.Generator
) -> Image.Image:
    """Crops at random, flips, and jitters colours.

    Args:
        image: RGB, of any size.
        size: Side of the result, in pixels.
        augmentation: How much may change.
        rng: Source of randomness.
    """
    crop = _resized_crop if augmentation.resize else _cut_out
    image = crop(image, size, augmentation, rng)
    if augmentation.flip and rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for enhancer in (
        ImageEnhance.Brightness,
        ImageEnhance.Contrast,
        ImageEnhance.Color,
    ):
        if change := augmentation.color:
            image = enhancer(image).enhance(rng.uniform(1 - change, 1 + change))
    return image


def _resized_crop(
    image: Image.Image, size: int, augmentation: Augmentation, rng: np.random.Generator
) -> Image.Image:
    """Resizes a crop of a random area and aspect (Szegedy et al. 2014, arXiv:1409.4842)."""
    area = rng.uniform(augmentation.crop, 1) * image.width * image.height
    aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    # Clipped to what the image has room for, which may leave 3/4 to 4/3.
    aspect = min(max(aspect, area / image.height**2), image.width**2 / area)
    aspect = min(max(aspect, 3 / 4), 4 / 3)
    height = min(math.sqrt(area / aspect), image.height, image.width / aspect)
    width = min(height * aspect, image.width)
    left = rng.uniform(0, image.width - width)
    top = rng.uniform(0, image.height - height)
    box = (left, top, left + width, top + height)
    return image.resize((size, size), Resampling.BILINEAR, box, reducing_gap=2)


def _cut_out(
    image: Image.Image, size: int, augmentation: Augmentation, rng: np.random.Generator
) -> Image.Image:
    """Cuts out a square of the image's own pixels; a smaller image is enlarged first."""
    if (enlarged := size / min(image.size)) > 1:
        image = image.resize([round(n * enlarged) for n in image.size])
    left, top = (int(rng.integers(n - size + 1)) for n in image.size)
    return image.crop((left, top, left + size, top + size))
