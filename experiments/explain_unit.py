r"""Explains what one unit is, and shows its top-activating patches.

    python launch.py --experiment=explain_unit --config.unit=conv2:17
    python launch.py --experiment=explain_unit --config.unit=conv4:3 \
        --config.atlas=runs/units

Looks the unit up in the atlas of a finished `--experiment=units`, or scans its layer in
the same way first. Leaves `unit.png`, the patches beside their attributions, and
`unit.txt`: the unit's filter, stride and receptive field, the statistics of its
activations, and where the patches come from. The first command takes 20 s on two cores
of an AMD EPYC (Zen 4), the second 2 s.
"""

import dataclasses
import logging
import pathlib

from nstvis import devices, images, models
from nstvis.runs import files
from nstvis.runs.config import Batches, Dataset, Network
from nstvis.units import contact_sheets, description, survey, unit_names
from nstvis.units.atlas import Atlas

logger = logging.getLogger(__name__)


@dataclasses.dataclass(kw_only=True)
class Config(Network, Dataset, Batches):
    """Which unit, and where it is looked up; all other fields are for a new scan."""

    # The unit: LAYER:NUMBER.
    unit: str = "conv2:17"
    # Workdir of a finished --experiment=units; a new scan of the layer if empty.
    atlas: str = ""

    def check(self) -> None:
        """Raises a ValueError if that is not the name of a unit."""
        unit_names.parse(self.unit)


def run(config: Config, workdir: pathlib.Path) -> list[str]:
    """Looks the unit up, or scans its layer, and explains it."""
    layer, number = unit_names.parse(config.unit)
    if not config.atlas:
        _scan(config, workdir)
    if not devices.is_lead():
        return []
    atlas = Atlas(config.atlas or workdir)
    unit = atlas.unit(layer, number)
    about = atlas.about
    network = models.load(
        about["model"],
        about["weights"],
        preprocessing=about.get("preprocessing", "auto"),
    )
    lines = description.describe(atlas, unit, *network)
    for line in lines:
        # A log is text, which a name of a file need not be.
        logger.info("%s", line.encode("utf-8", "backslashreplace").decode())
    text = "\n".join([*lines, ""])
    with files.replacing(workdir / "unit.txt") as file:
        file.write(text.encode(errors="surrogateescape"))  # as in names of files
    pictures = [unit.patches(), *unit.panels().values()]
    images.write(workdir / "unit.png", contact_sheets.blocks(pictures, 128))
    return ["unit.png", "unit.txt"]


def _scan(config: Config, workdir: pathlib.Path) -> None:
    """Scans the unit's layer."""
    layer, number = unit_names.parse(config.unit)
    network = models.load(
        config.model, config.weights, preprocessing=config.preprocessing
    )
    unit_names.check(models.units(*network, config.size), layer, number)
    shared = dataclasses.asdict(config)
    del shared["unit"], shared["atlas"]
    survey.survey(survey.Settings(layers=layer, **shared), workdir)
