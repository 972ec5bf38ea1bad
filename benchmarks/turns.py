"""Processes that take turns on the same cores: while one works, the others are stopped.

A script that calls `compare` is started again as each worker (see `report.main`), and
then calls `serve`.
"""

import contextlib
import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil

# glibc gives every large buffer back to the system and takes it again, page by page.
# With these settings PyTorch's processes keep them, as ours do (`ours_setup`).
KEEP_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": f"{2**31 - 1}",
    "MALLOC_TOP_PAD_": f"{256 << 20}",
    "MALLOC_ARENA_MAX": "1",
}
# Takes batches, and waits until they are done with.
Take = Callable[[Sequence[Any]], None]


class Turn(NamedTuple):
    """What a worker reports after its turn."""

    speed: float  # images, steps or whatever is counted, per second
    peak: float | None  # its memory so far, in MB; None where it has no process


def ours_setup() -> None:
    """Does to our workers what the launcher does to an experiment."""
    from nstvis import devices

    devices.connect()
    devices.keep_memory()


def torch_setup() -> None:
    """Gives PyTorch all cores."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))


class Worker:
    """A process that works when it is asked to, and is stopped otherwise.

    Args:
        case: What it gets as `--case`.
        name: What it gets as `--worker`: one that begins with `torch` is PyTorch's, and
            keeps its memory unless it ends with `untuned`.
    """

    def __init__(self, case: str, name: str):
        tuned = name.startswith("torch") and not name.endswith("untuned")
        self._process = subprocess.Popen(
            [sys.executable, sys.argv[0], f"--case={case}", f"--worker={name}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | (KEEP_MEMORY if tuned else {}),
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
        self._process.communicate()


def compare(
    case: str, tasks: Sequence[str], count: int, turns: int
) -> list[list[Turn]]:
    """Starts workers and lets them take turns.

    Args:
        case: What all workers get as `--case`.
        tasks: Each is a worker and what it does, such as `torch forward`.
        count: Batches in a turn.
        turns: How many turns each task gets.

    Returns:
        The turns of each task.
    """
    measured = [[] for _ in tasks]
    with contextlib.ExitStack() as stack:
        workers = {}
        for name in dict.fromkeys(task.split()[0] for task in tasks):
            workers[name] = Worker(case, name)
            stack.callback(workers[name].close)
            workers[name].ask("")  # is it ready?
        for _ in range(turns):
            for task, rows in zip(tasks, measured, strict=True):
                name, what = task.split()
                rows.append(Turn(*workers[name].ask(f"{what} {count}\n")))
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
        print(json.dumps(Turn(speed, peak_memory())), flush=True)


def peak_memory() -> float:
    """Returns the most that this process had, and what its own workers have, in MB."""
    status = Path("/proc/self/status").read_text()
    peak = int(re.findall(r"VmHWM:\s*(\d+) kB", status)[0]) * 1024
    own = (child.memory_full_info().uss for child in psutil.Process().children())
    return (peak + sum(own)) / 1e6


@contextlib.contextmanager
def one_core() -> Iterator[None]:
    """Pins this process, and all that it starts meanwhile, to one core."""
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def median(turns: Sequence[Turn]) -> float:
    """Returns the median of speeds."""
    return statistics.median(turn.speed for turn in turns)


def best(turns: Sequence[Turn]) -> float:
    """Returns the highest of speeds."""
    return max(turn.speed for turn in turns)
