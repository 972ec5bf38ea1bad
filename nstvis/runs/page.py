"""The page of a run: `index.html`, to watch it while it lives and to look at it later.

The page is the same for every run. It shows what `page/data.js` says, and loads that
again every second until the run ends: opened from disk, a page may load scripts and
pictures, but no JSON. The script is one assignment, `var run = {...}`, of

    title, command: [word], settings: [[name, value, default]], pictures: [[caption, file]],
    state: running, finished, interrupted or failed; error: its line, if it failed,
    time: of writing, seconds since 1970; seconds: that the run has taken,
    step, steps, left: seconds, or null; all three missing before the first step,
    frames: [[step, file]], the last one the picture as it stands,
    at: [step], curves: {name: [value or null at each of these steps]},
    results: [file], once it has finished
"""

import dataclasses
import json
import logging
import math
import pathlib
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from PIL import Image

from nstvis import devices, images
from nstvis.runs import files, workdir
from nstvis.runs.checkpoints import kept_steps
from nstvis.runs.metrics import Metrics
from nstvis.runs.progress import Progress

logger = logging.getLogger(__name__)

LONG_SIDE = 640  # of the copies of the pictures that a run starts from
NOW = 1024  # of the picture as it stands
POINTS = 400  # of a curve, at most
PACE = 2.0, 30.0  # seconds between two looks at the picture, at least and at most
COST = 0.02  # share of the run's time that it may take to show it


class Page:
    """Writes the page of a run; see the module.

    Use it as a context manager around the loop: leaving it says how the run ended.
    Nothing is written before.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        *,
        title: str,
        pictures: Sequence[tuple[str, Image.Image]],
        config: Any,
        curves: Sequence[str],
        results: Sequence[str],
    ):
        """Starts to count the run's time.

        Args:
            folder: The run's workdir; what is in `frames/STEP.png` is shown.
            title: One line.
            pictures: What the run starts from, each with its caption.
            config: The experiment's Config.
            curves: Names of the metrics to draw, on a logarithmic axis.
            results: Names of the files that the run leaves.
        """
        self._folder, self._curves, self._results = folder, curves, results
        self._began, self._next = time.monotonic(), 0.0
        self._earlier = _seconds_taken(folder) if kept_steps(folder) else 0.0
        self._pictures = {
            f"page/{i}.jpg": images.resize(x, min(LONG_SIDE, max(x.size)))
            for i, (_, x) in enumerate(pictures)
        }
        captions = [caption for caption, _ in pictures]
        self._data: dict[str, Any] = {
            "title": title,
            "command": workdir.command(folder),
            "settings": _settings(config),
            "pictures": list(zip(captions, self._pictures)),
            "state": "running",
        }

    def __enter__(self) -> Self:
        if not devices.is_lead():
            return self
        (self._folder / "page").mkdir(exist_ok=True)
        for name, picture in self._pictures.items():
            images.write(self._folder / name, picture)
        self._write()
        page = pathlib.Path(__file__).with_name("page.html").read_text("utf-8")
        files.write_text(self._folder / "index.html", page)
        logger.info("watch %s", (self._folder / "index.html").absolute().as_uri())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self._data |= {"state": "finished", "results": self._results}
        elif issubclass(kind, KeyboardInterrupt):
            self._data["state"] = "interrupted"
        else:
            line = next(filter(str.strip, str(error).splitlines()), repr(error))
            self._data |= {"state": "failed", "error": line}
        try:
            self._write()
        except OSError:
            if kind is None:  # else the error that ended the run says more
                raise

    def due(self) -> bool:
        """Whether the picture should be shown now."""
        return devices.is_lead() and time.monotonic() >= self._next

    def show(
        self, step: int, picture: Image.Image, metrics: Metrics, progress: Progress
    ) -> None:
        """Shows the picture as it stands after a step, and the run's numbers."""
        if not devices.is_lead():
            return
        began = time.monotonic()
        now = "page/now.jpg"
        small = images.resize(picture, min(NOW, max(picture.size)))
        images.write(self._folder / now, small)
        frames = [
            (int(path.stem), f"frames/{path.name}")
            for path in sorted((self._folder / "frames").glob("*.png"))
        ]
        if not frames or frames[-1][0] < step:
            frames.append((step, f"{now}?{step}"))
        rows = _thinned(metrics.read())
        self._data |= {
            "step": step,
            "steps": progress.steps,
            "left": progress.left(),
            "frames": frames,
            "at": [row["step"] for row in rows],
            "curves": {name: _values(rows, name) for name in self._curves},
        }
        self._write()
        least, most = PACE
        cost = time.monotonic() - began
        self._next = began + min(most, max(least, cost / COST))

    def _write(self) -> None:
        if not devices.is_lead():
            return
        seconds = self._earlier + time.monotonic() - self._began
        self._data |= {"time": time.time(), "seconds": seconds}
        script = f"var run = {json.dumps(self._data)};\n"
        files.write_text(self._folder / "page" / "data.js", script)


def _seconds_taken(folder: pathlib.Path) -> float:
    """Returns the seconds that earlier starts of a run have taken."""
    try:
        script = (folder / "page" / "data.js").read_text()
        return float(json.loads(script[script.index("{") : -2])["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0


def _settings(config: Any) -> list[tuple[str, str, str]]:
    """Returns name, value and default of each field, those that differ first."""
    settings = [
        (field.name, str(getattr(config, field.name)), str(field.default))
        for field in dataclasses.fields(config)
    ]
    return sorted(settings, key=lambda setting: setting[1] == setting[2])


def _thinned(rows: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    """Returns at most `POINTS` of the rows, evenly spaced, the last one included."""
    return rows[:: -max(1, math.ceil(len(rows) / POINTS))][::-1]


def _values(rows: Sequence[Mapping[str, Any]], name: str) -> list[float | None]:
    """Returns a metric in four digits, None where it is not finite or missing."""
    values = [row.get(name) for row in rows]
    return [None if x is None else float(f"{x:.4g}") for x in values]
