"""How units change from epoch to epoch of a training (Zeiler & Fergus 2013, Figure 4).

Measures of units are one number for each unit, NaN where it would mean nothing.
"""

import dataclasses
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from nstvis import correlation, devices, models
from nstvis import weights as weights_io
from nstvis.runs.config import Dataset
from nstvis.training.loop import TrainingRun
from nstvis.units import maxima, patch_attributions, patches, scan, scan_file
from nstvis.units.table import Layer, RankedPatches

logger = logging.getLogger(__name__)


class Epoch(NamedTuple):
    """What was found at the end of an epoch."""

    number: int
    params: models.Params
    layers: Mapping[str, Layer]
    # Layer to each unit's highest activation for sampled images, `[images, units]`.
    activations: Mapping[str, np.ndarray]


def targets(
    training: TrainingRun,
    *,
    dataset: str = "",
    split: str = "",
    data_dir: str = "",
    layers: Sequence[str] = (),
) -> dict[int, scan.Target]:
    """Finds what to scan for each kept epoch of a training: all but the weights is equal.

    Args:
        training: The training, finished or not; its averaged weights are scanned.
        dataset: The images; those that it learns from if empty.
        split: Their split; the one that it learns from, or `train`, if empty.
        data_dir: Folder of the data set's files; where they were if empty.
        layers: Names; all whose units see a part of the image if empty.

    Returns:
        Epoch to target.

    Raises:
        ValueError: No epoch was kept, or there is no such layer, data set or split.
    """
    numbers = training.kept_epochs()
    if not numbers:
        raise ValueError(f"{training.workdir} keeps no checkpoint of a whole epoch yet")
    if len(numbers) == 1:
        logger.warning("only epoch %d was kept: nothing to compare", *numbers)
    weights = [_on_one_device(training.average_after(number)) for number in numbers]
    learned = training.settings
    images = Dataset() if dataset else learned
    first = scan.target(
        model=learned.model,
        weights="",
        dataset=dataset or images.dataset,
        split=split or images.split,
        data_dir=data_dir or images.data_dir,
        size=learned.size,
        layers=layers,
        k=9,
        patches=1,
        deduplicate=False,
        per_class=1,
        as_stored=weights_io.as_stored(learned.weights, images.photographs),
        network=(training.forward, weights[0]),
    )
    scanned = first.about.layers
    partial = {name: n for name, n in scanned.items() if first.fields[name].stride}
    if partial and not layers:
        scanned = partial

    def target(number: int, params: models.Params) -> scan.Target:
        about = dataclasses.replace(
            first.about,
            weights=f"{training.workdir}, epoch {number}",
            network=scan_file.network_hash(first.forward, params, learned.size),
            layers=scanned,
        )
        return dataclasses.replace(first, params=params, about=about)

    return {n: target(n, params) for n, params in zip(numbers, weights, strict=True)}


def _on_one_device(params: models.Params) -> models.Params:
    return jax.device_put(jax.device_get(params))


