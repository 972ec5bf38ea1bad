"""Several hosts as one run: they compare what must be equal, and watch one another.

A collective hangs, or aborts the process, where hosts differ or one of them is gone. So
they talk through the key-value store of JAX's coordination service, which host 0 runs:
every host tells that it is alive, what must be equal on all, and how it ended. With one
host all of this does nothing.

Traps: the store is private API of JAX (`jax._src.distributed`), which is used here alone.
And when host 0 dies, or hosts do not find one another, JAX's client aborts the process
from a thread of its own; no Python callback can be given to it. Thus the handler of
SIGABRT, in which no call of that client may be made: it would wait for itself.
"""

import contextlib
import ctypes
import hashlib
import json
import multiprocessing
import os
import pathlib
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import jax
from jax._src import distributed

# Seconds to wait for all hosts at the start.
PATIENCE = 120
# Beats, a second apart, that a host may miss until it is taken for dead.
SILENCE = 16

# How a host ended; what it was told of a third is told on.
_DONE, _STOPPED, _FAILED, _TOLD = "done", "stopped", "failed", "told"


def connect() -> None:
    """Joins the processes of all hosts into one run.

    Raises:
        ValueError: JAX_COORDINATOR_ADDRESS and what belongs to it are incomplete or
            wrong, or its port is in use.
    """
    if address := os.environ.get("JAX_COORDINATOR_ADDRESS"):
        count, index = _place(address)
        _watch.catch_aborts(address if index else "", count)
        jax.distributed.initialize(
            address, count, index, initialization_timeout=PATIENCE
        )
    else:
        with contextlib.suppress(ValueError):  # there is no cluster
            jax.distributed.initialize(initialization_timeout=PATIENCE)
    state = distributed.global_state
    if state.num_processes > 1:
        _watch.begin(state)


def index() -> int:
    """Returns which host this is, without a look at its devices."""
    return distributed.global_state.process_id


def several() -> bool:
    """Whether there are other hosts, and this one is connected to them."""
    return _watch.client is not None


def agree(what: Mapping[str, Any], *, wait: bool = False) -> None:
    """Compares what must be equal on all hosts, such as settings and hashes of files.

    The watch compares it within a second or two with what other hosts have told by the
    same name, and ends the process if it differs.

    Args:
        what: Name to a value that JSON can hold.
        wait: Whether to wait until all hosts have told something, and compare it now.
            All of them must.

    Raises:
        ValueError: A value is another on another host.
    """
    if several():
        _watch.tell(what)
        if wait:
            _watch.meet()


def files(config: Mapping[str, Any]) -> dict[str, str]:
    """Returns hashes of the files that settings name, if there are several hosts.

    Of a folder, such as one of frames, names and sizes are hashed. What is not there is
    left out: the host that lacks it fails by itself.
    """
    if not several():
        return {}
    texts = {name: value for name, value in config.items() if isinstance(value, str)}
    paths = {(n, p): pathlib.Path(p) for n, v in texts.items() for p in v.split(",")}
    found = {f"{p} of {n}": _hash(path) for (n, p), path in paths.items() if p}
    return {name: digest for name, digest in found.items() if digest}


def resume_with(command: Callable[[], Sequence[str]]) -> None:
    """Sets how to ask for the command that resumes, which is told if a host dies."""
    _watch.command = command


def suspect(error: BaseException) -> None:
    """Waits, if another host may be to blame for an error, until that is known.

    Then the watch says so, and ends the process. From when this returns, the watch says
    nothing any more.
    """
    if several():
        full = "RESOURCE_EXHAUSTED" in str(error)
        other = isinstance(error, RuntimeError) and not full
        _watch.last_word(SILENCE + 5 if other else 0)


def fail(line: str) -> None:
    """Tells the other hosts why this one fails, and ends the process with status 1.

    Alone, it does nothing. A host that fails before it is connected connects for it.
    """
    if not several() and "JAX_COORDINATOR_ADDRESS" in os.environ:
        _watch.last_word(0)
        with contextlib.suppress(ValueError):
            connect()
    if several():
        _watch.end(_FAILED, line)
        _leave(1)


def leave(status: int, line: str = "") -> int:
    """Waits for the other hosts at the end of a run; returns the exit status.

    Args:
        status: 0 if the run is finished; else it was stopped, and the process ends here.
        line: What stopped it.
    """
    if several():
        _watch.post(f"{_STOPPED}: {line}" if status else _DONE)
        _watch.wait_for_others()
        _watch.last_word(0)
        if status:
            _watch.part()
            _leave(status)
        _watch.close()
    return status


