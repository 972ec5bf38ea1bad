"""Names of units: LAYER:NUMBER, such as conv2:17, or LAYER:* for all of a layer.

In a list, a number alone is of the layer before it: conv2:17,18 is conv2:17,conv2:18.
"""

from collections.abc import Mapping

from nstvis.runs.registry import unknown


def parse(name: str) -> tuple[str, int]:
    """Returns a unit's layer and number.

    Raises:
        ValueError: It is not the name of a unit.
    """
    layer, _, digits = name.rpartition(":")
    if not layer or not digits.isdecimal():
        raise ValueError(f"{name!r} should be LAYER:NUMBER, such as conv2:17")
    return layer, int(digits)


def parse_list(text: str, counts: Mapping[str, int]) -> dict[str, list[int]]:
    """Parses `conv4:7,9,conv5:*` to each layer's unit numbers, in order.

    Args:
        text: Units, separated by commas.
        counts: Layer to its number of units.

    Raises:
        ValueError: There is no such unit, or the text names none.
    """
    units: dict[str, set[int]] = {}
    layer = ""
    for name in text.replace(" ", "").split(","):
        if name.isdecimal() and layer:
            name = f"{layer}:{name}"
        layer, number = parse(name.replace(":*", ":0"))
        check(counts, layer, number)
        numbers = range(counts[layer]) if name.endswith(":*") else [number]
        units.setdefault(layer, set()).update(numbers)
    return {layer: sorted(numbers) for layer, numbers in units.items()}


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
