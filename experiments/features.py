r"""Paints what units want to see: activation maximisation.

    python launch.py --experiment=features
    python launch.py --experiment=features --config.units='conv3:17,fc8:*' \
        --config.atlas=runs/units --workdir=runs/features
    python launch.py --experiment=features --config.units='conv5:*' \
        --config.model=alexnet --config.weights=torchvision --config.size=192

Erhan et al. (2009), Olah, Mordvintsev & Schubert (2017, Feature Visualization, Figures 1
and 2): from almost grey noise, gradient ascent on the picture makes one unit's activation
high. Leaves every picture (`features/LAYER/NUMBER.png`), a sheet of each layer
(`LAYER.png`), and `features.csv`: each unit's activation for its picture, over the highest
that a data set reached if `atlas` names the workdir of a finished `--experiment=units`,
whose page shows the pictures from then on.
Units that stay off are named, in the log, on the sheet and in the table. A unit's picture
depends on the seed, not on the units beside it.

The first command takes five minutes on two cores of an AMD EPYC (Zen 4) for 256 units.
Against an atlas of Tiny ImageNet, all of them reach the data set's maximum, half of them
2.4 times as much (in 8 minutes 2.6 times, with `--config.size=128`).
"""

import dataclasses
import logging
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from nstvis import images, models
from nstvis.runs.files import write_text
from nstvis.runs.progress import Interruption, Progress, interruptible
from nstvis.runs.registry import unknown
from nstvis.synthesis.features import Search, Settings, check
from nstvis.units import atlas, scan_file, table

logger = logging.getLogger(__name__)


@dataclasses.dataclass(kw_only=True)
class Config(Settings):
    """Which units, and what their pictures are compared with."""

    # Units: LAYER:NUMBER or LAYER:* for a whole layer, separated by commas.
    units: str = "conv5:*"
    # Network: a name, or the path of a file like those in nstvis/models/.
    model: str = "alexnet_small"
    # bundled, torchvision, random or a path.
    weights: str = "bundled"
    # Workdir of a finished --experiment=units, whose maxima are to be reached and whose
    # atlas is to show the pictures.
    atlas: str = ""
    # Pictures that are painted at once.
    chunk: int = 16


def run(config: Config, workdir: pathlib.Path) -> int:
    """Paints, or goes on where the same command was interrupted."""
    if (workdir / "features.csv").exists():
        logger.info("finished already: %s", workdir / "features.csv")
        return 0
    check(config)
    if config.chunk < 1:
        raise ValueError("chunk should be at least 1")
    forward, params = models.load(config.model, config.weights, seed=config.seed)
    counts = models.units(forward, params, config.size)
    wanted = parse_units(config.units, counts)
    maxima = _maxima(config, forward, params)
    with interruptible() as interruption:
        for layer, units in wanted.items():
            (workdir / "features" / layer).mkdir(parents=True, exist_ok=True)
            chunk = min(config.chunk, len(units))
            left = [unit for unit in units if not _file(workdir, layer, unit).exists()]
            if left:
                search = Search(forward, params, layer, config, chunk)
                _paint(config, workdir, search, left, interruption)
            if interruption.signal:
                logger.info(
                    "the same command with --workdir=%s goes on from there", workdir
                )
                return 128 + interruption.signal
    if config.atlas:
        _join(config, workdir, wanted)
    _report(workdir, wanted, maxima)
    return 0


def parse_units(text: str, counts: Mapping[str, int]) -> dict[str, list[int]]:
    """Parses `conv4:7,conv5:*` to each layer's unit numbers, in order.

    Args:
        text: Units, separated by commas.
        counts: Layer to its number of units.

    Raises:
        ValueError: There is no such unit, or the text names none.
    """
    found: dict[str, set[int]] = {}
    for part in text.replace(" ", "").split(","):
        layer, _, number = part.rpartition(":")
        if not layer or not (number == "*" or number.isdecimal()):
            raise ValueError(
                f"{part!r} in units={text} should be LAYER:NUMBER or LAYER:*, such as"
                " conv5:17"
            )
        if layer not in counts:
            raise ValueError(unknown("layer", layer, counts))
        every = range(counts[layer])
        if number != "*" and int(number) not in every:
            raise ValueError(f"no unit {part}: there are 0 to {every[-1]}")
        found.setdefault(layer, set()).update(every if number == "*" else [int(number)])
    return {layer: sorted(numbers) for layer, numbers in found.items()}


