"""Describes a unit in sentences, for a person who meets it for the first time."""

from collections.abc import Iterator, Mapping

from nstvis.models import Forward, Params
from nstvis.units.atlas import Unit
from nstvis.units.receptive_fields import Fields, receptive_fields
from nstvis.units.scan_file import About
from nstvis.units.statistics import Statistic


def describe(
    unit: Unit,
    statistics: Mapping[str, Statistic],
    about: About,
    forward: Forward,
    params: Params,
) -> list[str]:
    """Says what a unit is, and what a scan found it to respond to.

    Args:
        unit: From an atlas.
        statistics: Those of the atlas.
        about: The scan that the atlas shows.
        forward: The network that was scanned.
        params: Its parameters.

    Returns:
        The lines: what the unit computes, what it sees of an image, the statistics of
        its activations, and its top-activating patches.
    """
    fields = receptive_fields(forward, params, about.size, about.size)
    return [
        *_name(unit, about),
        *_filter(unit.layer, params),
        *_field(unit, about, fields),
        *_activations(unit, statistics, about),
        *_patches(unit),
    ]


def _name(unit: Unit, about: About) -> Iterator[str]:
    yield (
        f"{unit.layer}:{unit.number} is one of the {about.layers[unit.layer]} units of"
        f" {unit.layer} in {about.model} (weights: {about.weights})."
    )


def _filter(layer: str, params: Params) -> Iterator[str]:
    parameters = params.get(layer)
    if isinstance(parameters, Mapping) and "kernel" in parameters:
        shape = " x ".join(map(str, parameters["kernel"].shape[:-1]))
        yield f"Its filter has {shape} weights, applied to the layer below."


def _field(unit: Unit, about: About, fields: Mapping[str, Fields]) -> Iterator[str]:
    whole, field = f"{about.size} x {about.size}", fields[unit.layer]
    if not field.stride:
        yield f"It sees the whole image of {whole} pixels, and has no position in it."
        return
    height, width = field.size(unit.number)
    yield (
        f"Its receptive field is {height} x {width} pixels of images of {whole}. The"
        f" filter is applied every {field.stride} pixels; the highest of its activations"
        " counts."
    )
    sizes = ", ".join(
        f"{name} {other.size(0)[0]}"
        for name, other in fields.items()
        if other.stride and (name in about.layers or f"{name}_pre" in fields)
    )
    yield (
        "Its patches have that size because no pixel outside of the field can change the"
        f" activation. Deeper layers see more: {sizes}."
    )


def _activations(
    unit: Unit, statistics: Mapping[str, Statistic], about: About
) -> Iterator[str]:
    scanned = ", ".join(f"{part['dataset']} {part['split']}" for part in about.parts)
    yield f"Its activations on {scanned}:"
    width = max(map(len, unit.statistics))
    for name, value in unit.statistics.items():
        known = statistics[name]
        yield f"  {name:{width}}  {known.text(value):>8}  {known.description}"
    if unit.dead:
        yield "It is a dead unit: its activation is 0 for every image."
    elif unit.favourite:
        yield f"Its favourite class, by mean activation, is {unit.favourite}."


def _patches(unit: Unit) -> Iterator[str]:
    if unit.dead:
        yield "So its top-activating patches are the first of the data set:"
    elif len(unit.top) == 1:
        yield "Its top-activating patch:"
    else:
        yield (
            f"Its {len(unit.top)} top-activating patches. One may be a coincidence; what"
            " they have in common is what the unit responds to:"
        )
    for rank, patch in enumerate(unit.top, 1):
        top, left = patch.box[:2]
        label = f"  {patch.label}" if patch.label else ""
        yield (
            f"{rank:3}  {patch.score:8.3f}  {patch.image} at row {top}, column {left}"
            f"{label}"
        )
