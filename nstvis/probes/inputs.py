"""Pictures that a network looks at, each with the class that is looked for."""

import dataclasses
import difflib
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from PIL import ImageOps
from PIL.Image import Resampling

from nstvis import assets, crops, data, images, models, weights


@dataclasses.dataclass(kw_only=True)
class Inputs:
    """Which pictures, and which network looks at them."""

    # Pictures, separated by commas: paths, demo, or numbers of the data set's images.
    image: str = "demo,46,1014,321,819"
    # Data set of the numbers: primitives, tiny_imagenet, tfds:NAME or folder:PATH.
    dataset: str = "primitives"
    # Its part, such as validation or train.
    split: str = "validation"
    # Where the data set's files are; its own default if empty.
    data_dir: str = ""
    # Class of all pictures, or of each, separated by commas: a name or a number. If
    # empty, the data set's, or the network's first choice.
    label: str = ""
    # Network: a name, or the path of a file like those in nstvis/models/.
    model: str = "alexnet_small"
    # bundled, torchvision, random or a path.
    weights: str = "bundled"
    # Side of the pictures, of which the centre is taken, in pixels.
    size: int = 64
    # Pictures that the network looks at at once.
    batch: int = 64


class Picture(NamedTuple):
    """A picture as the network sees it, and the class that is looked for."""

    name: str
    # float32 [size, size, 3], RGB 0..255.
    pixels: np.ndarray
    # Number of the class that is looked for.
    label: int
    # Why that one, such as "true class".
    why: str


class LoadedInputs(NamedTuple):
    """A network, the names of its classes, and pictures."""

    forward: models.Forward
    params: models.Params
    classes: Sequence[str]
    pictures: Sequence[Picture]


def load(config: Inputs) -> LoadedInputs:
    """Loads the network and the pictures, and decides on their classes.

    Raises:
        ValueError: No such network, weights, data set, image or class.
        OSError: A file does not exist, or a download failed.
    """
    for name in ("size", "batch"):
        if getattr(config, name) < 1:
            raise ValueError(f"{name} should be at least 1")
    parts = [part.strip() for part in config.image.split(",")]
    labels = [part.strip() for part in config.label.split(",")] if config.label else []
    if len(labels) not in (0, 1, len(parts)):
        raise ValueError(f"label has {len(labels)} classes for {len(parts)} pictures")
    forward, params = models.load(config.model, config.weights)
    source = None
    if any(map(str.isdecimal, parts)):
        source = data.load(config.dataset, config.split, config.data_dir)
    opened = [_opened(part, config, source) for part in parts]
    first = jax.jit(lambda params, x: list(forward(params, x).values())[-1][0])
    logits = [np.asarray(first(params, pixels[None])) for _, pixels, _ in opened]
    if logits[0].ndim != 1:
        raise ValueError(
            f"the last activation of {config.model} is no vector of logits"
        )
    classes = _classes(config, source, len(logits[0]))
    told, why = [_named(kind, classes) for _, _, kind in opened], "true class"
    if labels:
        told = [_asked(labels[i % len(labels)], classes) for i in range(len(parts))]
        why = "asked for"
    pictures = [
        Picture(
            name,
            pixels,
            int(scores.argmax()) if label is None else label,
            "network's first choice" if label is None else why,
        )
        for (name, pixels, _), scores, label in zip(opened, logits, told)
    ]
    return LoadedInputs(forward, params, classes, pictures)


def _opened(
    part: str, config: Inputs, source: data.Source | None
) -> tuple[str, np.ndarray, str]:
    """Reads one picture: its name, its pixels, and the name of its class if it has one."""
    if source is not None and part.isdecimal():
        if int(part) >= len(source):
            raise ValueError(
                f"no image {part}: {config.dataset} {config.split} has 0 to"
                f" {len(source) - 1}"
            )
        example = source[int(part)]
        kind = source.classes[example.label] if example.label >= 0 else ""
        image = crops.centered(example, config.size)
        return f"{part} {short(kind)}".strip(), images.to_array(image), kind
    path = assets.FOLDER / "demo_content.jpg" if part == "demo" else pathlib.Path(part)
    side = (config.size, config.size)
    image = ImageOps.fit(images.read(path).convert("RGB"), side, Resampling.BILINEAR)
    return part, images.to_array(image), ""


def _classes(config: Inputs, source: data.Source | None, count: int) -> Sequence[str]:
    """The names of the logits: the weights', the data set's if as many, or numbers."""
    own = weights.classes(config.weights, pathlib.Path(config.model).stem)
    for names in (own, source.classes if source else ()):
        if len(names) == count:
            return names
    return [f"class {number}" for number in range(count)]


def _named(name: str, classes: Sequence[str]) -> int | None:
    """The class of a name, or of the first of its names, if there is one."""
    for names in (classes, list(map(short, classes))):
        if name in names:
            return names.index(name)
    return None


def _asked(label: str, classes: Sequence[str]) -> int:
    """The class of a name or a number."""
    found = _named(label, classes)
    if found is None and label.isdecimal() and int(label) < len(classes):
        return int(label)
    if found is None:
        near = difflib.get_close_matches(label, map(short, classes), n=3, cutoff=0)
        raise ValueError(
            f"no class {label!r} among the network's {len(classes)}: {', '.join(near)}"
            " come nearest"
        )
    return found


def short(name: str) -> str:
    """The first of a class's names, such as `goldfish, Carassius auratus`."""
    return name.partition(",")[0]
