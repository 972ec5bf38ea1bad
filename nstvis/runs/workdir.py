"""A run's folder, its workdir: which run it belongs to, and whether that is finished.

run.json        experiment, config, each start's versions, commit and device, results
metrics.jsonl   one line per step (`nstvis.runs.metrics`)
index.html      the page to watch it, if it has one, and page/ (`nstvis.runs.page`)
checkpoints/    the same command resumes from the newest (`nstvis.runs.checkpoints`)
nstvis.log      what was logged, with what libraries say
error.txt       the traceback of the last start, if it failed
"""

import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from nstvis import __version__, devices
from nstvis.runs import files

LOG = "nstvis.log"

# Of what run.json holds.
_KINDS = {"experiment": str, "config": dict, "starts": list}


def default_workdir(experiment: str) -> pathlib.Path:
    """Returns a new folder under `runs/`, named by experiment, date and time."""
    now = datetime.datetime.now().strftime("%Y-%m-%d-%H%M%S")
    folder = pathlib.Path("runs") / f"{pathlib.Path(experiment).stem}-{now}"
    if folder.exists():
        folder = folder.with_name(f"{folder.name}-{os.getpid()}")
    return folder


@contextlib.contextmanager
def alone(workdir: pathlib.Path, wait: bool = False) -> Iterator[None]:
    """Keeps other runs out of a folder as long as this one is in it.

    Args:
        workdir: The folder.
        wait: Whether to wait until others have left it.

    Raises:
        BlockingIOError: Another run is in it.
    """
    used = f"{workdir} is in use{_by_whom(workdir)}"
    with contextlib.ExitStack() as stack:
        try:
            waiting = f"{used}: waiting for it" if wait else ""
            stack.enter_context(files.locked(workdir, waiting))
        except BlockingIOError:
            raise BlockingIOError(
                f"{used}: wait for it, stop it, or name another --workdir"
            ) from None
        yield


def _by_whom(workdir: pathlib.Path) -> str:
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, IndexError):
        start = _read_record(workdir / "run.json")["starts"][-1]
        return f" by process {start['pid']} on {start['node']} since {start['time']}"
    return ""


def claim(workdir: pathlib.Path, experiment: str, config: Any) -> list[pathlib.Path]:
    """Records a run in its workdir, or checks that the workdir holds this very run.

    A folder that holds another run, or files but no run, is refused and left as it is.

    Args:
        workdir: The folder, which is made if need be.
        experiment: Name or path of the experiment.
        config: Its Config.

    Returns:
        The paths of the results, if the run is finished and all of them exist.

    Raises:
        ValueError: The folder is refused, or its run.json is damaged.
    """
    path = workdir / "run.json"
    asked = {"experiment": experiment, "config": dataclasses.asdict(config)}
    asked = json.loads(json.dumps(asked))  # tuples become lists, as in the file
    record: dict[str, Any] = asked | {"starts": []}
    workdir.mkdir(parents=True, exist_ok=True)
    error = workdir / "error.txt"  # an earlier start's
    notes = [path, error, workdir / LOG]
    work = [p for p in _whole_files(workdir) if p not in notes]
    if path.exists():
        earlier = _read_record(path)
        if work:  # a start that failed before it left anything claims nothing
            _refuse_other(workdir, earlier, asked)
            record = earlier
        record["starts"] = earlier["starts"]
    elif work or error.exists():
        raise ValueError(
            f"{workdir} holds files but no run of nstvis: name another --workdir"
        )
    record["starts"].append(_provenance())
    results = [workdir / name for name in record.get("results", [])]
    if not all(result.exists() for result in results):
        results = []
        del record["results"]  # until all of them are there again
    if devices.is_lead():
        with contextlib.suppress(OSError):
            error.unlink()
        files.remove_partial(workdir)
        _write_record(workdir, record)
    return results


def finish(workdir: pathlib.Path, results: Sequence[str]) -> None:
    """Records that a run is finished, and the names of its results."""
    record = _read_record(workdir / "run.json")
    _write_record(workdir, record | {"results": list(results)})


def command(workdir: pathlib.Path) -> list[str]:
    """Returns the command that resumes a run, in words that are quoted for a shell.

    There are none if the launcher did not start it.
    """
    path = workdir / "run.json"
    if not path.exists():
        return []
    program, *arguments = _read_record(path)["starts"][-1]["command"]
    as_module = pathlib.Path(program).name == "__main__.py"
    words = ["python", *(["-m", "nstvis"] if as_module else [program]), *arguments]
    if not any(re.match(r"--?workdir\b", argument) for argument in arguments):
        words.append(f"--workdir={workdir}")
    return [shlex.quote(word) for word in words]


def _whole_files(workdir: pathlib.Path) -> list[pathlib.Path]:
    paths = [path for path in workdir.rglob("*") if path.is_file()]
    return [path for path in paths if not files.is_partial(path)]


def _write_record(workdir: pathlib.Path, record: dict[str, Any]) -> None:
    files.write_text(workdir / "run.json", json.dumps(record, indent=2) + "\n")


def _read_record(path: pathlib.Path) -> dict:
    record = files.read_json(path)
    names, kinds = record.get("results", []), _KINDS.items()
    whole = all(isinstance(record.get(key), kind) for key, kind in kinds)
    if whole and isinstance(names, list) and all(map(_is_text, names)):
        return record
    raise ValueError(f"{path} is damaged: name another --workdir")


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _refuse_other(workdir: pathlib.Path, record: dict, asked: dict) -> None:
    old, new = record["config"], asked["config"]
    if record["experiment"] != asked["experiment"]:  # all of its fields would differ
        old, new = ({"experiment": x["experiment"]} for x in (record, asked))
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
        "versions": {"nstvis": __version__}
        | {name: importlib.metadata.version(name) for name in packages},
        "devices": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "host": platform.platform(),
        "node": platform.node(),
        "pid": os.getpid(),
    }


def _commit() -> str | None:
    """Returns the checkout's commit, with `+` if files differ; None if installed."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(pathlib.Path(__file__).parent), *arguments]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        return result.stdout.strip()

    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        git("ls-files", "--error-unmatch", __file__)  # else of another repository
        return git("describe", "--always", "--abbrev=40", "--dirty=+")
    return None
