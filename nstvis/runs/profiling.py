"""Traces steps of a run with JAX's profiler, for XProf."""

import contextlib
import logging
import pathlib
import shlex
import time
from collections.abc import Iterator

import jax

from nstvis.runs.metrics import LAG

logger = logging.getLogger(__name__)

WARM_UP = 2  # steps of a loop before those that are traced, as the first one compiles

# The run's trace, until a loop takes it.
_wanted: list["Trace"] = []


class Trace:
    """A trace of steps of one loop; each host writes its own.

    Attributes:
        least: Steps of a loop that is long enough.
        taken: Number of traced steps; below 0 during the warm-up.
    """

    def __init__(self, folder: pathlib.Path, steps: int):
        """Traces that many steps, into `folder`."""
        # A loop that writes metrics shows a step when `LAG` more are on their way.
        self.least = WARM_UP + steps + LAG
        self.taken = -WARM_UP
        self._folder, self._steps = folder, steps
        self._running, self._mark = False, contextlib.ExitStack()

    def advance(self) -> None:
        """Counts a step; starts before the first that is traced, ends after the last."""
        self._mark.close()
        self.taken += 1
        if self.taken == 0:
            self._start()
        if self.taken == self._steps:
            self.end()
        elif self._running:
            mark = jax.profiler.StepTraceAnnotation("step", step_num=self.taken)
            self._mark.enter_context(mark)

    def _start(self) -> None:
        options = jax.profiler.ProfileOptions()
        now = time.strftime("%Y-%m-%d-%H%M%S")
        options.session_id = f"{now}-host{jax.process_index()}"
        # Computations run behind Python: those of the warm-up may still go on.
        jax.block_until_ready(jax.live_arrays())
        jax.profiler.start_trace(self._folder, profiler_options=options)
        self._running = True

    def end(self, wait: bool = True) -> None:
        """Ends the trace, if it is running, and says how to open it.

        Args:
            wait: Whether to wait for what is still being computed.
        """
        if not self._running:
            return
        self._running = False
        self._mark.close()
        if wait:
            jax.block_until_ready(jax.live_arrays())
        jax.profiler.stop_trace()
        opened = f"pip install xprof && xprof --logdir={shlex.quote(str(self._folder))}"
        logger.info("profiled %d of %d steps: %s", self.taken, self._steps, opened)


@contextlib.contextmanager
def profiling(folder: pathlib.Path, steps: int) -> Iterator[None]:
    """Has the first loop that is long enough traced, or says that there was none.

    Args:
        folder: Where the trace is written.
        steps: How many steps are traced; 0 for no trace.
    """
    trace = Trace(folder, steps)
    _wanted.extend([trace] if steps else [])
    try:
        yield
    finally:
        _wanted.clear()
    if steps and trace.taken < 0:
        logger.info("nothing was profiled: no loop had %d steps left", trace.least)


def wanted(left: int) -> Trace | None:
    """Returns the trace that a loop with so many steps left should make, if any."""
    return _wanted.pop() if _wanted and left >= _wanted[0].least else None
