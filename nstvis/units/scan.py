"""A scan: a network, the images it sees, and the resumable pass over them."""

import dataclasses
import functools
import itertools
import logging
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np

from nstvis import data, devices, models, pipeline
from nstvis.runs.checkpoints import Checkpoints
from nstvis.runs.progress import Progress
from nstvis.runs.registry import unknown
from nstvis.units import maxima, scan_file
from nstvis.units.receptive_fields import Fields, receptive_fields
from nstvis.units.scan_file import About
from nstvis.units.table import Layer, RankedPatches

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Target:
    """A network and the images that are scanned with it."""

    forward: models.Forward
    params: models.Params
    sources: Sequence[data.Source]
    about: About

    @functools.cached_property
    def fields(self) -> Mapping[str, Fields]:
        """The receptive fields of each layer's units, by layer."""
        size = self.about.size
        return receptive_fields(self.forward, self.params, size, size)


def target(
    *,
    model: str,
    weights: str,
    dataset: str,
    split: str,
    data_dir: str,
    size: int,
    layers: Sequence[str],
    k: int,
    patches: int,
    deduplicate: bool,
    per_class: int,
    preprocessing: str = "auto",
    as_stored: bool = False,
    network: tuple[models.Forward, models.Params] | None = None,
) -> Target:
    """Loads a network and a data set by name.

    The arguments are the fields of `survey.Settings`, but for these.

    Args:
        layers: Names; all if empty, after the ReLU where there is one.
        patches: Peaks of one image that may be among a unit's top.
        as_stored: As for `data.load`.
        network: What `models.load` would load, if it is there already.

    Raises:
        ValueError: No such network, weights, layer, data set or split.
        OSError: A file does not exist, or a download failed.
    """
    source = data.load(dataset, split, data_dir, as_stored)
    forward, params = network or models.load(
        model, weights, preprocessing=preprocessing
    )
    part = {"dataset": dataset, "split": split, "data_dir": data_dir}
    about = About(
        model=model,
        weights=weights,
        network=scan_file.network_hash(forward, params, size),
        layers=_layers(model, forward, params, size, layers),
        size=size,
        pool=k * (2 if deduplicate else 1),
        k=k,
        per_class=per_class,
        patches=patches,
        deduplicate=deduplicate,
        classes=list(source.classes),
        preprocessing=preprocessing,
        as_stored=as_stored,
        parts=[part | {"images": len(source), "hash": data.source_hash(source)}],
    )
    return Target(forward, params, [source], about)


def target_of(about: About) -> Target:
    """Loads again what was scanned.

    Raises:
        ValueError: The network or the images have changed.
    """
    forward, params = models.load(
        about.model, about.weights, preprocessing=about.preprocessing
    )
    network = scan_file.network_hash(forward, params, about.size)
    if network != about.network:
        raise ValueError(
            f"{about.model} with the weights {about.weights} is not the network that"
            f" was scanned: {network}, not {about.network}"
        )
    sources = []
    for part in about.parts:
        place = part["dataset"], part["split"], part["data_dir"]
        sources.append(data.load(*place, about.as_stored))
        images = data.source_hash(sources[-1])
        if images != part["hash"]:
            raise ValueError(
                f"{part['dataset']} {part['split']} is not what was scanned: {images},"
                f" not {part['hash']}"
            )
    return Target(forward, params, sources, about)


def _layers(
    model: str,
    forward: models.Forward,
    params: models.Params,
    size: int,
    chosen: Sequence[str],
) -> dict[str, int]:
    """Returns how many units each of the chosen layers has, in the network's order."""
    units = models.units(forward, params, size)
    for name in chosen:
        if name not in units:
            raise ValueError(unknown(f"layer of {model}", name, units))
    # Where a layer has a ReLU, its units are what comes after; pooling has none.
    after = [name for name in units if f"{name}_pre" in units]
    every = {*after, list(units)[-1]} if after else set(units)
    return {name: units[name] for name in units if name in (chosen or every)}


