r"""Finds the image patches that activate every unit of every layer most.

    python launch.py --experiment=units
    python launch.py --experiment=units --config.dataset=tiny_imagenet \
        --config.split=train --config.data_dir=FOLDER_OF_THE_ARCHIVE
    python launch.py --experiment=units --config.dataset=folder:PHOTOS \
        --config.model=alexnet --config.weights=torchvision --config.size=224
    python launch.py --experiment=units --config.merge=runs/a,runs/b

Zeiler & Fergus (2013), the simple way of Andrew Ng's lecture: scan a data set through
the network once, and for every unit cut out the nine patches, at its receptive field,
that activate it most. Leaves an atlas to open in a browser (`index.html`), a page of
nine units for each layer and one of all (`sheets/`), the numbers (`units.npz`, read by
`nstvis.units.atlas`), and `scan.npz`, which `--config.merge` takes.
"""

import dataclasses
import functools
import io
import logging
import math
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from PIL import Image
from tqdm import tqdm

from nstvis import batches, data, devices, images, models, runs
from nstvis.errors import unknown
from nstvis.units import atlas, maxima, patches, scan, sheets
from nstvis.units.receptive_fields import Fields, receptive_fields
from nstvis.units.table import Layer, Table, Winners, save

logger = logging.getLogger(__name__)

DRAWN = 96  # pixels, at most, of a patch's side in the atlas
SHOWN = 224  # of an image's


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
    suppress: bool = True
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
    file = workdir / "scan.npz"
    if config.merge:
        parts = [pathlib.Path(part) / "scan.npz" for part in config.merge.split(",")]
        state, about = scan.merge(parts)
        job = Job.of(about)
        scan.save(file, state, about)
    else:
        job = Job.asked(config)
        scan.refuse_changed(workdir / "scan.json", job.about)
        if not file.exists():
            state, signal = _scanned(config, workdir, job)
            if signal:
                logger.info("the same command with --workdir=%s goes on", workdir)
                return 128 + signal
            state = _checked(maxima.gathered(state), job)
            if not devices.is_lead():
                return 0
            scan.save(file, state, job.about)
        state, _ = scan.load(file)
    _draw(config, workdir, job, state)
    return 0


class Job:
    """The network, the images, and what there is to know of both."""

    def __init__(
        self,
        forward: models.Forward,
        params: models.Params,
        sources: list[data.Source],
        about: scan.About,
    ):
        self.forward, self.params, self.sources = forward, params, sources
        self.about = about
        self.fields = receptive_fields(forward, params, about.size, about.size)

    @classmethod
    def asked(cls, config: Config) -> "Job":
        """What the flags say."""
        for name in ("size", "k", "patches_per_image", "batch"):
            if getattr(config, name) < 1:
                raise ValueError(f"{name} should be at least 1")
        source = data.load(config.dataset, config.split, config.data_dir)
        forward, params = models.load(config.model, config.weights)
        part = {
            name: getattr(config, name) for name in ("dataset", "split", "data_dir")
        }
        about = scan.About(
            model=config.model,
            weights=config.weights,
            network=scan.network_hash(forward, params, config.size),
            layers=_layers(config, forward, params),
            size=config.size,
            pool=config.k * (2 if config.suppress else 1),
            k=config.k,
            per_class=config.per_class,
            patches=config.patches_per_image,
            suppress=config.suppress,
            classes=list(source.classes),
            parts=[part | {"images": len(source), "hash": scan.source_hash(source)}],
        )
        return cls(forward, params, [source], about)

    @classmethod
    def of(cls, about: scan.About) -> "Job":
        """What was scanned, found again.

        Raises:
            ValueError: The network or the images have changed.
        """
        forward, params = models.load(about.model, about.weights)
        network, sources = scan.network_hash(forward, params, about.size), []
        if network != about.network:
            raise ValueError(
                f"{about.model} with the weights {about.weights} is not the network that"
                f" was scanned: {network}, not {about.network}"
            )
        for part in about.parts:
            name = part["dataset"], part["split"], part["data_dir"]
            sources.append(data.load(*name))
            if scan.source_hash(sources[-1]) != part["hash"]:
                raise ValueError(f"{' '.join(name)} has changed since it was scanned")
        return cls(forward, params, sources, about)

    def reach(self, layer: str) -> tuple[int, int]:
        """How far from a peak its patch overlaps by half, in positions."""
        fields = self.fields[layer]
        if not self.about.suppress or not fields.stride:
            return 0, 0
        height, width = fields.size(0)
        return height // 2 // fields.stride, width // 2 // fields.stride


