"""The loop of a run that resumes: its metrics, progress and checkpoints, and its end.

with Loop(workdir, settings.checkpoint_every, costs) as loop:
    for step, state, metrics in steps(loop.done, loop.restore):
        loop.record(metrics, text)
        wish = loop.wish(step)
        if wish == Wish.STOP:
            break
        if wish == Wish.SAVE:
            loop.save(step, state)
    loop.finish(step, state)
"""

import contextlib
import enum
import pathlib
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from nstvis import devices
from nstvis.runs.checkpoints import Checkpoints
from nstvis.runs.metrics import Metrics
from nstvis.runs.progress import Progress

# From the numbers of a step to what the progress says of it.
Text = Callable[[Mapping[str, float]], str]


class Wish(enum.IntEnum):
    """What is to be done after a step, on all hosts alike; the highest wish counts."""

    GO_ON = 0
    SAVE = 1
    STOP = 2


class Loop:
    """Keeps what a run needs to resume.

    Attributes:
        done: Steps that earlier starts have taken.
        metrics: The numbers of all steps.
        progress: How far the run is.
    """

    def __init__(self, workdir: pathlib.Path, every: float, costs: Sequence[float]):
        """Opens what an earlier start has left.

        Args:
            workdir: The run's.
            every: Seconds between two checkpoints.
            costs: Floating-point operations of all steps, in order; 0 if unknown.
        """
        self._checkpoints = Checkpoints(workdir, every)
        self.done = self._checkpoints.latest()
        self.metrics = Metrics(workdir, self.done)
        self.progress = Progress(costs, self.done)
        self._text: Text = lambda row: ""
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        for part in (self._checkpoints, self.metrics, self.progress):
            self._open.enter_context(part)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Raises `Interrupted` if there was a signal."""
        self._open.__exit__(kind, error, trace)

    def restore(self, like: Any) -> Any:
        """Returns the state that an earlier start has left; if none, `like` itself.

        Raises:
            ValueError: It has other shapes than `like`.
        """
        return self._checkpoints.restore(like)

    def record(self, metrics: Mapping[str, Any] | None, text: Text) -> None:
        """Takes the metrics of a step, perhaps still on the device; none before the first.

        Args:
            metrics: With the `step`.
            text: What the progress says of an earlier step, which is done.
        """
        self._text = text
        if metrics:
            self._show(self.metrics.write(metrics))

    def wish(self, step: int) -> Wish:
        """Returns whether to save or to stop after a step; hosts agree on it."""
        signal = self.progress.interrupted
        wish = Wish.STOP if signal else Wish(self._checkpoints.due())
        return Wish(devices.agreed(wish, step))

    def save(self, step: int, state: Any) -> None:
        """Saves the state after a step, and writes the metrics up to it."""
        self._show(self.metrics.flush())
        self._checkpoints.save(step, state)

    def finish(self, step: int, state: Any) -> None:
        """Saves the last step that was taken."""
        # On all hosts, or one alone would be interrupted by a late signal.
        self.progress.interrupted = devices.agreed(self.progress.interrupted, 0)
        self.save(step, state)

    def _show(self, row: Mapping[str, float] | None) -> None:
        if row:
            self.progress.show(int(row["step"]), self._text(row))