def _place(address: str) -> tuple[int, int]:
    """Returns the number of hosts and which this is, from the environment."""
    needed = "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
    try:
        count, index = (int(os.environ[name]) for name in needed)
        _, port = address.rsplit(":", 1)
        good = 0 <= index < count and 0 < int(port) < 65536
    except (KeyError, ValueError):
        good = False
    if not good:
        given = ", ".join(f"{n}={os.environ.get(n, '')}" for n in needed)
        raise ValueError(
            f"several hosts need JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and"
            f" JAX_PROCESS_ID, which counts from 0; got {address}, {given}"
        )
    if index == 0:
        try:  # gRPC would share a port with another run
            socket.create_server(("", int(port))).close()
        except OSError as error:
            raise ValueError(
                f"JAX_COORDINATOR_ADDRESS={address}: {error.strerror}; stop what is left"
                " of an earlier run, or choose another port"
            ) from error
    return count, index


def _hash(path: pathlib.Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        if path.is_file():
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()[:16]
        if path.is_dir():
            listed = sorted((p.name, p.stat().st_size) for p in path.iterdir())
            return hashlib.sha256(ascii(listed).encode()).hexdigest()[:16]
    return ""


def _leave(status: int) -> NoReturn:
    """Ends the process, though its main thread may hang in a collective."""
    for child in multiprocessing.active_children():
        child.terminate()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


class _Watch:
    """What a host knows of the others, and the threads that find out.

    One thread asks the store, and may hang in that; the other counts the seconds, but
    those in which this process runs, as it may have been asleep.
    """

    def __init__(self) -> None:
        self.client: Any = None
        self.command: Callable[[], Sequence[str]] = tuple
        self._told: dict[str, Any] = {}
        self._dead: set[int] = set()
        self._known: dict[str, str] = {}
        self._rounds = 0
        self._last_word = threading.Lock()
        self._over = threading.Event()
        self._address = ""  # of host 0, if this is another
        self._count = 0

    def begin(self, state: Any) -> None:
        """Starts to watch."""
        self._me, self._count = state.process_id, state.num_processes
        self._others = [i for i in range(self._count) if i != self._me]
        self.catch_aborts(state.coordinator_address if self._me else "", self._count)
        self.client = state.client
        self._asking = threading.Thread(target=self._ask, daemon=True)
        self._asking.start()
        threading.Thread(target=self._judge, daemon=True).start()

    def close(self) -> None:
        """Ends the watch, before JAX shuts down what it asks."""
        self._over.set()
        self._asking.join(SILENCE)
        ctypes.CDLL(None).signal(signal.SIGABRT, None)

    def catch_aborts(self, address: str, count: int) -> None:
        """Makes an abort say in a line what it is about."""
        self._address, self._count = address, count

        @ctypes.CFUNCTYPE(None, ctypes.c_int)
        def handler(signum: int) -> None:
            self._aborted()

        self._handler = handler  # or it would be freed
        ctypes.CDLL(None).signal(signal.SIGABRT, handler)

    def tell(self, what: Mapping[str, Any]) -> None:
        """Tells the others what must be equal."""
        self._told |= json.loads(json.dumps(what))  # lists for tuples, as theirs
        self._set("equal", json.dumps(self._told))

    def meet(self) -> None:
        """Waits until all hosts have told something, and compares it."""
        while not all(f"equal/{i}" in self._known for i in self._others):
            time.sleep(0.05)
        if line := self._differences():
            raise ValueError(line)

    def post(self, end: str) -> None:
        """Tells the others how this host ended."""
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._set("end", end)

    def end(self, kind: str, line: str) -> None:
        """Tells the others how this host ended; host 0 waits until all of them know."""
        self.post(f"{kind}: {line}")
        limit = time.monotonic() + SILENCE
        while self._me == 0 and self._running() and time.monotonic() < limit:
            time.sleep(0.05)

    def wait_for_others(self) -> None:
        """Waits until all hosts have ended; the watch ends this one if one died."""
        while self._running():
            time.sleep(0.05)

    def part(self) -> None:
        """Waits, on host 0, until the others know that all have ended.

        Without it, they would take it for dead.
        """
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            self._set("parted", "")
        limit = time.monotonic() + SILENCE
        while self._me == 0 and time.monotonic() < limit:
            if all(f"parted/{i}" in self._known for i in {*self._others} - self._dead):
                break
            time.sleep(0.05)

    def last_word(self, seconds: float) -> None:
        """Waits, and then keeps the watch from saying anything.

        If it is about to, this never returns.
        """
        limit = time.monotonic() + seconds
        while time.monotonic() < limit and not self._last_word.locked():
            time.sleep(0.05)
        if not self._last_word.acquire(blocking=False):
            threading.Event().wait()

    def _running(self) -> bool:
        others = set(self._others) - self._dead
        return not all(f"end/{i}" in self._known for i in others)

    def _set(self, name: str, value: str) -> None:
        key = f"nstvis/{name}/{self._me}"
        self.client.key_value_set(key, value, allow_overwrite=True)

    def _ask(self) -> None:
        """Tells that this host is alive, and reads what others tell."""
        while not self._over.is_set():
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                self._set("beat", str(self._rounds))
                pairs = self.client.key_value_dir_get("nstvis/")
                self._known = {key.removeprefix("nstvis/"): x for key, x in pairs}
                self._rounds += 1
            # Others wait for the first answers and the last.
            soon = self._rounds < 50 or f"end/{self._me}" in self._known
            self._over.wait(0.2 if soon else 1)

    def _judge(self) -> None:
        """Ends this process as soon as the run cannot go on."""
        silent = dict.fromkeys(self._others, 0)
        beats: dict[int, str | None] = {}
        rounds, unanswered = self._rounds, 0
        while True:
            time.sleep(1)
            unanswered = unanswered + 1 if rounds == self._rounds else 0
            if unanswered >= SILENCE:
                self._stop(self._died(0))
            if unanswered:
                continue
            rounds, known = self._rounds, self._known
            if line := self._differences():
                self._stop(f"error: {line}")
            for i in self._others:
                kind, _, line = known.get(f"end/{i}", "").partition(": ")
                beat = known.get(f"beat/{i}")
                alive = kind == _DONE or (beat != beats.get(i) and kind != _STOPPED)
                silent[i] = 0 if alive else silent[i] + 1
                beats[i] = beat
                if kind in (_FAILED, _TOLD):
                    self._stop(line if kind == _TOLD else f"host {i} failed: {line}")
                elif silent[i] >= SILENCE:
                    stopped = f"host {i} was stopped: {line}"
                    self._stop(stopped if kind == _STOPPED else self._died(i))

    def _differences(self) -> str:
        """Returns what another host has told otherwise than this one; or nothing."""
        found = {}
        for i in self._others:
            theirs = json.loads(self._known.get(f"equal/{i}", "{}"))
            for name in self._told.keys() & theirs.keys():
                if (here := self._told[name]) != (there := theirs[name]):
                    text = f"{name} is {here!r} here, {there!r} on host {i}"
                    found.setdefault(name, text)
        listed = [found[name] for name in self._told if name in found]
        more = [f"and {len(listed) - 5} more"] if len(listed) > 5 else []
        return f"hosts differ: {'; '.join(listed[:5] + more)}" if found else ""

    def _died(self, i: int) -> str:
        words = []
        with contextlib.suppress(ValueError, OSError):
            words = self.command()
        command = " ".join(words) or "the same command"
        self._dead.add(i)
        return f"host {i} died, or cannot be reached. To resume, run on all: {command}"

    def _stop(self, line: str) -> None:
        """Says why, tells the others, and ends the process."""
        if self._last_word.acquire(blocking=False):
            print(f"\n{line}" if sys.stderr.isatty() else line, file=sys.stderr)
            if 0 not in self._dead:  # which would not answer
                self.end(_TOLD, line)
            _leave(1)

    def _aborted(self) -> None:
        """Says why the process aborts; see the traps above."""
        if self.client is None:
            where = f" at {self._address}" if self._address else ""
            line = (
                f"error: found no {self._count} hosts{where} within {PATIENCE} seconds"
            )
        elif not self._reachable_for(SILENCE + 5):
            line = self._died(0)
        else:
            line = "XLA aborted: set TF_CPP_MIN_LOG_LEVEL=1 to see why"
        if self._last_word.acquire(blocking=False):
            print(line, file=sys.stderr)
        _leave(1)

    def _reachable_for(self, seconds: float) -> bool:
        """Whether host 0 goes on, while the watch may find who else is to blame.

        A host that is dying closes its ports one after the other.
        """
        limit = time.monotonic() + seconds
        while time.monotonic() < limit:
            if self._address:
                host, port = self._address.rsplit(":", 1)
                try:
                    place = host.strip("[]"), int(port)
                    socket.create_connection(place, timeout=2).close()
                except OSError:
                    return False
            time.sleep(0.5)
        return True


_watch = _Watch()
