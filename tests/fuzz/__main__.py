"""The command: which kinds, for how long, and the table at the end."""

import argparse
import dataclasses
import pathlib
import shutil
import tempfile
import time

from tests.fuzz import kills
from tests.fuzz.watched import Result, Worker

KINDS = ("pictures", "weights", "folders", "atlas_files", "flags")
HEADER = ("kind", "tried", "refused", "accepted", "failed", "slowest s", "most MB")


@dataclasses.dataclass
class Row:
    """What came of the cases of one kind."""

    kind: str
    outcomes: dict[str, int] = dataclasses.field(default_factory=dict)
    slowest: float = 0.0
    megabytes: float = 0.0

    def add(self, result: Result) -> None:
        self.outcomes[result.outcome] = self.outcomes.get(result.outcome, 0) + 1
        self.slowest = max(self.slowest, result.seconds)
        self.megabytes = max(self.megabytes, result.megabytes)

    def cells(self) -> list[str]:
        counts = [self.outcomes.get(x, 0) for x in ("refused", "accepted", "failed")]
        numbers = [sum(counts), *counts, f"{self.slowest:.2f}", f"{self.megabytes:.0f}"]
        return [self.kind, *map(str, numbers)]


def fuzz(kind: str, seed: str, seconds: float, work: pathlib.Path) -> Row:
    """Tries cases of a kind until the time is over."""
    row, number, end = Row(kind), 0, time.monotonic() + seconds
    worker = Worker(f"tests.fuzz.{kind}", work / kind)
    try:
        while time.monotonic() < end:
            row.add(result := worker.run(f"{seed}-{number}"))
            if result.outcome == "failed":
                _keep(work, kind, f"{seed}-{number}", result)
            number += 1
    finally:
        worker.stop()
    return row


def kill(seed: str, seconds: float, work: pathlib.Path) -> Row:
    """Kills runs of one experiment after another until the time is over."""
    row, number, end = Row("kills"), 0, time.monotonic() + seconds
    while time.monotonic() < end:
        row.add(result := kills.run(f"{seed}-{number}", work / "kills"))
        if result.outcome == "failed":
            _keep(work, "kills", f"{seed}-{number}", result)
        number += 1
    return row


def _keep(work: pathlib.Path, kind: str, seed: str, result: Result) -> None:
    """Keeps what reproduces a failure: the input, the seed and what was said."""
    kept = work / "failures" / f"{kind}-{seed}"
    if (work / kind / "case").exists():
        shutil.copytree(
            work / kind, kept, symlinks=True, ignore=_pipes, dirs_exist_ok=True
        )
    kept.mkdir(parents=True, exist_ok=True)
    again = f"python -m tests.fuzz --kinds={kind} --case={seed}"
    (kept / "failure.txt").write_text(f"{again}\n{result.reason}\n", errors="replace")
    print(f"failed: {kept}: {result.reason.strip().splitlines()[-1]}", flush=True)


def _pipes(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if (pathlib.Path(folder) / name).is_fifo()]


def _one(kind: str, seed: str, work: pathlib.Path) -> Result:
    if kind == "kills":
        return kills.run(seed, work / kind)
    worker = Worker(f"tests.fuzz.{kind}", work / kind)
    try:
        return worker.run(seed)
    finally:
        worker.stop()


def main() -> int:
    """Returns the exit status: 1 if anything failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--minutes", type=float, default=5, help="all kinds together")
    parser.add_argument("--seed", default="1")
    parser.add_argument("--kinds", default=",".join([*KINDS, "kills"]))
    parser.add_argument("--case", help="one case alone, as failure.txt names it")
    parser.add_argument("--work", type=pathlib.Path, help="for inputs and failures")
    asked = parser.parse_args()
    kinds = asked.kinds.split(",")
    work = asked.work or pathlib.Path(tempfile.mkdtemp(prefix="fuzz-"))
    if asked.case:
        result = _one(kinds[0], asked.case, work)
        print(result.outcome, result.reason)
        return result.outcome == "failed"
    seconds = 60 * asked.minutes / len(kinds)
    rows = []
    for kind in kinds:
        tried = kill if kind == "kills" else lambda *x, kind=kind: fuzz(kind, *x)
        rows.append(tried(asked.seed, seconds, work).cells())
        print(" ".join(rows[-1]), flush=True)
    widths = [max(map(len, column)) for column in zip(HEADER, *rows, strict=True)]
    for row in [HEADER, *rows]:
        print("  ".join(map(str.ljust, row, widths)).rstrip())
    return any(row[4] != "0" for row in rows)


if __name__ == "__main__":
    raise SystemExit(main())
