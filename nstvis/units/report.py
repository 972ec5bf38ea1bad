"""What a survey of units leaves: an atlas, its table, and contact sheets."""

import dataclasses
import functools
import gc
import hashlib
import logging
import math
import pathlib
from collections.abc import Mapping

import numpy as np

from nstvis import devices, images
from nstvis.runs import files
from nstvis.runs.progress import track
from nstvis.units import (
    atlas_json,
    contact_sheets,
    drawing,
    histograms,
    maxima,
    names,
    scan,
    scan_file,
    verify,
)
from nstvis.units.atlas_writer import Draft, finished
from nstvis.units.drawing import Drawing
from nstvis.units.explanations import Explanations, Findings
from nstvis.units.kept_images import KeptImages
from nstvis.units.measurements import Finding
from nstvis.units.patches import Images
from nstvis.units.sprites import Sprites
from nstvis.units.table import Layer, Table, save

logger = logging.getLogger(__name__)

RESULTS = ["index.html", "sheets", "units.npz", "scan.npz"]
_VERSION = 1  # of what is drawn: other drafts are not gone on with


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """How a scan is drawn.

    Attributes:
        rule: For ReLUs, of the attributions; none if empty.
        explain: Whether units are explained; see `explanations`.
        concepts: A file of concepts that units are named by.
        batch: Images that are computed together; fewer where they are large.
        workers: Processes that prepare images.
        seed: Of the choice of representative units.
    """

    rule: str
    explain: bool
    concepts: str
    batch: int
    workers: int
    seed: int


def write(workdir: pathlib.Path, target: scan.Target, settings: Settings) -> None:
    """Verifies and draws a scan, and leaves `RESULTS`.

    After an interruption, the same call goes on from the last file that was written.

    Args:
        workdir: Has `scan.npz`.
        target: What was scanned.
        settings: How it is drawn.

    Raises:
        Interrupted: By a signal.
        ValueError: The patches are not what their images give, or the file of concepts
            fits none of the images.
        OSError: A file cannot be read or written.
    """
    key = _key(workdir / "scan.npz", settings)
    whole = finished(workdir, key, ["sheets"])
    if whole and all((workdir / name).exists() for name in RESULTS):
        return
    draft = Draft(workdir, key)
    state, about = scan_file.load(workdir / "scan.npz")[0], target.about
    # Not those of each class, which are the larger part, and are not drawn; a view would
    # keep them.
    none = maxima.Best(*(x[:0].copy() for x in state.by_class))
    state = state._replace(by_class=none)
    candidates = scan.layers(target, state)
    top, scanned = maxima.Best(*(part[0] for part in state.top)), int(state.images)
    del state
    indices = np.unique(top.image[top.image != maxima.SENTINEL])
    pictures = KeptImages(target.sources, about.size, draft.work / "images", indices)
    units = sum(about.layers.values())
    logger.info("drawing %d units from %d images", units, len(indices))
    network, note = (target.forward, target.params), draft.work / "verified"
    batch = drawing.fitting(*network, about.size, settings.batch)
    devices.give_memory_back()  # what was read of the scan, and is not drawn
    verify.verify(*network, about.layers, top, pictures, batch, note)
    devices.give_memory_back()
    drawn = Drawing(draft, target, candidates, pictures)
    layers = drawn.crop()
    if settings.rule:
        drawn.attribute(layers, settings.rule, batch)
        devices.give_memory_back()
    classes = names.of_logits(target)
    _write_sheets(draft, layers, drawn, settings.rule, settings.seed, classes)
    findings: Findings = {"class": classes} if classes else {}
    if settings.explain:
        given = workdir, draft, target, layers, pictures, drawn
        asked = batch, settings.workers, settings.concepts, settings.seed
        explained = Explanations(*given, *asked)
        findings |= explained.find()
    gc.collect()  # traced programs are in reference cycles
    devices.give_memory_back()
    best = scan_file.load(workdir / "scan.npz")[0].by_class
    devices.give_memory_back()
    examples = _examples(best, drawn.examples, pictures)
    table = _table(target, scanned, layers, examples)
    table = dataclasses.replace(table, findings=findings)
    save(workdir / "units.npz", table, scan.ByClass(target, best))
    del best  # the larger part
    devices.give_memory_back()
    samples = findings.get("samples", {})
    for number, (name, layer) in enumerate(layers.items()):
        more = samples[name]["image"] if name in samples else ()
        examples, shown = table.examples, draft.pictures
        atlas_json.write_layer(draft.folder, number, layer, examples, shown, more)
    draft.publish(table, drawn.grids)
    finished(workdir, key, ["sheets"])


