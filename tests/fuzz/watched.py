"""A process that tries cases, and one that watches it."""

import dataclasses
import faulthandler
import importlib
import logging
import multiprocessing
import os
import pathlib
import random
import re
import shutil
import time
import traceback
import warnings

SECONDS = 10  # of CPU time, which other work on the machine does not lengthen
HANG = 60  # seconds of anything
MEGABYTES = 1000


@dataclasses.dataclass
class Result:
    """What came of a case: `accepted`, `refused` or `failed`, and what was said.

    Its seconds are CPU time.
    """

    outcome: str
    reason: str = ""
    seconds: float = 0.0
    megabytes: float = 0.0


class Worker:
    """A process that tries cases of a module; after a failure, a new one does."""

    def __init__(self, module: str, folder: pathlib.Path):
        self._module, self._folder = module, folder
        self._process = None

    def run(self, seed: str) -> Result:
        """Tries the case of a seed, of which the input stays in the folder."""
        if self._process is None:
            self._start()
        self._connection.send(seed)
        begin = time.monotonic()
        reason = ""
        while not reason and not self._connection.poll(0.1):
            seconds, memory = time.monotonic() - begin, self._memory()
            if seconds > HANG:
                reason = f"no end after {seconds:.0f} s"
            elif memory > 1.2 * MEGABYTES:
                reason = f"took {memory:.0f} MB, and more to come"
        try:
            result = Result("failed", reason) if reason else self._connection.recv()
        except EOFError:
            self._process.join()
            result = Result("failed", f"died with status {self._process.exitcode}")
        if result.outcome == "failed":
            self.stop()
        return result

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        arguments = (other, self._module, self._folder)
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        other.close()
        self._before = self._connection.recv()

    def _memory(self) -> float:
        return _megabytes("VmRSS", self._process.pid) - self._before


def _serve(connection, name: str, folder: pathlib.Path) -> None:
    """Tries the cases that are asked for, until the other side is gone."""
    folder.mkdir(parents=True, exist_ok=True)
    log = (folder / "log.txt").open("w", buffering=1)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    logging.disable()
    warnings.simplefilter("ignore")
    module = importlib.import_module(name)
    _try(module.case, "warm-up", folder / "case")
    before = _megabytes("VmRSS")
    connection.send(before)
    while True:
        seed = connection.recv()
        faulthandler.dump_traceback_later(0.9 * HANG, file=log)
        result = _try(module.case, seed, folder / "case")
        faulthandler.cancel_dump_traceback_later()
        result.megabytes -= before
        # Pickle cannot read back all that a damaged file can make a message of.
        result.reason = result.reason.encode("ascii", "backslashreplace").decode()
        if result.outcome != "failed":
            if result.seconds > SECONDS:
                result.outcome, result.reason = "failed", f"{result.seconds:.1f} s"
            if result.megabytes > MEGABYTES:
                result.outcome, result.reason = "failed", f"{result.megabytes:.0f} MB"
        connection.send(result)


def _try(case, seed: str, folder: pathlib.Path) -> Result:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    read = case(random.Random(seed), folder)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts anew
    begin = time.process_time()
    result = Result("accepted")
    try:
        read()
    except (ValueError, OSError) as error:
        result = Result("refused", str(error))
        if not result.reason.strip() or not result.reason.isprintable():
            result = Result("failed", f"not one line: {traceback.format_exc()}")
    except BaseException:  # noqa: BLE001 - whatever it is, it is not documented
        result = Result("failed", traceback.format_exc())
    result.seconds = time.process_time() - begin
    result.megabytes = _megabytes("VmHWM")
    return result


def _megabytes(field: str, process: int | str = "self") -> float:
    status = pathlib.Path(f"/proc/{process}/status").read_text()
    found = re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) / 1000 if found else 0.0
