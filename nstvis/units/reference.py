"""A finished survey of a network, with which pictures of its units are compared."""

import logging
import pathlib
from collections.abc import Mapping

import numpy as np

from nstvis import models
from nstvis.units import atlas, scan, scan_file, table
from nstvis.units.patches import Images

logger = logging.getLogger(__name__)


class Reference:
    """What a survey found, the images that it saw, and its atlas, which shows pictures.

    Attributes:
        layers: What the scan measured, by layer.
    """

    def __init__(
        self, workdir: pathlib.Path, forward: models.Forward, params: models.Params
    ):
        """Opens a survey.

        Args:
            workdir: Of a finished `--experiment=units`.
            forward: The network.
            params: Its parameters.

        Raises:
            FileNotFoundError: There is no finished survey.
            ValueError: It is damaged, or of another network.
        """
        self._folder = workdir
        self._about = about = scan_file.load(workdir / "scan.npz")[1]
        self._shown = atlas.Atlas(workdir).layers
        if about.network != scan_file.network_hash(forward, params, about.size):
            raise ValueError(
                f"atlas={workdir} is of another network: {about.model} with the weights"
                f" {about.weights}"
            )
        self.layers = table.load(workdir / "units.npz").layers

    def images(self) -> tuple[Images, int]:
        """Returns the images that were scanned, and their number."""
        sources = scan.target_of(self._about).sources
        return Images(sources, self._about.size), sum(map(len, sources))

    def show(
        self, title: str, pictures: Mapping[str, Mapping[int, np.ndarray]]
    ) -> None:
        """Shows pictures in the atlas, beside the patches of the layers that it has.

        Args:
            title: The pictures' name there.
            pictures: A picture of each unit, uint8 `[height, width, 3]`, by layer.
        """
        for layer in pictures.keys() - self._shown:
            logger.warning(
                "atlas=%s has no %s, and shows none of it", self._folder, layer
            )
        panel = {
            layer: {number: picture[None] for number, picture in some.items()}
            for layer, some in pictures.items()
            if layer in self._shown
        }
        if panel:
            atlas.add(self._folder, title, panel)
            logger.info("%s", self._folder / "index.html")