def scanned(target: scan.Target, folder: pathlib.Path, batch: int) -> maxima.State:
    """Scans a target, or reads the scan that an earlier start left.

    Args:
        target: What to scan.
        folder: Gets `scan.npz`, and what `scan.run` leaves.
        batch: Images in a batch.

    Raises:
        Interrupted: It was asked to stop, and can be resumed.
        ValueError: The scan there is of another network or other images.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scan_file.refuse_changed(folder / "scan.json", target.about)
    path = folder / "scan.npz"
    if path.exists():
        return scan_file.load(path)[0]
    logger.info("scanning %s", target.about.weights)
    state = scan.run(target, folder, batch=batch, workers=0, checkpoint_every=60)
    if devices.is_lead():
        scan_file.save(path, state, target.about)
    return state


def epochs(
    targets: Mapping[int, scan.Target],
    states: Sequence[maxima.State],
    sample: int,
    batch: int,
) -> list[Epoch]:
    """Puts together what was found at the end of each epoch.

    Args:
        targets: Epoch to what was scanned.
        states: The scans.
        sample: How many images' activations are compared, evenly spaced in the data.
        batch: Images in a batch.
    """
    first = next(iter(targets.values()))
    images = _sample(first, sample)
    starts = range(0, len(images), batch)

    @jax.jit
    def highest(params: models.Params, images: Array) -> dict[str, Array]:
        activations = first.forward(params, images.astype(jnp.float32))
        maps = {name: activations[name] for name in first.about.layers}
        return {x: maxima.peaks(y, 1, (0, 0))[0][:, 0] for x, y in maps.items()}

    def epoch(number: int, params: models.Params, state: maxima.State) -> Epoch:
        parts = [jax.device_get(highest(params, images[i : i + batch])) for i in starts]
        activations = jax.tree.map(lambda *batches: np.concatenate(batches), *parts)
        return Epoch(number, params, scan.layers(first, state), activations)

    return [
        epoch(number, target.params, state)
        for (number, target), state in zip(targets.items(), states, strict=True)
    ]


def _sample(target: scan.Target, count: int) -> np.ndarray:
    """Images that are not damaged, uint8 `[images, size, size, 3]`."""
    pictures = patches.Images(target.sources, target.about.size)
    total, images = sum(map(len, target.sources)), []
    for index in np.linspace(0, total - 1, min(count, total)).astype(int):
        try:
            images.append(pictures[index])
        except ValueError as error:
            logger.warning("left out of the sample: %s", error)
    if not images:
        raise ValueError("all images of the sample are damaged")
    return np.stack(images)


def compare(epochs: Sequence[Epoch]) -> list[dict[str, Any]]:
    """Compares each layer at each epoch with the epoch before and with the last one.

    Returns:
        Rows of `layer`, `epoch`, `units`, `overlap_previous`,
        `rank_correlation_previous`, `overlap_last`, `rank_correlation_last` and `dead`.
    """
    return [
        {"layer": name, "epoch": epoch.number, "units": len(epoch.layers[name].mean)}
        | _agreement(name, epoch, before, "previous")
        | _agreement(name, epoch, epochs[-1], "last")
        | {"dead": int((epoch.layers[name].sparsity == 1).sum())}
        for name in epochs[0].layers
        for before, epoch in zip([None, *epochs], epochs, strict=False)
    ]


def _agreement(
    layer: str, epoch: Epoch, other: Epoch | None, suffix: str
) -> dict[str, float]:
    shares = correlations = np.array(np.nan)
    if other is not None:
        shares = overlap(
            activated(epoch.layers[layer].top), activated(other.layers[layer].top)
        )
        correlations = rank_correlation(
            epoch.activations[layer], other.activations[layer]
        )
    return {
        f"overlap_{suffix}": mean(shares),
        f"rank_correlation_{suffix}": mean(correlations),
    }


def activated(top: RankedPatches) -> np.ndarray:
    """Returns the images that do activate a unit, int `[units, k]`, -1 elsewhere.

    Where few do, the other top images are at 0, and merely the first ones of many.
    """
    return np.where(top.score > 0, top.image, -1)


def overlap(images: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Computes the share of each unit's images that are among the others.

    Args:
        images: Images by number, int `[units, k]`, each once, -1 where there is none.
        others: Likewise.

    Returns:
        `[units]`, 0 to 1; NaN where either has none.
    """
    known = images >= 0
    common = known & (images[:, :, None] == others[:, None]).any(2)
    both = known.any(1) & (others >= 0).any(1)
    return np.where(both, common.sum(1) / np.maximum(known.sum(1), 1), np.nan)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Spearman's: the correlation of the ranks, equal values sharing their mean rank.

    Args:
        a: Activations, `[images, units]`.
        b: Others for the same images.

    Returns:
        `[units]`, -1 to 1; NaN where either is the same for all images.
    """
    return correlation.spearman(a, b, axis=0)


def mean(numbers: np.ndarray) -> float:
    """Averages over the units that have a number; NaN if none has."""
    known = numbers[~np.isnan(numbers)]
    return float(known.mean()) if len(known) else float("nan")


def pictures(
    network: models.Forward,
    target: scan.Target,
    epoch: Epoch,
    layer: str,
    units: Sequence[int],
    batch: int,
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """Cuts out and attributes the top-activating patch of some units of a layer.

    Args:
        network: From `attribution.ruled`.
        target: What was scanned.
        epoch: The result.
        layer: The layer's name.
        units: Which units; those that are dead get no pictures.
        batch: Images in a batch.

    Returns:
        Unit to its patch's attribution and the patch, uint8 `[side, side, 3]`.
    """
    record, fields = epoch.layers[layer], target.fields[layer]
    images = patches.Images(target.sources, target.about.size)
    index = np.full_like(record.top.image, -1)
    index[units, 0] = activated(record.top)[units, 0]
    if (index < 0).all():
        return {}
    only = dataclasses.replace(record.top, image=index)
    record = dataclasses.replace(record, top=only)
    cut = [drawn[0] for _, drawn in patches.pick(record, fields, images, 1, False)]
    return {
        int(unit): (attributed, cut[unit])
        for numbers, _, drawn in patch_attributions.project(
            network, epoch.params, layer, record, fields, images, batch
        )
        for unit, attributed in zip(numbers, drawn, strict=True)
    }
