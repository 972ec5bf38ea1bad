r"""Tests the pictures that explain units: does a machine learn from them what a unit wants?

    python launch.py --experiment=scores --config.atlas=runs/units
    python launch.py --experiment=scores --config.atlas=runs/units \
        --config.features=runs/features,runs/maco --config.units='conv5:*'

The two-alternative test of Borowski et al. 2021 (arXiv:2010.12606) with a machine in place
of people, as in Zimmermann, Klindt & Brendel 2024 ("Measuring Per-Unit Interpretability at
Scale Without Humans"): given an explanation of a unit, an observer, which is another
network, says which of two patches of held-out images activates the unit more. Tested are
the top-activating patches of a finished `--experiment=units`, their attributions, and the
optimised pictures of finished `--experiment=features`; and two controls, random patches and
the patches of another unit. Half of the answers would be right by chance.

Leaves `scores.csv` (accuracy by kind of picture and layer, with 95 % intervals by bootstrap
over units) and `scores.png`. The accuracies of each unit become the finding `scores` of the
atlas and its `units.npz`.

Measured on `alexnet_small` and Tiny ImageNet's 5,000 validation images, by the observer
`vgg_small`. The nine patches of 14 units of each of the eight layers give 91 % right answers
(95 % interval 89 to 93), those of a network with random weights 76 % (73 to 79), controls of
the first 46 and 51 %. From conv1 to fc8 it is 96, 86, 76, 86, 94, 98, 95 and 98 % (random
weights: 82, 72, 79, 74, 78, 76, 65 and 79 %): in conv3 alone random weights do as well.
For 24 units of conv5 it is 94 % for the patches, 62 % for their deconvnet attributions and,
for single optimised pictures, 87 % by default, 89 % with `start=patch` and 84 % with
`canvas=maco`; for 24 of conv3, 82, 68, 68, 64 and 60 %. Neither is better than the default,
and `maco` is worse in conv3, by 8 points (0 to 15). It takes about 0.3 s of one core for
each unit.
"""

import dataclasses
import logging
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from nstvis import attribution, images, plots
from nstvis.runs import config as configs
from nstvis.runs.config import Seed, Workers, bounded
from nstvis.runs.files import write_csv
from nstvis.units import atlas, responses, scan, scan_file, scores, table, unit_names
from nstvis.units.atlas import Atlas, Panel
from nstvis.units.patches import Images

logger = logging.getLogger(__name__)


@dataclasses.dataclass(kw_only=True)
class Config(Seed, Workers):
    """Which units and pictures, and how many trials."""

    # Workdir of a finished --experiment=units.
    atlas: str = ""
    # Workdirs of finished --experiment=features, such as runs/features,runs/maco.
    features: str = ""
    # Units: LAYER:NUMBER or LAYER:* for a whole layer, separated by commas; all if empty.
    units: str = ""
    # Images to draw held-out ones from, evenly from all that were scanned.
    images: int = bounded(2000, least=2, most=10_000_000)
    # Pairs of held-out patches for each unit.
    pairs: int = bounded(10, least=1, most=1000)
    # Images per batch.
    batch: int = bounded(128, least=1, most=65536)

    def check(self) -> None:
        """Raises a ValueError if there is no atlas, or names are not told apart."""
        if not self.atlas:
            raise ValueError(
                "atlas: name the workdir of a finished --experiment=units, whose pictures"
                " are tested, by --config.atlas"
            )
        taken = {*scores.FIELDS, *attribution.RULES}
        for name in (pathlib.Path(x).name for x in _workdirs(self)):
            if name in taken:
                raise ValueError(
                    f"features={self.features}: {name} would be two kinds of pictures in"
                    " the table; rename the folder"
                )
            taken.add(name)


