"""Tells what one unit is, and shows the patches that activate it most.

    python launch.py --experiment=explain_unit --config.unit=conv2:17
    python launch.py --experiment=explain_unit --config.unit=conv4:3 \
        --config.atlas=runs/units

Scans the unit's layer as `--experiment=units` does, or reads what that experiment left
in the folder `atlas`; prints the unit's filter, stride and receptive field, why its
patches are as small as they are and why there are nine; and leaves them in `unit.png`.
"""

import dataclasses
import logging
import pathlib

import numpy as np

from experiments import units
from nstvis import images, models
from nstvis.units import atlas, sheets

logger = logging.getLogger(__name__)


@dataclasses.dataclass(kw_only=True)
class Config:
    """Which unit, and where to look for what it likes."""

    # LAYER:NUMBER.
    unit: str = "conv2:17"
    # Workdir of a finished --experiment=units; scans anew if empty.
    atlas: str = ""
    # The rest is as in --experiment=units, and for a new scan alone.
    model: str = "alexnet_small"
    weights: str = "bundled"
    dataset: str = "primitives"
    split: str = "train"
    data_dir: str = ""
    size: int = 64
    batch: int = 128
    workers: int = 0
