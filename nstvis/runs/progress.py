"""Long loops: a progress bar or log lines, and stopping between two steps."""

import collections
import contextlib
import itertools
import logging
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Self, TypeVar

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from nstvis.runs import profiling

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds between two log lines, at most and at least, and until the first one.
_PAUSE, _SHORTEST, _FIRST = 60, 1, 5


class Interrupted(KeyboardInterrupt):  # which no `except Exception` takes for an error
    """A run stopped on a signal, and can be resumed."""

    def __init__(self, signum: int):
        super().__init__(f"stopped by {signal.Signals(signum).name}")
        self.signum = signum


# Signals for which `Interrupted` was raised. Python drops an exception that is raised in
# a callback of the garbage collector; then these are looked at again later.
_signals: list[int] = []


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Makes Ctrl-C and SIGTERM raise `Interrupted`, at once outside of a `Progress`."""

    def interrupt(signum: int, frame: Any) -> None:
        _signals.append(signum)
        raise Interrupted(signum)

    handlers = {
        signum: signal.signal(signum, interrupt)
        for signum in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
        received = _signals.copy()
        _signals.clear()
    if received:
        raise Interrupted(received[0])


class Rehearsal:
    """Ends every loop after some of its steps, as a signal would, and times these.

    Attributes:
        times: When each step of the last loop was shown, by `time.monotonic`.
        left: Steps that the loop that was ended had left.
    """

    def __init__(self, steps: int):
        """Ends loops after `steps`."""
        self.steps, self.left = steps, 0
        self.times: list[float] = []

    def __enter__(self) -> Self:
        _rehearsals.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _rehearsals.remove(self)


_rehearsals: list[Rehearsal] = []


class Progress:
    """Shows the progress of a loop, and lets a signal end it between two steps.

    On a terminal there is a bar with the time left, elsewhere about ten log lines; fewer
    where they would be less than a second apart, and more where they would be more than a
    minute apart; the first tells the time early.
    Ctrl-C and SIGTERM set `interrupted`; the loop saves what it needs to resume and
    breaks, and leaving the `with` block raises `Interrupted`. A second signal raises
    KeyboardInterrupt at once.

    Attributes:
        interrupted: The signal's number, or 0.
    """

    def __init__(self, costs: Sequence[float], done: int = 0, *, counted: bool = True):
        """Starts after step `done`.

        Args:
            costs: Floating-point operations of each step, in order; 0 if unknown.
            done: Number of steps that an earlier start has taken.
            counted: Whether costs are a count, which tells the speed, or only in
                proportion to it, which tells the time left.
        """
        self.interrupted = _signals[0] if _signals else 0
        self._known = counted and any(costs)
        self._work = [0.0, *itertools.accumulate(cost or 1.0 for cost in costs)]
        self._terminal = sys.stderr.isatty()
        self._bar = tqdm(
            total=len(costs),
            initial=done,
            disable=not self._terminal,
            leave=self._known,
            bar_format="{n_fmt}/{total_fmt} {bar:8} {desc}",
        )
        self._line = self._done = done
        self._logged = time.monotonic()
        self._told = self._logged - _PAUSE + _FIRST
        self._recent: collections.deque[tuple[float, int]] = collections.deque([], 50)
        self._logging = logging_redirect_tqdm()

    def __enter__(self) -> Self:
        self._logging.__enter__()
        self._handlers = {
            signum: signal.signal(signum, self._interrupt)
            for signum in (signal.SIGINT, signal.SIGTERM)
        }
        self._trace = profiling.wanted(self.steps - self._done)
        for rehearsal in _rehearsals:
            rehearsal.times.clear()
        if self._done:
            logger.info("resuming after step %d of %d", self._done, self.steps)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for signum, handler in self._handlers.items():
            signal.signal(signum, handler)
        self._bar.close()
        self._logging.__exit__(None, None, None)
        if self._trace:
            self._trace.end(wait=kind is None)
        if self.interrupted and kind is None:
            raise Interrupted(self.interrupted)

    def _interrupt(self, signum: int, frame: Any) -> None:
        self.interrupted = signum
        signal.signal(signum, signal.default_int_handler)

    @property
    def steps(self) -> int:
        """Number of steps of the whole loop."""
        return len(self._work) - 1

    def left(self) -> float | None:
        """Returns the seconds left at the speed of the last steps; None at first."""
        if not (speed := self._speed()):
            return None
        return (self._work[-1] - self._work[self._recent[-1][1]]) / speed

    def show(self, step: int, text: str) -> None:
        """Shows that a step has been reached, with a text such as its loss."""
        self._recent.append((time.monotonic(), step))
        text = f"{self._pace()}{text}"
        self._bar.set_description_str(text, refresh=False)
        self._bar.update(step - self._bar.n)
        now = self._recent[-1][0]
        tenth = (step - self._line) * 10 >= self.steps
        slow = now - self._logged >= _SHORTEST or step == self.steps
        if ((tenth and slow) or now - self._told >= _PAUSE) and not self._terminal:
            self._line, self._told, self._logged = step, now, now
            logger.info("step %d of %d: %s", step, self.steps, text)
        if self._trace:
            self._trace.advance()
        for rehearsal in _rehearsals:
            rehearsal.times.append(now)
            rehearsal.left = self.steps - step
            if step - self._done >= rehearsal.steps and rehearsal.left:
                self.interrupted = signal.SIGTERM

    def _pace(self) -> str:
        """Returns the time left and the speed of the last steps; nothing at first."""
        if (seconds := self.left()) is None:
            return ""
        minutes, left = divmod(round(seconds), 60)
        hours = f"{minutes // 60} h " if minutes >= 60 else ""
        rate = f"{self._speed() / 1e9:.0f} GFLOP/s, " if self._known else ""
        return f"{hours}{minutes % 60}:{left:02} left, {rate}"

    def _speed(self) -> float:
        """Returns the operations per second of the last steps; 0 at first."""
        if not self._recent:
            return 0.0
        (began, first), (now, last) = self._recent[0], self._recent[-1]
        # The first steps are dispatched long before they are done.
        if last == first or now - began < 0.1:
            return 0.0
        return (self._work[last] - self._work[first]) / (now - began)


def track(
    items: Iterable[T], total: int, text: str, *, done: int = 0, cost: float = 0.0
) -> Iterator[T]:
    """Yields items, showing progress; a signal ends the loop after the current item.

    Args:
        items: The items that remain.
        total: Number of items, including those that are done.
        text: What they are, such as "patches".
        done: Number of items that an earlier start has done.
        cost: Floating-point operations of each item; 0 if unknown.

    Raises:
        Interrupted: A signal arrived.
    """
    with Progress([cost] * total, done) as progress:
        for step, item in enumerate(items, done + 1):
            yield item
            progress.show(step, text)
            if progress.interrupted:
                return
