"""Image data sets of TensorFlow Datasets, `tfds:NAME[/CONFIG]`, without TensorFlow.

https://www.tensorflow.org/datasets/catalog
"""

import contextlib
import dataclasses
import difflib
import importlib
import io
import logging
import operator
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds
from absl import logging as absl_logging

from nstvis.data import Example
from nstvis.runs.registry import unknown

logger = logging.getLogger(__name__)

# Builders of this package; importing one registers it with TFDS.
OURS = ("primitives", "tiny_imagenet")

_ELSEWHERE = (
    "prepare it on another machine with file_format='array_record' and give its folder"
    " as data_dir, or use folder:PATH"
)


@dataclasses.dataclass(frozen=True)
class Records:
    """A split of a prepared TFDS data set, perhaps a slice or a sum of splits.

    Attributes:
        split: Its name, such as `train[:100]+test`.
        classes: Names of the classes, by label.
        splits: TFDS's data sources of the whole splits, by name.
        ranges: The (whole split, start, stop) that it consists of, in order.
        image_key: The feature that holds the image.
        label_key: The feature that holds the label; empty if there is none.
    """

    split: str
    classes: Sequence[str]
    splits: Mapping[str, Sequence[dict]]
    ranges: Sequence[tuple[str, int, int]]
    image_key: str
    label_key: str

    def __len__(self) -> int:
        return sum(stop - start for _, start, stop in self.ranges)

    def __getitem__(self, index: int) -> Example:
        split, position = self._place(index)
        record = self.splits[split][position]
        label = int(record[self.label_key]) if self.label_key else -1
        return Example(self.id_of(index), label, record[self.image_key])

    def id_of(self, index: int) -> str:
        """Names an example by its position in the whole split, the same in all slices."""
        split, position = self._place(index)
        return f"{split}/{position:06d}"

    def record(self, index: int) -> dict:
        """Returns all features of an example; the image is encoded."""
        split, position = self._place(range(len(self))[operator.index(index)])
        return self.splits[split][position]

    def index(self, id: str) -> int:
        """Returns the index of the example with an id, such as `train/000017`."""
        split, _, digits = id.rpartition("/")
        position = int(digits) if digits.isdecimal() else -1
        offset = 0
        for name, start, stop in self.ranges:
            if name == split and start <= position < stop:
                return offset + position - start
            offset += stop - start
        raise ValueError(f"no example {id!r} in {self.split!r}: {self[0].id!r} is one")

    def _place(self, index: int) -> tuple[str, int]:
        """Returns the whole split and the position there of an index."""
        index = range(len(self))[operator.index(index)]
        for split, start, stop in self.ranges:
            if index < stop - start:
                return split, start + index
            index -= stop - start
        raise IndexError(index)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides what TFDS and its downloads log, but not their progress bars."""
    retries, before = logging.getLogger("urllib3"), absl_logging.get_verbosity()
    level = retries.level
    absl_logging.set_verbosity(absl_logging.ERROR)
    retries.setLevel(logging.ERROR)
    try:
        yield
    finally:
        absl_logging.set_verbosity(before)
        retries.setLevel(level)


@quiet()
def load(argument: str, split: str, data_dir: str) -> Records:
    """Opens a data set; the first time, it is downloaded and prepared.

    Args:
        argument: `NAME`, `NAME/CONFIG` or `NAME/CONFIG:VERSION`.
        split: Such as `train`, `train[:80%]` or `train+test`.
        data_dir: TFDS's data folder; ~/tensorflow_datasets if empty.

    Raises:
        ValueError: There is no such data set, configuration or split, or it cannot be
            prepared.
        OSError: A download failed.
    """
    builder = _builder(argument, data_dir)
    prepare(builder)
    return read(builder, split)


def prepare(builder: tfds.core.DatasetBuilder) -> None:
    """Downloads a data set and writes it as ArrayRecord files, once.

    Raises:
        ValueError: It needs TensorFlow, or files that must be downloaded by hand.
        OSError: A download failed.
    """
    problem = f"cannot prepare {builder.name}"
    if not builder.is_prepared():
        logger.info("preparing %s, once, in %s", builder.name, builder.data_path)
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints the same there
            builder.download_and_prepare(file_format="array_record")
    except ImportError as error:
        raise ValueError(f"{problem} here ({_line(error)}): {_ELSEWHERE}") from error
    except OSError:
        # Another process may have finished first: TFDS renames the folder at the end.
        if not builder.data_path.exists():
            raise
    except Exception as error:
        raise ValueError(f"{problem}: {_line(error)}") from error


def read(builder: tfds.core.DatasetBuilder, split: str) -> Records:
    """Opens a split of a prepared data set.

    Raises:
        ValueError: There is no such split, or its examples are not one image each.
    """
    # A builder that any process can unpickle, whatever file defines the data set.
    reader: Any = tfds.builder_from_directory(builder.data_path)
    features = reader.info.features
    images = _keys(features, tfds.features.Image)
    labels = _keys(features, tfds.features.ClassLabel)
    if len(images) != 1:
        keys = ", ".join(images) or "none"
        raise ValueError(f"{builder.name} must have one image per example, not {keys}")
    label_key = labels[0] if len(labels) == 1 else ""
    ranges = _ranges(reader.info, split)
    decoders = {images[0]: tfds.decode.SkipDecoding()}
    names = {name for name, _, _ in ranges}
    try:
        splits = {
            name: reader.as_data_source(name, decoders=decoders) for name in names
        }
    except NotImplementedError as error:
        raise ValueError(
            f"the files in {builder.data_path} are not ArrayRecords, so they cannot be"
            " read in any order: give another data_dir to prepare them again"
        ) from error
    classes = tuple(features[label_key].names) if label_key else ()
    return Records(split, classes, splits, ranges, images[0], label_key)


def _builder(argument: str, data_dir: str) -> tfds.core.DatasetBuilder:
    name, *_ = re.split("[/:]", argument)
    if name in OURS:
        importlib.import_module(f"nstvis.data.{name}")
    try:
        return tfds.builder(argument, data_dir=data_dir or None)
    except ImportError as error:
        message = f"cannot open {argument} here ({_line(error)}): {_ELSEWHERE}"
        raise ValueError(message) from error
    except (AssertionError, ValueError) as error:
        raise ValueError(_refusal(argument, error)) from error


def _refusal(argument: str, error: Exception) -> str:
    """Returns one line that says why there is no such data set; TFDS's has hundreds."""
    name, _, config = argument.partition(":")[0].partition("/")
    known = tfds.list_builders(with_community_datasets=False)  # those take TensorFlow
    if name not in known:
        nearest = difflib.get_close_matches(name, known)
        hint = f"did you mean {' or '.join(map(repr, nearest))}? " if nearest else ""
        catalog = "they are listed at https://www.tensorflow.org/datasets/catalog"
        return f"no TensorFlow data set {name!r}: {hint}{catalog}"
    configs = tfds.builder_cls(name).builder_configs
    if config and config not in configs:
        return unknown(f"{name} configuration", config, configs)
    return f"cannot open {argument!r}: {_line(error)}"


def _keys(features: Mapping[str, Any], kind: type) -> list[str]:
    """Returns the features of a kind, sorted, as TFDS lists them in any order."""
    return sorted(name for name, value in features.items() if isinstance(value, kind))


def _ranges(info: tfds.core.DatasetInfo, split: str) -> list[tuple[str, int, int]]:
    """Returns the ranges of whole splits that a split or slice consists of."""
    try:
        parts = tfds.core.ReadInstruction.from_spec(split).to_absolute(info.splits)
    except ValueError as error:
        message = f"no split {split!r} of {info.name}: {_line(error)}"
        raise ValueError(message) from error
    ranges = []
    for part in parts:
        size = info.splits[part.splitname].num_examples
        start, stop, _ = slice(part.from_, part.to).indices(size)
        if start < stop:
            ranges.append((part.splitname, start, stop))
    if not ranges:
        raise ValueError(f"no examples in {split!r} of {info.name}")
    return ranges


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or repr(error)
