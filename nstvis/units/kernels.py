"""Kernels as pictures: the weights from a unit's inputs, position by position."""

from collections.abc import Mapping, Sequence

import numpy as np

from nstvis import images

_LEAST = 24  # pixels of a picture's side, about, however small the kernel


def cropped(
    weights: Sequence[np.ndarray], channels: np.ndarray
) -> list[np.ndarray | None]:
    """Returns the kernels of some of a unit's inputs.

    Args:
        weights: Of every element of each array of inputs, `[height, width, channels]` or
            `[channels]`.
        channels: Which of all channels in a row, -1 for none.

    Returns:
        `[side, side]`: what a channel has of the rows and columns in which any channel
        of its array has a weight.
    """
    kernels: list[np.ndarray] = []
    for x in weights:
        kernels += list(np.moveaxis(square(x), -1, 0))
    # Copies, or each would keep the weights of all channels.
    return [kernels[channel].copy() if channel >= 0 else None for channel in channels]


def square(weights: np.ndarray) -> np.ndarray:
    """Crops weights `[height, width, channels]` to a square in which they are not 0."""
    weights = weights.reshape(*[1] * (3 - weights.ndim), *weights.shape)
    present = (weights != 0).any(2)
    if not present.any():
        return weights[:1, :1]
    top, bottom = np.flatnonzero(present.any(1))[[0, -1]] + [0, 1]
    left, right = np.flatnonzero(present.any(0))[[0, -1]] + [0, 1]
    side = max(bottom - top, right - left)
    framed = np.zeros((side, side, weights.shape[2]), weights.dtype)
    framed[: bottom - top, : right - left] = weights[top:bottom, left:right]
    return framed


def pictures(
    kernels: Mapping[int, Sequence[np.ndarray | None]],
) -> dict[int, np.ndarray]:
    """Draws the kernels of a layer's units.

    Args:
        kernels: Unit to its kernels: `[side, side]`, `[side, side, 3]` for the weights of
            a colour, or None for none.

    Returns:
        Unit to pictures, uint8 `[kernels, side, side, 3]`. Red is above 0, blue below,
        white 0; weights of a colour have their colour on grey. Strength is comparable
        within a unit. Grey where there is no kernel.
    """
    every = [x for unit in kernels.values() for x in unit if x is not None]
    longest = max((len(x) for x in every), default=1)
    side = longest * max(1, _LEAST // longest)
    drawn = {}
    for number, unit in kernels.items():
        present = [np.abs(x).max() for x in unit if x is not None]
        scale = 1 / max(*present, 1e-30) if present else 1
        drawn[number] = np.stack(
            [_blank(side) if x is None else _picture(x * scale, side) for x in unit]
        )
    return drawn


def _blank(side: int) -> np.ndarray:
    return np.full((side, side, 3), images.GREY, np.uint8)


def _picture(weights: np.ndarray, side: int) -> np.ndarray:
    """Draws weights from -1 to 1, as squares of one colour each."""
    nearest = np.arange(side) * len(weights) // side
    weights = weights[nearest][:, nearest]
    if weights.ndim == 3:
        return np.rint(images.GREY * (1 + weights)).astype(np.uint8)
    red, blue = np.minimum(1 + weights, 1), np.minimum(1 - weights, 1)
    colours = np.stack([red, np.minimum(red, blue), blue], -1)
    return np.rint(255 * colours).astype(np.uint8)
