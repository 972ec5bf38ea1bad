"""What optimised pictures take from a data set: magnitudes, and where they start."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image

from nstvis.models import Forward, Params
from nstvis.synthesis import canvas
from nstvis.units.measurements import RankedPatches
from nstvis.units.patches import Images
from nstvis.units.receptive_fields import receptive_fields

_SPECTRA = 256  # images whose spectra are averaged


def magnitudes(pictures: Images, count: int, size: int) -> np.ndarray:
    """Returns the mean magnitudes of images, for `canvas.maco`.

    Args:
        pictures: The images. Damaged ones are left out.
        count: How many there are; 256 of them, evenly, are taken.
        size: Side of the canvas, in pixels: images are reflected beyond their borders or
            cropped, not resized, so that frequencies are what they are.
    """
    first = (pictures.size - size) // 2

    def windows() -> Iterator[np.ndarray]:
        for index in np.unique(np.linspace(0, count - 1, _SPECTRA).astype(int)):
            with contextlib.suppress(ValueError):
                yield canvas.window(pictures[index], first, first, size)

    return canvas.mean_magnitudes(windows())


def from_patches(
    forward: Forward,
    params: Params,
    layer: str,
    top: RankedPatches,
    pictures: Images,
    size: int,
) -> Callable[[int], np.ndarray]:
    """Returns the function from a unit to the picture that its search starts from.

    Args:
        forward: The network.
        params: Its parameters.
        layer: The units'.
        top: Their top-activating patches.
        pictures: Where the images are.
        size: Side of the picture, in pixels.
    """
    fields = receptive_fields(forward, params, size, size)[layer]
    place = np.full(2, fields.columns // 2)  # as high as wide

    def start(unit: int) -> np.ndarray:
        middle = fields.boxes(np.array(unit), place).tolist()
        return around(pictures[top.image[unit, 0]], top.box[unit, 0], middle, size)

    return start


def around(
    image: np.ndarray, box: Sequence[int], middle: Sequence[int], size: int
) -> np.ndarray:
    """Returns an image, moved so that a patch of it is in the middle of a picture.

    Args:
        image: uint8 `[height, width, 3]`; reflected where the picture goes beyond it.
        box: The patch: top, left, bottom, right in pixels of the image.
        middle: The receptive field of the unit that is maximised, in pixels of the
            picture. If it is not as large as the patch, both are all that there is.
        size: Side of the picture, in pixels.

    Returns:
        uint8 `[size, size, 3]`.
    """
    if middle[2] - middle[0] != box[2] - box[0]:
        return np.asarray(Image.fromarray(image).resize((size, size)))
    return canvas.window(image, box[0] - middle[0], box[1] - middle[1], size)
