"""Images that a classifier sees, each with the class whose probability is probed."""

import dataclasses
import difflib
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from PIL import ImageOps
from PIL.Image import Resampling

from nstvis import assets, class_names, crops, data, images, models, weights
from nstvis.class_names import short
from nstvis.runs import config as configs
from nstvis.runs.config import Batches, Dataset, Network, bounded


@dataclasses.dataclass(kw_only=True)
class Inputs(Network, Dataset, Batches):
    """Which images, and which network sees them."""

    # Images, separated by commas: paths, demo, or numbers of the data set's images.
    image: str = "demo,46,1014,321,819"
    # Class of all images, or of each, separated by commas: a name or a number. If empty,
    # the data set's, or the network's prediction.
    label: str = ""
    split: str = "validation"
    batch: int = bounded(64, least=1, most=65536)

    def check(self) -> None:
        """Raises a ValueError if there is no image, or not one class for each."""
        names, labels = self.image_names(), self.labels()
        if not names:
            raise ValueError("image should name at least one image")
        if len(labels) not in (0, 1, len(names)):
            raise ValueError(f"label has {len(labels)} classes for {len(names)} images")

    def image_names(self) -> list[str]:
        """Returns what `image` lists."""
        return configs.names("image", self.image)

    def labels(self) -> list[str]:
        """Returns what `label` lists, which may name one class several times."""
        return [label.strip() for label in self.label.split(",")] if self.label else []


class LabeledImage(NamedTuple):
    """An image as the network sees it, and the class whose probability is probed."""

    name: str
    # float32 [size, size, 3], RGB 0..255.
    pixels: np.ndarray
    # Number of the class.
    label: int
    # Where the class comes from, such as "true class".
    label_source: str


class LoadedInputs(NamedTuple):
    """A network, the names of its classes, and images of some of them."""

    forward: models.Forward
    params: models.Params
    classes: Sequence[str]
    images: Sequence[LabeledImage]

    def label_name(self, image: LabeledImage) -> str:
        """Returns the short name of an image's class."""
        return short(self.classes[image.label])


class _Opened(NamedTuple):
    """An image before the network has seen it; the class's name is empty if unknown."""

    name: str
    pixels: np.ndarray
    class_name: str


def load(config: Inputs) -> LoadedInputs:
    """Loads the network and the images, and decides on their classes.

    Raises:
        ValueError: No such network, weights, data set, image or class.
        OSError: A file does not exist, or a download failed.
    """
    configs.check(config)
    forward, params = models.load(
        config.model, config.weights, preprocessing=config.preprocessing
    )
    names, source = config.image_names(), None
    if any(map(str.isdecimal, names)):
        as_stored = weights.as_stored(config.weights, config.photographs)
        source = data.load(config.dataset, config.split, config.data_dir, as_stored)
    opened = [_open(name, config, source) for name in names]
    predict = jax.jit(lambda params, x: list(forward(params, x).values())[-1][0])
    logits = [np.asarray(predict(params, image.pixels[None])) for image in opened]
    if logits[0].ndim != 1:
        raise ValueError(
            f"the last activation of {config.model} is no vector of logits"
        )
    classes = _class_names(config, source, len(logits[0]))
    requested = [_requested(label, classes) for label in config.labels()]
    if len(requested) == 1:
        requested *= len(opened)
    labeled = []
    for i, image in enumerate(opened):
        label, label_source = _index(image.class_name, classes), "true class"
        if requested:
            label, label_source = requested[i], "requested"
        if label is None:
            label, label_source = int(logits[i].argmax()), "predicted"
        labeled.append(LabeledImage(image.name, image.pixels, label, label_source))
    return LoadedInputs(forward, params, classes, labeled)


def _open(name: str, config: Inputs, source: data.Source | None) -> _Opened:
    """Reads an image file, or one of the data set's images by its number."""
    if source is not None and name.isdecimal():
        if int(name) >= len(source):
            raise ValueError(
                f"no image {name}: {config.dataset} {config.split} has 0 to"
                f" {len(source) - 1}; name others by --config.image"
            )
        example = source[int(name)]
        class_name = source.classes[example.label] if example.label >= 0 else ""
        pixels = images.to_array(crops.centered(example, config.size))
        return _Opened(f"{name} {short(class_name)}".strip(), pixels, class_name)
    path = assets.FOLDER / "demo_content.jpg" if name == "demo" else pathlib.Path(name)
    side = (config.size, config.size)
    image = ImageOps.fit(images.read(path).convert("RGB"), side, Resampling.BILINEAR)
    return _Opened(name, images.to_array(image), "")


def _class_names(
    config: Inputs, source: data.Source | None, count: int
) -> Sequence[str]:
    """Returns the logits' names, or numbers."""
    others = source.classes if source else ()
    names = class_names.of_logits(config.weights, config.model, count, others)
    return names or [f"class {number}" for number in range(count)]


def _index(name: str, classes: Sequence[str]) -> int | None:
    """Returns the number of the class with this name, or with this first name."""
    for names in (classes, list(map(short, classes))):
        if name in names:
            return names.index(name)
    return None


def _requested(label: str, classes: Sequence[str]) -> int:
    """Returns the number of a class given by name or number."""
    index = _index(label, classes)
    if index is not None:
        return index
    if label.isdecimal() and int(label) < len(classes):
        return int(label)
    nearest = difflib.get_close_matches(label, map(short, classes), n=3, cutoff=0)
    raise ValueError(
        f"no class {label!r} among the network's {len(classes)}; the nearest are"
        f" {', '.join(nearest)}"
    )
