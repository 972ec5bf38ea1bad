"""Settings: what an experiment's Config is made of, and the bounds of its fields.

    @dataclasses.dataclass(kw_only=True)
    class Config(Network, Images):
        # Length of a step.
        learning_rate: float = bounded(0.1, above=0)
        # What is optimised.
        canvas: str = chosen("fourier", "pixels")

The comment above a field is its help. `check` is called before any work.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from nstvis.runs.registry import unknown

_WORD = 2**63


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bounds:
    """What a field may be: a number in an interval, or one of some choices."""

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    choices: Sequence[Any] = ()

    def allow(self, value: Any) -> bool:
        """Whether a value is within the bounds."""
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
        told = [f"{word} {x:g}" for word, x in limits.items() if math.isfinite(x)]
        return " and ".join(told)


def bounded(
    default: Any,
    *,
    least: float = -math.inf,
    most: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
) -> Any:
    """A number's field; `least` and `most` are allowed, `above` and `below` are not."""
    bounds = Bounds(least=least, most=most, above=above, below=below)
    return dataclasses.field(default=default, metadata={"bounds": bounds})


def chosen(default: Any, *others: Any) -> Any:
    """A field that takes its default and some other values."""
    bounds = Bounds(choices=(default, *others))
    return dataclasses.field(default=default, metadata={"bounds": bounds})


def check(config: Any) -> None:
    """Checks each field of a config, then what its own method `check` checks, if any.

    Raises:
        ValueError: A field is out of its bounds, not finite, or beyond 64 bits; or
            fields do not fit together.
    """
    for field in dataclasses.fields(config):
        name, value = field.name, getattr(config, field.name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name}={value} should be a finite number")
        if isinstance(value, int) and not -_WORD <= value < _WORD:
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
    """Parses `conv1,conv5` to names; none if empty.

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
    """Which network."""

    # Network: a name, or the path of a file like those in nstvis/models/.
    model: str = "alexnet_small"
    # Its weights: bundled, torchvision, random, or the path of a file.
    weights: str = "bundled"


@dataclasses.dataclass(kw_only=True)
class Dataset:
    """Which images."""

    # Data set: primitives, tiny_imagenet, tfds:NAME, folder:PATH, or the path of a file
    # like those in nstvis/data/.
    dataset: str = "primitives"
    # Its split, such as train, validation or train[:1000].
    split: str = "train"
    # Folder of the data set's files; its own default if empty.
    data_dir: str = ""


@dataclasses.dataclass(kw_only=True)
class Batches:
    """How images reach the network."""

    # Side of the images, of which the central square is taken, in pixels.
    size: int = bounded(64, least=1, most=8192)
    # Images in a batch.
    batch: int = bounded(128, least=1, most=65536)


@dataclasses.dataclass(kw_only=True)
class Workers:
    """Who prepares batches."""

    # Processes that prepare images; 0 for threads of this one.
    workers: int = bounded(0, least=0, most=256)


@dataclasses.dataclass(kw_only=True)
class Seed:
    """Where randomness starts."""

    # Seed of everything random.
    seed: int = bounded(0, least=0, below=2**32)


@dataclasses.dataclass(kw_only=True)
class Resumable:
    """How often a run can be resumed."""

    # Seconds between two checkpoints.
    checkpoint_every: float = bounded(60.0, least=0)
