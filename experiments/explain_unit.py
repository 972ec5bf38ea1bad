"""Tells what one unit is, and shows the patches that activate it most.

    python launch.py --experiment=explain_unit --config.unit=conv2:17
    python launch.py --experiment=explain_unit --config.unit=conv4:3 \\
        --config.atlas=runs/units

Reads what `--experiment=units` left in the folder `atlas`, or scans the unit's layer in
the same way first. Prints the unit's filter, stride and receptive field, why its patches
are as small as they are, why there are nine, and which they are; leaves them in
`unit.png`, beside their backward pictures.
"""

import dataclasses
import logging
import pathlib
from collections.abc import Iterator, Mapping

import numpy as np

from experiments import units
from nstvis import devices, images, models
from nstvis.runs.registry import unknown
from nstvis.units import contact_sheets, scan_file
from nstvis.units.atlas import Atlas, Unit
from nstvis.units.receptive_fields import receptive_fields

logger = logging.getLogger(__name__)


@dataclasses.dataclass(kw_only=True)
class Config:
    """Which unit, and where it is looked up."""

    # The unit: LAYER:NUMBER.
    unit: str = "conv2:17"
    # Workdir of a finished --experiment=units; a new scan of the layer if empty.
    atlas: str = ""
    # Of a new scan: network, a name or the path of a file.
    model: str = "alexnet_small"
    # bundled, torchvision, random or a path.
    weights: str = "bundled"
    # Data set: primitives, tiny_imagenet, tfds:NAME or folder:PATH.
    dataset: str = "primitives"
    # Its part.
    split: str = "train"
    # Where the data set's files are; its own default if empty.
    data_dir: str = ""
    # Side of the images, in pixels.
    size: int = 64
    # Images in a batch.
    batch: int = 128


def run(config: Config, workdir: pathlib.Path) -> int:
    """Looks the unit up, or finds its patches, and explains it."""
    layer, _, digits = config.unit.rpartition(":")
    if not digits.isdecimal():
        raise ValueError(f"unit={config.unit} should be LAYER:NUMBER, such as conv2:17")
    folder = pathlib.Path(config.atlas or workdir)
    if not config.atlas:
        names = ("model", "weights", "dataset", "split", "data_dir", "size", "batch")
        same = {name: getattr(config, name) for name in names}
        counts = models.units(*models.load(config.model, config.weights), config.size)
        if layer not in counts:
            raise ValueError(unknown("layer", layer, counts))
        if int(digits) >= counts[layer]:
            last = counts[layer] - 1
            raise ValueError(f"no unit {digits} in {layer}: there are 0 to {last}")
        if code := units.run(units.Config(layers=layer, **same), workdir):
            logger.info(
                "the same command with --workdir=%s goes on from there", workdir
            )
            return code
    if not devices.is_lead():
        return 0
    unit = Atlas(folder).unit(layer, int(digits))
    _, about = scan_file.load(folder / "scan.npz")
    for line in _explained(unit, about):
        logger.info("%s", line)
    shown = [unit.patches(), *unit.panels().values()]
    blocks = [
        contact_sheets.block(np.stack([*map(np.asarray, x)]), 128, 4) for x in shown
    ]
    images.write(workdir / "unit.png", contact_sheets.row(blocks, 8))
    logger.info("%s", workdir / "unit.png")
    return 0


def _explained(unit: Unit, about: scan_file.About) -> Iterator[str]:
    forward, params = models.load(about.model, about.weights)
    fields = receptive_fields(forward, params, about.size, about.size)
    height, width = fields[unit.layer].size(unit.number)
    stride = fields[unit.layer].stride
    whole = f"{about.size} x {about.size}"
    scanned = ", ".join(f"{part['dataset']} {part['split']}" for part in about.parts)
    yield (
        f"{unit.layer}:{unit.number} is one of the {about.layers[unit.layer]} units of"
        f" {unit.layer} in {about.model} (weights: {about.weights})."
    )
    own = params.get(unit.layer)
    if isinstance(own, Mapping) and "kernel" in own:
        kernel = own["kernel"]
        shape = " x ".join(map(str, kernel.shape[:-1]))
        yield f"Its filter: {shape} weights, which it multiplies with the layer below."
    if stride:
        yield (
            f"Its receptive field: {height} x {width} pixels, of images of {whole}; the"
            f" filter is applied every {stride} pixels, and the highest activation counts."
        )
        seen = {
            name: field.size(0)[0] for name, field in fields.items() if field.stride
        }
        others = ", ".join(
            f"{name} {seen[name]}"
            for name in seen
            if name in about.layers or f"{name}_pre" in fields
        )
        yield (
            "Why its patches are that size: nothing outside of the field can change the"
            f" activation. Deeper layers see more: {others}."
        )
    else:
        yield f"It sees the whole image, of {whole} pixels, and has no place in it."
    yield (
        f"Why {len(unit.top)}: one image may be an accident; what several have in common"
        " is what the unit looks for, and nine make a square that is seen at a glance."
    )
    yield (
        f"On {scanned}: mean {unit.mean:.3g}, standard deviation {unit.std:.3g}, sparsity"
        f" for {unit.sparsity:.0%} of the images."
    )
    if unit.favourite:
        yield (
            f"Its favourite class: {unit.favourite} (selectivity {unit.selectivity:.2f}"
            " of 1)."
        )
    for rank, winner in enumerate(unit.top, 1):
        label = f"  {winner.label}" if winner.label else ""
        top, left = winner.box[:2]
        yield (
            f"{rank:2}  {winner.score:8.3f}  {winner.image} at row {top}, column {left}"
            f"{label}"
        )