def _key(scan: pathlib.Path, settings: Settings) -> str:
    """Hashes what a drawing depends on."""
    digest = hashlib.sha256(repr((_VERSION, settings)).encode())
    if settings.concepts:
        digest.update(pathlib.Path(settings.concepts).read_bytes())
    digest.update(scan.read_bytes())
    return digest.hexdigest()


def _examples(
    by_class: maxima.Best,
    shown: Mapping[int, tuple[str, int]],
    pictures: Images,
) -> dict[int, tuple[str, int]]:
    """Returns id and label of all images that are ranked, in their order.

    Args:
        by_class: Each class's best images, whose labels are known by that.
        shown: What is known of those that are shown.
        pictures: Where the images are.
    """
    best = [np.unique(images) for images in by_class.image]
    indices = np.concatenate([*best, [*shown]]).astype(np.int64)
    of_classes = np.repeat(np.arange(len(best)), [len(images) for images in best])
    every, first = np.unique(indices, return_index=True)
    labels = np.append(of_classes, [-1] * len(shown))[first]
    return {
        index: shown[index] if index in shown else (pictures.id(index), label)
        for index, label in zip(every.tolist(), labels.tolist(), strict=True)
        if index != maxima.SENTINEL
    }


def _table(
    target: scan.Target,
    images: int,
    layers: Mapping[str, Layer],
    examples: Mapping[int, tuple[str, int]],
) -> Table:
    """Returns what was found, with the layers' top-activating patches as they are."""
    about, asked = target.about, target.about.preprocessing
    parts = [f"{part['dataset']} {part['split']}" for part in about.parts]
    return Table(
        layers=layers,
        fields={name: _field(target, name) for name in layers},
        classes=about.classes,
        examples=examples,
        edges=histograms.edges(),
        images=images,
        size=about.size,
        about={
            "model": about.model,
            "weights": about.weights,
            "dataset": ", ".join(parts),
        }
        | ({} if asked == "auto" else {"preprocessing": asked}),
    )


def _field(target: scan.Target, layer: str) -> tuple[int, int, int]:
    """Returns height and width of a layer's largest fields, and their stride."""
    fields = target.fields[layer]
    sizes = [fields.size(unit) for unit in range(target.about.layers[layer])]
    height, width = map(max, zip(*sizes, strict=True))
    return height, width, fields.stride


def _write_sheets(
    draft: Draft,
    layers: Mapping[str, Layer],
    drawn: Drawing,
    rule: str,
    seed: int,
    classes: Mapping[str, Finding],
) -> None:
    """Writes a page of each layer's nine representative units, and one of all."""
    folder = draft.work / "sheets"
    folder.mkdir(exist_ok=True)
    for number, name in track(enumerate(layers), len(layers), "drawing sheets"):
        grid = drawn.grids[name]
        parts = [
            Sprites(functools.partial(draft.sprite, number, title=title), grid)
            for title in dict.fromkeys([rule, ""])
        ]
        stem, units = name.replace("/", "_"), len(layers[name].mean)
        everything = folder / f"{stem}_all.jpg"
        if everything.exists():
            continue
        labels = [f"{name}:{unit}" for unit in range(units)]
        if name in classes:
            labels = [f"{x} {y}" for x, y in zip(labels, classes[name]["name"])]
        nine = contact_sheets.representative(layers[name], parts[-1], 9, seed)
        if nine:
            page = contact_sheets.sheet(labels, parts, nine, 64, 3)
            images.write(folder / f"{stem}.png", page)
        # Or a page of thousands of units would take more than the atlas.
        side = 32 if units <= 1024 else 16
        columns = math.ceil(math.sqrt(units))
        page = contact_sheets.sheet(labels, parts, range(units), side, columns)
        with files.replacing(everything) as file:
            page.save(file, "JPEG", quality=80)
