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
import logging
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from PIL import Image

from nstvis import class_names, data, images, models
from nstvis.runs.config import Network, bounded, chosen
from nstvis.runs.files import write_csv
from nstvis.runs.progress import Progress
from nstvis.synthesis import starts
from nstvis.synthesis.features import Row, Search, Settings, log_summary
from nstvis.units import atlas, scan, scan_file, table, unit_names
from nstvis.units.patches import Images

logger = logging.getLogger(__name__)


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
    scanned = _scanned(config, forward, params)
    if config.start == "patch" and (other := units.keys() - scanned.keys()):
        raise ValueError(f"start=patch: {config.atlas} has no patches of {min(other)}")
    magnitudes = None
    if config.canvas == "maco":
        magnitudes = starts.magnitudes(*_pictures(config), config.size)
    for layer, numbers in units.items():
        (workdir / "features" / layer).mkdir(parents=True, exist_ok=True)
        left = [n for n in numbers if not _file(workdir, layer, n).exists()]
        if left:
            chunk = min(config.chunk, len(numbers))
            search = Search(forward, params, layer, config, chunk, magnitudes)
            start = None
            if config.start == "patch":
                top, (pictures, _) = scanned[layer].top, _pictures(config)
                start = starts.from_patches(
                    forward, params, layer, top, pictures, config.size
                )
            _optimize(config, workdir, search, left, start)
    if config.atlas:
        _add_to_atlas(config, workdir, units)
    pages, table_rows = [], []
    for layer, numbers in units.items():
        files = [_file(workdir, layer, number) for number in numbers]
        known = np.full(len(files), math.nan)
        if layer in scanned:
            known = scanned[layer].top.score[numbers, 0]
        names = _classes(config, counts) if layer == [*counts][-1] else {}
        rows = [
            Row(
                number,
                images.read_settings(file)["activation"],
                float(maximum),
                names.get(number, ""),
            )
            for number, file, maximum in zip(numbers, files, known)
        ]
        log_summary(layer, rows)
        pages.append(f"{layer.replace('/', '_')}.png")
        sheet = images.sheet(list(map(images.read, files)), [row.label for row in rows])
        images.write(workdir / pages[-1], sheet)
        table_rows += [_cells(layer, row) for row in rows]
    header = ("unit", "activation", "maximum", "ratio", "activated")
    write_csv(workdir / "features.csv", header, table_rows)
    return ["features.csv", *pages]


def _classes(config: Config, counts: Mapping[str, int]) -> dict[int, str]:
    """Returns the logits' classes by number; none if they are not known."""
    count = [*counts.values()][-1]
    names = class_names.of_logits(config.weights, config.model, count)
    return dict(enumerate(map(class_names.short, names)))


def _file(workdir: pathlib.Path, layer: str, unit: int) -> pathlib.Path:
    return workdir / "features" / layer / f"{unit}.png"


def _scanned(
    config: Config, forward: models.Forward, params: models.Params
) -> Mapping[str, table.Layer]:
    """Returns what the atlas's scan measured, by layer; nothing without an atlas."""
    if not config.atlas:
        return {}
    folder = pathlib.Path(config.atlas)
    _, about = scan_file.load(folder / "scan.npz")
    atlas.Atlas(folder)  # or there would be an error after all the work
    if about.network != scan_file.network_hash(forward, params, about.size):
        raise ValueError(
            f"atlas={folder} is of another network: {about.model} with the weights"
            f" {about.weights}"
        )
    return table.load(folder / "units.npz").layers


def _pictures(config: Config) -> tuple[Images, int]:
    """Returns the images that the atlas's scan saw, or drawn ones, and their number."""
    sources, size = [data.load("primitives", "train", "")], 64
    if config.atlas:
        _, about = scan_file.load(pathlib.Path(config.atlas) / "scan.npz")
        sources, size = scan.target_of(about).sources, about.size
    return Images(sources, size), sum(map(len, sources))


def _optimize(
    config: Config,
    workdir: pathlib.Path,
    search: Search,
    units: Sequence[int],
    start: Callable[[int], np.ndarray] | None,
) -> None:
    """Writes units' pictures, chunk by chunk, with the activation in each file."""
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
                file = _file(workdir, search.layer, unit)
                images.write(file, Image.fromarray(picture), settings)


def _add_to_atlas(
    config: Config, workdir: pathlib.Path, units: Mapping[str, Sequence[int]]
) -> None:
    """Shows the pictures in the atlas, beside the patches of the layers it has."""
    folder, panel = pathlib.Path(config.atlas), {}
    layers = atlas.Atlas(folder).layers
    for layer, numbers in units.items():
        if layer not in layers:
            logger.warning("atlas=%s has no %s, and shows none of it", folder, layer)
            continue
        panel[layer] = {
            number: np.asarray(images.read(_file(workdir, layer, number)))[None]
            for number in numbers
        }
    if panel:
        title = "accentuation" if config.start == "patch" else "features"
        if config.canvas == "maco":
            title += "maco"
        atlas.add(folder, title, panel)
        logger.info("%s", folder / "index.html")


def _cells(layer: str, row: Row) -> list[str]:
    numbers = row.activation, row.maximum, row.ratio
    cells = ["" if math.isnan(x) else f"{x:.6g}" for x in numbers]
    return [f"{layer}:{row.unit}", *cells, "yes" if row.activated else "no"]
