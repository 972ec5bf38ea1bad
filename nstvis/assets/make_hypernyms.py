"""Makes hypernyms.csv: `python -m nstvis.assets.make_hypernyms DATA_NOUN ARCHIVE`.

The arguments are WordNet 3.0's `data.noun` (its format: `man wndb`), whose offsets are
the wnids, and `tiny-imagenet-200.zip`.
"""

import pathlib
import sys
import zipfile

from nstvis import assets
from nstvis.runs.files import write_csv

# Larger groups are nearly all of the classes.
LARGEST = 150


def main(nouns: str, archive: str) -> None:
    synsets = read(pathlib.Path(nouns))
    with zipfile.ZipFile(archive) as files:
        wnids = sorted(files.read("tiny-imagenet-200/wnids.txt").decode().split())
    above = {wnid: hypernyms(wnid[1:], synsets) for wnid in wnids}
    members: dict[str, frozenset[str]] = {}
    for offset in set().union(*above.values()):
        members[offset] = frozenset(wnid for wnid in wnids if offset in above[wnid])
    # Of hypernyms of the same classes, the most specific.
    specific: dict[frozenset[str], str] = {}
    for offset in sorted(members, key=lambda x: (len(hypernyms(x, synsets)), x)):
        if 2 <= len(members[offset]) <= LARGEST:
            specific[members[offset]] = offset
    names = distinct({offset: synsets[offset][0] for offset in specific.values()})
    rows = []
    for wnid in wnids:
        groups = sorted(
            (-len(of), names[offset]) for of, offset in specific.items() if wnid in of
        )
        words = ", ".join(synsets[wnid[1:]][0])
        rows.append([wnid, words, "; ".join(name for _, name in groups)])
    write_csv(assets.FOLDER / "hypernyms.csv", ("wnid", "class", "groups"), rows)


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