def _layers(
    config: Config, forward: models.Forward, params: models.Params
) -> dict[str, int]:
    """Chosen layers, and how many units each has, in the network's order."""
    shapes: dict[str, int] = {}
    image = jax.ShapeDtypeStruct((1, config.size, config.size, 3), "float32")

    def trace(images: jax.Array) -> None:
        found = forward(params, images)
        shapes.update({name: x.shape[-1] for name, x in found.items()})

    jax.eval_shape(trace, image)
    if not config.layers:
        # Where a layer has a ReLU, its units are what comes after; pooling has none.
        after = [name for name in shapes if f"{name}_pre" in shapes]
        chosen = {*after, list(shapes)[-1]} if after else set(shapes)
        return {name: units for name, units in shapes.items() if name in chosen}
    chosen = config.layers.split(",")
    for name in chosen:
        if name not in shapes:
            raise ValueError(unknown(f"layer of {config.model}", name, shapes))
    return {name: units for name, units in shapes.items() if name in chosen}


def _scanned(
    config: Config, workdir: pathlib.Path, job: Job
) -> tuple[maxima.State, int]:
    """The state of all devices after all images, or after a signal, and its number."""
    about, source, mesh = job.about, job.sources[0], devices.mesh()
    reaches = {name: job.reach(name) for name in about.layers}
    compiled = maxima.Scan(job.forward, reaches, about.patches, mesh)
    state = compiled.start(
        sum(about.layers.values()),
        pool=about.pool,
        k=about.k,
        classes=len(about.classes),
        per_class=about.per_class,
    )
    images = iter(
        batches.evaluation(
            source,
            about.size,
            config.batch,
            damaged=batches.Damaged(workdir / "damaged.txt"),
            workers=config.workers,
        )
    )
    steps = -(-len(source) // config.batch)
    example = batches.shapes(config.batch, about.size)
    cost = devices.flops(jax.jit(job.forward), job.params, example["image"])
    checkpoints = runs.Checkpoints(workdir, config.checkpoint_every)
    done = checkpoints.latest()
    with (
        runs.interruptible() as interruption,
        checkpoints,
        runs.Progress([cost] * steps, done) as progress,
    ):
        state = checkpoints.restore(state, data=images)
        for step in range(done + 1, steps + 1):
            batch = devices.divided(next(images), mesh)
            jax.block_until_ready(state)  # or batches would queue up
            state = compiled.step(state, job.params, batch)
            wish = interruption.signal or int(checkpoints.due())
            wish = devices.agreed(wish, step)
            if wish:
                checkpoints.save(step, state, data=images)
            progress.show(step, f"{min(step * config.batch, len(source))} images")
            if wish > 1:
                return state, wish
    return state, 0


def _checked(state: maxima.State, job: Job) -> maxima.State:
    if not state.images:
        raise ValueError("no image can be read")
    if state.broken != maxima.NOBODY:
        id = job.sources[0][int(state.broken)].id
        raise FloatingPointError(f"an activation for {id} is not a finite number")
    return state


def _draw(config: Config, workdir: pathlib.Path, job: Job, state: maxima.State) -> None:
    """Proves the winners, and writes the table, the sheets and the atlas."""
    about, quiet = job.about, not sys.stderr.isatty()
    pictures = patches.Pictures(job.sources, about.size)
    top = maxima.Best(*(part[0] for part in state.top))
    logger.info("computing the winners' activations again")
    proof = patches.verify(
        job.forward, job.params, about.layers, top, pictures, config.batch
    )
    with tqdm(total=next(proof), unit=" images", disable=quiet, leave=False) as bar:
        for proved in proof:
            bar.update(proved - bar.n)
    layers, drawn = {}, {}
    found = scan.tabulated(state, about, job.fields)
    units = tqdm(
        total=sum(about.layers.values()), unit=" units", disable=quiet, leave=False
    )
    for name, layer in found.items():
        layers[name], drawn[name] = _cut(job, name, layer, pictures, units)
    units.close()
    table = Table(
        layers=layers,
        fields={name: _field(job.fields[name]) for name in layers},
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
    (workdir / "sheets").mkdir(exist_ok=True)
    for name, layer in layers.items():
        chosen = sheets.representative(layer, drawn[name], 9, config.seed)
        if chosen:
            page = sheets.sheet(name, drawn[name], chosen, 64, 3)
            images.write(workdir / "sheets" / f"{name}.png", page)
        every, columns = range(len(layer.mean)), math.ceil(len(layer.mean) ** 0.5)
        page = sheets.sheet(name, drawn[name], every, 32, columns)
        images.write(workdir / "sheets" / f"{name}_all.png", page)
    atlas.write(workdir, table, drawn, _small(layers, pictures))
    for name in ("index.html", "sheets", "units.npz", "scan.npz"):
        logger.info("%s", workdir / name)


def _cut(
    job: Job, name: str, layer: Layer, pictures: patches.Pictures, bar: Any
) -> tuple[Layer, np.ndarray]:
    """Picks each unit's patches; returns the layer with these alone, and the patches."""
    fields, k, top = job.fields[name], job.about.k, layer.top
    side = min(DRAWN, max(fields.size(0)))
    drawn = np.full((len(layer.mean), k, side, side, 3), patches.GREY, np.uint8)
    picked = np.zeros((len(layer.mean), k), np.int64)
    for unit in range(len(layer.mean)):

        @functools.cache
        def patch(rank: int, unit: int = unit) -> np.ndarray:
            rows, columns = fields.support(unit, *top.position[unit, rank])
            image = pictures[top.image[unit, rank]]
            cut = patches.crop(image, top.box[unit, rank], rows, columns)
            return patches.shrunk(cut, side)

        known = np.flatnonzero(top.image[unit] >= 0)
        ranks = list(range(min(k, len(known))))
        if job.about.suppress:
            candidates = [(top.image[unit, i], top.box[unit, i]) for i in known]
            ranks = patches.distinct(candidates, patch, k)
        # Where there are too few images, the pool's last places are free.
        picked[unit] = [*ranks, *[-1] * (k - len(ranks))]
        for place, rank in enumerate(ranks):
            drawn[unit, place] = patch(rank)
        bar.update()
    best = Winners(
        **{
            part.name: np.take_along_axis(
                value := getattr(top, part.name),
                picked.reshape(*picked.shape, *[1] * (value.ndim - 2)),
                1,
            )
            for part in dataclasses.fields(top)
        }
    )
    return dataclasses.replace(layer, top=best), drawn


def _field(fields: Fields) -> list[int]:
    return [*map(int, fields.size(0)), fields.stride]


def _winners(layers: Mapping[str, Layer], parts: Sequence[str]) -> np.ndarray:
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
    for index in _winners(layers, ("top", "least", "by_class")):
        example = pictures.example(int(index))
        found[int(index)] = example.id, example.label
    return found


def _small(layers: Mapping[str, Layer], pictures: patches.Pictures) -> dict[int, bytes]:
    """The winners' whole images, as the atlas shows them."""
    found = {}
    for index in _winners(layers, ("top", "least")):
        file = io.BytesIO()
        image = Image.fromarray(patches.shrunk(pictures[index], SHOWN))
        image.save(file, "WEBP", quality=85)
        found[int(index)] = file.getvalue()
    return found
