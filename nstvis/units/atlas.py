"""Atlases: what every unit looks for, for a browser (`index.html`) and for Python.

    unit = Atlas("runs/units").unit("conv4", 17)
    unit.patches()[0].show()
    print(unit.favourite, unit.statistics, [patch.image for patch in unit.top])
    print(unit.name, unit.inputs[0], unit.neighbours[0])

`write`, `add` and `add_findings` make them; `atlas_writer` says which files there are.
"""

import dataclasses
import functools
import math
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from PIL import Image

from nstvis.runs import files
from nstvis.units import atlas_json, sprites, unit_names
from nstvis.units.atlas_writer import Panel, add, add_findings, write
from nstvis.units.sprites import Grid
from nstvis.units.statistics import Statistic

__all__ = [
    "Atlas",
    "Link",
    "Panel",
    "RankedPatch",
    "Unit",
    "add",
    "add_findings",
    "write",
]


class RankedPatch(NamedTuple):
    """A patch of an image that a unit is shown with."""

    score: float
    # The image's id in the data set.
    image: str
    # Name of the image's class.
    label: str | None
    # The receptive field: top, left, bottom, right in pixels; may extend past the
    # border.
    box: tuple[int, int, int, int]
    # The file of the whole image.
    picture: pathlib.Path | None


class Link(NamedTuple):
    """Another unit that a unit is connected with, or like.

    Its layer may be none of the atlas's.
    """

    layer: str
    number: int
    # What it contributes to the sum before the nonlinearity, or how similar it is.
    value: float
    # The share of the unit's activation that is lost without it; None if it is no input.
    ablation: float | None = None


