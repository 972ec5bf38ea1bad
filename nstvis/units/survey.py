"""A survey of units: from a data set to an atlas of the patches that activate them most.

The steps: scan (or merge scans), verify, crop and deduplicate, attribute, and write the
table, the contact sheets and the atlas.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping

import jax
import numpy as np

from nstvis import attribution, devices, images, weights
from nstvis.runs import config
from nstvis.runs.config import bounded, chosen
from nstvis.runs.progress import Progress, track
from nstvis.units import (
    maxima,
    patch_attributions,
    patches,
    report,
    scan,
    scan_file,
    verify,
)
from nstvis.units.patches import Images
from nstvis.units.table import Layer

RESULTS = ["index.html", "sheets", "units.npz", "scan.npz"]


@dataclasses.dataclass(kw_only=True)
class Settings(
    config.Network,
    config.Dataset,
    config.Batches,
    config.Workers,
    config.Seed,
    config.Resumable,
):
    """Which units, which images, and what is shown of them."""

    # Layers, such as conv1,conv5; all if empty: after the ReLU where there is one.
    layers: str = ""
    # Top-activating patches of a unit; the atlas has room for 170 in a row.
    k: int = bounded(9, least=1, most=170)
    # Patches of one image that may be among a unit's.
    patches_per_image: int = bounded(1, least=1, most=64)
    # Drops patches that look like one of higher rank.
    deduplicate: bool = True
    # Attributions beside the patches: deconvnet, guided or gradient; none if empty.
    attribution: str = chosen("deconvnet", "guided", "gradient", "")
    # Most activating images of each class to keep in units.npz.
    per_class: int = bounded(1, least=1, most=1000)
    # Workdirs of finished scans to merge instead of scanning, such as runs/a,runs/b.
    merge: str = ""

    def check(self) -> None:
        """Raises a ValueError if a layer or a workdir is given twice."""
        config.names("layers", self.layers)
        if config.names("merge", self.merge) and self.layers:
            raise ValueError("layers: a merge has those of its scans; leave them out")


def survey(settings: Settings, workdir: pathlib.Path) -> list[str]:
    """Finds and draws the patches that activate units most.

    Args:
        settings: Which units, which images, and what is shown of them.
        workdir: Gets the results. An interrupted scan in it is resumed, a finished one is
            not repeated.

    Returns:
        Names of the results.

    Raises:
        Interrupted: By a signal; the same call resumes.
        ValueError: Settings are out of bounds, nothing has such a name, a scan or the
            network do not fit, or the patches are not what their images give.
        FloatingPointError: An activation is no finite number.
        OSError: A file cannot be read or written.
    """
    config.check(settings)
    merging = config.names("merge", settings.merge)
    target = (_merge if merging else _scan)(settings, workdir)
    if devices.is_lead():
        state, _ = scan_file.load(workdir / "scan.npz")
        _report(settings, workdir, target, state)
    return RESULTS


def _merge(settings: Settings, workdir: pathlib.Path) -> scan.Target:
    """Writes the merged `scan.npz`, and returns of what it is a scan."""
    folders = config.names("merge", settings.merge)
    state, about = scan_file.merge([pathlib.Path(x) / "scan.npz" for x in folders])
    target = scan.target_of(about)
    _refuse_rule(settings, target)
    if devices.is_lead():
        scan_file.save(workdir / "scan.npz", state, about)
    return target


def _scan(settings: Settings, workdir: pathlib.Path) -> scan.Target:
    """Writes `scan.npz`, unless it is there, and returns of what it is a scan."""
    target = scan.target(
        model=settings.model,
        weights=settings.weights,
        preprocessing=settings.preprocessing,
        dataset=settings.dataset,
        split=settings.split,
        data_dir=settings.data_dir,
        size=settings.size,
        layers=config.names("layers", settings.layers),
        k=settings.k,
        patches=settings.patches_per_image,
        deduplicate=settings.deduplicate,
        per_class=settings.per_class,
        as_stored=weights.as_stored(settings.weights, settings.photographs),
    )
    _refuse_rule(settings, target)
    scan_file.refuse_changed(workdir / "scan.json", target.about)
    if not (workdir / "scan.npz").exists():
        state = scan.run(
            target,
            workdir,
            batch=settings.batch,
            workers=settings.workers,
            checkpoint_every=settings.checkpoint_every,
        )
        if devices.is_lead():
            scan_file.save(workdir / "scan.npz", state, target.about)
    return target


def _refuse_rule(settings: Settings, target: scan.Target) -> None:
    """Refuses a network that the rule does not apply to, before all the work."""
    if not settings.attribution:
        return
    network = attribution.ruled(target.forward, settings.attribution)
    size = target.about.size
    image = jax.ShapeDtypeStruct((1, size, size, 3), "float32")
    try:
        jax.eval_shape(network, target.params, image)
    except ValueError as error:
        raise ValueError(f"{error}; --config.attribution= does without") from error


def _report(
    settings: Settings, workdir: pathlib.Path, target: scan.Target, state: maxima.State
) -> None:
    """Verifies a scan, and writes what it found."""
    pictures = Images(target.sources, target.about.size)
    verify.verify(
        target.forward,
        target.params,
        target.about.layers,
        maxima.Best(*(part[0] for part in state.top)),
        pictures,
        settings.batch,
    )
    layers, drawn = _crop(target, scan.layers(target, state), pictures)
    attributed = _attribute(settings, target, layers, drawn, pictures)
    panels = {settings.attribution: attributed} if attributed else {}
    table = report.table(target, state, layers, pictures)
    report.write(workdir, table, drawn, panels, pictures, settings.seed)


def _crop(
    target: scan.Target, candidates: Mapping[str, Layer], pictures: Images
) -> tuple[dict[str, Layer], dict[str, np.ndarray]]:
    """Picks each unit's patches; returns layers with these alone, and what they show."""
    about = target.about

    def picked() -> Iterator[tuple[str, list[int], np.ndarray]]:
        for name, layer in candidates.items():
            fields = target.fields[name]
            for ranks, drawn in patches.pick(
                layer, fields, pictures, about.k, about.deduplicate
            ):
                yield name, ranks, drawn

    ranks: dict[str, list] = {name: [] for name in candidates}
    drawn: dict[str, list] = {name: [] for name in candidates}
    units = sum(about.layers.values())
    for name, unit_ranks, unit_drawn in track(picked(), units, "cropping patches"):
        ranks[name].append(unit_ranks)
        drawn[name].append(unit_drawn)
    layers = {
        name: dataclasses.replace(layer, top=layer.top.picked(ranks[name], about.k))
        for name, layer in candidates.items()
    }
    return layers, {name: np.stack(parts) for name, parts in drawn.items()}


def _attribute(
    settings: Settings,
    target: scan.Target,
    layers: Mapping[str, Layer],
    drawn: Mapping[str, np.ndarray],
    pictures: Images,
) -> dict[str, dict[int, np.ndarray]]:
    """Returns the patches' attributions, by layer and unit; none if none are wanted."""
    if not settings.attribution:
        return {}
    network = attribution.ruled(target.forward, settings.attribution)
    attributed = {name: np.full_like(drawn[name], images.GREY) for name in layers}

    def batches() -> Iterator[tuple[str, np.ndarray, np.ndarray, np.ndarray]]:
        for name, layer in layers.items():
            fields, params = target.fields[name], target.params
            for batch in patch_attributions.project(
                network, params, name, layer, fields, pictures, settings.batch
            ):
                yield name, *batch

    total = sum(int((layer.top.image >= 0).sum()) for layer in layers.values())
    done = 0
    with Progress([0.0] * total) as progress:
        for name, units, ranks, cells in batches():
            attributed[name][units, ranks] = cells
            done += len(cells)
            progress.show(done, f"attribution ({settings.attribution})")
            if progress.interrupted:
                break
    return {name: dict(enumerate(cells)) for name, cells in attributed.items()}
