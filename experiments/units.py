r"""Finds the image patches that activate every unit of every layer most.

    python launch.py --experiment=units
    python launch.py --experiment=units --config.dataset=tiny_imagenet \
        --config.data_dir=FOLDER_OF_THE_ARCHIVE
    python launch.py --experiment=units --config.dataset=folder:PHOTOS \
        --config.model=alexnet --config.weights=torchvision --config.size=224
    python launch.py --experiment=units --config.merge=runs/a,runs/b

Zeiler & Fergus (2013), the simple way of Andrew Ng's lecture: scan a data set through
the network once, and for every unit cut out the nine patches, at its receptive field,
that activate it most. Leaves an atlas to open in a browser (`index.html`), a page of
nine units for each layer and one of all (`sheets/`), the numbers (`units.npz`, read by
`nstvis.units.atlas`), and `scan.npz`, which `--config.merge` takes. The first command
takes four minutes on two cores of an AMD EPYC (Zen 4), most of them for the deconvnet
pictures of 2,888 units; the second nine minutes, at 350 images a second.
"""

import dataclasses
import io
import logging
import math
import pathlib
import sys
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from PIL import Image
from tqdm import tqdm

from nstvis import devices, images
from nstvis.probes import attribution
from nstvis.runs.registry import unknown
from nstvis.units import (
    atlas,
    attributions,
    contact_sheets,
    maxima,
    patches,
    scan,
    scan_file,
)
from nstvis.units.table import Layer, Table, save

logger = logging.getLogger(__name__)

SHOWN = 224  # pixels, at most, of the side of a whole image in the atlas


@dataclasses.dataclass(kw_only=True)
class Config:
    """Which units, and which images."""

    # Network: a name, or the path of a file like those in nstvis/models/.
    model: str = "alexnet_small"
    # bundled, torchvision, random or a path.
    weights: str = "bundled"
    # Data set: primitives, tiny_imagenet, tfds:NAME or folder:PATH.
    dataset: str = "primitives"
    # Its part, such as train or train[:1000].
    split: str = "train"
    # Where the data set's files are; its own default if empty.
    data_dir: str = ""
    # Side of the images, of which the centre is taken, in pixels.
    size: int = 64
    # Layers, such as conv1,conv5; all if empty: after the ReLU where there is one.
    layers: str = ""
    # Patches of a unit.
    k: int = 9
    # Patches of one image that may be a unit's.
    patches_per_image: int = 1
    # Leaves out patches that look like one that is there already.
    deduplicate: bool = True
    # Backward pictures beside the patches: deconvnet, guided or gradient; none if empty.
    attribution: str = "deconvnet"
    # Strongest images of each class to keep in units.npz.
    per_class: int = 1
    # Images in a batch.
    batch: int = 128
    # Finished scans to merge instead of scanning, such as runs/a,runs/b.
    merge: str = ""
    # Seed of the choice of nine units for a page.
    seed: int = 0
    # Processes that prepare images; 0 for threads of this one.
    workers: int = 0
    # Seconds between two checkpoints.
    checkpoint_every: float = 60.0


def run(config: Config, workdir: pathlib.Path) -> int:
    """Scans, or goes on where the same command was interrupted, and draws."""
    if (workdir / "index.html").exists():
        logger.info("finished already: %s", workdir / "index.html")
        return 0
    _check(config)
    file = workdir / "scan.npz"
    if config.merge:
        paths = [pathlib.Path(part) / "scan.npz" for part in config.merge.split(",")]
        state, about = scan_file.merge(paths)
        subject = scan.target_of(about)
        _check_backward(config, subject)
        scan_file.save(file, state, about)
    else:
        subject = _subject(config)
        _check_backward(config, subject)
        scan_file.refuse_changed(workdir / "scan.json", subject.about)
        if not file.exists():
            state, signal = scan.run(
                subject,
                workdir,
                batch=config.batch,
                workers=config.workers,
                checkpoint_every=config.checkpoint_every,
            )
            if state is None:
                logger.info(
                    "the same command with --workdir=%s goes on from there", workdir
                )
                return 128 + signal
            if devices.is_lead():
                scan_file.save(file, state, subject.about)
    if devices.is_lead():
        state, _ = scan_file.load(file)
        _prove(config, subject, state)
        _draw(config, workdir, subject, state)
    return 0


def _check(config: Config) -> None:
    if config.attribution and config.attribution not in attribution.RULES:
        raise ValueError(
            unknown("backward picture", config.attribution, attribution.RULES)
        )
    least = dict.fromkeys(("size", "k", "patches_per_image", "batch", "per_class"), 1)
    for name, number in (least | {"workers": 0}).items():
        if getattr(config, name) < number:
            raise ValueError(f"{name} should be at least {number}")


def _check_backward(config: Config, subject: scan.Target) -> None:
    """Refuses a network that the rule does not apply to, before all the work."""
    if not config.attribution:
        return
    size = subject.about.size
    image = jax.ShapeDtypeStruct((1, size, size, 3), "float32")
    try:
        jax.eval_shape(
            attribution.ruled(subject.forward, config.attribution),
            subject.params,
            image,
        )
    except ValueError as error:
        raise ValueError(f"{error}; --config.attribution= does without") from error


def _subject(config: Config) -> scan.Target:
    return scan.target(
        model=config.model,
        weights=config.weights,
        dataset=config.dataset,
        split=config.split,
        data_dir=config.data_dir,
        size=config.size,
        layers=[*map(str.strip, config.layers.split(","))] if config.layers else (),
        k=config.k,
        patches=config.patches_per_image,
        deduplicate=config.deduplicate,
        per_class=config.per_class,
    )


