"""Metrics of a run: its numbers by step, one line of JSON each."""

import collections
import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import Any, Self

import jax

from nstvis import devices
from nstvis.runs import files

LAG = 3  # steps before metrics are fetched from the device, which is done by then


class Metrics:
    """Writes and reads `metrics.jsonl`."""

    def __init__(self, workdir: pathlib.Path, done: int):
        """Opens the file and drops lines after step `done`, of an interrupted run."""
        self.path = workdir / "metrics.jsonl"
        self._late: collections.deque[Mapping[str, Any]] = collections.deque()
        kept = [row for row in self.read() if row["step"] <= done]
        if devices.is_lead():
            files.write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        path = self.path if devices.is_lead() else pathlib.Path(os.devnull)
        self._file = path.open("a", buffering=1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with files.naming(self.path):
            self._file.close()

    def write(self, row: Mapping[str, Any]) -> dict[str, float] | None:
        """Takes the numbers of a step, including `step`, perhaps still on the device.

        They are written a few steps later, so that nothing waits for the device.

        Returns:
            The numbers written by this call, of an earlier step, if any.
        """
        self._late.append(row)
        return self._land() if len(self._late) > LAG else None

    def flush(self) -> dict[str, float] | None:
        """Writes all numbers taken so far; returns those of the last step, if any."""
        row = None
        while self._late:
            row = self._land()
        return row

    def _land(self) -> dict[str, float]:
        row = jax.device_get(dict(self._late.popleft()))
        numbers = {key: float(value) for key, value in row.items()}
        plain = {k: v if math.isfinite(v) else None for k, v in numbers.items()}
        with files.naming(self.path):
            self._file.write(json.dumps(plain | {"step": int(row["step"])}) + "\n")
        return numbers

    def read(self) -> list[dict[str, float]]:
        """Returns all rows, but for a last line that a kill cut short.

        Raises:
            ValueError: Another line is damaged.
        """
        rows = []
        lines = self.path.read_bytes().splitlines() if self.path.exists() else []
        for number, line in enumerate(lines, 1):
            if row := _row(line):
                rows.append(row)
            elif number < len(lines):
                raise ValueError(
                    f"line {number} of {self.path} is damaged: name another --workdir"
                )
        return rows


def _row(line: bytes) -> dict[str, float] | None:
    """Returns the numbers of a line; None if it is damaged."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(row, dict) and isinstance(row.get("step"), int)
    numbers = whole and all(isinstance(x, int | float | None) for x in row.values())
    return row if numbers else None
