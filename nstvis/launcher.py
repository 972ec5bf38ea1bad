"""The harness of all experiments: flags, workdir, results, errors, exit status.

An experiment is a file with a docstring, a dataclass `Config`, and

    def run(config: Config, workdir: pathlib.Path) -> Sequence[str] | None

which returns the names of the files it left in `workdir`, the most important first.
The launcher parses typed flags and checks them against the fields' bounds
(`nstvis.runs.config`), claims the workdir and records provenance in it
(`nstvis.runs.workdir`), and turns an error that a user can fix into one clear line. A
finished run is not repeated. An interrupted one is called again with the same workdir,
and resumes from the checkpoints it finds there (`nstvis.runs.checkpoints`).
`--config.profile` traces steps of any experiment (`nstvis.runs.profiling`).
"""

import contextlib
import dataclasses
import functools
import gc
import importlib.metadata
import logging
import os
import pathlib
import platform
import shlex
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

import absl.flags
import jax

from nstvis import __version__, devices, hosts
from nstvis.runs import cache, flags, registry, workdir
from nstvis.runs import config as configs
from nstvis.runs.profiling import profiling
from nstvis.runs.progress import Interrupted, interruptible

logger = logging.getLogger(__name__)

# Raised by a user's mistake, a full disk or a full GPU; a bug shows its traceback.
EXPECTED = (
    ValueError,
    OSError,
    MemoryError,
    FloatingPointError,
    absl.flags.Error,
    jax.errors.JaxRuntimeError,
)


def experiments() -> pathlib.Path:
    """Returns the folder of the experiments, installed or of the checkout."""
    package = pathlib.Path(__file__).parent
    installed = package / "experiments"
    return installed if installed.is_dir() else package.parent / "experiments"


def line_of(error: BaseException) -> str:
    """Returns what is shown of an error: its first line, with escapes made visible."""
    line = next(filter(str.strip, str(error).splitlines()), repr(error))
    return "".join(x if x.isprintable() else ascii(x)[1:-1] for x in line)


def main(argv: list[str] = sys.argv) -> int:
    """Runs what the command line asks for; returns the exit status."""
    gc.set_threshold(100_000)  # or a tenth of a start goes into looking for garbage
    _log_to_terminal()
    try:
        return hosts.leave(_launch(argv))
    except EXPECTED as error:
        hosts.suspect(error)
        message = line_of(error)
        print(f"error: {message}", file=sys.stderr)
        hosts.fail(message)
        return 1
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return hosts.leave(130, "interrupted")
    except Exception as error:
        if hosts.several():
            hosts.suspect(error)
            traceback.print_exc()
            hosts.fail(repr(error))
        raise


def _launch(argv: list[str]) -> int:
    argv = flags.at_home(argv)
    values = flags.launcher_flags()
    values(argv, known_only=True)
    command = _command(argv)
    if values.experiment is None:
        print(_help(command))
        return 0 if values.help else 2
    experiment = registry.find("experiment", values.experiment, experiments())
    for name in ("Config", "run"):
        if not hasattr(experiment, name):
            raise ValueError(f"{values.experiment} is no experiment: it has no {name}")
    logging.getLogger(experiment.__name__).setLevel(logging.INFO)
    if values.help:
        docstring = (experiment.__doc__ or "").replace("python launch.py", command)
        print(f"{docstring}\n{flags.describe(experiment.Config)}")
        print(flags.describe(configs.Profile))
        return 0
    config = flags.parse_config(experiment, values, argv)
    given = values["config.profile"].value or "0"
    profile = flags.parse_value(configs.Profile, "profile", given)
    configs.check(configs.Profile(profile=profile))
    configs.check(config)
    devices.connect()
    devices.keep_memory()
    cache.keep_compiled()
    if hosts.several() and not values.workdir:
        raise ValueError("several hosts need --workdir, a folder that all can reach")
    folder = pathlib.Path(values.workdir or workdir.default_workdir(values.experiment))
    _compare_hosts(values.experiment, config)
    hosts.resume_with(functools.partial(workdir.command, folder))
    folder.mkdir(parents=True, exist_ok=True)
    with workdir.alone(folder) if devices.is_lead() else contextlib.nullcontext():
        if results := workdir.claim(folder, values.experiment, config):
            logger.info("finished already: %s", "\n".join(map(str, results)))
            return 0
        with _log_to_file(folder / workdir.LOG):
            return _run(experiment, config, folder, profile)


