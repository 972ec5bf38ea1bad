"""What explains units besides their patches, in a draft of an atlas.

Their names, their inputs and outputs, the units most like them, images over their whole
range, and their activation maps: each a module of its own. Here they are computed one
after another and kept in the draft, the long ones also while they are computed, so that
an interruption loses less than a minute.
"""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from nstvis import devices
from nstvis.runs import files
from nstvis.runs.progress import track
from nstvis.units import (
    activation_maps,
    concepts,
    connections,
    names,
    neighbours,
    patches,
    responses,
    samples,
    scan,
)
from nstvis.units.atlas_writer import Draft
from nstvis.units.drawing import Drawing
from nstvis.units.measurements import Finding, Layer
from nstvis.units.patches import Images
from nstvis.units.responses import Responses
from nstvis.units.sprites import Grid

logger = logging.getLogger(__name__)

# Images for which all activations are known: at least, and for each class.
SAMPLE, OF_CLASS = 5000, 20

# Title to layer to what is said of its units.
Findings = dict[str, Mapping[str, Finding]]


@dataclasses.dataclass
class Explanations:
    """Explains the units of a draft.

    Attributes:
        workdir: Gets `responses`.
        draft: Gets the panels.
        target: What was scanned.
        layers: With the patches that units are shown with in `top`.
        pictures: Where the images are.
        drawn: Shows whole images.
        batch: Images that are computed together.
        workers: Processes that prepare images.
        concepts: A file of concepts to name units by; all that is known if empty.
        seed: Of the images that names are tested on.
    """

    workdir: pathlib.Path
    draft: Draft
    target: scan.Target
    layers: Mapping[str, Layer]
    pictures: Images
    drawn: Drawing
    batch: int
    workers: int
    concepts: str
    seed: int

    def find(self) -> Findings:
        """Computes all, or what an earlier process has not kept.

        Raises:
            Interrupted: By a signal; another call goes on.
            ValueError: The file of concepts fits none of the images.
        """
        found: Findings = {}
        for part in (
            self._neighbours,
            self._connections,
            self._names,
            self._samples,
            self._maps,
        ):
            found |= self._kept(part)
        self._show(_images(found["samples"]))
        return found

    def _show(self, images: Sequence[int]) -> None:
        """Writes those whole images of the samples that are not there yet."""
        index, label = self._responses.index, self._responses.label
        labels = dict(zip(index.tolist(), label.tolist(), strict=True))
        for image in track(images, len(images), "showing images"):
            # Or an image that is there already would be read for its label.
            known = self.pictures.id(image), labels[image]
            self.drawn.examples.setdefault(image, known)
            self.drawn.show([image])

    def _kept(self, part: Callable[[], Findings]) -> Findings:
        """Returns what a part finds, or has found for an earlier process."""
        path = self.draft.work / f"{part.__name__.strip('_')}.npz"
        if not path.exists():
            devices.give_memory_back()  # what the part before left
            _save(path, part())
        return _load(path)

    @functools.cached_property
    def _responses(self) -> Responses:
        count = max(SAMPLE, OF_CLASS * len(self.target.about.classes))
        return responses.measure(
            self.target, count, self.batch, self.workers, self.workdir
        )

    def _neighbours(self) -> Findings:
        return {"neighbours": neighbours.find(self.layers)}

    def _connections(self) -> Findings:
        inputs, outputs, kernels = connections.find(
            self.target, self.layers, self.pictures, self.batch, self.draft.work
        )
        for number, name in enumerate(self.layers):
            if name in kernels:
                drawn = kernels[name].values()
                grid = Grid.of(*next(iter(drawn)).shape[:2])
                self.draft.write_panel("kernels", number, grid, iter(drawn))
        return {"inputs": inputs, "outputs": outputs}

    def _names(self) -> Findings:
        known = concepts.known(
            self._responses,
            self.target.sources,
            self.target.about.size,
            self.concepts,
            self.draft.work / "measured.npz",
        )
        found = names.find(self._responses, known, self.seed, self.draft.work)
        return {"name": found}

    def _samples(self) -> Findings:
        found = {}
        for number, (name, layer) in enumerate(self.layers.items()):
            fields = self.target.fields[name]
            sample = samples.find(
                self._responses.index,
                self._responses.score[name],
                self._responses.position[name],
                fields,
            )
            self._draw_samples(number, name, dataclasses.replace(layer, top=sample))
            found[name] = {
                "quantile": np.tile(samples.QUANTILES, (len(layer.mean), 1)),
                "score": sample.score,
                "image": sample.image,
                "box": sample.box,
            }
        return {"samples": found}

    def _draw_samples(self, number: int, name: str, layer: Layer) -> None:
        """Draws the samples, in `top`, of the units that have none yet."""
        fields, (units, count) = self.target.fields[name], layer.top.image.shape
        grid = Grid.of(count, patches.drawn_side(layer, fields))
        first = min(units, self.draft.written("samples", number) * grid.rows)
        drawn = patches.pick(layer, fields, self.pictures, count, False, first)
        cells = (cells for _, cells in drawn)
        cells = track(cells, units, f"samples of {name}", done=first)
        self.draft.write_panel("samples", number, grid, cells, first)

    def _maps(self) -> Findings:
        found = {}
        for number, (name, layer) in enumerate(self.layers.items()):
            fields = self.target.fields[name]
            if not fields.stride:
                continue
            try:
                grid = Grid.of(self.target.about.k, fields.columns)
            except ValueError as error:
                logger.warning("no maps of %s: %s", name, error)
                continue
            if not self.draft.has_panel("maps", number):
                devices.give_memory_back()  # what the layer before left
                self._draw_maps(number, name, layer, grid)
            found[name] = activation_maps.extent(layer, fields, fields.columns)
        return {"maps": found}

    def _draw_maps(self, number: int, name: str, layer: Layer, grid: Grid) -> None:
        network, kept = self.target, self.draft.work / f"maps-{number}.npz"
        drawn = activation_maps.project(
            network.forward,
            network.params,
            name,
            layer,
            self.pictures,
            self.batch,
            kept,
        )
        self.draft.write_panel("maps", number, grid, drawn)
        kept.unlink(missing_ok=True)  # the maps of all layers are large


def _images(samples: Mapping[str, Finding]) -> list[int]:
    """Returns the images of samples."""
    every = np.concatenate([finding["image"].ravel() for finding in samples.values()])
    return np.unique(every).tolist()


def _save(path: pathlib.Path, findings: Findings) -> None:
    """Writes findings, whole or not at all."""
    arrays = {
        f"{title}/{field}/{name}": array
        for title, layers in findings.items()
        for name, finding in layers.items()
        for field, array in finding.items()
    }
    titles = np.array([*findings])
    with files.replacing(path) as file:
        np.savez(file, allow_pickle=False, titles=titles, **arrays)


def _load(path: pathlib.Path) -> Findings:
    with files.reading(path), np.load(path) as file:
        arrays = dict(file)
    found: dict[str, dict[str, dict[str, np.ndarray]]] = {
        title: {} for title in arrays.pop("titles").tolist()
    }
    for key, array in arrays.items():
        title, field, name = key.split("/", 2)
        found[title].setdefault(name, {})[field] = array
    return dict(found)
