"""Runs that are killed at random moments, and end as one that was left alone."""

import functools
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import numpy as np

from tests import small
from tests.fuzz.watched import Result

ROOT = pathlib.Path(__file__).parent.parent.parent
# Experiments that resume, with the settings of a run of seconds, and what it leaves.
RUNS = {
    "style": (
        ["size=64", "steps=30", "scales=1", "weights=random", "checkpoint_every=0"],
        ["G.png", "metrics.jsonl"],
    ),
    "train": (
        ["size=40", "batch=12", "epochs=2", "checkpoint_every=0"],
        ["tiny.safetensors", "metrics.jsonl"],
    ),
    "units": (
        ["size=40", "batch=8", "weights=random", "checkpoint_every=0"],
        ["units.npz", "scan.npz"],
    ),
    "features": (
        ["units=conv1:1", "size=40", "steps=4"],
        ["features.csv", "conv1.png"],
    ),
    "reconstruct": (
        ["size=48", "steps=6", "layers=conv1_1,conv2_1", "checkpoint_every=0"],
        ["reconstruct.csv", "reconstruct.png", "metrics.jsonl"],
    ),
}
_PAINTED = [f"{name}={value}" for name, value in small.PAINTED.items()]


def run(seed: str, folder: pathlib.Path) -> Result:
    """Kills a run up to three times, and compares its end with a whole one's."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(seed)
    name = list(RUNS)[int(seed.rpartition("-")[2]) % len(RUNS)]
    begin = time.monotonic()
    whole, seconds = _whole(name, folder)
    workdir = folder / f"{name}-{seed}"
    killed = []
    for _ in range(chance.randint(1, 3)):
        process = _start(name, folder, workdir)
        try:
            process.communicate(timeout=chance.uniform(0, 1.1 * seconds))
        except subprocess.TimeoutExpired:
            killed.append(round(time.monotonic() - begin, 2))
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    process = _start(name, folder, workdir)
    output = process.communicate(timeout=300)[0]
    result = Result("accepted", seconds=time.monotonic() - begin)
    if process.returncode:
        result = Result("failed", f"killed at {killed}: {output}")
    others = [file for file in RUNS[name][1] if not _same(workdir / file, whole / file)]
    if others and result.outcome != "failed":
        result = Result("failed", f"killed at {killed}: other {', '.join(others)}")
    return result


@functools.cache
def _whole(name: str, folder: pathlib.Path) -> tuple[pathlib.Path, float]:
    """Returns the workdir of a run that was left alone, and how long it took."""
    workdir = folder / f"{name}-whole"
    for _ in range(2):  # the first one compiles
        subprocess.run(["rm", "-rf", workdir], check=True)
        begin = time.monotonic()
        process = _start(name, folder, workdir)
        output = process.communicate()[0]
        assert process.returncode == 0, output
    return workdir, time.monotonic() - begin


def _start(name, folder, workdir):
    model, dataset = small.write(folder)
    flags = [*RUNS[name][0]]
    if name in ("style", "train", "units"):
        flags.append(f"model={model}")
    if name in ("train", "units"):
        flags.append(f"dataset={dataset}:0.02")
    if name == "style":
        flags += _PAINTED
    command = [sys.executable, ROOT / "launch.py", f"--experiment={name}"]
    return subprocess.Popen(
        [*command, f"--workdir={workdir}", *(f"--config.{flag}" for flag in flags)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _same(ours: pathlib.Path, theirs: pathlib.Path) -> bool:
    if not ours.exists():
        return False
    if ours.suffix == ".npz":
        with np.load(ours) as a, np.load(theirs) as b:
            return a.files == b.files and all(
                a[name].tobytes() == b[name].tobytes() for name in a.files
            )
    return ours.read_bytes() == theirs.read_bytes()
