"""Canvases: parameterisations of a picture, and pictures to start from.

Both kinds have colour components that are uncorrelated in natural images, and a sigmoid
maps them to 0..255, so that gradient descent needs no bounds (Olah, Mordvintsev &
Schubert 2017, "Feature Visualization", https://doi.org/10.23915/distill.00007, whose
constants these are).
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from PIL import Image

from nstvis import images

# A square root of the covariance of the colours of ImageNet's pixels, RGB 0..1; the
# columns: light, blue to orange, green to magenta.
_COLOR_ROOT = np.array(
    [[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]], np.float32
)
COLORS = _COLOR_ROOT / np.linalg.norm(_COLOR_ROOT, axis=0).max()

DEVIATION = 0.01  # of the noise at the start


@functools.partial(jax.jit, static_argnums=1)
def white_noise(key: Array, shape: tuple[int, ...]) -> Array:
    """Returns a picture of Gaussian noise around grey, `shape`, clipped to 0..255."""
    return jnp.clip(128 + 40 * jax.random.normal(key, shape), 0, 255)


def from_image(image: Image.Image) -> Array:
    """Returns an image's pixels as float32 `[1, height, width, 3]`, 0..255."""
    return jnp.asarray(images.to_array(image))[None]


def framed(picture: Array, margin: int) -> Array:
    """Adds so many pixels on all sides, in which the picture, `[1, ...]`, is reflected."""
    around = (0, 0), (margin, margin), (margin, margin), (0, 0)
    return jnp.pad(picture, around, "reflect")


def cropped(picture: Any, margin: int) -> Any:
    """Takes so many pixels away on all sides."""
    height, width = picture.shape[1:3]
    return picture[:, margin : height - margin, margin : width - margin]


def recolored(
    content: Array, styles: Sequence[Array], shares: Sequence[float]
) -> Array:
    """Gives the content the mean and the covariance of the style's colours.

    Args:
        content: Pixels, `[1, height, width, 3]`.
        styles: Pictures of any size.
        shares: Of the styles. The result is the blend of the content in each one's
            colours.

    Returns:
        The content's new pixels, not clipped.
    """
    each = [images.match_colors(content[0], style[0]) for style in styles]
    return jnp.asarray(np.average(each, 0, shares)[None], jnp.float32)


class Canvas(NamedTuple):
    """A parameterisation of pictures.

    Attributes:
        shape: Of the parameters, which are optimised.
        draw: Maps them to a picture, `[1, height, width, 3]`, RGB 0..255.
    """

    shape: tuple[int, ...]
    draw: Callable[[Array], Array]

    def start(self, key: Array) -> Array:
        """Returns the parameters of a nearly grey picture."""
        return DEVIATION * jax.random.normal(key, self.shape)


def pixels(height: int, width: int) -> Canvas:
    """Returns the canvas whose parameters are every pixel's colour components."""
    return Canvas((1, height, width, 3), colored)


def fourier(height: int, width: int) -> Canvas:
    """Returns the canvas of Fourier coefficients, scaled by one over their frequency.

    Natural images have amplitudes of 1/f. The picture is periodic.
    """
    scale = spectrum_scale(height, width)[None, :, :, None]

    def draw(canvas: Array) -> Array:
        spectrum = scale * jax.lax.complex(canvas[..., 0], canvas[..., 1])
        return colored(jnp.fft.irfft2(spectrum, (height, width), axes=(1, 2)))

    return Canvas((1, height, width // 2 + 1, 3, 2), draw)


KINDS = {"fourier": fourier, "pixels": pixels}


def spectrum_scale(height: int, width: int) -> np.ndarray:
    """Factors on the coefficients of `rfft2`, float32 `[height, width // 2 + 1]`.

    sqrt(height width) / 4 f, with frequencies f in cycles per pixel, at least those of
    one cycle in the longer side.
    """
    rows, columns = np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None]
    frequencies = np.maximum(np.hypot(rows, columns), 1 / max(height, width))
    return (np.sqrt(height * width) / (4 * frequencies)).astype(np.float32)


def colored(components: Array) -> Array:
    """Converts colour components, `[..., 3]`, to RGB 0..255; zeros are grey."""
    # Accelerators would round to 8 bits here, which is seen.
    mixed = jnp.einsum("...c,rc->...r", components, COLORS, precision="highest")
    return 255 * jax.nn.sigmoid(mixed)
