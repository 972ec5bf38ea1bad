"""Processes that take turns on the same cores: while one works, the others are stopped.

A script that calls `compare` is started again as each worker, with `--worker` and
`--case`, and then calls `serve`.
"""

import contextlib
import itertools
import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

TURNS = 7
# Takes batches, and waits until they are done with.
Take = Callable[[Sequence[Any]], None]


class Turn(NamedTuple):
    """What a worker reports after its turn."""

    speed: float  # images per second
    peak: float  # its memory so far, in MB


class Worker:
    """A process that works when it is asked to, and is stopped otherwise."""

    def __init__(self, command: Sequence[str]):
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that it is stopped with its own workers
        )

    def ask(self, line: str) -> Any:
        """Wakes it, sends it a line, waits for its answer, and stops it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        os.killpg(self._process.pid, signal.SIGCONT)
        self._process.stdin.write(line)
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        os.killpg(self._process.pid, signal.SIGSTOP)
        return answer

    def close(self) -> None:
        """Ends it."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def compare(
    script: str, case: str, workers: Mapping[str, Sequence[str]], count: int
) -> dict[tuple[str, str], list[Turn]]:
    """Starts workers and lets them take turns.

    Args:
        script: The file that is run as a worker.
        case: What all workers get as `--case`.
        workers: The tasks of each, by its name.
        count: Batches in a turn.

    Returns:
        The turns, by worker and task.
    """
    measured = {(name, task): [] for name, tasks in workers.items() for task in tasks}
    with contextlib.ExitStack() as stack:
        started = {}
        for name in workers:
            command = [sys.executable, script, f"--case={case}", f"--worker={name}"]
            started[name] = Worker(command)
            stack.callback(started[name].close)
            started[name].ask("")  # is it ready?
        for _ in range(TURNS):
            for (name, task), rows in measured.items():
                rows.append(Turn(*started[name].ask(f"{task} {count}\n")))
    return measured


def serve(images: int, batches: Iterator[Any], tasks: Mapping[str, Take]) -> None:
    """Is a worker: takes as many batches of `images` as each line of its input says."""
    for take in tasks.values():
        take(list(itertools.islice(batches, 3)))
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        task, count = line.split()
        part = list(itertools.islice(batches, int(count)))
        began = time.perf_counter()
        tasks[task](part)
        speed = images * len(part) / (time.perf_counter() - began)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(Turn(speed, peak)), flush=True)


def median(turns: Sequence[Turn]) -> float:
    """Images per second."""
    return statistics.median(turn.speed for turn in turns)


def both(turns: Sequence[Turn]) -> str:
    """Images per second: the median and the highest."""
    return f"{median(turns):.0f} / {max(turn.speed for turn in turns):.0f}"