class _Pictures(NamedTuple):
    """Where the pictures of a unit are."""

    path: pathlib.Path
    unit: int
    grid: Grid

    def read(self) -> list[Image.Image]:
        return sprites.read(*self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Unit:
    """What an atlas knows of a unit."""

    layer: str
    number: int
    # The highest activation first, and the lowest first; fewer where there were too
    # few images.
    top: list[RankedPatch]
    least: list[RankedPatch]
    # Name of the class with the highest mean activation.
    favourite: str | None
    # By name; NaN where the unit has no such number. `Atlas.statistics` describes them.
    statistics: dict[str, float]
    # Images in each bin; `Atlas.edges` has the bins' borders.
    histogram: list[int]
    # 0 for every image.
    dead: bool
    # Names of the classes with the highest mean activations, and these.
    strongest: list[tuple[str, float]]
    # What else is said of it, such as its name and its inputs, by title and field; None
    # for numbers that there are not.
    findings: dict[str, dict[str, Any]]
    # Images at the quantiles `samples.QUANTILES` of its activation, the lowest first; none
    # where units were not explained.
    samples: list[RankedPatch]
    _patches: _Pictures
    _panels: dict[str, _Pictures]

    @property
    def name(self) -> str | None:
        """What tells its images from others, if anything does: a tested guess."""
        name = self.findings.get("name", {})
        return name["concept"] if name.get("tested") else None

    @property
    def inputs(self) -> list[Link]:
        """The strongest excitatory inputs, then the inhibitory ones."""
        return self._links("inputs", "contribution")

    @property
    def outputs(self) -> list[Link]:
        """Units of which it is among the strongest inputs."""
        return self._links("outputs", "contribution")

    @property
    def neighbours(self) -> list[Link]:
        """The most similar units of its layer, then those of others."""
        return self._links("neighbours", "similarity")

    def _links(self, title: str, field: str) -> list[Link]:
        if not (finding := self.findings.get(title)):
            return []
        units = finding["layer"], finding["unit"], finding[field]
        ablation = finding.get("ablation", [None] * len(finding["unit"]))
        return [Link(*link) for link in zip(*units, ablation) if link[1] >= 0]

    @property
    def mean(self) -> float:
        """Mean activation."""
        return self.statistics["mean"]

    @property
    def std(self) -> float:
        """Standard deviation of the activations."""
        return self.statistics["std"]

    @property
    def sparsity(self) -> float:
        """Share of the images with no activation above 0."""
        return self.statistics["sparsity"]

    @property
    def selectivity(self) -> float:
        """How concentrated on its favourite class the unit is, 0 to 1."""
        return self.statistics["selectivity"]

    def patches(self) -> list[Image.Image]:
        """Reads the patches of `top`, RGB; with some loss if larger than 32 pixels."""
        return self._patches.read()[: len(self.top)]

    def panels(self) -> dict[str, list[Image.Image]]:
        """Reads what else there is of the unit, by title, such as `deconvnet`."""
        return {title: pictures.read() for title, pictures in self._panels.items()}


class Atlas:
    """Reads atlases, also of earlier versions.

    Attributes:
        layers: Layer to number of units.
        fields: Layer to height, width and stride of its receptive fields, in pixels.
        statistics: The statistics of its units, by name.
        classes: Their names.
        edges: Borders of the histograms' bins.
        images: Number of images scanned.
        size: Side of the images as the network sees them, in pixels.
        about: What was scanned: names such as model, weights, dataset.

    Raises:
        FileNotFoundError: There is no atlas in the folder.
        ValueError: It is damaged, or newer than this code.
    """

    def __init__(self, folder: str | os.PathLike):
        self._folder = atlas_json.find(folder)
        table = atlas_json.read_table(self._folder)
        with files.reading(self._folder / "table.js"):
            self._read(table)

    def _read(self, table: Mapping[str, Any]) -> None:
        self._grids = {x["name"]: Grid.from_json(x) for x in table["layers"]}
        self._content = functools.cache(
            functools.partial(
                atlas_json.read_layer, self._folder, version=table["version"]
            )
        )
        self._finding = functools.cache(
            functools.partial(atlas_json.read_finding, self._folder)
        )
        self.layers = {str(x["name"]): int(x["units"]) for x in table["layers"]}
        self.fields = {layer["name"]: layer["field"] for layer in table["layers"]}
        self.statistics = {x["name"]: Statistic(**x) for x in table["statistics"]}
        self.classes: list[str] = table["classes"]
        self.edges: list[float] = table["edges"]
        self.images: int = table["images"]
        self.size: int = table["size"]
        self.about: dict[str, str] = dict(table["about"])

    def unit(self, layer: str, number: int) -> Unit:
        """Reads one unit.

        Raises:
            ValueError: There is no such layer, or no such unit in it.
        """
        unit_names.check(self.layers, layer, number)
        place = list(self.layers).index(layer)
        with files.reading(self._folder):
            return self._unit(layer, place, number)

    def _unit(self, layer: str, place: int, number: int) -> Unit:
        content = self._content(place)
        known, images = content["units"][number], content["images"]
        parts = {
            "top": [self._ranked_patch(images, x) for x in known["top"] if x],
            "least": [self._ranked_patch(images, x) for x in known["least"] if x],
            "favourite": self._class(known["favourite"]),
            "statistics": {
                name: math.nan if value is None else value
                for name, value in known["statistics"].items()
            },
            "strongest": [(self.classes[i], mean) for i, mean in known["strongest"]],
        }
        return Unit(
            layer=layer,
            number=number,
            _patches=self._pictures(str(place), number, self._grids[layer]),
            _panels=self._panels(str(place), number),
            findings=(findings := self._findings(place, number)),
            samples=self._samples(images, findings.get("samples")),
            **known | parts,
        )

    def _findings(self, place: int, unit: int) -> dict[str, dict[str, Any]]:
        """Returns what is said of a unit of a layer, by title."""
        return {
            title: self._finding(title, place)[unit]
            for title, places in atlas_json.read_findings(self._folder).items()
            if place in places
        }

    def _samples(
        self, images: Mapping[str, Any], finding: Mapping[str, Any] | None
    ) -> list[RankedPatch]:
        if not finding:
            return []
        parts = finding["score"], finding["image"], finding["box"]
        return [self._ranked_patch(images, (*x, *box)) for *x, box in zip(*parts)]

    def _panels(self, place: str, unit: int) -> dict[str, _Pictures]:
        """Returns where the panels are that show a unit of a layer, by title."""
        found = {}
        for title, layers in atlas_json.read_panels(self._folder).items():
            if place in layers and unit in layers[place]["units"]:
                grid = Grid.from_json(layers[place])
                found[title] = self._pictures(f"{title}-{place}", unit, grid)
        return found

    def _pictures(self, stem: str, unit: int, grid: Grid) -> _Pictures:
        path = self._folder / f"{stem}-{grid.chunk(unit)}.webp"
        return _Pictures(path, unit, grid)

    def _ranked_patch(
        self, images: Mapping[str, Any], patch: Sequence[Any]
    ) -> RankedPatch:
        score, index, *box = patch
        id, label, file = images[str(index)]
        picture = self._folder / "pictures" / file if file else None
        return RankedPatch(score, id, self._class(label), tuple(box), picture)

    def _class(self, label: int) -> str | None:
        return self.classes[label] if 0 <= label < len(self.classes) else None
