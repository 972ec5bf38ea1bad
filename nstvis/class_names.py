"""Names of classes: those of a network's logits, and the groups that classes belong to."""

import functools
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from nstvis import assets, weights
from nstvis.runs import files


class Class(NamedTuple):
    """A class of ImageNet; imagenet.md says where this is from."""

    # Separated by commas, as Tiny ImageNet's archive has them.
    words: str
    # Of classes, from the smallest, such as `dog`, to the largest, such as `animal`.
    groups: list[str]


@functools.cache
def imagenet() -> dict[str, Class]:
    """Returns ImageNet's 1000 classes by wnid, in the order of logits."""
    rows = files.read_csv(assets.FOLDER / "imagenet.csv")
    return {
        wnid: Class(words, groups.split("; ") if groups else [])
        for wnid, words, groups in rows
    }


@functools.cache
def find(name: str) -> Class | None:
    """Returns a class of ImageNet by its wnid or by its words, if it is one alone.

    There are two cranes, for example: a bird and a machine.
    """
    known = imagenet()
    of_words = [x for x in known.values() if x.words == name]
    return known.get(name) or (of_words[0] if len(of_words) == 1 else None)


def short(name: str) -> str:
    """Returns the first of a class's names, such as `goldfish` of `goldfish, ...`."""
    return name.partition(",")[0]


def of_logits(
    source: str, model: str, count: int, others: Sequence[str] = ()
) -> list[str]:
    """Returns the names of a network's logits, in order; none if they are not known.

    Args:
        source: The network's weights, as for `weights.load`.
        model: The network's name, or its path.
        count: How many logits there are.
        others: The classes of a data set, for weights that have no names of their own.

    Raises:
        ValueError: There are no such weights, or the file is damaged.
    """
    published = source in ("torchvision", "caffe") or weights.is_caffe(source)
    of_imagenet = [x.words for x in imagenet().values()] if published else []
    of_weights = weights.classes(source, pathlib.Path(model).stem)
    for names in (of_weights, of_imagenet, others):
        if len(names) == count:
            return list(names)
    return []
