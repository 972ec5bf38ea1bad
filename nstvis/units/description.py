"""Describes a unit in sentences, for a person who meets it for the first time."""

import math
from collections.abc import Iterator, Mapping

from nstvis.models import Forward, Params
from nstvis.units.atlas import Atlas, Unit
from nstvis.units.receptive_fields import receptive_fields


def describe(atlas: Atlas, unit: Unit, forward: Forward, params: Params) -> list[str]:
    """Says what a unit is, and what a scan found it to respond to.

    Args:
        atlas: Where the unit is from.
        unit: The unit.
        forward: The network that was scanned.
        params: Its parameters.

    Returns:
        The lines: what the unit computes, what it sees of an image, the statistics of
        its activations, and its top-activating patches.
    """
    about = atlas.about
    units = atlas.layers[unit.layer]
    network = f"{about['model']} (weights: {about['weights']})"
    return [
        f"{unit.layer}:{unit.number} is one of {units} units of {unit.layer} in {network}.",
        *_class(unit),
        *_filter(unit.layer, params),
        *_field(atlas, unit, forward, params),
        *_activations(atlas, unit),
        *_name(unit),
        *_inputs(unit),
        *_patches(unit),
    ]


def _filter(layer: str, params: Params) -> Iterator[str]:
    parameters = params.get(layer)
    if isinstance(parameters, Mapping) and "kernel" in parameters:
        shape = " x ".join(map(str, parameters["kernel"].shape[:-1]))
        yield f"Its filter has {shape} weights."


def _class(unit: Unit) -> Iterator[str]:
    if known := unit.findings.get("class"):
        yield f"It is the logit of the class {known['name']}."


def _name(unit: Unit) -> Iterator[str]:
    known = unit.findings.get("name")
    if known is None:
        return
    if not known["tested"]:
        yield "It has no name: no concept tells the images that activate it from others."
        return
    line = (
        f"Its name is: {known['concept']}. An image of that activates it more than another"
        f" image does in {known['auroc']:.1%} of the cases (AUROC, q = {known['q']:.2g}),"
        " for images that the name was not chosen by."
    )
    if known["constant_auroc"] is not None:
        line += (
            f" For {known['constant']}, the best name for all units of the layer, it is"
            f" {known['constant_auroc']:.1%}."
        )
    yield line


def _inputs(unit: Unit) -> Iterator[str]:
    if not unit.inputs:
        return
    yield "Its strongest inputs: contribution, and activation lost without it."
    for layer, number, value, ablation in unit.inputs:
        lost = "" if ablation is None else f"{ablation:8.1%}"
        name = f"{layer}:{number}"
        yield f"  {name:12} {value:+8.3g} {lost}"


def _field(atlas: Atlas, unit: Unit, forward: Forward, params: Params) -> Iterator[str]:
    fields = receptive_fields(forward, params, atlas.size, atlas.size)
    field, whole = fields[unit.layer], f"{atlas.size} x {atlas.size}"
    if not field.stride:
        yield f"It sees the whole image of {whole} pixels, and has no position in it."
        return
    height, width = field.size(unit.number)
    yield (
        f"Its receptive field is {height} x {width} pixels in an image of {whole}, every"
        f" {field.stride} pixels; its activation for an image is the highest of them all."
    )
    sizes = ", ".join(
        f"{name} {other.size(0)[0]}"
        for name, other in fields.items()
        if other.stride and (name in atlas.layers or f"{name}_pre" in fields)
    )
    yield (
        "Each patch is cropped to the receptive field, as no pixel outside of it can change"
        f" the activation. Sizes by layer: {sizes}."
    )


def _activations(atlas: Atlas, unit: Unit) -> Iterator[str]:
    yield f"Its activations for {atlas.images} images ({atlas.about['dataset']}):"
    width = max(map(len, unit.statistics))
    for name, value in unit.statistics.items():
        if not math.isnan(value):
            known = atlas.statistics[name]
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
