"""Settings: the bounds of a Config's fields, and the fields that experiments share.

    @dataclasses.dataclass(kw_only=True)
    class Config(Network, Dataset):
        # Length of a step.
        learning_rate: float = bounded(0.1, above=0, most=10)
        # Parameters of the picture that is optimised.
        canvas: str = chosen("fourier", "pixels")

Fields are of type bool, int, float or str. The comment above a field is its help; a
field that only changes an inherited default keeps the inherited comment. The launcher
calls `check` before any work.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from nstvis.runs.registry import unknown

# No integer of 64 bits is as large.
_LIMIT = 2**63


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bounds:
    """The values that a field accepts: numbers of an interval, or some choices."""

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    choices: Sequence[Any] = ()

    def allow(self, value: Any) -> bool:
        """Whether the field accepts a value."""
        if self.choices:
            return value in self.choices
        return self.least <= value <= self.most and self.above < value < self.below

    def __str__(self) -> str:
        if self.choices:
            return " or ".join(map(str, self.choices))
        limits = {
            "at least": self.least,
            "above": self.above,
            "at most": self.most,
            "below": self.below,
        }
        return " and ".join(
            f"{words} {x:g}" if isinstance(x, float) else f"{words} {x}"
            for words, x in limits.items()
            if math.isfinite(x)
        )


def bounded(
    default: Any,
    *,
    least: float = -math.inf,
    most: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
) -> Any:
    """Declares a field that holds a number of an interval.

    Args:
        default: The field's default.
        least: Lowest value.
        most: Highest value.
        above: A limit that all values exceed.
        below: A limit that no value reaches.
    """
    bounds = Bounds(least=least, most=most, above=above, below=below)
    return dataclasses.field(default=default, metadata={"bounds": bounds})


def chosen(default: Any, *others: Any) -> Any:
    """Declares a field that takes its default or one of some other values."""
    bounds = Bounds(choices=(default, *others))
    return dataclasses.field(default=default, metadata={"bounds": bounds})


def check(config: Any) -> None:
    """Checks the fields of a config one by one, then calls its method `check`, if any.

    Raises:
        ValueError: A field is out of its bounds, not finite, or beyond 64 bits; or
            fields do not fit together, which is what the method checks.
    """
    for field in dataclasses.fields(config):
        name, value = field.name, getattr(config, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name}={value} should be a finite number")
        if isinstance(value, int) and not -_LIMIT <= value < _LIMIT:
            raise ValueError(f"{name}={value} should fit in 64 bits")
        bounds: Bounds | None = field.metadata.get("bounds")
        if bounds is None or bounds.allow(value):
            continue
        if bounds.choices and isinstance(value, str):
            raise ValueError(unknown(name, value, bounds.choices))
        raise ValueError(f"{name} should be {bounds}, not {value}")
    if hasattr(config, "check"):
        config.check()


def names(field: str, text: str) -> list[str]:
    """Splits `conv1,conv5` into names; an empty text has none.

    Args:
        field: The field's name, for the error.
        text: Names, separated by commas.

    Raises:
        ValueError: A name is empty, or given twice.
    """
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    for part in parts:
        if not part:
            raise ValueError(f"{field}={text}: there is nothing between two commas")
        if parts.count(part) > 1:
            raise ValueError(f"{field}={text}: {part} is given twice")
    return parts


@dataclasses.dataclass(kw_only=True)
class Network:
    """Fields of a run that uses a network."""

    # Network: a name, or the path of a file like those in nstvis/models/.
    model: str = "alexnet_small"
    # Weights: bundled, torchvision, caffe (VGG's as neural-style has them), random, or
    # the path of a file.
    weights: str = "bundled"
    # What images go through first: RGB of unit variance (torchvision), or BGR 0..255
    # less its mean (caffe); auto for what the name of the weights says.
    preprocessing: str = chosen("auto", "torchvision", "caffe")


@dataclasses.dataclass(kw_only=True)
class Dataset:
    """Fields of a run that reads a data set."""

    # Data set: primitives, tiny_imagenet, tfds:NAME, folder:PATH, or the path of a file
    # like those in nstvis/data/.
    dataset: str = "primitives"
    # Split, such as train, validation or train[:1000].
    split: str = "train"
    # Folder of the data set's files; the data set's own default if empty.
    data_dir: str = ""
    # Photographs: as_shown, with their EXIF orientation and colour profile applied, or
    # as_stored, without; auto is as_shown, but as_stored for torchvision's own weights,
    # which were trained so.
    photographs: str = chosen("auto", "as_shown", "as_stored")


@dataclasses.dataclass(kw_only=True)
class Batches:
    """Fields of a run that feeds images to a network."""

    # Side of the network's images in pixels; the central square is resized to it.
    size: int = bounded(64, least=1, most=8192)
    # Images per batch.
    batch: int = bounded(128, least=1, most=65536)


@dataclasses.dataclass(kw_only=True)
class Workers:
    """Fields of a run that decodes many images."""

    # Processes that decode images; 0 for threads of the main process.
    workers: int = bounded(0, least=0, most=256)


@dataclasses.dataclass(kw_only=True)
class Seed:
    """Fields of a run that draws random numbers."""

    # Seed of all random numbers.
    seed: int = bounded(0, least=0, below=2**32)


@dataclasses.dataclass(kw_only=True)
class Resumable:
    """Fields of a run that saves checkpoints."""

    # Seconds between two checkpoints.
    checkpoint_every: float = bounded(60.0, least=0)


@dataclasses.dataclass(kw_only=True)
class Profile:
    """What the launcher adds to every experiment's fields: no setting of the run."""

    # Steps to trace with JAX's profiler, after the first few; results are the same.
    profile: int = bounded(0, least=0)
