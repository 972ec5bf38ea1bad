"""Correspondence: whether masking a part changes the features of all images alike.

Zeiler & Fergus 2013 (arXiv:1311.2901), section 4.4. With x_i the features of image i at
a layer, and x~_i those of the image with a part masked, eps_i = x_i - x~_i is the part's
contribution to the features, and

    Delta = mean over i != j of H(sign(eps_i), sign(eps_j)),

where sign is -1, 0 or 1, and H, the Hamming distance, is the share of positions that
differ: 0 if masking the part has the same effect on every image, so lower is more
consistent. The paper's sum has no stated scale; this is a mean. All boxes are top, left,
bottom, right in pixels, the last two exclusive.
"""

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from nstvis import devices, images, models
from nstvis.models import Forward, Params
from nstvis.probes.parts import Parts
from nstvis.runs.checkpoints import Checkpoints
from nstvis.runs.progress import Progress
from nstvis.runs.registry import unknown


def masked(pixels: Array, boxes: Array) -> Array:
    """Hides a box of each image behind grey.

    Args:
        pixels: float32 `[n, height, width, 3]`, 0..255.
        boxes: `[n, 4]`.
    """
    rows, columns = (jnp.arange(side)[None] for side in pixels.shape[1:3])
    top, left, bottom, right = boxes.T[..., None]
    down = (rows >= top) & (rows < bottom)
    across = (columns >= left) & (columns < right)
    inside = down[:, :, None] & across[:, None, :]
    return jnp.where(inside[..., None], images.GREY, pixels)


def hamming(signs: Array) -> Array:
    """Computes the share of positions at which any two rows differ.

    Args:
        signs: -1, 0 or 1, `[n, positions]`, up to 2**24 positions.

    Returns:
        `[n, n]`.
    """
    # Products of zeros and ones, which are exact at any precision of the devices.
    indicators = ((signs == sign).astype(jnp.float32) for sign in (-1, 0, 1))
    agreements = sum((x @ x.T for x in indicators), jnp.float32(0))
    return (signs.shape[1] - agreements) / signs.shape[1]


def sign_change(signs: Array) -> Array:
    """Computes each image's mean Hamming distance from the others.

    Args:
        signs: Those of eps, -1, 0 or 1, `[n, positions]`.

    Returns:
        `[n]`, whose mean is Delta.
    """
    return hamming(signs).sum(1) / (len(signs) - 1)


# Random masks: each image's at another place, or all images' at the same one.
RANDOM, SAME_PLACE = "random", "one place"
PLACES = {RANDOM: "at random places", SAME_PLACE: "at one place in all images"}


@dataclasses.dataclass(frozen=True)
class Mask:
    """One box in every image: a part's, or one of a part's size at a random place."""

    # The part's name, RANDOM or SAME_PLACE.
    kind: str
    # The part whose sizes the boxes have.
    part: str
    # `[images, 4]`.
    boxes: np.ndarray


def masks(parts: Parts, draws: int, seed: int) -> list[Mask]:
    """Returns every part's mask, each followed by random ones of its sizes.

    Args:
        parts: Images and their parts.
        draws: Random masks of each kind for each part.
        seed: Seed of the random places.

    Raises:
        ValueError: A part has the name of a kind of random masks.
    """
    size, rng, made = parts.images.shape[1], np.random.default_rng(seed), []
    for part, boxes in parts.boxes.items():
        if part in PLACES:
            raise ValueError(f"no part can be called {part!r}, as random masks are")
        made.append(Mask(part, part, boxes))
        for kind in list(PLACES) * draws:
            places = elsewhere(boxes, size, rng, together=kind == SAME_PLACE)
            made.append(Mask(kind, part, places))
    return made


