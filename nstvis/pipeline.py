"""The input pipeline: batches of a data set, in an order that depends on the seed alone.

Batches are dicts of `image`, uint8 `[batch, size, size, 3]`, RGB, and `label`, int32
`[batch]`; those of `evaluation` have `index`, int32 `[batch]`, too. Every host makes its
part of each batch.
"""

import contextlib
import dataclasses
import logging
import math
import pathlib
import re
import threading

import grain
import jax
import numpy as np
from absl import flags
from PIL import Image

from nstvis import crops
from nstvis.data import Example, Source
from nstvis.runs.files import naming

logger = logging.getLogger(__name__)

_LISTING = threading.Lock()
_ESCAPE = re.compile(
    r"\\(?:[\\tnr]|x[0-9a-f]{2}|u[0-9a-f]{4}|U00(?:0[0-9a-f]|10)[0-9a-f]{4})"
)


def shapes(batch: int, size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes and dtypes of a batch of `batch` images of side `size`."""
    return {
        "image": jax.ShapeDtypeStruct((batch, size, size, 3), np.uint8),
        "label": jax.ShapeDtypeStruct((batch,), np.int32),
    }


@dataclasses.dataclass
class Damaged:
    """Lists the images that could not be read or decoded, one per line of a file.

    Line breaks and other characters that do not print are escaped, as in Python. Threads
    and processes may share the file; each reads what others have added.
    """

    path: pathlib.Path
    # The ids in the file, as far as it has been read; and what is left of a line that a
    # killed process has begun.
    _known: dict[str, None] = dataclasses.field(default_factory=dict, init=False)
    _read: int = dataclasses.field(default=0, init=False)
    _begun: bytes = dataclasses.field(default=b"", init=False)

    def add(self, example: Example, error: Exception) -> None:
        """Lists an image, unless it is listed already."""
        with _LISTING:
            self._update()
            if example.id in self._known:
                return
            reason = _escaped(str(error))
            logger.warning("skipped a damaged image: %s", reason)
            line = f"{_escaped(example.id)}\t{reason}\n".encode()
            with naming(self.path), self.path.open("ab") as file:
                file.write(b"\n" + line if self._begun else line)

    def ids(self) -> list[str]:
        """Returns the ids of the images listed so far."""
        with _LISTING:
            self._update()
            return list(self._known)

    def _update(self) -> None:
        """Reads the lines that are new."""
        with contextlib.suppress(FileNotFoundError), self.path.open("rb") as file:
            file.seek(self._read)
            *lines, self._begun = file.read().split(b"\n")
            self._read = file.tell() - len(self._begun)
            for line in lines:
                id, _, _ = line.decode(errors="surrogateescape").partition("\t")
                self._known[_unescaped(id)] = None


def _escaped(text: str) -> str:
    return "".join(
        c if c.isprintable() and c != "\\" else c.encode("unicode_escape").decode()
        for c in text
    )


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda found: found[0].encode().decode("unicode_escape"), text)


def training(
    source: Source,
    size: int,
    batch: int,
    *,
    seed: int,
    augmentation: crops.Augmentation,
    damaged: Damaged,
    workers: int,
) -> grain.IterDataset:
    """Yields shuffled and augmented batches without end.

    A damaged image is replaced by the next one that is not damaged.

    Args:
        source: The images.
        size: Side of the squares that they are cropped and resized to.
        batch: Images in a batch of all hosts together.
        seed: Of the order and the augmentation.
        augmentation: How the images are changed.
        damaged: Where damaged images are listed.
        workers: Processes that make batches; 0 for threads of this one.

    Raises:
        ValueError: From the iterator: all images are damaged, or a label is none.
    """

    def make(index: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        for i in range(index, index + len(source)):
            example = source[i % len(source)]
            try:
                image = example.decode().convert("RGB")
            except ValueError as error:
                damaged.add(example, error)
                continue
            image = crops.augmented(image, size, augmentation, rng)
            return _element(image, _label(example, source))
        raise ValueError(f"all {len(source)} images are damaged: see {damaged.path}")

    order = grain.MapDataset.range(len(source)).seed(seed).shuffle()
    host = order[jax.process_index() :: jax.process_count()].repeat()
    return _batched(host.random_map(make), batch // jax.process_count(), workers)


def evaluation(
    source: Source,
    size: int,
    batch: int,
    *,
    damaged: Damaged,
    workers: int,
    alone: bool = False,
) -> grain.IterDataset:
    """Yields the central crops of all images once, in order, with their index.

    Damaged images, and those that fill the last batch, have label and index -1. The
    arguments are those of `training`, but for `alone`: whether this host makes all of
    each batch, whatever others do.
    """

    def make(index: int) -> dict[str, np.ndarray]:
        if index < len(source):
            example = source[index]
            try:
                image = crops.centered(example, size)
            except ValueError as error:
                damaged.add(example, error)
            else:
                return _element(image, _label(example, source)) | {
                    "index": np.array(index, np.int32)
                }
        blank = Image.new("RGB", (size, size))
        return _element(blank, -1) | {"index": np.array(-1, np.int32)}

    padded = math.ceil(len(source) / batch) * batch
    first, hosts = (0, 1) if alone else (jax.process_index(), jax.process_count())
    host = grain.MapDataset.range(padded)[first::hosts]
    return _batched(host.map(make), batch // hosts, workers)


def _batched(elements: grain.MapDataset, batch: int, workers: int) -> grain.IterDataset:
    threads = grain.ReadOptions(num_threads=4, prefetch_buffer_size=4 + 2 * batch)
    iterable = elements.to_iter_dataset(threads)
    if workers:
        flags.FLAGS.mark_as_parsed()  # Grain asks absl's own, which nobody else uses
        # Before batching, or the last batch of each worker would be partial.
        options = grain.MultiprocessingOptions(num_workers=workers)
        iterable = iterable.mp_prefetch(options)
    return iterable.batch(batch, drop_remainder=True)


def _label(example: Example, source: Source) -> int:
    """Returns an example's label, if it is one."""
    label, count = example.label, len(source.classes)
    whole = isinstance(label, (int, np.integer))
    if not whole or label < -1 or (count and label >= count):
        raise ValueError(
            f"{example.id}: label {label!r} of a data set of {count} classes; give -1 for"
            " none"
        )
    return int(label)


def _element(image: Image.Image, label: int) -> dict[str, np.ndarray]:
    return {"image": np.asarray(image), "label": np.array(label, np.int32)}
