"""How a survey of units grows with the images: its time, memory and files.

    python benchmarks/growth.py WORKDIR [DATASET] [DATA_DIR]

Surveys 25, 50 and 100 thousand images of a thousand classes with AlexNet at 224 pixels.
The images are a data set's, each of them under many ids, and with labels that mean
nothing: this file is a data set, too. Without attributions and explanations, whose number
does not grow. CPU time is that of all threads, and of all parts together.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from nstvis import data

COUNTS = (25_000, 50_000, 100_000)
CLASSES = 1000


class Repeated:
    """The first images of an endless repetition of a data set."""

    classes = tuple(f"class {i}" for i in range(CLASSES))

    def __init__(self, source: data.Source, count: int):
        self._source, self._count = source, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> data.Example:
        if not 0 <= index < self._count:
            raise IndexError(index)
        encoded = self._source[index % len(self._source)].encoded
        return data.Example(self.id_of(index), index * 37 % CLASSES, encoded)

    def id_of(self, index: int) -> str:
        """Returns an id that is the image's own."""
        return f"train/{index:07}"

    def index(self, id: str) -> int:
        """Returns the index of an id."""
        return int(id.removeprefix("train/"))


def load(argument: str, split: str, data_dir: str) -> Repeated:
    """Opens a data set as a split of so many images."""
    return Repeated(data.load(argument, "train", data_dir), int(split))


def survey(workdir: Path, count: int, dataset: str, data_dir: str) -> str:
    """Surveys so many images; returns a row of the table."""
    flags = {
        "dataset": f"{__file__}:{dataset}",
        "split": count,
        "data_dir": data_dir,
        "model": "alexnet",
        "weights": "random",
        "size": 224,
        "attribution": "",
        "explain": False,
    }
    command = [sys.executable, "-m", "nstvis", "--experiment=units"]
    command += [f"--config.{name}={value}" for name, value in flags.items()]
    began = time.time()
    process = subprocess.Popen([*command, f"--workdir={workdir}"])
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)  # nobody else waits for it
    if process.returncode:
        sys.exit(f"{workdir}: the survey failed")
    scanned = (workdir / "scan.npz").stat().st_mtime
    sizes = [
        sum(path.stat().st_size for path in (workdir / name).rglob("*")) / 1e6
        for name in ("atlas", "sheets")
    ]
    return (
        f"| {count} | {scanned - began:.0f} | {time.time() - scanned:.0f}"
        f" | {usage.ru_utime + usage.ru_stime:.0f}"
        f" | {usage.ru_maxrss * 1024 / 1e6:.0f} | {sizes[0]:.0f} | {sizes[1]:.0f} |"
    )


def main(folder: str, dataset: str = "primitives", data_dir: str = "") -> None:
    """Prints the table."""
    rows = [survey(Path(folder) / str(n), n, dataset, data_dir) for n in COUNTS]
    print(
        "| images | scan, s | drawing, s | CPU, s | peak, MB | atlas, MB | sheets, MB |"
    )
    print("|---|---|---|---|---|---|---|", *rows, sep="\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
