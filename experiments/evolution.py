r"""Shows how units come to look for what they look for, epoch by epoch.

    python launch.py --experiment=evolution
    python launch.py --experiment=evolution --config.run=runs/tiny_imagenet \
        --config.split=train[:10000] --workdir=runs/evolution

Zeiler & Fergus 2013 (arXiv:1311.2901), Figure 4. Reads the checkpoints that an
`--experiment=train` keeps, finished or not, or trains for a few epochs first. For every
epoch that was kept, the data set is scanned as in `--experiment=units`. The weights are
those that training leaves, too: averaged over the last steps, batch norm folded in.

Leaves `evolution.png`: a block for each layer, a row for each of some units, chosen at
random, and in each epoch the patch that activates the unit most, right of its deconvnet
picture. `evolution.csv` has for every layer and epoch, and `evolution_numbers.png` shows,

- overlap: the share of a unit's nine images that were among its nine in the epoch before,
  or are in the last one;
- rank correlation: Spearman's, of a unit's activations for the same images in both;
- dead units: those that no image of the scan activates.

The first two are means over the units that are alive in both epochs. The first command
takes two minutes on two cores of an AMD EPYC (Zen 4), its training included: after the
first of five epochs, conv1's units order images much as in the end (rank correlation
0.87), conv5's do not (0.39).
"""

import csv
import dataclasses
import io
import json
import logging
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from PIL import Image, ImageDraw, ImageFont

from experiments import train
from nstvis import devices, images, models
from nstvis.probes import attribution, evolution
from nstvis.runs.files import write_text
from nstvis.runs.workdir import claim
from nstvis.units import attributions, maxima, patches, scan, scan_file
from nstvis.units.contact_sheets import PAPER
from nstvis.units.table import Layer

logger = logging.getLogger(__name__)

SIDE = 56  # pixels of a patch as it is drawn

PANELS = {
    "Overlap of the nine\n– with the epoch before   ··· with the last": {
        "overlap_previous": "-",
        "overlap_last": ":",
    },
    "Rank correlation\n– with the epoch before   ··· with the last": {
        "rank_correlation_previous": "-",
        "rank_correlation_last": ":",
    },
    "Dead units": {"dead": "-"},
}

# What is learned if no run is named.
TRAINED = train.Config(split="train[:2000]", validation="", batch=32)


@dataclasses.dataclass(kw_only=True)
class Config:
    """Which training, and what is looked at."""

    # Workdir of an --experiment=train, finished or not; a new, small one if empty.
    run: str = ""
    # Data set to scan: primitives, tiny_imagenet, tfds:NAME or folder:PATH; if empty,
    # what was learned.
    dataset: str = ""
    # Its part, such as train[:1000]; if empty, what was learned, or another's train.
    split: str = ""
    # Where the data set's files are; if empty, where they were.
    data_dir: str = ""
    # Layers, such as conv1,conv5; if empty, all whose units see a part of the image.
    layers: str = ""
    # Units of each layer that are drawn.
    units: int = 8
    # Images, evenly spaced in the data set, whose order rank correlations compare.
    sample: int = 512
    # Seed of the choice of units.
    seed: int = 0
    # Images in a batch.
    batch: int = 128


class Epoch(NamedTuple):
    """What was found at the end of an epoch."""

    number: int
    params: models.Params
    layers: Mapping[str, Layer]
    # Layer to the highest activations for the sample, `[images, units]`.
    activations: Mapping[str, np.ndarray]


def run(config: Config, workdir: pathlib.Path) -> int:
    """Scans all epochs, or goes on where the same command was interrupted, and draws."""
    table = workdir / "evolution.csv"  # written last
    if table.exists():
        logger.info("finished already: %s", workdir / "evolution.png")
        return 0
    for name in ("units", "sample", "batch"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} should be at least 1")
    folder = pathlib.Path(config.run or workdir / "train")
    if not config.run:
        claim(folder, "train", TRAINED)
        if code := train.run(TRAINED, folder):
            return _stopped(code, workdir)
    learned = _learned(folder, config)
    training = train.Run(learned, folder)
    subjects = dict(_subjects(config, training, learned, folder))
    for epoch, subject in subjects.items():
        if code := _scan(subject, workdir / f"epochs/{epoch:02}", config.batch):
            return _stopped(code, workdir)
    if devices.is_lead():
        epochs = list(_epochs(config, subjects, workdir))
        subject = next(iter(subjects.values()))
        _draw(config, subject, epochs, workdir / "evolution.png")
        rows = compare(epochs)
        _plot(rows, workdir / "evolution_numbers.png")
        write_text(table, _text(rows))
        for name in ("evolution.png", "evolution_numbers.png", "evolution.csv"):
            logger.info("%s", workdir / name)
    return 0


def _stopped(code: int, workdir: pathlib.Path) -> int:
    logger.info("the same command with --workdir=%s goes on from there", workdir)
    return code


