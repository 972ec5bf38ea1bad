"""What a scan found, in arrays: the file `units.npz`.

A unit is one channel of a layer. Its activation for an image is the highest in that
channel's map; all statistics are over the images' activations.

Keys of the file are `LAYER.FIELD` for the fields of `Layer`, and `about`: JSON of the
other fields of `Table`. `numpy.load` reads it, too.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class RankedPatches:
    """Images in order of activation, and where in them; any leading shape."""

    # float32 [...], the activation.
    score: np.ndarray
    # int32 [...], the image's index in the data set; -1 where there are too few images.
    image: np.ndarray
    # int32 [..., 2], row and column in the layer's map; 0, 0 for dense layers.
    position: np.ndarray
    # int32 [..., 4], the receptive field: top, left, bottom, right in pixels of the
    # image as the network sees it; the last two exclusive. May hang over the border.
    box: np.ndarray

    def picked(self, ranks: Sequence[Sequence[int]], count: int) -> "RankedPatches":
        """Those of some ranks alone, `count` for each unit, the last of them missing.

        Args:
            ranks: For each unit, at most `count`.
            count: How many the units have then.
        """
        rows = np.array([[*own, *[-1] * (count - len(own))] for own in ranks], int)
        gone, parts = rows < 0, {}
        for part in dataclasses.fields(self):
            value = getattr(self, part.name)
            deep = np.expand_dims(rows, tuple(range(2, value.ndim)))
            parts[part.name] = np.take_along_axis(value, np.maximum(deep, 0), 1)
        parts["score"] = np.where(gone, 0, parts["score"])
        parts["image"] = np.where(gone, -1, parts["image"])
        return RankedPatches(**parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layer:
    """What was found of the units of a layer."""

    # [units, k], the highest first; equal ones by lower image, then lower position.
    top: RankedPatches
    # [units, k], the lowest first.
    least: RankedPatches
    # [units, classes, n], the highest of each class.
    by_class: RankedPatches
    # float32 [units].
    mean: np.ndarray
    std: np.ndarray
    # float32 [units], share of the images with no activation above 0.
    sparsity: np.ndarray
    # int64 [units, bins], images by activation; `Table.edges` has the bins' borders.
    histogram: np.ndarray
    # float32 [units, classes], mean activation for the images of a class; NaN without.
    class_mean: np.ndarray

    def favourite(self) -> np.ndarray:
        """The class of the highest mean activation, int32 [units]; -1 if all are equal."""
        if not self.class_mean.shape[1]:
            return np.full(len(self.mean), -1, np.int32)
        none = np.isnan(self.class_mean)
        highest = np.where(none, -np.inf, self.class_mean)
        lowest = np.where(none, np.inf, self.class_mean).min(1)
        found = np.where(highest.max(1) > lowest, highest.argmax(1), -1)
        return found.astype(np.int32)

    def selectivity(self) -> np.ndarray:
        """How concentrated on its favourite class a unit is, float32 [units], 0 to 1.

        The index of Morcos et al. 2018 (arXiv:1803.06959): (a - b) / (a + b) with the
        mean activation a for the favourite class and b for all the others, where
        negative means count as 0.
        """
        means = np.maximum(np.nan_to_num(self.class_mean), 0)
        seen = (~np.isnan(self.class_mean)).sum(1)
        if means.shape[1] < 2:
            return np.zeros(len(self.mean), np.float32)
        highest = means.max(1)
        others = (means.sum(1) - highest) / np.maximum(seen - 1, 1)
        others = np.where(seen > 1, others, highest)  # one class alone tells nothing
        both = highest + others
        index = np.where(both > 0, (highest - others) / np.maximum(both, 1e-30), 0)
        return index.astype(np.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """What was found of a network on a data set."""

    # In the network's order.
    layers: Mapping[str, Layer]
    # Layer to (height, width, stride) of its receptive fields in pixels, the stride 0
    # where a field is the whole image.
    fields: Mapping[str, Sequence[int]]
    # Names of the classes, by label; may be empty.
    classes: Sequence[str]
    # Index of an image that won anything to (id in the data set, label or -1).
    examples: Mapping[int, tuple[str, int]]
    # Borders of the histograms' bins, float [bins + 1].
    edges: Sequence[float]
    # Images scanned.
    images: int
    # Side of the images as the network sees them, in pixels.
    size: int
    # Names, such as model, weights, dataset, split.
    about: Mapping[str, str]


def save(path: pathlib.Path, table: Table) -> None:
    """Writes `units.npz`, whole or not at all."""
    arrays: dict[str, np.ndarray] = {}
    for name, layer in table.layers.items():
        for field in dataclasses.fields(layer):
            value = getattr(layer, field.name)
            if isinstance(value, RankedPatches):
                for part in dataclasses.fields(value):
                    key = f"{name}.{field.name}.{part.name}"
                    arrays[key] = getattr(value, part.name)
            else:
                arrays[f"{name}.{field.name}"] = value
    about = {
        field.name: getattr(table, field.name)
        for field in dataclasses.fields(table)
        if field.name != "layers"
    }
    about |= {"layers": list(table.layers)}
    arrays["about"] = np.array(json.dumps(about))
    partial = path.with_name(path.name + ".partial.npz")
    np.savez_compressed(partial, allow_pickle=False, **arrays)
    os.replace(partial, path)


def load(path: pathlib.Path) -> Table:
    """Reads `units.npz`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, or something else.
    """
    try:
        with path.open("rb") as opened, np.load(opened) as file:
            arrays = dict(file)
        about: dict[str, Any] = json.loads(str(arrays.pop("about")))
        layers = {name: _layer(arrays, name) for name in about.pop("layers")}
        examples = {int(k): (v[0], v[1]) for k, v in about.pop("examples").items()}
        return Table(layers=layers, examples=examples, **about)
    except FileNotFoundError:
        raise
    except Exception as error:
        raise ValueError(f"{path} is damaged, or no table of units: {error}") from error


def _layer(arrays: Mapping[str, np.ndarray], name: str) -> Layer:
    parts: dict[str, Any] = {}
    for field in dataclasses.fields(Layer):
        if field.type is RankedPatches:
            parts[field.name] = RankedPatches(
                **{
                    part.name: arrays[f"{name}.{field.name}.{part.name}"]
                    for part in dataclasses.fields(RankedPatches)
                }
            )
        else:
            parts[field.name] = arrays[f"{name}.{field.name}"]
    return Layer(**parts)
