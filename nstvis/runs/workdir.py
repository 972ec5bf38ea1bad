"""A run's folder: what made it, its metrics, its checkpoints; and its progress.

run.json        experiment, config, and every start's versions, commit and device
metrics.jsonl   one line for each step
checkpoints/    Orbax; the newest one is where the same command goes on
"""

import collections
import contextlib
import dataclasses
import datetime
import importlib.metadata
import itertools
import json
import logging
import math
import os
import pathlib
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from orbax.checkpoint import v1 as ocp
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from nstvis import devices

logger = logging.getLogger(__name__)

LAG = 3  # steps that metrics wait before they are fetched, when they are long finished


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


def claim(workdir: pathlib.Path, experiment: str, config: Any) -> None:
    """Writes down in `workdir` what is run there, or checks that it is the same.

    Raises:
        ValueError: The folder belongs to another config, or to nobody.
    """
    path = workdir / "run.json"
    asked = {"experiment": experiment, "config": dataclasses.asdict(config)}
    asked = json.loads(json.dumps(asked))  # tuples become lists, as in the file
    record = asked | {"starts": []}
    workdir.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):
        (workdir / "error.txt").unlink()  # an earlier start's
    left = [file for file in workdir.rglob("*") if file.is_file() and file != path]
    if path.exists():
        earlier = _read_record(path)
        if left:  # a start that failed before it left anything holds nothing
            _refuse_other(workdir, earlier, asked)
        record["starts"] = earlier["starts"]
    elif left:
        raise ValueError(
            f"{workdir} holds files but no run of nstvis: name another --workdir"
        )
    record["starts"].append(_provenance())
    if devices.is_lead():
        write_text(path, json.dumps(record, indent=2) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """Writes a file so that it is whole at any moment.

    Raises:
        OSError: It could not be written, for example on a full disk.
    """
    partial = path.with_name(path.name + ".partial")
    with _naming(path):
        partial.write_text(text)
        partial.replace(path)


@contextlib.contextmanager
def _naming(path: pathlib.Path) -> Iterator[None]:
    """Says which file could not be written, as a full disk's own error does not."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{path}: cannot write: {error.strerror}") from error


def _read_record(path: pathlib.Path) -> dict:
    try:
        record = json.loads(path.read_text())
        return {key: record[key] for key in ("experiment", "config", "starts")}
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


class Metrics:
    """Numbers by step, a line of JSON each, in `metrics.jsonl`."""

    def __init__(self, workdir: pathlib.Path, done: int):
        """Opens the file; lines after step `done` are an interrupted run's: dropped."""
        self.path = workdir / "metrics.jsonl"
        self._late: collections.deque[Mapping[str, Any]] = collections.deque()
        kept = [row for row in self.read() if row["step"] <= done]
        if devices.is_lead():
            write_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))
        path = self.path if devices.is_lead() else pathlib.Path(os.devnull)
        self._file = path.open("a", buffering=1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with _naming(self.path):
            self._file.close()

    def write(self, row: Mapping[str, Any]) -> dict[str, float] | None:
        """Takes a step's numbers, of which `step` is one, still on the device or not.

        They are written a few steps later, so as not to wait for the device.

        Returns:
            The numbers that have been written by this call, if any.
        """
        self._late.append(row)
        return self._land() if len(self._late) > LAG else None

    def flush(self) -> dict[str, float] | None:
        """Writes all numbers taken so far; returns the last of them, if any."""
        row = None
        while self._late:
            row = self._land()
        return row

    def _land(self) -> dict[str, float]:
        row = jax.device_get(dict(self._late.popleft()))
        numbers = {key: float(value) for key, value in row.items()}
        plain = {k: v if math.isfinite(v) else None for k, v in numbers.items()}
        with _naming(self.path):
            self._file.write(json.dumps(plain | {"step": int(row["step"])}) + "\n")
        return numbers

    def read(self) -> list[dict[str, float]]:
        """All rows; a last line that a kill cut short does not count."""
        rows = []
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        for line in lines:
            with contextlib.suppress(json.JSONDecodeError):
                rows.append(json.loads(line))
        return rows

    def plot(self, path: pathlib.Path, names: Sequence[str], scale: str) -> None:
        """Draws the named numbers over the steps, on a `log` or `linear` scale."""
        from matplotlib.figure import Figure  # half a second, at the end of a run

        rows = self.read()
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = figure.add_subplot(
            xlabel="step", yscale=scale if rows else "linear", title=path.stem
        )
        for name in names:
            found = [(row["step"], row[name]) for row in rows if name in row]
            steps, values = np.array(found, float).reshape(-1, 2).T  # null is NaN
            axes.plot(steps, values, label=name)
        axes.grid(alpha=0.3)
        axes.legend()
        figure.savefig(path, dpi=120)


class Checkpoints:
    """Pytrees by step in `checkpoints/`; each is written whole or not at all."""

    def __init__(self, workdir: pathlib.Path, every: float, keep: Sequence[int] = ()):
        """Saves at most once in `every` seconds; keeps the newest two and some steps.

        Use it as a context manager: saving goes on in the background until the end.
        """
        policies = ocp.training.preservation_policies
        self._folder = workdir / "checkpoints"
        self._keeper = ocp.training.Checkpointer(
            str(self._folder.absolute()),
            preservation_policy=policies.AnyPreservationPolicy(  # pyright: ignore[reportArgumentType]
                [policies.LatestN(2), policies.CustomSteps(keep)]
            ),
            cleanup_tmp_directories=True,
        )
        self._every = every
        self._saved_at = time.monotonic()
        self._newest = self.latest()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._keeper.wait()

    def latest(self) -> int:
        """The step of the newest checkpoint; 0 if there is none."""
        newest = self._keeper.latest
        return newest.step if newest else 0

    def due(self) -> bool:
        """Whether it is time for the next one."""
        return time.monotonic() - self._saved_at >= self._every

    def save(self, step: int, tree: Any, **parts: Any) -> None:
        """Saves a pytree of arrays, unless that step has been saved already.

        Args:
            step: Counted from 1.
            tree: Of arrays, which may be donated as soon as this returns.
            **parts: What else Orbax can save, by name, such as a Grain iterator.
        """
        if step != self._newest:
            leaves = enumerate(jax.tree.leaves(tree))
            # Orbax takes no empty arrays.
            state = {str(i): jnp.copy(leaf) for i, leaf in leaves if leaf.size}
            self._keeper.wait()  # Orbax skips a save while another one goes on.
            self._keeper.save_checkpointables_async(step, {"state": state} | parts)
        self._saved_at, self._newest = time.monotonic(), step

    def restore(self, like: Any, **parts: Any) -> Any:
        """Returns the newest one, as a tree like `like`; `like` itself if none.

        Args:
            like: Arrays of the same shapes, on the devices where they should be.
            **parts: What was saved with it and can load itself.

        Raises:
            ValueError: Its arrays are of other shapes.
        """
        if not self.latest():
            return like
        wanted = {"state": _abstract(like)} | parts
        if not _fits(path := self._folder / str(self.latest()), wanted["state"]):
            raise ValueError(
                f"{path} does not fit: the run was begun on another number of devices,"
                " or by another version; name another --workdir"
            )
        found = self._keeper.load_checkpointables(None, wanted)
        return _filled(like, found["state"])


def kept_steps(workdir: pathlib.Path) -> list[int]:
    """The steps of a run's checkpoints, in order, also while it goes on."""
    names = [path.name for path in (workdir / "checkpoints").glob("*")]
    return sorted(int(name) for name in names if name.isdecimal())


def read_checkpoint(workdir: pathlib.Path, step: int, like: Any) -> Any:
    """Reads one checkpoint as `Checkpoints.restore` does, also while the run goes on.

    Raises:
        ValueError: Its arrays are of other shapes.
        FileNotFoundError: There is none of that step.
    """
    path = workdir / "checkpoints" / str(step)
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    wanted = _abstract(like)
    if not _fits(path, wanted):
        raise ValueError(f"{path} is of another network")
    found = ocp.load_checkpointables(str(path.absolute()), {"state": wanted})
    return _filled(like, found["state"])


def _fits(path: pathlib.Path, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> bool:
    """Whether the arrays have the shapes; Orbax says so in many lines, some later."""
    known = ocp.metadata(str(path.absolute()), "state").metadata
    shapes = [{k: x.shape for k, x in part.items()} for part in (known, wanted)]
    return shapes[0] == shapes[1]


def _abstract(like: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """What to ask Orbax for: the leaves by number, without the empty ones."""
    return {
        str(i): jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)
        for i, leaf in enumerate(jax.tree.leaves(like))
        if leaf.size
    }


def _filled(like: Any, state: Mapping[str, Any]) -> Any:
    leaves, structure = jax.tree.flatten(like)
    return structure.unflatten(state.get(str(i), leaf) for i, leaf in enumerate(leaves))


class Progress:
    """A bar with the time left on a terminal, a log line now and then elsewhere."""

    def __init__(self, costs: Sequence[float], done: int):
        """Starts after step `done`; `costs` are the FLOP of all steps, in order."""
        self._work = [0.0, *itertools.accumulate(cost or 1.0 for cost in costs)]
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=len(costs),
            initial=done,
            disable=not self._terminal,
            bar_format="{n_fmt}/{total_fmt} {bar:8} {desc}",
        )
        self._line = done
        self._recent: collections.deque[tuple[float, int]] = collections.deque([], 50)
        self._logging = logging_redirect_tqdm()

    def __enter__(self) -> Self:
        self._logging.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
        self._logging.__exit__(None, None, None)

    def show(self, step: int, text: str) -> None:
        """Shows the step that has been reached, and some numbers."""
        self._recent.append((time.monotonic(), step))
        text = f"{self._pace(step)}{text}"
        self._bar.set_description_str(text, refresh=False)
        self._bar.update(step - self._bar.n)
        total = len(self._work) - 1
        if not self._terminal and (step - self._line) * 10 >= total:
            self._line = step
            logger.info("step %d of %d: %s", step, total, text)

    def _pace(self, step: int) -> str:
        """The time left and the speed, by the work of late; nothing at first."""
        (began, first), (now, last) = self._recent[0], self._recent[-1]
        # The first steps are dispatched long before they are done.
        if last == first or now - began < 0.1:
            return ""
        speed = (self._work[last] - self._work[first]) / (now - began)
        left = round((self._work[-1] - self._work[step]) / speed)
        return f"{left // 60}:{left % 60:02} left, {speed / 1e9:.0f} GFLOP/s, "


class Interruption:
    """Set by Ctrl-C or SIGTERM; a second Ctrl-C stops at once."""

    signal: int | None = None

    def __call__(self, signum: int, frame: Any) -> None:
        self.signal = signum
        signal.signal(signum, signal.default_int_handler)


@contextlib.contextmanager
def interruptible() -> Iterator[Interruption]:
    """Turns Ctrl-C and SIGTERM into a wish to be granted between two steps."""
    wish = Interruption()
    before = {s: signal.signal(s, wish) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield wish
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
