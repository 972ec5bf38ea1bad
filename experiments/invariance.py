r"""Moves, enlarges and turns pictures, to see how much layers mind.

    python launch.py --experiment=invariance
    python launch.py --experiment=invariance --config.image=a.jpg,b.jpg \
        --config.label=goldfish,lemon
    python launch.py --experiment=invariance --config.dataset=tiny_imagenet \
        --config.data_dir=FOLDER_OF_THE_ARCHIVE --config.image=12,345,6789
    python launch.py --experiment=invariance --config.image=a.jpg,b.jpg \
        --config.size=224 --config.model=alexnet --config.weights=torchvision

Zeiler & Fergus 2013 (arXiv:1311.2901), Figure 5. Each picture is moved down and up by as
much as 60 of 224 pixels, enlarged to 1.8 times its size, and turned counter-clockwise
once round; where it leaves the frame empty there is grey, the mean colour of ImageNet.
Leaves in `invariance.png`, a curve for each picture, and in `invariance.csv` the
Euclidean distances between the features of the picture and of the changed one, in the
first layer and a late one, also over the length of the picture's own features, and the
probability of its class, which is chosen as in `--experiment=occlusion`.

The first command takes 6 s on two cores of an AMD EPYC (Zen 4) and finds what the paper
did: moved by one pixel, conv1 changes by 32 % of its length and fc7 by 11 %, moved by 17
pixels by 97 % and 59 %.
"""

import csv
import dataclasses
import functools
import io
import logging
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from PIL.Image import Resampling, Transform

from nstvis import devices, images, models
from nstvis.layers import MEAN_COLOR
from nstvis.probes import inputs
from nstvis.probes.inputs import Inputs, LoadedInputs, Picture, short
from nstvis.runs.files import write_text
from nstvis.runs.progress import Interruption, Progress, interruptible
from nstvis.runs.registry import unknown

logger = logging.getLogger(__name__)

SHOWN = 5  # pictures, at most, that are drawn, each changed in so many ways
LABELS = {
    "translation": "moved down (pixels)",
    "scale": "enlarged (times)",
    "rotation": "turned counter-clockwise (degrees)",
}


@dataclasses.dataclass(kw_only=True)
class Config(Inputs):
    """Which layers."""

    # A first and a late layer, such as conv1,fc7; if empty, the first one and the last
    # one before the logits.
    layers: str = ""


def amounts(size: int) -> dict[str, np.ndarray]:
    """How far pictures of a side are moved (pixels), enlarged, and turned (degrees)."""
    reach = size * 60 / 224
    pixels = np.rint(np.linspace(-reach, reach, 35)) + 0.0  # not -0
    return {
        "translation": np.unique(pixels),
        "scale": np.arange(20, 37) / 20,
        "rotation": np.arange(0.0, 360, 10),
    }


def transformed(image: Image.Image, transformation: str, amount: float) -> Image.Image:
    """Moves a picture down, enlarges it, or turns it about its middle.

    Args:
        image: Of mode RGB.
        transformation: `translation`, `scale` or `rotation`.
        amount: Pixels, a factor, or degrees counter-clockwise.

    Returns:
        A picture of the same size, interpolated bicubically, grey where there is nothing.
    """
    angle = math.radians(amount) if transformation == "rotation" else 0
    scale = amount if transformation == "scale" else 1
    down = amount if transformation == "translation" else 0
    # Where the result's pixels come from; rounded, as the cosine of 90 degrees is not 0.
    cos, sin = round(math.cos(angle), 15), round(math.sin(angle), 15)
    turn = np.array([[cos, -sin], [sin, cos]])
    middle = np.array(image.size) / 2
    origin = middle - turn / scale @ (middle + [0, down])
    matrix = np.column_stack([turn / scale, origin]).ravel()
    color = tuple(np.rint(MEAN_COLOR).astype(int).tolist())
    return image.transform(
        image.size,
        Transform.AFFINE,
        matrix.tolist(),
        Resampling.BICUBIC,
        fillcolor=color,
    )


