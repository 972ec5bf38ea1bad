"""A survey of units: from a data set to an atlas of the patches that activate them most.

The steps: scan (or merge scans), verify, crop and deduplicate, attribute, explain, and
write the table, the contact sheets and the atlas.
"""

import dataclasses
import pathlib

import jax

from nstvis import attribution, devices, weights
from nstvis.runs import config
from nstvis.runs.config import bounded, chosen
from nstvis.units import report, scan, scan_file


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
    # Names, connections, similar units, images over each unit's whole range, and maps.
    explain: bool = True
    # CSV file of image ids and tags to name units by; all that is known if empty.
    concepts: str = ""
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
        devices.give_memory_back()  # what the scan left
        drawn = report.Settings(
            rule=settings.attribution,
            explain=settings.explain,
            concepts=settings.concepts,
            batch=settings.batch,
            workers=settings.workers,
            seed=settings.seed,
        )
        report.write(workdir, target, drawn)
    return report.RESULTS


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