def _log_to_terminal() -> None:
    """Logs there what we say, and what libraries warn of, but for Orbax and Grain."""
    # By force, as absl has put its own handler there on import.
    logging.basicConfig(format="%(message)s", level=logging.WARNING, force=True)
    logging.getLogger("nstvis").setLevel(logging.INFO)
    logging.getLogger("absl").setLevel(logging.WARNING)
    for handler in logging.getLogger().handlers:
        handler.addFilter(lambda record: record.name != "absl")
    logging.raiseExceptions = False  # on a full disk the run says so
    sys.excepthook = _log_of_threads


def _log_of_threads(
    kind: type[BaseException], error: BaseException, trace: Any
) -> None:
    """Keeps what Orbax's threads print after a failed save out of the terminal."""
    if threading.current_thread() is threading.main_thread():
        sys.__excepthook__(kind, error, trace)
    else:
        logging.getLogger("absl").warning("%r", error)


@contextlib.contextmanager
def _log_to_file(path: pathlib.Path) -> Iterator[None]:
    """Adds all that is logged to a file, Orbax's and Grain's warnings included."""
    if not devices.is_lead():
        path = pathlib.Path(os.devnull)
    handler = logging.FileHandler(path, errors="backslashreplace")
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(message)s"))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        with contextlib.suppress(OSError):  # of a full disk
            handler.close()


def _compare_hosts(experiment: str, config: Any) -> None:
    """Raises a ValueError if other hosts were asked for something else, or are other."""
    fields = dataclasses.asdict(config)
    versions = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}
    versions |= {"nstvis": __version__, "python": platform.python_version()}
    hosts.agree(
        {"--experiment": experiment}
        | {f"--config.{name}": value for name, value in fields.items()}
        | {f"the version of {name}": value for name, value in versions.items()}
        | {f"the hash of {name}": value for name, value in hosts.files(fields).items()},
        wait=True,
    )


def _run(
    experiment: ModuleType, config: Any, folder: pathlib.Path, profile: int
) -> int:
    """Runs an experiment in its claimed workdir; returns the exit status."""
    try:
        with interruptible(), profiling(folder / "profile", profile):
            names: Sequence[str] = experiment.run(config, folder) or ()
            if isinstance(names, str):
                line = f"run returned {names!r}, not a list of file names"
                raise ValueError(line)  # noqa: TRY004 - an error in a line
    except EXPECTED:
        with contextlib.suppress(OSError):
            text = traceback.format_exc().encode(errors="surrogateescape")
            (folder / "error.txt").write_bytes(text)
        raise
    except (Interrupted, KeyboardInterrupt) as stop:
        quoted = shlex.quote(str(folder))
        print(str(stop) or "interrupted", file=sys.stderr)
        print(f"rerun with --workdir={quoted} to resume", file=sys.stderr)
        status = 128 + stop.signum if isinstance(stop, Interrupted) else 130
        return hosts.leave(status, str(stop) or "interrupted")
    if names and devices.is_lead():
        workdir.finish(folder, names)
        for name in names:
            logger.info("%s", folder / name)
    return 0


def _command(argv: list[str]) -> str:
    """Returns how this program was called."""
    as_module = pathlib.Path(argv[0]).name == "__main__.py"
    return "python -m nstvis" if as_module else "python launch.py"


def _help(command: str) -> str:
    """Lists the experiments."""
    lines = [f"{command} --experiment=NAME [--workdir=DIR] [--config.FIELD=VALUE]"]
    lines += ["", "Experiments (or the path of a file like those in experiments/):"]
    for name in registry.names(experiments()):
        summary = registry.summary(experiments() / f"{name}.py")
        lines.append(f"  {name:16}{summary}")
    return "\n".join([*lines, "", "--experiment=NAME --help lists its config."])
