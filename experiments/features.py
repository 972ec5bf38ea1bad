r"""Feature visualisation: optimises pictures that activate units.

    python launch.py --experiment=features
    python launch.py --experiment=features --config.units='conv3:17,fc8:*' \
        --config.atlas=runs/units --workdir=runs/features
    python launch.py --experiment=features --config.units='conv5:*' \
        --config.model=alexnet --config.weights=torchvision --config.size=192
    python launch.py --experiment=features --config.atlas=runs/units \
        --config.start=patch --workdir=runs/accentuated

Erhan et al. (2009), Olah, Mordvintsev & Schubert (2017, Feature Visualization, Figures 1
and 2): from almost grey noise, gradient ascent on the picture raises one unit's
activation. Leaves every picture (`features/LAYER/NUMBER.png`), a sheet of each layer
(`LAYER.png`), and `features.csv`: each unit's activation for its picture, over the highest
that a data set reached if `atlas` names the workdir of a finished `--experiment=units`,
whose page shows the pictures from then on. Dead units, which no picture activates, are
named in the log, on the sheet and in the table. A unit's picture depends on the seed, not
on which others are asked for.

The first command takes five minutes on two cores of an AMD EPYC (Zen 4) for 256 units.
Against an atlas of Tiny ImageNet, all of them reach the data set's maximum, half of them
2.4 times as much (in 8 minutes 2.6 times, with `--config.size=128`).

`start=patch` accentuates what the unit's own top-activating patch has; `canvas=maco` (Fel et
al. 2023, arXiv:2306.06805) optimises phases alone and takes the magnitudes from the images
that the atlas's scan saw, or without one from drawn images. Of 24 units each of conv3 and
conv5, half reach 2.9 and 2.6 times the maximum by default, 2.7 and 2.7 times from patches,
2.2 and 2.3 times with `maco`. `--experiment=scores` tests what such pictures tell.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping

import numpy as np
from PIL import Image

from nstvis import class_names, data, images, models
from nstvis.runs.config import Network, bounded, chosen
from nstvis.runs.files import write_csv
from nstvis.runs.progress import Progress
from nstvis.synthesis import starts
from nstvis.synthesis.features import Row, Search, Settings, log_summary
from nstvis.units import unit_names
from nstvis.units.patches import Images
from nstvis.units.reference import Reference

# Of a layer's units, by number.
Files = Mapping[int, pathlib.Path]


@dataclasses.dataclass(kw_only=True)
class Config(Settings, Network):
    """Which units, and what their pictures are compared with."""

    # Units, such as conv3:17,18,conv5:* (LAYER:* is a whole layer).
    units: str = "conv5:*"
    # Workdir of a finished --experiment=units: its maxima are compared with, and its
    # atlas shows the pictures.
    atlas: str = ""
    # What a picture starts from: noise, or patch, the unit's own top-activating patch in
    # the middle of its image, which takes an atlas.
    start: str = chosen("noise", "patch")
    # Pictures that are optimised at once.
    chunk: int = bounded(16, least=1, most=4096)

    def check(self) -> None:
        """Raises a ValueError if there are no patches to start from."""
        if self.start == "patch" and not self.atlas:
            raise ValueError(
                "start=patch: the patches are those of a finished --experiment=units;"
                " name its workdir by --config.atlas"
            )


def run(config: Config, workdir: pathlib.Path) -> list[str]:
    """Optimises the pictures that are missing, then writes sheets and the table."""
    forward, params = models.load(
        config.model,
        config.weights,
        preprocessing=config.preprocessing,
        seed=config.seed,
    )
    counts = models.units(forward, params, config.size)
    units = unit_names.parse_list(config.units, counts)
    reference = None
    if config.atlas:
        reference = Reference(pathlib.Path(config.atlas), forward, params)
    files = {
        layer: {n: workdir / "features" / layer / f"{n}.png" for n in numbers}
        for layer, numbers in units.items()
    }
    _optimize_missing(config, (forward, params), files, reference)
    if reference:
        title = "accentuation" if config.start == "patch" else "features"
        title += "maco" if config.canvas == "maco" else ""
        reference.show(title, {x: _read(pictures) for x, pictures in files.items()})
    pages, table = [], []
    for layer, of_units in files.items():
        known = reference.layers.get(layer) if reference else None
        names = _classes(config, counts) if layer == [*counts][-1] else {}
        rows = [
            Row(
                number,
                images.read_settings(file)["activation"],
                float(known.top.score[number, 0]) if known else math.nan,
                names.get(number, ""),
            )
            for number, file in of_units.items()
        ]
        log_summary(layer, rows)
        table += [(f"{layer}:{row.unit}", *row.cells) for row in rows]
        pages.append(f"{layer.replace('/', '_')}.png")
        pictures = list(map(images.read, of_units.values()))
        sheet = images.sheet(pictures, [row.label for row in rows])
        images.write(workdir / pages[-1], sheet)
    header = ("unit", "activation", "maximum", "ratio", "activated")
    write_csv(workdir / "features.csv", header, table)
    return ["features.csv", *pages]


def _classes(config: Config, counts: Mapping[str, int]) -> dict[int, str]:
    """Returns the logits' classes by number; none if they are not known."""
    count = [*counts.values()][-1]
    names = class_names.of_logits(config.weights, config.model, count)
    return dict(enumerate(map(class_names.short, names)))


