"""Correspondence: whether a network treats the same part of different images alike.

Zeiler & Fergus 2013 (arXiv:1311.2901), section 4.4. With x_i the features of image i at
a layer, and x~_i those of the image with a part masked, eps_i = x_i - x~_i is what the
part has to do with the features, and

    Delta = mean over i != j of H(sign(eps_i), sign(eps_j)),

where sign is -1, 0 or 1, and H, the Hamming distance, is the share of positions that
differ: 0 if the part does the same to every image, so lower is more consistent. The
paper writes a sum, of numbers whose scale it does not tell; this is a mean. All boxes
are top, left, bottom, right in pixels, the last two exclusive.
"""

import dataclasses
import io
import json
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from nstvis import crops, devices, images
from nstvis.data import Example, primitives
from nstvis.models import Forward, Params


def masked(pictures: Array, boxes: Array) -> Array:
    """Hides a box of each picture behind grey.

    Args:
        pictures: float32 `[n, height, width, 3]`, 0..255.
        boxes: `[n, 4]`.
    """
    rows, columns = (jnp.arange(side)[None] for side in pictures.shape[1:3])
    top, left, bottom, right = boxes.T[..., None]
    down = (rows >= top) & (rows < bottom)
    across = (columns >= left) & (columns < right)
    inside = down[:, :, None] & across[:, None, :]
    return jnp.where(inside[..., None], images.GREY, pictures)


def hamming(signs: Array) -> Array:
    """Shares of positions at which any two rows differ, `[n, n]`, of up to 2**24.

    Args:
        signs: -1, 0 or 1, `[n, positions]`.
    """
    # Products of zeros and ones: exact at any of the devices' precisions.
    same = ((signs == sign).astype(jnp.float32) for sign in (-1, 0, 1))
    agreements = sum((one @ one.T for one in same), jnp.float32(0))
    return (signs.shape[1] - agreements) / signs.shape[1]


def sign_change(signs: Array) -> Array:
    """Each image's mean Hamming distance from the others, `[n]`; their mean is Delta.

    Args:
        signs: Those of eps, -1, 0 or 1, `[n, positions]`.
    """
    return hamming(signs).sum(1) / (len(signs) - 1)


class Comparison:
    """Images whose parts are masked, and what that changes in a network's features."""

    def __init__(
        self,
        forward: Forward,
        params: Params,
        layers: Sequence[str],
        pictures: np.ndarray,
        batch: int,
    ):
        """Computes the features of the images as they are.

        Args:
            forward: The network.
            params: Its parameters.
            layers: Whose features are compared.
            pictures: uint8 `[n, size, size, 3]`.
            batch: Images in a batch.
        """

        @jax.jit
        def features(params: Params, pictures: Array, boxes: Array) -> list[Array]:
            found = forward(params, masked(pictures.astype(jnp.float32), boxes))
            return [found[name].reshape(len(pictures), -1) for name in layers]

        self._features, self._params, self._layers = features, params, layers
        self._pictures, self._batch = pictures, min(batch, len(pictures))
        nowhere = np.zeros((len(pictures), 4), int)
        # By the same program, as another one may round differently: what a mask does
        # not change is to be no change at all.
        self._originals = list(self._computed(nowhere))

    def __call__(self, boxes: np.ndarray) -> Array:
        """Each image's mean distance from the others, with a box of each masked.

        Args:
            boxes: `[n, 4]`.

        Returns:
            What `sign_change` says, `[layers, n]`.

        Raises:
            FloatingPointError: A feature is not a finite number.
        """
        signs: list[list[Array]] = [[] for _ in self._layers]
        for before, after in zip(self._originals, self._computed(boxes)):
            for name, known, x, other in zip(self._layers, signs, before, after):
                if not jnp.isfinite(x - other).all():
                    raise FloatingPointError(f"{name} is not finite for an image")
                known.append(jnp.sign(x - other).astype(jnp.int8))
        count = len(self._pictures)
        every = [jnp.concatenate(known)[:count] for known in signs]
        return jnp.stack([_sign_change(known) for known in every])

    def flops(self) -> float:
        """Floating-point operations of a call, but for those of the comparison."""
        pictures = self._pictures[: self._batch]
        boxes = np.zeros((self._batch, 4), int)
        cost = devices.flops(self._features, self._params, pictures, boxes)
        return cost * len(self._originals)

    def _computed(self, boxes: np.ndarray) -> Iterator[list[Array]]:
        """Features batch by batch; the last one is filled with the first images."""
        count = len(boxes)
        for first in range(0, count, self._batch):
            some = np.arange(first, first + self._batch) % count
            yield self._features(self._params, self._pictures[some], boxes[some])


_sign_change = jax.jit(sign_change)


