"""Folders of images: pipes, links, odd names, damaged files."""

import os
import pathlib

from nstvis import data
from tests.fuzz import mutations, pictures

_NAMES = ["a", "b.png", "c.jpg", "train", "validation", ".png", "\n.png", "e\tf.png"]
_NAMES += ["\udcff.png", "\x1b[2J.jpg", "x" * 250 + ".png", "d.PNG", "-", "~.gif", " "]


def case(random, folder):
    folders = [folder / "root"]
    folders[0].mkdir()
    for _ in range(random.randint(1, 12)):
        path = random.choice(folders) / random.choice(_NAMES)
        if os.path.lexists(path):
            continue
        match random.randrange(8):
            case 0 | 1:
                path.mkdir()
                folders.append(path)
            case 2:
                os.mkfifo(path)
            case 3:
                path.symlink_to(random.choice(["nowhere", ".", "..", path.name]))
            case 4:
                path.write_bytes(b"")
            case _:
                raw = random.choice(pictures.whole())[1]
                damaged = random.random() < 0.3
                path.write_bytes(mutations.of_bytes(random, raw) if damaged else raw)
    split = random.choice(["train", "all", "validation", "", "train[:2]", ".."])
    return lambda: _read(folders[0], split)


def _read(root: pathlib.Path, split: str):
    source = data.load(f"folder:{root}", split)
    for index in range(len(source)):
        try:
            source[index].decode()
        except (ValueError, OSError) as error:  # counted and listed by the pipeline
            assert str(error).strip()
