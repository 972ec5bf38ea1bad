"""What all benchmarks print, and their flags: a table against PyTorch, also as JSON."""

import argparse
import functools
import importlib.metadata
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import turns
from benchmarks.turns import Turn
from nstvis.runs import files

# From a case, tasks and the batches in a turn to the turns: `turns.compare`.
Measure = Callable[[str, Sequence[str], int], list[list[Turn]]]


class Row(NamedTuple):
    """Two sides of the same work."""

    work: str
    against: str
    ours: Sequence[Turn]
    theirs: Sequence[Turn]

    def record(self) -> dict[str, Any]:
        """Returns its numbers; both ratios are ours over theirs."""
        ours, theirs = turns.median(self.ours), turns.median(self.theirs)
        our_peak, their_peak = self.ours[-1].peak, self.theirs[-1].peak
        return {
            "name": self.work,
            "against": self.against,
            "ours": ours,
            "theirs": theirs,
            "ratio": ours / theirs,
            "ours_best": turns.best(self.ours),
            "theirs_best": turns.best(self.theirs),
            "ours_mb": our_peak,
            "theirs_mb": their_peak,
            "mb_ratio": our_peak / their_peak if our_peak and their_peak else None,
        }


def header(unit: str) -> str:
    """Returns the first two lines of a table."""
    names = ["work", "against", f"ours, {unit}", "theirs", "ours : theirs"]
    names += ["ours, MB", "theirs", "ours : theirs"]
    return f"| {' | '.join(names)} |\n{'|---' * len(names)}|"


def line(record: dict[str, Any]) -> str:
    """Returns a row of the table: medians and bests, and peak memory."""
    speeds = [
        f"{_short(record[side])} / {_short(record[f'{side}_best'])}"
        for side in ("ours", "theirs")
    ]
    memory = [
        "" if record[name] is None else format(record[name], digits)
        for name, digits in (
            ("ours_mb", ".0f"),
            ("theirs_mb", ".0f"),
            ("mb_ratio", ".2f"),
        )
    ]
    cells = [record["name"], record["against"], *speeds, f"{record['ratio']:.2f}"]
    return f"| {' | '.join(cells + memory)} |"


def _short(speed: float) -> str:
    return f"{speed:.0f}" if speed >= 100 else f"{speed:.3g}"


def machine() -> dict[str, Any]:
    """Returns what the numbers depend on: processor, cores and versions."""
    about = Path("/proc/cpuinfo").read_text().splitlines()
    model = (line.partition(":")[2].strip() for line in about if "model name" in line)
    versions = {name: importlib.metadata.version(name) for name in ("jax", "torch")}
    return {
        "cpu": next(model, platform.machine()),
        "cores": len(os.sched_getaffinity(0)),
        "versions": {"python": platform.python_version()} | versions,
    }


def main(
    unit: str,
    work: Callable[[str, str], None],
    rows: Callable[[Measure, bool], Iterator[Row | str]],
) -> None:
    """Is the command line of a benchmark: prints its table, or is one of its workers.

    Args:
        unit: Of the speeds.
        work: Serves as the worker of some name in some case.
        rows: Measures, quickly or not, row by row; notes come after the last.
    """
    flags = _flags(sys.modules[rows.__module__].__doc__)
    if flags.worker:
        of_torch = flags.worker.startswith("torch")
        (turns.torch_setup if of_torch else turns.ours_setup)()
        return work(flags.worker, flags.case)
    command = f"python benchmarks/{Path(sys.argv[0]).name}{' --quick' * flags.quick}"
    common = {"unit": unit, "command": command, "machine": machine()}
    print(f"{_told(common)}\n\n{header(unit)}", flush=True)
    measure = functools.partial(turns.compare, turns=3 if flags.quick else 7)
    records = []
    for row in rows(measure, flags.quick):
        if isinstance(row, Row):
            records.append(row.record() | common)
        print(f"\n{row}" if isinstance(row, str) else line(records[-1]), flush=True)
    if flags.json:
        files.write_text(flags.json, json.dumps(records, indent=2) + "\n")


def _flags(description: str | None) -> argparse.Namespace:
    shown = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=shown)
    quick = "fewer cases and turns: at most two minutes on two cores"
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--json", type=Path, help="a file to write the numbers to")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.json and not flags.json.parent.is_dir():
        parser.error(f"{flags.json}: no such folder; make {flags.json.parent} first")
    return flags


def _told(common: dict[str, Any]) -> str:
    """Says what was run on what."""
    about = common["machine"]
    versions = ", ".join(map(" ".join, about["versions"].items()))
    return f"`{common['command']}` on {about['cores']} x {about['cpu']}, {versions}:"
