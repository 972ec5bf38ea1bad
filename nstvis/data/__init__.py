"""Data sets: sequences of encoded images, each with an id and a label.

The id of an example names its image permanently, however a split is sliced, and leads
back to it: `source[source.index(id)].id == id`. In a folder it is the path relative to
the split's folder (`dogs/rex.jpg`); in all other data sets it is the whole split and the
position there (`train/000017`). Scans, tables and atlases refer to images by their ids.

`load("tiny_imagenet", "train")` opens a data set by name: `NAME` or `NAME:ARGUMENT`,
where NAME is a file beside this one, or the path of any file like those, with

    def load(argument: str, split: str, data_dir: str) -> Source

A source that knows more of its images than their classes may have a method

    def tags(self, index: int) -> Sequence[str]

which returns words for what is in an image; units are named by them (`units.concepts`).
The rest of this project reads data sets through `Source` alone.
"""

import dataclasses
import hashlib
import importlib
import pathlib
from collections.abc import Sequence
from typing import Protocol

import cloudpickle
import numpy as np
from PIL import Image

from nstvis import decoding, hosts
from nstvis.runs import registry

FOLDER = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Example:
    """One image of a data set, encoded.

    Attributes:
        id: Names the image permanently; see above.
        label: Index of its class in `Source.classes`; -1 if it has none.
        encoded: The bytes of a JPEG, PNG, WebP, TIFF or GIF file, perhaps damaged.
        as_stored: Whether its EXIF orientation and colour profile are ignored.
        unreadable: Why there are no bytes, if they could not be read.
    """

    id: str
    label: int
    encoded: bytes
    as_stored: bool = False
    unreadable: str = ""

    def decode(self) -> Image.Image:
        """Decodes the image.

        Raises:
            ValueError: It is damaged, or could not be read.
        """
        if self.unreadable:
            raise ValueError(f"{self.id}: cannot read this picture: {self.unreadable}")
        return decoding.decode(self.encoded, self.id, self.as_stored)


class Source(Protocol):
    """A split of a data set, with random access; it can be pickled.

    It may have a method `id_of(index) -> str`, too, if it knows ids without reading
    images; see the function of that name.

    Attributes:
        classes: Names of the classes, by label; empty if there are none.
    """

    classes: Sequence[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def index(self, id: str) -> int:
        """Returns the index of the example with an id.

        Raises:
            ValueError: There is none.
        """
        ...


def id_of(source: Source, index: int) -> str:
    """Returns the id of an example, without reading its image if the source can."""
    known = getattr(source, "id_of", None)
    return known(index) if known else source[index].id


def source_hash(source: Source) -> str:
    """Hashes a data set, by the number of its images and 32 of them."""
    digest = hashlib.sha256(
        f"{len(source)} {list(source.classes)}".encode(errors="surrogateescape")
    )
    for i in np.linspace(0, len(source) - 1, 32).astype(int):
        example = source[int(i)]
        digest.update(
            f"{example.id} {example.label}".encode(errors="surrogateescape")
            + example.encoded
        )
    return digest.hexdigest()[:16]


class _AsStored:
    """A source whose images are as their files store them."""

    def __init__(self, source: Source):
        self.source, self.classes = source, source.classes

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Example:
        return dataclasses.replace(self.source[index], as_stored=True)

    def index(self, id: str) -> int:
        return self.source.index(id)

    def id_of(self, index: int) -> str:
        return id_of(self.source, index)

    def tags(self, index: int) -> Sequence[str]:
        tags = getattr(self.source, "tags", None)
        return tags(index) if tags else ()


def _check(source: Source, dataset: str) -> None:
    """Raises a ValueError if a source is none, or does not find its last image again."""
    for name in ("classes", "__len__", "__getitem__", "index"):
        if not hasattr(source, name):
            kind = type(source).__name__
            raise ValueError(f"{dataset}: load returned a {kind}, which has no {name}")
    if not len(source):
        raise ValueError(f"{dataset} has no images")
    last = len(source) - 1
    if source.index(id_of(source, last)) != last:
        raise ValueError(f"{dataset}: index() does not find the image {last} by its id")


def names() -> list[str]:
    """Returns the data sets that `load` knows by name."""
    return registry.names(FOLDER)


def load(
    dataset: str, split: str, data_dir: str = "", as_stored: bool = False
) -> Source:
    """Opens a data set; the first time, it is downloaded or generated.

    Args:
        dataset: `tfds:NAME[/CONFIG]` (TensorFlow Datasets), `folder:PATH`,
            `tiny_imagenet`, `primitives`, or `FILE.py[:ARGUMENT]`, a file like those
            beside this one.
        split: `train`, `validation`, or another split of the data set.
        data_dir: The folder of its files; the data set's own default if empty.
        as_stored: Whether EXIF orientation and colour profiles are ignored, as
            torchvision does.

    Raises:
        ValueError: There is no such data set or split, or it is empty.
        OSError: A file or folder does not exist, or a download failed.
    """
    name, _, argument = dataset.partition(":")
    if name in names():
        module = importlib.import_module(f"{__name__}.{name}")
    else:
        module = registry.find("data set", name, FOLDER)
        # Or other processes, which decode images, could not import it.
        cloudpickle.register_pickle_by_value(module)
    if not hasattr(module, "load"):
        raise ValueError(f"{name} defines no load(argument, split, data_dir)")
    source = module.load(argument, split, data_dir)
    _check(source, dataset)
    if hosts.several():
        what = f"the hash of {dataset} {split} {data_dir}".strip()
        hosts.agree({what: source_hash(source)})
    return _AsStored(source) if as_stored else source