def _maxima(
    config: Config, forward: models.Forward, params: models.Params
) -> dict[str, np.ndarray]:
    """Layer to the highest activation of each unit in the atlas's data set."""
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
    layers = table.load(folder / "units.npz").layers
    return {name: layer.top.score[:, 0] for name, layer in layers.items()}


def _file(workdir: pathlib.Path, layer: str, unit: int) -> pathlib.Path:
    return workdir / "features" / layer / f"{unit}.png"


def _paint(
    config: Config,
    workdir: pathlib.Path,
    search: Search,
    units: Sequence[int],
    interruption: Interruption,
) -> None:
    """Writes units' pictures, chunk by chunk, with the activation in each file."""
    chunks = [units[i : i + search.chunk] for i in range(0, len(units), search.chunk)]
    costs = [search.flops] * (config.steps * len(chunks))
    with Progress(costs, 0) as progress:
        for number, some in enumerate(chunks):
            name = f"{search.layer}:{some[0]}-{some[-1]}"
            for step, state in enumerate(search.run(some), 1):
                progress.show(number * config.steps + step, name)
                if interruption.signal:
                    return
            for unit, (picture, activation) in zip(some, search.found(state, some)):
                settings = dataclasses.asdict(config) | {"activation": activation}
                file = _file(workdir, search.layer, unit)
                images.write(file, Image.fromarray(picture), settings)


def _join(
    config: Config, workdir: pathlib.Path, wanted: Mapping[str, Sequence[int]]
) -> None:
    """Shows the pictures in the atlas, beside the patches of the layers it has."""
    folder = pathlib.Path(config.atlas)
    there = atlas.Atlas(folder).layers
    for layer in wanted:
        if layer not in there:
            logger.warning("atlas=%s has no %s, and shows none of it", folder, layer)
    joined = {
        layer: {
            unit: np.asarray(images.read(_file(workdir, layer, unit)))[None]
            for unit in units
        }
        for layer, units in wanted.items()
        if layer in there
    }
    if joined:
        atlas.add(folder, "features", joined)
        logger.info("%s", folder / "index.html")


class Row(NamedTuple):
    """What features.csv says of a unit; NaN is what is not known."""

    unit: int
    activation: float
    maximum: float

    @property
    def activated(self) -> bool:
        return self.activation > 0

    @property
    def ratio(self) -> float:
        return self.activation / self.maximum if self.maximum > 0 else math.nan


def _report(
    workdir: pathlib.Path,
    wanted: Mapping[str, Sequence[int]],
    maxima: Mapping[str, np.ndarray],
) -> None:
    """Says how high the activations are, and writes the sheets and the table."""
    lines = ["unit,activation,maximum,ratio,activated"]
    for layer, units in wanted.items():
        files = [_file(workdir, layer, unit) for unit in units]
        known = maxima[layer][units] if layer in maxima else [math.nan] * len(units)
        rows = [
            Row(unit, images.read_settings(file)["activation"], float(maximum))
            for unit, file, maximum in zip(units, files, known)
        ]
        _say(layer, rows)
        sheet = images.sheet(list(map(images.read, files)), list(map(_label, rows)))
        page = workdir / f"{layer.replace('/', '_')}.png"
        images.write(page, sheet)
        logger.info("%s", page)
        for row in rows:
            numbers = row.activation, row.maximum, row.ratio
            told = ["" if math.isnan(x) else f"{x:.6g}" for x in numbers]
            on = "yes" if row.activated else "no"
            lines.append(",".join([f"{layer}:{row.unit}", *told, on]))
    write_text(workdir / "features.csv", "\n".join(lines) + "\n")
    logger.info("%s", workdir / "features.csv")


def _label(row: Row) -> str:
    if not row.activated:
        return f"{row.unit}  off"
    return f"{row.unit}" + ("" if math.isnan(row.ratio) else f"  {row.ratio:.1f} x")


def _say(layer: str, rows: Sequence[Row]) -> None:
    """Tells the layer's activations, and which of its units have none."""
    off = [
        f"{layer}:{row.unit} ({row.activation:.3g})"
        for row in rows
        if not row.activated
    ]
    if off:
        logger.warning(
            "%d of %d units of %s could not be activated: %s",
            len(off),
            len(rows),
            layer,
            ", ".join(off),
        )
    median = np.median([row.activation for row in rows])
    logger.info("%s: %d units, median activation %.3g", layer, len(rows), median)
    ratios = np.array([row.ratio for row in rows if row.maximum > 0])
    if len(ratios):
        logger.info(
            "%s: as high as the data set's maximum for %d of %d live units; median %.2f"
            " times as high",
            layer,
            (ratios >= 1).sum(),
            len(ratios),
            np.median(ratios),
        )