def elsewhere(
    boxes: np.ndarray, size: int, rng: np.random.Generator, *, together: bool
) -> np.ndarray:
    """Boxes of the same sizes at random places, all within the image.

    Args:
        boxes: `[n, 4]`.
        size: Side of the images.
        rng: Where the randomness comes from.
        together: Whether all are at one random place, as far as their sizes let them.
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    chance = rng.random((1 if together else len(boxes), 2))
    corners = np.floor(chance * (size - sides + 1)).astype(int)
    return np.concatenate([corners, corners + sides], 1)


@dataclasses.dataclass(frozen=True)
class Parts:
    """Images, and where the same parts of them are."""

    # uint8 `[n, size, size, 3]`.
    images: np.ndarray
    # By the part's name, `[n, 4]`.
    boxes: Mapping[str, np.ndarray]


def drawn(count: int, size: int) -> Parts:
    """The first faces of `primitives`.

    Args:
        count: How many, 2 to 200.
        size: Side of the images, in pixels.

    Raises:
        ValueError: Not so many.
    """
    available = primitives.SPLITS["train"]
    if not 2 <= count <= available:
        raise ValueError(f"count={count} should be 2 to {available}")
    first, found = list(primitives.KINDS).index("face") * available, []
    for index in range(first, first + count):
        _, image, parameters = primitives.example(0, "train", index)
        file = io.BytesIO()
        image.save(file, "PNG")
        example = Example(f"train/{index:06d}", -1, file.getvalue())
        found.append((example, parameters["boxes"]))
    return _parts(found, size)


def read(path: pathlib.Path, size: int) -> Parts:
    """Images of one's own, listed in a file of JSON with the boxes of their parts.

        {"ann.jpg": {"nose": [61, 40, 80, 58], ...}, "bob.jpg": {"nose": ...}, ...}

    Paths are relative to the file's folder; boxes are in the image's own pixels.

    Args:
        path: The file.
        size: Side of the squares, in pixels, that the images' centres are scaled to.

    Raises:
        ValueError: It is no such file, or a part is missing, or not within its image.
        FileNotFoundError: There is no such file, or no such image.
    """
    listed, found = _listed(path), []
    parts = dict.fromkeys(part for boxes in listed.values() for part in boxes)
    for name, boxes in listed.items():
        for part in parts:
            if part not in boxes:
                raise ValueError(f"{path}: {name} has no {part!r}, which others have")
        file = path.parent / name
        if not file.is_file():
            raise FileNotFoundError(f"{path}: there is no image {file}")
        example = Example(str(file), -1, file.read_bytes())
        found.append((example, {part: boxes[part] for part in parts}))
    return _parts(found, size)


def _listed(path: pathlib.Path) -> dict[str, dict[str, Any]]:
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: no such file") from error
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    of_dicts = isinstance(listed, dict) and all(
        isinstance(boxes, dict) and boxes for boxes in listed.values()
    )
    if not of_dicts or len(listed) < 2:
        raise ValueError(
            f'{path}: should list two or more images: {{"image": {{"part": [top, left,'
            " bottom, right], ...}, ...}"
        )
    return listed


def _parts(found: Sequence[tuple[Example, Mapping[str, Any]]], size: int) -> Parts:
    pictures = [np.asarray(crops.centered(example, size)) for example, _ in found]
    boxes = {
        part: np.array(
            [_scaled(example, part, own[part], size) for example, own in found]
        )
        for part in found[0][1]
    }
    return Parts(np.stack(pictures), boxes)


def _scaled(example: Example, part: str, box: Any, size: int) -> list[int]:
    """The pixels of the square that a box touches, as `crops.centered` cuts it out."""
    where = f"{example.id}: {part!r} {box}"
    width, height = images.decode(example.encoded, example.id).size
    if not _is_box(box):
        raise ValueError(f"{where} should be [top, left, bottom, right], in pixels")
    top, left, bottom, right = box
    if not (0 <= top < bottom <= height and 0 <= left < right <= width):
        raise ValueError(f"{where} is not within the {width} x {height} pixels")
    side = min(width, height)
    y, x = (height - side) / 2, (width - side) / 2
    first = [math.floor((value * size) / side) for value in (top - y, left - x)]
    last = [math.ceil((value * size) / side) for value in (bottom - y, right - x)]
    if min(first) < 0 or max(last) > size:
        raise ValueError(
            f"{where} is beside the square in the middle of {width} x {height} pixels,"
            " which is all that the network sees: crop the image"
        )
    return first + last


def _is_box(box: Any) -> bool:
    numbers = isinstance(box, list) and all(
        isinstance(x, int | float) and math.isfinite(x) for x in box
    )
    return numbers and len(box) == 4
