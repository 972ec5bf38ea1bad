"""Statistics: one number for each unit of a layer.

A new statistic is a function in this file:

    @statistic("peak", "highest activation divided by the mean")
    def peak(layer: Layer) -> np.ndarray:
        return layer.top.score[:, 0] / layer.mean

It then appears in `units.npz` (`LAYER.statistics.peak`), in the atlas (as a fact on a
unit's page and as a sort order of a layer's units), in `Unit.statistics`, and in what
`--experiment=explain_unit` says.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from nstvis.units.measurements import Layer

# From a layer to float [units]; NaN where a unit has no such number.
Function = Callable[[Layer], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Statistic:
    """What a statistic is called and what it means."""

    name: str
    description: str
    # Whether it is a share, which a person reads in percent.
    percent: bool = False

    def text(self, value: float) -> str:
        """Writes a value for a person."""
        return f"{100 * value:.3g} %" if self.percent else f"{value:.3g}"


_functions: dict[Statistic, Function] = {}


def statistic(
    name: str, description: str, *, percent: bool = False
) -> Callable[[Function], Function]:
    """Registers a function as a statistic of units.

    Args:
        name: Of its own.
        description: A few words on what the number means.
        percent: Whether it is a share, to be shown in percent.

    Raises:
        ValueError: There is a statistic of that name.
    """
    if any(name == known.name for known in _functions):
        raise ValueError(f"there are two statistics {name!r}")

    def register(function: Function) -> Function:
        _functions[Statistic(name, description, percent)] = function
        return function

    return register


def registered() -> dict[str, Statistic]:
    """Returns the statistics by name, in the order in which they were registered."""
    return {known.name: known for known in _functions}


def compute(layer: Layer) -> dict[str, np.ndarray]:
    """Computes every statistic of a layer's units: name to float32 [units].

    Raises:
        ValueError: A function returned something else.
    """
    values = {}
    for known, function in _functions.items():
        with np.errstate(divide="ignore", invalid="ignore"):  # of dead units
            value = np.asarray(function(layer), np.float32)
        if value.shape != layer.mean.shape:
            raise ValueError(
                f"the statistic {known.name!r} should be one number for each of"
                f" {len(layer.mean)} units, not an array of shape {list(value.shape)}"
            )
        values[known.name] = value
    return values


@statistic("maximum", "highest activation for any image")
def maximum(layer: Layer) -> np.ndarray:
    """Returns the highest activations, float32 [units]; NaN without images."""
    return np.where(layer.top.image[:, 0] >= 0, layer.top.score[:, 0], np.nan)


@statistic("mean", "activation averaged over all images")
def mean(layer: Layer) -> np.ndarray:
    """Returns the mean activations, float32 [units]."""
    return layer.mean


@statistic("std", "standard deviation of the activations")
def std(layer: Layer) -> np.ndarray:
    """Returns the standard deviations of the activations, float32 [units]."""
    return layer.std


@statistic("sparsity", "images with no activation above 0", percent=True)
def sparsity(layer: Layer) -> np.ndarray:
    """Returns the shares of the images with no activation above 0, float32 [units]."""
    return layer.sparsity


@statistic("selectivity", "favourite class against all others, 0 to 1")
def selectivity(layer: Layer) -> np.ndarray:
    """Computes how concentrated on its favourite class a unit is, float32 [units].

    The index of Morcos et al. 2018 (arXiv:1803.06959): (a - b) / (a + b), with the mean
    activation a for the favourite class and b for all the others, where negative means
    count as 0. From 0 to 1; NaN where the data set has no classes.
    """
    if not layer.class_mean.shape[1]:
        return np.full(len(layer.mean), np.nan)
    means = np.maximum(np.nan_to_num(layer.class_mean), 0)
    classes = (~np.isnan(layer.class_mean)).sum(1)
    highest = means.max(1)
    others = (means.sum(1) - highest) / np.maximum(classes - 1, 1)
    others = np.minimum(others, highest)  # it may be rounded up
    others = np.where(classes > 1, others, highest)  # one class alone says nothing
    total = highest + others
    return np.where(total > 0, (highest - others) / np.maximum(total, 1e-30), 0)