def run(
    target: Target,
    workdir: pathlib.Path,
    *,
    batch: int,
    workers: int,
    checkpoint_every: float,
) -> maxima.State:
    """Scans, or resumes the same scan.

    Args:
        target: What to scan.
        workdir: Gets `checkpoints/`, and `damaged.txt` if there are such images.
        batch: Images in a batch of all devices.
        workers: Processes that prepare images; 0 for threads of this one.
        checkpoint_every: Seconds between two checkpoints.

    Returns:
        What is known of all images, on every host.

    Raises:
        Interrupted: By a signal to any host, on all of them after the same step.
        ValueError: No image can be read.
        FloatingPointError: An activation is no finite number.
    """
    size, source = target.about.size, target.sources[0]
    damaged = pipeline.Damaged(workdir / "damaged.txt")
    images = iter(
        pipeline.evaluation(source, size, batch, damaged=damaged, workers=workers)
    )
    scan, state = _started(target)
    steps = -(-len(source) // batch)
    shape = pipeline.shapes(batch, size)["image"]
    cost = devices.flops(jax.jit(target.forward), target.params, shape)
    checkpoints = Checkpoints(workdir, checkpoint_every)
    done = checkpoints.latest()
    with checkpoints, Progress([cost] * steps, done) as progress:
        saved = checkpoints.restore(scan.saved(state), data=images)
        state = scan.restored(saved, state)
        del saved  # of which the scan has copies
        devices.give_memory_back()
        for step in range(done + 1, steps + 1):
            part = devices.divided(next(images), scan.mesh)
            jax.block_until_ready(state)  # or batches would queue up
            state = scan.step(state, target.params, part)
            wish = progress.interrupted or int(checkpoints.due())
            wish = devices.agreed(wish, step)
            if wish:
                checkpoints.save(step, scan.saved(state), data=images)
            progress.show(step, f"{min(step * batch, len(source))} images")
            if wish > 1:  # the number of a signal
                break
        # Either all hosts stop here, or none does: the rest takes all of them.
        progress.interrupted = devices.agreed(progress.interrupted, 0)
    if skipped := len(damaged.ids()):
        logger.warning("%d damaged images were skipped: %s", skipped, damaged.path)
    devices.give_memory_back()  # what batches took, before another program is compiled
    return _checked(scan.gathered(state), source)


def _started(target: Target) -> tuple[maxima.Scan, maxima.State]:
    """Returns the step for all devices, and the state before the first image."""
    about = target.about
    reaches = tuple((name, _reach(target, name)) for name in about.layers)
    scan = _compiled(target.forward, reaches, about.patches)
    state = scan.start(
        sum(about.layers.values()),
        pool=about.pool,
        k=about.k,
        classes=len(about.classes),
        per_class=about.per_class,
    )
    return scan, state


@functools.lru_cache(1)
def _compiled(
    forward: models.Forward,
    reaches: Sequence[tuple[str, tuple[int, int]]],
    patches: int,
) -> maxima.Scan:
    """Returns the step; one program for all weights of a network."""
    return maxima.Scan(forward, dict(reaches), patches, devices.mesh())


def _checked(state: maxima.State, source: data.Source) -> maxima.State:
    if not state.images:
        raise ValueError("no image can be read")
    if state.broken != maxima.SENTINEL:
        id = source[int(state.broken)].id
        raise FloatingPointError(f"an activation for {id} is not a finite number")
    return state


def _reach(target: Target, layer: str) -> tuple[int, int]:
    """Returns how far from a peak a patch overlaps its own by half, in positions."""
    fields = target.fields[layer]
    if not target.about.deduplicate or not fields.stride:
        return 0, 0
    height, width = fields.size(0)
    return height // 2 // fields.stride, width // 2 // fields.stride


def layers(target: Target, state: maxima.State) -> dict[str, Layer]:
    """Splits a state into layers, with all candidates for the top; in NumPy."""
    seen = np.where(state.class_images, state.class_images, np.nan)[:, None]
    top = _only_list(state.top)
    least = _only_list(state.least._replace(score=-state.least.score))
    result, first = {}, 0
    for name, count in target.about.layers.items():
        units, fields = slice(first, first + count), target.fields[name]
        first += count
        result[name] = Layer(
            top=_ranked(top, units, fields),
            least=_ranked(least, units, fields),
            by_class=_ranked(state.by_class, units, fields),
            mean=state.mean[units].astype(np.float32),
            std=np.sqrt(state.deviation[units] / state.images).astype(np.float32),
            sparsity=(state.inactive[units] / state.images).astype(np.float32),
            histogram=state.histogram[:, units].T.astype(np.int64),
            class_mean=(state.class_sum[:, units] / seen).T.astype(np.float32),
        )
    return result


class ByClass(Mapping[str, RankedPatches]):
    """Each class's best images in every layer, which are made when a layer is asked for.

    Of a thousand classes they take more memory than all else.

    Args:
        target: What was scanned.
        best: Each class's best images, `[classes, n, units]`.
    """

    def __init__(self, target: Target, best: maxima.Best):
        self._target, self._best = target, best

    def __getitem__(self, name: str) -> RankedPatches:
        counts = self._target.about.layers
        first = sum(counts[x] for x in itertools.takewhile(lambda x: x != name, counts))
        units = slice(first, first + counts[name])
        joined: dict[str, np.ndarray] = {}
        for i in range(0, max(1, len(self._best.score)), 10):
            some = maxima.Best(*(part[i : i + 10] for part in self._best))
            made = _ranked(some, units, self._target.fields[name])
            for key, part in vars(made).items():
                shape = len(part), len(self._best.score), *part.shape[2:]
                whole = joined.setdefault(key, np.empty(shape, part.dtype))
                whole[:, i : i + 10] = part
        return RankedPatches(**joined)

    def __iter__(self) -> Iterator[str]:
        return iter(self._target.about.layers)

    def __len__(self) -> int:
        return len(self._target.about.layers)


def _only_list(best: maxima.Best) -> maxima.Best:
    return maxima.Best(*(part[0] for part in best))


def _ranked(best: maxima.Best, units: slice, fields: Fields) -> RankedPatches:
    """Turns lists `[..., n, units]` into patches `[units, ..., n]`."""
    score, image, flat = (np.moveaxis(part[..., units], -1, 0) for part in best)
    missing = image == maxima.SENTINEL
    position = np.stack(np.divmod(np.where(missing, 0, flat), fields.columns), -1)
    channel = np.arange(len(score)).reshape(-1, *[1] * (score.ndim - 1))
    return RankedPatches(
        score=np.where(missing, 0, score),
        image=np.where(missing, -1, image),
        position=position.astype(np.int32),
        box=fields.boxes(np.broadcast_to(channel, score.shape), position),
    )
