"""Draws what a scan found into the draft of an atlas: patches and attributions.

Sixteen units at a time are drawn and written, so that memory does not grow with their
number, and a draft that was interrupted goes on where it was.
"""

import dataclasses
import io
import itertools
import json
import logging
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np
from PIL import Image

from nstvis import attribution, devices, images
from nstvis.models import Forward, Params
from nstvis.runs import files
from nstvis.runs.progress import Progress, track
from nstvis.units import patch_attributions, patches, scan, sprites
from nstvis.units.atlas_writer import Draft
from nstvis.units.patches import Images
from nstvis.units.sprites import Grid
from nstvis.units.table import Layer

logger = logging.getLogger(__name__)

SHOWN = 224  # pixels, at most, of the side of a whole image in the atlas
_ACTIVATIONS = 64_000_000  # bytes, about, of those that are computed together


def fitting(forward: Forward, params: Params, size: int, batch: int) -> int:
    """Returns how many images, at most `batch`, are computed together.

    On a CPU, where larger batches are no faster, so many that activations take 64 MB.
    """
    if jax.default_backend() != "cpu":
        return batch
    image = jax.ShapeDtypeStruct((1, size, size, 3), "float32")
    activations = jax.eval_shape(forward, params, image).values()
    of_one = sum(4 * math.prod(x.shape) for x in activations)
    return max(1, min(batch, _ACTIVATIONS // of_one))


class Drawing:
    """The pictures of a scan in a draft.

    Args:
        draft: What they are written to.
        target: What was scanned.
        candidates: What was found, with all candidates for the top.
        pictures: Where the images are.

    Attributes:
        grids: Layer to how its pictures lie in their files.
        examples: Index of an image that is shown to its id and label; of those of the
            units that are cropped.

    Raises:
        ValueError: There are more patches than a file has room for.
    """

    def __init__(
        self,
        draft: Draft,
        target: scan.Target,
        candidates: Mapping[str, Layer],
        pictures: Images,
    ):
        self._draft, self._target = draft, target
        self._candidates, self._pictures = candidates, pictures
        self.grids = {
            name: Grid.of(
                target.about.k, patches.drawn_side(layer, target.fields[name])
            )
            for name, layer in candidates.items()
        }
        self.examples: dict[int, tuple[str, int]] = {}

    def crop(self) -> dict[str, Layer]:
        """Picks and draws each unit's patches, and the whole images.

        Returns:
            The layers with the picked patches alone.

        Raises:
            Interrupted: By a signal; another drawing of the same draft goes on.
        """
        ranks = {name: self._kept(number) for number, name in enumerate(self.grids)}
        done = sum(self._files(name, len(kept)) for name, kept in ranks.items())
        total = sum(self._files(name) for name in self.grids)
        for _ in track(self._crop(ranks), total, "cropping patches", done=done):
            pass
        k = self._target.about.k
        return {
            name: dataclasses.replace(layer, top=layer.top.picked(ranks[name], k))
            for name, layer in self._candidates.items()
        }

    def _files(self, name: str, units: int | None = None) -> int:
        """Returns how many files hold the first units of a layer, or all of them."""
        if units is None:
            units = len(self._candidates[name].mean)
        return math.ceil(units / self.grids[name].rows)

    def _record(self, number: int, chunk: int) -> pathlib.Path:
        """Returns the file that is written once the units of a file are cropped."""
        return self._draft.work / f"{number}-{chunk}.json"

    def _kept(self, number: int) -> list[list[int]]:
        """Returns the ranks that were picked of a layer's units so far."""
        ranks: list[list[int]] = []
        for chunk in itertools.count():
            if not (path := self._record(number, chunk)).exists():
                break
            record = files.read_json(path)
            with files.reading(path):
                ranks += record["ranks"]
                for index, (id, label) in record["examples"].items():
                    self.examples[int(index)] = id, label
        return ranks

    def _crop(self, ranks: Mapping[str, list[list[int]]]) -> Iterator[None]:
        """Crops the rest of each layer, and adds to the ranks; one file at a time."""
        about = self._target.about
        for number, (name, layer) in enumerate(self._candidates.items()):
            first, grid = len(ranks[name]), self.grids[name]
            units = patches.pick(
                layer,
                self._target.fields[name],
                self._pictures,
                about.k,
                about.deduplicate,
                first,
            )
            while drawn := [*itertools.islice(units, grid.rows)]:
                picked, cells = zip(*drawn, strict=True)
                examples, chunk = self._show(layer, first, picked), grid.chunk(first)
                sprites.write(self._draft.sprite(number, chunk), np.stack(cells), grid)
                record = json.dumps({"ranks": picked, "examples": examples})
                files.write_text(self._record(number, chunk), record)
                ranks[name].extend(picked)
                first += len(picked)
                yield

    def _show(
        self, layer: Layer, first: int, ranks: Sequence[Sequence[int]]
    ) -> dict[int, tuple[str, int]]:
        """Writes the whole images of some units, and returns their examples."""
        shown = set(layer.least.image[first : first + len(ranks)].ravel().tolist())
        for unit, kept in enumerate(ranks, first):
            shown.update(layer.top.image[unit, kept].tolist())
        return self.show(sorted(shown - {-1}))

    def show(self, indices: Sequence[int]) -> dict[int, tuple[str, int]]:
        """Writes whole images that are not there yet, and returns their examples."""
        for index in indices:
            if index not in self._draft.pictures:
                self._draft.add_picture(index, _thumbnail(self._pictures[index]))
            if index not in self.examples:
                known = self._pictures.id(index), self._pictures.label(index)
                self.examples[index] = known
        return {index: self.examples[index] for index in indices}

    def attribute(self, layers: Mapping[str, Layer], rule: str, batch: int) -> None:
        """Draws a panel of the attributions of each layer's patches.

        Args:
            layers: From `crop`.
            rule: For ReLUs; the title of the panel.
            batch: Images that are attributed to together.

        Raises:
            Interrupted: By a signal; another drawing of the same draft goes on.
        """
        network = attribution.ruled(self._target.forward, rule)
        costs, done = [], 0
        for number, (name, layer) in enumerate(layers.items()):
            there = layer.top.image >= 0
            done += int(there[: self._attributed(number, name, rule)].sum())
            costs += [self._cost(network, name, layer)] * int(there.sum())
        logger.info("attributing %d patches (%s)", len(costs) - done, rule)
        with Progress(costs, done, counted=False) as progress:
            for number, (name, layer) in enumerate(layers.items()):
                devices.give_memory_back()  # what the layer before left
                for count in self._attribute(network, number, name, layer, rule, batch):
                    done += count
                    progress.show(done, f"attribution ({rule})")
                    if progress.interrupted:
                        return
                units = len(layer.mean)
                self._draft.list_panel(rule, number, self.grids[name], units)

    def _cost(self, network: Forward, name: str, layer: Layer) -> float:
        target, fields = self._target, self._target.fields[name]
        return patch_attributions.cost(
            network, target.params, name, layer, fields, target.about.size
        )

    def _attributed(self, number: int, name: str, rule: str) -> int:
        """Returns of how many of a layer's first units there are attributions."""
        return self._draft.written(rule, number) * self.grids[name].rows

    def _attribute(
        self,
        network: Forward,
        number: int,
        name: str,
        layer: Layer,
        rule: str,
        batch: int,
    ) -> Iterator[int]:
        """Draws the rest of a layer's attributions; yields how many at a time."""
        first, grid = self._attributed(number, name, rule), self.grids[name]
        cells: dict[int, np.ndarray] = {}
        written = grid.chunk(first)

        def write(end: int) -> None:
            """Writes the files before that one."""
            nonlocal written
            for chunk in range(written, end):
                path = self._draft.sprite(number, chunk, rule)
                pictures = cells.pop(chunk, None)
                if pictures is None:  # of units without images
                    pictures = self._blank(name, chunk)
                sprites.write(path, pictures, grid)
            written = max(written, end)

        for units, ranks, drawn in patch_attributions.project(
            network,
            self._target.params,
            name,
            layer,
            self._target.fields[name],
            self._pictures,
            batch,
            first,
        ):
            for unit, rank, cell in zip(units, ranks, drawn, strict=True):
                chunk = grid.chunk(unit)
                if chunk not in cells:
                    cells[chunk] = self._blank(name, chunk)
                cells[chunk][unit % grid.rows, rank] = cell
            write(grid.chunk(int(units[-1])))
            yield int((units >= first).sum())
        write(self._files(name))

    def _blank(self, name: str, chunk: int) -> np.ndarray:
        """Returns grey pictures for the units of a file."""
        grid, units = self.grids[name], len(self._candidates[name].mean)
        rows = min(grid.rows, units - chunk * grid.rows)
        shape = rows, grid.k, grid.side, grid.side, 3
        return np.full(shape, images.GREY, np.uint8)


def _thumbnail(image: np.ndarray) -> bytes:
    """Returns a whole image as the atlas shows it."""
    file, picture = io.BytesIO(), Image.fromarray(image)
    picture.thumbnail((SHOWN, SHOWN))
    picture.save(file, "WEBP", quality=85)
    return file.getvalue()
