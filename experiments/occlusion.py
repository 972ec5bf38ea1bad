r"""Slides a grey square over a picture: where does its class change?

    python launch.py --experiment=occlusion
    python launch.py --experiment=occlusion --config.image=PHOTO.jpg \
        --config.label=goldfish --config.unit=conv5:17
    python launch.py --experiment=occlusion --config.dataset=tiny_imagenet \
        --config.data_dir=FOLDER_OF_THE_ARCHIVE --config.image=12,345,6789
    python launch.py --experiment=occlusion --config.image=PHOTO.jpg --config.size=224 \
        --config.square=50 --config.stride=7 --config.model=alexnet \
        --config.weights=torchvision

Zeiler & Fergus 2013 (arXiv:1311.2901), Figure 7. A row for each picture in
`occlusion.png`: (a) the picture, with the square where the class is least likely; for
every place of the square, drawn at its middle, (b) the sum of the map of one unit, (d)
the probability of the class and (e) the most likely class; and (c) the unit's deconvnet
picture of its highest activation, without the square. The numbers are in
`occlusion.csv`. The square has the mean colour of ImageNet, (124, 116, 104), which the
networks here subtract first.

By default, the unit is the one whose map has the largest sum, without the square, and the
class is the data set's; where that is not known or none of the network's, it is the
network's own first choice, and the page says so. The default pictures are the demo and
four of `primitives`, none of which the network was trained on: it takes a flower with an
orange heart for a goldfish, at 93 %, and where its heart is hidden for a dugong, a
goldfish then being at 0 %; 18 s on two cores of an AMD EPYC (Zen 4). A command that was
interrupted goes on after the last picture that was finished.
"""

import csv
import dataclasses
import functools
import io
import itertools
import logging
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from nstvis import devices, images, models
from nstvis.probes import attribution, occlusion
from nstvis.probes.inputs import Inputs, LoadedInputs, Picture, load, short
from nstvis.runs.files import write_text
from nstvis.runs.progress import Interruption, Progress, interruptible
from nstvis.runs.registry import unknown

logger = logging.getLogger(__name__)

# Of the class that is looked for, of the most frequent others, and of all the rest.
COLORS = np.array(
    [(31, 119, 180), (255, 127, 14), (44, 160, 44), (214, 39, 40), (148, 103, 189)]
    + [(210, 210, 210)]
)


@dataclasses.dataclass(kw_only=True)
class Config(Inputs):
    """Which unit, and which square."""

    # Layer, whose strongest unit is taken, or LAYER:NUMBER.
    unit: str = "conv5"
    # Side of the grey square, in pixels.
    square: int = 14
    # Pixels from one place of the square to the next.
    stride: int = 2
    # What carries the unit's activation back: deconvnet, guided or gradient.
    rule: str = "deconvnet"


class Found(NamedTuple):
    """What the square did to a picture; all are arrays, as they are kept in a file."""

    # The unit's number, and its backward picture [size, size, 3] around 0.
    unit: np.ndarray
    carried: np.ndarray
    # Without the square: the probability of the class, and the most likely class.
    probability: np.ndarray
    first: np.ndarray
    # Maps [rows, columns] for each place, as in nstvis.probes.occlusion.Seen.
    activities: np.ndarray
    probabilities: np.ndarray
    firsts: np.ndarray


def run(config: Config, workdir: pathlib.Path) -> int:
    """Slides the square, or goes on after the last picture that was finished."""
    page = workdir / "occlusion.png"
    if page.exists():
        logger.info("finished already: %s", page)
        return 0
    if config.stride < 1:
        raise ValueError("stride should be at least 1")
    inputs = load(config)
    files = [workdir / "maps" / f"{i}.npz" for i in range(len(inputs.pictures))]
    files[0].parent.mkdir(exist_ok=True)
    with interruptible() as interruption:
        _look(config, inputs, files, interruption)
    if interruption.signal:
        logger.info("the same command with --workdir=%s goes on from there", workdir)
        return 128 + interruption.signal
    found = [_read(file) for file in files]
    for picture, own in zip(inputs.pictures, found):
        logger.info("%s", _told(config, inputs, picture, own))
    write_text(workdir / "occlusion.csv", _table(config, inputs, found))
    _draw(config, inputs, found, page)
    for path in (page, workdir / "occlusion.csv"):
        logger.info("%s", path)
    return 0


