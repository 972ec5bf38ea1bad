"""Runs an experiment: what each of them gets without asking.

An experiment is a file with a docstring, a dataclass `Config`, and

    def run(config: Config, workdir: pathlib.Path) -> Sequence[str] | None

which returns the names of the files that it left in `workdir`, the most important one
first. It gets typed flags within the bounds of its fields, a workdir of its own with its
provenance, and one clear line for an error that a user can mend. A run that is finished
is not repeated; one that was interrupted is called again with the same workdir, and
resumes from what it finds there (`nstvis.runs.checkpoints`).
"""

import contextlib
import logging
import pathlib
import sys
import traceback

import absl.flags
import jax

from nstvis import devices
from nstvis.runs import cache, flags, registry, workdir
from nstvis.runs import config as configs
from nstvis.runs.progress import Interrupted

logger = logging.getLogger(__name__)

# What a user's mistake, a full disk or a full GPU raises; a bug shows its traceback.
EXPECTED = (
    ValueError,
    OSError,
    MemoryError,
    FloatingPointError,
    absl.flags.Error,
    jax.errors.JaxRuntimeError,
)


def experiments() -> pathlib.Path:
    """The folder of the experiments: of the installed package, or of the checkout."""
    package = pathlib.Path(__file__).parent
    installed = package / "experiments"
    return installed if installed.is_dir() else package.parent / "experiments"


def main(argv: list[str] = sys.argv) -> int:
    """Runs what the command line asks for; returns the exit status."""
    # By force, as absl has put its own handler there on import.
    logging.basicConfig(format="%(message)s", level=logging.WARNING, force=True)
    logging.getLogger("nstvis").setLevel(logging.INFO)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax's tracebacks
    claimed: list[pathlib.Path] = []
    try:
        return _launch(argv, claimed)
    except EXPECTED as error:
        for folder in claimed:
            with contextlib.suppress(OSError):
                (folder / "error.txt").write_text(traceback.format_exc())
        message = next(filter(str.strip, str(error).splitlines()), repr(error))
        print(f"error: {message}", file=sys.stderr)
        return 1
    except (Interrupted, KeyboardInterrupt) as stop:
        print(str(stop) or "interrupted", file=sys.stderr)
        for folder in claimed:
            print(f"rerun with --workdir={folder} to resume", file=sys.stderr)
        return 128 + stop.signum if isinstance(stop, Interrupted) else 130


def _launch(argv: list[str], claimed: list[pathlib.Path]) -> int:
    values = absl.flags.FlagValues()
    absl.flags.DEFINE_string("experiment", None, "", flag_values=values)
    absl.flags.DEFINE_string("workdir", None, "", flag_values=values)
    absl.flags.DEFINE_bool("help", False, "", short_name="h", flag_values=values)
    values(argv, known_only=True)
    if values.experiment is None:
        print(_help())
        return 0 if values.help else 2
    experiment = registry.find("experiment", values.experiment, experiments())
    logging.getLogger(experiment.__name__).setLevel(logging.INFO)
    if values.help:
        print(f"{experiment.__doc__}\n{flags.describe(experiment.Config)}")
        return 0
    config = flags.parse_config(experiment, values, argv)
    configs.check(config)
    devices.connect()
    folder = pathlib.Path(values.workdir or workdir.default_workdir(values.experiment))
    cache.keep_compiled()
    if results := workdir.claim(folder, values.experiment, config):
        logger.info("finished already: %s", results[0])
        return 0
    claimed.append(folder)
    names = experiment.run(config, folder)
    if names and devices.is_lead():
        workdir.finish(folder, names)
        for name in names:
            logger.info("%s", folder / name)
    return 0


def _help() -> str:
    """What there is to run."""
    lines = [
        "python launch.py --experiment=NAME [--workdir=DIR] [--config.FIELD=VALUE]"
    ]
    lines += ["", "Experiments (or the path of a file like those in experiments/):"]
    for name in registry.names(experiments()):
        summary = registry.summary(experiments() / f"{name}.py")
        lines.append(f"  {name:16}{summary}")
    return "\n".join([*lines, "", "--experiment=NAME --help lists its config."])
