"""Concepts: what is known of images, by which units can be named.

They are the images' classes and groups of these, the tags of the data set, if it has any
(see `nstvis.data`), and what can be measured of pixels; or the user's own, from a file.
"""

import colorsys
import concurrent.futures
import dataclasses
import pathlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from nstvis import class_names
from nstvis.data import Source
from nstvis.runs import files
from nstvis.units import kept_steps
from nstvis.units.patches import Images
from nstvis.units.responses import Responses

HUES = ("red", "yellow", "green", "cyan", "blue", "magenta")
# Directions in which edges run, in degrees counter-clockwise.
ANGLES = (0, 22.5, 45, 67.5, 90, 112.5, 135, 157.5)


@dataclasses.dataclass(frozen=True)
class Concepts:
    """Which images have which concepts.

    Attributes:
        names: Of the concepts.
        present: Whether an image has a concept, bool `[images, concepts]`.
    """

    names: Sequence[str]
    present: np.ndarray


def known(
    responses: Responses,
    sources: Sequence[Source],
    size: int,
    file: str = "",
    kept: pathlib.Path | None = None,
) -> Concepts:
    """Returns the concepts of those images that units have been measured for.

    Args:
        responses: Which images.
        sources: The data sets, in a row, that they are of.
        size: Side of the images as the network sees them, in pixels.
        file: A file of the user's own concepts, which replace all others; see `read`.
        kept: File of measurements that an interrupted call leaves for the next.

    Raises:
        Interrupted: By a signal.
        ValueError: The file names none of the images, or an image is damaged.
        OSError: The file cannot be read.
    """
    pictures = Images(sources, size, memory=0)  # each is asked for once
    if file:
        ids = [pictures.id(int(index)) for index in responses.index]
        return read(pathlib.Path(file), ids)
    tags = [
        [*names, *_tags(sources, index)]
        for names, index in zip(
            _classes(responses.label, sources[0].classes), responses.index, strict=True
        )
    ]
    found, measured = of_tags(tags), _measured(responses.index, pictures, kept)
    return _distinct(
        [*found.names, *measured.names], np.hstack([found.present, measured.present])
    )


def read(path: pathlib.Path, ids: Sequence[str]) -> Concepts:
    """Reads a table: a header, then rows of an image's id and its tags.

    Tags are in columns of their own, or separated by semicolons in one.

    Args:
        path: The CSV file.
        ids: Those of the images, in order; others in the file are left out.

    Raises:
        ValueError: It says nothing of any of the images.
        OSError: It cannot be read.
    """
    tags: dict[str, list[str]] = {}
    for id, *cells in filter(None, files.read_csv(path)):
        words = (tag.strip() for cell in cells for tag in cell.split(";"))
        tags.setdefault(id, []).extend(filter(None, words))
    found = of_tags([tags.get(id, []) for id in ids])
    if not found.names:
        raise ValueError(
            f"{path} has no tag of any of the {len(ids)} images: its first column should"
            f" be their ids, such as {ids[0]}"
        )
    return found


def of_tags(tags: Sequence[Iterable[str]]) -> Concepts:
    """Returns the concepts of images with tags, in the order in which they appear."""
    numbers: dict[str, int] = {}
    pairs = [
        (image, numbers.setdefault(tag, len(numbers)))
        for image, mine in enumerate(tags)
        for tag in mine
    ]
    present = np.zeros((len(tags), len(numbers)), bool)
    if pairs:
        present[tuple(np.transpose(pairs))] = True
    return Concepts(list(numbers), present)


def _distinct(names: Sequence[str], present: np.ndarray) -> Concepts:
    """Leaves out what all images have, or have not, and the second of equal concepts."""
    kept: dict[bytes, int] = {}
    for number, column in enumerate(present.T):
        if column.any() and not column.all():
            kept.setdefault(np.packbits(column).tobytes(), number)
    columns = sorted(kept.values())
    return Concepts([names[i] for i in columns], present[:, columns])


def _tags(sources: Sequence[Source], index: int) -> Sequence[str]:
    """Returns an image's tags, if its data set has any."""
    for source in sources:
        if index < len(source):
            tags: Callable[[int], Sequence[str]] | None = getattr(source, "tags", None)
            return tags(int(index)) if tags else ()
        index -= len(source)
    raise IndexError(index)


def _classes(labels: np.ndarray, classes: Sequence[str]) -> list[list[str]]:
    """Returns the names of each image's class and of the groups that it is in."""
    known = [class_names.find(name) for name in classes]
    words = [x.words if x else name for name, x in zip(classes, known, strict=True)]
    short = [class_names.short(name) for name in words]
    names = [
        [
            first if short.count(first) == 1 else full,
            *(f"{y} (group)" if y in short else y for y in (x.groups if x else [])),
        ]
        for first, full, x in zip(short, words, known, strict=True)
    ]
    return [names[label] if label >= 0 else [] for label in labels]


def _measured(
    indices: np.ndarray, pictures: Images, kept: pathlib.Path | None
) -> Concepts:
    """Returns the concepts that are measured: quarters of the images, for the most part."""
    names = [*measure(np.zeros((2, 2, 3), np.uint8))]
    rows = np.zeros((len(indices), len(names)))
    chunks = np.array_split(np.arange(len(indices)), -(-len(indices) // 128))
    count = len(chunks)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for step in kept_steps.steps(kept, {"rows": rows}, count, "images measured"):
            chunk = chunks[step]
            found = pool.map(lambda index: measure(pictures[index]), indices[chunk])
            rows[chunk] = [[*row.values()] for row in found]
    present = {}
    for name, values in zip(names, rows.T, strict=True):
        low, _, high = name.partition("|")
        first, third = np.quantile(values, (0.25, 0.75))
        if high:
            present |= {low: values <= first, high: values >= third}
        else:
            present[name] = (values >= third) & (values > 0)
    return Concepts(list(present), np.stack([*present.values()], 1))


def measure(image: np.ndarray) -> dict[str, float]:
    """Measures an image.

    Args:
        image: uint8 `[height, width, 3]`.

    Returns:
        Numbers, by what images are that have a low one and by what those are that have a
        high one, such as `dark|bright`; or by the latter alone: the saturation of the
        mean colour, at its hue, and the share of the edges' energy at each angle.
    """
    pixels = image.astype(np.float32) / 255
    hue, saturation, _ = colorsys.rgb_to_hsv(*pixels.mean((0, 1)).tolist())
    grey = pixels @ np.array([0.299, 0.587, 0.114], np.float32)
    up, right = -np.gradient(grey, axis=0), np.gradient(grey, axis=1)
    energy = up**2 + right**2
    # An edge runs at a right angle to its gradient.
    angle = np.rad2deg(np.arctan2(up, right)) + 90
    nearest = np.rint(angle / 22.5).astype(int) % len(ANGLES)
    shares = np.bincount(nearest.ravel(), energy.ravel(), len(ANGLES)) / max(
        energy.sum(), 1e-12
    )
    return {
        "dark|bright": float(grey.mean()),
        "low contrast|high contrast": float(grey.std()),
        "grey|colourful": float(np.ptp(pixels, axis=2).mean()),
        "smooth|many edges": float(np.sqrt(energy).mean()),
        **{
            f"{name} on the whole": saturation * (round(6 * hue) % 6 == number)
            for number, name in enumerate(HUES)
        },
        **{
            f"edges at {angle:g} degrees": float(share)
            for angle, share in zip(ANGLES, shares, strict=True)
        },
    }