def _learned(folder: pathlib.Path, config: Config) -> train.Config:
    """How the network was trained, by what the training wrote down."""
    try:
        record = json.loads((folder / "run.json").read_text())
        if pathlib.Path(record["experiment"]).stem != "train":
            raise ValueError(f"it is a run of {record['experiment']}")
        learned = train.Config(**record["config"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"run={folder} is no workdir of an --experiment=train: {error}"
        ) from error
    if config.data_dir and not config.dataset:
        learned = dataclasses.replace(learned, data_dir=config.data_dir)
    return dataclasses.replace(learned, validation="")


def _subjects(
    config: Config, training: train.Run, learned: train.Config, folder: pathlib.Path
) -> Iterator[tuple[int, scan.Target]]:
    """What is to be scanned, by epoch: the same but for the weights."""
    numbers, first = training.kept_epochs(), None
    if not numbers:
        raise ValueError(f"{folder} keeps no checkpoint of a whole epoch yet")
    if len(numbers) == 1:
        logger.warning("only epoch %d was kept: nothing to compare", *numbers)
    for number in numbers:
        params = jax.device_put(jax.device_get(training.average_after(number)))
        first = first or _first(config, learned, training.forward, params)
        about = dataclasses.replace(
            first.about,
            weights=f"{folder}, epoch {number}",
            network=scan_file.network_hash(first.forward, params, learned.size),
        )
        yield number, dataclasses.replace(first, params=params, about=about)


def _first(
    config: Config,
    learned: train.Config,
    forward: models.Forward,
    params: models.Params,
) -> scan.Target:
    seen = train.Config() if config.dataset else learned
    subject = scan.target(
        model=learned.model,
        weights="",
        dataset=config.dataset or seen.dataset,
        split=config.split or seen.split,
        data_dir=config.data_dir or seen.data_dir,
        size=learned.size,
        layers=[*map(str.strip, config.layers.split(","))] if config.layers else (),
        k=9,
        patches=1,
        deduplicate=False,
        per_class=1,
        network=(forward, params),
    )
    known = subject.about.layers
    partial = {name: n for name, n in known.items() if subject.fields[name].stride}
    layers = known if config.layers else partial or known
    about = dataclasses.replace(subject.about, layers=layers)
    return dataclasses.replace(subject, about=about)


def _scan(subject: scan.Target, folder: pathlib.Path, batch: int) -> int:
    """Leaves `scan.npz`, unless it is there; returns a signal's exit status or 0."""
    folder.mkdir(parents=True, exist_ok=True)
    scan_file.refuse_changed(folder / "scan.json", subject.about)
    if (folder / "scan.npz").exists():
        return 0
    logger.info("scanning %s", subject.about.weights)
    state, signal = scan.run(
        subject, folder, batch=batch, workers=0, checkpoint_every=60
    )
    if state is None:
        return 128 + signal
    if devices.is_lead():
        scan_file.save(folder / "scan.npz", state, subject.about)
    return 0


def _epochs(
    config: Config, subjects: Mapping[int, scan.Target], workdir: pathlib.Path
) -> Iterator[Epoch]:
    """Reads the scans, and computes the sample's activations."""
    first = next(iter(subjects.values()))
    sample = _sample(first, config.sample)

    @jax.jit
    def highest(params: models.Params, images: Array) -> dict[str, Array]:
        found = first.forward(params, images.astype(jnp.float32))
        maps = {name: found[name] for name in first.about.layers}
        return {x: maxima.peaks(y, 1, (0, 0))[0][:, 0] for x, y in maps.items()}

    for number, subject in subjects.items():
        state, _ = scan_file.load(workdir / f"epochs/{number:02}/scan.npz")
        found = [
            jax.device_get(highest(subject.params, sample[i : i + config.batch]))
            for i in range(0, len(sample), config.batch)
        ]
        activations = jax.tree.map(lambda *parts: np.concatenate(parts), *found)
        yield Epoch(number, subject.params, scan.layers(first, state), activations)


def _sample(subject: scan.Target, count: int) -> np.ndarray:
    """Images that are not damaged, uint8 `[images, size, size, 3]`."""
    pictures = patches.Pictures(subject.sources, subject.about.size)
    total, found = sum(map(len, subject.sources)), []
    for index in np.linspace(0, total - 1, min(count, total)).astype(int):
        try:
            found.append(pictures[index])
        except ValueError as error:
            logger.warning("left out of the sample: %s", error)
    return np.stack(found)


def compare(epochs: Sequence[Epoch]) -> list[dict[str, Any]]:
    """The numbers of each layer at each epoch, against the one before and the last."""
    return [
        {"layer": name, "epoch": epoch.number, "units": len(epoch.layers[name].mean)}
        | _agreement(name, epoch, before, "previous")
        | _agreement(name, epoch, epochs[-1], "last")
        | {"dead": int((epoch.layers[name].sparsity == 1).sum())}
        for name in epochs[0].layers
        for before, epoch in zip([None, *epochs], epochs, strict=False)
    ]


def _agreement(
    layer: str, epoch: Epoch, other: Epoch | None, word: str
) -> dict[str, float]:
    shares = correlations = np.array(np.nan)
    if other is not None:
        nine = [evolution.activated(x.layers[layer].top) for x in (epoch, other)]
        shares = evolution.overlap(*nine)
        same = [x.activations[layer] for x in (epoch, other)]
        correlations = evolution.rank_correlation(*same)
    return {
        f"overlap_{word}": evolution.mean(shares),
        f"rank_correlation_{word}": evolution.mean(correlations),
    }


def _text(rows: Sequence[Mapping[str, Any]]) -> str:
    file = io.StringIO()
    writer = csv.DictWriter(file, rows[0], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        short = {k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()}
        writer.writerow({k: "" if v == "nan" else v for k, v in short.items()})
    return file.getvalue()


def _plot(rows: Sequence[Mapping[str, Any]], path: pathlib.Path) -> None:
    from matplotlib.figure import Figure  # half a second

    figure = Figure(figsize=(13, 4), layout="constrained")
    layers = list(dict.fromkeys(row["layer"] for row in rows))
    for axes, (title, lines) in zip(figure.subplots(1, 3), PANELS.items(), strict=True):
        for i, layer in enumerate(layers):
            mine = [row for row in rows if row["layer"] == layer]
            epochs = [str(row["epoch"]) for row in mine]
            for column, line in lines.items():
                values = [row[column] for row in mine]
                axes.plot(epochs, values, f"C{i}o{line}", label=layer, alpha=0.85)
        bottom, top = axes.get_ylim()
        axes.set_ylim(min(bottom, 0), max(top, 1))
        axes.set(xlabel="epoch", title=title)
        axes.grid(alpha=0.3)
    axes.legend()  # where each layer has one line
    figure.savefig(path, dpi=120)


def _draw(
    config: Config, subject: scan.Target, epochs: Sequence[Epoch], path: pathlib.Path
) -> None:
    """Writes the page of all layers' blocks."""
    pictures = patches.Pictures(subject.sources, subject.about.size)
    network = attribution.ruled(subject.forward, "deconvnet")
    rng, blocks, names = np.random.default_rng(config.seed), [], []
    for name, units in subject.about.layers.items():
        picked = rng.choice(units, min(config.units, units), replace=False)
        chosen = sorted(map(int, picked))
        cells = [
            _cells(network, epoch, name, chosen, subject, pictures, config.batch)
            for epoch in epochs
        ]
        blocks.append(_block(chosen, [epoch.number for epoch in epochs], cells))
        height, width = subject.fields[name].size(0)
        names.append(f"{name}: {height} x {width} pixels")
    images.write(path, images.sheet(blocks, names, None, 24, PAPER))


def _cells(
    network: models.Forward,
    epoch: Epoch,
    name: str,
    units: Sequence[int],
    subject: scan.Target,
    pictures: patches.Pictures,
    batch: int,
) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """The deconvnet picture and the patch of each unit that is not dead."""
    fields, layer = subject.fields[name], epoch.layers[name]
    winners = np.full_like(layer.top.image, -1)
    winners[units, 0] = evolution.activated(layer.top)[units, 0]
    if not (winners >= 0).any():
        return {}
    top = dataclasses.replace(layer.top, image=winners)
    few, side, found = (
        dataclasses.replace(layer, top=top),
        patches.drawn_side(layer, fields),
        {},
    )
    projected = attributions.project(
        network, epoch.params, name, few, fields, pictures, batch
    )
    for numbers, _, drawn in projected:
        for unit, picture in zip(numbers, drawn, strict=True):
            seen = fields.support(unit, *top.position[unit, 0])
            image = pictures[winners[unit, 0]]
            patch = patches.crop(image, top.box[unit, 0], *seen)
            found[int(unit)] = picture, patches.fitted(patch, side)
    return found


def _block(
    units: Sequence[int],
    epochs: Sequence[int],
    cells: Sequence[Mapping[int, tuple[np.ndarray, np.ndarray]]],
) -> Image.Image:
    """A row for each unit, a pair of pictures for each epoch."""
    left, top, across, down = 36, 22, 2 * SIDE + 12, SIDE + 6
    size = left + len(epochs) * across, top + len(units) * down
    page, font = Image.new("RGB", size, PAPER), ImageFont.load_default(14)
    draw = ImageDraw.Draw(page)
    for row, unit in enumerate(units):
        y = top + row * down
        draw.text((left - 8, y + SIDE // 2), str(unit), "dimgray", font, "rm")
        for column, epoch in enumerate(epochs):
            x = left + column * across
            draw.text((x + SIDE, 10), f"epoch {epoch}", "dimgray", font, "mm")
            if unit not in cells[column]:
                draw.text((x + SIDE, y + SIDE // 2), "dead", "silver", font, "mm")
            for i, picture in enumerate(cells[column].get(unit, ())):
                drawn = Image.fromarray(picture).resize(
                    (SIDE, SIDE), Image.Resampling.BICUBIC
                )
                page.paste(drawn, (x + i * (SIDE + 2), y))
    return page
