r"""Finds the image patches that activate every unit of every layer most.

    python launch.py --experiment=units
    python launch.py --experiment=units --config.dataset=tiny_imagenet \
        --config.data_dir=FOLDER_OF_THE_ARCHIVE
    python launch.py --experiment=units --config.dataset=folder:PHOTOS \
        --config.model=alexnet --config.weights=torchvision --config.size=224
    python launch.py --experiment=units --config.merge=runs/a,runs/b

Zeiler & Fergus (2013), the simple way of Andrew Ng's lecture: scan a data set through
the network once, and for every unit crop the nine patches, at its receptive field, that
activate it most. Leaves an atlas to open in a browser (`index.html`), a page of nine
units for each layer and one of all (`sheets/`), the numbers (`units.npz`, read by
`nstvis.units.atlas`), and `scan.npz`, which `--config.merge` takes. The first command
takes four minutes on two cores of an AMD EPYC (Zen 4), most of them for the deconvnet
attributions of 2,888 units; the second nine minutes, at 350 images a second.
"""

import dataclasses
import pathlib

from nstvis.units.survey import Settings, survey


@dataclasses.dataclass(kw_only=True)
class Config(Settings):
    """Which units, which images, and what is shown of them."""


def run(config: Config, workdir: pathlib.Path) -> list[str]:
    """Surveys the units."""
    return survey(config, workdir)
