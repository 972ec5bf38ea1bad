"""Data sets. A data set is a sequence of encoded images, each with an id and a label.

`load("tiny_imagenet", "train")` finds one by name: `NAME` or `NAME:ARGUMENT`, where
NAME is a file beside this one (or anywhere: its path is a name too) with

    def load(argument, split, data_dir) -> Source

Everything else in this project reads data sets through `Source` alone.
"""

import dataclasses
import importlib
import pathlib
from collections.abc import Sequence
from typing import Protocol

from nstvis.runs import registry

FOLDER = pathlib.Path(__file__).parent


@dataclasses.dataclass(frozen=True)
class Example:
    """One image of a data set, as its file holds it."""

    # Names the image for good: `Source.index(id)` finds it again.
    id: str
    # Position of its class in `Source.classes`; -1 if it has none.
    label: int
    # The bytes of a JPEG, PNG, WebP, TIFF or GIF file, which may be damaged.
    encoded: bytes


class Source(Protocol):
    """A data set that can be read in any order, and from other processes (pickled)."""

    # Names of the classes, by label; empty if there are none.
    classes: Sequence[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example: ...

    def index(self, id: str) -> int:
        """Finds an example by its id.

        Raises:
            ValueError: There is none of that id.
        """
        ...


def names() -> list[str]:
    """The data sets that `load` knows by name."""
    return registry.names(FOLDER)


def load(dataset: str, split: str, data_dir: str = "") -> Source:
    """Opens a data set, which is downloaded or generated on first use.

    Args:
        dataset: `tfds:NAME[/CONFIG]` (TensorFlow Datasets), `folder:PATH`,
            `tiny_imagenet`, `primitives`, or `FILE.py[:ARGUMENT]`, a file like those
            beside this one.
        split: `train`, `validation`, or what else the data set has.
        data_dir: Where its files are; the data set's own default if empty.

    Raises:
        ValueError: No such data set or split, or nothing in it.
        OSError: A file or folder does not exist, or a download failed.
    """
    name, _, argument = dataset.partition(":")
    if name in names():
        module = importlib.import_module(f"{__name__}.{name}")
    else:
        module = registry.find("data set", name, FOLDER)
    return module.load(argument, split, data_dir)