def _prove(config: Config, subject: scan.Target, state: maxima.State) -> None:
    """Fetches the winners again, and computes their activations again."""
    proof = patches.verify(
        subject.forward,
        subject.params,
        subject.about.layers,
        maxima.Best(*(part[0] for part in state.top)),
        patches.Pictures(subject.sources, subject.about.size),
        config.batch,
    )
    with _bar(next(proof), "winners proved") as bar:
        for proved in proof:
            bar.update(proved - bar.n)


def _draw(
    config: Config, workdir: pathlib.Path, subject: scan.Target, state: maxima.State
) -> None:
    """Writes the table, the sheets and the atlas."""
    about, layers, drawn = subject.about, scan.layers(subject, state), {}
    pictures = patches.Pictures(subject.sources, about.size)
    with _bar(sum(about.layers.values()), "units drawn") as bar:
        for name, layer in layers.items():
            picked, cut = [], []
            for own, patch in patches.cut(
                layer, subject.fields[name], pictures, about.k, about.deduplicate
            ):
                picked.append(own)
                cut.append(patch)
                bar.update()
            top = layer.top.picked(picked, about.k)
            layers[name] = dataclasses.replace(layer, top=top)
            drawn[name] = np.stack(cut)
    projected = _project(config, subject, layers, drawn, pictures)
    table = Table(
        layers=layers,
        fields={name: _field(subject, name) for name in layers},
        classes=about.classes,
        examples=_examples(layers, pictures),
        edges=maxima.edges(),
        images=int(state.images),
        size=about.size,
        about={
            "model": about.model,
            "weights": about.weights,
            "dataset": ", ".join(f"{p['dataset']} {p['split']}" for p in about.parts),
        },
    )
    save(workdir / "units.npz", table)
    _write_sheets(workdir / "sheets", layers, drawn, projected, config)
    panels = {config.attribution: projected} if projected else {}
    atlas.write(workdir, table, drawn, _small(layers, pictures), panels)
    for name in ("index.html", "sheets", "units.npz", "scan.npz"):
        logger.info("%s", workdir / name)


def _project(
    config: Config,
    subject: scan.Target,
    layers: Mapping[str, Layer],
    drawn: Mapping[str, np.ndarray],
    pictures: patches.Pictures,
) -> dict[str, dict[int, np.ndarray]]:
    """The patches' backward pictures, by layer and unit; none if none are wanted."""
    if not config.attribution:
        return {}
    network = attribution.ruled(subject.forward, config.attribution)
    projected = {name: np.full_like(drawn[name], images.GREY) for name in layers}
    winners = sum((layer.top.image >= 0).sum() for layer in layers.values())
    with _bar(int(winners), f"pictures by {config.attribution}") as bar:
        for name, layer in layers.items():
            for units, ranks, cells in attributions.project(
                network,
                subject.params,
                name,
                layer,
                subject.fields[name],
                pictures,
                config.batch,
            ):
                projected[name][units, ranks] = cells
                bar.update(len(cells))
    return {name: dict(enumerate(cells)) for name, cells in projected.items()}


def _bar(total: int, what: str) -> tqdm:
    bar = "{desc} {n_fmt}/{total_fmt} {bar:8} {remaining} left"
    quiet = not sys.stderr.isatty()
    return tqdm(total=total, desc=what, disable=quiet, leave=False, bar_format=bar)


def _write_sheets(
    folder: pathlib.Path,
    layers: Mapping[str, Layer],
    drawn: Mapping[str, np.ndarray],
    projected: Mapping[str, Mapping[int, np.ndarray]],
    config: Config,
) -> None:
    folder.mkdir(exist_ok=True)
    for name, layer in layers.items():
        units = len(layer.mean)
        nine = contact_sheets.representative(layer, drawn[name], 9, config.seed)
        every = list(range(units))
        stem = name.replace("/", "_")
        pages = {f"{stem}_all.png": (every, 32, math.ceil(math.sqrt(units)))}
        if nine:
            pages[f"{stem}.png"] = nine, 64, 3
        for file, how in pages.items():
            page = contact_sheets.sheet(name, drawn[name], *how, projected.get(name))
            images.write(folder / file, page)


def _field(subject: scan.Target, layer: str) -> tuple[int, int, int]:
    fields = subject.fields[layer]
    sizes = np.array([fields.size(i) for i in range(subject.about.layers[layer])])
    return int(sizes[:, 0].max()), int(sizes[:, 1].max()), fields.stride


def _ranked(layers: Mapping[str, Layer], parts: Sequence[str]) -> np.ndarray:
    """Indices of all images that won anything in those parts."""
    all = [
        getattr(layer, part).image.ravel()
        for layer in layers.values()
        for part in parts
    ]
    found = np.unique(np.concatenate(all))
    return found[found >= 0]


def _examples(
    layers: Mapping[str, Layer], pictures: patches.Pictures
) -> dict[int, tuple[str, int]]:
    found = {}
    for index in _ranked(layers, ("top", "least", "by_class")):
        example = pictures.example(int(index))
        found[int(index)] = example.id, example.label
    return found


def _small(layers: Mapping[str, Layer], pictures: patches.Pictures) -> dict[int, bytes]:
    """The winners' whole images, as the atlas shows them."""
    found = {}
    for index in _ranked(layers, ("top", "least")):
        file = io.BytesIO()
        image = Image.fromarray(pictures[index])
        image.thumbnail((SHOWN, SHOWN))
        image.save(file, "WEBP", quality=85)
        found[int(index)] = file.getvalue()
    return found