def _look(
    config: Config,
    inputs: LoadedInputs,
    files: Sequence[pathlib.Path],
    interruption: Interruption,
) -> None:
    """Writes a file of what was found for each picture that has none yet."""
    plainly, params = _plainly(config, inputs), inputs.params
    layer = config.unit.partition(":")[0]
    look = jax.jit(
        functools.partial(occlusion.look, inputs.forward, layer, config.square)
    )
    along = {"stride": config.stride, "batch": config.batch}
    places = len(occlusion.centres(config.size, config.stride)) ** 2
    steps = math.ceil(places / config.batch)
    nowhere = np.zeros((config.batch, 2), int)
    cost = devices.flops(look, params, inputs.pictures[0].pixels, nowhere, 0, 0)
    done = sum(file.exists() for file in files)
    with Progress([cost] * (steps * len(files)), steps * done) as progress:
        for i, picture in enumerate(inputs.pictures[done:], done):
            unit, carried, probabilities = plainly(picture.pixels)
            shown = picture.pixels, unit, picture.label
            sliding = occlusion.slide(look, params, *shown, **along)
            for step, (_, maps) in enumerate(sliding, i * steps + 1):
                progress.show(step, picture.name)
                if interruption.signal:
                    return
            probability, first = probabilities[picture.label], probabilities.argmax()
            _save(files[i], Found(unit, carried, probability, first, *maps))


def _plainly(
    config: Config, inputs: LoadedInputs
) -> Callable[[np.ndarray], Sequence[Any]]:
    """What there is to see without the square: unit, its picture, probabilities."""
    forward, params = inputs.forward, inputs.params
    layer, _, digits = config.unit.partition(":")
    if layer not in (layers := models.units(forward, params, config.size)):
        raise ValueError(unknown("layer", layer, layers))
    network = attribution.ruled(forward, config.rule)

    @jax.jit
    def plain(params: models.Params, image: jax.Array) -> tuple[jax.Array, jax.Array]:
        activations = forward(params, image[None])
        logits = list(activations.values())[-1]
        return activations[layer][0], jax.nn.softmax(logits[0])

    @jax.jit
    def carried(
        params: models.Params, image: jax.Array, unit: jax.Array, place: jax.Array
    ) -> jax.Array:
        where = image[None], unit[None], place[None]
        return attribution.pictures(network, params, layer, *where)[0][0]

    def plainly(image: np.ndarray) -> Sequence[Any]:
        x, probabilities = map(np.asarray, plain(params, image))
        count, sums = x.shape[-1], x.reshape(-1, x.shape[-1]).sum(0)
        known = [str(number) for number in range(count)]
        if digits and digits not in known:
            raise ValueError(f"no unit {config.unit}: there are 0 to {count - 1}")
        unit = known.index(digits) if digits else sums.argmax()
        place = np.unravel_index(x[..., unit].argmax(), x.shape[:-1]) or (0, 0)
        back = carried(params, image, np.array(unit), np.array(place))
        return unit, back, probabilities

    return plainly


def _save(file: pathlib.Path, found: Found) -> None:
    partial = file.with_name(file.name + ".partial.npz")
    np.savez_compressed(partial, **found._asdict())
    partial.replace(file)


def _read(file: pathlib.Path) -> Found:
    with np.load(file) as arrays:
        return Found(**arrays)


def _told(config: Config, inputs: LoadedInputs, picture: Picture, found: Found) -> str:
    row, column = _place(config, found)
    label = short(inputs.classes[picture.label])
    first = short(inputs.classes[int(found.first)])
    seen = "" if found.first == picture.label else f" (it says {first})"
    lowest = found.probabilities.argmin()
    there = short(inputs.classes[int(found.firsts.flat[lowest])])
    share = (found.firsts == picture.label).mean()
    return (
        f"{picture.name}: {label} ({picture.why}): {found.probability:.0%}{seen};"
        f" {found.probabilities.flat[lowest]:.0%} with the square at row {row}, column"
        f" {column}, where it says {there}; {label} at {share:.0%} of the places"
    )


def _place(config: Config, found: Found) -> tuple[int, int]:
    """Where the square makes the class least likely, row and column."""
    pixels = occlusion.centres(config.size, config.stride)
    row, column = divmod(int(found.probabilities.argmin()), len(pixels))
    return int(pixels[row]), int(pixels[column])