def _read(pictures: Files) -> dict[int, np.ndarray]:
    return {number: np.asarray(images.read(file)) for number, file in pictures.items()}


def _optimize_missing(
    config: Config,
    network: tuple[models.Forward, models.Params],
    files: Mapping[str, Files],
    reference: Reference | None,
) -> None:
    """Writes the pictures that are not there yet, layer by layer."""
    magnitudes, start, tops = None, None, {}
    if config.canvas == "maco" or config.start == "patch":
        seen, count = reference.images() if reference else _drawn()
    if config.canvas == "maco":
        magnitudes = starts.magnitudes(seen, count, config.size)
    if config.start == "patch" and reference:
        tops = {layer: found.top for layer, found in reference.layers.items()}
        if other := files.keys() - tops:
            raise ValueError(
                f"start=patch: {config.atlas} has no patches of {min(other)}"
            )
    for layer, of_units in files.items():
        left = [number for number, file in of_units.items() if not file.exists()]
        if left:
            chunk = min(config.chunk, len(of_units))
            search = Search(*network, layer, config, chunk, magnitudes)
            if tops:
                start = starts.from_patches(
                    *network, layer, tops[layer], seen, config.size
                )
            _optimize(config, search, {n: of_units[n] for n in left}, start)


def _drawn() -> tuple[Images, int]:
    source = data.load("primitives", "train", "")
    return Images([source], 64), len(source)


def _optimize(
    config: Config,
    search: Search,
    files: Files,
    start: Callable[[int], np.ndarray] | None,
) -> None:
    """Writes units' pictures, chunk by chunk, with the activation in each file."""
    units = list(files)
    chunks = [units[i : i + search.chunk] for i in range(0, len(units), search.chunk)]
    with Progress([search.flops] * (config.steps * len(chunks))) as progress:
        for done, chunk in enumerate(chunks):
            name = f"{search.layer}:{chunk[0]}-{chunk[-1]}"
            given = np.stack([start(unit) for unit in chunk]) if start else None
            for step, state in enumerate(search.run(chunk, given), 1):
                progress.show(done * config.steps + step, name)
                if progress.interrupted:
                    return
            for unit, (picture, activation) in zip(chunk, search.found(state, chunk)):
                settings = dataclasses.asdict(config) | {"activation": activation}
                files[unit].parent.mkdir(parents=True, exist_ok=True)
                images.write(files[unit], Image.fromarray(picture), settings)