def compare(
    forward: models.Forward,
    layers: Sequence[str],
    params: models.Params,
    changed: jax.Array,
    label: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Compares images with the first of them.

    Args:
        forward: The network; the last of its activations are the logits.
        layers: Whose features are compared.
        params: The network's parameters.
        changed: `[1 + n, height, width, 3]`, RGB 0..255.
        label: The class whose probability is wanted.

    Returns:
        Euclidean distances of the features from the first image's `[layers, n]`, the
        length of the first image's `[layers]`, and probabilities `[n]`.
    """
    activations = forward(params, changed.astype(jnp.float32))
    features = [activations[layer].reshape(len(changed), -1) for layer in layers]
    distances = [jnp.linalg.norm(x[1:] - x[:1], axis=1) for x in features]
    lengths = [jnp.linalg.norm(x[0]) for x in features]
    probabilities = jax.nn.softmax(list(activations.values())[-1])[1:, label]
    return jnp.stack(distances), jnp.stack(lengths), probabilities


def run(config: Config, workdir: pathlib.Path) -> int:
    """Changes the pictures, or goes on after the last one that was finished."""
    page = workdir / "invariance.png"
    if page.exists():
        logger.info("finished already: %s", page)
        return 0
    if config.size < 2:
        raise ValueError("size should be at least 2, as pictures are moved by a pixel")
    inputs, table = inputs.load(config), workdir / "invariance.csv"
    layers = _layers(config, inputs)
    with interruptible() as interruption:
        _compare(config, inputs, layers, table, interruption)
    if interruption.signal:
        logger.info("the same command with --workdir=%s goes on from there", workdir)
        return 128 + interruption.signal
    curves = _curves(table, config.size)
    logger.info("%s", _told(layers, curves))
    _draw(config, inputs, layers, curves, page)
    for path in (page, table):
        logger.info("%s", path)
    return 0


def _layers(config: Config, inputs: LoadedInputs) -> list[str]:
    known = models.units(inputs.forward, inputs.params, config.size)
    chosen = [name.strip() for name in config.layers.split(",")]
    if not config.layers:
        after = [name for name in known if not name.endswith("_pre")]
        chosen = [after[0], after[-2:][0]]
    for name in chosen:
        if name not in known:
            raise ValueError(unknown("layer", name, known))
    if len(chosen) != 2:
        raise ValueError(f"layers={config.layers} should be two, such as conv1,fc7")
    return chosen


def _compare(
    config: Config,
    inputs: LoadedInputs,
    layers: Sequence[str],
    table: pathlib.Path,
    interruption: Interruption,
) -> None:
    """Adds the rows of each picture that has none yet to the table."""
    program = jax.jit(functools.partial(compare, inputs.forward, layers))
    changes = _changes(config.size)
    rows = _read(table) if table.exists() else []
    steps = math.ceil(len(changes) / config.batch)
    done = len(rows) // len(changes)
    blank = np.zeros((1 + config.batch, config.size, config.size, 3), np.uint8)
    cost = devices.flops(program, inputs.params, blank, 0)
    costs = [cost] * (steps * len(inputs.pictures))
    with Progress(costs, steps * done) as progress:
        for i, picture in enumerate(inputs.pictures[done:], done):
            found = []
            for step in range(steps):
                some = changes[step * config.batch :][: config.batch]
                found += _rows(picture, some, program, inputs.params, blank)
                progress.show(i * steps + step + 1, picture.name)
                if interruption.signal:
                    return
            rows += found
            _write(table, layers, rows)


def _read(table: pathlib.Path) -> list[list[str]]:
    with table.open(newline="") as file:
        return list(csv.reader(file))[1:]


def _write(table: pathlib.Path, layers: Sequence[str], rows: list[list[Any]]) -> None:
    header = ["image", "transformation", "amount"]
    for layer in layers:
        header += [f"{layer}_distance", f"{layer}_relative"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([[*header, "probability"], *rows])
    write_text(table, text.getvalue())


def _changes(size: int) -> list[tuple[str, float]]:
    return [(name, x) for name, own in amounts(size).items() for x in own.tolist()]


def _rows(
    picture: Picture,
    changes: Sequence[tuple[str, float]],
    program: Any,
    params: models.Params,
    blank: np.ndarray,
) -> Iterator[list[Any]]:
    image, batch = images.to_image(picture.pixels), blank.copy()
    batch[0] = image
    for i, change in enumerate(changes, 1):
        batch[i] = transformed(image, *change)
    distances, lengths, probabilities = map(
        np.asarray, program(params, batch, picture.label)
    )
    relative = distances / lengths[:, None]
    for i, change in enumerate(changes):
        pairs = np.stack([distances[:, i], relative[:, i]], 1).ravel()
        yield [picture.name, *change, *pairs, probabilities[i]]


def _curves(table: pathlib.Path, size: int) -> list[dict[str, np.ndarray]]:
    """For each picture, transformation to numbers [amount, columns of the table]."""
    numbers = np.array([row[2:] for row in _read(table)], float)
    ends = np.cumsum([len(own) for own in amounts(size).values()])
    pictures = numbers.reshape(-1, ends[-1], numbers.shape[1])
    return [dict(zip(amounts(size), np.split(x, ends[:-1]))) for x in pictures]


def _told(layers: Sequence[str], curves: Sequence[Mapping[str, np.ndarray]]) -> str:
    """What the smallest translations and the largest do, on average."""
    moved = np.stack([own["translation"] for own in curves])
    pixels, changes = np.abs(moved[0, :, 0]), []
    for far in np.unique(pixels)[[1, -1]]:
        means = moved[:, pixels == far][..., [2, 4]].mean((0, 1))
        each = [f"{layer} by {x:.0%}" for layer, x in zip(layers, means)]
        changes.append(f"moved by {far:.0f} px, {' and '.join(each)}")
    return f"{'; '.join(changes)} of its length (mean of {len(curves)} pictures)"


def _draw(
    config: Config,
    inputs: LoadedInputs,
    layers: Sequence[str],
    curves: Sequence[Mapping[str, np.ndarray]],
    page: pathlib.Path,
) -> None:
    """Writes the paper's Figure 5: a row for each transformation."""
    import matplotlib  # half a second, at the end of a run
    from matplotlib.figure import Figure

    matplotlib.rcParams["text.parse_math"] = False  # names may have dollars

    figure = Figure(figsize=(16, 10.5), layout="constrained")
    rows = figure.subplots(3, 4)
    for axes, (name, label) in zip(rows, LABELS.items()):
        axes[0].imshow(_examples(config, inputs, name))
        axes[0].set(xticks=[], yticks=[], xlabel=label)
        for each, column in zip(axes[1:], (2, 4, 5)):
            for number, own in enumerate(curves):
                amount, height = own[name][:, [0, column]].T
                each.plot(amount, height, color=_color(number))
            each.set(xlabel=label, ylim=(0, 1.02 if column == 5 else None))
            each.grid(alpha=0.3)
    distances = [f"{layer}: distance / length of the original" for layer in layers]
    titles = ["examples", *distances, "probability of the class"]
    for each, title in zip(rows[0], titles):
        each.set_title(title)
    names = [_name(inputs, picture) for picture in inputs.pictures]
    lines = rows[0, 3].get_lines()
    figure.legend(lines, names, loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(page, dpi=110)


def _name(inputs: LoadedInputs, picture: Picture) -> str:
    name = pathlib.Path(picture.name).name
    return f"{name}: {short(inputs.classes[picture.label])} ({picture.why})"


def _color(number: int) -> str:
    """Of a picture's curves."""
    return f"C{number % 10}"


def _examples(config: Config, inputs: LoadedInputs, transformation: str) -> np.ndarray:
    """Some pictures in rows, changed more and more, with their curves' colours."""
    from matplotlib.colors import to_rgb

    own = amounts(config.size)[transformation]
    chosen = own[np.linspace(0, len(own) - 1, SHOWN).round().astype(int)]
    drawn = inputs.pictures[:SHOWN]
    gap = max(1, config.size // 12)
    pitch = config.size + gap
    page = np.full((len(drawn) * pitch - gap, gap + SHOWN * pitch, 3), 255, np.uint8)
    for number, picture in enumerate(drawn):
        row = page[number * pitch :][: config.size]
        row[:, :gap] = np.multiply(255, to_rgb(_color(number)))
        image = images.to_image(picture.pixels)
        for place, amount in enumerate(chosen):
            cell = row[:, 2 * gap + place * pitch :][:, : config.size]
            cell[:] = np.asarray(transformed(image, transformation, amount))
    return page
