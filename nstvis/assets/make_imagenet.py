"""Makes imagenet.csv: `python -m nstvis.assets.make_imagenet DATA_NOUN`.

The argument is WordNet 3.0's `data.noun` (its format: `man wndb`), whose offsets are the
wnids of ImageNet. The 1000 wnids of ILSVRC 2012 are those that TensorFlow Datasets lists.
"""

import pathlib
import sys

import tensorflow_datasets as tfds

from nstvis import assets
from nstvis.runs.files import write_csv

WNIDS = "image_classification/imagenet_resized_labels.txt"
# Groups of fewer classes, or of more, tell nothing.
SMALLEST, LARGEST = 3, 700


def main(nouns: str) -> None:
    """Writes the table next to this file."""
    synsets = read(pathlib.Path(nouns))
    wnids = sorted((pathlib.Path(tfds.__file__).parent / WNIDS).read_text().split())
    above = {wnid: hypernyms(wnid[1:], synsets) for wnid in wnids}
    members: dict[str, frozenset[str]] = {}
    for offset in set().union(*above.values()):
        members[offset] = frozenset(wnid for wnid in wnids if offset in above[wnid])
    # Of hypernyms of the same classes, the most specific.
    specific: dict[frozenset[str], str] = {}
    for offset in sorted(members, key=lambda x: (len(hypernyms(x, synsets)), x)):
        if SMALLEST <= len(members[offset]) <= LARGEST:
            specific[members[offset]] = offset
    names = distinct({offset: synsets[offset][0] for offset in specific.values()})
    rows = []
    for wnid in wnids:
        groups = sorted(
            (len(of), names[offset]) for of, offset in specific.items() if wnid in of
        )
        words = ", ".join(synsets[wnid[1:]][0])
        rows.append([wnid, words, "; ".join(name for _, name in groups)])
    write_csv(assets.FOLDER / "imagenet.csv", ("wnid", "class", "groups"), rows)


def read(nouns: pathlib.Path) -> dict[str, tuple[list[str], list[str]]]:
    """Returns each synset's words and the offsets of its hypernyms, by its offset."""
    synsets = {}
    for line in nouns.read_text().splitlines():
        if line.startswith("  "):  # the licence
            continue
        offset, _, _, count, *rest = line.partition("|")[0].split()
        words = int(count, 16)
        pointers = rest[2 * words + 1 :]
        synsets[offset] = (
            [word.replace("_", " ") for word in rest[: 2 * words : 2]],
            [
                target
                for kind, target in zip(pointers[::4], pointers[1::4])
                if kind in ("@", "@i")
            ],
        )
    return synsets


def hypernyms(offset: str, synsets: dict[str, tuple[list[str], list[str]]]) -> set[str]:
    """Returns the offsets of all that is above a synset."""
    direct = synsets[offset][1]
    return set(direct).union(*(hypernyms(x, synsets) for x in direct))


def distinct(words: dict[str, list[str]]) -> dict[str, str]:
    """Names synsets by their first word, or by the next where others have the same."""
    firsts = [names[0] for names in words.values()]
    return {
        offset: names[min(firsts.count(names[0]), 2, len(names)) - 1]
        for offset, names in words.items()
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