def elsewhere(
    boxes: np.ndarray, size: int, rng: np.random.Generator, *, together: bool
) -> np.ndarray:
    """Moves boxes to random places, all within the image.

    Args:
        boxes: `[n, 4]`.
        size: Side of the images.
        rng: Where the randomness comes from.
        together: Whether all share one random place, as far as their sizes let them.
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    chance = rng.random((1 if together else len(boxes), 2))
    corners = np.floor(chance * (size - sides + 1)).astype(int)
    return np.concatenate([corners, corners + sides], 1)


class Comparison:
    """Masks boxes of images, and compares how that changes a network's features."""

    def __init__(
        self,
        forward: Forward,
        params: Params,
        layers: Sequence[str],
        pixels: np.ndarray,
        batch: int,
    ):
        """Computes the features of the unmasked images.

        Args:
            forward: The network.
            params: Its parameters.
            layers: Whose features are compared.
            pixels: uint8 `[n, size, size, 3]`.
            batch: Images in a batch.

        Raises:
            ValueError: No such layer.
        """
        known = models.units(forward, params, pixels.shape[1])
        for name in layers:
            if name not in known:
                raise ValueError(unknown("layer", name, known))

        @jax.jit
        def features(params: Params, pixels: Array, boxes: Array) -> list[Array]:
            activations = forward(params, masked(pixels.astype(jnp.float32), boxes))
            return [activations[name].reshape(len(pixels), -1) for name in layers]

        self._features, self._params, self._layers = features, params, layers
        self._pixels, self._batch = pixels, min(batch, len(pixels))
        # By the same program, as another one may round differently: a feature that a
        # mask does not change must have a difference of exactly 0.
        self._originals = list(self._compute(np.zeros((len(pixels), 4), int)))

    def __call__(self, boxes: np.ndarray) -> Array:
        """Computes each image's mean distance from the others, with a box of each masked.

        Args:
            boxes: `[n, 4]`.

        Returns:
            `sign_change` of each layer, `[layers, n]`.

        Raises:
            FloatingPointError: A feature is not a finite number.
        """
        signs: list[list[Array]] = [[] for _ in self._layers]
        for before, after in zip(self._originals, self._compute(boxes)):
            for name, batches, x, y in zip(self._layers, signs, before, after):
                if not jnp.isfinite(x - y).all():
                    raise FloatingPointError(f"{name} is not finite for an image")
                batches.append(jnp.sign(x - y).astype(jnp.int8))
        count = len(self._pixels)
        return jnp.stack([_sign_change(jnp.concatenate(x)[:count]) for x in signs])

    def run(self, masks: Sequence[Mask], checkpoints: Checkpoints) -> np.ndarray:
        """Compares mask by mask, and saves checkpoints of what is done.

        Returns:
            Each image's mean distance from the others, `[masks, layers, images]`.

        Raises:
            Interrupted: By a signal; the next call resumes after the last mask.
        """
        done, costs = checkpoints.latest(), [self.flops()] * len(masks)
        changes = jnp.zeros((len(masks), len(self._layers), len(self._pixels)))
        with checkpoints, Progress(costs, done) as progress:
            changes = checkpoints.restore(changes)
            for step, mask in enumerate(masks[done:], done + 1):
                changes = changes.at[step - 1].set(self(mask.boxes))
                if progress.interrupted or checkpoints.due():
                    checkpoints.save(step, changes)
                progress.show(step, f"{mask.kind}, {mask.part}")
                if progress.interrupted:
                    break
        return np.asarray(changes)

    def flops(self) -> float:
        """Floating-point operations of a call, without those of the comparison."""
        pixels = self._pixels[: self._batch]
        boxes = np.zeros((self._batch, 4), int)
        cost = devices.flops(self._features, self._params, pixels, boxes)
        return cost * len(self._originals)

    def _compute(self, boxes: np.ndarray) -> Iterator[list[Array]]:
        """Yields features batch by batch; the first images fill up the last batch."""
        count = len(boxes)
        for first in range(0, count, self._batch):
            batch = np.arange(first, first + self._batch) % count
            yield self._features(self._params, self._pixels[batch], boxes[batch])


_sign_change = jax.jit(sign_change)


# Mean and standard deviation in every layer, [layers, 2], by the masks' kind and by the
# part whose sizes they have; "" for all parts.
Statistics = Mapping[tuple[str, str], np.ndarray]


def statistics(masks: Sequence[Mask], changes: np.ndarray) -> Statistics:
    """Averages sign changes over images, and over random masks.

    Args:
        masks: What was masked.
        changes: `Comparison`'s results for each, `[masks, layers, images]`.
    """
    pooled = collections.defaultdict(list)
    for mask, change in zip(masks, changes, strict=True):
        pooled[mask.kind, mask.part].append(change)
        if mask.kind != mask.part:
            pooled[mask.kind, ""].append(change)
    merged = {key: np.concatenate(change, -1) for key, change in pooled.items()}
    return {key: np.stack([x.mean(-1), x.std(-1)], -1) for key, x in merged.items()}


def rows(statistics: Statistics) -> dict[str, np.ndarray]:
    """Returns the rows of Table 1: each part, then all random masks of each kind.

    Returns:
        Row to mean and standard deviation in every layer, `[layers, 2]`.
    """
    parts = {kind: x for (kind, part), x in statistics.items() if kind == part}
    return parts | {kind: statistics[kind, ""] for kind in PLACES}


def matched(statistics: Statistics, kind: str) -> dict[str, np.ndarray]:
    """Returns the means of random masks of one kind, by the part whose sizes they have.

    Returns:
        Part to means, `[layers]`.
    """
    return {
        part: x[:, 0] for (row, part), x in statistics.items() if row == kind and part
    }


def table(layers: Sequence[str], statistics: Statistics) -> Iterator[str]:
    """Yields the lines of Table 1, then which parts are more consistent than chance."""
    numbers = rows(statistics)
    width = max(map(len, numbers))
    yield " " * width + "".join(f"{name:>18}" for name in layers)
    for row, values in numbers.items():
        cells = (f"{mean:.3f} ± {deviation:.3f}" for mean, deviation in values)
        yield f"{row:{width}}" + "".join(f"{cell:>18}" for cell in cells)
    for number, layer in enumerate(layers):
        for kind, where in PLACES.items():
            gains = {
                part: means[number] - numbers[part][number, 0]
                for part, means in matched(statistics, kind).items()
            }
            lower = [
                f"{part} by {gain:.3f}" for part, gain in gains.items() if gain > 0
            ]
            yield (
                f"{layer}: lower than the mean of masks of the same sizes {where}:"
                f" {', '.join(lower) or 'no part'} ({len(lower)} of {len(gains)})"
            )


def examples(parts: Parts, masks: Sequence[Mask], kind: str, count: int) -> np.ndarray:
    """Masks the first images; random masks have the sizes of the parts in turn.

    Args:
        parts: Images and their parts.
        masks: Among which are those of this kind.
        kind: A part, RANDOM or SAME_PLACE; any other name masks nothing.
        count: Number of images.

    Returns:
        uint8 `[count, size, size, 3]`.
    """
    names, pixels = list(parts.boxes), parts.images[:count].copy()
    for i, image in enumerate(pixels):
        part = kind if kind in names else names[i % len(names)]
        boxes = [m.boxes[i] for m in masks if (m.kind, m.part) == (kind, part)]
        for top, left, bottom, right in boxes[:1]:
            image[top:bottom, left:right] = images.GREY
    return pixels
