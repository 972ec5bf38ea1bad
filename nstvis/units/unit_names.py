"""Names of units: LAYER:NUMBER, such as conv2:17."""

from collections.abc import Mapping

from nstvis.runs.registry import unknown


def parse(name: str) -> tuple[str, int]:
    """Returns a unit's layer and number.

    Raises:
        ValueError: It is not the name of a unit.
    """
    layer, _, digits = name.rpartition(":")
    if not layer or not digits.isdecimal():
        raise ValueError(f"unit={name} should be LAYER:NUMBER, such as conv2:17")
    return layer, int(digits)


def check(counts: Mapping[str, int], layer: str, number: int) -> None:
    """Checks that a unit exists, given how many there are in each layer.

    Raises:
        ValueError: There is no such layer, or no such unit in it.
    """
    if layer not in counts:
        raise ValueError(unknown("layer", layer, counts))
    if not 0 <= number < counts[layer]:
        last = counts[layer] - 1
        raise ValueError(f"no unit {number} in {layer}: there are 0 to {last}")
