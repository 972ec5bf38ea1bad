"""What a long run will find: devices, a workdir that all can write to, data, its pace."""

import logging
import math
import pathlib
import shutil
import time
from types import ModuleType
from typing import Any

import jax

from nstvis import data, devices
from nstvis.runs import workdir as workdirs
from nstvis.runs.progress import Interrupted, Rehearsal

logger = logging.getLogger(__name__)


def machine() -> list[str]:
    """Describes all hosts' devices, and this host's memory."""
    kinds = sorted({f"{x.device_kind} ({x.platform})" for x in jax.devices()})
    mesh = devices.mesh()
    dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    here = jax.local_device_count()
    return [
        f"hosts: {jax.process_count()}, this is host {jax.process_index()}",
        f"devices: {jax.device_count()} x {', '.join(kinds)}, {here} of them here",
        f"mesh: {dict(mesh.shape)}",
        f"memory: {devices.free_memory() / 1e9:.1f} GB are free on this host's first",
        f"dtype: training computes in {dtype}; float32 elsewhere, unless asked",
    ]


def writable(workdir: pathlib.Path) -> str:
    """Has every host write a file to the workdir, and looks for all of them.

    Raises:
        OSError: A file could not be written.
        ValueError: This host sees another folder than some other host.
    """
    notes = workdir / "hosts"
    notes.mkdir(exist_ok=True)
    (notes / str(jax.process_index())).write_text("here")
    devices.wait_for_all()
    there = {path.name for path in notes.iterdir()}
    missing = [str(i) for i in range(jax.process_count()) if str(i) not in there]
    devices.wait_for_all()
    if devices.is_lead():
        shutil.rmtree(notes, ignore_errors=True)
    if missing:
        raise ValueError(
            f"host {jax.process_index()} does not see what host {missing[0]} wrote to"
            f" {workdir}: name a --workdir that all hosts share"
        )
    return f"workdir: {workdir} is one folder that every host can write to"


def readable(config: Any) -> str:
    """Reads and decodes the first, the middle and the last image of a data set.

    Raises:
        ValueError: There is no such data set, or an image is damaged.
        OSError: A file cannot be read.
    """
    source = data.load(config.dataset, config.split, config.data_dir)
    began = time.monotonic()
    for index in (0, len(source) // 2, len(source) - 1):
        source[index].decode()
    took = (time.monotonic() - began) / 3
    classes = f"{len(source.classes)} classes, " if source.classes else ""
    return f"data: {len(source)} images, {classes}{took * 1000:.1f} ms to read and decode one"


def rehearse(
    experiment: ModuleType, config: Any, workdir: pathlib.Path, steps: int
) -> str:
    """Runs an experiment until its first loop of more steps has taken so many.

    Args:
        experiment: The module.
        config: Its Config.
        workdir: A folder for it, which is removed.
        steps: How many.
    """
    if devices.is_lead():  # of a rehearsal that failed
        shutil.rmtree(workdir, ignore_errors=True)
    devices.wait_for_all()
    workdirs.claim(workdir, experiment.__name__, config)
    devices.wait_for_all()
    began, rehearsal = time.monotonic(), Rehearsal(steps)
    line = ""
    try:
        with rehearsal:
            experiment.run(config, workdir)
        line = f"the whole run is done in {_time(time.monotonic() - began)}"
    except Interrupted:
        if not rehearsal.left:  # a signal
            raise
    devices.wait_for_all()
    if devices.is_lead():
        shutil.rmtree(workdir, ignore_errors=True)
    return f"rehearsal: {line or _pace(rehearsal, began)}"


def _pace(rehearsal: Rehearsal, began: float) -> str:
    """Says how long the first step took, the last ones, and what the rest will take."""
    last = rehearsal.times[-7:]
    pace = (last[-1] - last[0]) / (len(last) - 1)
    return (
        f"{_time(rehearsal.times[0] - began)} until the first step, {pace:.3g} s for each"
        f" of the last, {_time(pace * rehearsal.left)} for the {rehearsal.left} steps that"
        " this loop has left"
    )


def _time(seconds: float) -> str:
    minutes = math.floor(seconds / 60)
    hours = f"{minutes // 60} h " if minutes >= 60 else ""
    return (
        f"{hours}{minutes % 60} min {seconds % 60:.0f} s"
        if minutes
        else (f"{seconds:.1f} s")
    )
