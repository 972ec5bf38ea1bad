"""Optical flow: Middlebury's .flo files, and pictures that are moved along it.

Flow here points back, from a frame to the one before: what is at pixel (x, y) of a frame
was at (x + u, y + v) of the frame before, x to the right and y down. It is an array
`[height, width, 2]` of (u, v) in pixels, NaN where it is unknown.

A .flo file (Baker et al. 2011, https://vision.middlebury.edu/flow/) has the bytes `PIEH`,
the width and the height as int32, and u, v of each pixel, row by row, as float32, all
little-endian; values above 1e9 are unknown.
"""

import pathlib
import struct

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array
from jax.scipy.ndimage import map_coordinates
from PIL import Image

from nstvis.runs import files

_TAG, _UNKNOWN = b"PIEH", 1e9
_HEADER = struct.Struct("<4sii")


def read_size(path: pathlib.Path) -> tuple[int, int]:
    """Returns the width and the height of the flow in a .flo file.

    Raises:
        ValueError: It is no .flo file, or is not as long as its header says.
        OSError: It could not be read.
    """
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
    if len(header) < _HEADER.size or not header.startswith(_TAG):
        raise ValueError(f"{path}: no .flo file, which would begin with PIEH")
    _, width, height = _HEADER.unpack(header)
    expected, found = _HEADER.size + 8 * width * height, path.stat().st_size
    if min(width, height) < 1 or found != expected:
        raise ValueError(
            f"{path}: {found} bytes, where a flow of {width} x {height} pixels has"
            f" {expected}: it was cut short, or is damaged"
        )
    return width, height


def read(path: pathlib.Path) -> np.ndarray:
    """Returns the flow in a .flo file, float32 `[height, width, 2]`; raises as above."""
    width, height = read_size(path)
    flow = np.fromfile(path, "<f4", offset=_HEADER.size).reshape(height, width, 2)
    known = (np.abs(flow) <= _UNKNOWN).all(-1, keepdims=True)  # NaN is not
    return np.where(known, flow, np.float32(np.nan))


def write(path: pathlib.Path, flow: np.ndarray) -> None:
    """Writes a flow as a .flo file, whole or not at all."""
    height, width, _ = flow.shape
    values = np.where(np.isnan(flow), 2 * _UNKNOWN, flow).astype("<f4")
    with files.replacing(path) as file:
        file.write(_HEADER.pack(_TAG, width, height) + values.tobytes())


def resize(flow: np.ndarray, width: int, height: int) -> np.ndarray:
    """Scales a flow, with its vectors, to pictures of another size.

    It is unknown where less than half of what it is averaged over is known.
    """
    known = np.isfinite(flow).all(-1)

    def resized(values: npt.ArrayLike) -> np.ndarray:
        picture = Image.fromarray(np.asarray(values, np.float32))
        return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))

    share = resized(known)
    scales = width / flow.shape[1], height / flow.shape[0]
    sums = [s * resized(np.where(known, flow[..., i], 0)) for i, s in enumerate(scales)]
    means = np.stack(sums, -1) / np.maximum(share, 0.5)[..., None]
    return np.where(share[..., None] >= 0.5, means, np.nan).astype(np.float32)


def traceable(flow: np.ndarray) -> np.ndarray:
    """Whether each pixel was in the frame before, by known flow; bool `[height, width]`.

    A pixel that was there reaches half a pixel beyond its centre.
    """
    rows, columns = np.indices(flow.shape[:2])
    x, y = columns + flow[..., 0], rows + flow[..., 1]  # comparisons with NaN are False
    inside = (x >= -0.5) & (x <= flow.shape[1] - 0.5)
    return inside & (y >= -0.5) & (y <= flow.shape[0] - 0.5)


@jax.jit
def warp(picture: jax.typing.ArrayLike, flow: jax.typing.ArrayLike) -> Array:
    """Moves a frame's picture to where the next frame has what is in it.

    Args:
        picture: `[..., height, width, channels]`.
        flow: From the next frame back to this one, `[height, width, 2]`.

    Returns:
        An array like `picture`, interpolated bilinearly. Pixels that came from outside
        are those of the nearest edge, and where flow is unknown nothing moves.
    """
    picture, flow = jnp.asarray(picture), jnp.asarray(flow)
    rows, columns = jnp.indices(flow.shape[:2])
    flow = jnp.where(jnp.isnan(flow), 0, flow)
    at = [rows + flow[..., 1], columns + flow[..., 0]]

    def moved(channel: Array) -> Array:
        return map_coordinates(channel, at, order=1, mode="nearest")

    channels = jnp.moveaxis(picture, -1, 0).reshape(-1, *flow.shape[:2])
    result = jax.vmap(moved)(channels)
    shape = picture.shape[-1], *picture.shape[:-1]
    return jnp.moveaxis(result.reshape(shape), 0, -1)