def run(config: Config, workdir: pathlib.Path) -> list[str]:
    """Tests all kinds of pictures; writes the table, the figure and the finding."""
    folder = pathlib.Path(config.atlas)
    _, about = scan_file.load(folder / "scan.npz")
    known, shown = table.load(folder / "units.npz"), Atlas(folder)
    units = {name: list(range(count)) for name, count in about.layers.items()}
    if config.units:
        units = unit_names.parse_list(config.units, about.layers)
    target = scan.target_of(about)
    kinds = _attributions(shown, units)
    for path in map(pathlib.Path, _workdirs(config)):
        kinds[path.name] = _optimised(path, units, target)
    held_out = scores.HeldOut(
        responses=responses.measure(
            target, config.images, config.batch, config.workers, workdir
        ),
        layers=known.layers,
        fields=target.fields,
        pictures=Images(target.sources, about.size),
    )
    findings = scores.find(
        *(units, kinds, held_out, scores.observer(about.model)),
        pairs=config.pairs,
        seed=config.seed,
    )
    findings_of_all = {**known.findings, "scores": findings}
    changed = dataclasses.replace(known, findings=findings_of_all)
    table.save(folder / "units.npz", changed)
    atlas.add_findings(folder, "scores", findings)
    rows = scores.rows(findings, config.seed)
    write_csv(workdir / "scores.csv", scores.Row._fields, rows)
    _log(rows)
    _draw(workdir / "scores.png", rows)
    return ["scores.csv", "scores.png"]


def _workdirs(config: Config) -> list[str]:
    return configs.names("features", config.features)


def _attributions(shown: Atlas, units: Mapping[str, Sequence[int]]) -> dict[str, Panel]:
    """Reads the attributions that an atlas shows, by rule."""
    kinds: dict[str, dict[str, dict[int, np.ndarray]]] = {}
    for layer, numbers in units.items():
        for number in numbers:
            for title, pictures in shown.unit(layer, number).panels().items():
                if title in attribution.RULES:
                    arrays = np.stack([np.asarray(picture) for picture in pictures])
                    kinds.setdefault(title, {}).setdefault(layer, {})[number] = arrays
    return dict(kinds)


def _optimised(
    workdir: pathlib.Path, units: Mapping[str, Sequence[int]], target: scan.Target
) -> Panel:
    """Reads the optimised pictures, as far as there are any, where the units see them."""
    files = {
        layer: {
            number: path
            for number in numbers
            if (path := workdir / "features" / layer / f"{number}.png").exists()
        }
        for layer, numbers in units.items()
    }
    pictures = {
        layer: {number: np.asarray(images.read(path)) for number, path in some.items()}
        for layer, some in files.items()
        if some
    }
    if not pictures:
        raise ValueError(f"features: {workdir} has no picture of any of the units")
    return scores.at_peaks(target.forward, target.params, pictures)


def _log(rows: Sequence[scores.Row]) -> None:
    for kind in dict.fromkeys(row.kind for row in rows):
        cells = [
            f"{row.layer} {row.accuracy:.0%} ({row.low:.0%} to {row.high:.0%})"
            for row in rows
            if row.kind == kind
        ]
        logger.info("%s: %s", kind, ", ".join(cells))


def _draw(path: pathlib.Path, rows: Sequence[scores.Row]) -> None:
    """Draws the accuracies of each kind of pictures, layer by layer."""
    layers = list(dict.fromkeys(row.layer for row in rows))
    kinds = list(dict.fromkeys(row.kind for row in rows))
    page = plots.figure(2.5 + 0.9 * len(layers), 4)
    axes = page.subplots()
    axes.axhline(0.5, color="0.6", linewidth=1)
    for number, kind in enumerate(kinds):
        some = [row for row in rows if row.kind == kind]
        shift = 0.6 * ((number + 0.5) / len(kinds) - 0.5)
        places = [layers.index(row.layer) + shift for row in some]
        accuracy, low, high = np.array([row[2:5] for row in some]).T
        axes.errorbar(
            places, accuracy, [accuracy - low, high - accuracy], fmt="o", label=kind
        )
    axes.set_xticks(range(len(layers)), layers)
    axes.set(ylabel="right answers", title="two-alternative test", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    plots.save(path, page)
