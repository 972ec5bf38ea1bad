"""Canvases: parameterisations of a picture, and pictures to start from.

All kinds have colour components that are uncorrelated in natural images, and a sigmoid
maps them to 0..255, so that gradient descent needs no bounds (Olah, Mordvintsev &
Schubert 2017, "Feature Visualization", https://doi.org/10.23915/distill.00007, whose
constants these are).
"""

import functools
from collections.abc import Callable, Iterable, Sequence
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
_PALEST = 0.02  # how near to 0 and 1 the colours are that a canvas starts from


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


def window(image: np.ndarray, top: int, left: int, size: int) -> np.ndarray:
    """Returns a square of an image, which is reflected, again and again, at its borders.

    Args:
        image: `[height, width, 3]`.
        top: Row of the image at which the square begins; may be outside.
        left: Column likewise.
        size: Side of the square, in pixels.
    """
    rows, columns = (
        np.pad(np.arange(length), (0, length), "symmetric")
        for length in image.shape[:2]
    )
    rows = rows[(top + np.arange(size)) % len(rows)]
    columns = columns[(left + np.arange(size)) % len(columns)]
    return image[rows[:, None], columns]


class Canvas(NamedTuple):
    """A parameterisation of pictures.

    Attributes:
        shape: Of the parameters, which are optimised.
        draw: Maps them to a picture, `[1, height, width, 3]`, RGB 0..255.
        encode: Maps a picture to the parameters that draw it, or what is nearest to it.
        deviation: Standard deviation of the parameters at the start.
    """

    shape: tuple[int, ...]
    draw: Callable[[Array], Array]
    encode: Callable[[Array], Array]
    deviation: float = DEVIATION

    def start(self, key: Array) -> Array:
        """Returns the parameters of noise: nearly grey, where they are not phases."""
        return self.deviation * jax.random.normal(key, self.shape)


def pixels(height: int, width: int) -> Canvas:
    """Returns the canvas whose parameters are every pixel's colour components."""
    return Canvas((1, height, width, 3), colored, components)


def fourier(height: int, width: int) -> Canvas:
    """Returns the canvas of Fourier coefficients, scaled by one over their frequency.

    Natural images have amplitudes of 1/f. The picture is periodic.
    """
    scale = spectrum_scale(height, width)[None, :, :, None]

    def draw(canvas: Array) -> Array:
        spectrum = scale * jax.lax.complex(canvas[..., 0], canvas[..., 1])
        return colored(jnp.fft.irfft2(spectrum, (height, width), axes=(1, 2)))

    def encode(picture: Array) -> Array:
        spectrum = jnp.fft.rfft2(components(picture), axes=(1, 2)) / scale
        return jnp.stack([spectrum.real, spectrum.imag], -1)

    return Canvas((1, height, width // 2 + 1, 3, 2), draw, encode)


def maco(magnitudes: np.ndarray, width: int) -> Canvas:
    """Returns the canvas of Fourier phases, whose magnitudes are fixed.

    Fel et al. 2023, "Unlocking Feature Visualization for Deeper Networks with MAgnitude
    Constrained Optimization" (arXiv:2306.06805): with those of natural images, no picture
    has the high frequencies that a network is excited by and they lack.

    Args:
        magnitudes: From `mean_magnitudes`.
        width: Of the picture, in pixels.
    """
    height = len(magnitudes)

    def draw(canvas: Array) -> Array:
        spectrum = magnitudes[None] * jnp.exp(1j * canvas)
        return colored(jnp.fft.irfft2(spectrum, (height, width), axes=(1, 2)))

    def encode(picture: Array) -> Array:
        return jnp.angle(jnp.fft.rfft2(components(picture), axes=(1, 2)))

    # Of this deviation, a normal angle is nearly uniform.
    return Canvas((1, *magnitudes.shape), draw, encode, deviation=np.pi)


def mean_magnitudes(pictures: Iterable[np.ndarray]) -> np.ndarray:
    """Returns the pictures' mean magnitudes, float32 `[height, width // 2 + 1, 3]`.

    They are those of the Fourier coefficients of the pictures' colour components.

    Args:
        pictures: RGB 0..255, `[height, width, 3]`, of one size.
    """
    total, count = np.zeros(()), 0
    for count, picture in enumerate(pictures, 1):
        spectrum = np.fft.rfft2(np.asarray(components(picture)), axes=(0, 1))
        total = total + np.abs(spectrum)
    return (total / count).astype(np.float32)


# Those that need no more than a height and a width.
PLAIN = {"fourier": fourier, "pixels": pixels}
KINDS = (*PLAIN, "maco")


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


def components(picture: Any) -> Array:
    """Converts RGB 0..255, `[..., 3]`, to colour components: the inverse of `colored`.

    Values near 0 and 255, which would be infinite, are those at 2 % from them.
    """
    small = jnp.clip(jnp.asarray(picture, jnp.float32) / 255, _PALEST, 1 - _PALEST)
    mixed = jnp.log(small / (1 - small))
    unmix = np.linalg.inv(COLORS)
    return jnp.einsum("...c,rc->...r", mixed, unmix, precision="highest")