def _table(config: Config, inputs: LoadedInputs, found: Sequence[Found]) -> str:
    """A line of CSV for each place of the square on each picture."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["image", "row", "column", "activity", "probability", "class"])
    pixels = occlusion.centres(config.size, config.stride)
    for picture, own in zip(inputs.pictures, found):
        maps = zip(own.activities.flat, own.probabilities.flat, own.firsts.flat)
        for place, (*numbers, first) in zip(itertools.product(pixels, pixels), maps):
            table.writerow([picture.name, *place, *numbers, inputs.classes[first]])
    return text.getvalue()


def _draw(
    config: Config, inputs: LoadedInputs, found: Sequence[Found], page: pathlib.Path
) -> None:
    """Writes the paper's Figure 7, a row for each picture."""
    import matplotlib  # half a second, at the end of a run
    from matplotlib.figure import Figure

    matplotlib.rcParams["text.parse_math"] = False  # names may have dollars

    figure = Figure(figsize=(15, 2.75 * len(found) + 0.5), layout="constrained")
    rows = figure.subplots(len(found), 5, squeeze=False)
    for axes, picture, own in zip(rows, inputs.pictures, found):
        _draw_row(config, inputs, picture, own, axes)
        for each in axes:
            each.set(xlim=(-0.5, config.size - 0.5), ylim=(config.size - 0.5, -0.5))
            each.set(xticks=[], yticks=[])
    titles = [
        "(a) picture and square",
        "(b) sum of the unit's map",
        f"(c) {config.rule} picture of the unit",
        "(d) probability of the class",
        "(e) most likely class",
    ]
    for axes, title in zip(rows[0], titles):
        axes.set_title(f"{title}\n{axes.get_title()}", fontsize=10)
    figure.savefig(page, dpi=110)


def _draw_row(
    config: Config, inputs: LoadedInputs, picture: Picture, found: Found, axes: Any
) -> None:
    # Each place is drawn at the square's middle.
    pixels, half = occlusion.centres(config.size, config.stride), config.stride / 2
    ends = pixels[0] - half, pixels[-1] + half
    extent = (*ends, *ends[::-1])
    place = np.array([_place(config, found)])
    hidden = np.asarray(occlusion.hidden(picture.pixels, place, config.square)[0])
    axes[0].imshow(images.to_image(hidden))
    unit = f"{config.unit.partition(':')[0]}:{found.unit}"
    largest = max(np.abs(found.carried).max(), 1e-30)
    axes[2].imshow(images.to_image(127 + 127 * found.carried / largest))
    for each, numbers, least in (
        (axes[1], found.activities, None),
        (axes[3], found.probabilities, 0),
    ):
        bar = each.imshow(numbers, "turbo", extent=extent, vmin=least)
        each.figure.colorbar(bar, ax=each, shrink=0.8)
    _draw_classes(inputs.classes, picture.label, found.firsts, extent, axes[4])
    label = short(inputs.classes[picture.label])
    titles = [
        *(pathlib.Path(picture.name).name, unit, unit),
        f"{label} ({picture.why}): {found.probability:.0%}",
    ]
    for each, title in zip(axes, titles):
        each.set_title(title, fontsize=9)


def _draw_classes(
    classes: Sequence[str], label: int, firsts: np.ndarray, extent: Any, axes: Any
) -> None:
    """Draws the most likely classes in colours, and what the colours are."""
    from matplotlib.patches import Patch

    present, counts = np.unique(firsts, return_counts=True)
    frequent = present[np.argsort(-counts, kind="stable")]
    named = [label, *frequent[frequent != label][: len(COLORS) - 2].tolist()]
    ranks = np.full(len(classes), len(named))
    ranks[named] = np.arange(len(named))
    colors = np.vstack([COLORS[: len(named)], COLORS[-1:]])
    axes.imshow(colors[ranks[firsts]], extent=extent)
    names = [short(classes[int(number)]) for number in named]
    names += ["others"] * bool((ranks[firsts] == len(named)).any())
    axes.legend(
        handles=[Patch(color=c / 255, label=n) for c, n in zip(colors, names)],
        loc="center left",
        bbox_to_anchor=(1, 0.5),
        fontsize=8,
        frameon=False,
    )
