"""A run's folder, its workdir: whose it is and what made it.

run.json        experiment, config, and every start's versions, commit and device
metrics.jsonl   one line for each step
checkpoints/    Orbax; the newest one is where the same command resumes
"""

import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import jax

from nstvis import devices
from nstvis.runs import files


def default_workdir(experiment: str) -> pathlib.Path:
    """A folder under `runs/` named by experiment, date and time, not yet there."""
    stem = pathlib.Path(experiment).stem
    now = datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
    folder = pathlib.Path("runs") / f"{stem}-{now}"
    return (
        folder
        if not folder.exists()
        else folder.with_name(f"{stem}-{now}-{os.getpid()}")
    )


def claim(workdir: pathlib.Path, experiment: str, config: Any) -> list[pathlib.Path]:
    """Writes down in `workdir` what is run there, or checks that it is the same.

    The same experiment with the same config resumes; anything else is refused, and
    nothing of the folder is touched.

    Returns:
        The files that the run left, if it is finished and all of them are there.

    Raises:
        ValueError: The folder belongs to another config, or to nobody.
    """
    path = workdir / "run.json"
    asked = {"experiment": experiment, "config": dataclasses.asdict(config)}
    asked = json.loads(json.dumps(asked))  # tuples become lists, as in the file
    record: dict[str, Any] = asked | {"starts": []}
    workdir.mkdir(parents=True, exist_ok=True)
    error = workdir / "error.txt"  # an earlier start's
    left = [p for p in workdir.rglob("*") if p.is_file() and p not in (path, error)]
    if path.exists():
        earlier = _read_record(path)
        if left:  # a start that failed before it left anything holds nothing
            _refuse_other(workdir, earlier, asked)
            record = earlier
        record["starts"] = earlier["starts"]
    elif left or error.exists():
        raise ValueError(
            f"{workdir} holds files but no run of nstvis: name another --workdir"
        )
    record["starts"].append(_provenance())
    if devices.is_lead():
        with contextlib.suppress(OSError):
            error.unlink()
        _write_record(workdir, record)
    results = [workdir / name for name in record.get("results", [])]
    return results if all(result.exists() for result in results) else []


def finish(workdir: pathlib.Path, results: Sequence[str]) -> None:
    """Writes down that a run is finished, and the names of the files that it left."""
    record = _read_record(workdir / "run.json")
    _write_record(workdir, record | {"results": list(results)})


def _write_record(workdir: pathlib.Path, record: dict[str, Any]) -> None:
    files.write_text(workdir / "run.json", json.dumps(record, indent=2) + "\n")


def _read_record(path: pathlib.Path) -> dict:
    try:
        record = json.loads(path.read_text())
        for key in ("experiment", "config", "starts"):
            record[key]  # else a KeyError
        return record
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} is damaged: name another --workdir") from error


def _refuse_other(workdir: pathlib.Path, record: dict, asked: dict) -> None:
    old = {"experiment": record["experiment"]} | record["config"]
    new = {"experiment": asked["experiment"]} | asked["config"]
    differences = [
        f"{key} was {old.get(key)!r}, is {new.get(key)!r}"
        for key in old | new
        if old.get(key) != new.get(key)
    ]
    if differences:
        raise ValueError(
            f"{workdir} holds another run: {'; '.join(differences)}. Name another"
            " --workdir, or give that run's values to resume it"
        )


def _provenance() -> dict[str, Any]:
    device = jax.devices()[0]
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "pillow", "numpy")
    return {
        "time": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": sys.argv,
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in packages},
        "devices": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "host": platform.platform(),
    }


def _commit() -> str | None:
    """The checkout's commit, with `+` if files differ from it; None outside of git."""
    here = pathlib.Path(__file__).parent
    command = [
        "git",
        "-C",
        str(here),
        "describe",
        "--always",
        "--abbrev=40",
        "--dirty=+",
    ]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        told = subprocess.run(command, capture_output=True, text=True, check=True)
        return told.stdout.strip()
    return None
