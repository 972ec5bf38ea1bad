"""What a scan measures of the units of a layer.

A unit is one channel of a layer. Its activation for an image is the highest in that
channel's map; all numbers are over the images' activations.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

# What is said of the units of a layer beside the measurements, such as their names: the
# name of a field to an array [units, ...] of numbers (NaN where there is none), bools or
# strings.
Finding = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankedPatches:
    """Patches of images, ranked by activation; the arrays have any leading shape."""

    # float32 [...], the activation.
    score: np.ndarray
    # int32 [...], the image's index in the data set; -1 where there are too few images.
    image: np.ndarray
    # int32 [..., 2], row and column in the layer's map; 0, 0 for dense layers.
    position: np.ndarray
    # int32 [..., 4], the receptive field: top, left, bottom, right in pixels of the
    # image as the network sees it; the last two exclusive. May extend past the border.
    box: np.ndarray

    def picked(self, ranks: Sequence[Sequence[int]], count: int) -> "RankedPatches":
        """Returns the patches of some ranks, `count` for each unit.

        Args:
            ranks: For each unit the ranks to keep, at most `count`.
            count: Patches of a unit in the result; where there are fewer ranks, the
                last ones are missing (image -1).
        """
        rows = np.full((len(ranks), count), -1)
        for row, kept in zip(rows, ranks, strict=True):
            row[: len(kept)] = kept
        missing, parts = rows < 0, {}
        for part in dataclasses.fields(self):
            array = getattr(self, part.name)
            index = np.expand_dims(rows, tuple(range(2, array.ndim)))
            parts[part.name] = np.take_along_axis(array, np.maximum(index, 0), 1)
        parts["score"] = np.where(missing, 0, parts["score"])
        parts["image"] = np.where(missing, -1, parts["image"])
        return RankedPatches(**parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """What a scan measured of the units of a layer."""

    # [units, k], the highest activation first; ties by lower image, then position.
    top: RankedPatches
    # [units, k], the lowest activation first.
    least: RankedPatches
    # [units, classes, n], the highest activations of each class.
    by_class: RankedPatches
    # float32 [units], mean and standard deviation.
    mean: np.ndarray
    std: np.ndarray
    # float32 [units], share of the images with no activation above 0.
    sparsity: np.ndarray
    # int64 [units, bins], images by activation; `Table.edges` has the bins' borders.
    histogram: np.ndarray
    # float32 [units, classes], mean over the images of a class; NaN where it has none.
    class_mean: np.ndarray

    def dead(self) -> np.ndarray:
        """Returns which units are 0 for every image, bool [units].

        A logit that is never above 0 has a sparsity of 1, too, but is not dead.
        """
        return (self.sparsity == 1) & (self.std == 0)

    def favourite(self) -> np.ndarray:
        """Returns the class with the highest mean activation, int32 [units].

        It is -1 where the means of all classes are equal.
        """
        if not self.class_mean.shape[1]:
            return np.full(len(self.mean), -1, np.int32)
        empty = np.isnan(self.class_mean)
        highest = np.where(empty, -np.inf, self.class_mean)
        lowest = np.where(empty, np.inf, self.class_mean).min(1)
        differs = highest.max(1) > lowest
        return np.where(differs, highest.argmax(1), -1).astype(np.int32)
